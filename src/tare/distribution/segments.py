"""A large blob through several connections at once, delivered in order.

Registries and the storage behind them often give one connection only part of the line. So a large blob is asked for in segments: the first
is passed on as it comes while the next ones are fetched into memory. What may lie in memory is bounded for all transfers together
(``Budget``); without a free place a segment is simply read when its turn comes. Whether the server knows ranges shows in its first answer:
one that sends the whole blob instead is read to its end as any other.

A segment that fails fails the stream at its turn; the reader asks again from where it stands.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from tare.errors import Upstream
from tare.oci.image import Descriptor

if TYPE_CHECKING:
    from tare.distribution.remote import Repository

SEGMENT = 4 << 20
"""Bytes of one request."""
WORTHWHILE = 16 << 20
"""Bytes from which on a blob is asked for in segments."""
AHEAD = 3
"""Segments that one transfer fetches beside the one that it reads."""


class Budget:
    """How many segments may be in memory, for all transfers of an engine together. Used on the event loop only."""

    def __init__(self, places: int = 4) -> None:
        self._free = places

    def take(self) -> bool:
        if self._free <= 0:
            return False
        self._free -= 1
        return True

    def give_back(self) -> None:
        self._free += 1


class SegmentedBlob:
    """One stream over a blob. ``async with aclosing(...)`` its ``chunks``: that ends the connections."""

    def __init__(self, repository: Repository, descriptor: Descriptor, budget: Budget) -> None:
        self._repository = repository
        self._descriptor = descriptor
        self._budget = budget
        self._coming: deque[asyncio.Task[list[bytes]]] = deque()
        self._asked = 0
        """Up to where segments have been asked for."""

    async def chunks(self, offset: int) -> AsyncGenerator[bytes, None]:
        """The bytes from ``offset`` on, up to the end or to where the connection broke."""
        size = self._descriptor.size
        if size - offset < WORTHWHILE:
            async with self._repository.blob(self._descriptor, offset) as stream:
                async with aclosing(from_offset(stream.chunks, offset - stream.offset)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            return
        self._asked = offset
        try:
            while offset < size:
                if self._coming:
                    for chunk in await self._next():
                        offset += len(chunk)
                        yield chunk
                    continue
                async with aclosing(self._read(offset, self._advance())) as chunks:
                    async for chunk in chunks:
                        offset += len(chunk)
                        yield chunk
        finally:
            await self._stop()

    def _advance(self) -> int:
        self._asked = min(self._asked + SEGMENT, self._descriptor.size)
        return self._asked

    async def _read(self, offset: int, end: int) -> AsyncGenerator[bytes, None]:
        """One segment as it comes, with others on their way; or all the rest, when the server knows no ranges."""
        async with self._repository.blob(self._descriptor, offset, end) as stream:
            if stream.end > end:
                self._asked = self._descriptor.size
            else:
                self._fill()
            async with aclosing(from_offset(stream.chunks, offset - stream.offset)) as chunks:
                async for chunk in chunks:
                    offset += len(chunk)
                    yield chunk
        if offset < min(end, stream.end):
            raise Upstream(f"blob {self._descriptor.digest}: broke off at byte {offset} of {self._descriptor.size}")

    async def _next(self) -> list[bytes]:
        task = self._coming[0]
        segment = await task
        self._coming.popleft()
        self._budget.give_back()
        self._fill()
        return segment

    def _fill(self) -> None:
        while len(self._coming) < AHEAD and self._asked < self._descriptor.size and self._budget.take():
            offset = self._asked
            self._coming.append(asyncio.create_task(self._whole(offset, self._advance())))

    async def _whole(self, offset: int, end: int) -> list[bytes]:
        found, got = [], 0
        async with self._repository.blob(self._descriptor, offset, end) as stream:
            if stream.offset != offset or stream.end != end:
                raise Upstream(f"blob {self._descriptor.digest}: the registry does not keep to the ranges that it is asked for")
            async for chunk in stream.chunks:
                found.append(chunk)
                got += len(chunk)
                if got > end - offset:
                    break
        if got != end - offset:
            raise Upstream(f"blob {self._descriptor.digest}: broke off at byte {offset + got} of {self._descriptor.size}")
        return found

    async def _stop(self) -> None:
        for task in self._coming:
            task.cancel()
        for task in self._coming:
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # seen: the first failure was told
            self._budget.give_back()
        self._coming.clear()


async def from_offset(chunks: AsyncIterator[bytes], skip: int) -> AsyncGenerator[bytes, None]:
    """The chunks without their first ``skip`` bytes."""
    async for chunk in chunks:
        fresh = chunk[skip:] if skip else chunk
        skip = max(0, skip - len(chunk))
        if fresh:
            yield fresh
