"""What one tar entry says, whatever dialect (v7, ustar, GNU, PAX) said it, and the limits that a hostile archive runs into.

Names and link targets are bytes exactly as stored: a tar has no encoding, and a container's file names have none either.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field

BLOCK = 512
"""Tar's unit: headers and bodies begin at multiples of it."""


class Kind(enum.Enum):
    """The type of an entry, dialects folded together."""

    FILE = "file"
    LINK = "hard link"
    SYMLINK = "symbolic link"
    CHARACTER = "character device"
    BLOCK = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


@dataclass(slots=True)
class Entry:
    """One entry of an archive, all extension headers applied."""

    name: bytes
    kind: Kind
    mode: int = 0o644
    """Permission bits with setuid, setgid and sticky; never a file type."""
    uid: int = 0
    gid: int = 0
    size: int = 0
    """Length of the file as it is after extraction; 0 for everything but files."""
    mtime_ns: int = 0
    """Nanoseconds since the epoch; may be negative."""
    linkname: bytes = b""
    """Target of a hard or symbolic link."""
    major: int = 0
    minor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    offset: int = 0
    """Where the body begins in the archive, in bytes; a multiple of 512."""
    stored: int = 0
    """Length of the body in the archive; differs from ``size`` only for a sparse file."""
    sparse: tuple[tuple[int, int], ...] | None = None
    """The data regions (offset in the file, length) of a sparse file, in the order in which the body holds them; else None."""
    uname: bytes = b""
    gname: bytes = b""


@dataclass(frozen=True)
class Limits:
    """Caps on what an archive may make us hold in memory. Each has a clear error; none is met by an honest image."""

    entries: int = 4_000_000
    """On small machines fewer: see ``affordable``."""
    path: int = 4095
    """Bytes in a path (PATH_MAX without its NUL), symbolic link targets included."""
    name: int = 255
    """Bytes in one component (NAME_MAX)."""
    depth: int = 256
    """Nested directories."""
    extension: int = 1 << 20
    """Bytes in one extension header (PAX, GNU long name, sparse map)."""
    metadata: int = 512 << 20
    """Bytes of names, targets and extended attributes in the whole archive."""
    total: int = 1 << 40
    """Bytes of the whole archive."""


def affordable(memory: int) -> Limits:
    """The limits for a machine with so many bytes of memory: the entries of one layer, held while it is indexed, may take a quarter."""
    return Limits(entries=max(200_000, min(Limits.entries, memory // 4 // _ENTRY_COST)))


_ENTRY_COST = 640
"""Bytes that an entry takes while its layer's index is built, measured."""
DEFAULT_LIMITS = affordable(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
