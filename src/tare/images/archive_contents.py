"""What images an archive holds: read from Docker's ``manifest.json``, else from an OCI layout's ``index.json``.

When both are there, ``manifest.json`` says which images and names, and the layout may add a manifest: if its layers are compressed,
manifest and blobs are worth keeping, because a push then gives the digest that the image had elsewhere. Every document is capped, typed
and, where it has a digest for a name, verified; layers are verified when they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from tare.errors import Corrupt, InvalidArgument, NotFound, TareError, Unsupported
from tare.images.archive_read import Archive, blob_name
from tare.oci.digest import Digest
from tare.oci.image import MANIFEST_LIMIT, Descriptor, ImageConfig, Index, Manifest, check_supported, parse_config, parse_manifest
from tare.oci.platform import Platform, choose, host
from tare.oci.reference import Reference

_IMAGE_LIMIT = 4096
_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"
_DEPTH = 3


@dataclass(frozen=True)
class Packaged:
    """One image in an archive."""

    id: Digest
    raw_config: bytes
    config: ImageConfig
    layers: tuple[str, ...]
    """Names of the layers' files in the archive, bottom first; compressed or not."""
    names: tuple[Reference, ...]
    raw_manifest: bytes = b""
    blobs: tuple[Descriptor, ...] = ()
    """The manifest's layers when manifest and blobs are to be kept, else empty."""


class _Entry(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str] | None = None
    repo_tags: list[str] | None = None


def contents(archive: Archive, platform: Platform | None = None) -> list[Packaged]:
    """The images of ``archive``. Raises ``InvalidArgument`` or ``Corrupt`` for what is no archive of images."""
    if "manifest.json" not in archive and "index.json" not in archive:
        raise InvalidArgument("invalid archive: does not contain a manifest.json")
    wanted = platform or host()
    index = _index(archive) if "index.json" in archive else None
    if "manifest.json" in archive:
        found = _from_docker(archive, _manifests(archive, index) if index else {})
    else:
        assert index is not None
        found = _from_layout(archive, index, wanted)
    for image in found:
        if image.config.os and image.config.os.lower() != "linux":
            raise Unsupported(f"cannot load {image.config.os} image on linux")
        if platform is not None and not platform.runs(image.config.platform()):
            raise NotFound(f"image {image.id} in the archive is for {image.config.platform()}, not for {platform}")
    return found


def _from_docker(archive: Archive, manifests: dict[Digest, bytes]) -> list[Packaged]:
    try:
        entries = msgspec.json.decode(archive.read("manifest.json", MANIFEST_LIMIT), type=list[_Entry])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"invalid archive: malformed manifest.json: {error}") from None
    if len(entries) > _IMAGE_LIMIT:
        raise InvalidArgument(f"invalid archive: more than {_IMAGE_LIMIT} images")
    found = []
    for entry in entries:
        raw = archive.read(entry.config)
        image_id = Digest.of(raw)
        if entry.config.startswith("blobs/sha256/") and entry.config != blob_name(image_id):
            raise Corrupt(f"invalid archive: {entry.config} does not match its digest")
        config, layers = parse_config(raw), tuple(entry.layers or ())
        if len(layers) != len(config.diff_ids):
            raise Corrupt(f"invalid manifest, layers length mismatch: expected {len(config.diff_ids)}, got {len(layers)}")
        for layer in layers:
            archive.size(layer)
        names = tuple(_tagged(name) for name in entry.repo_tags or ())
        kept = _kept(archive, manifests.get(image_id, b""), config)
        found.append(Packaged(image_id, raw, config, layers, names, manifests[image_id] if kept else b"", kept))
    return found


