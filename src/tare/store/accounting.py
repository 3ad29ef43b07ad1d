"""Where the bytes of a data root are: every one of them attributed to something by name.

What is counted is what the disk holds (allocated blocks, directories included, each inode once), so the entries of a root add up to what
``du -x`` says of it. Other file systems mounted below are not the root's. The layout is the one drawn in ``config.py``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 512
_NAMED = {"volumes": "volume", "containers": "container", "snapshots": "snapshot"}
"""Top directories whose children are one thing each."""


@dataclass(frozen=True, order=True)
class Entry:
    """One thing under a data root: its kind, its name (a digest, an id, a path below the root) and the bytes it takes on the disk."""

    kind: str
    name: str
    size: int


def account(root: Path) -> list[Entry]:
    """Every byte below ``root``, sorted by kind and name; what vanishes meanwhile is left out. Slow: for a worker thread."""
    totals: Counter[tuple[str, str]] = Counter()
    device = os.lstat(root).st_dev
    seen: set[int] = set()
    for relative, status in _walk(os.fsencode(root), b"", device):
        if status.st_nlink > 1 and status.st_mode & 0o170000 != 0o040000:
            if status.st_ino in seen:
                continue
            seen.add(status.st_ino)
        totals[_attribute(os.fsdecode(relative))] += status.st_blocks * _BLOCK
    return sorted(Entry(kind, name, size) for (kind, name), size in totals.items() if size)


def _walk(root: bytes, prefix: bytes, device: int) -> Iterator[tuple[bytes, os.stat_result]]:
    try:
        yield prefix, os.lstat(root)
    except FileNotFoundError:
        return
    stack = [(root, prefix)]
    while stack:
        directory, prefix = stack.pop()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if status.st_dev != device:
                        continue
                    relative = prefix + b"/" + entry.name if prefix else entry.name
                    yield relative, status
                    if entry.is_dir(follow_symlinks=False):
                        stack.append((entry.path, relative))
        except (FileNotFoundError, NotADirectoryError):
            continue


def _attribute(path: str) -> tuple[str, str]:
    """Kind and name of what the file at ``path`` (relative to the root) belongs to."""
    parts = path.split("/")
    top = parts[0]
    if top == "blobs" and len(parts) > 2:
        return "blob", f"{parts[1]}:{parts[2]}"
    if top == "ingest" and len(parts) > 1:
        return "download", parts[1]
    if top == "layers" and len(parts) > 3:
        if parts[2] == "tmp":
            return "removing", "/".join(parts[:4])
        if parts[2] in ("sha256", "chains"):
            return ("layer" if parts[2] == "sha256" else "stack"), f"sha256:{parts[3]}"
    if top in _NAMED and len(parts) > 1:
        if parts[1].startswith("."):
            return ("removing", "/".join(parts[:3])) if len(parts) > 2 else ("directory", top)
        return _NAMED[top], parts[1]
    if top == "builder" and len(parts) > 2:
        return ("build cache" if parts[1] == "cache" else "removing"), "/".join(parts[1:3])
    if top.startswith("metadata.db") or top == "engine-id":
        return "metadata", top.partition("-wal")[0].partition("-shm")[0]
    if top in ("", "lock", "blobs", "ingest", "layers", "builder", *_NAMED):
        return "directory", top or "."
    return "other", top
