"""/proc/self/mountinfo (proc_pid_mountinfo(5)) as far as mounts and their propagation go."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

_ESCAPE = re.compile(r"\\([0-7]{3})")
PATH = "/proc/self/mountinfo"


class MountEntry(NamedTuple):
    """One mount: where it is, and how it propagates."""

    path: str
    fstype: str
    source: str
    shared: bool
    slave: bool
    number: int = 0
    device: str = ""
    """``MAJOR:MINOR`` of the file system: the same wherever it is mounted."""


def parse(lines: Iterable[str]) -> list[MountEntry]:
    """The mounts of a mountinfo file, in its order: a later one at the same place covers the earlier."""
    found = []
    for line in lines:
        before, separator, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 2:
            continue
        tags = [field.partition(":")[0] for field in fields[6:]]
        source = _plain(rest[1].rstrip("\n"))
        found.append(MountEntry(_plain(fields[4]), rest[0], source, "shared" in tags, "master" in tags, int(fields[0]), fields[2]))
    return found


def _plain(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text) if "\\" in text else text


def read(path: str = PATH) -> list[MountEntry]:
    """The mounts that this process sees, or the one whose mountinfo is given."""
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        return parse(stream)


def mount_points() -> list[str]:
    """Where something is mounted."""
    return [entry.path for entry in read()]


def covering(path: str, entries: Iterable[MountEntry]) -> MountEntry | None:
    """The mount that ``path`` (links resolved here) lies on."""
    real, best = os.path.realpath(path), None
    for entry in entries:
        above = real == entry.path or entry.path == "/" or real.startswith(f"{entry.path}/")
        if above and (best is None or len(entry.path) >= len(best.path)):
            best = entry
    return best
