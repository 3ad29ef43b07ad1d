"""``save``: images as one tar that is at once a docker-archive and an OCI image layout, as Docker writes it since release 25.

    blobs/sha256/HEX   indexes, manifests, configs, layers, what belongs to images
    index.json         OCI: indexes and manifests, with their names as annotations
    manifest.json      Docker: config, names and layers of each image
    oci-layout

An image that was pulled is saved as it came: its manifest, its compressed layers. Several images of one index, or one that is all of it,
are saved as that index; so a load elsewhere, and a push from there, give the digests that the registry had. Layers of an image that was
made here are plain tars (a layer's name then is its diff_id) under a manifest written for the archive.

The answer is a stream: one chunk of one layer is in memory at a time. The same images give the same bytes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tare.images.garbage import Garbage, Pins
from tare.images.image import Image, ImageRecord
from tare.images.intake import outflow
from tare.images.layertar import CHUNK, check, plain
from tare.images.publishing import Blobs, manifest_of, write_manifest
from tare.images.records import Records
from tare.images.siblings import Family, Part
from tare.oci import media_types
from tare.oci.digest import Digest
from tare.oci.image import ATTESTED, Descriptor, Index, Manifest
from tare.oci.reference import Reference
from tare.store.content import ContentStore
from tare.store.layers.driver import LayerDriver
from tare.store.metadata import Metadata
from tare.store.tar.entry import Entry, Kind
from tare.store.tar.writer import END, header, padding


@dataclass
class Saved:
    """One image of an archive and the names that it has there."""

    image: Image
    references: list[Reference] = field(default_factory=list)
    siblings: list[Image] = field(default_factory=list)
    """Images of other platforms that go with the name."""


class Saver:
    """Writes archives of one engine's images."""

    def __init__(self, content: ContentStore, layers: LayerDriver, metadata: Metadata, records: Records, garbage: Garbage) -> None:
        self._content = content
        self._layers = layers
        self._metadata = metadata
        self._records = records
        self._garbage = garbage

    async def stream(self, images: Sequence[Saved]) -> AsyncGenerator[bytes, None]:
        """The archive in chunks. The first one comes only when everything that can be missing was looked for."""
        async with self._garbage.pins() as pins:
            archive = self._collect(images, pins)
            yield b"".join((_directory(b"blobs/"), *(_directory(f"blobs/{each}/".encode()) for each in archive.algorithms())))
            for digest, data in archive.documents.items():
                yield _whole(_blob_name(digest), data)
            for body in archive.bodies.values():
                yield header(_file(_blob_name(body.digest), body.size))
                async with aclosing(outflow(self._chunks(body))) as chunks:
                    async for chunk in chunks:
                        yield chunk
                yield padding(body.size)
            yield b"".join(_whole(name, data) for name, data in archive.top()) + END

    def _collect(self, images: Sequence[Saved], pins: Pins) -> _Archive:
        """Everything that the archive will hold; layers only by name."""
        archive = _Archive(self._content, pins)
        blobs = Blobs(self._content, self._metadata, self._records.names).by_layer
        for saved in images:
            manifest = self._as_came(saved.image, pins)
            if manifest is None:
                for image, references in ((saved.image, saved.references), *((sibling, []) for sibling in saved.siblings)):
                    self._add_plain(archive, image, references, blobs, pins)
                continue
            record = self._records.need(saved.image.id)
            family = self._records.siblings.family(record) if saved.references else None
            others = []
            for sibling in saved.siblings:
                if family is None or all(part.image_id != sibling.id for part in family.parts):
                    continue  # of an older index
                if self._as_came(sibling, pins) is None:
                    self._add_plain(archive, sibling, [], blobs, pins)
                else:
                    others.append(sibling.id)
            config = Digest.parse(saved.image.id)
            archive.add_manifest(Digest.parse(record.manifest), manifest)
            if family is not None and (family.whole or others):
                archive.add_family(family, {saved.image.id, *others}, saved.references)
            else:
                archive.name(Descriptor(manifest.media_type, Digest.parse(record.manifest), 0), saved.references)
            archive.entry(config, saved.references, [layer.digest for layer in manifest.layers])
            self._add_artifacts(archive, record, pins)
            for other in others:
                self._add_artifacts(archive, self._records.need(other), pins)
        return archive

    def _as_came(self, image: Image, pins: Pins) -> Manifest | None:
        """The image's own manifest, if it and all its layers are here as they came. They are pinned then."""
        record = self._records.need(image.id)
        pins.hold(*(Digest.parse(digest) for digest in record.needs(image.id)))
        manifest = manifest_of(self._content, record)
        if manifest is None:
            return None
        pins.hold(*(layer.digest for layer in manifest.layers))
        return manifest if all(self._content.has(layer.digest) for layer in manifest.layers) else None

    def _add_plain(self, archive: _Archive, image: Image, names: Sequence[Reference], blobs: dict[str, Descriptor], pins: Pins) -> None:
        """An image whose layers go in as plain tars."""
        config = Digest.parse(image.id)
        layers = []
        for diff_id in image.diff_ids:
            blob = blobs[diff_id].digest if diff_id in blobs else None
            if blob is not None:
                pins.hold(blob)
            check(self._layers, diff_id, blob)
            layer = self._layers.get(diff_id)
            size = layer.tar_size if layer else 0
            layers.append(Descriptor(media_types.OCI_LAYER, diff_id, size))
            archive.bodies[diff_id] = _Body(diff_id, size, diff_id, blob)
        manifest = write_manifest(media_types.OCI_MANIFEST, config, len(archive.document(config)), layers)
        digest = Digest.of(manifest)
        archive.documents[digest] = manifest
        archive.name(Descriptor(media_types.OCI_MANIFEST, digest, len(manifest)), names)
        sources = {str(layer.digest): _plain(layer) for layer in layers}
        archive.entry(config, names, [layer.digest for layer in layers], {"LayerSources": sources})

    def _add_artifacts(self, archive: _Archive, record: ImageRecord, pins: Pins) -> None:
        """What belongs to an image, and is not in the archive through its index, as further entries of ``index.json``."""
        family = self._records.siblings.family(record)
        about = family.attestations(Digest.parse(record.manifest)) if family else set()
        for part in self._records.siblings.artifacts(record):
            if part.digest not in archive.documents:
                archive.add_artifact(part, record.manifest if part.digest in about else "")

    def _chunks(self, body: _Body) -> Generator[bytes, None, None]:
        if body.diff_id is not None:
            yield from plain(self._layers, self._content, body.diff_id, body.blob)
            return
        with self._content.open(body.digest) as blob:
            yield from iter(lambda: blob.read(CHUNK), b"")


