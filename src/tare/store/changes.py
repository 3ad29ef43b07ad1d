"""What a container changed: reading trees that a hostile, possibly running container owns.

Every directory is opened relative to its parent's descriptor with ``O_NOFOLLOW``, so a name that is swapped for a link while we walk gives
a gap, never another file. Upper and lower trees are descended side by side, so a lower symbolic link is never followed either.
"""

from __future__ import annotations

import enum
import os
import stat
from dataclasses import dataclass

from tare.errors import InvalidArgument
from tare.store.tartree import DEPTH, DIRECTORY, is_opaque, is_whiteout, open_component


class ChangeKind(enum.IntEnum):
    """Docker's numbers."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


@dataclass(frozen=True, order=True)
class Change:
    """One path (absolute, as seen in the container) and what became of it."""

    path: str
    kind: ChangeKind


def _status(directory: int | None, name: bytes) -> os.stat_result | None:
    if directory is None:
        return None
    try:
        return os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return None


def compare(upper: int, lower: int) -> list[Change]:
    """The changes that the overlay directory ``upper`` makes to ``lower`` (both open directories), sorted by path."""
    changes: list[Change] = []
    _compare(upper, lower, b"/", changes, 0)
    return sorted(changes)


def _compare(upper: int, lower: int | None, prefix: bytes, changes: list[Change], depth: int) -> bool:
    """Append the changes below one directory; returns whether there were any."""
    if depth > DEPTH:
        raise InvalidArgument(f"the container's file tree is nested deeper than {DEPTH} directories")
    before = len(changes)
    names = {os.fsencode(name) for name in os.listdir(upper)}
    for name in names:
        path = prefix + name
        status = _status(upper, name)
        if status is None:
            continue
        below = _status(lower, name)
        if is_whiteout(status):
            if below is not None:
                changes.append(Change(os.fsdecode(path), ChangeKind.DELETED))
            continue
        if stat.S_ISDIR(status.st_mode) and not _compare_directory(upper, lower, path, name, (status, below), changes, depth):
            continue
        changes.append(Change(os.fsdecode(path), ChangeKind.ADDED if below is None else ChangeKind.MODIFIED))
    if lower is not None and depth and is_opaque(upper):
        for hidden in os.listdir(lower):
            if os.fsencode(hidden) not in names:
                changes.append(Change(os.fsdecode(prefix) + hidden, ChangeKind.DELETED))
    return len(changes) > before


def _compare_directory(
    upper: int,
    lower: int | None,
    path: bytes,
    name: bytes,
    statuses: tuple[os.stat_result, os.stat_result | None],
    changes: list[Change],
    depth: int,
) -> bool:
    """Compare a directory's content; returns whether the directory itself counts as changed."""
    status, below = statuses
    inner = open_component(upper, name, DIRECTORY)
    if inner is None:
        return False
    try:
        beneath = (
            open_component(lower, name, DIRECTORY) if lower is not None and below is not None and stat.S_ISDIR(below.st_mode) else None
        )
        try:
            content = _compare(inner, beneath, path + b"/", changes, depth + 1)
        finally:
            if beneath is not None:
                os.close(beneath)
    finally:
        os.close(inner)
    if content or below is None:
        return True
    fields = ("st_mode", "st_uid", "st_gid", "st_mtime_ns")
    return any(getattr(status, field) != getattr(below, field) for field in fields)