def _from_layout(archive: Archive, index: Index, wanted: Platform) -> list[Packaged]:
    found: dict[Digest, Packaged] = {}
    for entry in index.manifests[:_IMAGE_LIMIT]:
        raw, manifest = _resolve(archive, entry, wanted)
        check_supported(manifest)
        raw_config = archive.blob(manifest.config.digest)
        config = parse_config(raw_config)
        if len(manifest.layers) != len(config.diff_ids):
            raise Corrupt(f"invalid manifest, layers length mismatch: expected {len(config.diff_ids)}, got {len(manifest.layers)}")
        layers = tuple(blob_name(layer.digest) for layer in manifest.layers)
        for layer in layers:
            archive.size(layer)
        kept = _kept(archive, raw, config)
        image_id = manifest.config.digest
        names = found[image_id].names if image_id in found else ()
        names = tuple(dict.fromkeys((*names, *_names(entry))))
        found[image_id] = Packaged(image_id, raw_config, config, layers, names, raw if kept else b"", kept)
    return list(found.values())


def _index(archive: Archive) -> Index:
    index = parse_manifest(archive.read("index.json", MANIFEST_LIMIT))
    if not isinstance(index, Index):
        raise InvalidArgument("invalid archive: index.json is not an image index")
    return index


def _resolve(archive: Archive, entry: Descriptor, wanted: Platform) -> tuple[bytes, Manifest]:
    """The manifest that an entry of the index leads to."""
    for _ in range(_DEPTH):
        raw = archive.blob(entry.digest, MANIFEST_LIMIT)
        document = parse_manifest(raw, entry.media_type)
        if isinstance(document, Manifest):
            return raw, document
        position = choose(wanted, (item.platform.platform() if item.platform else None for item in document.manifests))
        if position is None:
            raise NotFound(f"no image for {wanted} in the archive's index {entry.digest}")
        entry = document.manifests[position]
    raise Unsupported("invalid archive: indexes are nested too deep")


def _manifests(archive: Archive, index: Index) -> dict[Digest, bytes]:
    """Manifests of the layout beside a ``manifest.json``, by the config that they name. What cannot be read is left out: it is an extra."""
    found: dict[Digest, bytes] = {}
    for raw, manifest in _readable(archive, index, 0):
        found.setdefault(manifest.config.digest, raw)
    return found


def _readable(archive: Archive, index: Index, depth: int) -> Iterator[tuple[bytes, Manifest]]:
    for entry in index.manifests[:_IMAGE_LIMIT]:
        if blob_name(entry.digest) not in archive:
            continue
        try:
            raw = archive.blob(entry.digest, MANIFEST_LIMIT)
            document = parse_manifest(raw, entry.media_type)
        except TareError:
            continue
        if isinstance(document, Manifest):
            yield raw, document
        elif depth < _DEPTH - 1:
            yield from _readable(archive, document, depth + 1)


def _kept(archive: Archive, raw: bytes, config: ImageConfig) -> tuple[Descriptor, ...]:
    """The blobs to keep with a manifest: all or none, and none when they are just the uncompressed tars."""
    manifest = parse_manifest(raw) if raw else None
    if not isinstance(manifest, Manifest) or len(manifest.layers) != len(config.diff_ids):
        return ()
    if all(layer.digest == diff_id for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)):
        return ()
    if not all(blob_name(layer.digest) in archive for layer in manifest.layers):
        return ()
    return tuple(manifest.layers)


def _tagged(name: str) -> Reference:
    try:
        reference = Reference.parse(name)
    except InvalidArgument as error:
        raise InvalidArgument(f'invalid tag "{name}": {error}') from None
    if reference.tag is None or reference.digest:
        raise InvalidArgument(f'invalid tag "{name}"')
    return reference


def _names(entry: Descriptor) -> tuple[Reference, ...]:
    """The name that an index gives a manifest; a bare tag without a repository is none."""
    annotations = entry.annotations or {}
    name = annotations.get(_NAME) or annotations.get(_REF_NAME) or ""
    if not name or (_NAME not in annotations and not set(name) & set(":/")):
        return ()
    try:
        return (_tagged(name),)
    except InvalidArgument:
        return ()
