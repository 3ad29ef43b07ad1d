"""Answers that grow: JSON documents one per line (events, pull progress, stats), flushed one by one."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from tare.api.docker.errors import message_of
from tare.http.message import ClientDisconnected, Request, StreamResponse

_encode = msgspec.json.Encoder().encode


class JsonStream:
    """Sends documents to a client that reads them as they come. The head leaves with ``open``."""

    def __init__(self, stream: StreamResponse, end: bytes = b"\n") -> None:
        self._stream = stream
        self._end = end
        self._waiting: list[bytes] = []

    @classmethod
    async def open(cls, request: Request, status: int = 200, end: bytes = b"\n") -> JsonStream:
        """``end`` is what follows each document: dockerd ends progress with CR LF, events with LF."""
        return cls(await request.stream(status, "application/json"), end)

    async def send(self, document: Any) -> None:
        line = _encode(document) + self._end
        if self._waiting:
            line = b"".join((*self._waiting, line))
            self._waiting.clear()
        await self._stream.write(line)

    def send_soon(self, document: Any) -> None:
        """Send together with what else is said before the loop's next turn: a system call and a wake-up of the client for all of it."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        self._waiting.append(_encode(document) + self._end)

    def flush(self) -> None:
        """Send what waits. Needed before the answer ends."""
        if self._waiting:
            data = b"".join(self._waiting)
            self._waiting.clear()
            try:
                self._stream.put(data)
            except ClientDisconnected:
                pass  # whoever waits for the client is told

    async def fail(self, error: BaseException, request_id: str) -> None:
        """The last document of an operation that failed after its head was sent."""
        text = message_of(error, request_id)
        await self.send({"errorDetail": {"message": text}, "error": text})
