"""RUN: a command in a container of our own runtime, whose upper directory becomes the layer.

    layers of the state so far ──► snapshot ──► task ──► exit 0 ──► tar of the upper directory ──► layer store

There is no container record: what a RUN has (snapshot, run directory, mounts for ``RUN --mount``) is known by an entry ``run:ID`` in the
metadata, written before the first of it exists and deleted after the last is gone. What a killed daemon leaves is found by these entries
at the next start (``recover``): the task is killed, the rest is swept.

What mounting leaves behind in the upper directory, empty files and directories that only served as mount points, is taken out again, so
that a RUN which writes nothing makes no layer.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import signal
import socket
import stat
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from tare.builder.runmounts import Places
from tare.containers import cdi
from tare.containers.names import new_id
from tare.containers.record import MountPoint, Record
from tare.containers.task import Attachment, Exit, Task
from tare.containers.validate import normalise_host_config
from tare.errors import Conflict
from tare.linux.constants import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from tare.linux.mount import openat2
from tare.oci.digest import Digest
from tare.store.tartree import DIRECTORY
from tare.wire.container import Config, EndpointSettings, HostConfig, LogConfig

if TYPE_CHECKING:
    from tare.config import EngineConfig
    from tare.containers.launch import Launcher
    from tare.containers.task import TaskDriver
    from tare.store.metadata import Metadata
    from tare.store.snapshots import Snapshots

_log = logging.getLogger(__name__)
_RUN = "run:"
_FRAME = 8
_STDERR = 2
Output = Callable[[bytes, bool], Awaitable[None]]
"""Gets what the command writes, and whether to its standard error. It may wait: then the command does too."""


_SHARE = 512 << 20
"""Memory that a command of a build is reckoned to need."""


def at_once() -> int:
    """How many commands may run at the same time: two for each core, as they wait for networks and disks, as far as there is memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(2, min(2 * len(os.sched_getaffinity(0)), memory // _SHARE))


@dataclass(frozen=True)
class Job:
    """One command to run."""

    id: str
    config: Config
    host: HostConfig
    diff_ids: tuple[Digest, ...]
    mounts: tuple[MountPoint, ...] = ()
    stubs: tuple[str, ...] = field(default=())
    """Further paths where something is mounted."""


class Runner:
    """Runs commands for the builds of one engine."""

    def __init__(self, config: EngineConfig, launcher: Launcher, driver: TaskDriver, snapshots: Snapshots, metadata: Metadata) -> None:
        self._config = config
        self._launcher = launcher
        self._driver = driver
        self._snapshots = snapshots
        self._records = metadata.builds
        self.places = Places(config, snapshots)

    def devices(self) -> cdi.Known:
        """What ``RUN --device`` may name. In a worker thread."""
        return cdi.known_devices(self._config.cdi_spec_dirs)

    # -- after a crash ------------------------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Kill and remove what an earlier daemon's builds left. Before anybody sweeps run directories."""
        for entry, _, _ in self._records.all():
            if not entry.startswith(_RUN):
                continue
            id = entry.removeprefix(_RUN)
            task = await self._driver.recover(id, self._launcher.run_dir(id))
            if task is not None:
                await self._kill(task)
                await task.release()
            await asyncio.to_thread(self._remove_files, id)
            self._records.delete(entry)
        await asyncio.to_thread(self.places.clear)

    # -- one run ------------------------------------------------------------------------------------------------------------------------

    def begin(self) -> str:
        """An id for a run, on record from now on; ``end`` it."""
        id = new_id()
        self._records.put(_RUN + id, None, b"{}")
        return id

    async def end(self, id: str) -> None:
        """Remove all that the run has. Idempotent."""
        await asyncio.to_thread(self._remove_files, id)
        await asyncio.to_thread(self.places.remove, id)
        self._records.delete(_RUN + id)

    async def run(self, job: Job, output: Output) -> Exit:
        """Run the command to its end. A cancellation kills it first. The upper directory waits for ``changes``."""
        record = self._record(job)
        await asyncio.to_thread(self._snapshots.prepare, job.id, job.diff_ids)
        self._launcher.make_directories(record)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        task: Task | None = None
        try:
            attachment = Attachment(theirs, stdin=False, stdout=True, stderr=True, multiplexed=True)
            try:
                launch = await self._launcher.prepare(record, [attachment])
            except BaseException:
                theirs.close()
                raise
            try:
                task = await self._driver.start(launch)
                record.state.pid = task.pid
                self._launcher.started(record)
                await _relay(ours, output)
                exit = await task.wait()
            except BaseException:
                if task is not None:
                    await asyncio.shield(self._kill(task))
                raise
            finally:
                await asyncio.shield(self._finish(record, task))
            return exit
        finally:
            ours.close()

    async def _finish(self, record: Record, task: Task | None) -> None:
        await self._launcher.release(record)
        await self._launcher.forget(record)
        if task is not None:
            await task.release()

    @staticmethod
    async def _kill(task: Task) -> None:
        if task.exit is None:
            with suppress(Conflict):
                await task.kill(signal.SIGKILL)
        await task.wait()

    def changes(self, job: Job, latest_ns: int | None = None) -> Iterator[bytes]:
        """What the command wrote, as the tar of a layer, no time in it later than ``latest_ns``. In a worker thread."""
        with self._snapshots.below(job.id) as lower:
            whole = self._snapshots.path(job.id) / "whole"
            upper = os.open(whole if whole.is_dir() else whole.with_name("upper"), DIRECTORY)
            try:
                _drop_stubs(upper, lower, [*_STUBS, *(point.destination for point in job.mounts), *job.stubs], copied=whole.is_dir())
                if latest_ns is not None:
                    _limit_times(upper, latest_ns)
            finally:
                os.close(upper)
        return self._snapshots.changeset(job.id)

    def _record(self, job: Job) -> Record:
        host = msgspec.structs.replace(job.host, log_config=LogConfig(type="none"))
        normalise_host_config(host, job.config, self._config)
        self._launcher.check(host)
        private = not host.network_mode.startswith("container:") and host.network_mode not in ("host", "none")
        if private and not job.config.hostname:
            job.config.hostname = job.id[:12]
        name = "bridge" if host.network_mode in ("", "default") else host.network_mode
        return Record(
            id=job.id,
            name=f"build-{job.id[:12]}",
            created=time.time_ns(),
            image="",
            config=job.config,
            host_config=host,
            networks={name: EndpointSettings()} if private else {},
            diff_ids=[str(diff_id) for diff_id in job.diff_ids],
            driver=self._launcher.storage_driver,
            mounts=list(job.mounts),
        )

    def _remove_files(self, id: str) -> None:
        self._snapshots.remove(id)
        for directory in (self._config.container_dir(id), self._config.run_dir(id)):
            shutil.rmtree(directory, ignore_errors=True)


async def _relay(sock: socket.socket, output: Output) -> None:
    """Hand on the output, frame by frame, until its end."""
    loop = asyncio.get_running_loop()
    waiting = b""
    while chunk := await loop.sock_recv(sock, 1 << 16):
        waiting += chunk
        while len(waiting) >= _FRAME:
            end = _FRAME + int.from_bytes(waiting[4:_FRAME], "big")
            if len(waiting) < end:
                break
            await output(waiting[_FRAME:end], waiting[0] == _STDERR)
            waiting = waiting[end:]


def _limit_times(directory: int, latest_ns: int) -> None:
    """Bring every later time in a tree down to ``latest_ns`` (nothing runs in it any more)."""
    for _, names, files, inner in os.fwalk(".", topdown=False, dir_fd=directory):
        for name in (*names, *files):
            if os.lstat(name, dir_fd=inner).st_mtime_ns > latest_ns:
                os.utime(name, ns=(latest_ns, latest_ns), dir_fd=inner, follow_symlinks=False)


_STUBS = (
    "/etc/resolv.conf", "/etc/hostname", "/etc/hosts", "/proc", "/sys", "/dev/shm", "/dev/pts", "/dev/mqueue", "/dev/console", "/dev",
)  # fmt: skip
"""Where every container has a mount, inner ones first."""


def _drop_stubs(upper: int, lower: int, paths: Sequence[str], *, copied: bool) -> None:
    """Remove mount points that only the mounting has made, and the directories that were made or copied up for them alone.

    ``copied``: the upper directory is a whole root, so what the layers have stays in it.
    """
    for path in sorted(set(paths), key=lambda path: -path.count("/")):
        parts = [part for part in os.fsencode(path).split(b"/") if part not in (b"", b".", b"..")]
        if parts and not _exists(lower, b"/".join(parts)):
            _drop(upper, lower, parts, copied)


def _exists(root: int, path: bytes) -> bool:
    try:
        os.close(openat2(root, path, os.O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    return True


def _drop(upper: int, lower: int, parts: Sequence[bytes], copied: bool) -> None:
    for depth in range(len(parts), 0, -1):
        if copied and _exists(lower, b"/".join(parts[:depth])):
            return
        try:
            parent = openat2(upper, b"/".join(parts[: depth - 1]) or b".", DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        except OSError:
            return
        try:
            if not _drop_one(parent, parts[depth - 1], None if depth == len(parts) else _status(lower, b"/".join(parts[:depth]))):
                return
        finally:
            os.close(parent)


def _status(root: int, path: bytes) -> os.stat_result | None:
    try:
        file = openat2(root, path, os.O_PATH | os.O_NOFOLLOW, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except OSError:
        return None
    try:
        return os.fstat(file)
    finally:
        os.close(file)


def _drop_one(parent: int, name: bytes, below: os.stat_result | None) -> bool:
    """Remove an empty stub; or a directory that is empty but for it and, if the layers have it, unchanged."""
    try:
        status = os.lstat(name, dir_fd=parent)
        if stat.S_ISREG(status.st_mode) and not status.st_size:
            os.unlink(name, dir_fd=parent)
            return True
        if not stat.S_ISDIR(status.st_mode):
            return False
        if below is not None and any(getattr(status, each) != getattr(below, each) for each in ("st_mode", "st_uid", "st_gid")):
            return False
        os.rmdir(name, dir_fd=parent)
    except OSError:
        return False
    return True
