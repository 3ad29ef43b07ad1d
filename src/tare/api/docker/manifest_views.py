"""The manifests of an image (``manifests=1``, API 1.47): for each platform of its index, and each attestation, what of it is here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tare.images.publishing import manifest_of
from tare.oci import media_types
from tare.oci.digest import Digest
from tare.oci.image import ATTESTED, Descriptor, Index, Manifest, PlatformEntry

if TYPE_CHECKING:
    from tare.engine import Engine
    from tare.images.image import Image
    from tare.images.siblings import Family, Part


class ManifestViews:
    """Views over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._images = engine.images
        self._content = engine.images.content

    def of(self, image: Image) -> list[dict[str, Any]]:
        """The manifests that the image's name stands for."""
        family = self._images.siblings.family(self._images.record(image))
        if family is None:
            return [self._image(image, self._own(image))]
        return self._entries(family, family.index, {part.digest: part for part in family.parts})

    def descriptor(self, image: Image) -> dict[str, Any]:
        """What the image's name points to: its index, else its manifest; an image made here has only its config to name."""
        family = self._images.siblings.family(self._images.record(image))
        if family is None:
            return _descriptor(self._own(image))
        return _descriptor(Descriptor(family.index.media_type, family.digest, len(family.raw)))

    def _own(self, image: Image) -> Descriptor:
        manifest = manifest_of(self._content, self._images.record(image))
        digest = image.manifest_digest
        if manifest is None or digest is None:
            return Descriptor(media_types.OCI_CONFIG, Digest.parse(image.id), 0)
        return Descriptor(manifest.media_type, digest, self._content.size(digest))

    def _entries(self, family: Family, index: Index, parts: dict[Digest, Part]) -> list[dict[str, Any]]:
        found = []
        for entry in index.manifests:
            part = parts.get(entry.digest)
            if part is not None and isinstance(part.document, Index):
                found += self._entries(family, part.document, parts)
            elif part is not None and part.image_id is not None:
                found.append(self._image(self._images.get(part.image_id), entry))
            else:
                found.append(self._other(entry, part.document if part else None))
        return found

    def _image(self, image: Image, descriptor: Descriptor) -> dict[str, Any]:
        platform = image.platform()
        content = descriptor.size + sum(self._content.size(layer) for layer in self._images.blobs_of(image) if self._content.has(layer))
        return {
            **_summary(descriptor, "image", available=True),
            "Size": {"Content": content, "Total": content + image.size},
            "ImageData": {
                "Platform": _platform(PlatformEntry(platform.architecture, platform.os, platform.variant or None)),
                "Containers": [container for container, _ in self._images.users_of(image.id)],
                "Size": {"Unpacked": image.size},
            },
        }

    def _other(self, entry: Descriptor, document: Manifest | Index | None) -> dict[str, Any]:
        """An attestation, or an image that is not here."""
        about = (entry.annotations or {}).get(ATTESTED)
        size = 0
        if isinstance(document, Manifest):
            size = entry.size + sum(self._content.size(blob.digest) for blob in (document.config, *document.layers))
        platform = entry.platform or PlatformEntry()
        if about is None and platform.os in ("", "unknown"):
            return {**_summary(entry, "unknown", available=document is not None), "Size": {"Content": size, "Total": size}}
        kind: dict[str, Any] = {"AttestationData": {"For": about}} if about is not None else {}
        if about is None:
            kind = {"ImageData": {"Platform": _platform(platform), "Containers": [], "Size": {"Unpacked": 0}}}
        shown = _summary(entry, "image" if about is None else "attestation", available=document is not None)
        return {**shown, "Size": {"Content": size, "Total": size}, **kind}


def _summary(descriptor: Descriptor, kind: str, *, available: bool) -> dict[str, Any]:
    return {"ID": str(descriptor.digest), "Descriptor": _descriptor(descriptor), "Available": available, "Kind": kind}


def _descriptor(descriptor: Descriptor) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size}
    if descriptor.annotations:
        found["annotations"] = descriptor.annotations
    if descriptor.platform is not None:
        found["platform"] = _platform(descriptor.platform)
    return found


def _platform(platform: PlatformEntry) -> dict[str, str]:
    found = {"architecture": platform.architecture, "os": platform.os}
    return found | ({"variant": platform.variant} if platform.variant else {})
