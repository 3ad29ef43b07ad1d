"""The seam between containers (records) and tasks (their running processes): isolation is a strategy.

A *container* is the record; a *task* is its running process. Nothing above ``TaskDriver`` knows whether our own runtime, a foreign
OCI runtime or a small virtual machine runs the task.

Life of a task, as a driver shows it:

    start() ──► Task (running) ──► exit recorded on disk ──► wait() returns Exit ──► release()
                   │  ▲
             pause │  │ resume

Invariants:
- ``start`` returns only when the container's process has been exec'd, or raises ``StartFailed`` and has left nothing behind.
- The task does not depend on the process that started it: after a crash of the daemon ``recover`` finds it, running or exited.
- An exit is written to disk before ``wait`` reports it, and stays there until ``release``.
- A driver never loses output: attachments given at start are connected before the process runs.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class OverlayRoot:
    """A root file system made of shared read-only layers (topmost first) under one writable directory.

    The overlay is mounted inside the task's own mount namespace only: it goes away with the task.
    """

    lower: tuple[Path, ...]
    upper: Path
    work: Path


@dataclass(frozen=True)
class DirectoryRoot:
    """A root file system that is one plain directory (the vfs driver, ``--rootfs``)."""

    path: Path


Rootfs = OverlayRoot | DirectoryRoot


@dataclass(frozen=True)
class VethLink:
    """One link of the task's own network namespace, made while the task starts: a veth pair with a host bridge, or a ``macvlan`` or
    ``ipvlan`` (``kind``, ``mode``) on the parent link ``bridge``."""

    host_name: str
    bridge: str
    name: str = "eth0"
    mac: str = ""
    addresses: tuple[str, ...] = ()
    """Addresses with prefix length, IPv4 or IPv6."""
    gateways: tuple[str, ...] = ()
    """Default gateways, at most one per family."""
    mtu: int = 1500
    kind: str = "veth"
    mode: str = ""


@dataclass(frozen=True)
class LogTarget:
    """Where the keeper writes output. ``driver`` is one of ``containers.logdrivers``; ``max_size`` in bytes (0: no rotation)."""

    driver: str
    path: Path | None
    """The log's file; for a driver that sends output away its cache, or None."""
    max_size: int = 0
    max_file: int = 1
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Labels and tags that go into each record (``attrs``), already chosen."""
    compress: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    """Where to send output, for a driver that does so."""


@dataclass
class Attachment:
    """A client's connection that the task's stdio is to be connected with.

    ``sock`` is handed over: whoever takes the attachment owns it and closes it. ``prefix`` are bytes of stdin that were read from the
    socket before it was handed over. Output is framed (8-byte header) when ``multiplexed``, raw otherwise. The end of the task
    half-closes the socket, lingers for unread input, then closes it. End of input never means that the client has gone.
    """

    sock: socket.socket
    stdin: bool
    stdout: bool
    stderr: bool
    multiplexed: bool
    prefix: bytes = b""
    detach_keys: bytes = b""
    corked: bool = False
    """Hold output for this attachment (bounded, with back-pressure) until ``Task.uncork``: a log backlog is sent first."""


@dataclass(frozen=True)
class LogPosition:
    """A point in a container's log: everything up to ``size`` bytes of the log file with inode ``inode`` lies before it."""

    inode: int
    size: int


@dataclass(frozen=True)
class Stdio:
    """How the container's first process, or an exec's, is connected."""

    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    """Close stdin when the first attachment's input ends."""
    console_size: tuple[int, int] = (0, 0)
    """Rows, columns; (0, 0) leaves the kernel's default."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, to be made or to be restored."""

    directory: Path
    name: str
    criu: str
    """Path of the program that does it."""
    work: Path
    """Where its logs go."""

    @property
    def path(self) -> Path:
        return self.directory / self.name


