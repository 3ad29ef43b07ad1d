"""What stages say, in the file's order although they run at the same time.

The first stage that is not over speaks at once; what the others say waits, and when too much waits its speaker waits too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tare.builder.request import Message, Say, Text

_WAITING_LIMIT = 4 << 20


class Voice:
    """One stage's way to the client."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._turn = asyncio.Event()
        self._waiting: list[Message] = []
        self._size = 0
        self._lock = asyncio.Lock()

    async def say(self, message: Message) -> None:
        """Say it now or when the turn comes."""
        if not self._turn.is_set() and self._size < _WAITING_LIMIT:
            self._waiting.append(message)
            self._size += len(message.text) if isinstance(message, Text) else 64
            return
        await self._turn.wait()
        async with self._lock:
            await self._say(message)

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
