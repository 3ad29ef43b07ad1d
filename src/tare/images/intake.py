"""Streams between a client and blocking work: the lines of stages that import, load, save, copy and export share.

    request body ──► [channel] ──► worker thread          ``intake``
    worker thread ──► one chunk ahead ──► answer          ``outflow``

The channel is bounded, so the slower side sets the pace. What the thread raises is what the caller gets; what the caller suffers (the
client has gone, cancellation) ends the thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import suppress
from typing import TypeVar

from tare.distribution.channel import Broken, Channel

T = TypeVar("T")
_CHANNEL_LIMIT = 8 << 20


async def intake(source: AsyncIterator[bytes], consume: Callable[[Channel], T], undo: Callable[[T], None] | None = None) -> T:
    """What ``consume`` makes of ``source``. It may stop before the end. ``undo`` gets a result that nobody will take."""
    channel = Channel(_CHANNEL_LIMIT)
    worker = asyncio.create_task(asyncio.to_thread(consume, channel))
    worker.add_done_callback(lambda _: channel.break_())
    try:
        async for chunk in source:
            if worker.done():
                break  # padding after the archive's end, or it failed
            if chunk:
                await channel.put_async(bytes(chunk))
        channel.close()
        return await asyncio.shield(worker)
    except Broken:
        return await worker  # the worker gave up first: its error is the reason
    except BaseException:
        channel.break_()
        with suppress(Exception):
            result = await worker
            if undo is not None:
                undo(result)
        raise


async def outflow(chunks: Generator[bytes, None, None]) -> AsyncGenerator[bytes, None]:
    """Chunks of a blocking generator, the next one made in a worker thread while the last one is sent.

    To be closed (``aclosing``): then no thread works on ``chunks`` any more, and what it held is free.
    """
    ahead = asyncio.create_task(asyncio.to_thread(next, chunks, b""))
    try:
        while chunk := await asyncio.shield(ahead):
            ahead = asyncio.create_task(asyncio.to_thread(next, chunks, b""))
            yield chunk
    finally:
        await asyncio.wait({ahead})
        if not ahead.cancelled():
            ahead.exception()
        await asyncio.to_thread(chunks.close)
