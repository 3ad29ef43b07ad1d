"""Requests per second of ``/_ping`` over one unix socket, keep-alive.

Run as ``python bench/http.py [SOCKET]``; without a socket it measures a server of its own over a fake engine.
The client is a plain blocking socket, so the figure includes what a client costs on the same machine.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REQUEST = b"GET /v1.51/_ping HTTP/1.1\r\nHost: docker\r\nUser-Agent: Docker-Client/28.2.2 (linux)\r\nAccept-Encoding: gzip\r\n\r\n"
SECONDS = 3.0


def measure(path: str, depth: int) -> float:
    """Requests per second with ``depth`` requests under way (1: one after the other)."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(REQUEST)
        size = len(sock.recv(65536))
        done, end = 0, time.monotonic() + SECONDS
        while time.monotonic() < end:
            sock.sendall(REQUEST * depth)
            left = size * depth
            while left > 0:
                left -= len(sock.recv(min(left, 65536)))
            done += depth
        return done / SECONDS


def own_server(path: str) -> None:
    from tare.api.docker.app import DockerApi, default_headers
    from tare.api.docker.routes import Routes, add_system
    from tare.api.docker.system import SystemHandlers
    from tare.http.routing import Router
    from tare.http.server import Server

    async def run() -> None:
        engine: Any = SimpleNamespace()
        routes: Routes = Router()
        add_system(routes, SystemHandlers(engine))
        server = Server(DockerApi(engine, routes), default_headers())
        await server.listen(f"unix://{path}")
        await asyncio.Event().wait()

    asyncio.run(run())


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        if len(sys.argv) > 1:
            path = sys.argv[1]
        else:
            path = f"{directory}/sock"
            threading.Thread(target=own_server, args=(path,), daemon=True).start()
            while not Path(path).exists():
                time.sleep(0.01)
        for depth in (1, 16):
            print(f"_ping, {depth:2} under way: {measure(path, depth):8.0f} requests/s")


if __name__ == "__main__":
    main()
