"""Copying a directory tree from descriptor to descriptor: no link is ever followed, no path resolved.

Owners, modes, times, extended attributes and hard links come along, sockets do not.
"""

from __future__ import annotations

import fcntl
import os
import stat

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SLICE = 1 << 24
_FICLONE = 0x40049409


def copy_tree(source: int, target: int, *, keep_owner: bool = False) -> None:
    """Copy what is in one open directory into another, empty one, hard links as such; ``keep_owner``: the latter's own owner and mode
    stay."""
    links: dict[tuple[int, int], int] = {}
    _copy_entries(source, target, links)
    for fd in links.values():
        os.close(fd)
    if not keep_owner:
        _copy_metadata(source, target)


def _copy_entries(source: int, target: int, links: dict[tuple[int, int], int]) -> None:
    with os.scandir(source) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            _copy_subdirectory(source, target, name, links)
        elif kind == stat.S_IFREG:
            _copy_file(source, target, name, status, links)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)
        elif kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK):
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
            os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_subdirectory(source: int, target: int, name: str, links: dict[tuple[int, int], int]) -> None:
    os.mkdir(name, 0o700, dir_fd=target)
    inner_source = os.open(name, _DIRECTORY, dir_fd=source)
    try:
        inner_target = os.open(name, _DIRECTORY, dir_fd=target)
        try:
            _copy_entries(inner_source, inner_target, links)
            _copy_metadata(inner_source, inner_target)
        finally:
            os.close(inner_target)
    finally:
        os.close(inner_source)


def _copy_file(source: int, target: int, name: str, status: os.stat_result, links: dict[tuple[int, int], int]) -> None:
    key = (status.st_dev, status.st_ino)
    if key in links:
        os.link(f"/proc/self/fd/{links[key]}", name, dst_dir_fd=target, follow_symlinks=True)
        return
    reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    try:
        writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            _copy_bytes(reader, writer)
            _copy_metadata(reader, writer)
        finally:
            if status.st_nlink > 1:
                links[key] = writer
            else:
                os.close(writer)
    finally:
        os.close(reader)


def _copy_bytes(reader: int, writer: int) -> None:
    """Share the blocks where the file system can (btrfs, XFS), else copy in the kernel."""
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
        return
    except OSError:
        pass
    while os.sendfile(writer, reader, None, _SLICE):
        pass


def _copy_metadata(source: int, target: int) -> None:
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if not name.startswith("trusted.overlay."):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
