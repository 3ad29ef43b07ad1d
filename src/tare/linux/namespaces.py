"""Namespaces: make new ones, join others, and name them.

A namespace is known by the kernel's short name (``mnt uts ipc net pid user cgroup time``, as in /proc/PID/ns). A pid namespace is special:
unshare and setns change it only for children that are forked later, which is why the keeper does that and every other is the init's work.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from tare.linux import libc
from tare.linux.constants import NAMESPACE_FLAGS

OCI_NAMES: dict[str, str] = {
    "mount": "mnt",
    "uts": "uts",
    "ipc": "ipc",
    "network": "net",
    "pid": "pid",
    "user": "user",
    "cgroup": "cgroup",
    "time": "time",
}
"""The OCI runtime-spec's names and the kernel's."""


def flags_of(names: Iterable[str]) -> int:
    """The clone flags of several short names."""
    flags = 0
    for name in names:
        flags |= NAMESPACE_FLAGS[name]
    return flags


def unshare(names: Iterable[str]) -> None:
    """Enter new namespaces of these kinds."""
    libc.unshare(flags_of(names))


def open_namespace(path: str) -> int:
    """Open a namespace file (``/proc/PID/ns/net`` or a bind mount of one). The caller closes the descriptor."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def join(fd: int, name: str) -> None:
    """Enter the namespace behind ``fd``, which must be of kind ``name``."""
    libc.setns(fd, NAMESPACE_FLAGS[name])


def join_process(pidfd: int, names: Iterable[str]) -> None:
    """Enter several namespaces of one process at once (Linux 5.8)."""
    libc.setns(pidfd, flags_of(names))


def same_namespace(name: str, pid: int) -> bool:
    """Whether process ``pid`` is in the caller's own namespace of this kind."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
    except OSError:
        return False
