"""``save``: images as one tar that is at once a docker-archive and an OCI image layout, as Docker writes it since release 25.

    blobs/sha256/HEX   configs, OCI manifests, layers (uncompressed, so that a layer's name is its diff_id)
    index.json         OCI: the manifests, with their names as annotations
    manifest.json      Docker: config, names and layers of each image
    oci-layout

The answer is a stream: one chunk of one layer is in memory at a time. The same images give the same bytes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tare.images.garbage import Garbage
from tare.images.image import Image
from tare.images.intake import outflow
from tare.images.layertar import check, plain
from tare.images.names import Names
from tare.images.publishing import Blobs, write_manifest
from tare.oci import media_types
from tare.oci.digest import Digest
from tare.oci.image import Descriptor
from tare.oci.reference import Reference
from tare.store.content import ContentStore
from tare.store.layers.driver import LayerDriver
from tare.store.metadata import Metadata
from tare.store.tar.entry import Entry, Kind
from tare.store.tar.writer import END, header, padding

_ROOT = b"blobs/sha256/"


@dataclass
class Saved:
    """One image of an archive and the names that it has there."""

    image: Image
    references: list[Reference] = field(default_factory=list)


class Saver:
    """Writes archives of one engine's images."""

    def __init__(self, content: ContentStore, layers: LayerDriver, metadata: Metadata, names: Names, garbage: Garbage) -> None:
        self._content = content
        self._layers = layers
        self._metadata = metadata
        self._names = names
        self._garbage = garbage

    async def stream(self, images: Sequence[Saved]) -> AsyncGenerator[bytes, None]:
        """The archive in chunks. The first one comes only when everything that can be missing was looked for."""
        async with self._garbage.pins() as pins:
            await pins.add(Digest.parse(digest) for saved in images for digest in (saved.image.id, *saved.image.diff_ids))
            blobs = Blobs(self._content, self._metadata, self._names).by_layer
            diff_ids = list(dict.fromkeys(diff_id for saved in images for diff_id in saved.image.diff_ids))
            kept = {diff_id: blobs[diff_id].digest for diff_id in diff_ids if diff_id in blobs}
            await pins.add(kept.values())
            for diff_id in diff_ids:
                check(self._layers, diff_id, kept.get(diff_id))
            documents = self._documents(images)
            yield b"".join((_directory(b"blobs/"), _directory(_ROOT), *documents.blobs))
            for diff_id in diff_ids:
                layer = self._layers.get(diff_id)
                assert layer is not None
                yield header(_file(_ROOT + diff_id.hex.encode(), layer.tar_size))
                async with aclosing(outflow(plain(self._layers, self._content, diff_id, kept.get(diff_id)))) as chunks:
                    async for chunk in chunks:
                        yield chunk
                yield padding(layer.tar_size)
            yield b"".join(documents.top) + END

    def _documents(self, images: Sequence[Saved]) -> _Documents:
        """Everything but the layers, as finished tar entries."""
        blobs: dict[str, bytes] = {}
        index: list[dict[str, Any]] = []
        entries: list[dict[str, Any]] = []
        for saved in images:
            image = saved.image
            config = Digest.parse(image.id)
            raw = blobs[config.hex] = self._content.read(config)
            layers = [Descriptor(media_types.OCI_LAYER, diff_id, self._tar_size(diff_id)) for diff_id in image.diff_ids]
            manifest = write_manifest(media_types.OCI_MANIFEST, config, len(raw), layers)
            digest = Digest.of(manifest)
            blobs[digest.hex] = manifest
            descriptor: dict[str, Any] = {**_plain(Descriptor(media_types.OCI_MANIFEST, digest, len(manifest)))}
            for name in saved.references:
                names = {"io.containerd.image.name": name.canonical(), "org.opencontainers.image.ref.name": name.tag}
                index.append({**descriptor, "annotations": names})
            if not saved.references:
                index.append(descriptor)
            entries.append(
                {
                    "Config": f"blobs/sha256/{config.hex}",
                    "RepoTags": [name.familiar() for name in saved.references] or None,
                    "Layers": [f"blobs/sha256/{diff_id.hex}" for diff_id in image.diff_ids],
                    "LayerSources": {str(layer.digest): _plain(layer) for layer in layers},
                }
            )
        encode = msgspec.json.encode
        top = {
            b"index.json": encode({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": index}),
            b"manifest.json": encode(entries),
            b"oci-layout": encode({"imageLayoutVersion": "1.0.0"}),
        }
        return _Documents(
            [_whole(_ROOT + name.encode(), data) for name, data in blobs.items()],
            [_whole(name, data) for name, data in top.items()],
        )

    def _tar_size(self, diff_id: Digest) -> int:
        layer = self._layers.get(diff_id)
        return layer.tar_size if layer else 0


@dataclass(frozen=True)
class _Documents:
    blobs: list[bytes]
    top: list[bytes]


def _plain(descriptor: Descriptor) -> dict[str, str | int]:
    return {"mediaType": descriptor.media_type, "size": descriptor.size, "digest": str(descriptor.digest)}


def _file(name: bytes, size: int) -> Entry:
    return Entry(name, Kind.FILE, 0o644, size=size)


def _directory(name: bytes) -> bytes:
    return header(Entry(name, Kind.DIRECTORY, 0o755))


def _whole(name: bytes, data: bytes) -> bytes:
    return header(_file(name, len(data))) + data + padding(len(data))
