"""inotify(7): a non-blocking descriptor that becomes readable when something in one of its directories changes."""

from __future__ import annotations

import ctypes
import os
import struct

IN_MODIFY = 0x2
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE_SELF = 0x400

_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name that follows
_libc = ctypes.CDLL(None, use_errno=True)


def instance() -> int:
    """A new descriptor (non-blocking, close-on-exec) that watches nothing yet. A user has but few (``max_user_instances``)."""
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        _fail("inotify_init1")
    return fd


def watch(fd: int, path: str, mask: int = IN_MODIFY | IN_MOVED_TO | IN_CREATE | IN_DELETE_SELF) -> int:
    """Watch a directory; the same directory has the same number each time. Raises ``OSError`` naming the path."""
    number: int = _libc.inotify_add_watch(fd, os.fsencode(path), mask)
    if number < 0:
        _fail(path)
    return number


def forget(fd: int, number: int) -> None:
    """Watch that directory no more; fine when it has gone."""
    _libc.inotify_rm_watch(fd, number)


def changed(fd: int) -> set[int]:
    """Read away what is queued; the numbers of the directories in which there was something."""
    found: set[int] = set()
    while True:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return found
        at = 0
        while at < len(data):
            number, _, _, length = _EVENT.unpack_from(data, at)
            found.add(number)
            at += _EVENT.size + length


def _fail(what: str) -> None:
    errno = ctypes.get_errno()
    raise OSError(errno, os.strerror(errno), what)
