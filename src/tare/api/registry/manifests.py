"""What a pushed manifest has to be (OCI distribution specification, "Pushing manifests"; Docker's schema 2 alike)."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tare.errors import InvalidArgument
from tare.oci.digest import Digest
from tare.registry.errors import RegistryError

MANIFEST_LIMIT = 4 << 20
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
INDEXES = (OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.artifact.manifest.v1+json",
)
_ELSEWHERE = ("nondistributable", "foreign")


class Checked(NamedTuple):
    """A manifest that is well formed."""

    digest: Digest
    media_type: str
    blobs: list[Digest]
    """That its repository must have."""
    manifests: list[Digest]
    subject: dict[str, Any] | None
    """As ``FileStorage.put_manifest`` wants it."""


def check(data: bytes, reference: str, content_type: str) -> Checked:
    """``MANIFEST_INVALID`` or ``DIGEST_INVALID`` says what is wrong."""
    algorithm = reference.partition(":")[0] if ":" in reference else "sha256"
    digest = Digest.of(data, algorithm)
    if ":" in reference and digest != reference:
        raise RegistryError("DIGEST_INVALID", "provided digest did not match uploaded content", {"digest": reference, "computed": digest})
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _invalid("it is no JSON object")
    declared = document.get("mediaType")
    media_type = content_type.partition(";")[0].strip().lower() or str(declared or "")
    if media_type not in (*INDEXES, *MANIFESTS):
        raise _invalid(f"unknown media type {media_type!r}")
    if declared is not None and declared != media_type:
        raise _invalid(f"mediaType is {declared!r}, the request says {media_type!r}")
    if document.get("schemaVersion", 2) != 2:
        raise _invalid(f"schemaVersion {document.get('schemaVersion')!r} is not supported")
    if document.get("manifests") is not None and any(document.get(name) is not None for name in ("config", "layers", "blobs")):
        raise _invalid("it is a manifest and an index at once")  # two readers would see two images (CVE-2021-41190)
    if document.get("layers" if media_type in INDEXES else "manifests") is not None:
        raise _invalid(f"its content is not of the type {media_type}")
    blobs: list[Digest] = []
    manifests: list[Digest] = []
    if media_type in INDEXES:
        manifests = [_digest(part) for part in _list(document, "manifests")]
    else:
        if media_type != MANIFESTS[2]:
            blobs.append(_digest(document.get("config")))
        for part in [*_list(document, "layers"), *_list(document, "blobs")]:
            found = _digest(part)
            if not part.get("urls") and not any(word in str(part.get("mediaType")) for word in _ELSEWHERE):
                blobs.append(found)
    return Checked(digest, media_type, blobs, manifests, _subject(document, digest, media_type, len(data)))


def _list(document: dict[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _invalid(f"{name} is no list")
    return value


def _digest(part: Any) -> Digest:
    try:
        return Digest.parse(str(part["digest"]))
    except (InvalidArgument, KeyError, TypeError):
        raise _invalid("a descriptor has no valid digest") from None


def _subject(document: dict[str, Any], digest: Digest, media_type: str, size: int) -> dict[str, Any] | None:
    subject = document.get("subject")
    if subject is None:
        return None
    config = document.get("config") if media_type not in INDEXES else None
    artifact = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    descriptor: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": size}
    if artifact:
        descriptor["artifactType"] = artifact
    if isinstance(document.get("annotations"), dict):
        descriptor["annotations"] = document["annotations"]
    return {"digest": _digest(subject), "descriptor": descriptor}


def _invalid(why: str) -> RegistryError:
    return RegistryError("MANIFEST_INVALID", f"manifest invalid: {why}")
