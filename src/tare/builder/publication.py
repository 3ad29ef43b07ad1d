"""The result of a build as documents that can be sent away: configs, manifests, attestations and, where there are several, an index.

    one platform, nothing else        manifest
    several platforms, attestations   index ──► a manifest per platform, and per platform an attestation manifest that refers to it

An attestation manifest is as BuildKit makes it: platform ``unknown/unknown``, ``vnd.docker.reference.type``, each layer an in-toto
statement. Layers are the blobs that are here already (a pulled base keeps the blobs that it came with), or are packed; the same layers and
the same options give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from tare.distribution.compress import Compression
from tare.errors import InvalidArgument
from tare.images.image import Packed
from tare.oci import media_types
from tare.oci.digest import Digest
from tare.oci.image import Descriptor, ImageConfig

if TYPE_CHECKING:
    from tare.images.garbage import Pins
    from tare.images.publishing import Blobs, Publisher

IN_TOTO = "application/vnd.in-toto+json"
_PREDICATE = "in-toto.io/predicate-type"
_REFERENCE_DIGEST, _REFERENCE_TYPE = "vnd.docker.reference.digest", "vnd.docker.reference.type"
_TYPE = re.compile(r"(manifest|index|manifest-descriptor|index-descriptor)(?:\[([^\]]+)\])?")


@dataclass(frozen=True)
class Statement:
    """One attestation of an image; the subject is filled in when its manifest is known."""

    predicate_type: str
    predicate: Any


@dataclass(frozen=True)
class Result:
    """What a build made for one platform."""

    platform: str
    """As it was asked for; "" when it was not."""
    config: ImageConfig
    raw: bytes
    """The config's bytes; their digest is the image's id."""
    statements: tuple[Statement, ...] = ()

    @property
    def id(self) -> Digest:
        return Digest.of(self.raw)


@dataclass(frozen=True)
class Annotations:
    """Annotations by where they go and, for some, the platform that they are for."""

    entries: tuple[tuple[str, str, str, str], ...] = ()

    @classmethod
    def parse(cls, texts: Sequence[str], attributes: Mapping[str, str] | None = None) -> Annotations:
        """``[TYPE[[PLATFORM]],…:]KEY=VALUE`` of ``--annotation``, and an output's ``annotation[-TYPE][[PLATFORM]].KEY``."""
        entries = []
        for text in texts:
            types, colon, rest = text.partition(":")
            kinds = [_TYPE.fullmatch(one) for one in types.split(",")] if colon and "=" not in types else [None]
            found = [(kind[1], kind[2] or "") for kind in kinds if kind is not None]
            key, equals, value = (rest if len(found) == len(kinds) else text).partition("=")
            if not key or not equals:
                raise InvalidArgument(f"invalid annotation {text!r}: [TYPE:]KEY=VALUE is expected")
            for where, platform in found if len(found) == len(kinds) else [("manifest", "")]:
                entries.append((where, platform, key, value))
        for name, value in (attributes or {}).items():
            match = re.fullmatch(r"annotation(?:-(manifest|index|manifest-descriptor|index-descriptor))?(?:\[([^\]]+)\])?\.(.+)", name)
            if match is not None:
                entries.append((match[1] or "manifest", match[2] or "", match[3], value))
        return cls(tuple(entries))

    def of(self, kind: str, platform: str = "") -> dict[str, str]:
        return {key: value for where, only, key, value in self.entries if where == kind and only in ("", platform)}


@dataclass
class Publication:
    """Documents and blobs, everything that a registry or a layout needs."""

    top: Descriptor
    manifests: dict[Digest, tuple[str, bytes]] = field(default_factory=dict)
    """Manifests and index by digest, in the order in which they have to be sent."""
    documents: dict[Digest, bytes] = field(default_factory=dict)
    """Configs and statements."""
    layers: dict[Digest, Descriptor] = field(default_factory=dict)
    """Layers' blobs, in the content store, by digest."""
    images: dict[Digest, Packed] = field(default_factory=dict)
    """What belongs to each image, by its id."""


@dataclass(frozen=True)
class Style:
    """How documents are written."""

    oci: bool
    compression: Compression
    force: bool = False
    annotations: Annotations = Annotations()

    @classmethod
    def of(cls, attributes: Mapping[str, str], annotations: Sequence[str], *, oci: bool) -> Style:
        """What an output's attributes ask for."""
        name, level = attributes.get("compression", "") or "gzip", attributes.get("compression-level", "")
        if name not in ("gzip", "zstd"):
            raise InvalidArgument(f"compression {name!r} is not offered: gzip or zstd is expected")
        wanted = attributes.get("oci-mediatypes", "")
        found = Annotations.parse(annotations, attributes)
        oci = is_true(wanted) if wanted else oci or bool(found.entries) or name == "zstd"
        force = is_true(attributes.get("force-compression", "")) or "compression" in attributes
        return cls(oci, Compression.parse(f"{name}:{level}" if level else name), force, found)


def is_true(text: str) -> bool:
    """A boolean attribute; alone it means yes."""
    if text.lower() not in ("", "0", "1", "true", "false"):
        raise InvalidArgument(f"invalid value {text!r}: true or false is expected")
    return text.lower() in ("1", "true")


