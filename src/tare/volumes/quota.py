"""The ``size`` option: a limit that the file system keeps, where it can."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from tare.errors import InvalidArgument
from tare.linux import projectquota

FIRST_PROJECT = 1 << 24
"""Ids below are left to the machine's administrator (and to dockerd, which counts up from 1)."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def limit(data: Path, size: int, taken: Collection[int], name: str) -> int:
    """Put an empty directory under a quota of ``size`` bytes; returns its project id. ``InvalidArgument`` where there are no quotas."""
    fd = os.open(data, _DIRECTORY)
    try:
        if not projectquota.supported(fd):
            raise InvalidArgument(f"create {name}: quota size requested but no quota support")
        project = next(number for number in range(FIRST_PROJECT, 1 << 31) if number not in taken)
        projectquota.set_limit(fd, project, size)
        projectquota.set_project(fd, project)
        return project
    finally:
        os.close(fd)


def lift(root: Path, project: int) -> None:
    """Forget a project's limit, so that its id can serve again."""
    fd = os.open(root, _DIRECTORY)
    try:
        projectquota.set_limit(fd, project, 0)
    except OSError:
        pass  # quotas were switched off since: there is nothing to lift
    finally:
        os.close(fd)
