"""One group in the unified hierarchy (Documentation/admin-guide/cgroup-v2.rst): all of a v2 machine, or the v2 side of a hybrid one.

Particulars of v2 that shape this file:

- A controller's files exist in a group only when every ancestor lists it in ``cgroup.subtree_control``. A group that does so may not have
  processes of its own (except the root). Processes found there belong to somebody else and are never moved: the error says so.
- Device rules are no files but a program (``tare.linux.ebpf``).
- A group cannot be renamed.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterable

from tare.linux.cgroup import apply, convert, devices, files, stats
from tare.linux.cgroup.detect import Hierarchy
from tare.linux.cgroup.v1 import replace_leftover

FREEZE_SECONDS = 10.0


class V2Group:
    """The unified part of a group; ``path`` is absolute below the mount point."""

    def __init__(self, hierarchy: Hierarchy, path: str) -> None:
        self._hierarchy = hierarchy
        self.path = path
        self.path_on_host = hierarchy.mount + path

    def create(self, controllers: Iterable[str]) -> None:
        """Make the group with ``controllers`` enabled in it; on failure remove what this call has made."""
        made: list[str] = []
        wanted = frozenset(controllers)
        try:
            try:
                os.mkdir(self.path_on_host, 0o755)
            except FileNotFoundError:
                self._make_parents(made)
                os.mkdir(self.path_on_host, 0o755)
            except FileExistsError:
                replace_leftover(self.path_on_host)
            made.append(self.path_on_host)
            if wanted:
                self.enable(wanted)
        except OSError:
            for directory in reversed(made):
                try:
                    os.rmdir(directory)
                except OSError:
                    pass
            raise

    def _make_parents(self, made: list[str]) -> None:
        current = self._hierarchy.mount
        for name in self.path.strip("/").split("/")[:-1]:
            current = f"{current}/{name}"
            try:
                os.mkdir(current, 0o755)
            except FileExistsError:
                continue
            made.append(current)

    def enable(self, wanted: frozenset[str]) -> None:
        """Turn ``wanted`` on down the path, as far as the kernel offers them; raises EBUSY when a parent has processes of its own."""
        parent = os.path.dirname(self.path_on_host)
        wanted &= self._hierarchy.controllers
        if wanted <= _words(parent, "cgroup.subtree_control"):
            return
        current = self._hierarchy.mount
        _enable_in(current, wanted)
        for name in self.path.strip("/").split("/")[:-1]:
            current = f"{current}/{name}"
            _enable_in(current, wanted)

    def apply(self, resources: convert.Resources, fresh: bool, only: frozenset[str] | None = None) -> list[str]:
        """Set limits; with ``only`` just those of these controllers (a hybrid machine), device rules not among them."""
        rules = resources.get("devices")
        if rules and only is None:
            self._apply_devices(devices.Policy.of(rules))
        cpu = resources.get("cpu") or {}
        now = "max 100000"
        if not fresh and bool(cpu.get("quota")) != bool(cpu.get("period")):
            now = files.read_or(self.path_on_host, "cpu.max", now)
        writes = convert.v2_writes(resources, now)
        if only is not None:
            for write in writes:
                if write.required and write.controller not in only:
                    raise convert.invalid(f"resources.unified: no {write.controller} controller on the v2 side of this machine")
            writes = [write for write in writes if write.controller in only]
            if not writes:
                return []
            self.enable(frozenset(write.controller for write in writes))
        else:
            self._check_before_update(resources)
        return apply.run(writes, lambda _controller: self.path_on_host)

    def _check_before_update(self, resources: convert.Resources) -> None:
        """``memory.checkBeforeUpdate``: refuse a limit below the present use, which the kernel would enforce by killing."""
        memory = resources.get("memory") or {}
        limit = memory.get("limit") or 0
        if not memory.get("checkBeforeUpdate") or limit <= 0:
            return
        usage = int(files.read_or(self.path_on_host, "memory.current", "0"))
        if limit < usage:
            raise OSError(errno.EBUSY, f"memory.limit {limit} is below the present usage {usage}", f"{self.path_on_host}/memory.max")

    def _apply_devices(self, policy: devices.Policy) -> None:
        from tare.linux import ebpf  # ctypes is loaded only where a program is needed

        descriptor = os.open(self.path_on_host, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            ebpf.set_device_policy(descriptor, policy)
        finally:
            os.close(descriptor)

    def stats(self) -> stats.CgroupStats:
        """A sample; raises ``FileNotFoundError`` when the group is gone."""
        if not os.path.isdir(self.path_on_host):
            raise FileNotFoundError(errno.ENOENT, "no such control group", self.path_on_host)
        return stats.read_v2(lambda _controller, file: files.read_or(self.path_on_host, file))

    def oom_kills(self) -> int:
        """Processes that the out-of-memory killer took in this group and below it."""
        return stats.parse_keyed(files.read_or(self.path_on_host, "memory.events")).get("oom_kill", 0)

    def freeze(self) -> None:
        """Stop all processes; returns when they are stopped, or thaws and raises ETIMEDOUT."""
        descriptor = os.open(f"{self.path_on_host}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            files.write(self.path_on_host, "cgroup.freeze", "1")
            poller = select.poll()
            poller.register(descriptor, select.POLLPRI)
            deadline = time.monotonic() + FREEZE_SECONDS
            while stats.parse_keyed(os.pread(descriptor, 4096, 0).decode()).get("frozen") != 1:
                left = deadline - time.monotonic()
                if left <= 0:
                    self.thaw()
                    raise TimeoutError(errno.ETIMEDOUT, "processes did not freeze", self.path_on_host)
                poller.poll(left * 1000)
        finally:
            os.close(descriptor)

    def thaw(self) -> None:
        files.write(self.path_on_host, "cgroup.freeze", "0")

    def frozen(self) -> bool:
        return files.read_or(self.path_on_host, "cgroup.freeze").strip() == "1"

    def pids(self) -> list[int]:
        return sorted(files.pids(self.path_on_host))

    def kill(self) -> bool:
        """SIGKILL every process by one write (5.14); False when the kernel cannot. Frozen processes die too."""
        try:
            files.write(self.path_on_host, "cgroup.kill", "1")
        except FileNotFoundError:
            return False
        return True

    def remove(self) -> None:
        files.remove_tree(self.path_on_host)


def _words(directory: str, file: str) -> frozenset[str]:
    return frozenset(files.read(directory, file).split())


def _enable_in(directory: str, wanted: frozenset[str]) -> None:
    missing = sorted(wanted - _words(directory, "cgroup.subtree_control"))
    if not missing:
        return
    try:
        files.write(directory, "cgroup.subtree_control", " ".join(f"+{name}" for name in missing))
        return
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _occupied(directory) from None
    for name in missing:  # one of them is refused (not delegated, real-time processes, ...): the others still count
        try:
            files.write(directory, "cgroup.subtree_control", f"+{name}")
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise _occupied(directory) from None
            if error.errno not in (errno.ENOENT, errno.EINVAL, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
                raise


def _occupied(directory: str) -> OSError:
    return OSError(
        errno.EBUSY,
        "this control group has processes of its own, so controllers cannot be passed on to groups below it; "
        "move them into a leaf group or choose another cgroup parent",
        f"{directory}/cgroup.subtree_control",
    )
