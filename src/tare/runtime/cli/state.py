"""What the command remembers of a container between its calls.

    ROOT/ID/              mode 0700; its existence is the container's
      state.json          pid and start time of the init, bundle, cgroup, what a later exec needs; written last by ``create``
      config.json         the configuration as it was at ``create``: later changes in the bundle do not count
      start.sock          there while the init waits for ``start``

The status is never stored but found out:

    no pid yet                      creating
    process gone, zombie, or other  stopped
    cgroup frozen                   paused
    start.sock there                created
    else                            running
"""

from __future__ import annotations

import json
import os
import re
import time
from typing import Any, NamedTuple

from tare.linux.cgroup.detect import Layout, detect
from tare.linux.cgroup.group import Cgroup
from tare.runtime.cli.report import RuntimeFailure

OCI_VERSION = "1.2.0"
SOCKET = "start.sock"
_ID = re.compile(r"[\w+.-]+", re.ASCII)


class Record(NamedTuple):
    """``state.json``."""

    id: str
    bundle: str
    rootfs: str
    created: str
    owner: int
    oci_version: str
    annotations: dict[str, str]
    cgroup: str = ""
    pid: int = 0
    start_time: int = 0
    exec_defaults: dict[str, Any] = {}  # noqa: RUF012 - never written to
    own_pids: bool = True
    """It has a pid namespace of its own: the init's end is everybody's."""


def check_id(container_id: str) -> None:
    """An id becomes a directory's name."""
    if not _ID.fullmatch(container_id) or container_id in (".", "..") or len(container_id) > 255:
        raise RuntimeFailure(f"invalid container ID format: {container_id!r}")


def layout() -> Layout | None:
    """The machine's cgroups, None without any."""
    try:
        return detect()
    except OSError:
        return None


class Store:
    """All containers below one root directory."""

    def __init__(self, root: str) -> None:
        self.root = root

    def directory(self, container_id: str) -> str:
        check_id(container_id)
        return os.path.join(self.root, container_id)

    def reserve(self, container_id: str) -> str:
        """Make the container's directory; the id is taken from now on."""
        directory = self.directory(container_id)
        os.makedirs(self.root, 0o711, exist_ok=True)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            raise RuntimeFailure(f"container with given ID already exists: {container_id}") from None
        return os.path.realpath(directory)

    def write(self, record: Record, config: bytes | None = None) -> None:
        """Store a record; a reader sees all of it or the one before."""
        directory = self.directory(record.id)
        if config is not None:
            write_private(os.path.join(directory, "config.json"), config)
        temporary = os.path.join(directory, "state.json.new")
        write_private(temporary, json.dumps(record._asdict(), separators=(",", ":")).encode())
        os.rename(temporary, os.path.join(directory, "state.json"))

    def load(self, container_id: str) -> Record:
        """The record of a container; ``RuntimeFailure`` when there is none."""
        directory = self.directory(container_id)
        try:
            with open(os.path.join(directory, "state.json"), "rb") as file:
                return Record(**json.loads(file.read()))
        except (FileNotFoundError, NotADirectoryError):
            raise RuntimeFailure(f"container {container_id!r} does not exist") from None
        except (ValueError, TypeError) as error:
            raise RuntimeFailure(f"container {container_id!r}: its state is damaged: {error}") from None

    def config(self, container_id: str) -> dict[str, Any]:
        """The configuration as it was at ``create``."""
        with open(os.path.join(self.directory(container_id), "config.json"), "rb") as file:
            config: dict[str, Any] = json.loads(file.read())
        return config

    def ids(self) -> list[str]:
        """All containers, sorted."""
        try:
            return sorted(name for name in os.listdir(self.root) if os.path.exists(os.path.join(self.root, name, "state.json")))
        except FileNotFoundError:
            return []

    def remove(self, container_id: str) -> None:
        directory = self.directory(container_id)
        try:
            for name in os.listdir(directory):
                os.unlink(os.path.join(directory, name))
            os.rmdir(directory)
        except OSError:
            pass

    def status(self, record: Record) -> str:
        """Found out now."""
        if not record.pid:
            return "creating"
        if not alive(record):
            return "stopped"
        group = cgroup(record)
        if group is not None and group.frozen():
            return "paused"
        if os.path.exists(os.path.join(self.directory(record.id), SOCKET)):
            return "created"
        return "running"

    def state(self, record: Record) -> dict[str, Any]:
        """The state document of the OCI runtime-spec."""
        return document(record, self.status(record))


def document(record: Record, status: str) -> dict[str, Any]:
    """A state document with this status."""
    result: dict[str, Any] = {"ociVersion": record.oci_version, "id": record.id, "status": status}
    if status != "creating" or record.pid:
        result["pid"] = 0 if status == "stopped" else record.pid
    result["bundle"] = record.bundle
    result["annotations"] = record.annotations
    return result


def alive(record: Record) -> bool:
    """Whether the very process of the record still runs."""
    try:
        with open(f"/proc/{record.pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return fields[0] not in (b"Z", b"X") and int(fields[19]) == record.start_time


def cgroup(record: Record) -> Cgroup | None:
    """The container's cgroup, None when it has none."""
    found = layout() if record.cgroup else None
    return Cgroup(found, record.cgroup) if found is not None else None


def now() -> str:
    """RFC 3339."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"


def write_private(path: str, data: bytes) -> None:
    """Write a file that only we read."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
