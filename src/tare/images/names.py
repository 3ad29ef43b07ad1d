"""The names of images: from reference to image id and back, over the ``tags`` table.

A row's key is a full reference, either with a tag or with a digest (``docker.io/library/busybox@sha256:...``, which records what a registry
called it); its owner is the image id. All of it is a few microseconds of SQLite, so it runs on the event loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from tare.images.image import TagRecord
from tare.oci.reference import Reference
from tare.store.metadata import Metadata


class Names:
    """References of images."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._tags = metadata.tags

    def find(self, reference: Reference) -> str | None:
        """The id of the image that a reference names. With a digest, a tag beside it does not count (as in Docker)."""
        if reference.digest:
            reference = reference.with_digest(reference.digest)
        row = self._metadata.row("SELECT owner FROM tags WHERE id = ?", (reference.with_default_tag().canonical(),))
        return None if row is None else str(row[0])

    def of(self, image_id: str) -> list[Reference]:
        """Every reference of an image, sorted."""
        return [Reference.parse(key) for key, _ in self._tags.owned(image_id)]

    def by_image(self) -> dict[str, list[Reference]]:
        """All references of all images."""
        found: dict[str, list[Reference]] = {}
        for key, owner in self._metadata.rows("SELECT id, owner FROM tags ORDER BY id", ()):
            found.setdefault(str(owner), []).append(Reference.parse(str(key)))
        return found

    def tagged(self, image_id: str) -> float:
        """When the image last got a name; 0 for never."""
        times = [msgspec.json.decode(document, type=TagRecord).tagged for _, document in self._tags.owned(image_id)]
        return max(times, default=0.0)

    def set(self, reference: Reference, image_id: str) -> None:
        """Let ``reference`` (with tag or digest) name the image; it is taken from another image if need be."""
        document = msgspec.json.encode(TagRecord(time.time()))
        self._tags.put(reference.canonical(), None, document, image_id)

    def remove(self, references: Iterable[Reference]) -> None:
        for reference in references:
            self._tags.delete(reference.canonical())


def tags_of(references: Iterable[Reference]) -> tuple[str, ...]:
    """The familiar names of those references that have a tag."""
    return tuple(reference.familiar() for reference in references if reference.tag and not reference.digest)


def digests_of(references: Iterable[Reference]) -> tuple[str, ...]:
    """The familiar names of those references that have a digest."""
    return tuple(reference.familiar() for reference in references if reference.digest)