@dataclass
class Launch:
    """All that a driver needs to start a task. ``config`` is an OCI runtime-spec configuration (as a plain dict)."""

    id: str
    config: dict[str, Any]
    rootfs: Rootfs
    stdio: Stdio
    log: LogTarget
    run_dir: Path
    """Volatile directory (mode 0700, made by the caller) for sockets and the exit record."""
    user: str = ""
    """Docker's user string (``name``, ``uid``, ``name:group``, ``uid:gid``); looked up in the root's own passwd and group files."""
    additional_groups: tuple[str, ...] = ()
    """``--group-add``: names or numbers, looked up in the root's own group file."""
    links: tuple[VethLink, ...] = ()
    name_server: Path | None = None
    """Socket of the name server that is to answer in the task's network namespace."""
    attachments: Sequence[Attachment] = ()
    init: str = ""
    """``--init``: host path of a static init, or the name of the built-in one (``runtime.lowering``)."""
    restore: Checkpoint | None = None
    """Go on where this checkpoint stopped, instead of starting the program."""


@dataclass(frozen=True)
class Exit:
    """How a task or exec ended. ``code`` as Docker's: 0-255, 128+n for a signal; times in nanoseconds since the epoch."""

    code: int
    finished_at: int
    oom_killed: bool = False
    error: str = ""


@dataclass
class ExecLaunch:
    """A further process in a running task. ``process`` is an OCI runtime-spec ``process`` object; user as in ``Launch``."""

    id: str
    process: dict[str, Any]
    stdio: Stdio
    user: str = ""
    additional_groups: tuple[str, ...] = ()
    attachments: Sequence[Attachment] = ()
    privileged: bool = False


class ExecTask(Protocol):
    """A running (or ended) exec process."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> Exit: ...

    async def kill(self, signal: int) -> None: ...

    async def resize(self, rows: int, columns: int) -> None: ...


class Task(Protocol):
    """The running process of a container. After the exit every method but ``wait`` and ``release`` raises ``Conflict``."""

    @property
    def id(self) -> str: ...

    @property
    def pid(self) -> int:
        """Process id in the host's PID namespace."""
        ...

    @property
    def started_at(self) -> int:
        """Nanoseconds since the epoch."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What could not be applied and was left out (a limit that the host's confinement forbids)."""
        ...

    @property
    def exit(self) -> Exit | None:
        """How it ended, as far as is known now."""
        ...

    @property
    def paused(self) -> bool:
        """Whether a task that ``recover`` found was frozen then."""
        ...

    async def wait(self) -> Exit:
        """Return when the process has ended, its output is drained into the log and the exit is recorded."""
        ...

    async def kill(self, signal: int) -> None: ...

    async def resize(self, rows: int, columns: int) -> None: ...

    async def attach(self, attachment: Attachment) -> tuple[int, LogPosition]:
        """Hand a connection to the task; returns the attachment's number and the log position at which its live output begins."""
        ...

    async def uncork(self, number: int) -> None: ...

    async def exec(self, launch: ExecLaunch) -> ExecTask: ...

    async def find_exec(self, exec_id: str) -> ExecTask | Exit | None:
        """The exec with this id: running, ended, or never known."""
        ...

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Apply OCI ``linux.resources`` to the running task."""
        ...

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def checkpoint(self, checkpoint: Checkpoint, *, leave_running: bool) -> None:
        """Write the processes to disk; the task ends (killed), unless it is to be left running. After a failure it runs on."""
        ...

    async def release(self) -> None:
        """Forget an ended task: remove its exit record, cgroups and run-time files. Idempotent."""
        ...


class TaskDriver(Protocol):
    """Starts tasks and finds them again."""

    async def start(self, launch: Launch) -> Task: ...

    async def recover(self, container_id: str, run_dir: Path) -> Task | None:
        """The task of this container if one runs or has an exit on record that was not released; None when nothing is known."""
        ...

    async def close(self) -> None:
        """Stop what serves new starts (the launcher). Running tasks go on."""
        ...
