"""Docker's documents about the engine itself: version, events, credentials."""

from __future__ import annotations

import msgspec
from msgspec import field


class _Wire(msgspec.Struct, rename="pascal", kw_only=True):
    pass


class Platform(_Wire, kw_only=True):
    name: str = ""


class Component(_Wire, kw_only=True):
    name: str
    version: str
    details: dict[str, str] = field(default_factory=dict)


class Version(_Wire, kw_only=True):
    """``GET /version``."""

    platform: Platform
    components: list[Component]
    version: str
    api_version: str
    min_api_version: str = field(name="MinAPIVersion")
    git_commit: str = ""
    go_version: str = ""
    os: str = "linux"
    arch: str = ""
    kernel_version: str = ""
    build_time: str = ""


class Actor(msgspec.Struct, kw_only=True):
    id: str = field(name="ID")
    attributes: dict[str, str] = field(name="Attributes")


class EventMessage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of ``GET /events``. ``status``, ``id`` and ``from`` are the old form, kept up to API 1.51 for containers and images."""

    status: str = ""
    id: str = ""
    origin: str = field(default="", name="from")
    type: str = field(name="Type")
    action: str = field(name="Action")
    actor: Actor = field(name="Actor")
    scope: str
    time: int
    time_nano: int = field(name="timeNano")


class AuthConfig(msgspec.Struct, rename="lower", kw_only=True):
    """``POST /auth`` and the decoded ``X-Registry-Auth`` header."""

    username: str = ""
    password: str = ""
    auth: str = ""
    email: str = ""
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class IndexToPublish(msgspec.Struct, rename="camel", kw_only=True):
    """``PUT /distribution/NAME/manifest`` (our own): an index and where its manifests are."""

    index: str
    """The document itself, byte for byte."""
    media_type: str = ""
    sources: list[str] = []
    """References by digest."""
