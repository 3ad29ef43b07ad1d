"""The keeper's control socket and its connections.

The socket's path may be longer than an address allows, so both sides go through ``/proc/self/fd/DIRFD/keeper.sock``.
Only the keeper's own user and root may connect; the directory and the socket's mode say so as well.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from tare.runtime import messages
from tare.runtime.reactor import HANG_UP, READ, WRITE, Reactor

NAME = "keeper.sock"
BACKLOG = 16
QUEUE_LIMIT = 1024

Handler = Callable[["Connection", dict[str, Any], list[int]], dict[str, Any] | None]


class Connection:
    """One client (the daemon, a runtime command)."""

    def __init__(self, owner: ControlSocket, sock: socket.socket) -> None:
        self._owner = owner
        self.sock = sock
        self.queue: deque[bytes] = deque()
        sock.setblocking(False)
        owner.reactor.watch(sock.fileno(), READ, self._on_event)

    def send(self, message: dict[str, Any]) -> None:
        """Send or queue one message."""
        if self.sock.fileno() < 0:
            return
        self.queue.append(messages.encode(message))
        self._flush()

    def answer(self, number: Any, result: dict[str, Any]) -> None:
        self.send({"n": number, "ok": result})

    def _flush(self) -> None:
        while self.queue:
            try:
                messages.send_bytes(self.sock, self.queue[0])
            except BlockingIOError:
                break
            except OSError:
                self.close()
                return
            self.queue.popleft()
        if len(self.queue) > QUEUE_LIMIT:
            self.close()
            return
        self._owner.reactor.watch(self.sock.fileno(), READ | (WRITE if self.queue else 0), self._on_event)

    def _on_event(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & (READ | HANG_UP) and self.sock.fileno() >= 0:
            self._receive()

    def _receive(self) -> None:
        try:
            message, fds = messages.receive(self.sock)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self.close()
            return
        if message is None:
            self.close()
            return
        number = message.get("n")
        try:
            result = self._owner.handler(self, message, fds)
        except OSError as error:
            kind = errno.errorcode.get(error.errno or 0, "EIO")
            self.send({"n": number, "error": error.strerror or str(error), "kind": kind, "path": str(error.filename or "")})
        except (KeyError, ValueError, TypeError, IndexError) as error:
            self.send({"n": number, "error": f"malformed request: {error!r}", "kind": "EINVAL"})
        else:
            if result is not None:
                self.answer(number, result)

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            self._owner.reactor.forget(self.sock.fileno())
            self.sock.close()
            self.queue.clear()
            self._owner.connections.discard(self)
            self._owner.on_closed(self)


class ControlSocket:
    """The listening socket in a run directory, and all connections."""

    def __init__(self, reactor: Reactor, handler: Handler, on_closed: Callable[[Connection], None]) -> None:
        self.reactor = reactor
        self.handler = handler
        self.on_closed = on_closed
        self.connections: set[Connection] = set()
        self._listener: socket.socket | None = None

    def listen(self, listener: socket.socket) -> None:
        """From now on take new connections."""
        self._listener = listener
        self.reactor.watch(listener.fileno(), READ, self._on_connection)

    def descriptors(self) -> dict[str, Any] | None:
        """The sockets, for whoever goes on in our place; None while something is unsent."""
        if not self.flushed or self._listener is None:
            return None
        return {"listener": self._listener.fileno(), "connections": [connection.sock.fileno() for connection in self.connections]}

    def adopt(self, sock: socket.socket) -> Connection:
        """Take over a connected socket."""
        connection = Connection(self, sock)
        self.connections.add(connection)
        return connection

    def _on_connection(self, events: int) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            sock.close()
            return
        self.adopt(sock)

    def broadcast(self, message: dict[str, Any]) -> None:
        for connection in list(self.connections):
            connection.send(message)

    @property
    def flushed(self) -> bool:
        """Whether everything was sent."""
        return not any(connection.queue for connection in self.connections)

    def close(self) -> None:
        if self._listener is not None:
            self.reactor.forget(self._listener.fileno())
            self._listener.close()
        for connection in list(self.connections):
            connection.close()


def listen(directory_fd: int) -> socket.socket:
    """A new control socket in a run directory."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        os.unlink(NAME, dir_fd=directory_fd)
    except FileNotFoundError:
        pass
    mask = os.umask(0o177)
    try:
        listener.bind(f"/proc/self/fd/{directory_fd}/{NAME}")
    finally:
        os.umask(mask)
    listener.listen(BACKLOG)
    return listener


def connect(directory: str) -> socket.socket:
    """A connection with the keeper whose run directory this is. OSError when there is none."""
    directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory_fd}/{NAME}")
        except BaseException:
            sock.close()
            raise
        return sock
    finally:
        os.close(directory_fd)
