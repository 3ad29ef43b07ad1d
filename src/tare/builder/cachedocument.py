"""A cache that leaves the machine: which step's key stands for which layer, as a document beside those layers.

    registry, local   an OCI manifest; its config is a `CacheDocument`, its layers are the layers that the document's steps made
    inline            the same document, in the image's own config (field ``tare.cache.v1``); layers are counted in its ``rootfs``

The keys are those of ``cache``: digests over everything that can change a step's result, the same on every machine. A layer that is taken
in is verified like any pulled layer; that a key really stands for it is the word of whoever wrote the document.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from tare.builder.cache import CacheRecord
from tare.errors import Corrupt

MEDIA_TYPE = "application/vnd.tare.cacheconfig.v1+json"
_LIMIT = 100_000
"""Steps and layers of one document."""


class Step(msgspec.Struct, omit_defaults=True):
    """One step. ``layer`` is an index into the layers, -1 for a step that made none."""

    keys: list[str]
    created: str
    layer: int = -1
    description: str = ""
    size: int = 0
    note: str = ""


class CacheMount(msgspec.Struct):
    """The content of a cache mount, as a layer."""

    key: str
    layer: int
    description: str = ""


class CacheDocument(msgspec.Struct, omit_defaults=True):
    """One exported cache. ``layers`` are diff_ids; inline they are the image's own."""

    steps: list[Step] = []
    layers: list[str] = []
    mounts: list[CacheMount] = []

    def by_key(self) -> dict[str, Step]:
        return {key: step for step in self.steps for key in step.keys}


Used = tuple[tuple[str, ...], CacheRecord]
"""A step of a build as it was found or made: its keys and its record."""


def document(used: Iterable[Used], layers: Sequence[str] = ()) -> CacheDocument:
    """The document of these steps. With ``layers`` only steps whose layer is among them, or that have none, and no other layer."""
    found, known = CacheDocument(layers=list(layers)), {diff_id: number for number, diff_id in enumerate(layers)}
    seen: set[tuple[str, ...]] = set()
    for keys, record in used:
        if keys in seen or (layers and record.diff_id and record.diff_id not in known):
            continue
        seen.add(keys)
        if record.diff_id and record.diff_id not in known:
            known[record.diff_id] = len(found.layers)
            found.layers.append(record.diff_id)
        number = known[record.diff_id] if record.diff_id else -1
        found.steps.append(Step(list(keys), record.created, number, record.description, record.size, record.note))
    return found


def parse(raw: bytes) -> CacheDocument:
    """A document from elsewhere. ``Corrupt`` when it is none."""
    try:
        found = msgspec.json.decode(raw, type=CacheDocument)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"cache document: {error}") from None
    return checked(found, len(found.layers))


def checked(found: CacheDocument, layers: int) -> CacheDocument:
    """The document, if all that it says of its ``layers`` can be."""
    numbers = [step.layer for step in found.steps] + [mount.layer for mount in found.mounts]
    if len(numbers) > _LIMIT or layers > _LIMIT or not all(-1 <= number < layers for number in numbers):
        raise Corrupt("cache document: it names layers that it does not have")
    return found
