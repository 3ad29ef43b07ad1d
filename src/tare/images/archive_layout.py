"""What an OCI image layout in an archive leads to: images with the indexes above them, and artifacts with what they are about.

The documents of a layout form a graph that somebody else drew: every one is read once, however often it is named, to a fixed depth, and all
of them together may not exceed a fixed size. A document is verified against its digest before it is believed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tare.distribution.documents import INDEX_DEPTH
from tare.errors import InvalidArgument, TareError, Unsupported
from tare.images.archive_read import Archive, blob_name
from tare.oci.digest import Digest
from tare.oci.image import ATTESTED, MANIFEST_LIMIT, Descriptor, Index, Manifest, check_supported, parse_manifest

NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
NAMES = {NAME, REF_NAME}
_BYTES_LIMIT = 64 << 20
_COUNT_LIMIT = 16384


@dataclass(frozen=True)
class Found:
    """A manifest of an image."""

    entries: tuple[Descriptor, ...]
    """What ``index.json`` says, once per name: of the manifest, or of the index through which it was found."""
    raw: bytes
    manifest: Manifest
    above: tuple[bytes, ...]
    """The indexes on the way, outermost first."""


@dataclass(frozen=True)
class Artifact:
    """A document that is about another one."""

    digest: Digest
    about: Digest
    raw: bytes
    blobs: tuple[Descriptor, ...]


class Layout:
    """The layout of one archive. ``lenient``: what cannot be read is left out, for the layout is only an extra."""

    def __init__(self, archive: Archive, *, lenient: bool) -> None:
        self._archive = archive
        self._lenient = lenient
        self._seen: set[Digest] = set()
        self._bytes = 0
        self.images: list[Found] = []
        self._artifacts: list[Artifact] = []
        self._refused: Unsupported | None = None
        top = parse_manifest(archive.read("index.json", MANIFEST_LIMIT))
        if not isinstance(top, Index):
            raise InvalidArgument("invalid archive: index.json is not an image index")
        entries: dict[Digest, tuple[Descriptor, ...]] = {}
        for entry in top.manifests:
            entries[entry.digest] = (*entries.get(entry.digest, ()), entry)
        for same in entries.values():
            self._walk(same[0], same, ())
        if not self.images and self._refused is not None and not lenient:
            raise self._refused

    def about(self, digests: Iterable[Digest]) -> list[Artifact]:
        """The artifacts about any of these documents, and those about them in turn."""
        found: dict[Digest, Artifact] = {}
        subjects = set(digests)
        while fresh := [each for each in self._artifacts if each.about in subjects and each.digest not in found]:
            found |= {each.digest: each for each in fresh}
            subjects |= {each.digest for each in fresh}
        return [*found.values()]

    def _walk(self, entry: Descriptor, top: tuple[Descriptor, ...], above: tuple[bytes, ...], about: Digest | None = None) -> None:
        if entry.digest in self._seen:
            return
        nested = entry not in top
        if nested and blob_name(entry.digest) not in self._archive:
            return  # not all parts of an index need be here
        try:
            raw, document = self._read(entry)
        except TareError:
            if self._lenient:
                return
            raise
        about = about or (document.subject.digest if document.subject else _attested(entry))
        if about is not None and (nested or isinstance(document, Index) or not any(NAMES & set(each.annotations or {}) for each in top)):
            self._add_artifact(entry.digest, about, raw, document, top, above)
        elif isinstance(document, Index):
            self._walk_index(document, raw, top, above)
        else:
            self._add_image(entry, raw, document, top, above)

    def _walk_index(self, index: Index, raw: bytes, top: tuple[Descriptor, ...], above: tuple[bytes, ...]) -> None:
        if len(above) + 1 >= INDEX_DEPTH:
            if self._lenient:
                return
            raise Unsupported("invalid archive: indexes are nested too deep")
        for entry in index.manifests:
            system = entry.platform.os.lower() if entry.platform else ""
            if system in ("", "linux", "unknown"):
                self._walk(entry, top, (*above, raw))

    def _add_image(self, entry: Descriptor, raw: bytes, manifest: Manifest, top: tuple[Descriptor, ...], above: tuple[bytes, ...]) -> None:
        try:
            check_supported(manifest)
        except Unsupported as error:
            self._refused = error
            for index in above[-1:]:  # an artifact that the index lists without saying what it is about: about all of it
                self._add_artifact(entry.digest, Digest.of(index), raw, manifest, top, above)
            return
        self.images.append(Found(top, raw, manifest, above))

    def _add_artifact(
        self, digest: Digest, about: Digest, raw: bytes, document: Manifest | Index, top: tuple[Descriptor, ...], above: tuple[bytes, ...]
    ) -> None:
        blobs: tuple[Descriptor, ...] = ()
        if isinstance(document, Manifest):
            blobs = (document.config, *document.layers)
        elif len(above) + 1 < INDEX_DEPTH:
            for entry in document.manifests:
                self._walk(entry, top, (*above, raw), digest)
        if all(blob_name(blob.digest) in self._archive for blob in blobs):
            self._artifacts.append(Artifact(digest, about, raw, blobs))

    def _read(self, entry: Descriptor) -> tuple[bytes, Manifest | Index]:
        raw = self._archive.blob(entry.digest, MANIFEST_LIMIT)
        self._seen.add(entry.digest)
        self._bytes += len(raw)
        if self._bytes > _BYTES_LIMIT or len(self._seen) > _COUNT_LIMIT:
            raise InvalidArgument("invalid archive: too many manifests")
        return raw, parse_manifest(raw, entry.media_type)


def _attested(entry: Descriptor) -> Digest | None:
    text = (entry.annotations or {}).get(ATTESTED)
    return Digest.parse(text) if text else None
