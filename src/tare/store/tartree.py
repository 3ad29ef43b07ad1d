"""Directory trees as tars: ``commit``, ``export`` and ``cp`` from a container.

The trees belong to a hostile, possibly running container. Every directory is opened relative to its parent's descriptor with
``O_NOFOLLOW`` and files with ``O_NONBLOCK``, so a name that is swapped for a link, a FIFO or a device while we walk gives a gap, never
another file. What is below a mount of a pseudo file system (proc, sysfs, control groups) is the kernel's and left out.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping

from tare.errors import InvalidArgument
from tare.linux.mount import is_pseudo
from tare.store.tar import writer
from tare.store.tar.entry import Entry, Kind

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
DEPTH = 256
_BATCH = 1 << 20
_CHUNK = 256 << 10
_OPAQUE = "trusted.overlay.opaque"
_WHITEOUT = b".wh."
_MOUNT_POINTS = frozenset((b"etc/hostname", b"etc/hosts", b"etc/resolv.conf", b".dockerenv"))
"""Where the engine mounts its own files: empty in the container's upper directory, and no business of an image."""
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE)
KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFIFO: Kind.FIFO,
}
MountKey = tuple[int, int, bytes]
"""A mount point: device and inode of its parent directory, and its name there."""


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError:
        return False


def open_component(directory: int, name: bytes, flags: int) -> int | None:
    """Open one component; None when it has gone or is no longer what it was."""
    try:
        return os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def tar_tree(root: int, *, marks: bool = False) -> Generator[bytes, None, None]:
    """The tree below the open directory ``root`` as a tar, names in byte order, the root itself left out; sockets are skipped.

    With ``marks`` the tree is an overlay's upper directory: whiteouts become ``.wh.NAME``, opaque directories get ``.wh..wh..opq``.
    """
    yield from batched(_Walk(marks=marks).content(root))


def tar_below(root: int, prefix: bytes) -> Iterator[bytes]:
    """The tree below the open directory ``root`` as entries whose names begin with ``prefix``, without an end mark."""
    if prefix:
        yield writer.header(Entry(prefix, Kind.DIRECTORY, 0o755))
    yield from _Walk().content(root, prefix)


def tar_changes(root: int, kept: Collection[bytes], gone: Iterable[bytes]) -> Iterator[bytes]:
    """Of the tree below the open directory ``root`` only the paths in ``kept`` (with every directory above them), and whiteouts for those
    in ``gone``: the layer that a change of a complete tree makes."""
    marks = (
        writer.header(Entry(b"/".join((*head, b".wh." + name)), Kind.FILE, 0o600)) for *head, name in (path.split(b"/") for path in gone)
    )
    yield from batched(itertools.chain(marks, _Walk(only=kept).content(root)))


def tar_object(parent: int, name: bytes, shown: bytes, mounts: Mapping[MountKey, int]) -> Generator[bytes, None, None]:
    """One object of the directory ``parent`` (``.``: the directory itself), with all that is in it, called ``shown`` in the tar.

    ``mounts`` are the descriptors of what is mounted in the tree where the kernel does not show it.
    """
    yield from batched(_Walk(mounts=mounts).named(parent, name, shown))


