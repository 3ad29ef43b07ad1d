"""inotify(7): a non-blocking descriptor that becomes readable when something in a directory changes."""

from __future__ import annotations

import ctypes
import os

IN_MODIFY = 0x2
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE_SELF = 0x400

_libc = ctypes.CDLL(None, use_errno=True)


def watch_directory(path: str, mask: int = IN_MODIFY | IN_MOVED_TO | IN_CREATE | IN_DELETE_SELF) -> int:
    """A new inotify descriptor (non-blocking, close-on-exec) that watches ``path``. Raises ``OSError`` naming the path."""
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), "inotify_init1")
    if _libc.inotify_add_watch(fd, os.fsencode(path), mask) < 0:
        errno = ctypes.get_errno()
        os.close(fd)
        raise OSError(errno, os.strerror(errno), path)
    return fd


def drain(fd: int) -> bool:
    """Read away what is queued. True if there was anything."""
    found = False
    while True:
        try:
            if not os.read(fd, 65536):
                return found
        except BlockingIOError:
            return found
        found = True
