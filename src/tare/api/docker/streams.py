"""Answers that grow: JSON documents one per line (events, pull progress, stats), flushed one by one."""

from __future__ import annotations

from typing import Any

import msgspec

from tare.api.docker.errors import message_of, status_of
from tare.http.message import Request, StreamResponse

_encode = msgspec.json.Encoder().encode


class JsonStream:
    """Sends documents to a client that reads them as they come. The head leaves with ``open``."""

    def __init__(self, stream: StreamResponse) -> None:
        self._stream = stream

    @classmethod
    async def open(cls, request: Request, status: int = 200) -> JsonStream:
        return cls(await request.stream(status, "application/json"))

    async def send(self, document: Any) -> None:
        await self._stream.write(_encode(document) + b"\n")

    async def fail(self, error: BaseException, request_id: str) -> None:
        """The last document of an operation that failed after its head was sent."""
        text = message_of(error, request_id)
        status = status_of(error)
        detail: dict[str, Any] = {"message": text}
        if status in (403, 404):  # not 401: the command line would replace the message by its own
            detail["code"] = status
        await self.send({"errorDetail": detail, "error": text})
