"""How this package makes bytes stay: whole writes, directories whose new names survive a power cut, whole-file replacement, removal.

A rename is durable only when its directory is synced; a file's bytes only when the file is. ``replace_file`` is the one way in which a
small file changes, ``remove_tree`` the one way in which a directory goes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from pathlib import Path

_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def write_all(file: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of ``data`` to a descriptor."""
    written = os.write(file, data)
    if written == len(data):
        return
    view = memoryview(data)
    while written < len(view):
        written += os.write(file, view[written:])


def start_writeback(file: int, offset: int, length: int) -> None:
    """Ask the kernel to begin writing a range to the disk, so that a later fsync finds little left to do. Advisory."""
    _libc.sync_file_range(file, offset, length, _SYNC_FILE_RANGE_WRITE)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def sync_filesystem(path: Path) -> None:
    """Make everything below ``path`` durable at once (``syncfs``): cheaper than a sync per file for a tree of thousands."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(directory):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(directory)


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Make a directory and what is missing above it (0711: passable, not readable), also under a lax umask. Idempotent."""
    try:
        path.mkdir(mode)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_directory(path.parent, 0o711)
        path.mkdir(mode, exist_ok=True)


def replace_file(path: Path, data: bytes, *, durable: bool = True, mode: int = 0o600) -> None:
    """Give ``path`` new content, all or nothing."""
    temporary = path.with_name(f".{path.name}.new")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        write_all(file, data)
        if durable:
            os.fsync(file)
    finally:
        os.close(file)
    temporary.rename(path)
    if durable:
        sync_directory(path.parent)


def remove_tree(path: Path) -> None:
    """Delete a directory tree without following links; directories without permissions (overlay's work directory) included. Idempotent."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            raise
        for directory, names, _ in os.walk(path):
            for name in names:
                child = os.path.join(directory, name)
                if not stat.S_ISLNK(os.lstat(child).st_mode):
                    os.chmod(child, 0o700)
        shutil.rmtree(path)
