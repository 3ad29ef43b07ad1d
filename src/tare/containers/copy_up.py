"""Filling a fresh volume with what the image has at the mount's destination, as Docker does on first use.

The destination is resolved inside the container's root by file descriptor (an image may have made it a link to the host's files), and the
copy goes from directory descriptor to directory descriptor without ever following a link. A volume that already holds something is left
alone. The volume directory itself takes over owner and mode of the image's directory.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tare.linux.mount import open_in_root

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SLICE = 1 << 24


def copy_up(root: Path, destination: str, volume: Path, *, keep_owner: bool = False) -> None:
    """Copy ``destination`` of the mounted root into the empty directory ``volume``; ``keep_owner``: that one's own owner and mode stay."""
    if any(os.scandir(volume)):
        return
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            source = open_in_root(root_fd, destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return
    finally:
        os.close(root_fd)
    try:
        target = os.open(volume, _DIRECTORY)
        try:
            _copy_directory(source, target, keep_owner)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_directory(source: int, target: int, keep_owner: bool) -> None:
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
        elif kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK):
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)


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
            while os.sendfile(writer, reader, None, _SLICE):
                pass
            _copy_metadata(reader, writer)
        finally:
            if status.st_nlink > 1:
                links[key] = writer
            else:
                os.close(writer)
    finally:
        os.close(reader)


def _copy_metadata(source: int, target: int) -> None:
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if not name.startswith("trusted.overlay."):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
