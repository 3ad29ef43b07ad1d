"""Loop devices (loop(4)): a file as a block device, read-only, that goes by itself with its last user."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_CONTROL = "/dev/loop-control"
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_READ_ONLY, _AUTOCLEAR = 1, 4
_MAJOR = 7
_TRIES = 32
_CONFIG = struct.Struct("=II 232s 8Q")
"""struct loop_config: fd, block size, loop_info64 (of which only the flags matter here), reserved."""
_INFO_FLAGS_OFFSET = 8 * 5 + 4 * 3


def attach(file: int) -> tuple[int, str]:
    """Give the open file a free loop device, read-only and self-clearing: its descriptor, to be kept open until it is mounted, and path.

    Needs Linux 5.8 (LOOP_CONFIGURE). Raises ``OSError``.
    """
    info = bytearray(232)
    struct.pack_into("=I", info, _INFO_FLAGS_OFFSET, _READ_ONLY | _AUTOCLEAR)
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            path = f"/dev/loop{number}"
            try:
                device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                os.mknod(path, 0o600 | 0o060000, os.makedev(_MAJOR, number))  # a /dev without udev
                device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, _CONFIG.pack(file, 512, bytes(info), *[0] * 8))
                return device, path
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else was given it in the same moment
                    raise
        raise OSError(errno.EBUSY, "no free loop device", _CONTROL)
    finally:
        os.close(control)


def backing_file(path: str) -> str:
    """The file behind a loop device, "" when it is none or free."""
    try:
        with open(f"/sys/block/{os.path.basename(path)}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as text:
            return text.read().rstrip("\n")
    except OSError:
        return ""
