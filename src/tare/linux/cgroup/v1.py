"""One group in all v1 hierarchies: a directory of the same path in each (Documentation/admin-guide/cgroup-v1).

Particulars of v1 that shape this file:

- A process can enter a cpuset group only when that group has cpus and mems, and a new group has none. They are copied from the parent, and
  ``clone_children`` is set on parents that we make, so that the kernel does the copying for every later group.
- A frozen process does not die of SIGKILL until it is thawed, and processes fork while one kills: freeze, signal all, thaw.
- A group may be renamed within its parent, with its processes in it: that lets a pool of prepared groups take their final names.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import Any

from tare.linux.cgroup import apply, convert, devices, files, stats
from tare.linux.cgroup.detect import Hierarchy, Layout

FREEZE_SECONDS = 10.0


class V1Group:
    """The v1 part of a group; ``path`` is absolute below each mount point."""

    def __init__(self, layout: Layout, path: str) -> None:
        self._hierarchies = layout.v1
        self.path = path
        self.directories = [hierarchy.mount + path for hierarchy in layout.v1]
        self._by_controller = {controller: hierarchy.mount + path for hierarchy in layout.v1 for controller in hierarchy.controllers}

    def directory(self, controller: str) -> str | None:
        """The group's directory in the hierarchy of ``controller``."""
        return self._by_controller.get(controller)

    def create(self) -> None:
        """Make the group in each hierarchy; on failure remove what this call has made."""
        made: list[str] = []
        try:
            for hierarchy, directory in zip(self._hierarchies, self.directories, strict=True):
                _make(hierarchy, directory, made)
        except OSError:
            for directory in reversed(made):
                try:
                    os.rmdir(directory)
                except OSError:
                    pass
            raise

    def apply(self, resources: convert.Resources, fresh: bool) -> list[str]:
        """Set limits that have a v1 hierarchy; warnings as ``apply.run``."""
        rules = resources.get("devices")
        if rules:
            self._apply_devices(rules, fresh)
        return apply.run(convert.v1_writes(resources), self.directory)

    def _apply_devices(self, rules: list[dict[str, Any]], fresh: bool) -> None:
        target = devices.Policy.of(rules)
        directory = self.directory("devices")
        if directory is None:
            if target.allow and not target.exceptions:
                return
            raise OSError(errno.EOPNOTSUPP, "device rules cannot be enforced: the devices controller is not mounted")
        present = None if fresh else devices.parse_list(files.read(directory, "devices.list"))
        opened: dict[str, int] = {}
        try:
            for file, text in devices.v1_writes(target, present):
                path = f"{directory}/{file}"
                if file not in opened:
                    opened[file] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(opened[file], text.encode())
                except OSError as error:
                    # Allowing what our own group may not use takes nothing away from anyone's safety; it just will not work.
                    if error.errno == errno.EPERM and file == "devices.allow":
                        continue
                    number = error.errno or errno.EIO
                    raise OSError(number, f"{os.strerror(number)} (writing {text!r})", path) from None
        finally:
            for descriptor in opened.values():
                os.close(descriptor)

    def _read(self, controller: str, file: str) -> str:
        directory = self.directory(controller)
        return "" if directory is None else files.read_or(directory, file)

    def stats(self) -> stats.CgroupStats:
        """A sample; raises ``FileNotFoundError`` when the group is gone."""
        if not os.path.isdir(self.directories[0]):
            raise FileNotFoundError(errno.ENOENT, "no such control group", self.directories[0])
        return stats.read_v1(self._read)

    def oom_kills(self) -> int:
        """Processes that the out-of-memory killer took in this group, and below it where groups are nested."""
        directory = self.directory("memory")
        if directory is None:
            return 0
        total = 0
        for path in files.walk(directory):
            total += stats.parse_keyed(files.read_or(path, "memory.oom_control")).get("oom_kill", 0)
        return total

    @property
    def can_freeze(self) -> bool:
        return "freezer" in self._by_controller

    def freeze(self) -> None:
        """Stop all processes; returns when they are stopped, or thaws and raises ETIMEDOUT."""
        directory = self._by_controller["freezer"]
        deadline = time.monotonic() + FREEZE_SECONDS
        pause = 0.0001
        while True:
            # Written again each round: a process forked meanwhile is caught only by a new pass.
            files.write(directory, "freezer.state", "FROZEN")
            if files.read(directory, "freezer.state").strip() == "FROZEN":
                return
            if time.monotonic() >= deadline:
                self.thaw()
                raise TimeoutError(errno.ETIMEDOUT, "processes did not freeze", directory)
            time.sleep(pause)
            pause = min(pause * 2, 0.02)

    def thaw(self) -> None:
        files.write(self._by_controller["freezer"], "freezer.state", "THAWED")

    def frozen(self) -> bool:
        directory = self.directory("freezer")
        return directory is not None and files.read_or(directory, "freezer.state").strip() != "THAWED"

    def pids(self) -> list[int]:
        return sorted(files.pids(self.directories[0]))

    def kill(self) -> None:
        """SIGKILL every process, also those that are forked while this runs."""
        frozen = False
        if self.can_freeze:
            try:
                self.freeze()
                frozen = True
            except OSError:
                frozen = False  # kill what can be reached; the rounds below catch what was forked meanwhile
        try:
            signalled: set[int] = set()
            for _ in range(50):
                fresh = [pid for pid in files.pids(self.directories[0]) if pid not in signalled]
                for pid in fresh:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                signalled.update(fresh)
                if frozen or not fresh:
                    break
        finally:
            if self.can_freeze:
                try:
                    self.thaw()
                except FileNotFoundError:
                    pass

    def remove(self) -> None:
        for directory in self.directories:
            files.remove_tree(directory)

    def rename(self, new_path: str) -> None:
        """Take the name ``new_path`` in each hierarchy; all or none."""
        done: list[tuple[str, str]] = []
        targets = [hierarchy.mount + new_path for hierarchy in self._hierarchies]
        try:
            for old, new in zip(self.directories, targets, strict=True):
                os.rename(old, new)
                done.append((old, new))
        except OSError:
            for old, new in reversed(done):
                os.rename(new, old)
            raise


