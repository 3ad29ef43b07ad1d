"""A build's steps as BuildKit tells of them: vertexes with times, statuses and logs (``--progress rawjson`` shows these documents).

A vertex is a step that makes a layer, a base image, an export. Its id is a digest over the build and the vertex's number; documents about
it may come in any number, the last word counts.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from tare.builder.request import Say, Trace
from tare.distribution.progress import Progress

_OVER = ("Pull complete", "Already exists", "Pushed", "Layer already exists")


def now() -> str:
    """RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class Vertex:
    """One step that is told about."""

    def __init__(self, say: Say, key: str, name: str) -> None:
        self._say = say
        self.digest = "sha256:" + hashlib.sha256(key.encode()).hexdigest()
        self.name = name
        self.cached = False
        self._started = now()
        self._statuses: dict[str, str] = {}

    async def _tell(self, *, completed: str | None = None, error: str = "") -> None:
        document: dict[str, object] = {"digest": self.digest, "name": self.name, "started": self._started}
        if completed is not None:
            document["completed"] = completed
        if self.cached:
            document["cached"] = True
        if error:
            document["error"] = error
        await self._say(Trace({"vertexes": [document]}))

    async def begin(self) -> None:
        await self._tell()

    async def end(self, error: str = "") -> None:
        await self._tell(completed=now(), error=error)

    async def log(self, data: bytes, stream: int) -> None:
        """What the step wrote to ``stream`` (1 or 2)."""
        text = base64.b64encode(data).decode()
        await self._say(Trace({"logs": [{"vertex": self.digest, "stream": stream, "data": text, "timestamp": now()}]}))

    async def status(self, id: str, *, done: bool, current: int = 0, total: int = 0) -> None:
        """Something within the step goes on, or is over."""
        started = self._statuses.setdefault(id, now())
        document: dict[str, object] = {"id": id, "vertex": self.digest, "timestamp": now(), "started": started}
        if total or current:
            document |= {"current": current, "total": total}
        if done:
            document["completed"] = now()
        await self._say(Trace({"statuses": [document]}))

    async def progress(self, message: Progress) -> None:
        """A message of a pull or push."""
        if message.id:
            over = message.status in ("Pull complete", "Already exists", "Pushed", "Layer already exists") or message.status.startswith(
                "Mounted"
            )
            if message.total or over:
                await self.status(message.id, done=over, current=message.current or 0, total=message.total or 0)
        elif message.status:
            await self.status(message.status, done=True)


@asynccontextmanager
async def vertex(say: Say, key: str, name: str) -> AsyncIterator[Vertex]:
    """A vertex that begins and ends with the block."""
    found = Vertex(say, key, name)
    await found.begin()
    try:
        yield found
    except BaseException as error:
        await found.end(str(error) or "context canceled")
        raise
    await found.end()
