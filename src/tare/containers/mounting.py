"""A container's mount points at work: volumes made at its creation, sources readied at its start, let go at its end.

``entries`` is called once per start and ``release`` once after it, also when the start failed; both may be repeated without harm.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tare.containers.copy_up import copy_up
from tare.containers.mounts import check_tmpfs, oci_mount, propagate
from tare.errors import InvalidArgument, NotFound, StartFailed, TareError
from tare.linux import mountinfo
from tare.linux.constants import O_PATH, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS
from tare.linux.mount import openat2

if TYPE_CHECKING:
    from tare.containers.record import MountPoint, Record
    from tare.events import EventBus
    from tare.store.snapshots import Snapshots
    from tare.volumes.service import Volumes

_log = logging.getLogger(__name__)


class ContainerMounts:
    """Volumes, binds and tmpfs of containers."""

    def __init__(self, volumes: Volumes, snapshots: Snapshots, events: EventBus) -> None:
        self._volumes = volumes
        self._snapshots = snapshots
        self._events = events
        self._holding: set[str] = set()

    # -- creation and removal of the container ------------------------------------------------------------------------------------------

    def make_volumes(self, record: Record) -> list[str]:
        """Make the volumes that a new container mentions; returns those that did not exist. On failure none of them stays."""
        made: list[str] = []
        try:
            for point in record.mounts:
                if point.type != "volume":
                    continue
                fresh = not self._volumes.exists(point.name)
                try:
                    self._volumes.create(point.name, point.driver, point.labels, point.driver_options, anonymous=point.anonymous)
                except NotFound as error:  # of the driver; a 404 would tell clients that the image is missing
                    raise InvalidArgument(str(error)) from None
                if fresh:
                    made.append(point.name)
        except BaseException:
            self.unmake(made)
            raise
        return made

    def unmake(self, names: list[str]) -> None:
        """The container could not be created after all."""
        for name in names:
            try:
                self._volumes.remove(name, force=True)
            except (TareError, OSError) as error:
                _log.warning("volume %s: not removed: %s", name, error)

    async def remove_anonymous(self, record: Record) -> None:
        """The container is gone: its anonymous volumes go unless another one mentions them."""
        for point in record.mounts:
            if point.type == "volume" and point.anonymous and not self._volumes.users(point.name):
                try:
                    await self._volumes.remove_aside(point.name, force=True)
                except (TareError, OSError) as error:
                    _log.warning("volume %s: not removed: %s", point.name, error)

    # -- start and end of its task ------------------------------------------------------------------------------------------------------

    async def entries(self, record: Record) -> tuple[list[dict[str, Any]], str]:
        """OCI mounts of all mount points, and the propagation that the root needs for them ("" for none)."""
        points, root = propagate(record.mounts, mountinfo.read)
        sources: dict[str, str] = {}
        for point in points:
            if point.type == "volume":
                sources[point.name] = str(await self._volume(record, point))
            elif point.type == "bind":
                _bind_source(point)
            elif not point.from_mounts:
                check_tmpfs(point.options)
        self._holding.add(record.id)
        for point in points:
            if point.type == "volume":
                self._announce("mount", record, point)
        return [oci_mount(point, sources) for point in points], root

    async def _volume(self, record: Record, point: MountPoint) -> Path:
        name = point.name
        volume = self._volumes.create(name, point.driver, point.labels, point.driver_options, anonymous=point.anonymous)
        path = await self._volumes.hold(name, record.id)
        if point.subpath:
            _check_subpath(path, point.subpath)
        elif point.copy_up and not any(os.scandir(path)):

            def copy() -> None:
                with self._snapshots.mounted(record.id) as root:
                    copy_up(root, point.destination, path, keep_owner=volume.keeps_owner)

            await asyncio.to_thread(copy)
        return path

    async def release(self, record: Record) -> None:
        """The task ended, or did not come to be."""
        await self._volumes.release(_names(record), record.id)
        if record.id in self._holding:
            self._holding.discard(record.id)
            for point in record.mounts:
                if point.type == "volume":
                    self._events.publish("volume", "unmount", point.name, {"container": record.id, "driver": point.driver or "local"})

    def adopt(self, record: Record) -> None:
        """The task ran on while the daemon was away."""
        self._holding.add(record.id)
        self._volumes.adopt(_names(record), record.id)

    def _announce(self, action: str, record: Record, point: MountPoint) -> None:
        attributes = {
            "container": record.id,
            "destination": point.destination,
            "driver": point.driver or "local",
            "propagation": point.propagation,
            "read/write": str(point.writable).lower(),
        }
        self._events.publish("volume", action, point.name, attributes)


def _names(record: Record) -> list[str]:
    return [point.name for point in record.mounts if point.type == "volume"]


def _bind_source(point: MountPoint) -> None:
    """A bind's source must exist: one of ``--mount`` is demanded, one of ``-v`` is made."""
    if os.path.exists(point.source):
        return
    if point.from_mounts:
        raise InvalidArgument(f'invalid mount config for type "bind": bind source path does not exist: {point.source}')
    try:
        os.makedirs(point.source, mode=0o755, exist_ok=True)
    except OSError as error:
        text = os.strerror(error.errno or 0).lower()
        raise StartFailed(f"error while creating mount source path '{point.source}': mkdir {error.filename}: {text}") from None


def _check_subpath(volume: Path, subpath: str) -> None:
    """Fail early and clearly; the runtime resolves again, by descriptor, what it mounts."""
    fd = os.open(volume, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(openat2(fd, subpath, O_PATH, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS))
    except OSError as error:
        text = "it leads out of the volume" if error.errno == errno.EXDEV else os.strerror(error.errno or 0).lower()
        raise StartFailed(f"cannot access path {volume / subpath}: {text}") from None
    finally:
        os.close(fd)
