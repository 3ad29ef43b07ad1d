"""The container's record: what is stored, and the states that it goes through.

States (Docker's words) and what moves between them:

    created ──start──► running ◄──unpause/pause──► paused
       │                  │  ▲
       │                exit │ start, restart policy
       │                  ▼  │
       └──rm──► removing ◄─ exited        restarting: exited, and a new start is due
                   │
                   ▼
                 (gone; ``dead`` when the removal failed)

A record is written to the metadata store before its new state is announced by an event, an answer or a waiter. ``state.pid`` is
informative: whether a task runs is decided by the task driver when the daemon starts.
"""

from __future__ import annotations

import msgspec
from msgspec import field

from tare.wire.container import Config, EndpointSettings, HostConfig

CREATED, RUNNING, PAUSED, RESTARTING, REMOVING, EXITED, DEAD = (
    "created",
    "running",
    "paused",
    "restarting",
    "removing",
    "exited",
    "dead",
)


class State(msgspec.Struct, kw_only=True):
    """Times are nanoseconds since the epoch, 0 for never."""

    status: str = CREATED
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_at: int = 0
    finished_at: int = 0


class MountPoint(msgspec.Struct, kw_only=True):
    """One resolved mount of a container: a bind, a volume or a tmpfs."""

    type: str
    source: str
    destination: str
    name: str = ""
    driver: str = ""
    mode: str = ""
    writable: bool = True
    propagation: str = ""
    options: list[str] = field(default_factory=list)
    anonymous: bool = False
    copy_up: bool = False
    subpath: str = ""
    labels: dict[str, str] | None = None
    driver_options: dict[str, str] | None = None
    """What a volume that does not exist yet is made with."""
    from_mounts: bool = False
    """Came by the ``Mounts`` list (rather than ``Binds``): its source is not created when it is missing."""


class Record(msgspec.Struct, kw_only=True):
    """Everything about a container that survives the daemon."""

    id: str
    name: str
    created: int
    image: str
    config: Config
    host_config: HostConfig
    networks: dict[str, EndpointSettings] = field(default_factory=dict)
    diff_ids: list[str] = field(default_factory=list)
    driver: str = ""
    path: str = ""
    args: list[str] = field(default_factory=list)
    mounts: list[MountPoint] = field(default_factory=list)
    state: State = field(default_factory=State)
    restart_count: int = 0
    stopped_by_user: bool = False
    warnings: list[str] = field(default_factory=list)

    def encode(self) -> bytes:
        return _encoder.encode(self)

    @staticmethod
    def decode(document: bytes) -> Record:
        return _decoder.decode(document)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)
