"""Mount options of the OCI runtime-spec, sorted into what they are: attributes, propagation, or the file system's own parameters."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from tare.linux.constants import (
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME,
    MS_PRIVATE,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
)

PROPAGATION: dict[str, int] = {
    "private": MS_PRIVATE,
    "shared": MS_SHARED,
    "slave": MS_SLAVE,
    "unbindable": MS_UNBINDABLE,
    "rprivate": MS_PRIVATE | MS_REC,
    "rshared": MS_SHARED | MS_REC,
    "rslave": MS_SLAVE | MS_REC,
    "runbindable": MS_UNBINDABLE | MS_REC,
}

_ATTRIBUTES: dict[str, tuple[int, int]] = {
    "ro": (MOUNT_ATTR_RDONLY, 0),
    "rw": (0, MOUNT_ATTR_RDONLY),
    "nosuid": (MOUNT_ATTR_NOSUID, 0),
    "suid": (0, MOUNT_ATTR_NOSUID),
    "nodev": (MOUNT_ATTR_NODEV, 0),
    "dev": (0, MOUNT_ATTR_NODEV),
    "noexec": (MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, MOUNT_ATTR_NOEXEC),
    "nodiratime": (MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, MOUNT_ATTR_NODIRATIME),
    "noatime": (MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME),
    "relatime": (0, MOUNT_ATTR__ATIME),
    "atime": (0, MOUNT_ATTR__ATIME),
    "strictatime": (MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME),
    "norelatime": (0, MOUNT_ATTR__ATIME),
    "nostrictatime": (0, MOUNT_ATTR__ATIME),
    "nosymfollow": (MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, MOUNT_ATTR_NOSYMFOLLOW),
}
_IGNORED = frozenset(("defaults", "async", "nomand", "loud", "silent", "iversion", "noiversion", "acl", "noacl", "remount"))


class MountOptions(NamedTuple):
    """Sorted options of one mount."""

    bind: bool = False
    recursive: bool = False
    add: int = 0
    clear: int = 0
    add_recursive: int = 0
    clear_recursive: int = 0
    propagation: int = 0
    translated: str = ""
    """``idmap`` or ``ridmap``: whether owners are translated, and below too."""
    data: tuple[str, ...] = ()


def parse(options: Iterable[str]) -> MountOptions:
    """Sort options; later ones win over earlier ones. ValueError for what cannot be done."""
    return _parse(tuple(options))


@lru_cache(256)  # nearly all containers have the same mounts
def _parse(options: tuple[str, ...]) -> MountOptions:
    result = MountOptions()
    data: list[str] = []
    for option in options:
        if option in ("bind", "rbind"):
            result = result._replace(bind=True, recursive=option == "rbind")
        elif option in PROPAGATION:
            result = result._replace(propagation=PROPAGATION[option])
        elif option in _ATTRIBUTES:
            add, clear = _ATTRIBUTES[option]
            result = result._replace(add=result.add & ~clear | add, clear=result.clear & ~add | clear)
        elif option.startswith("r") and option[1:] in _ATTRIBUTES:
            add, clear = _ATTRIBUTES[option[1:]]
            result = result._replace(
                add_recursive=result.add_recursive & ~clear | add, clear_recursive=result.clear_recursive & ~add | clear
            )
        elif option in ("idmap", "ridmap"):
            result = result._replace(translated=option)
        elif option not in _IGNORED and option:
            data.append(option)
    return result._replace(data=tuple(data))
