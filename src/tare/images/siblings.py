"""Images of one name for several platforms: what an index ties together.

An index that was pulled or loaded is a document of each image that it led to, so images that have a document in common are the same
software for other platforms (a manifest names one config: two images never share one). A name points to one image, as in Docker: the one
that was asked for last. The others, its *siblings*, have no tag then; they are found through the named one, are listed with it rather
than as dangling images, and go with it: they are *held* by it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import msgspec

from tare.distribution.documents import INDEX_DEPTH
from tare.errors import TareError
from tare.images.image import ImageRecord
from tare.images.names import Names
from tare.oci.digest import Digest
from tare.oci.image import ATTESTED, Index, Manifest, parse_manifest
from tare.store.content import ContentStore
from tare.store.metadata import Metadata


@dataclass(frozen=True)
class Part:
    """A document below an index, or of an artifact."""

    digest: Digest
    raw: bytes
    document: Manifest | Index
    image_id: str | None = None
    """The image that the manifest is of; ``None`` for an artifact or an inner index."""

    @property
    def subject(self) -> Digest | None:
        """What it refers to, if it does."""
        return self.document.subject.digest if self.document.subject else None


@dataclass(frozen=True)
class Family:
    """An index and those of its parts that are here."""

    digest: Digest
    raw: bytes
    index: Index
    parts: tuple[Part, ...]
    whole: bool
    """Whether nothing is missing."""

    def attestations(self, manifest: Digest) -> set[Digest]:
        """Manifests that the index says are about this one."""
        parts = [self.index, *(part.document for part in self.parts)]
        entries = [entry for document in parts if isinstance(document, Index) for entry in document.manifests]
        return {entry.digest for entry in entries if (entry.annotations or {}).get(ATTESTED) == manifest}


class _Documents(msgspec.Struct):
    """The part of an image's record that ties siblings together."""

    documents: list[str] = []
    artifacts: list[str] = []


class Siblings:
    """Who belongs to whom among one engine's images."""

    def __init__(self, content: ContentStore, metadata: Metadata, names: Names) -> None:
        self._content = content
        self._metadata = metadata
        self._names = names
        self._stamp: int | None = None
        self._kept: dict[str, _Documents] = {}

    def of(self, image_id: str) -> list[str]:
        """Ids of the other images that an index of this one leads to, those of the index that came last first."""
        return self.every().get(image_id, [])

    def every(self) -> dict[str, list[str]]:
        """``of`` for each image that has siblings."""
        documents = {image_id: record.documents for image_id, record in self._table().items()}
        groups: dict[str, list[str]] = {}
        for image_id, own in documents.items():
            for document in own:
                groups.setdefault(document, []).append(image_id)
        found = {}
        for image_id, own in documents.items():
            siblings = dict.fromkeys(other for document in own for other in groups[document] if other != image_id)
            if siblings:
                found[image_id] = [*siblings]
        return found

    def orphans(self, image_id: str) -> list[str]:
        """Ids of the siblings that nothing names any more once this image is gone."""
        siblings = self.every()
        if image_id not in siblings:
            return []
        named = set(self._names.by_image()) - {image_id}
        return [other for other in siblings[image_id] if other not in named and named.isdisjoint(siblings[other])]

    def family(self, record: ImageRecord) -> Family | None:
        """The index through which the image came last, with what is here of it; ``None`` for an image that came alone then."""
        for text in record.documents:
            digest = Digest.parse(text)
            with suppress(TareError):
                raw = self._content.read(digest)
                document = parse_manifest(raw)
                if isinstance(document, Manifest):
                    return None  # documents are listed as they were met, those of the last time first
                if isinstance(document, Index):
                    parts: dict[Digest, Part] = {}
                    whole = self._gather(document, self._members(text), parts, 1)
                    return Family(digest, raw, document, tuple(parts.values()), whole)
        return None

    def artifacts(self, record: ImageRecord) -> list[Part]:
        """The artifacts that are kept with the image and that are whole."""
        found = []
        for text in record.artifacts:
            with suppress(TareError):
                raw = self._content.read(Digest.parse(text))
                part = Part(Digest.parse(text), raw, parse_manifest(raw))
                if self._is_whole(part.document):
                    found.append(part)
        return found

    def _table(self) -> dict[str, _Documents]:
        """What all records say, kept until something changes: a listing asks for each image."""
        stamp = self._metadata.stamp
        if stamp is None or stamp != self._stamp:
            self._kept = {image_id: msgspec.json.decode(raw, type=_Documents) for image_id, _, raw in self._metadata.images.all()}
            self._stamp = stamp
        return self._kept

    def _members(self, index: str) -> set[str]:
        """All that came with an index. It names more than that, perhaps what is here for other reasons and is none of its business."""
        found: set[str] = set()
        for record in self._table().values():
            if index in record.documents:
                found.update(record.documents, record.artifacts)
        return found

    def _gather(self, index: Index, members: set[str], parts: dict[Digest, Part], depth: int) -> bool:
        """Collect what is here of an index, the parts of an inner index before itself; is that all of it?"""
        whole = True
        for entry in index.manifests:
            if str(entry.digest) not in members:
                whole = False
                continue
            try:
                raw = self._content.read(entry.digest)
                document = parse_manifest(raw, entry.media_type)
            except TareError:
                whole = False
                continue
            image_id = None
            if isinstance(document, Index):
                whole = depth < INDEX_DEPTH and self._gather(document, members, parts, depth + 1) and whole
            else:
                known = self._metadata.images.get(str(document.config.digest)) is not None
                image_id = str(document.config.digest) if known else None
                complete = self._is_whole(document)
                whole = whole and complete
                if not complete and not known:
                    continue
            parts.setdefault(entry.digest, Part(entry.digest, raw, document, image_id))
        return whole

    def _is_whole(self, document: Manifest | Index) -> bool:
        if isinstance(document, Index):
            return all(self._content.has(entry.digest) for entry in document.manifests)
        return all(self._content.has(blob.digest) for blob in (document.config, *document.layers))
