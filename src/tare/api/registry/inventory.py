"""What a registry holds, for people to look at: repositories, tags, manifests with their parts. Blocking; reads the storage only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tare.api.registry.manifests import MANIFEST_LIMIT
from tare.errors import InvalidArgument
from tare.oci.digest import Digest
from tare.registry.errors import RegistryError
from tare.registry.storage import Storage
from tare.registry.upkeep import named_by

_CONFIG_LIMIT = 1 << 20
LONGEST = 1000
"""Lines of a repository's list: each costs some look-ups."""


@dataclass(frozen=True)
class RepositoryEntry:
    """A line of the list of repositories."""

    name: str
    tags: int
    size: int
    """Bytes of all its blobs and manifests."""
    pushed: float
    """When a tag was pushed last; 0 without tags."""


@dataclass(frozen=True)
class ManifestEntry:
    """A line of a repository's list: a tag, or a manifest without."""

    tag: str
    digest: Digest
    media_type: str
    size: int
    """Bytes of the manifest and all that it names."""
    pushed: float


@dataclass(frozen=True)
class Part:
    """A layer, blob or manifest that a manifest names. Everything but the digest is what the document says."""

    digest: str
    media_type: str
    size: int
    note: str
    """Platform of a manifest, or the step that made a layer."""


@dataclass(frozen=True)
class ManifestDetails:
    """A manifest with its parts."""

    digest: Digest
    media_type: str
    size: int
    subject: str
    config: Part | None
    parts: Sequence[Part]
    is_index: bool
    facts: Mapping[str, str]
    """Platform, creation time, command … of the image configuration."""
    annotations: Mapping[str, str]
    referrers: Sequence[Part]


def repository(storage: Storage, name: str) -> RepositoryEntry:
    """One line."""
    tags = storage.tags(name)
    held = {*storage.blobs(name), *storage.manifests(name)}
    size = sum(storage.objects.size(digest) or 0 for digest in held)
    return RepositoryEntry(name, len(tags), size, max((storage.tag_time(name, tag) for tag in tags), default=0.0))


def manifests(storage: Storage, name: str) -> list[ManifestEntry]:
    """Tags, the youngest first; then manifests that no tag names. The first ``LONGEST`` of them."""
    tagged = [(tag, digest, storage.tag_time(name, tag)) for tag in storage.tags(name) if (digest := storage.tagged(name, tag))]
    tagged.sort(key=lambda entry: (-entry[2], entry[0]))
    seen = {digest for _, digest, _ in tagged}
    tagged += [("", digest, storage.manifest_time(name, digest)) for digest in storage.manifests(name) if digest not in seen]
    found = []
    for tag, digest, pushed in tagged[:LONGEST]:
        try:
            record = storage.manifest(name, digest)
        except RegistryError:
            continue  # deleted this moment
        found.append(ManifestEntry(tag, digest, record.media_type, _weight(storage, name, digest, record.size), pushed))
    return found


def _weight(storage: Storage, name: str, digest: Digest, size: int, depth: int = 3) -> int:
    document = _document(storage, digest)
    total = size
    for entry in _list(document, "manifests"):
        inner = _parse(entry)
        if inner is not None and depth and storage.has_manifest(name, inner):
            total += _weight(storage, name, inner, storage.objects.size(inner) or 0, depth - 1)
    if not _list(document, "manifests"):
        try:
            total += sum(storage.objects.size(blob) or 0 for blob in set(named_by(document)))
        except (InvalidArgument, TypeError):
            return total
    return total


def details(storage: Storage, name: str, reference: str) -> ManifestDetails:
    """``NAME_UNKNOWN`` or ``MANIFEST_UNKNOWN``; ``InvalidArgument`` for a digest that is none."""
    record = storage.manifest(name, reference)
    document = _document(storage, record.digest)
    is_index = "manifests" in document
    config = document.get("config")
    image = _config(storage, name, config)
    steps = [str(step.get("created_by", "")) for step in _list(image, "history") if not step.get("empty_layer")]
    layers = _list(document, "layers") or _list(document, "blobs")
    notes = steps if len(steps) == len(layers) else [""] * len(layers)
    parts = [_part(entry, _platform(entry)) for entry in _list(document, "manifests")]
    parts += [_part(entry, note) for entry, note in zip(layers, notes, strict=True)]
    subject = document.get("subject")
    return ManifestDetails(
        record.digest,
        record.media_type,
        record.size,
        str(subject.get("digest", "")) if isinstance(subject, dict) else "",
        _part(config, "") if isinstance(config, dict) else None,
        parts,
        is_index,
        _facts(image),
        _texts(document.get("annotations")),
        [_part(entry, str(entry.get("artifactType", ""))) for entry in storage.referrers(name, record.digest)],
    )


def _document(storage: Storage, digest: Digest) -> dict[str, Any]:
    try:
        found = json.loads(storage.document(digest)[:MANIFEST_LIMIT])
    except (RegistryError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(storage: Storage, name: str, descriptor: object) -> dict[str, Any]:
    digest = _parse(descriptor)
    size = storage.objects.size(digest) if digest is not None and storage.has_blob(name, digest) else None
    if digest is None or size is None or size > _CONFIG_LIMIT:
        return {}
    try:
        found = json.loads(b"".join(storage.read(digest, 0, size)))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _facts(image: dict[str, Any]) -> dict[str, str]:
    platform = "/".join(str(image[key]) for key in ("os", "architecture", "variant") if image.get(key))
    found = {"Platform": platform, "Created": str(image.get("created") or "")}
    settings = image.get("config")
    if isinstance(settings, dict):
        for name in ("Entrypoint", "Cmd", "User", "WorkingDir", "ExposedPorts"):
            value = settings.get(name)
            found[name] = " ".join(map(str, value)) if isinstance(value, list | dict) else str(value or "")
        found |= {f"Label {name}": text for name, text in _texts(settings.get("Labels")).items()}
    return {name: text for name, text in found.items() if text}


def _list(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = document.get(name)
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _texts(value: object) -> dict[str, str]:
    return {str(name): str(text) for name, text in value.items()} if isinstance(value, dict) else {}


def _parse(descriptor: object) -> Digest | None:
    try:
        return Digest.parse(str(descriptor["digest"])) if isinstance(descriptor, dict) else None
    except (InvalidArgument, KeyError):
        return None


def _part(entry: Mapping[str, Any], note: str) -> Part:
    size = entry.get("size")
    return Part(str(entry.get("digest", "")), str(entry.get("mediaType", "")), size if isinstance(size, int) else 0, note)


def _platform(entry: Mapping[str, Any]) -> str:
    platform = entry.get("platform")
    if not isinstance(platform, dict):
        return str(entry.get("artifactType", ""))
    return "/".join(str(platform[key]) for key in ("os", "architecture", "variant") if platform.get(key))
