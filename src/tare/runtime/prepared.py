"""What a spare init makes before it knows its container: namespaces, and the file systems that nearly every container mounts.

New network, UTS and IPC namespaces and half a dozen file system instances cost two milliseconds, and they are the
same for all containers: a spare has them ready. The file systems are detached mounts; a ``MountFilesystem`` step
whose every parameter equals one of them takes it, any other step makes its own. The mount namespace is not made
ahead: it has to see the host's mounts as they are at the start.

Everything here is optional: what cannot be made is not there, and the steps do it.
"""

from __future__ import annotations

import os

from tare.linux import libc, loopback, mount, namespaces
from tare.linux.constants import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME,
)
from tare.runtime.steps.rootfs import fill_dev

NAMESPACES = ("net", "uts", "ipc")

_SAFE = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NODEV

Key = tuple[str, tuple[str, ...], int]
"""Type, parameters, attributes."""

DEV: Key = ("tmpfs", ("mode=755", "size=65536k"), MOUNT_ATTR_NOSUID | MOUNT_ATTR_STRICTATIME)
SHM: Key = ("tmpfs", ("mode=1777", "size=67108864"), _SAFE)
USUAL: tuple[Key, ...] = (
    ("proc", (), _SAFE),
    DEV,
    ("devpts", ("newinstance", "ptmxmode=0666", "mode=0620", "gid=5"), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC),
    ("sysfs", (), _SAFE | MOUNT_ATTR_RDONLY),
    ("mqueue", (), _SAFE),
    SHM,
)


class Prepared:
    """What one spare has ready."""

    __slots__ = ("mounts", "namespaces")

    def __init__(self) -> None:
        self.namespaces: tuple[str, ...] = ()
        self.mounts: dict[Key, int] = {}

    def take(self, key: Key) -> int:
        """The detached mount with exactly these parameters, or -1. Whoever takes it owns it."""
        return self.mounts.pop(key, -1)

    def discard(self) -> None:
        """Close what nobody took."""
        for fd in self.mounts.values():
            os.close(fd)
        self.mounts.clear()


def prepare() -> Prepared:
    """Make everything, in the calling process."""
    prepared = Prepared()
    try:
        libc.unshare(namespaces.flags_of(NAMESPACES))
        loopback.bring_up()
        prepared.namespaces = NAMESPACES
    except OSError:
        return prepared
    mask = os.umask(0)
    try:
        for key in USUAL:
            fstype, options, attributes = key
            fd = mount.new_filesystem(fstype, options, attributes, "shm" if key == SHM else fstype)
            prepared.mounts[key] = fd
            if key == DEV:
                fill_dev(fd)
    except OSError:
        prepared.discard()
    finally:
        os.umask(mask)
    return prepared
