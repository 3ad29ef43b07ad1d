"""Images of one name for several platforms: what an index ties together.

An index that was pulled or loaded is a document of each image that it led to, so images that have a document in common are the same
software for other platforms (a manifest names one config: two images never share one). A name points to one image, as in Docker: the one
that was asked for last. The others, its *siblings*, have no name then; they are found through the named one, are listed with it rather
than as dangling images, and go with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import msgspec

from tare.errors import TareError
from tare.images.image import ImageRecord
from tare.images.names import Names
from tare.oci.digest import Digest
from tare.oci.image import Descriptor, Index, Manifest, parse_manifest
from tare.store.content import ContentStore
from tare.store.metadata import Metadata

INDEX_DEPTH = 3


class Siblings:
    """Who belongs to whom among one engine's images."""

    def __init__(self, content: ContentStore, metadata: Metadata, names: Names) -> None:
        self._content = content
        self._metadata = metadata
        self._names = names

    def of(self, image_id: str) -> list[str]:
        """Ids of the other images that an index of this one leads to."""
        records = self._records()
        mine = set(records[image_id].documents) if image_id in records else set()
        return [other for other, record in records.items() if other != image_id and not mine.isdisjoint(record.documents)]

    def held(self) -> set[str]:
        """Ids of the images that have no name, but a sibling with one."""
        records = self._records()
        by_document: dict[str, list[str]] = {}
        for image_id, record in records.items():
            for document in record.documents:
                by_document.setdefault(document, []).append(image_id)
        shared = [group for group in by_document.values() if len(group) > 1]
        if not shared:
            return set()
        named = set(self._names.by_image())
        return {image_id for group in shared if not named.isdisjoint(group) for image_id in group} - named

    def orphans(self, image_id: str) -> list[str]:
        """Ids of the siblings that nothing names any more once this image is gone."""
        siblings = self.of(image_id)
        if not siblings:
            return []
        named = set(self._names.by_image()) - {image_id}
        return [other for other in siblings if other not in named and named.isdisjoint(self.of(other))]

    def index(self, record: ImageRecord) -> tuple[Digest, bytes, Index] | None:
        """The index through which the image came last: digest, bytes, document."""
        for text in record.documents:
            digest = Digest.parse(text)
            with suppress(TareError):
                raw = self._content.read(digest)
                document = parse_manifest(raw)
                if isinstance(document, Index):
                    return digest, raw, document
        return None

    def entries(self, index: Index, depth: int = 0) -> Iterator[tuple[Descriptor, bytes | None, Manifest | Index | None]]:
        """Every document below an index, those of nested ones before the nested one: its bytes and what they say, if it is here."""
        for entry in index.manifests:
            raw, document = None, None
            with suppress(TareError):
                raw = self._content.read(entry.digest)
                document = parse_manifest(raw, entry.media_type)
            if isinstance(document, Index):
                if depth + 1 >= INDEX_DEPTH:
                    document = None
                else:
                    yield from self.entries(document, depth + 1)
            yield entry, raw, document

    def _records(self) -> dict[str, ImageRecord]:
        return {image_id: msgspec.json.decode(document, type=ImageRecord) for image_id, _, document in self._metadata.images.all()}
