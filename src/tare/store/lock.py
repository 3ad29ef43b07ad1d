"""Who owns a data root: one process at a time, be it a daemon or an offline tool."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from tare.errors import Conflict


class DataRootLock:
    """One engine per data root: an flock that ends with its process, and the owner's pid beside it for the error message."""

    def __init__(self, data_root: Path) -> None:
        self._path = data_root / "lock"
        self._fd = -1

    def acquire(self) -> None:
        """Take the root, or raise ``Conflict`` naming the process that has it."""
        self._path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise Conflict(
                f"data root {self._path.parent} is in use by process {owner or 'unknown'}: stop that daemon or choose another --data-root"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
