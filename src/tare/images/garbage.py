"""Deleting blobs and layers that nothing needs any more: mark and sweep, safely beside everything that brings new ones.

What is needed: whatever an image record names, whatever a root callback names (the layers of containers, a builder's cache), and whatever
is *pinned*. Pins are the leases of work in flight: a pull, load, push, commit or build pins each digest before it looks whether the
store has it, and unpins when its records are written.

Why this never takes what is in flight. A collection goes: candidates are listed; from here on every digest that gets pinned is also
remembered (``_touched``) until the collection ends; marks are taken; each candidate is judged and made invisible in one step under the
mutex that a pin takes. So for any object and any piece of work that pins it:
- pinned before the object is judged: it stays, even if the pin has ended by then (its record may be newer than our marks);
- pinned after: it is gone already, the look that follows the pin says so, and the work brings it again.
Work that learns a digest only at its end (import, commit) pins it from the layer writer's ``claim``, before the layer becomes visible.

The mutex is held for one rename or unlink at a time, never for a whole collection: nobody waits for the deletion of a big tree.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
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
        self._touched: set[str] | None = None
        """While a collection runs: all that was pinned at its beginning or since."""
        self._mutex = threading.Lock()
        self._collecting = asyncio.Lock()
        self.in_use: Callable[[], Iterable[str]] = tuple
        """The diff_ids that containers need, running or not."""
        self.roots: list[Callable[[], Iterable[str]]] = []
        """Further callbacks that name digests to keep; called on the event loop."""

    @asynccontextmanager
    async def pins(self) -> AsyncIterator[Pins]:
        """Pins that hold until the context ends."""
        pins = Pins(self)
        try:
            yield pins
        finally:
            self._unpin(pins)

    def _pin(self, pins: Pins, digests: list[str]) -> None:
        with self._mutex:
            self._pinned.update(digests)
            pins.held += digests
            if self._touched is not None:
                self._touched.update(digests)

    def _unpin(self, pins: Pins) -> None:
        with self._mutex:
            self._pinned.subtract(pins.held)
            self._pinned += Counter()  # drops the zeros
            pins.held = []

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Nothing is collected while the context lasts."""
        async with self._collecting:
            yield

    async def collect(self, blobs: Iterable[str], layers: Iterable[str]) -> Freed:
        """Delete those of ``blobs`` and ``layers`` (diff_ids) that nothing needs."""
        async with self._collecting:
            with self._mutex:
                self._touched = set(self._pinned)
            try:
                needed = self._needed()
                doomed_blobs = [Digest.parse(digest) for digest in dict.fromkeys(blobs) if digest not in needed]
                doomed_layers = [Digest.parse(digest) for digest in dict.fromkeys(layers) if digest not in needed]
                return await asyncio.to_thread(self._delete, doomed_blobs, doomed_layers)
            finally:
                with self._mutex:
                    self._touched = None

    async def collect_all(self, age: float = 0.0) -> Freed:
        """Walk both stores and delete all that nothing needs, and downloads that were given up long ago.

        With ``age`` only what is that many seconds old: what a broken-off pull has completed waits for its next try.
        """
        blobs, layers = await asyncio.to_thread(self._candidates, time.time() - age)
        return await self.collect(blobs, layers)

    def _candidates(self, before: float) -> tuple[list[str], list[str]]:
        self._content.expire(PARTIAL_AGE)
        blobs, layers = [], []
        for digest in self._content.walk():
            with suppress(FileNotFoundError):
                if self._content.path(digest).stat().st_mtime <= before:
                    blobs.append(str(digest))
        for diff_id in self._layers.walk():
            with suppress(FileNotFoundError):
                if self._layers.path(diff_id).stat().st_ctime <= before:
                    layers.append(str(diff_id))
        return blobs, layers

    def _needed(self) -> set[str]:
        needed = set(self.in_use())
        for root in self.roots:
            needed.update(root())
        for image_id, _, document in self._metadata.images.all():
            needed |= msgspec.json.decode(document, type=ImageRecord).needs(image_id)
        return needed

    def _delete(self, blobs: list[Digest], layers: list[Digest]) -> Freed:
        freed, gone = 0, set()
        for diff_id in layers:
            try:
                with self._mutex:
                    if self._is_touched(diff_id):
                        continue
                    doomed, size = self._layers.discard(diff_id)
            except Conflict:
                continue  # mounted for a container that is on its way out: a later collection gets it
            self._layers.delete(doomed)
            freed += size
            gone.add(diff_id)
        for digest in blobs:
            with self._mutex:
                if not self._is_touched(digest) and digest not in self._content.active():
                    freed += self._content.delete(digest)
        return Freed(frozenset(gone), freed)

    def _is_touched(self, digest: Digest) -> bool:
        return self._touched is not None and digest in self._touched


class Pins:
    """Digests that one piece of work relies on."""

    def __init__(self, garbage: Garbage) -> None:
        self._garbage = garbage
        self.held: list[str] = []

    def hold(self, *digests: Digest) -> None:
        """Protect these blobs and layers from now on. From any thread."""
        self._garbage._pin(self, [str(digest) for digest in digests])

    async def add(self, digests: Iterable[Digest]) -> None:
        """``hold``, for those who have an iterable."""
        self.hold(*digests)

    async def drop(self) -> None:
        """Give the work up: delete what was pinned here unless somebody else needs it."""
        held = self.held
        self._garbage._unpin(self)
        await self._garbage.collect(held, held)
