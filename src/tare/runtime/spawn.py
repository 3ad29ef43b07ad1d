"""Starting the launcher so that no container can ever write the engine's interpreter (CVE-2019-5736).

Keepers and inits are forks of the launcher, and a container may get hold of ``/proc/PID/exe`` of an init before it
executes. The interpreter, its library and the standard library are therefore run from a detached, read-only clone of
the mount they lie on: the file behind that link answers EROFS to whoever opens it for writing. The clone is reachable
through its descriptor only, and gone when the last process that uses it ends.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from tare.linux import mount
from tare.linux.constants import AT_FDCWD, MOUNT_ATTR_RDONLY, MS_PRIVATE

READY_SECONDS = 20.0


class Spawned:
    """A running launcher and the daemon's end of its socket."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.process = process
        self.sock = sock

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """Let the launcher end (it does when its socket closes) and wait for it."""
        self.sock.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def spawn(directory: str, cgroup_parent: str, spares: int = 2, fast_migration: bool = True, warm: bool = True) -> Spawned:
    """Start a launcher (vfork and exec: safe and cheap also from a threaded process). Returns at once; it reports ``{"ready": pid}`` first.

    ``warm=False`` suits a launcher that is to start one container only. ``directory`` is a run-time directory in which the launcher
    may make a temporary one of its own.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    script = Path(__file__).with_name("launcher_main.py")
    arguments = {
        "fd": theirs.fileno(),
        "directory": directory,
        "cgroup_parent": cgroup_parent,
        "spares": spares,
        "fast_migration": fast_migration,
        "warm": warm,
    }
    tree, executable, library = _read_only_interpreter()
    command = [executable, "-I", "-S", str(script), str(script.parents[2]), json.dumps(arguments)]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LD_LIBRARY_PATH": library, "LC_ALL": "C.UTF-8"}
    try:
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno(), tree],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        os.close(tree)
    return Spawned(process, ours)


def _read_only_interpreter() -> tuple[int, str, str]:
    """(descriptor of the clone, path of the interpreter through it, its library directory)."""
    executable = os.path.realpath(sys.executable)
    prefix = os.path.realpath(sys.base_prefix)
    if os.path.commonpath([executable, prefix]) != prefix:
        raise OSError(2, f"the interpreter does not lie below its prefix {prefix}", executable)
    tree = mount.open_tree(AT_FDCWD, prefix, recursive=True)
    try:
        mount.set_attributes(tree, add=MOUNT_ATTR_RDONLY, propagation=MS_PRIVATE, recursive=True)
    except BaseException:
        os.close(tree)
        raise
    return tree, f"/proc/self/fd/{tree}/{os.path.relpath(executable, prefix)}", f"/proc/self/fd/{tree}/lib"
