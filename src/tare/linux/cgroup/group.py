"""``Cgroup``: one control group of a container, whatever the machine's layout. Hybrid is not a third implementation but both at once.

Life: ``create`` → ``apply`` → ``attach`` … ``stats``, ``freeze``, ``kill`` … ``remove``. The object holds no descriptors and no state but
"made by me just now", so the daemon can build one for a running container at any time.

Cost (6.18, ten hierarchies): ``create``, ``apply`` and ``remove`` 0.4 ms each. ``attach`` 0.4 ms, but 6 to 12 ms where the kernel waits for
an RCU grace period before it moves a process: ``favor.fast_migration``, called once by the daemon or the launcher, avoids the wait.
"""

from __future__ import annotations

import errno
import os
import signal
import time

from tare.linux.cgroup import files
from tare.linux.cgroup.convert import Resources, unsupported_on_v2
from tare.linux.cgroup.detect import Layout
from tare.linux.cgroup.stats import CgroupStats
from tare.linux.cgroup.v1 import V1Group
from tare.linux.cgroup.v2 import V2Group

V2_CONTROLLERS = ("cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma")
"""Enabled for every group on a v2 machine, where present."""


class Cgroup:
    """A group by its ``path`` in all hierarchies of ``layout``, such as ``/tare/<id>``."""

    def __init__(self, layout: Layout, path: str) -> None:
        self.layout = layout
        self.path = _clean(path)
        self._fresh = False
        self._bind()

    def _bind(self) -> None:
        self._v1 = V1Group(self.layout, self.path) if self.layout.v1 else None
        self._v2 = V2Group(self.layout.unified, self.path) if self.layout.unified is not None else None

    def __repr__(self) -> str:
        return f"Cgroup({self.layout.mode}, {self.path!r})"

    def directories(self) -> list[str]:
        """The group's directory in every hierarchy."""
        found = list(self._v1.directories) if self._v1 else []
        if self._v2:
            found.append(self._v2.path_on_host)
        return found

    def exists(self) -> bool:
        """True when some hierarchy has the group (a partial leftover counts)."""
        return any(os.path.isdir(directory) for directory in self.directories())

    def create(self) -> None:
        """Make the group and its missing parents everywhere.

        A leftover without processes is replaced; one with processes raises ``FileExistsError``. On failure nothing new is left behind.
        """
        if self._v1:
            self._v1.create()
        if self._v2:
            try:
                self._v2.create(() if self._v1 else V2_CONTROLLERS)
            except OSError:
                if self._v1:
                    self._v1.remove()
                raise
        self._fresh = True

    def procs_paths(self) -> list[str]:
        """``cgroup.procs`` of every hierarchy: a pid (``0``: the writer) written to each of them joins the group."""
        return [f"{directory}/cgroup.procs" for directory in self.directories()]

    def open_procs(self) -> list[int]:
        """The ``procs_paths`` opened for writing (close-on-exec): a process that holds them joins with one write each, and needs no path.
        The caller owns and closes them."""
        opened: list[int] = []
        try:
            for path in self.procs_paths():
                opened.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        return opened

    def open_directory(self) -> int | None:
        """The unified directory as a descriptor for ``clone3(CLONE_INTO_CGROUP)``; None without a unified hierarchy."""
        if self._v2 is None:
            return None
        return os.open(self._v2.path_on_host, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def attach(self, pid: int = 0) -> None:
        """Move a process (with all threads) into the group in every hierarchy; 0 is the caller."""
        data = b"%d" % pid
        for path in self.procs_paths():
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, data)
            except OSError as error:
                number = error.errno or errno.EIO
                raise OSError(number, f"{os.strerror(number)} (process {pid})", path) from None
            finally:
                os.close(descriptor)

    def apply(self, resources: Resources) -> list[str]:
        """Set OCI ``linux.resources``.

        Returns warnings for limits that this machine does not offer or that the host's confinement forbids; raises ``OSError`` naming
        file and value for those that the kernel refuses.
        """
        fresh, self._fresh = self._fresh, False
        if self._v1 is None:
            assert self._v2 is not None
            return [*unsupported_on_v2(resources), *self._v2.apply(resources, fresh)]
        if self._v2 is None or not self.layout.unified or not self.layout.unified.controllers:
            return self._v1.apply(resources, fresh)
        # Hybrid with controllers on the v2 side (say hugetlb): each limit goes where its controller is.
        moved = self.layout.unified.controllers
        warnings = self._v1.apply(_without(resources, moved), fresh)
        return warnings + self._v2.apply(resources, fresh, only=moved)

    def stats(self) -> CgroupStats:
        """What the group has used; ``FileNotFoundError`` when it is gone."""
        if self._v1 is not None:
            return self._v1.stats()
        assert self._v2 is not None
        return self._v2.stats()

    def oom_kills(self) -> int:
        """Processes killed for want of memory, in this group and below."""
        if self._v1 is not None and self._v1.directory("memory") is not None:
            return self._v1.oom_kills()
        return self._v2.oom_kills() if self._v2 is not None else 0

    def freeze(self) -> None:
        """Stop all processes; returns when all are stopped. ``TimeoutError`` (and thawed again) when they do not within 10 s."""
        if self._v1 is not None and self._v1.can_freeze:
            self._v1.freeze()
        elif self._v2 is not None:
            self._v2.freeze()
        else:
            raise OSError(errno.EOPNOTSUPP, "processes cannot be paused: the freezer controller is not mounted", self.path)

    def thaw(self) -> None:
        """Let the processes go on; no error when they were not stopped."""
        if self._v1 is not None and self._v1.can_freeze:
            self._v1.thaw()
        elif self._v2 is not None:
            self._v2.thaw()

    def frozen(self) -> bool:
        """True while the group is stopped or stopping."""
        if self._v1 is not None and self._v1.can_freeze:
            return self._v1.frozen()
        return self._v2 is not None and self._v2.frozen()

    def pids(self) -> list[int]:
        """All processes in the group and below it, ascending, as the caller's PID namespace numbers them."""
        if self._v2 is not None:
            return self._v2.pids()
        assert self._v1 is not None
        return self._v1.pids()

    def kill(self) -> None:
        """SIGKILL every process in the group and below it, frozen or not, and also those that are forked meanwhile.

        Does not wait: the dead have to be reaped by their parents. No error when the group is empty or gone.
        """
        try:
            if self._v2 is not None and self._v2.kill():
                if self._v1 is not None and self._v1.frozen():
                    self._v1.thaw()
            elif self._v1 is not None:
                self._v1.kill()
            else:
                self._kill_by_rounds()
        except FileNotFoundError:
            return

    def _kill_by_rounds(self) -> None:
        """v2 before 5.14: frozen processes cannot fork, and SIGKILL reaches them."""
        assert self._v2 is not None
        try:
            self._v2.freeze()
        except TimeoutError:
            pass
        try:
            for pid in self._v2.pids():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        finally:
            self._v2.thaw()

    def remove(self) -> None:
        """Remove the group and those below it everywhere; idempotent. OSError (EBUSY) when processes remain after 2 s."""
        if self._v1 is not None:
            self._v1.remove()
        if self._v2 is not None:
            self._v2.remove()

    def empty(self, seconds: float = 0.0) -> bool:
        """True when no process is left, waiting at most ``seconds`` for that."""
        deadline = time.monotonic() + seconds
        while self.exists() and self.pids():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)
        return True

    def rename(self, new_path: str) -> None:
        """Give the group another name below the same parent, with its processes and limits; v1 and hybrid only.

        As with ``create``, a leftover of that name is replaced if it has no processes.
        The kernel cannot rename on the unified side: there a group of the new name is made, the processes are moved and the old one goes.
        """
        new_path = _clean(new_path)
        if self._v1 is None:
            raise OSError(errno.EOPNOTSUPP, "a control group cannot be renamed on cgroup v2", self.path)
        if os.path.dirname(new_path) != os.path.dirname(self.path):
            raise OSError(errno.EXDEV, f"cannot rename to {new_path}: the parent differs", self.path)
        try:
            self._rename(new_path)
        except FileExistsError:
            leftover = Cgroup(self.layout, new_path)
            if leftover.pids():
                raise
            leftover.remove()
            self._rename(new_path)

    def _rename(self, new_path: str) -> None:
        assert self._v1 is not None
        unified = self.layout.unified
        target = V2Group(unified, new_path) if unified is not None else None
        if target is not None:
            os.mkdir(target.path_on_host, 0o755)
        try:
            self._v1.rename(new_path)
        except OSError:
            if target is not None:
                os.rmdir(target.path_on_host)
            raise
        if self._v2 is not None and target is not None:
            for pid in self._v2.pids():
                try:
                    files.write(target.path_on_host, "cgroup.procs", str(pid))
                except ProcessLookupError:
                    pass
            self._v2.remove()
        self.path = new_path
        self._bind()