def batched(pieces: Iterable[bytes]) -> Generator[bytes, None, None]:
    """The same bytes and the end mark in chunks of a size that is worth handing on."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _BATCH:
            yield b"".join(waiting)
            waiting, size = [], 0
    waiting.append(writer.END)
    yield b"".join(waiting)


class _Walk:
    """One walk through a tree, with one open descriptor per level."""

    def __init__(self, *, marks: bool = False, mounts: Mapping[MountKey, int] | None = None, only: Collection[bytes] | None = None) -> None:
        self._marks = marks
        self._mounts = mounts or {}
        self._only = only
        self._links: dict[tuple[int, int], bytes] = {}

    def content(self, root: int, prefix: bytes = b"") -> Iterator[bytes]:
        """Everything in a directory."""
        yield from self._descend(os.dup(root), prefix)

    def named(self, directory: int, name: bytes, shown: bytes) -> Iterator[bytes]:
        """One object and, for a directory, everything in it."""
        inner = yield from self._object(directory, name, shown)
        if inner is not None:
            yield from self._descend(inner, shown.rstrip(b"/") + b"/")

    def _descend(self, top: int, prefix: bytes) -> Iterator[bytes]:
        stack = [(top, prefix, self._names(top))]
        try:
            while stack:
                directory, prefix, names = stack[-1]
                for name in names:
                    if self._only is not None and prefix + name not in self._only:
                        continue
                    inner = yield from self._object(directory, name, prefix + name)
                    if inner is None:
                        continue
                    stack.append((inner, prefix + name + b"/", iter(())))
                    if len(stack) > DEPTH:
                        raise InvalidArgument(f"the container's file tree is nested deeper than {DEPTH} directories")
                    if self._marks and is_opaque(inner):
                        yield writer.header(Entry(prefix + name + b"/.wh..wh..opq", Kind.FILE, 0o600))
                    stack[-1] = (*stack[-1][:2], self._names(inner))
                    break
                else:
                    os.close(directory)
                    stack.pop()
        finally:
            for directory, *_ in stack:
                os.close(directory)

    def _names(self, directory: int) -> Iterator[bytes]:
        if not self._marks and is_pseudo(directory):
            return iter(())
        return iter(sorted(map(os.fsencode, os.listdir(directory))))

    def _object(self, directory: int, name: bytes, shown: bytes) -> Generator[bytes, None, int | None]:
        """One object without what is in it; returns a directory open, to go on there."""
        mounted = self._mounted(directory, name)
        if mounted is not None:
            if not stat.S_ISDIR(os.fstat(mounted).st_mode):
                yield from _mounted_file(mounted, shown)
                return None
            directory, name = mounted, b"."
        try:
            status = os.lstat(name, dir_fd=directory)
        except FileNotFoundError:
            return None
        if stat.S_ISSOCK(status.st_mode):
            return None
        if self._marks:
            if is_whiteout(status):
                yield writer.header(Entry(shown[: len(shown) - len(name)] + _WHITEOUT + name, Kind.FILE, 0o600))
                return None
            if name.startswith(_WHITEOUT):
                return None  # in a layer this name would hide another: it cannot be told
            if shown in _MOUNT_POINTS and stat.S_ISREG(status.st_mode) and not status.st_size:
                return None
        entry = _entry(shown, status)
        if entry.kind is not Kind.DIRECTORY:
            yield from self._leaf(directory, name, entry, status)
            return None
        inner = open_component(directory, name, DIRECTORY)
        if inner is not None:
            entry.xattrs = attributes(inner)
            yield writer.header(entry)
        return inner

    def _mounted(self, directory: int, name: bytes) -> int | None:
        if not self._mounts or name == b".":
            return None
        status = os.fstat(directory)
        return self._mounts.get((status.st_dev, status.st_ino, name))

    def _leaf(self, directory: int, name: bytes, entry: Entry, status: os.stat_result) -> Iterator[bytes]:
        if status.st_nlink > 1:
            first = self._links.setdefault((status.st_dev, status.st_ino), entry.name)
            if first != entry.name:
                entry.kind, entry.linkname = Kind.LINK, first
        if entry.kind is Kind.FILE:
            file = open_component(directory, name, FILE)
            if file is not None:
                try:
                    yield from _file(file, entry)
                finally:
                    os.close(file)
            return
        if entry.kind is Kind.SYMLINK:
            try:
                entry.linkname = os.readlink(name, dir_fd=directory)
            except OSError:
                return
        elif entry.kind in (Kind.CHARACTER, Kind.BLOCK):
            entry.major, entry.minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        yield writer.header(entry)


def _mounted_file(mounted: int, shown: bytes) -> Iterator[bytes]:
    status = os.fstat(mounted)
    if not stat.S_ISREG(status.st_mode):
        return
    file = os.open(f"/proc/self/fd/{mounted}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield from _file(file, _entry(shown, status))
    finally:
        os.close(file)


def _entry(name: bytes, status: os.stat_result) -> Entry:
    return Entry(
        name,
        KINDS[stat.S_IFMT(status.st_mode)],
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        mtime_ns=status.st_mtime_ns,
    )


def _file(file: int, entry: Entry) -> Iterator[bytes]:
    """Header and body of an open file; a file that shrinks meanwhile is filled up with zeros, as by GNU tar."""
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        return
    entry.size = status.st_size
    entry.xattrs = attributes(file)
    yield writer.header(entry)
    left = entry.size
    while left:
        chunk = os.read(file, min(left, _CHUNK)) or bytes(min(left, _CHUNK))
        left -= len(chunk)
        yield chunk
    if entry.size % 512:
        yield writer.padding(entry.size)


def attributes(file: int) -> dict[bytes, bytes]:
    """The attributes that belong to the image: capabilities, access lists and the user's own; not overlayfs's, not a host's labels."""
    kept = {}
    try:
        for name in os.listxattr(file):
            if name == "security.capability" or (name.startswith(("user.", "system.posix_acl_")) and not name.startswith("user.overlay.")):
                kept[os.fsencode(name)] = os.getxattr(file, name)
    except OSError:
        return {}
    return kept
