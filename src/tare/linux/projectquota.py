"""Project quotas of ext4, XFS and f2fs: a directory tree that is counted and limited (quotactl_fd(2), FS_IOC_FSSETXATTR).

A project id on a directory with the inheritance flag is passed on to everything made below it; the file system counts blocks per id and
refuses writes beyond the limit with EDQUOT. It must be mounted with ``prjquota``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from tare.linux import libc

_NR_QUOTACTL_FD = 443
_PRJQUOTA = 2
_Q_GETQUOTA, _Q_SETQUOTA = 0x800007, 0x800008
_QIF_BLIMITS = 1
_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
_PROJINHERIT = 0x200
_DQBLK = struct.Struct("=8QI4x")
_FSXATTR = struct.Struct("=5I8x")
_BLOCK = 1024


def _command(name: int) -> int:
    return name << 8 | _PRJQUOTA


def supported(fd: int) -> bool:
    """Whether the file system of an open directory counts projects."""
    buffer = bytes(_DQBLK.size)
    try:
        libc.syscall(_NR_QUOTACTL_FD, fd, _command(_Q_GETQUOTA), 0, buffer)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.ENOENT, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ENOTBLK):
            return False
        raise
    return True


def set_limit(fd: int, project: int, size: int) -> None:
    """Limit what a project may hold to ``size`` bytes (rounded up to a kibibyte); 0 lifts the limit."""
    blocks = -(-size // _BLOCK)
    libc.syscall(_NR_QUOTACTL_FD, fd, _command(_Q_SETQUOTA), project, _DQBLK.pack(blocks, blocks, 0, 0, 0, 0, 0, 0, _QIF_BLIMITS))


def set_project(fd: int, project: int) -> None:
    """Put an open directory, and what will be made in it, under a project."""
    flags, extent, count, _, cow = _FSXATTR.unpack(fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size)))
    fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, _FSXATTR.pack(flags | _PROJINHERIT, extent, count, project, cow))


def project_of(path: str) -> int:
    """The project of a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return int(_FSXATTR.unpack(fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size)))[3])
    finally:
        os.close(fd)
