"""``RUN --mount``: directories and files that a command sees and that do not become part of the image.

    bind      a path of the context, of a stage or of an image; read-only, or writable with the writes thrown away
    cache     a directory that outlives the build, by id, under ``data_root/builder/cache``
    tmpfs     memory
    secret    a file that the client sent; it lies in the run directory (memory) and is gone with the run
    ssh       the client's agent, by its socket

A source is hostile (symbolic links in a stage or context): the whole tree is mounted at a private place first, the path is resolved
*inside it* by descriptor (``RESOLVE_IN_ROOT``), and what was found is mounted at a second private place, which the runtime then binds.
Both lie under ``exec_root/builds/ID``; ``remove`` unmounts them and deletes directories with ``rmdir`` only: if an unmount failed,
nothing that is still mounted can be deleted through it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tare.containers.record import MountPoint
from tare.errors import InvalidArgument, NotFound
from tare.linux import libc, mountinfo
from tare.linux.constants import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, O_PATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from tare.linux.mount import move_mount, open_tree, openat2, overlay
from tare.oci.digest import Digest
from tare.store.durability import make_directory, remove_tree
from tare.store.tartree import DIRECTORY
from tare.store.treecopy import copy_tree

if TYPE_CHECKING:
    from tare.config import EngineConfig
    from tare.store.snapshots import Snapshots

_MNT_DETACH = 2
_NEW, _GONE = ".new-", ".gone-"


class Places:
    """The private places of one engine's runs, and its cache mounts."""

    def __init__(self, config: EngineConfig, snapshots: Snapshots) -> None:
        self._root = config.exec_root / "builds"
        self._caches = config.data_root / "builder" / "cache"
        self._snapshots = snapshots
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: dict[str, int] = {}
        self._making = threading.Lock()

    # -- private places -----------------------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Remove what a killed daemon left."""
        if self._root.is_dir():
            for directory in self._root.iterdir():
                self.remove(directory.name)
        for path in (*self._caches.glob(f"{_NEW}*"), *self._caches.glob(f"{_GONE}*")):
            remove_tree(path)

    def remove(self, id: str) -> None:
        """Unmount and delete all places of a run. Idempotent."""
        directory = self._root / id
        if not directory.is_dir():
            return
        inside = [entry.path for entry in mountinfo.read() if entry.path.startswith(f"{directory}/")]
        for mounted in sorted(inside, key=len, reverse=True):
            libc.umount2(os.fsencode(mounted), _MNT_DETACH)
        for name in os.listdir(directory):
            path = directory / name
            if name.startswith("over-"):
                self._snapshots.remove(f"{id}-{name}")
            with suppress(OSError):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        with suppress(OSError):
            directory.rmdir()

    def _directory(self, id: str) -> Path:
        make_directory(self._root)
        directory = self._root / id
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory

    def file(self, id: str, number: int, data: bytes, mode: int = 0o400, uid: int = 0, gid: int = 0) -> Path:
        """A file with this content (a secret, a here-document), in memory."""
        path = self._directory(id) / f"file-{number}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
            os.fchown(stream.fileno(), uid, gid)
            os.fchmod(stream.fileno(), mode)
        return path

    def bind(self, id: str, number: int, diff_ids: Sequence[Digest], path: str, *, writable: bool) -> Path:
        """A host path that shows ``path`` of the tree that these layers make. Blocks. ``NotFound`` when there is no such path."""
        directory = self._directory(id)
        snapshot = f"{id}-over-{number}"
        place = directory / f"over-{number}"
        place.mkdir(mode=0o700)
        self._snapshots.prepare(snapshot, diff_ids)
        root = self._snapshots.rootfs(snapshot)
        attributes = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | (0 if writable else MOUNT_ATTR_RDONLY)
        mounted = overlay([str(lower) for lower in root.lower], str(root.upper), str(root.work), (), attributes)
        try:
            _attach(mounted, place)
            try:
                found = openat2(mounted, path.lstrip("/") or ".", O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
            except OSError as error:
                raise NotFound(f'failed to compute cache key: "{path}": {os.strerror(error.errno or 0).lower()}') from None
        finally:
            os.close(mounted)
        try:
            shown = directory / f"bind-{number}"
            shown.mkdir(mode=0o700) if stat.S_ISDIR(os.fstat(found).st_mode) else shown.touch(mode=0o600)
            part = open_tree(found, "", recursive=False)
            try:
                _attach(part, shown)
            finally:
                os.close(part)
        finally:
            os.close(found)
        return shown

    # -- cache mounts -------------------------------------------------------------------------------------------------------------------

    @staticmethod
    def cache_key(id: str) -> str:
        return hashlib.sha256(id.encode()).hexdigest()[:32]

    async def cache(self, id: str, sharing: str) -> tuple[str, Path]:
        """The directory of a cache mount, in use from now on until ``release_cache``; it may have to be made. Waits for a locked one.

        ``private`` gives a directory of its own to each of several users at once.
        """
        key = self.cache_key(id)
        if sharing == "locked":
            await self._locks.setdefault(key, asyncio.Lock()).acquire()
        elif sharing == "private":
            number = 0
            while self._users.get(key):
                number += 1
                key = self.cache_key(f"{id}\0{number}")
        self._users[key] = self._users.get(key, 0) + 1
        return key, self._caches / key

    def make_cache(self, path: Path, mode: int, owner: tuple[int, int], diff_ids: Sequence[Digest], source: str) -> None:
        """Make the directory of a cache mount, with what lies at ``source`` in a tree of layers in it. Blocks; it is there whole or not."""
        make_directory(self._caches)
        new = path.with_name(f"{_NEW}{secrets.token_hex(8)}")
        new.mkdir(mode=0o700)
        try:
            if diff_ids:
                self._fill(new, diff_ids, source)
            os.chown(new, *owner)
            new.chmod(mode)
            with self._making:
                if not path.is_dir():
                    new.rename(path)
        finally:
            if new.exists():
                remove_tree(new)

    def _fill(self, path: Path, diff_ids: Sequence[Digest], source: str) -> None:
        with self._snapshots.view(diff_ids) as root:
            try:
                found = openat2(root, source.lstrip("/") or ".", DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
            except OSError as error:
                raise NotFound(f'cache mount source "{source}": {os.strerror(error.errno or 0).lower()}') from None
            target = os.open(path, DIRECTORY)
            try:
                copy_tree(found, target)
            finally:
                os.close(target)
                os.close(found)

    def release_cache(self, key: str, sharing: str) -> None:
        """The run that used a cache mount is over."""
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
        if sharing == "locked":
            self._locks[key].release()

    def cache_path(self, key: str) -> Path:
        return self._caches / key

    def cache_size(self, key: str) -> int:
        """Bytes of the files in a cache mount. Walks it."""
        total = 0
        for _, _, names, directory in os.fwalk(self.cache_path(key)):
            for name in names:
                with suppress(OSError):
                    total += os.lstat(name, dir_fd=directory).st_size
        return total

    def cache_busy(self, key: str) -> bool:
        return key in self._users

    def discard_cache(self, key: str) -> int:
        """Delete a cache mount's directory; returns its bytes. Blocks."""
        size = self.cache_size(key)
        path = self.cache_path(key)
        doomed = path.with_name(f"{_GONE}{key}")
        with suppress(FileNotFoundError):
            path.rename(doomed)
        remove_tree(doomed)
        return size


def _attach(mounted: int, place: Path) -> None:
    target = os.open(place, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        move_mount(mounted, target)
    finally:
        os.close(target)


def point(source: Path, destination: str, *, writable: bool) -> MountPoint:
    """A bind of one of our own paths."""
    return MountPoint(type="bind", source=str(source), destination=destination, writable=writable, propagation="rprivate", from_mounts=True)


def tmpfs(destination: str, size: int) -> MountPoint:
    """Memory, with execution allowed as in a plain directory."""
    options = ["exec", *([f"size={size}"] if size else [])]
    return MountPoint(type="tmpfs", source="", destination=destination, options=options, from_mounts=True)


def agent(socket: str, destination: str) -> MountPoint:
    """The client's SSH agent. ``InvalidArgument`` when that is no socket."""
    try:
        if not stat.S_ISSOCK(os.stat(socket).st_mode):
            raise InvalidArgument(f"ssh agent {socket}: not a socket")
    except OSError as error:
        raise InvalidArgument(f"ssh agent {socket}: {os.strerror(error.errno or 0).lower()}") from None
    return point(Path(socket), destination, writable=True)
