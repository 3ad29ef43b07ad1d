"""Requests to a daemon without a client library, and what they may leave behind in it."""

from __future__ import annotations

import socket
from pathlib import Path

from docker_calls import UnixConnection
from engine_world import Daemon


def descriptors(daemon: Daemon) -> int:
    assert daemon.process is not None
    return len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


def call(daemon: Daemon, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
    connection = UnixConnection(str(daemon.socket))
    try:
        connection.request(method, path, body, {"Content-Type": kind} if body is not None else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def raw(daemon: Daemon, data: bytes, shut: bool = True) -> bytes:
    """Send bytes, read until the daemon closes or has nothing to say for a while."""
    received = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(daemon.socket))
        try:
            sock.sendall(data)
            if shut:
                sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                received += piece
        except (BrokenPipeError, ConnectionResetError):
            pass
    return received
