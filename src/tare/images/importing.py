"""A layer from a stream that somebody sends us: ``docker import``, ``tare image bootstrap``.

    request body ──► [channel] ──► worker thread: decompress, hash, write the tar, index

The same bounded line as a pull's, without a registry: nobody tells the digests beforehand, they are found.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from tare.distribution.channel import Channel
from tare.distribution.decompress import decompress
from tare.errors import ResourceExhausted
from tare.images.garbage import Pins
from tare.images.intake import intake
from tare.store.layers.driver import Layer, LayerDriver


async def import_layer(layers: LayerDriver, source: AsyncIterator[bytes], pins: Pins) -> Layer:
    """Store the tar (plain, gzip, zstd, bzip2 or xz) that ``source`` yields, pinned. Leaves nothing behind on failure."""
    try:
        return await intake(source, lambda channel: _store(layers, channel, pins))
    except BaseException:
        await pins.drop()
        raise


def _store(layers: LayerDriver, channel: Channel, pins: Pins) -> Layer:
    try:
        with layers.writer(pins.hold) as writer:
            for chunk in decompress(channel, "imported archive"):
                writer.write(chunk)
            return writer.commit()
    except OSError as error:
        raise ResourceExhausted(f"cannot store the imported layer: {error}") from error
