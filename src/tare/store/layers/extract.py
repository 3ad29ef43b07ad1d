"""Turn the finished tree of a layer into files: the only code of the engine that extracts an archive.

It works on a tree (``tree.py``) whose every question was decided before, into a directory that is new and private, and it names things only
as *one component relative to an open directory*: directories are opened with ``O_NOFOLLOW``, files are created with ``O_EXCL``, owners,
modes, attributes and times are set on descriptors. No step can follow a link, because no step resolves a path.

Whiteouts and opaque marks come out in overlayfs's form (character device 0:0, ``trusted.overlay.opaque``). Bytes go from the tar's page
cache to the file by ``sendfile``. Nothing is synced here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from tare.errors import Corrupt, InvalidArgument
from tare.linux.constants import O_PATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from tare.linux.mount import openat2
from tare.store.layers.tree import Node, Tree

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNSUPPORTED = (errno.ENOTSUP, errno.EPERM, errno.EINVAL)
_COPY = 1 << 30
SHIFT = 44
"""Bodies of the tar with the number N have offsets from ``N << SHIFT`` on: 16 TiB each, more than an archive may have."""


def extract(tree: Tree, tar: int | Sequence[int], target: Path, lowers: Sequence[Path] = ()) -> None:
    """Write ``tree`` below ``target``, an existing empty directory; file bodies come from the open file ``tar`` or several.

    ``lowers`` are the layers below, topmost first: hard links to files that only they hold become copies. Raises ``Corrupt`` when such a
    file is nowhere, ``OSError`` when the disk is full or the file system cannot hold the tree.
    """
    root = os.open(target, _DIRECTORY)
    try:
        _Extractor([tar] if isinstance(tar, int) else tar, root, lowers).run(tree.root)
    finally:
        os.close(root)


class _Extractor:
    def __init__(self, tars: Sequence[int], root: int, lowers: Sequence[Path]) -> None:
        self._tars = tars
        self._root = root
        self._lowers = lowers
        self._placed: dict[Node | bytes, bytes] = {}
        """First path of each inode that can be linked again; for links into layers below, by the target's path."""

    def run(self, top: Node) -> None:
        """Depth first with one open descriptor per level; a directory's own attributes last, when nothing touches its time any more."""
        stack = [(os.dup(self._root), b"", top, iter(self._children(top)))]
        try:
            while stack:
                directory, path, node, children = stack[-1]
                for name, child in children:
                    if child.children is None:
                        self._leaf(directory, path, name, child)
                        continue
                    os.mkdir(name, 0o700, dir_fd=directory)
                    inner = os.open(name, _DIRECTORY, dir_fd=directory)
                    stack.append((inner, path + name + b"/", child, iter(self._children(child))))
                    break
                else:
                    self._finish(directory, node)
                    os.close(directory)
                    stack.pop()
        finally:
            for directory, *_ in stack:
                os.close(directory)

    @staticmethod
    def _children(node: Node) -> list[tuple[bytes, Node]]:
        assert node.children is not None
        return list(node.children.items())

    def _leaf(self, directory: int, path: bytes, name: bytes, node: Node) -> None:
        key: Node | bytes = node if node.lower is None else node.lower
        first = self._placed.get(key)
        if first is not None:
            os.link(first, name, src_dir_fd=self._root, dst_dir_fd=directory, follow_symlinks=False)
            return
        self._placed[key] = path + name
        kind = node.mode & 0o170000
        if node.lower is not None:
            self._copy_from_below(directory, name, node.lower)
        elif kind == stat.S_IFREG:
            self._file(directory, name, node)
        elif kind == stat.S_IFLNK:
            assert node.target is not None
            os.symlink(node.target, name, dir_fd=directory)
            self._special(directory, name, node)
        else:
            os.mknod(name, kind | 0o600, os.makedev(*node.rdev), dir_fd=directory)
            self._special(directory, name, node)

    def _file(self, directory: int, name: bytes, node: Node) -> None:
        file = os.open(name, _NEW_FILE, 0o600, dir_fd=directory)
        try:
            if node.sparse is None:
                self._body(file, node.offset, node.size)
            else:
                at = node.offset
                for offset, length in node.sparse:
                    os.lseek(file, offset, os.SEEK_SET)
                    self._body(file, at, length)
                    at += length
                os.ftruncate(file, node.size)
            self._finish(file, node)
        finally:
            os.close(file)

    def _body(self, file: int, offset: int, length: int) -> None:
        tar, offset = self._tars[offset >> SHIFT], offset & ((1 << SHIFT) - 1)
        end = offset + length
        while offset < end:
            sent = os.sendfile(file, tar, offset, min(end - offset, _COPY))
            if sent == 0:
                raise OSError(errno.EIO, "layer tar ended early")
            offset += sent

    @staticmethod
    def _finish(file: int, node: Node) -> None:
        """Owner, mode, attributes and time through a descriptor, in the order in which none undoes another."""
        if node.uid or node.gid:
            os.fchown(file, node.uid, node.gid)
        os.fchmod(file, node.mode & 0o7777)
        if node.xattrs:
            set_xattrs(file, node.xattrs)
        os.utime(file, ns=(node.mtime_ns, node.mtime_ns))

    @staticmethod
    def _special(directory: int, name: bytes, node: Node) -> None:
        """The same for links and devices, which must not be opened: through an ``O_PATH`` descriptor's name in /proc."""
        if node.uid or node.gid:
            os.chown(name, node.uid, node.gid, dir_fd=directory, follow_symlinks=False)
        if node.target is None or node.xattrs:
            file = os.open(name, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                if node.target is None:
                    os.chmod(f"/proc/self/fd/{file}", node.mode & 0o7777)
                    if node.xattrs:
                        set_xattrs(f"/proc/self/fd/{file}", node.xattrs)
                elif node.xattrs:
                    set_xattrs(os.fsencode(f"/proc/self/fd/{directory}/") + name, node.xattrs, follow=False)
            finally:
                os.close(file)
        os.utime(name, ns=(node.mtime_ns, node.mtime_ns), dir_fd=directory, follow_symlinks=False)

    def _copy_from_below(self, directory: int, name: bytes, path: bytes) -> None:
        """A hard link whose target lies in a layer below becomes a copy of it: what copy-up would have made of it."""
        for lower in self._lowers:
            root = os.open(lower, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                source = openat2(root, path, O_PATH | os.O_NOFOLLOW, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue
                raise
            finally:
                os.close(root)
            try:
                status = os.fstat(source)
                if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                    break
                self._copy(directory, name, source, status)
                return
            finally:
                os.close(source)
        raise Corrupt(f"hard link to {os.fsdecode(path)!r}, which neither this layer nor those below it hold")

    def _copy(self, directory: int, name: bytes, source: int, status: os.stat_result) -> None:
        node = Node(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
        link = f"/proc/self/fd/{source}"
        if stat.S_ISREG(status.st_mode):
            node.xattrs = {os.fsencode(key): os.getxattr(link, key) for key in os.listxattr(link) if not key.startswith("trusted.overlay.")}
            opened = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
            try:
                node.size = status.st_size
                _Extractor([opened], self._root, ())._file(directory, name, node)
            finally:
                os.close(opened)
            return
        if stat.S_ISLNK(status.st_mode):
            node.target = os.readlink(b"", dir_fd=source)
        elif stat.S_ISDIR(status.st_mode):
            raise Corrupt(f"hard link {os.fsdecode(name)!r} to a directory of a layer below")
        else:
            node.rdev = os.major(status.st_rdev), os.minor(status.st_rdev)
        self._leaf(directory, b"", name, node)


def set_xattrs(target: int | str | bytes, xattrs: dict[bytes, bytes], *, follow: bool = True) -> None:
    """Set attributes; one that this file system or kind of file cannot hold is left out, as by Docker."""
    for key, value in xattrs.items():
        try:
            if isinstance(target, int):
                os.setxattr(target, key, value)
            else:
                os.setxattr(target, key, value, follow_symlinks=follow)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE):
                shown = os.fsdecode(key)
                raise InvalidArgument(f"extended attribute {shown!r} of {len(value)} bytes does not fit on this file system") from error
            if error.errno not in _UNSUPPORTED or key.startswith(b"trusted.overlay."):
                raise
