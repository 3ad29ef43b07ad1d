"""A layer from a stream that somebody sends us: ``docker import``, ``tare image bootstrap``.

    request body ──► [channel] ──► worker thread: decompress, hash, write the tar, index

The same bounded line as a pull's, without a registry: nobody tells the digests beforehand, they are found.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from tare.distribution.channel import Broken, Channel
from tare.distribution.decompress import decompress
from tare.errors import ResourceExhausted
from tare.store.layers.driver import Layer, LayerDriver

_CHANNEL_LIMIT = 8 << 20


async def import_layer(layers: LayerDriver, source: AsyncIterator[bytes]) -> Layer:
    """Store the tar (plain, gzip, zstd, bzip2 or xz) that ``source`` yields. Leaves nothing behind on failure."""
    channel = Channel(_CHANNEL_LIMIT)
    worker = asyncio.create_task(asyncio.to_thread(_store, layers, channel))
    worker.add_done_callback(lambda _: channel.break_())
    try:
        async for chunk in source:
            if chunk:
                await channel.put_async(bytes(chunk))
        channel.close()
        return await asyncio.shield(worker)
    except Broken:
        return await worker  # the worker gave up first: its error is the reason
    except BaseException:
        channel.break_()
        with suppress(Exception):
            await worker
        raise


def _store(layers: LayerDriver, channel: Channel) -> Layer:
    try:
        with layers.writer() as writer:
            for chunk in decompress(channel, "imported archive"):
                writer.write(chunk)
            return writer.commit()
    except OSError as error:
        raise ResourceExhausted(f"cannot store the imported layer: {error}") from error
