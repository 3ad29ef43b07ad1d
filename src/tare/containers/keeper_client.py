"""The daemon's end of a connection with a keeper: requests with answers, and events as they come. asyncio, no threads.

Messages are small packets (``tare.runtime.messages``); the socket is non-blocking, what cannot be sent at once waits in order.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from tare.errors import Conflict, InvalidArgument, StartFailed, TareError, Unavailable
from tare.runtime import messages

Event = dict[str, Any]


class KeeperClient:
    """One connection. ``on_event`` gets every event, ``on_closed`` is called once when the keeper's end is gone."""

    def __init__(self, sock: socket.socket, on_event: Callable[[Event], None], on_closed: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._on_event = on_event
        self._on_closed = on_closed
        self._number = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def closed(self) -> bool:
        return self._sock.fileno() < 0

    async def request(self, op: str, fds: list[int] | None = None, /, **fields: Any) -> dict[str, Any]:
        """Ask and wait for the answer. ``fds`` are sent along (duplicated: the caller still owns its own)."""
        if self.closed:
            raise Unavailable("the keeper of this container is gone")
        self._number += 1
        number = self._number
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._waiting[number] = future
        self._send(messages.encode({"op": op, "n": number, **fields}), list(fds or ()))
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    def _send(self, data: bytes, fds: list[int]) -> None:
        if not self._queue:
            try:
                messages.send_bytes(self._sock, data, fds)
                return
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._writable)
            except OSError:
                self.close()
                return
        self._queue.append((data, [os.dup(fd) for fd in fds]))

    def _writable(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                messages.send_bytes(self._sock, data, fds)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            self._queue.popleft()
            messages.close_all(fds)
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        for _ in range(64):
            if self.closed:
                return
            try:
                message, fds = messages.receive(self._sock)
            except (BlockingIOError, InterruptedError):
                return
            except (OSError, ValueError):
                message, fds = None, []
            messages.close_all(fds)
            if message is None:
                self.close()
                return
            if "event" in message:
                self._on_event(message)
            else:
                self._answer(message)

    def _answer(self, message: dict[str, Any]) -> None:
        future = self._waiting.get(int(message.get("n") or 0))
        if future is None or future.done():
            return
        if "ok" in message:
            future.set_result(message["ok"])
        else:
            future.set_exception(_error(message))

    def close(self) -> None:
        """Close; whoever waits for an answer gets ``Unavailable``."""
        if self.closed:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, fds in self._queue:
            messages.close_all(fds)
        self._queue.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unavailable("the keeper of this container is gone"))
        self._on_closed()


def _error(message: dict[str, Any]) -> TareError:
    """An error answer in the engine's own words."""
    text, kind = str(message.get("error")), str(message.get("kind"))
    path = str(message.get("path") or "")
    if path:
        text = f"{path}: {text}"
    if kind == "failed":
        return StartFailed(text, int(message.get("code", 128)))
    if kind == "ESRCH":
        return Conflict(text)
    if kind in ("EINVAL", "ENOTTY", "ERANGE", "EBUSY", "EOPNOTSUPP", "ENODEV"):
        return InvalidArgument(text)
    return TareError(text)
