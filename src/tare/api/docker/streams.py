"""Answers that grow: JSON documents one per line (events, pull progress, stats), flushed one by one."""

from __future__ import annotations

from typing import Any

import msgspec

from tare.api.docker.errors import message_of
from tare.http.message import Request, StreamResponse

_encode = msgspec.json.Encoder().encode


class JsonStream:
    """Sends documents to a client that reads them as they come. The head leaves with ``open``."""

    def __init__(self, stream: StreamResponse, end: bytes = b"\n") -> None:
        self._stream = stream
        self._end = end

    @classmethod
    async def open(cls, request: Request, status: int = 200, end: bytes = b"\n") -> JsonStream:
        """``end`` is what follows each document: dockerd ends progress with CR LF, events with LF."""
        return cls(await request.stream(status, "application/json"), end)

    async def send(self, document: Any) -> None:
        await self._stream.write(_encode(document) + self._end)

    async def fail(self, error: BaseException, request_id: str) -> None:
        """The last document of an operation that failed after its head was sent."""
        text = message_of(error, request_id)
        await self.send({"errorDetail": {"message": text}, "error": text})