def _clean(path: str) -> str:
    """The path in one form; EINVAL for the root itself and for anything that could lead out of it."""
    parts = [part for part in path.split("/") if part]
    if not path.startswith("/") or not parts or any(part in (".", "..") or "\n" in part or "\0" in part for part in parts):
        raise OSError(errno.EINVAL, "not an absolute path of a control group below the root", path)
    return "/" + "/".join(parts)


_MEMBERS = {"hugetlb": "hugepageLimits", "pids": "pids", "memory": "memory", "io": "blockIO", "rdma": "rdma"}
"""Which member of the resources each controller serves alone."""


def _without(resources: Resources, controllers: frozenset[str]) -> Resources:
    """The resources less the members that controllers on the unified side serve, so that v1 does not warn about them."""
    hidden = {member for controller, member in _MEMBERS.items() if controller in controllers}
    if "unified" in resources:
        hidden.add("unified")
    left = {key: value for key, value in resources.items() if key not in hidden}
    cpu = dict(left.get("cpu") or {})
    if "cpuset" in controllers:
        for key in ("cpus", "mems"):
            cpu.pop(key, None)
    if "cpu" in controllers:
        cpu = {key: value for key, value in cpu.items() if key in ("cpus", "mems")}
    if "cpu" in left:
        left["cpu"] = cpu
    return left
