"""Named and anonymous volumes of the ``local`` driver: directories that outlive containers.

On disk: ``data_root/volumes/NAME/_data`` (0711 above, the content's own mode below). What is made or filled grows under
``volumes/.new-RANDOM`` and becomes a volume by a rename, after which its record is written; a removal renames to ``.old-RANDOM`` after the
record is gone. No volume's name begins with a dot, so the next start sweeps both kinds. A directory without a record (a kill between
rename and record) is taken over by the next creation of that name when it is empty; otherwise it is left: nobody's data is guessed away.

A volume is in use while a container's record mentions it; who does is asked of the containers service through ``users``. A volume whose
options name a device is mounted while a container runs with it (``mounting``).
"""

from __future__ import annotations

import asyncio
import builtins
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tare.errors import Conflict, InvalidArgument, NotFound
from tare.volumes import quota
from tare.volumes.model import ANONYMOUS_LABEL, Volume, agree, check_name, check_options, new_name, owner, quota_bytes
from tare.volumes.mounting import VolumeMounts
from tare.volumes.usage import disk_usage

if TYPE_CHECKING:
    from tare.events import EventBus
    from tare.store.metadata import Records

_log = logging.getLogger(__name__)
_NEW, _OLD = ".new-", ".old-"


class Volumes:
    """Creates, finds and removes volumes."""

    def __init__(self, root: Path, records: Records, events: EventBus) -> None:
        self._root = root
        self._records = records
        self._events = events
        self._volumes: dict[str, Volume] = {}
        self.mounts = VolumeMounts(root)
        self.users: Callable[[str], list[str]] = lambda name: []
        """Ids of the containers that mention a volume; set by the composition root."""

    def start(self) -> None:
        """Load the records, make the root directory, finish what an earlier daemon began."""
        self._root.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.mounts.start()
        for name, _, document in self._records.all():
            self._volumes[name] = msgspec.json.decode(document, type=Volume)
        for entry in os.scandir(self._root):
            if entry.name.startswith((_NEW, _OLD)):
                self.discard(Path(entry.path))
        for volume in self._volumes.values():
            self._root.joinpath(volume.name, "_data").mkdir(mode=0o755, parents=True, exist_ok=True)

    def mountpoint(self, name: str) -> Path:
        return self._root / name / "_data"

    # -- create -----------------------------------------------------------------------------------------------------------------------

    def create(
        self,
        name: str = "",
        driver: str = "local",
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        *,
        anonymous: bool = False,
    ) -> Volume:
        """The volume of that name, made if there is none."""
        anonymous = anonymous or not name
        name = name or new_name()
        if driver not in ("", "local"):
            raise NotFound(f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found')
        check_name(name)
        check_options(name, options or {})
        if (present := self._volumes.get(name)) is not None:
            agree(present, options or {})
            return present
        if anonymous:
            labels = {ANONYMOUS_LABEL: "", **(labels or {})}
        return self._make(
            Volume(
                name=name,
                created=time.time_ns(),
                labels=None if labels is None else dict(labels),
                options=None if options is None else dict(options),
                anonymous=anonymous,
            )
        )

    def _make(self, volume: Volume) -> Volume:
        volume, staging = self.stage(volume)
        try:
            self.publish(volume, staging)
        except BaseException:
            self.discard(staging)
            raise
        return volume

    def stage(self, volume: Volume) -> tuple[Volume, Path]:
        """A directory in which a volume's ``_data`` can grow out of sight, with the owner and quota that its options ask for."""
        staging = self._root / f"{_NEW}{secrets.token_hex(8)}"
        staging.mkdir(mode=0o711)
        try:
            staging.chmod(0o711)
            data = staging / "_data"
            data.mkdir()
            uid, gid, mode = owner(volume.name, volume.options or {})
            os.chown(data, uid, gid)
            data.chmod(mode)
            if limit := quota_bytes(volume.name, volume.options or {}):
                taken = {present.project for present in self._volumes.values()}
                volume = msgspec.structs.replace(volume, project=quota.limit(data, limit, taken, volume.name))
        except BaseException:
            self.discard(staging)
            raise
        return volume, staging

    def publish(self, volume: Volume, staging: Path) -> None:
        """Make a volume of a staged directory: rename, record, event. Consumes ``staging``, or raises and leaves it to the caller."""
        if volume.name in self._volumes:
            raise Conflict(f"create {volume.name}: volume name must be unique")
        target = self._root / volume.name
        try:
            os.rmdir(target / "_data")  # the empty remains of a creation that a kill cut short
            os.rmdir(target)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise Conflict(f"create {volume.name}: directory {target} exists and is no volume's: {error.strerror}") from None
        os.rename(staging, target)
        try:
            self._records.put(volume.name, volume.name, msgspec.json.encode(volume))
        except BaseException:
            os.rename(target, staging)
            raise
        self._volumes[volume.name] = volume
        self._events.publish("volume", "create", volume.name, {"driver": volume.driver})

    # -- find -------------------------------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Volume:
        volume = self._volumes.get(name)
        if volume is None:
            raise NotFound(f"get {name}: no such volume")
        return volume

    def exists(self, name: str) -> bool:
        return name in self._volumes

    def list(self) -> list[Volume]:
        return sorted(self._volumes.values(), key=lambda volume: volume.name)

    async def usage(self) -> dict[str, tuple[int, int]]:
        """For each volume the bytes that its content takes (-1 when that cannot be told) and how many containers mention it."""
        volumes = self.list()
        sizes = await asyncio.to_thread(lambda: [self._size(volume) for volume in volumes])
        return {volume.name: (size, len(self.users(volume.name))) for volume, size in zip(volumes, sizes, strict=True)}

    def _size(self, volume: Volume) -> int:
        if volume.mounted:
            return -1
        try:
            return disk_usage(self.mountpoint(volume.name))
        except OSError:
            return -1

    # -- change and remove --------------------------------------------------------------------------------------------------------------

    def relabel(self, name: str, labels: Mapping[str, str]) -> Volume:
        """Replace a volume's labels."""
        volume = msgspec.structs.replace(self.get(name), labels=dict(labels))
        self._records.put(name, name, msgspec.json.encode(volume))
        self._volumes[name] = volume
        return volume

    def remove(self, name: str, force: bool = False) -> None:
        """Delete a volume and its content. ``Conflict`` while a container mentions it."""
        if name not in self._volumes and force:
            return
        self.discard(self._withdraw(name))

    async def remove_aside(self, name: str, force: bool = False) -> None:
        """``remove``, with the content deleted in a thread."""
        if name not in self._volumes and force:
            return
        await asyncio.to_thread(self.discard, self._withdraw(name))

    def _withdraw(self, name: str) -> Path:
        """Take a volume out of sight; what it held lies in the directory that is returned."""
        volume = self.get(name)
        if users := self.users(name):
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        try:
            self.mounts.forget(name)
        except OSError as error:
            raise Conflict(f"remove {name}: {error.strerror}") from None
        doomed = self._root / f"{_OLD}{secrets.token_hex(8)}"
        self._records.delete(name)
        del self._volumes[name]
        try:
            os.rename(self._root / name, doomed)
        except FileNotFoundError:
            _log.warning("volume %s: its directory had gone", name)
        if volume.project:
            quota.lift(self._root, volume.project)
        self._events.publish("volume", "destroy", name, {"driver": volume.driver})
        return doomed

    @staticmethod
    def discard(doomed: Path) -> None:
        """Delete a directory that is nobody's any more; what cannot be deleted is for the next start's sweep."""
        try:
            shutil.rmtree(doomed)
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.warning("%s: not deleted: %s", doomed, error)

    async def prune(self, wanted: Callable[[Volume], bool], everything: bool) -> tuple[builtins.list[str], int]:
        """Remove volumes that no container mentions: the anonymous ones, or all. Those made with options stay, as dockerd does it."""
        removed, freed = [], 0
        for volume in self.list():
            chosen = (everything or ANONYMOUS_LABEL in (volume.labels or {})) and not volume.configured and wanted(volume)
            if not chosen or volume.name not in self._volumes or self.users(volume.name):
                continue
            size = await asyncio.to_thread(self._size, volume)
            try:
                await self.remove_aside(volume.name)
            except (Conflict, NotFound):
                continue  # taken, or removed by another, while it was measured
            freed += max(size, 0)
            removed.append(volume.name)
        self._events.publish("volume", "prune", "", {"reclaimed": str(freed)})
        return removed, freed

    # -- use --------------------------------------------------------------------------------------------------------------------------

    async def hold(self, name: str, container: str) -> Path:
        """Make a volume's content available to a container that starts; returns where it lies."""
        volume = self.get(name)
        if volume.mounted:
            await asyncio.to_thread(self.mounts.hold, name, volume.options or {}, container)
        path = self.mountpoint(name)
        if not path.is_dir():
            raise InvalidArgument(f"volume {name}: {path} is missing: remove the volume and create it again")
        return path

    async def release(self, names: Iterable[str], container: str) -> None:
        """The container ended."""
        for name in names:
            volume = self._volumes.get(name)
            if volume is not None and volume.mounted:
                await asyncio.to_thread(self.mounts.release, name, container)

    def adopt(self, names: Iterable[str], container: str) -> None:
        """The container ran on while no daemon was there."""
        for name in names:
            volume = self._volumes.get(name)
            if volume is not None and volume.mounted:
                self.mounts.adopt(name, container)
