"""Named and anonymous volumes of the ``local`` driver: directories that outlive containers.

On disk: ``data_root/volumes/NAME/_data`` (0711 above, the content's own mode below). The record in the metadata store is written after the
directory exists and removed before it goes, so that a kill at any line leaves at most an unlisted directory, which the next creation of
that name adopts.

A volume is in use while a container's record mentions it; who does is asked of the containers service through ``users``.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tare.errors import Conflict, InvalidArgument, NotFound, Unsupported

if TYPE_CHECKING:
    from tare.events import EventBus
    from tare.store.metadata import Records

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")


class Volume(msgspec.Struct, kw_only=True, frozen=True):
    """One volume; ``created`` in nanoseconds since the epoch."""

    name: str
    created: int
    driver: str = "local"
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    options: dict[str, str] = msgspec.field(default_factory=dict)
    anonymous: bool = False


class Volumes:
    """Creates, finds and removes volumes."""

    def __init__(self, root: Path, records: Records, events: EventBus) -> None:
        self._root = root
        self._records = records
        self._events = events
        self._volumes: dict[str, Volume] = {}
        self.users: Callable[[str], list[str]] = lambda name: []
        """Ids of the containers that mention a volume; set by the composition root."""

    def start(self) -> None:
        """Load the records and make the root directory."""
        self._root.mkdir(mode=0o711, parents=True, exist_ok=True)
        for name, _, document in self._records.all():
            self._volumes[name] = msgspec.json.decode(document, type=Volume)

    def mountpoint(self, name: str) -> Path:
        return self._root / name / "_data"

    def create(
        self,
        name: str = "",
        driver: str = "local",
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        *,
        anonymous: bool = False,
    ) -> Volume:
        """The volume of that name, made if there is none. An existing one must agree in driver and options."""
        if driver not in ("", "local"):
            raise NotFound(f'error looking up volume plugin {driver}: plugin "{driver}" not found')
        if options:
            raise Unsupported(f"volume options are not offered in this release: {', '.join(sorted(options))}")
        anonymous = anonymous or not name
        name = name or secrets.token_hex(32)
        if not _NAME.match(name):
            raise InvalidArgument(
                f'create {name}: "{name}" includes invalid characters for a local volume name, '
                'only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
            )
        if (present := self._volumes.get(name)) is not None:
            return present
        volume = Volume(name=name, created=time.time_ns(), labels=dict(labels or {}), anonymous=anonymous)
        directory = self._root / name
        directory.mkdir(mode=0o711, exist_ok=True)
        data = directory / "_data"
        if not data.exists():
            data.mkdir()
            os.chmod(data, 0o755)
        self._records.put(name, name, msgspec.json.encode(volume))
        self._volumes[name] = volume
        self._events.publish("volume", "create", name, {"driver": "local"})
        return volume

    def get(self, name: str) -> Volume:
        volume = self._volumes.get(name)
        if volume is None:
            raise NotFound(f"get {name}: no such volume")
        return volume

    def list(self) -> list[Volume]:
        return sorted(self._volumes.values(), key=lambda volume: volume.name)

    def remove(self, name: str, force: bool = False) -> None:
        """Delete a volume and its content. ``Conflict`` while a container mentions it."""
        if name not in self._volumes and force:
            return
        volume = self.get(name)
        if users := self.users(name):
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        self._records.delete(name)
        del self._volumes[name]
        shutil.rmtree(self._root / name, ignore_errors=False)
        self._events.publish("volume", "destroy", name, {"driver": volume.driver})
