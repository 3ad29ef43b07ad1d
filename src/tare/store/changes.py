"""What a container changed: reading trees that a hostile, possibly running container owns.

Every directory is opened relative to its parent's descriptor with ``O_NOFOLLOW``, so a name that is swapped for a link while we walk gives
a gap, never another file. Upper and lower trees are descended side by side, so a lower symbolic link is never followed either.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from tare.errors import InvalidArgument
from tare.linux.constants import O_PATH
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


def compare_whole(upper: int, lower: int) -> list[Change]:
    """The changes between two complete trees: ``upper`` began as a copy of ``lower``. A file counts as changed by what its inode says."""
    changes: list[Change] = []
    _compare_whole(upper, lower, b"/", changes, 0)
    return sorted(changes)


def _compare_whole(upper: int, lower: int | None, prefix: bytes, changes: list[Change], depth: int) -> bool:
    if depth > DEPTH:
        raise InvalidArgument(f"the container's file tree is nested deeper than {DEPTH} directories")
    before = len(changes)
    names = {os.fsencode(name) for name in os.listdir(upper)}
    for name in names:
        status = _status(upper, name)
        if status is None:
            continue
        below = _status(lower, name)
        path = prefix + name
        if stat.S_ISDIR(status.st_mode):
            changed = _compare_directory(upper, lower, path, name, (status, below), changes, depth, _compare_whole)
        else:
            changed = below is None or _differs(upper, lower, name, status, below)
        if changed or (lower is not None and _attributes(upper, name) != _attributes(lower, name)):
            changes.append(Change(os.fsdecode(path), ChangeKind.ADDED if below is None else ChangeKind.MODIFIED))
    for gone in os.listdir(lower) if lower is not None else ():
        if os.fsencode(gone) not in names:
            changes.append(Change(os.fsdecode(prefix) + gone, ChangeKind.DELETED))
    return len(changes) > before


def _differs(upper: int, lower: int | None, name: bytes, status: os.stat_result, below: os.stat_result) -> bool:
    fields = ["st_mode", "st_uid", "st_gid", "st_rdev"]
    if stat.S_ISREG(status.st_mode):
        fields += ["st_size", "st_mtime_ns"]
    if any(getattr(status, field) != getattr(below, field) for field in fields):
        return True
    if stat.S_ISLNK(status.st_mode):
        try:
            return os.readlink(name, dir_fd=upper) != os.readlink(name, dir_fd=lower)
        except OSError:
            return True
    return False


def _attributes(directory: int, name: bytes) -> dict[str, bytes]:
    """The extended attributes of an object; of one that has gone or cannot have them, none."""
    file = open_component(directory, name, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    if file is None:
        return {}
    try:
        path = f"/proc/self/fd/{file}"
        return {key: os.getxattr(path, key) for key in os.listxattr(path)}
    except OSError:
        return {}
    finally:
        os.close(file)


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
        if stat.S_ISDIR(status.st_mode) and not _compare_directory(upper, lower, path, name, (status, below), changes, depth, _compare):
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
    descend: Callable[[int, int | None, bytes, list[Change], int], bool],
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
            content = descend(inner, beneath, path + b"/", changes, depth + 1)
        finally:
            if beneath is not None:
                os.close(beneath)
    finally:
        os.close(inner)
    if content or below is None:
        return True
    fields = ("st_mode", "st_uid", "st_gid", "st_mtime_ns")
    return any(getattr(status, field) != getattr(below, field) for field in fields)
