"""What an image is to the rest of the engine, and what the engine keeps of it.

An image is its config: the config's digest is the image's id. Names (tags) and repository digests point to ids. What is kept in the
metadata is only what the config and the stores do not say: where the image came from, and which blobs belong to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from tare.oci.digest import Digest
from tare.oci.image import NO_TIME, ImageConfig
from tare.oci.platform import Platform


class ImageRecord(msgspec.Struct, omit_defaults=True):
    """The stored record of one image (table ``images``, key: image id)."""

    diff_ids: list[str]
    size: int
    """Bytes of all layers' files."""
    created: str = NO_TIME
    """The config's own time, kept here so that listing need not open every config."""
    manifest: str = ""
    """Digest of the manifest that it was pulled with; empty for an image made here."""
    documents: list[str] = []
    """Digests of the JSON documents that belong to it: indexes, manifests, config."""
    blobs: list[str] = []
    """Digests of its compressed layers, bottom first."""
    artifacts: list[str] = []
    """Digests of the manifests of artifacts that came with it: attestations, and what refers to it in its registry (signatures, SBOMs)."""
    attachments: list[str] = []
    """Digests of the blobs that these name."""
    parent: str = ""
    """Id of the image it was made from here (commit, build)."""
    used: float = 0.0
    """When a container was last made of it, seconds since the epoch, to within an hour."""

    def needs(self, image_id: str) -> set[str]:
        """Digests of all that the image is made of: config, documents, artifacts, compressed and stored layers."""
        return {image_id, *self.kept(), *self.diff_ids}

    def kept(self) -> list[str]:
        """Digests of everything that the content store keeps for the image."""
        return [*self.documents, *self.blobs, *self.artifacts, *self.attachments]

    def merged(self, older: ImageRecord | None) -> ImageRecord:
        """This record with what an earlier pull of the same image, perhaps from elsewhere, had stored for it."""
        if older is None:
            return self
        documents = list(dict.fromkeys([*self.documents, *older.documents]))
        blobs = list(dict.fromkeys([*self.blobs, *older.blobs]))
        artifacts = list(dict.fromkeys([*self.artifacts, *older.artifacts]))
        attachments = list(dict.fromkeys([*self.attachments, *older.attachments]))
        return msgspec.structs.replace(
            self,
            documents=documents,
            blobs=blobs,
            artifacts=artifacts,
            attachments=attachments,
            manifest=self.manifest or older.manifest,
            parent=self.parent or older.parent,
            used=max(self.used, older.used),
        )


@dataclass(frozen=True)
class Packed:
    """What there is of an image in the content store beside its config, all of it written already."""

    manifest: Digest
    documents: tuple[Digest, ...]
    """The manifest and the index that leads to it, the index first."""
    blobs: tuple[Digest, ...]
    """Compressed layers, bottom first."""
    artifacts: tuple[Digest, ...] = ()
    """Manifests of attestations, and ``attachments``: the blobs that these name."""
    attachments: tuple[Digest, ...] = ()


class TagRecord(msgspec.Struct, omit_defaults=True):
    """The stored record of one name (table ``tags``, key: full reference, owner: image id)."""

    tagged: float = 0.0
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Image:
    """One image as it stands now. A snapshot: names may change, the rest cannot."""

    id: str
    """Digest of the config, as plain text (it goes into records and answers)."""
    config: ImageConfig
    diff_ids: tuple[Digest, ...]
    tags: tuple[str, ...]
    """Familiar names with tag: ``busybox:latest``."""
    repo_digests: tuple[str, ...]
    """Familiar names with digest: ``busybox@sha256:...``."""
    size: int
    """Bytes of the files of all layers."""
    created: str
    """RFC 3339, as in the config."""
    manifest_digest: Digest | None = None
    parent: str = ""
    tagged: float = 0.0
    """When it last got a name, seconds since the epoch; 0 for never."""
    used: float = 0.0
    """When a container was last made of it, to within an hour; 0 for never."""
    held: bool = False
    """Whether it has no name of its own but a sibling with one (``siblings``)."""

    @property
    def architecture(self) -> str:
        return self.config.architecture

    @property
    def os(self) -> str:
        return self.config.os

    @property
    def variant(self) -> str:
        return self.config.variant or ""

    @property
    def labels(self) -> dict[str, str]:
        return self.config.container.labels or {}

    @property
    def created_at(self) -> float:
        """``created`` as seconds since the epoch; 0 when the image does not say."""
        return epoch(self.created)

    @property
    def dangling(self) -> bool:
        """Whether no tag names it, nor a sibling that it is listed with."""
        return not self.tags and not self.held

    def platform(self) -> Platform:
        return self.config.platform()

    def container_config(self) -> dict[str, Any]:
        """The container part of the config as a plain JSON object, in Docker's spelling."""
        found: dict[str, Any] = msgspec.to_builtins(self.config.container)
        return found


def platform_mismatch(name: str, wanted: Platform, actual: Platform) -> str:
    """What is said of an image that is not for the platform that was asked for."""
    return f"image with reference {name} was found but does not match the specified platform: wanted {wanted}, actual: {actual}"


@dataclass(frozen=True)
class Removal:
    """One thing that deleting an image did."""

    kind: str
    """``Untagged`` or ``Deleted``."""
    name: str

    def document(self) -> dict[str, str]:
        return {self.kind: self.name}


@dataclass(frozen=True)
class HistoryItem:
    """One line of an image's history, as Docker's API has it."""

    id: str
    created: float
    created_by: str
    tags: tuple[str, ...]
    size: int
    comment: str


def epoch(text: str | None) -> float:
    """An RFC 3339 time (any number of fraction digits) as seconds since the epoch, 0 when there is none."""
    if not text or text.startswith("0001-"):
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0
