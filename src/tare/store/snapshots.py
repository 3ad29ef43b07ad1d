"""Snapshots: the writable part of a container's root file system, and the stack of layers that lies under it.

On disk, under ``data_root/snapshots``:

    ID/layers      the diff_ids under this snapshot, bottom first, one a line
    ID/upper/      what the container wrote, in overlayfs's form
    ID/whole/      instead, with the vfs driver: the whole root, which began as a copy of the layers
    ID/work/       overlayfs's own
    .trash/        snapshots on their way out; a crash leaves them here, the next engine deletes them (``leftovers``)

Making one is three mkdirs and a small write: nothing is mounted and nothing copied. ``rootfs`` acquires the layers' directories for a task;
the overlay itself is mounted by the runtime in the task's own mount namespace. What the daemon mounts to look into a snapshot (``mounted``)
is a *detached* mount known by a descriptor only: it cannot be left behind, whatever kills the daemon.

The root directory's mode and owner come from the topmost layer that has an entry for it, since in an overlay the upper directory's win.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tare.errors import Conflict, InvalidArgument, NotFound, ResourceExhausted
from tare.linux.constants import (
    AT_FDCWD,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    O_PATH,
    RESOLVE_BENEATH,
    RESOLVE_NO_SYMLINKS,
)
from tare.linux.mount import Filesystem, open_tree, openat2, overlay, set_attributes
from tare.oci.digest import Digest
from tare.store.changes import Change, ChangeKind, compare, compare_whole
from tare.store.durability import make_directory, remove_tree
from tare.store.layers.driver import LayerDriver
from tare.store.tartree import tar_changes, tar_tree
from tare.store.treecopy import copy_tree

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class SnapshotRoot:
    """What an overlay mount of the snapshot needs: lower directories (topmost first), upper and work directory."""

    lower: tuple[Path, ...]
    upper: Path
    work: Path


class Snapshots:
    """All snapshots under a data root. Methods may be called from any thread; those that touch many files say so."""

    def __init__(self, root: Path, layers: LayerDriver) -> None:
        self._root = root / "snapshots"
        self._trash = self._root / ".trash"
        self._layers = layers
        self._form = "upper" if layers.overlaid else "whole"
        self._lock = threading.Lock()
        self._held: dict[str, tuple[SnapshotRoot, tuple[Digest, ...]]] = {}
        for directory in (self._root, self._trash):
            make_directory(directory)

    def path(self, id: str) -> Path:
        """The snapshot's directory, existing or not."""
        if not _ID.fullmatch(id):
            raise InvalidArgument(f"invalid snapshot id {id!r}")
        return self._root / id

    def _existing(self, id: str) -> Path:
        path = self.path(id)
        if not path.is_dir():
            raise NotFound(f"snapshot {id} does not exist")
        return path

    def walk(self) -> Iterator[str]:
        """The ids of all snapshots."""
        for name in os.listdir(self._root):
            if not name.startswith("."):
                yield name

    def prepare(self, id: str, diff_ids: Sequence[Digest], *, mark: str = "") -> None:
        """Make a snapshot over these layers (bottom first), empty but for an empty file called ``mark``. ``Conflict`` if it exists,
        ``NotFound`` if a layer is missing."""
        path = self.path(id)
        mode, uid, gid = 0o755, 0, 0
        for diff_id in diff_ids:
            layer = self._layers.get(diff_id)
            if layer is None:
                raise NotFound(f"layer {diff_id} is not stored: pull its image again")
            if layer.root is not None:
                mode, uid, gid = layer.root
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            raise Conflict(f"snapshot {id} exists already") from None
        try:
            with open(f"{path}/layers", "wb", buffering=0) as file:
                file.write("".join(f"{diff_id}\n" for diff_id in diff_ids).encode())
            upper = path / self._form
            upper.mkdir()
            if self.copies:
                self._copy(diff_ids, upper)
            (path / "work").mkdir(mode=0o700)
            if mark:
                _put_mark(upper, mark)
            if uid or gid:
                os.chown(upper, uid, gid)
            upper.chmod(mode)
        except OSError as error:
            remove_tree(path)
            raise ResourceExhausted(f"snapshot {id} cannot be made under {self._root}: {error.strerror}") from error

    @property
    def copies(self) -> bool:
        """Whether a snapshot is a copy of its layers' whole tree (driver vfs), so that making one takes its time."""
        return not self._layers.overlaid

    def _copy(self, diff_ids: Sequence[Digest], upper: Path) -> None:
        source = os.open(self._layers.acquire(diff_ids)[0], _DIRECTORY)
        try:
            target = os.open(upper, _DIRECTORY)
            try:
                copy_tree(source, target, keep_owner=True)
            finally:
                os.close(target)
        finally:
            os.close(source)
            self._layers.release(diff_ids)

    @contextmanager
    def _copied(self, upper: Path, *, writable: bool) -> Iterator[Path]:
        """A detached bind mount of a copy."""
        mounted = open_tree(AT_FDCWD, str(upper), recursive=False)
        try:
            attributes = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | (0 if writable else MOUNT_ATTR_RDONLY)
            set_attributes(mounted, add=attributes)
            yield Path(f"/proc/{os.getpid()}/fd/{mounted}")
        finally:
            os.close(mounted)

    def _lengths(self, id: str) -> Iterator[int]:
        """The lengths of the files that were changed in a copy."""
        changes = self.diff(id)
        seen: set[int] = set()
        upper = os.open(self._existing(id) / self._form, _DIRECTORY)
        try:
            for change in changes:
                if change.kind is ChangeKind.DELETED:
                    continue
                with suppress(FileNotFoundError, NotADirectoryError):
                    file = openat2(upper, change.path[1:], O_PATH | os.O_NOFOLLOW, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
                    try:
                        status = os.fstat(file)
                        if not stat.S_ISDIR(status.st_mode) and status.st_ino not in seen:
                            seen.add(status.st_ino)
                            yield status.st_size
                    finally:
                        os.close(file)
        finally:
            os.close(upper)

    def layers(self, id: str) -> tuple[Digest, ...]:
        """The diff_ids under a snapshot, bottom first."""
        with open(f"{self._existing(id)}/layers", "rb") as file:
            text = file.read().decode()
        return tuple(Digest.parse(line) for line in text.split())

    def rootfs(self, id: str) -> SnapshotRoot:
        """The directories for the snapshot's overlay, its layers mounted and counted as in use. Idempotent until ``release``."""
        with self._lock:
            held = self._held.get(id)
            if held is not None:
                self._layers.show(held[1])
                return held[0]
            path = self._existing(id)
            diff_ids = () if self.copies else self.layers(id)
            lower = () if self.copies else self._layers.acquire(diff_ids)[::-1]
            root = SnapshotRoot(lower, path / self._form, path / "work")
            self._held[id] = root, diff_ids
            return root

    def release(self, id: str) -> None:
        """The task that used ``rootfs`` has ended. Idempotent."""
        with self._lock:
            held = self._held.pop(id, None)
            if held is not None:
                self._layers.release(held[1])

    def remove(self, id: str) -> None:
        """Delete a snapshot: at once for everybody else (a rename), then file by file. Idempotent; slow for a big tree."""
        self.delete(self.discard(id))

    def discard(self, id: str) -> Path | None:
        """The quick half of ``remove``: the snapshot is gone for everybody, its files wait for ``delete``."""
        self.release(id)
        path = self.path(id)
        doomed = Path(tempfile.mkdtemp(dir=self._trash))
        try:
            path.rename(doomed / "snapshot")
        except FileNotFoundError:
            doomed.rmdir()
            return None
        return doomed

    @staticmethod
    def delete(doomed: Path | None) -> None:
        """The slow half of ``remove``."""
        if doomed is not None:
            remove_tree(doomed)

    def leftovers(self) -> list[Path]:
        """What a crash left in the trash: to be asked before anything is removed, for ``delete`` in a worker thread."""
        return [self._trash / name for name in os.listdir(self._trash)]

    @contextmanager
    def mounted(self, id: str, *, writable: bool = False) -> Iterator[Path]:
        """A host path that shows the snapshot's root while the context lasts.

        Read-only by default, and then harmless also beside a running task; ``writable`` only while no task runs. The path names a
        descriptor of this process: use it for ``os.open``, not for a child.
        """
        path = self._existing(id)
        if self.copies:
            with self._copied(path / self._form, writable=writable) as shown:
                yield shown
            return
        diff_ids = self.layers(id)
        lower = self._layers.acquire(diff_ids)[::-1]
        try:
            if writable:
                attributes = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID
                mounted = overlay([str(each) for each in lower], str(path / self._form), str(path / "work"), (), attributes)
            else:
                mounted = _view([path / self._form, *lower])
            try:
                yield Path(f"/proc/{os.getpid()}/fd/{mounted}")
            finally:
                os.close(mounted)
        finally:
            self._layers.release(diff_ids)

    @contextmanager
    def below(self, id: str) -> Iterator[int]:
        """A descriptor of the layers' merged view, without the upper directory."""
        with self.view(self.layers(id)) as root:
            yield root

    @contextmanager
    def view(self, diff_ids: Sequence[Digest]) -> Iterator[int]:
        """A descriptor of the root directory that these layers (bottom first) make together, while the context lasts. Read-only."""
        lower = self._layers.acquire(diff_ids)[::-1]
        try:
            view = os.open(lower[0], _DIRECTORY) if len(lower) == 1 else _view(lower)
            try:
                root = os.open(".", _DIRECTORY, dir_fd=view)
                try:
                    yield root
                finally:
                    os.close(root)
            finally:
                os.close(view)
        finally:
            self._layers.release(diff_ids)

    def usage(self, id: str) -> int:
        """Bytes of the files that the container wrote (hard links once). Walks the upper directory."""
        if self.copies:
            with suppress(InvalidArgument):  # nested too deep to compare: then all of it counts
                return sum(self._lengths(id))
        seen: set[int] = set()
        total = 0
        for _, _, names, directory in os.fwalk(self._existing(id) / self._form):
            for name in names:
                try:
                    status = os.lstat(name, dir_fd=directory)
                except FileNotFoundError:
                    continue
                if status.st_nlink == 1 or status.st_ino not in seen:
                    seen.add(status.st_ino)
                    total += status.st_size
        return total

    def diff(self, id: str) -> list[Change]:
        """What the container changed relative to its layers, sorted by path. Walks the upper directory."""
        upper = os.open(self._existing(id) / self._form, _DIRECTORY)
        try:
            with self.below(id) as lower:
                return compare_whole(upper, lower) if self.copies else compare(upper, lower)
        finally:
            os.close(upper)

    def changeset(self, id: str) -> Iterator[bytes]:
        """The upper directory as the tar of a layer (``docker commit``): whiteouts and opaque marks in the OCI's form."""
        upper = os.open(self._existing(id) / self._form, _DIRECTORY)
        try:
            if self.copies:
                with self.below(id) as lower:
                    changes = [(os.fsencode(change.path)[1:], change.kind) for change in compare_whole(upper, lower)]
                yield from tar_changes(
                    upper,
                    frozenset(path for path, kind in changes if kind is not ChangeKind.DELETED),
                    [path for path, kind in changes if kind is ChangeKind.DELETED],
                )
            else:
                yield from tar_tree(upper, marks=True)
        finally:
            os.close(upper)

    def export(self, id: str) -> Generator[bytes, None, None]:
        """The merged root as a tar (``docker export``)."""
        with self.mounted(id) as path:
            root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                yield from tar_tree(root)
            finally:
                os.close(root)


def _view(lower: Sequence[Path]) -> int:
    """A detached read-only overlay of at least two directories, topmost first. Needs Linux 6.5."""
    opened: list[int] = []
    try:
        with Filesystem("overlay") as context:
            context.set("source", "overlay")
            for path in lower:
                opened.append(os.open(path, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
                context.set("lowerdir+", f"/proc/self/fd/{opened[-1]}")
            return context.mount(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID)
    finally:
        for file in opened:
            os.close(file)


def _put_mark(upper: Path, name: str) -> None:
    """An empty file of mode 0755 in a fresh tree, which may be a copy of an image: what the image has there stays as it is."""
    directory = os.open(upper, _DIRECTORY)
    try:
        with suppress(FileExistsError):
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC, 0o755, dir_fd=directory))
    finally:
        os.close(directory)
