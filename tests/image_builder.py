"""Makes images for tests, independently of the code under test: layers, configs, manifests, indexes, OCI layouts."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

OCI = "application/vnd.oci.image."
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

COMPRESSORS = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "none": lambda data: data,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
SUFFIX = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A tar with regular files; a name that ends with a slash is a directory."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.mtime = 1_700_000_000
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            else:
                info.size, info.mode = len(data), 0o755
                archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


@dataclass
class BuiltImage:
    """One image: ``manifest`` and the blobs that it needs, by digest."""

    manifest: bytes
    media_type: str
    image_id: str
    layers: list[str]
    diff_ids: list[str]
    blobs: dict[str, bytes] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return sha256(self.manifest)


def build_image(
    *layers: Mapping[str, bytes] | bytes,
    compression: str = "gzip",
    docker: bool = False,
    architecture: str = "amd64",
    variant: str = "",
    config: dict[str, Any] | None = None,
    created: str = "2024-05-06T07:08:09.123456789Z",
    **extra: Any,
) -> BuiltImage:
    """An image of the given layers (files, or a ready tar), in OCI's or in Docker's media types."""
    blobs: dict[str, bytes] = {}
    descriptors, diff_ids = [], []
    for layer in layers:
        tar = layer if isinstance(layer, bytes) else tar_of(layer)
        packed = COMPRESSORS[compression](tar)
        diff_ids.append(sha256(tar))
        blobs[sha256(packed)] = packed
        kind = DOCKER_LAYER if docker else f"{OCI}layer.v1.tar{SUFFIX.get(compression, '')}"
        descriptors.append({"mediaType": kind, "digest": sha256(packed), "size": len(packed)})
    document: dict[str, Any] = {
        "architecture": architecture,
        "os": "linux",
        "created": created,
        "config": config if config is not None else {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": created, "created_by": f"layer {number}"} for number in range(len(layers))],
        **extra,
    }
    if variant:
        document["variant"] = variant
    raw = json.dumps(document, indent=1).encode()
    blobs[sha256(raw)] = raw
    media_type = DOCKER_MANIFEST if docker else f"{OCI}manifest.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {"mediaType": DOCKER_CONFIG if docker else f"{OCI}config.v1+json", "digest": sha256(raw), "size": len(raw)},
        "layers": descriptors,
    }
    layer_digests = [descriptor["digest"] for descriptor in descriptors]
    return BuiltImage(json.dumps(manifest, indent=1).encode(), media_type, sha256(raw), layer_digests, diff_ids, blobs)


def build_index(images: Mapping[str, BuiltImage], docker: bool = False) -> tuple[bytes, str]:
    """An index over images by platform (``linux/arm64/v8``), and its media type."""
    entries = []
    for platform, image in images.items():
        names = ("os", "architecture", "variant")
        entries.append(
            {
                "mediaType": image.media_type,
                "digest": image.digest,
                "size": len(image.manifest),
                "platform": dict(zip(names, platform.split("/"), strict=False)),
            }
        )
    media_type = DOCKER_LIST if docker else f"{OCI}index.v1+json"
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode(), media_type


def write_layout(image: BuiltImage, directory: Path, name: str = "latest") -> Path:
    """The image as an OCI layout directory, which skopeo reads as ``oci:DIRECTORY:NAME``."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for digest, data in {**image.blobs, image.digest: image.manifest}.items():
        (blobs / digest.partition(":")[2]).write_bytes(data)
    descriptor = {
        "mediaType": image.media_type,
        "digest": image.digest,
        "size": len(image.manifest),
        "annotations": {"org.opencontainers.image.ref.name": name},
    }
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return directory


def busybox_image(**options: Any) -> BuiltImage:
    """A small image that runs: the host's static busybox with a few links."""
    busybox = Path("/bin/busybox").read_bytes()
    return build_image({"bin/": b"", "bin/busybox": busybox, "bin/sh": busybox, "etc/": b"", "tmp/": b""}, **options)
