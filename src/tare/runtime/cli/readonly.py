"""A second start of the interpreter, out of reach of any container (CVE-2019-5736).

A process on its way into a container still runs the interpreter, and the container can get at that file: through ``/proc/PID/exe``, or by
making its program a script whose interpreter is ``/proc/self/exe``. So the verbs that enter containers first execute themselves again
from a detached, read-only clone of the mount that holds the interpreter and its library. Opening that file for writing answers EROFS,
whoever asks.

The clone is reachable through one descriptor, numbered out of the way of those that the caller hands on (``--preserve-fds``); it is gone
with the last process that runs from it.

The two system calls are made here and not through ``tare.linux.mount``: whatever this process imports, every container waits for twice.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

LOWEST_DESCRIPTOR = 128
NR_OPEN_TREE, NR_MOUNT_SETATTR = 428, 442
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOUNT_ATTR_RDONLY, MS_PRIVATE = 1, 1 << 18


def start_again(argv: list[str]) -> NoReturn:
    """Execute this command line from the clone; OSError when that cannot be had (it takes CAP_SYS_ADMIN)."""
    executable, prefix = os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix)
    if not executable.startswith(prefix.rstrip("/") + "/"):
        raise OSError(2, f"the interpreter does not lie below its prefix {prefix}", executable)
    kept = clone_read_only(prefix)
    clone = f"/proc/self/fd/{kept}"
    entry = os.path.join(os.path.dirname(os.path.abspath(__file__)), "entry.py")
    program = f"{clone}/{os.path.relpath(executable, prefix)}"
    command = [program, "-I", "-S", entry, entry.removesuffix("/tare/runtime/cli/entry.py"), *argv]
    os.execve(program, command, {**os.environ, "LD_LIBRARY_PATH": f"{clone}/lib", "LC_ALL": "C.UTF-8"})


def clone_read_only(path: str) -> int:
    """A descriptor, inherited over exec, of a detached read-only clone of the mounts at ``path``."""
    tree = _call(NR_OPEN_TREE, AT_FDCWD, os.fsencode(path), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE)
    attributes = b"".join(number.to_bytes(8, sys.byteorder) for number in (MOUNT_ATTR_RDONLY, 0, MS_PRIVATE, 0))
    _call(NR_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH | AT_RECURSIVE, attributes, len(attributes))
    return fcntl.fcntl(tree, fcntl.F_DUPFD, LOWEST_DESCRIPTOR)


def _call(number: int, *arguments: int | bytes) -> int:
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    result = syscall(ctypes.c_long(number), *(ctypes.c_long(item) if isinstance(item, int) else item for item in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)
