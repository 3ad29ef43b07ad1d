"""What stages say, in the file's order although they run at the same time.

The first stage that is not over speaks at once; what the others say waits, and when too much waits its speaker waits too.

A *traced* build has no such text: each stage tells of its steps (``trace``) as they happen, side by side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tare.builder.request import Message, Say, Text, Trace
from tare.builder.trace import Vertex
from tare.distribution.progress import Progress

_WAITING_LIMIT = 4 << 20


class Voice:
    """One stage's way to the client."""

    def __init__(self, say: Say, *, traced: bool = False) -> None:
        self._say = say
        self.traced = traced
        self.vertex: Vertex | None = None
        """The step that is told about, in a traced build."""
        self._turn = asyncio.Event()
        self._waiting: list[Message] = []
        self._size = 0
        self._lock = asyncio.Lock()

    async def say(self, message: Message) -> None:
        """Say it now or when the turn comes."""
        if self.traced:
            if isinstance(message, Progress) and self.vertex is not None:
                await self.vertex.progress(message)
            return
        if not self._turn.is_set() and self._size < _WAITING_LIMIT:
            self._waiting.append(message)
            self._size += len(message.text) if isinstance(message, Text) else 64
            return
        await self._turn.wait()
        async with self._lock:
            await self._say(message)

    async def warn(self, short: str, url: str) -> None:
        """One of BuildKit's warnings: only a traced build has a place for it."""
        if self.traced:
            await self._say(Trace({"warnings": [{"level": 1, "short": short, "url": url}]}))

    def aside(self) -> Voice:
        """The voice of a stage that this one waits for."""
        other = Voice(self._say if self.traced else self.say, traced=self.traced)
        other._turn.set()
        return other

    def begin_step(self, key: str, name: str) -> Vertex:
        """The step that is told about from now on."""
        self.vertex = Vertex(self._say, key, name)
        return self.vertex

    async def text(self, text: str) -> None:
        await self.say(Text(text))

    async def begin(self) -> None:
        """It is this stage's turn."""
        async with self._lock:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                for message in waiting:
                    await self._say(message)
            self._turn.set()


async def narrate(voices: Sequence[Voice], over: Sequence[asyncio.Future[Any]]) -> None:
    """Give each stage its turn when the one before it is over."""
    for voice, end in zip(voices, over, strict=True):
        await voice.begin()
        await asyncio.wait({end})
