"""The daemon's side of the name server: starts it when the first container needs it, finds it again after a restart, starts another when
it dies.

What the server knows is sent from here, and kept here to be sent again: ``put`` and ``forget`` are one packet each, without an
answer. A server that is gone (killed) is noticed by the end of the connection: a new one gets all names, then every running container
that had the old one. Between the two its containers' questions find a closed port, for a tenth of a second.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tare.linux import namespaces
from tare.networks.dns.server import VERSION
from tare.runtime import messages, name_service

log = logging.getLogger(__name__)

SEND_SECONDS = 2.0
_SOURCE = Path(__file__).resolve().parents[3]
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from tare.networks.dns.server import main; main(int(sys.argv[2]))"


class NameServer:
    """The engine's name server. Methods run on the event loop."""

    def __init__(self, exec_root: Path) -> None:
        self.path = exec_root / "dns.sock"
        self._errors = exec_root / "dns.err"
        self._documents: dict[str, dict[str, Any]] = {}
        self._pids: dict[str, int] = {}
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._restart: asyncio.Task[None] | None = None

    # What is said

    def put(self, container_id: str, document: dict[str, Any]) -> None:
        """Tell what a container is called and whom it may ask; starts the server if need be. Raises OSError when that fails."""
        self._documents[container_id] = document
        if self._sock is None:
            self._connect()
        else:
            self._send({"op": "put", "container": document})

    def learn(self, container_id: str, document: dict[str, Any]) -> None:
        """Know of a container, to tell the server when it is there (``restore``)."""
        self._documents[container_id] = document

    def forget(self, container_id: str) -> None:
        """A container has left its networks. Unknown ones are no error."""
        self._pids.pop(container_id, None)
        if self._documents.pop(container_id, None) is not None and self._sock is not None:
            self._send({"op": "forget", "id": container_id})

    def running(self, container_id: str, pid: int) -> None:
        """The container runs with this init: needed to serve it again, should the server die."""
        if container_id in self._documents:
            self._pids[container_id] = pid

    async def serve(self, container_id: str, pid: int) -> None:
        """Answer in a container that runs already."""
        self._pids[container_id] = pid
        await asyncio.to_thread(self._serve, container_id, pid)

    async def restore(self, pids: Mapping[str, int]) -> None:
        """After a restart of the daemon: have every running container served that is not yet."""
        self._pids = {container_id: pid for container_id, pid in pids.items() if container_id in self._documents}
        if self._documents or _listens(self.path):
            await self._serve_all(self._connect())

    def close(self) -> None:
        """Let go of the server: it goes on for the containers that run, and ends with the last of them."""
        if self._restart is not None:
            self._restart.cancel()
        self._disconnect()

    # Inside

    def _connect(self) -> list[str]:
        """Find the server or start one, and tell it everything. Returns the containers that it serves."""
        sock, hello = _connected(self.path), {}
        if sock is not None:
            hello = _greet(sock)
            if hello.get("version") != VERSION:
                messages.send(sock, {"op": "quit"})
                sock.close()
                sock = None
        if sock is None:
            self._spawn()
            sock = _connected(self.path)
            if sock is None:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "the name server does not start", str(self.path))
            messages.send(sock, {"op": "hello"})  # its answer, once it has come up, is read and ignored
        self._sock = sock
        for document in self._documents.values():
            messages.send(sock, {"op": "put", "container": document})
        messages.send(sock, {"op": "keep", "ids": list(self._documents)})
        asyncio.get_running_loop().add_reader(sock, self._on_readable, sock)
        return list(hello.get("served", ()))

    def _spawn(self) -> None:
        """Start a server (vfork and exec). It inherits the listening socket, so that it can be talked to at once."""
        self.path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, self._errors.open("wb") as errors:
            listener.bind(str(self.path))
            os.chmod(self.path, 0o600)
            listener.listen(256)
            # The path is for whoever reads the list of processes.
            command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(_SOURCE), str(listener.fileno()), str(self.path)]
            self._process = subprocess.Popen(
                command,
                pass_fds=[listener.fileno()],
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    def _send(self, message: dict[str, Any]) -> None:
        assert self._sock is not None
        try:
            messages.send(self._sock, message)
        except OSError as error:
            log.warning("the name server does not listen (%s): starting another", error.strerror or error)
            self._lost(self._sock)

    def _on_readable(self, sock: socket.socket) -> None:
        try:
            message, _ = messages.receive(sock)
        except (OSError, ValueError):
            message = None
        if message is None:
            self._lost(sock)

    def _lost(self, sock: socket.socket) -> None:
        if sock is self._sock:
            self._disconnect()
            if self._documents:
                log.warning("the name server has ended: starting another")
                self._restart = asyncio.get_running_loop().create_task(self._revive())

    async def _revive(self) -> None:
        try:
            if self._sock is None:
                self._connect()
            await self._serve_all([])
        except OSError as error:
            log.error("containers have no name server: %s", error.strerror or error)

    async def _serve_all(self, served: list[str]) -> None:
        for container_id, pid in list(self._pids.items()):
            if container_id not in served:
                try:
                    await asyncio.to_thread(self._serve, container_id, pid)
                except OSError as error:
                    log.warning("container %s has no name server: %s", container_id[:12], error.strerror or error)

    def _serve(self, container_id: str, pid: int) -> None:
        namespace = namespaces.open_namespace(f"/proc/{pid}/ns/net")
        try:
            name_service.serve(str(self.path), container_id, namespace, pid)
        finally:
            os.close(namespace)

    def _disconnect(self) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self._sock = None
        if self._process is not None:
            self._process.poll()


def _connected(path: Path) -> socket.socket | None:
    """A connection with whoever listens there, or None."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(SEND_SECONDS)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        return None
    return sock


def _listens(path: Path) -> bool:
    """Whether a server from an earlier daemon is there."""
    sock = _connected(path)
    if sock is not None:
        sock.close()
    return sock is not None


def _greet(sock: socket.socket) -> dict[str, Any]:
    """The server's answer to our hello; empty when it does not make sense."""
    try:
        messages.send(sock, {"op": "hello"})
        return messages.receive(sock)[0] or {}
    except (OSError, ValueError):
        return {}
