"""What images an archive holds: read from Docker's ``manifest.json``, else from an OCI layout's ``index.json``.

When both are there, ``manifest.json`` says which images and names, and the layout may add manifests, the images of other platforms, and
what belongs to them. If a manifest's layers are compressed, manifest and blobs are worth keeping, because a push then gives the digest that
the image had elsewhere. Every document is capped, typed
and, where it has a digest for a name, verified; layers are verified when they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from tare.errors import Corrupt, InvalidArgument, NotFound, TareError, Unsupported
from tare.images.archive_layout import NAME, REF_NAME, Artifact, Found, Layout
from tare.images.archive_read import Archive, blob_name
from tare.oci.digest import Digest
from tare.oci.image import MANIFEST_LIMIT, Descriptor, ImageConfig, Manifest, parse_config
from tare.oci.platform import Platform, choose, host
from tare.oci.reference import Reference

_IMAGE_LIMIT = 4096


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
    indexes: tuple[bytes, ...] = ()
    """The indexes that lead to the image, outermost first."""
    artifacts: tuple[Artifact, ...] = ()

    @property
    def documents(self) -> list[Digest]:
        """The digests of all documents that are to be kept."""
        return [*map(Digest.of, self.indexes), *([Digest.of(self.raw_manifest)] if self.raw_manifest else []), self.id]


class _Entry(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str] | None = None
    repo_tags: list[str] | None = None


def contents(archive: Archive, platform: Platform | None = None) -> list[list[Packaged]]:
    """The images of ``archive``: those of one index together, the one that has the names last.

    With ``platform`` of each index only the image that suits it best. Raises ``InvalidArgument`` or ``Corrupt`` for what is no archive of
    images, ``NotFound`` when there is none for ``platform``.
    """
    docker = "manifest.json" in archive
    if not docker and "index.json" not in archive:
        raise InvalidArgument("invalid archive: does not contain a manifest.json")
    layout = Layout(archive, lenient=docker) if "index.json" in archive else None
    found = _from_docker(archive, layout) if docker else []
    families = _families(archive, layout, found) if layout else [[image] for image in found]
    if platform is not None:
        families = [[_suiting(family, platform)] for family in families]
    for image in (image for family in families for image in family):
        if image.config.os and image.config.os.lower() != "linux":
            raise Unsupported(f"cannot load {image.config.os} image on linux")
    return families


def _suiting(family: list[Packaged], platform: Platform) -> Packaged:
    position = choose(platform, [image.config.platform() for image in family])
    if position is None:
        image = family[-1]
        raise NotFound(f"image {image.id} in the archive is for {image.config.platform()}, not for {platform}")
    names = tuple(name for image in family for name in image.names)
    return replace(family[position], names=names)


def _from_docker(archive: Archive, layout: Layout | None) -> list[Packaged]:
    """What ``manifest.json`` lists; the layout beside it may know the manifests."""
    try:
        entries = msgspec.json.decode(archive.read("manifest.json", MANIFEST_LIMIT), type=list[_Entry])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"invalid archive: malformed manifest.json: {error}") from None
    if len(entries) > _IMAGE_LIMIT:
        raise InvalidArgument(f"invalid archive: more than {_IMAGE_LIMIT} images")
    known = {each.manifest.config.digest: each for each in reversed(layout.images)} if layout else {}
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
        image = Packaged(image_id, raw, config, layers, tuple(_tagged(name) for name in entry.repo_tags or ()))
        found.append(_with_manifest(archive, image, known[image_id], layout) if layout and image_id in known else image)
    return found


def _families(archive: Archive, layout: Layout, listed: list[Packaged]) -> list[list[Packaged]]:
    """All images, those of one index together. If there are ``listed`` ones, the others come only as their siblings."""
    by_id = {image.id: image for image in listed}
    groups: dict[Digest, list[Packaged]] = {}
    names: dict[Digest, tuple[Reference, ...]] = {}
    for found in layout.images[:_IMAGE_LIMIT]:
        group, config = found.entries[0].digest, found.manifest.config.digest
        if config in by_id:
            image = by_id.pop(config)
        elif listed:
            try:
                image = _from_layout(archive, found, layout)
            except TareError:
                continue
        else:
            image = _from_layout(archive, found, layout)
        groups.setdefault(group, []).append(image)
        own = image.names if listed else tuple(name for entry in found.entries for name in _names(entry))
        names[group] = tuple(dict.fromkeys((*names.get(group, ()), *own)))
    if not groups and not listed:
        raise NotFound("the archive holds no image for linux")
    families = []
    for group, images in groups.items():
        lead = next((image for image in images if image in listed), None)
        if listed and lead is None:
            continue
        lead = lead or images[choose(host(), [image.config.platform() for image in images]) or 0]
        others = [replace(image, names=()) for image in images if image is not lead]
        families.append([*others, replace(lead, names=names[group])])
    return _merged([*families, *([image] for image in by_id.values())])


def _merged(families: list[list[Packaged]]) -> list[list[Packaged]]:
    """An image that stands alone several times, under several names, counts once."""
    alone: dict[Digest, int] = {}
    found: list[list[Packaged]] = []
    for family in families:
        image = family[-1]
        if len(family) == 1 and image.id in alone:
            known = found[alone[image.id]][0]
            found[alone[image.id]] = [replace(known, names=tuple(dict.fromkeys((*known.names, *image.names))))]
            continue
        if len(family) == 1:
            alone[image.id] = len(found)
        found.append(family)
    return found


def _from_layout(archive: Archive, found: Found, layout: Layout) -> Packaged:
    raw = archive.blob(found.manifest.config.digest)
    config = parse_config(raw)
    if len(found.manifest.layers) != len(config.diff_ids):
        raise Corrupt(f"invalid manifest, layers length mismatch: expected {len(config.diff_ids)}, got {len(found.manifest.layers)}")
    layers = tuple(blob_name(layer.digest) for layer in found.manifest.layers)
    for layer in layers:
        archive.size(layer)
    return _with_manifest(archive, Packaged(found.manifest.config.digest, raw, config, layers, ()), found, layout)


def _with_manifest(archive: Archive, image: Packaged, found: Found, layout: Layout) -> Packaged:
    """The image with what the layout knows of it, as far as that is to be kept."""
    blobs = _kept(archive, found.manifest, image.config)
    above = [*map(Digest.of, found.above)]
    artifacts = layout.about([Digest.of(found.raw), *above]) if blobs else ()
    return replace(image, raw_manifest=found.raw if blobs else b"", blobs=blobs, indexes=found.above, artifacts=tuple(artifacts))


def _kept(archive: Archive, manifest: Manifest, config: ImageConfig) -> tuple[Descriptor, ...]:
    """The blobs to keep with a manifest: all or none, and none when they are just the uncompressed tars."""
    if len(manifest.layers) != len(config.diff_ids):
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
    name = annotations.get(NAME) or annotations.get(REF_NAME) or ""
    if not name or (NAME not in annotations and not set(name) & set(":/")):
        return ()
    try:
        return (_tagged(name),)
    except InvalidArgument:
        return ()
