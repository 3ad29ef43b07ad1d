"""Pseudo-terminals, opened by descriptor only.

A container owns its devpts, so nothing below it may be trusted by path: the master comes from a devpts whose
superblock was checked, and the slave from the master itself (TIOCGPTPEER), never from a name in /dev/pts
(CVE-2025-52565).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from tare.linux import libc
from tare.linux.constants import DEVPTS_SUPER_MAGIC, TIOCGPTPEER, TIOCSCTTY, TIOCSPTLCK, TIOCSWINSZ


def open_pair(devpts_fd: int) -> tuple[int, int]:
    """A new terminal of the devpts whose root directory is ``devpts_fd``: (master, slave), both close-on-exec."""
    if libc.filesystem_magic(devpts_fd) != DEVPTS_SUPER_MAGIC:
        raise OSError(errno.ENOTTY, "not a devpts file system", "/dev/pts")
    master = os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=devpts_fd)
    try:
        status = os.fstat(master)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(5, 2):
            raise OSError(errno.ENOTTY, "not a terminal multiplexer", "/dev/pts/ptmx")
        fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except BaseException:
        os.close(master)
        raise
    return master, slave


def set_size(fd: int, rows: int, columns: int) -> None:
    """Tell a terminal its size; its foreground processes get SIGWINCH."""
    fcntl.ioctl(fd, TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))


def make_controlling(fd: int) -> None:
    """Make ``fd`` the controlling terminal of the calling session leader."""
    fcntl.ioctl(fd, TIOCSCTTY, 0)
