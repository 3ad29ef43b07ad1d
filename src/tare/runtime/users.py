"""Docker's user strings, looked up in the container root's own passwd and group files.

The files belong to the image and may be hostile: only regular files are read, never through a link, never blocking on
a FIFO, and never more than a fixed amount. The name service of the host is not asked (it would load libraries).

    ""  name  uid  name:group  uid:gid        plus additional groups by name or number
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tare.linux.constants import MAX_ID

FILE_LIMIT = 1024 * 1024
LINE_LIMIT = 16 * 1024
LINES_LIMIT = 20_000
GROUPS_LIMIT = 1024

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Identity(NamedTuple):
    """Who a process runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


class UnknownUser(OSError):
    """A user or group that the root's files do not know, or an id out of range. ``str()`` is Docker's text."""

    def __str__(self) -> str:
        return str(self.args[0])


def read_lines(path: str, dir_fd: int | None = None) -> list[str]:
    """The lines of one of the root's account files; nothing when it is missing, not a regular file, or too large."""
    try:
        fd = os.open(path, _READ, dir_fd=dir_fd)
    except OSError:
        return []
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_LIMIT:
            return []
        data = b""
        while len(data) <= FILE_LIMIT:
            chunk = os.read(fd, 65536)
            if not chunk:
                break
            data += chunk
    except OSError:
        return []
    finally:
        os.close(fd)
    lines = data[:FILE_LIMIT].decode("utf-8", "surrogateescape").split("\n")[:LINES_LIMIT]
    return [line for line in lines if 0 < len(line) <= LINE_LIMIT and not line.startswith("#")]


def _number(text: str) -> int | None:
    """A decimal id; None when it is no number. Raises when it is out of range."""
    if not (text.isascii() and text.removeprefix("-").isdigit()):
        return None
    value = int(text) if len(text) < 20 else MAX_ID + 1
    if not 0 <= value <= MAX_ID:
        raise UnknownUser(f"uids and gids must be in range 0-{MAX_ID}")
    return value


def _records(lines: Iterable[str], fields: int) -> Iterator[list[str]]:
    for line in lines:
        parts = line.strip().split(":")
        if len(parts) >= fields:
            yield parts


def _id(text: str) -> int | None:
    """An id from a file: anything that is not a valid number does not count."""
    try:
        return _number(text)
    except UnknownUser:
        return None


def resolve(user: str, additional: Iterable[str], passwd: list[str], group: list[str]) -> Identity:
    """Who ``user`` means according to the lines of passwd and group."""
    user_part, _, group_part = user.partition(":")
    user_part = user_part or "0"
    wanted = _number(user_part)
    uid, gid, home, name = wanted, 0, "", ""
    for entry in _records(passwd, 4):
        entry_uid, entry_gid = _id(entry[2]), _id(entry[3])
        if entry_uid is None or entry_gid is None:
            continue
        if entry[0] == user_part or (wanted is not None and entry_uid == wanted):
            uid, gid, name = entry_uid, entry_gid, entry[0]
            home = entry[5] if len(entry) > 5 else ""
            break
    if uid is None:
        raise UnknownUser(f"unable to find user {user_part}: no matching entries in passwd file")
    groups: list[int] = []
    if group_part:
        gid = _group(group_part, group)
    elif name:
        for entry in _records(group, 4):
            number = _id(entry[2])
            if number is not None and name in entry[3].split(","):
                groups.append(number)
    for extra in additional:
        groups.append(_group(extra, group))
    # The primary group is one of the groups too, so that leaving it does not open what is closed to its members (CVE-2022-36109).
    unique = tuple(dict.fromkeys([gid, *groups]))[:GROUPS_LIMIT]
    return Identity(uid, gid, unique, home or "/")


def _group(text: str, lines: list[str]) -> int:
    """The id of a group given by name or number."""
    number = _number(text)
    for entry in _records(lines, 3):
        entry_gid = _id(entry[2])
        if entry_gid is not None and entry[0] == text:
            return entry_gid
    if number is None:
        raise UnknownUser(f"unable to find group {text}: no matching entries in group file")
    return number


def look_up(user: str, additional: Iterable[str]) -> Identity:
    """Resolve within the present root directory, reading the files only when they are needed."""
    return resolve(user, additional, read_lines("/etc/passwd"), read_lines("/etc/group"))
