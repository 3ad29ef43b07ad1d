"""Mark and sweep over blobs and layers: delete what no image, container or pull in progress needs.

The marks are taken by a callback *after* the candidates were listed, so what is published while a sweep runs is never a candidate. What a
pull has found or stored but no image names yet is held by a ``Lease``. The rule for its holder is: add to the lease first, look afterwards
(``has``); the lock of the leases is held while the sweep decides on and deletes one object, so either the lease comes first and the object
stays, or the deletion does and ``has`` says so.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tare.errors import Conflict
from tare.oci.digest import Digest
from tare.store.content import ContentStore
from tare.store.layers.driver import LayerDriver

PARTIAL_AGE = 7 * 24 * 3600.0
"""Seconds after which an interrupted download that nobody went on with is deleted."""


@dataclass(frozen=True)
class Roots:
    """What must stay: blobs by digest and layers by diff_id."""

    blobs: frozenset[Digest]
    layers: frozenset[Digest]


@dataclass(frozen=True)
class Swept:
    """What a sweep deleted."""

    blobs: tuple[Digest, ...]
    layers: tuple[Digest, ...]
    freed: int
    """Bytes."""


class Lease:
    """Objects (blobs and layers alike, by digest) that one operation needs until it has recorded them."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._digests: list[Digest] = []

    def add(self, digest: Digest) -> None:
        """Hold an object, present or not yet."""
        self._leases._take(digest)
        self._digests.append(digest)

    def _end(self) -> None:
        for digest in self._digests:
            self._leases._drop(digest)
        self._digests.clear()


class Leases:
    """All leases of one engine. In memory only: after a restart nothing is in progress."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._held: Counter[Digest] = Counter()

    @contextmanager
    def hold(self) -> Iterator[Lease]:
        """A lease for the length of the context: write the records that name the objects before it ends."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            lease._end()

    def holds(self, digest: Digest) -> bool:
        return digest in self._held

    def _take(self, digest: Digest) -> None:
        with self.lock:
            self._held[digest] += 1

    def _drop(self, digest: Digest) -> None:
        with self.lock:
            self._held[digest] -= 1
            if not self._held[digest]:
                del self._held[digest]


def sweep(
    content: ContentStore,
    layers: LayerDriver,
    roots: Callable[[], Roots],
    leases: Leases,
    partial_age: float = PARTIAL_AGE,
) -> Swept:
    """Delete every blob and layer that ``roots`` does not name and that is neither leased nor in use. For a worker thread."""
    blobs = [digest for digest in content.walk() if not leases.holds(digest)]
    stored = [diff_id for diff_id in layers.walk() if not leases.holds(diff_id)]
    marked = roots()
    gone_blobs: list[Digest] = []
    gone_layers: list[Digest] = []
    freed = 0
    for digest in blobs:
        if digest in marked.blobs:
            continue
        with leases.lock:
            if leases.holds(digest) or digest in content.active():
                continue
            freed += content.delete(digest)
        gone_blobs.append(digest)
    for diff_id in stored:
        if diff_id in marked.layers:
            continue
        try:
            with leases.lock:
                if leases.holds(diff_id):
                    continue
                doomed, size = layers.discard(diff_id)
        except Conflict:
            continue
        layers.delete(doomed)
        freed += size
        gone_layers.append(diff_id)
    freed += content.expire(partial_age)
    return Swept(tuple(gone_blobs), tuple(gone_layers), freed)
