"""A tar from a client into a directory of a container (``docker cp`` to it).

Unlike a layer, which is understood first and written into a fresh directory (``store.layers``), this goes into a tree that exists, that the
container may be changing at the same moment, and that has mounts in it. So every entry's parent is resolved in the container's view
(``view.py``: by descriptor, links followed inside its root only), and the entry itself is removed, made and given its attributes as *one
component relative to that directory*, never following a link.

dockerd's rules: an entry replaces what is there, a directory is merged into a directory; with ``keep_kinds`` a directory never gives way
to another kind of file, nor the other way round. Missing parents are root's.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from tare.containers.view import Place, View, components, failure
from tare.errors import Corrupt, InvalidArgument
from tare.store.layers.extract import set_xattrs
from tare.store.tar.entry import Entry, Kind
from tare.store.tar.reader import Parser
from tare.store.tartree import DIRECTORY

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FORMATS = {Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}


@dataclass(frozen=True)
class Rules:
    """How to unpack."""

    keep_kinds: bool = False
    """A directory and another kind of file never replace each other (``noOverwriteDirNonDir``)."""
    owner: tuple[int, int] | None = None
    """Who owns everything; None: as the archive says."""


def unpack(source: Iterable[bytes], view: View, target: Place, rules: Rules) -> None:
    """Unpack a plain tar into the directory ``target`` of ``view``. Raises ``OSError`` with paths of the container."""
    unpacker = _Unpacker(view, target.path, rules)
    parser = Parser()
    try:
        for chunk in source:
            for item in parser.feed(chunk):
                if isinstance(item, Entry):
                    unpacker.begin(item)
                else:
                    unpacker.body(item)
        parser.close()
        unpacker.end()
    finally:
        unpacker.close()


class _Unpacker:
    def __init__(self, view: View, target: bytes, rules: Rules) -> None:
        self._view = view
        self._target = target
        self._rules = rules
        self._parent: Place | None = None
        self._parent_parts: list[bytes] = []
        self._file = -1
        self._entry: Entry | None = None
        self._regions: list[tuple[int, int]] = []
        self._directories: list[tuple[list[bytes], int]] = []

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._forget_parent()

    def end(self) -> None:
        """The archive was whole: directories get their times, now that nothing is put into them any more."""
        self._finish_file()
        for parts, mtime in self._directories:
            try:
                with self._view.resolve(self._path(parts), follow=False) as place:
                    if stat.S_ISDIR(place.status.st_mode):
                        os.utime(f"/proc/self/fd/{place.fd}", ns=(mtime, mtime))
            except FileNotFoundError:
                pass  # the container removed it meanwhile

    def _path(self, parts: list[bytes]) -> bytes:
        return b"/".join((self._target.rstrip(b"/"), *parts))

    def _forget_parent(self) -> None:
        if self._parent is not None:
            self._parent.close()
            self._parent = None

    def _enter(self, parts: list[bytes]) -> int:
        """The directory that an entry lies in, made when it is missing."""
        if self._parent is None or parts != self._parent_parts:
            self._forget_parent()
            self._parent = self._view.resolve(self._path(parts) + b"/.", create=True)
            self._parent_parts = parts
        return self._parent.fd

    def begin(self, entry: Entry) -> None:
        """Make one entry; a file's bytes come with ``body``."""
        self._finish_file()
        try:
            parts = components(entry.name)
        except ValueError:
            raise InvalidArgument(f'"{os.fsdecode(entry.name)}" is outside of "{os.fsdecode(self._target)}"') from None
        if not parts:
            if entry.kind is Kind.DIRECTORY:
                return  # the target itself stays as it is
            raise InvalidArgument(f'cannot overwrite directory "{os.fsdecode(self._target)}" with non-directory "."')
        directory, name = self._enter(parts[:-1]), parts[-1]
        if self._make_way(directory, name, entry, parts):
            return
        try:
            self._make(directory, name, entry, parts)
        except OSError as error:
            raise failure(error.errno or errno.EIO, self._path(parts)) from None

    def _make_way(self, directory: int, name: bytes, entry: Entry, parts: list[bytes]) -> bool:
        """Remove what is in the way; returns whether nothing is left to do, as a directory was merged into one."""
        path = self._path(parts)
        mount = self._view.mounted(directory, name)
        try:
            found = os.fstat(mount) if mount is not None else os.lstat(name, dir_fd=directory)
        except FileNotFoundError:
            return False
        there, comes = stat.S_ISDIR(found.st_mode), entry.kind is Kind.DIRECTORY
        if self._rules.keep_kinds and there and not comes:
            raise InvalidArgument(f'cannot overwrite directory "{os.fsdecode(path)}" with non-directory "{os.fsdecode(self._target)}"')
        if self._rules.keep_kinds and comes and not there:
            raise InvalidArgument(f'cannot overwrite non-directory "{os.fsdecode(path)}" with directory "{os.fsdecode(self._target)}"')
        if there and comes:
            self._merge(directory, name, entry, parts, mount)
            return True
        if mount is not None or _is_mount_point(directory, name):
            raise failure(errno.EBUSY, b"unlinkat " + path)
        try:
            if there:
                shutil.rmtree(name, dir_fd=directory)
            else:
                os.unlink(name, dir_fd=directory)
        except OSError as error:
            raise failure(error.errno or errno.EIO, b"unlinkat " + path) from None
        self._forget_parent()
        self._enter(parts[:-1])
        return False

    def _merge(self, directory: int, name: bytes, entry: Entry, parts: list[bytes], mount: int | None) -> None:
        if mount is not None:
            inner = os.open(f"/proc/self/fd/{mount}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            inner = os.open(name, DIRECTORY, dir_fd=directory)
        try:
            self._attributes(inner, entry)
        finally:
            os.close(inner)
        self._directories.append((parts, entry.mtime_ns))

    def _make(self, directory: int, name: bytes, entry: Entry, parts: list[bytes]) -> None:
        assert self._parent is not None
        directory = self._parent.fd
        if entry.kind is Kind.FILE:
            self._file = os.open(name, _NEW_FILE, 0o600, dir_fd=directory)
            self._entry = entry
            self._regions = list(entry.sparse) if entry.sparse is not None else [(0, entry.size)]
            self._seek()
        elif entry.kind is Kind.DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=directory)
            self._merge(directory, name, entry, parts, None)
        elif entry.kind is Kind.LINK:
            self._link(directory, name, entry)
        elif entry.kind is Kind.SYMLINK:
            os.symlink(entry.linkname, name, dir_fd=directory)
            self._special(directory, name, entry)
        else:
            os.mknod(name, _FORMATS[entry.kind] | 0o600, os.makedev(entry.major, entry.minor), dir_fd=directory)
            self._special(directory, name, entry)

    def _link(self, directory: int, name: bytes, entry: Entry) -> None:
        try:
            parts = components(entry.linkname)
        except ValueError:
            raise InvalidArgument(f'invalid hardlink "{os.fsdecode(entry.linkname)}" -> "{os.fsdecode(entry.name)}"') from None
        with self._view.resolve(self._path(parts), follow=False) as place:
            os.link(place.name, name, src_dir_fd=place.parent, dst_dir_fd=directory, follow_symlinks=False)

    def body(self, piece: memoryview) -> None:
        """Bytes of the file that was begun last."""
        if self._file < 0:
            return
        while piece and self._regions:
            offset, length = self._regions[0]
            written = os.pwrite(self._file, piece[:length], offset)
            piece = piece[written:]
            self._regions[0] = (offset + written, length - written)
            self._seek()

    def _seek(self) -> None:
        while self._regions and not self._regions[0][1]:
            self._regions.pop(0)

    def _finish_file(self) -> None:
        entry, self._entry = self._entry, None
        if entry is None:
            return
        try:
            if entry.sparse is not None:
                os.ftruncate(self._file, entry.size)
            self._attributes(self._file, entry)
            os.utime(self._file, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(self._file)
            self._file = -1

    def _attributes(self, file: int, entry: Entry) -> None:
        uid, gid = self._rules.owner or (entry.uid, entry.gid)
        os.fchown(file, uid, gid)
        os.fchmod(file, entry.mode)
        if entry.xattrs:
            set_xattrs(file, _allowed(entry.xattrs))

    def _special(self, directory: int, name: bytes, entry: Entry) -> None:
        """Owner, mode and time of what must not be opened."""
        uid, gid = self._rules.owner or (entry.uid, entry.gid)
        os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
        if entry.kind is not Kind.SYMLINK:
            file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                if stat.S_IFMT(os.fstat(file).st_mode) != _FORMATS[entry.kind]:
                    raise Corrupt(f"{os.fsdecode(name)} was replaced while it was copied")
                os.chmod(f"/proc/self/fd/{file}", entry.mode)
            finally:
                os.close(file)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory, follow_symlinks=False)


def _is_mount_point(directory: int, name: bytes) -> bool:
    """Whether something is mounted there in the container's own namespace: from ours the kernel would let us remove it."""
    file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        return _mount_id(file) != _mount_id(directory)
    finally:
        os.close(file)


def _mount_id(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        return next(line for line in lines if line.startswith("mnt_id:"))


def _allowed(xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Attributes that a client may set: not overlayfs's own."""
    return {key: value for key, value in xattrs.items() if not key.startswith((b"trusted.overlay.", b"user.overlay."))}