def encode(document: Mapping[str, Any]) -> bytes:
    """A document's bytes, indented as BuildKit and Docker indent theirs."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2)


def plain(descriptor: Descriptor) -> dict[str, Any]:
    """A descriptor for a document."""
    fields: dict[str, Any] = {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size}
    if descriptor.annotations:
        fields["annotations"] = descriptor.annotations
    if descriptor.platform is not None:
        fields["platform"] = {name: value for name, value in msgspec.to_builtins(descriptor.platform).items() if value}
    return fields


async def publish(results: Sequence[Result], style: Style, publisher: Publisher, pins: Pins) -> Publication:
    """Write the documents and see that every layer is there as a blob. The caller holds ``pins`` until it has sent them."""
    alone = len(results) == 1 and not results[0].statements and not style.annotations.of("index")
    found, blobs = Publication(Descriptor("", results[0].id, 0)), publisher.blobs()
    entries: list[dict[str, Any]] = []
    attached: list[dict[str, Any]] = []
    for result in results:
        platform = str(result.config.platform())
        entry = await _image(found, result, platform, style if alone else _as_oci(style, results), publisher, blobs, pins)
        entries.append(entry)
        if result.statements:
            attached.append(_attestations(found, result, Digest.parse(entry["digest"])))
    if alone:
        return found
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_INDEX if _as_oci(style, results).oci else media_types.DOCKER_LIST,
    }
    document["manifests"] = entries + attached
    if notes := style.annotations.of("index"):
        document["annotations"] = notes
    raw = encode(document)
    found.top = Descriptor(document["mediaType"], Digest.of(raw), len(raw), annotations=style.annotations.of("index-descriptor") or None)
    found.manifests[found.top.digest] = document["mediaType"], raw
    for id, image in found.images.items():
        found.images[id] = replace(image, documents=(found.top.digest, *image.documents))
    return found


def _as_oci(style: Style, results: Sequence[Result]) -> Style:
    """Attestations exist in OCI documents only."""
    return Style(True, style.compression, style.force, style.annotations) if any(result.statements for result in results) else style


async def _image(
    found: Publication, result: Result, platform: str, style: Style, publisher: Publisher, blobs: Blobs, pins: Pins
) -> dict[str, Any]:
    """One platform's manifest; returns its entry for an index."""
    found.documents[result.id] = result.raw
    layers = []
    for diff_id in result.config.diff_ids:
        blob = await publisher.packed(diff_id, blobs, style.compression, pins, oci=style.oci, force=style.force)
        found.layers[blob.digest] = blob
        layers.append(plain(blob))
    config = Descriptor(media_types.OCI_CONFIG if style.oci else media_types.DOCKER_CONFIG, result.id, len(result.raw))
    kind = media_types.OCI_MANIFEST if style.oci else media_types.DOCKER_MANIFEST
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": kind, "config": plain(config), "layers": layers}
    if notes := style.annotations.of("manifest", platform):
        document["annotations"] = notes
    raw = encode(document)
    digest = Digest.of(raw)
    found.manifests[digest] = kind, raw
    found.top = Descriptor(kind, digest, len(raw))
    found.images[result.id] = Packed(digest, (digest,), tuple(Digest.parse(layer["digest"]) for layer in layers))
    entry = plain(Descriptor(kind, digest, len(raw), annotations=style.annotations.of("manifest-descriptor", platform) or None))
    fields = {"architecture": result.config.architecture, "os": result.config.os, "variant": result.config.variant or ""}
    return entry | {"platform": {name: value for name, value in fields.items() if value}}


def _attestations(found: Publication, result: Result, image: Digest) -> dict[str, Any]:
    """The manifest of what is attested about one image; returns its entry for the index."""
    layers, digests = [], []
    for statement in result.statements:
        document = {
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": statement.predicate_type,
            "subject": [{"name": "_", "digest": {image.algorithm: image.hex}}],
            "predicate": statement.predicate,
        }
        raw = msgspec.json.encode(document)
        digest = Digest.of(raw)
        found.documents[digest] = raw
        digests.append(str(digest))
        layers.append(plain(Descriptor(IN_TOTO, digest, len(raw), annotations={_PREDICATE: statement.predicate_type})))
    config = msgspec.json.encode(
        {"architecture": "unknown", "os": "unknown", "config": {}, "rootfs": {"type": "layers", "diff_ids": digests}}
    )
    found.documents[Digest.of(config)] = config
    raw = encode(
        {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": plain(Descriptor(media_types.OCI_CONFIG, Digest.of(config), len(config))),
            "layers": layers,
        }
    )
    digest = Digest.of(raw)
    found.manifests[digest] = media_types.OCI_MANIFEST, raw
    blobs = (Digest.of(config), *(Digest.parse(each) for each in digests))
    found.images[result.id] = replace(found.images[result.id], artifacts=(digest,), attachments=blobs)
    notes = {_REFERENCE_DIGEST: str(image), _REFERENCE_TYPE: "attestation-manifest"}
    entry = plain(Descriptor(media_types.OCI_MANIFEST, digest, len(raw), annotations=notes))
    return entry | {"platform": {"architecture": "unknown", "os": "unknown"}}
