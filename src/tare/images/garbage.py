"""Deleting blobs and layers that nothing needs any more, safely beside pulls.

What is needed: whatever an image record names, the layers of every container (``in_use``), and whatever is *pinned*: a pull pins each
digest before it looks whether the store has it, and unpins when its image is recorded. ``pin`` waits for a collection that is under way,
so nothing can vanish between the look and the record.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from tare.errors import Conflict
from tare.images.image import ImageRecord
from tare.oci.digest import Digest
from tare.store.content import ContentStore
from tare.store.layers.driver import LayerDriver
from tare.store.metadata import Metadata

PARTIAL_AGE = 7 * 86400.0
"""Seconds after which a broken-off download that nobody took up again is dropped."""


@dataclass(frozen=True)
class Freed:
    """What a collection deleted."""

    layers: frozenset[Digest]
    bytes: int


class Garbage:
    """The collector over one engine's stores."""

    def __init__(self, content: ContentStore, layers: LayerDriver, metadata: Metadata) -> None:
        self._content = content
        self._layers = layers
        self._metadata = metadata
        self._pinned: Counter[str] = Counter()
        self._lock = asyncio.Lock()
        self.in_use: Callable[[], Iterable[str]] = tuple
        """The diff_ids that containers need, running or not."""

    @asynccontextmanager
    async def pins(self) -> AsyncIterator[Pins]:
        """Pins that hold until the context ends."""
        pins = Pins(self)
        try:
            yield pins
        finally:
            self._unpin(pins)

    async def _pin(self, digests: list[str]) -> None:
        async with self._lock:
            self._pinned.update(digests)

    def _unpin(self, pins: Pins) -> None:
        self._pinned.subtract(pins.held)
        self._pinned += Counter()  # drops the zeros
        pins.held = []

    async def collect(self, blobs: Iterable[str], layers: Iterable[str]) -> Freed:
        """Delete those of ``blobs`` and ``layers`` (diff_ids) that nothing needs."""
        async with self._lock:
            needed = self._needed()
            doomed_blobs = [Digest.parse(digest) for digest in dict.fromkeys(blobs) if digest not in needed]
            doomed_layers = [Digest.parse(digest) for digest in dict.fromkeys(layers) if digest not in needed]
            return await asyncio.to_thread(self._delete, doomed_blobs, doomed_layers)

    async def collect_all(self) -> Freed:
        """Walk both stores and delete all that nothing needs, and downloads that were given up long ago."""
        await asyncio.to_thread(self._content.expire, PARTIAL_AGE)
        return await self.collect(list(self._content.walk()), list(self._layers.walk()))

    def _needed(self) -> set[str]:
        needed = set(self._pinned)
        needed.update(self.in_use())
        for image_id, _, document in self._metadata.images.all():
            record = msgspec.json.decode(document, type=ImageRecord)
            needed.add(image_id)
            needed.update(record.documents, record.blobs, record.diff_ids)
        return needed

    def _delete(self, blobs: list[Digest], layers: list[Digest]) -> Freed:
        freed, gone = 0, set()
        for diff_id in layers:
            try:
                freed += self._layers.remove(diff_id)
                gone.add(diff_id)
            except Conflict:
                pass  # mounted for a container that is on its way out: a later collection gets it
        for digest in blobs:
            freed += self._content.delete(digest)
        return Freed(frozenset(gone), freed)


class Pins:
    """Digests that one piece of work relies on."""

    def __init__(self, garbage: Garbage) -> None:
        self._garbage = garbage
        self.held: list[str] = []

    async def add(self, digests: Iterable[Digest]) -> None:
        """Protect these blobs and layers from now on."""
        fresh = [str(digest) for digest in digests]
        await self._garbage._pin(fresh)
        self.held += fresh

    async def drop(self) -> None:
        """Give the work up: delete what was pinned here unless somebody else needs it."""
        held = self.held
        self._garbage._unpin(self)
        await self._garbage.collect(held, held)
