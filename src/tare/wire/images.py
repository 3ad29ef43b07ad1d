"""Docker's documents about images. Fields that a version leaves out are ``UNSET`` and do not appear."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType, field


class _Wire(msgspec.Struct, rename="pascal", kw_only=True):
    pass


class ImageSummary(_Wire, kw_only=True):
    """One entry of ``GET /images/json``; -1 means "not computed"."""

    id: str
    parent_id: str = ""
    repo_tags: list[str]
    repo_digests: list[str]
    created: int
    size: int
    virtual_size: int | UnsetType = UNSET
    shared_size: int = -1
    labels: dict[str, str] | None = None
    containers: int = -1
    manifests: list[dict[str, Any]] | UnsetType = UNSET


class ImageInspect(_Wire, kw_only=True):
    """``GET /images/{name}/json``."""

    id: str
    repo_tags: list[str]
    repo_digests: list[str]
    parent: str = ""
    comment: str = ""
    created: str = ""
    container: str | UnsetType = UNSET
    container_config: dict[str, Any] | UnsetType = UNSET
    docker_version: str = ""
    author: str = ""
    config: dict[str, Any]
    architecture: str
    variant: str | UnsetType = UNSET
    os: str
    os_version: str | UnsetType = UNSET
    size: int
    virtual_size: int | UnsetType = UNSET
    graph_driver: dict[str, Any]
    root_fs: dict[str, Any] = field(name="RootFS")
    metadata: dict[str, Any]
    descriptor: dict[str, Any] | UnsetType = UNSET
    manifests: list[dict[str, Any]] | UnsetType = UNSET


class HistoryEntry(_Wire, kw_only=True):
    id: str
    created: int
    created_by: str
    tags: list[str] | None
    size: int
    comment: str
