"""Carry out a list of ``Write``s: alternatives, deferral, and which failures only cost a warning.

A limit that the kernel does not offer, or that the host's confinement forbids (EPERM, EACCES, EROFS), is left out with a warning, as
dockerd does; a value that the kernel refuses (EINVAL, EBUSY, ERANGE, ...) is an error, since the caller asked for something that cannot be.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from tare.linux.cgroup import files
from tare.linux.cgroup.convert import Write

_ABSENT = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP)
_FORBIDDEN = (errno.EPERM, errno.EACCES, errno.EROFS)


def run(writes: Iterable[Write], directory: Callable[[str], str | None]) -> list[str]:
    """Write all; ``directory`` gives the group's directory for a controller, None when no hierarchy has it. Returns warnings."""
    warnings: list[str] = []
    deferred: list[tuple[str, Write]] = []
    for write in writes:
        path = directory(write.controller)
        if path is None:
            _absent(write, f"no {write.controller} controller", warnings)
            continue
        try:
            _one(path, write, warnings)
        except OSError as error:
            if error.errno != errno.EINVAL or not write.deferrable:
                raise
            deferred.append((path, write))
    for path, write in deferred:
        _one(path, write, warnings)
    return warnings


def _one(path: str, write: Write, warnings: list[str]) -> None:
    for file, value in write.alternatives:
        try:
            files.write(path, file, value)
            return
        except OSError as error:
            if error.errno in _ABSENT:
                continue
            if error.errno in _FORBIDDEN and not write.required:
                warnings.append(f"{write.file}: this host does not let the engine write {value!r} ({error.strerror}); left out")
                return
            raise
    _absent(write, f"no file {write.file}", warnings)


def _absent(write: Write, reason: str, warnings: list[str]) -> None:
    if write.required:
        raise OSError(errno.ENOENT, f"cannot set {write.value!r}: the kernel offers {reason}", write.file)
    warnings.append(f"{write.file}: the kernel offers {reason}; {write.value!r} was left out")
