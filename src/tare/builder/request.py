"""What is asked of a build, and what a build says while it works."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tare.distribution.auth import Credentials
from tare.distribution.progress import Progress
from tare.errors import TareError
from tare.oci.reference import Reference
from tare.wire.build import Export
from tare.wire.container import HostConfig

if TYPE_CHECKING:
    from tare.builder.trees import TarTree

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
    """Named contexts (``namedcontexts``): an address for a name that FROM or ``--from`` may use; "" for files that were uploaded."""
    uploads: Mapping[str, TarTree] = field(default_factory=dict)
    """What the client sent before the build: ``context-NAME``, ``cache-NUMBER``."""
    allow: frozenset[str] = frozenset()
    """Entitlements: ``network.host``, ``security.insecure``."""
    epoch: int | None = None
    """SOURCE_DATE_EPOCH in seconds: the time of all that is made, and the latest time of any file."""
    outputs: tuple[Export, ...] = ()
    """What becomes of the result; none: an image in the store."""
    annotations: tuple[str, ...] = ()
    attestations: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    cache_to: tuple[Export, ...] = ()
    cache_imports: tuple[Export, ...] = ()
    """Caches to import; ``cache_from`` names images only."""
    platforms: tuple[str, ...] = ()
    """More than one: build for each."""
    no_cache_filter: frozenset[str] = frozenset()
    """Stages to build without the cache."""
    squash: bool = False
    trace: bool = False
    """Tell of steps as ``Trace`` instead of ``Text``."""
    call: str = ""
    """``check``, ``outline`` or ``targets``: look at the Dockerfile only."""
    source: str = ""
    """What the client calls the context."""

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


@dataclass(frozen=True, slots=True)
class Trace:
    """Part of a BuildKit status: ``vertexes``, ``statuses``, ``logs`` or ``warnings`` (``tare.builder.trace``)."""

    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AgentWanted:
    """To the client: connect to your SSH agent ``name``, and join it to connection ``number`` of the session."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class ExportReady:
    """To the client: fetch the session's export ``number``."""

    number: int


@dataclass(frozen=True, slots=True)
class Note:
    """To the client: ``kind`` and what there is to know (where a build failed, what checks found, metadata of the result)."""

    kind: str
    value: Any


Message = Text | Built | Progress | Trace | AgentWanted | ExportReady | Note
Say = Callable[[Message], Awaitable[None]]
"""Takes a message; may wait for a slow client, and the build with it."""


class RunFailed(TareError):
    """A command of the build did not end with 0."""

    def __init__(self, command: Sequence[str], code: int) -> None:
        super().__init__(f"The command '{' '.join(command)}' returned a non-zero code: {code}")
        self.code = code
