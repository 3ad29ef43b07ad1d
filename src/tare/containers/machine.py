"""What a container's configuration depends on beside its own settings: facts about this machine, as data.

Kept apart so that ``spec`` and ``validate`` are pure: a test describes a machine, the engine asks ``this_machine`` once. Only device nodes
are looked at afresh each time, because they come and go.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tare.linux import capabilities
from tare.linux.cgroup.detect import detect
from tare.linux.seccomp import native_arch

_DEV = Path("/dev")
# Not devices of the machine but of this mount namespace, or of containers around us.
_SKIPPED = frozenset(("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console", "stdin", "stdout", "stderr"))


class DeviceNode(NamedTuple):
    """A device node of the host. ``kind`` is ``c`` or ``b``; ``mode`` are the permission bits."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True)
class Machine:
    """The defaults describe a modern machine with everything; ``this_machine`` fills in what is really there."""

    arch: str = "x86_64"
    kernel: tuple[int, int] = (6, 1)
    nodename: str = "host"
    cpus: int = 2
    cpuset_cpus: frozenset[int] = frozenset((0, 1))
    cpuset_mems: frozenset[int] = frozenset((0,))
    cgroup_version: int = 2
    controllers: frozenset[str] = frozenset(("cpu", "cpuset", "io", "memory", "pids"))
    capabilities: tuple[str, ...] = capabilities.NAMES
    """What the engine itself may pass on: its bounding set, in the kernel's order."""
    swap_limit: bool = True
    oom_kill_disable: bool = False
    blkio_weight: bool = True
    apparmor: bool = True
    missing_sysctls: frozenset[str] = field(default_factory=frozenset)
    """Those of our default sysctls that this kernel does not have."""

    @property
    def default_cgroupns(self) -> str:
        """Docker's default: private on cgroup v2, the host's on v1 and hybrid machines."""
        return "private" if self.cgroup_version == 2 else "host"

    def device(self, path: str) -> DeviceNode:
        """The device node at a host path (symbolic links followed). OSError when there is none; ValueError when it is something else."""
        return _node(path, os.stat(path))

    def devices_below(self, path: str) -> list[DeviceNode]:
        """All device nodes in a directory of the host, recursively, without those that are no devices of the machine."""
        found = []
        for directory, folders, files in os.walk(path):
            if Path(directory) == _DEV:
                folders[:] = [name for name in folders if name not in _SKIPPED]
                files = [name for name in files if name not in _SKIPPED]
            for name in files:
                place = os.path.join(directory, name)
                try:
                    status = os.lstat(place)
                except OSError:
                    continue
                if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                    found.append(_node(place, status))
        return sorted(found)


def _node(path: str, status: os.stat_result) -> DeviceNode:
    kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
    if not kind:
        raise ValueError("not a device node")
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return DeviceNode(path, kind, major, minor, stat.S_IMODE(status.st_mode) & 0o777, status.st_uid, status.st_gid)


def parse_list(text: str) -> frozenset[int]:
    """The kernel's list format (``0-2,5``), as in cpuset(7). ValueError for anything else."""
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(text)
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(numbers)


@cache
def this_machine() -> Machine:
    """The machine we run on; looked at once."""
    name = os.uname()
    version = re.match(r"(\d+)\.(\d+)", name.release)
    cpus = _list_at("/sys/devices/system/cpu/online") or frozenset(os.sched_getaffinity(0))
    bounding = capabilities.held_bounding()
    try:
        layout = detect()
    except OSError:
        return Machine(arch=native_arch(), nodename=name.nodename, controllers=frozenset())
    memory, blkio = layout.hierarchy("memory"), layout.hierarchy("blkio")
    v1_memory = Path(memory.mount) if memory is not None and memory.version == 1 else None
    v1_blkio = Path(blkio.mount) if blkio is not None and blkio.version == 1 else None
    return Machine(
        arch=native_arch(),
        kernel=(int(version[1]), int(version[2])) if version else (0, 0),
        nodename=name.nodename,
        cpus=len(os.sched_getaffinity(0)),
        cpuset_cpus=cpus,
        cpuset_mems=_list_at("/sys/devices/system/node/online") or frozenset((0,)),
        cgroup_version=2 if layout.mode == "v2" else 1,
        controllers=frozenset("io" if controller == "blkio" else controller for controller in layout.controllers),
        capabilities=tuple(each for number, each in enumerate(capabilities.NAMES) if bounding >> number & 1),
        swap_limit=v1_memory is None or (v1_memory / "memory.memsw.limit_in_bytes").exists(),
        oom_kill_disable=v1_memory is not None and (v1_memory / "memory.oom_control").exists(),
        blkio_weight=v1_blkio is None or (v1_blkio / "blkio.weight").exists() or (v1_blkio / "blkio.bfq.weight").exists(),
        apparmor=Path("/sys/kernel/security/apparmor").exists() or _flag("/sys/module/apparmor/parameters/enabled"),
        missing_sysctls=frozenset(key for key in DEFAULT_SYSCTLS if not Path("/proc/sys", *key.split(".")).exists()),
    )


DEFAULT_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
"""In a network namespace of its own a container may use low ports and ping without a capability."""


def _flag(path: str) -> bool:
    try:
        return Path(path).read_text().startswith("Y")
    except OSError:
        return False


def _list_at(path: str) -> frozenset[int]:
    try:
        return parse_list(Path(path).read_text().strip())
    except (OSError, ValueError):
        return frozenset()
