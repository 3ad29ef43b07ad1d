"""Conversion of a data root from one layer driver to another, while no daemon uses it.

Crash-safe: until the one step that counts, the file ``layers/driver``, everything old is untouched, and what was made of the new is found
again by the next try; after it only the old remains to be deleted, which a repeated migration (or none) does.

    each layer      its tar out of the old driver into the new one, verified against its diff_id
    each snapshot   between overlays (erofs, overlay) nothing: what a container wrote has the same form; to and from vfs its other form is
                    written beside the first (``upper``, ``whole``)
    layers/driver   names the new driver                                                          <- here it happens
    the rest        containers' records name it, the old driver's directory and the snapshots' old form are deleted
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tare.errors import Conflict
from tare.oci.digest import Digest
from tare.store.durability import remove_tree, sync_filesystem, write_all
from tare.store.layers import choice
from tare.store.layers.driver import LayerDriver, tree_of
from tare.store.layers.extract import extract
from tare.store.layers.merge import merge
from tare.store.metadata import Metadata
from tare.store.snapshots import Snapshots


@dataclass
class Migrated:
    """What a migration did: layers and snapshots that were converted, and the bytes of the layers' tars."""

    source: str
    target: str
    layers: int = 0
    snapshots: int = 0
    bytes: int = 0


class Migration:
    """One conversion. ``opened`` makes a driver over the root; the root is locked by the caller."""

    def __init__(self, root: Path, metadata: Metadata, opened: Callable[[str], LayerDriver]) -> None:
        self._root = root
        self._metadata = metadata
        self._opened = opened

    def run(self, target: str) -> Migrated:
        """Convert to driver ``target``, or finish a conversion to it that was broken off. ``InvalidArgument`` for an unknown name,
        ``Conflict`` while a container runs."""
        target = choice.known(target)
        source = choice.on_disk(self._root) or target
        self._refuse_running()
        done = Migrated(source, target)
        if source != target:
            old, new = self._opened(source), self._opened(target)
            self._layers(old, new, done)
            if old.overlaid != new.overlaid:
                self._snapshots(Snapshots(self._root, old), old, new, done)
            choice.record(self._root, target)
        self._finish(target)
        return done

    def _refuse_running(self) -> None:
        for id, name, document in self._metadata.containers.all():
            if (msgspec.json.decode(document).get("state") or {}).get("pid"):
                raise Conflict(f"container {name or id} is running on its layers: start the daemon, stop the container, and try again")

    def _layers(self, old: LayerDriver, new: LayerDriver, done: Migrated) -> None:
        for diff_id in old.walk():
            if new.has(diff_id):
                continue
            with new.writer() as writer:
                for chunk in old.tar(diff_id):
                    writer.write(chunk)
                layer = writer.commit(diff_id)
            done.layers += 1
            done.bytes += layer.tar_size

    def _snapshots(self, snapshots: Snapshots, old: LayerDriver, new: LayerDriver, done: Migrated) -> None:
        form = "upper" if new.overlaid else "whole"
        for id in snapshots.walk():
            directory = snapshots.path(id)
            with tempfile.TemporaryFile(dir=directory) as change:
                for chunk in snapshots.changeset(id):
                    change.write(chunk)
                change.flush()
                staging = directory / f".{form}"
                remove_tree(staging)
                staging.mkdir(mode=0o755)
                self._extract(snapshots.layers(id), change.fileno(), staging, old, whole=not new.overlaid)
            was = (directory / ("whole" if new.overlaid else "upper")).stat()
            os.chown(staging, was.st_uid, was.st_gid)
            staging.chmod(was.st_mode & 0o7777)
            sync_filesystem(staging)
            remove_tree(directory / form)
            staging.rename(directory / form)
            done.snapshots += 1

    def _extract(self, diff_ids: tuple[Digest, ...], change: int, target: Path, layers: LayerDriver, *, whole: bool) -> None:
        """Write a snapshot's change (an open tar) in its other form: alone, or merged with the layers below it."""

        def chunks(file: int) -> Callable[[], bytes]:
            os.lseek(file, 0, os.SEEK_SET)
            return lambda: os.read(file, 1 << 20)

        upper = tree_of(iter(chunks(change), b""))
        if not whole:
            extract(upper, change, target)
            return
        files: list[int] = []
        try:
            for diff_id in diff_ids:
                files.append(_spooled(layers, diff_id, target.parent))
            extract(merge([*(tree_of(iter(chunks(file), b"")) for file in files), upper]), [*files, change], target)
        finally:
            for file in files:
                os.close(file)

    def _finish(self, target: str) -> None:
        """Delete what is not the driver's, and let the records of containers name it."""
        with self._metadata.transaction():
            for id, name, document in self._metadata.containers.all():
                record = msgspec.json.decode(document)
                if record.get("driver") not in (None, target):
                    self._metadata.containers.put(id, name, msgspec.json.encode({**record, "driver": target}))
        for name in choice.DRIVERS:
            if name != target:
                remove_tree(self._root / "layers" / name)
        stale = "whole" if choice.DRIVERS[target].overlaid else "upper"
        for snapshot in (self._root / "snapshots").glob("[!.]*"):
            for form in (stale, ".upper", ".whole"):
                remove_tree(snapshot / form)


def _spooled(layers: LayerDriver, diff_id: Digest, directory: Path) -> int:
    """A layer's tar as an open file without a name."""
    file = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        for chunk in layers.tar(diff_id):
            write_all(file, chunk)
    except BaseException:
        os.close(file)
        raise
    return file
