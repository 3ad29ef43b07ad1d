"""A second start of the interpreter, out of reach of any container (CVE-2019-5736).

A process on its way into a container still runs the interpreter, and the container can get at that file: through ``/proc/PID/exe``, or by making
its program a script whose interpreter is ``/proc/self/exe``. So the verbs that enter containers first execute themselves again from a detached,
read-only clone of the mount that holds the interpreter and its library. Opening that file for writing answers EROFS, whoever asks.

The clone is reachable through one descriptor, numbered out of the way of those that the caller hands on (``--preserve-fds``); it is gone with
the last process that runs from it.
"""

from __future__ import annotations

import fcntl
import os
import sys
from typing import NoReturn

from tare.linux import mount
from tare.linux.constants import AT_FDCWD, MOUNT_ATTR_RDONLY, MS_PRIVATE

LOWEST_DESCRIPTOR = 128


def start_again(argv: list[str]) -> NoReturn:
    """Execute this command line from the clone; OSError when that cannot be had (it takes CAP_SYS_ADMIN)."""
    executable, prefix = os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix)
    if os.path.commonpath([executable, prefix]) != prefix:
        raise OSError(2, f"the interpreter does not lie below its prefix {prefix}", executable)
    tree = mount.open_tree(AT_FDCWD, prefix, recursive=True)
    mount.set_attributes(tree, add=MOUNT_ATTR_RDONLY, propagation=MS_PRIVATE, recursive=True)
    kept = fcntl.fcntl(tree, fcntl.F_DUPFD, LOWEST_DESCRIPTOR)
    clone = f"/proc/self/fd/{kept}"
    entry = os.path.join(os.path.dirname(os.path.abspath(__file__)), "entry.py")
    package_parent = entry.removesuffix("/tare/runtime/cli/entry.py")
    command = ["tare-runtime", "-I", "-S", entry, package_parent, *argv]
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{clone}/lib", "LC_ALL": "C.UTF-8"}
    # The name in argv[0] would lead the interpreter to look for its library by PATH.
    command[0] = f"{clone}/{os.path.relpath(executable, prefix)}"
    os.execve(command[0], command, environment)
