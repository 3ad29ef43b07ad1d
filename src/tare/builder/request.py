"""What is asked of a build, and what a build says while it works."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tare.distribution.auth import Credentials
from tare.distribution.progress import Progress
from tare.errors import TareError
from tare.oci.reference import Reference
from tare.wire.container import HostConfig

NETWORK_HOST = "network.host"
SECURITY_INSECURE = "security.insecure"


@dataclass(frozen=True)
class BuildRequest:
    """One build's options."""

    tags: tuple[Reference, ...] = ()
    dockerfile: str = "Dockerfile"
    """Its path in the context."""
    dockerfile_text: bytes | None = None
    """The file itself, when it does not lie in the context."""
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    platform: str = ""
    no_cache: bool = False
    pull: bool = False
    """Ask the registry for base images that are here already."""
    cache_from: tuple[str, ...] = ()
    host: HostConfig = field(default_factory=HostConfig)
    """Limits, network, further hosts of RUN's containers."""
    remove: bool = True
    credentials: Callable[[Reference], Credentials | None] = lambda reference: None
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    agents: Mapping[str, str] = field(default_factory=dict)
    """SSH agents by id: paths of sockets on this machine."""
    contexts: Mapping[str, str] = field(default_factory=dict)
    """Named contexts: an image (``docker-image://NAME``) for a name that FROM or ``--from`` may use."""
    allow: frozenset[str] = frozenset()
    """Entitlements: ``network.host``, ``security.insecure``."""
    epoch: int | None = None
    """SOURCE_DATE_EPOCH in seconds: the time of all that is made, and the latest time of any file."""

    @property
    def epoch_ns(self) -> int | None:
        return None if self.epoch is None else self.epoch * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Text:
    """Output as the client shows it."""

    text: str


@dataclass(frozen=True, slots=True)
class Built:
    """An image (or the result of a stage) exists."""

    id: str


Message = Text | Built | Progress
Say = Callable[[Message], Awaitable[None]]
"""Takes a message; may wait for a slow client, and the build with it."""


class RunFailed(TareError):
    """A command of the build did not end with 0."""

    def __init__(self, command: Sequence[str], code: int) -> None:
        super().__init__(f"The command '{' '.join(command)}' returned a non-zero code: {code}")
        self.code = code
