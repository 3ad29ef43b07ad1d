"""What a container changed, and directory trees as tars: reading trees that a hostile, possibly running container owns.

Every directory is opened relative to its parent's descriptor with ``O_NOFOLLOW`` and files with ``O_NONBLOCK``, so a name that is swapped
for a link, a FIFO or a device while we walk gives an error or a gap, never another file. Upper and lower trees are descended side by
side, so a lower symbolic link is never followed either.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from tare.errors import InvalidArgument
from tare.store.tar import writer
from tare.store.tar.entry import Entry, Kind

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"
_CHUNK = 256 << 10
_DEPTH = 256
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFIFO: Kind.FIFO,
}


class ChangeKind(enum.IntEnum):
    """Docker's numbers."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


@dataclass(frozen=True, order=True)
class Change:
    """One path (absolute, as seen in the container) and what became of it."""

    path: str
    kind: ChangeKind


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError:
        return False


def _status(directory: int | None, name: bytes) -> os.stat_result | None:
    if directory is None:
        return None
    try:
        return os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return None


def _open(directory: int, name: bytes, flags: int) -> int | None:
    """Open one component; None when it has gone or is no longer what it was."""
    try:
        return os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def compare(upper: int, lower: int) -> list[Change]:
    """The changes that the overlay directory ``upper`` makes to ``lower`` (both open directories), sorted by path."""
    changes: list[Change] = []
    _compare(upper, lower, b"/", changes, 0)
    return sorted(changes)


def _compare(upper: int, lower: int | None, prefix: bytes, changes: list[Change], depth: int) -> bool:
    """Append the changes below one directory; returns whether there were any."""
    if depth > _DEPTH:
        raise InvalidArgument(f"the container's file tree is nested deeper than {_DEPTH} directories")
    before = len(changes)
    names = {os.fsencode(name) for name in os.listdir(upper)}
    for name in names:
        path = prefix + name
        status = _status(upper, name)
        if status is None:
            continue
        below = _status(lower, name)
        if is_whiteout(status):
            if below is not None:
                changes.append(Change(os.fsdecode(path), ChangeKind.DELETED))
            continue
        if stat.S_ISDIR(status.st_mode) and not _compare_directory(upper, lower, path, name, (status, below), changes, depth):
            continue
        changes.append(Change(os.fsdecode(path), ChangeKind.ADDED if below is None else ChangeKind.MODIFIED))
    if lower is not None and depth and _is_opaque(upper):
        for hidden in os.listdir(lower):
            if os.fsencode(hidden) not in names:
                changes.append(Change(os.fsdecode(prefix) + hidden, ChangeKind.DELETED))
    return len(changes) > before


def _compare_directory(
    upper: int,
    lower: int | None,
    path: bytes,
    name: bytes,
    statuses: tuple[os.stat_result, os.stat_result | None],
    changes: list[Change],
    depth: int,
) -> bool:
    """Compare a directory's content; returns whether the directory itself counts as changed."""
    status, below = statuses
    inner = _open(upper, name, _DIRECTORY)
    if inner is None:
        return False
    try:
        beneath = _open(lower, name, _DIRECTORY) if lower is not None and below is not None and stat.S_ISDIR(below.st_mode) else None
        try:
            content = _compare(inner, beneath, path + b"/", changes, depth + 1)
        finally:
            if beneath is not None:
                os.close(beneath)
    finally:
        os.close(inner)
    if content or below is None:
        return True
    fields = ("st_mode", "st_uid", "st_gid", "st_mtime_ns")
    return any(getattr(status, field) != getattr(below, field) for field in fields)


def tar_tree(root: int, *, marks: bool = False) -> Iterator[bytes]:
    """The tree below the open directory ``root`` as a tar, names in byte order, the root itself left out; sockets are skipped.

    With ``marks`` the tree is an overlay's upper directory: whiteouts become ``.wh.NAME``, opaque directories get ``.wh..wh..opq``.
    """
    yield from _tar(root, b"", marks, {}, 0)
    yield writer.END


def _tar(directory: int, prefix: bytes, marks: bool, links: dict[tuple[int, int], bytes], depth: int) -> Iterator[bytes]:
    if depth > _DEPTH:
        raise InvalidArgument(f"the container's file tree is nested deeper than {_DEPTH} directories")
    if marks and depth and _is_opaque(directory):
        yield writer.header(Entry(prefix + b".wh..wh..opq", Kind.FILE, 0o600))
    for text in sorted(os.listdir(directory), key=os.fsencode):
        name = os.fsencode(text)
        status = _status(directory, name)
        if status is None or stat.S_ISSOCK(status.st_mode):
            continue
        if marks and is_whiteout(status):
            yield writer.header(Entry(prefix + b".wh." + name, Kind.FILE, 0o600))
            continue
        entry = Entry(
            prefix + name,
            _KINDS[stat.S_IFMT(status.st_mode)],
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            mtime_ns=status.st_mtime_ns,
        )
        if entry.kind is not Kind.DIRECTORY and status.st_nlink > 1:
            first = links.setdefault((status.st_dev, status.st_ino), entry.name)
            if first != entry.name:
                entry.kind, entry.linkname = Kind.LINK, first
        yield from _tar_entry(directory, name, entry, status, marks, links, depth)


def _tar_entry(
    directory: int,
    name: bytes,
    entry: Entry,
    status: os.stat_result,
    marks: bool,
    links: dict[tuple[int, int], bytes],
    depth: int,
) -> Iterator[bytes]:
    if entry.kind is Kind.FILE:
        file = _open(directory, name, _FILE)
        if file is not None:
            try:
                yield from _tar_file(file, entry)
            finally:
                os.close(file)
        return
    if entry.kind is Kind.DIRECTORY:
        inner = _open(directory, name, _DIRECTORY)
        if inner is not None:
            try:
                entry.xattrs = _xattrs(inner)
                yield writer.header(entry)
                yield from _tar(inner, entry.name + b"/", marks, links, depth + 1)
            finally:
                os.close(inner)
        return
    if entry.kind is Kind.SYMLINK:
        try:
            entry.linkname = os.readlink(name, dir_fd=directory)
        except OSError:
            return
    elif entry.kind in (Kind.CHARACTER, Kind.BLOCK):
        entry.major, entry.minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    yield writer.header(entry)


def _tar_file(file: int, entry: Entry) -> Iterator[bytes]:
    """Header and body of an open file; a file that shrinks meanwhile is filled up with zeros, as by GNU tar."""
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        return
    entry.size = status.st_size
    entry.xattrs = _xattrs(file)
    yield writer.header(entry)
    left = entry.size
    while left:
        chunk = os.read(file, min(left, _CHUNK)) or bytes(min(left, _CHUNK))
        left -= len(chunk)
        yield chunk
    if entry.size % 512:
        yield writer.padding(entry.size)


def _xattrs(file: int) -> dict[bytes, bytes]:
    """The attributes that belong to the image: capabilities, access lists and the user's own; not overlayfs's, not a host's labels."""
    kept = {}
    try:
        for name in os.listxattr(file):
            if name == "security.capability" or (name.startswith(("user.", "system.posix_acl_")) and not name.startswith("user.overlay.")):
                kept[os.fsencode(name)] = os.getxattr(file, name)
    except OSError:
        return {}
    return kept
