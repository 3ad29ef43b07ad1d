"""Which control-group hierarchies this machine has, and where they are mounted (cgroups(7)).

Three layouts exist:

- ``v2``      one unified tree with every controller;
- ``v1``      one tree per controller (or per co-mounted pair such as ``cpu,cpuacct``) and perhaps a named one (``name=systemd``);
- ``hybrid``  v1 trees plus a unified tree that has no controllers, or only those that no v1 tree claims.

A group exists under the same path in each hierarchy. Everything is read from ``/proc/self/mountinfo``, never guessed from directory names:
a machine may mount ``cpu`` where another mounts ``cpu,cpuacct``.

Mount points are kept as ``str``: they are joined with file names thousands of times per second in the keepers and in ``stats``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import NamedTuple

V1_CONTROLLERS = frozenset(
    "blkio cpu cpuacct cpuset debug devices freezer hugetlb memory misc net_cls net_prio perf_event pids rdma".split()
)
"""Words that name a controller among a v1 mount's options; all others (``xattr``, ``clone_children``, ...) are flags."""


class Hierarchy(NamedTuple):
    """One mounted cgroup file system. ``name`` is that of a named v1 hierarchy (``systemd``), else empty."""

    mount: str
    controllers: frozenset[str]
    version: int
    name: str = ""


class Layout(NamedTuple):
    """The hierarchies in which a group has to exist. ``v1`` in mount order, ``unified`` None on a pure v1 machine."""

    v1: tuple[Hierarchy, ...]
    unified: Hierarchy | None

    @property
    def mode(self) -> str:
        """``v2``, ``v1`` or ``hybrid``."""
        if not self.v1:
            return "v2"
        return "v1" if self.unified is None else "hybrid"

    @property
    def controllers(self) -> frozenset[str]:
        """Names of all controllers that some hierarchy offers, as the kernel spells them (v1 ``blkio`` is v2 ``io``)."""
        found = frozenset(self.unified.controllers if self.unified else ())
        for hierarchy in self.v1:
            found |= hierarchy.controllers
        return found

    def hierarchy(self, controller: str) -> Hierarchy | None:
        """The v1 hierarchy of ``controller``, else the unified one if it offers it, else None."""
        for hierarchy in self.v1:
            if controller in hierarchy.controllers:
                return hierarchy
        if self.unified is not None and controller in self.unified.controllers:
            return self.unified
        return None


def detect(root: str = "/sys/fs/cgroup") -> Layout:
    """Find the hierarchies mounted at or below ``root``; raises ``OSError`` (ENOENT) when there is none."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        found = parse_mountinfo(stream, root)
    if found.unified is not None:
        found = Layout(found.v1, _with_controllers(found.unified))
    if not found.v1 and found.unified is None:
        raise OSError(errno.ENOENT, "no cgroup hierarchy is mounted here; mount cgroup2", root)
    return found


def parse_mountinfo(lines: Iterable[str], root: str) -> Layout:
    """Hierarchies at or below ``root`` in the text of a mountinfo file (proc_pid_mountinfo(5)); v2 controllers are not read.

    A hierarchy that is mounted twice counts once, at its first mount; a bind of a subtree counts only if nothing better is there.
    """
    v1: dict[tuple[frozenset[str], str], tuple[bool, Hierarchy]] = {}
    unified: tuple[bool, Hierarchy] | None = None
    prefix = root.rstrip("/") + "/"
    for line in lines:
        left, separator, right = line.partition(" - ")
        if not separator:
            continue
        kind, _, options = right.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        fields = left.split(" ")
        mount = _unescape(fields[4])
        if mount != root and not mount.startswith(prefix):
            continue
        whole = fields[3] == "/"
        if kind == "cgroup2":
            if unified is None or (whole and not unified[0]):
                unified = (whole, Hierarchy(mount, frozenset(), 2))
            continue
        words = options.strip().split(",")
        controllers = frozenset(words) & V1_CONTROLLERS
        name = next((word[5:] for word in words if word.startswith("name=")), "")
        known = v1.get((controllers, name))
        if known is None or (whole and not known[0]):
            v1[controllers, name] = (whole, Hierarchy(mount, controllers, 1, name))
    return Layout(tuple(h for _, h in v1.values()), unified[1] if unified else None)


def _with_controllers(unified: Hierarchy) -> Hierarchy:
    with open(os.path.join(unified.mount, "cgroup.controllers"), encoding="ascii") as stream:
        return Hierarchy(unified.mount, frozenset(stream.read().split()), 2)


def _unescape(text: str) -> str:
    """Undo mountinfo's octal escapes of space, tab, newline and backslash."""
    if "\\" not in text:
        return text
    for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escaped, plain)
    return text