@dataclass(frozen=True)
class _Body:
    """A large blob of the archive: of the content store, or the plain tar of the layer ``diff_id``."""

    digest: Digest
    size: int
    diff_id: Digest | None = None
    blob: Digest | None = None
    """A compressed form of that layer, if there is one."""


class _Archive:
    """What an archive holds."""

    def __init__(self, content: ContentStore, pins: Pins) -> None:
        self._content = content
        self._pins = pins
        self.documents: dict[Digest, bytes] = {}
        self.bodies: dict[Digest, _Body] = {}
        self._index: list[dict[str, Any]] = []
        self._entries: list[dict[str, Any]] = []

    def algorithms(self) -> list[str]:
        return sorted({digest.algorithm for digest in (*self.documents, *self.bodies)})

    def document(self, digest: Digest) -> bytes:
        """A document of the content store, from now on in the archive."""
        if digest not in self.documents:
            self._pins.hold(digest)
            self.documents[digest] = self._content.read(digest)
        return self.documents[digest]

    def add_manifest(self, digest: Digest, manifest: Manifest) -> None:
        """A manifest of the content store with all that it names."""
        self.document(digest)
        self.document(manifest.config.digest)
        self._add_bodies(layer.digest for layer in manifest.layers)

    def add_family(self, family: Family, images: set[str], references: Sequence[Reference]) -> None:
        """An index, its artifacts and those parts that are of these images."""
        self.document(family.digest)
        for part in family.parts:
            if isinstance(part.document, Index):
                self.document(part.digest)
            elif part.image_id is None or part.image_id in images:
                self.add_manifest(part.digest, part.document)
        self.name(Descriptor(family.index.media_type, family.digest, 0), references)

    def add_artifact(self, part: Part, about: str) -> None:
        """An artifact; ``about`` is the manifest that an index says it is about."""
        self.document(part.digest)
        kind = part.document.artifact_type
        if isinstance(part.document, Manifest):
            self._add_bodies(blob.digest for blob in (part.document.config, *part.document.layers))
            kind = kind or part.document.config.media_type
        descriptor: dict[str, Any] = {**_plain(Descriptor(part.document.media_type, part.digest, len(part.raw)))}
        if about:
            descriptor["annotations"] = {ATTESTED: about, "vnd.docker.reference.type": "attestation-manifest"}
            descriptor["platform"] = {"architecture": "unknown", "os": "unknown"}
        else:
            descriptor["artifactType"] = kind
        self._index.append(descriptor)

    def name(self, descriptor: Descriptor, references: Sequence[Reference]) -> None:
        """List a document of the archive in ``index.json``, once per name."""
        plain = _plain(descriptor) | {"size": len(self.documents[descriptor.digest])}
        for reference in references:
            names = {"io.containerd.image.name": reference.canonical(), "org.opencontainers.image.ref.name": reference.tag}
            self._index.append({**plain, "annotations": names})
        if not references:
            self._index.append(plain)

    def entry(self, config: Digest, references: Sequence[Reference], layers: Sequence[Digest], more: dict[str, Any] | None = None) -> None:
        """List an image in ``manifest.json``."""
        self._entries.append(
            {
                "Config": _blob_name(config).decode(),
                "RepoTags": [reference.familiar() for reference in references] or None,
                "Layers": [_blob_name(layer).decode() for layer in layers],
                **(more or {}),
            }
        )

    def top(self) -> list[tuple[bytes, bytes]]:
        """The files beside the blobs."""
        encode = msgspec.json.encode
        return [
            (b"index.json", encode({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": self._index})),
            (b"manifest.json", encode(self._entries)),
            (b"oci-layout", encode({"imageLayoutVersion": "1.0.0"})),
        ]

    def _add_bodies(self, digests: Iterable[Digest]) -> None:
        for digest in digests:
            if digest not in self.bodies and digest not in self.documents:
                self._pins.hold(digest)
                self.bodies[digest] = _Body(digest, self._content.size(digest))


def _plain(descriptor: Descriptor) -> dict[str, str | int]:
    return {"mediaType": descriptor.media_type, "size": descriptor.size, "digest": str(descriptor.digest)}


def _blob_name(digest: Digest) -> bytes:
    return f"blobs/{digest.algorithm}/{digest.hex}".encode()


def _file(name: bytes, size: int) -> Entry:
    return Entry(name, Kind.FILE, 0o644, size=size)


def _directory(name: bytes) -> bytes:
    return header(Entry(name, Kind.DIRECTORY, 0o755))


def _whole(name: bytes, data: bytes) -> bytes:
    return header(_file(name, len(data))) + data + padding(len(data))
