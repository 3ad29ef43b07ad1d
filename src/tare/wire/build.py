"""What our own command tells the daemon of a build beyond the classic ``POST /build`` (decision 78).

The body of ``POST /tare/builds``. It lives in the daemon's memory only, and no longer than the build.
"""

from __future__ import annotations

import msgspec


class Export(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    """One ``--output``, ``--cache-to`` or ``--cache-from``: its type, and its attributes as they were given."""

    type: str
    attributes: dict[str, str] = {}


class ContextState(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    """A big context: whose it is, and the hash of its listing (``tare.builder.keptcontexts``)."""

    name: str
    state: str


class BuildOptions(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    """One build's further options."""

    secrets: dict[str, bytes] = {}
    """By id; base64 in JSON."""
    agents: list[str] = []
    """Ids of SSH agents that the client forwards when it is asked to."""
    contexts: dict[str, str] = {}
    """Named contexts by name: an address, or "" for one that the client uploads."""
    allow: list[str] = []
    dockerfile: bytes | None = None
    """The Dockerfile, when it does not lie in the context; base64 in JSON."""
    outputs: list[Export] = []
    """None: an image in the store."""
    cache_from: list[Export] = []
    cache_to: list[Export] = []
    annotations: list[str] = []
    """``[TYPE:]KEY=VALUE``, TYPE one of manifest, index, manifest-descriptor, index-descriptor."""
    attestations: dict[str, dict[str, str]] = {}
    """``sbom`` and ``provenance`` with their attributes."""
    platforms: list[str] = []
    no_cache_filter: list[str] = []
    squash: bool = False
    epoch: int | None = None
    call: str = ""
    """``check``, ``outline`` or ``targets``: look at the Dockerfile only."""
    context: ContextState | None = None
    trace: bool = False
    """Tell of steps as BuildKit's status documents instead of the classic text."""
    source: str = ""
    """What the client calls the context, for the history."""