def _make(hierarchy: Hierarchy, directory: str, made: list[str]) -> None:
    """Make one group with its parents. A leftover without processes is replaced, so that no old limit lives on."""
    cpuset = "cpuset" in hierarchy.controllers
    try:
        os.mkdir(directory, 0o755)
    except FileNotFoundError:
        _make_parents(hierarchy, directory, made)
        os.mkdir(directory, 0o755)
    except FileExistsError:
        replace_leftover(directory)
    made.append(directory)
    if cpuset:
        _inherit_cpuset(directory)


def _make_parents(hierarchy: Hierarchy, directory: str, made: list[str]) -> None:
    relative = directory[len(hierarchy.mount) :].strip("/").split("/")[:-1]
    current = hierarchy.mount
    for name in relative:
        current = f"{current}/{name}"
        try:
            os.mkdir(current, 0o755)
        except FileExistsError:
            continue
        made.append(current)
        if "cpuset" in hierarchy.controllers:
            _inherit_cpuset(current)
            files.write(current, "cgroup.clone_children", "1")


def _inherit_cpuset(directory: str) -> None:
    """Fill empty ``cpuset.cpus`` and ``cpuset.mems`` from the parent; empty means that its ``clone_children`` is off."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if files.read(directory, file).strip():
            continue
        parent = os.path.dirname(directory)
        value = files.read(parent, file).strip()
        if not value:  # a parent that someone else made and never filled
            _inherit_cpuset(parent)
            value = files.read(parent, file).strip()
        files.write(directory, file, value)


def replace_leftover(directory: str) -> None:
    """Make an existing group anew; ``FileExistsError`` when processes live in it."""
    try:
        files.remove_tree(directory, seconds=0.05)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
        raise FileExistsError(errno.EEXIST, "the control group exists and has processes in it", directory) from None
    os.mkdir(directory, 0o755)
