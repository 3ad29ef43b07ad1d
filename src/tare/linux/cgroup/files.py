"""Reading and writing the files of a group, and making and removing its directories, in as few system calls as the kernel allows.

Errors are ``OSError`` that name the file and, for writes, the value: a bare "Invalid argument" from one of thirty files helps nobody.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator

READ_LIMIT = 1 << 20
REMOVE_SECONDS = 2.0


def read(directory: str, file: str) -> str:
    """The text of a small file."""
    descriptor = os.open(f"{directory}/{file}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(descriptor, 65536)
        if len(data) > 4000:  # kernfs hands out a page at a time
            while len(data) < READ_LIMIT and (more := os.read(descriptor, 65536)):
                data += more
        return data.decode("utf-8", "replace")
    finally:
        os.close(descriptor)


def read_or(directory: str, file: str, default: str = "") -> str:
    """As ``read``; ``default`` when the kernel does not offer the file or its contents."""
    try:
        return read(directory, file)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return default
        raise


def write(directory: str, file: str, value: str) -> None:
    """Write ``value`` in one system call, as these files demand."""
    path = f"{directory}/{file}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        number = error.errno or errno.EIO
        raise OSError(number, f"{os.strerror(number)} (writing {value!r})", path) from None


def children(directory: str) -> list[str]:
    """Paths of the groups right below."""
    try:
        with os.scandir(directory) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def walk(directory: str) -> Iterator[str]:
    """The group and all groups below it, parents first."""
    pending = [directory]
    while pending:
        current = pending.pop()
        yield current
        pending += children(current)


def remove_tree(directory: str, seconds: float = REMOVE_SECONDS) -> None:
    """Remove a group and those below it, leaves first; a group that is already gone is no error.

    A group stays busy for a moment after its last process has gone (the kernel uncharges it later), hence the retries; after ``seconds``
    the ``OSError`` (EBUSY) is raised.
    """
    try:
        os.rmdir(directory)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
    deadline = time.monotonic() + seconds
    pause = 0.0005
    while True:
        try:
            for path in reversed(list(walk(directory))):
                try:
                    os.rmdir(path)
                except FileNotFoundError:
                    pass
            return
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() >= deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def pids(directory: str) -> list[int]:
    """Processes in the group and below it; those outside of the caller's PID namespace are left out."""
    found: list[int] = []
    for path in walk(directory):
        try:
            text = read(path, "cgroup.procs")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                continue
            if error.errno != errno.EOPNOTSUPP:  # a threaded v2 subtree: its processes are listed at its top
                raise
            continue
        found += [pid for pid in map(int, text.split()) if pid]
    return found
