"""Bind sources whose owners are translated (mount_setattr(2), MOUNT_ATTR_IDMAP): a user namespace's root sees the host's files as its own.

It takes the rights of the user namespace that the file system belongs to, so it happens before the container's own is entered. The kernel
takes the translation from a user namespace: a child makes one, we fill it in, and it lives on in the mount when the child has gone.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import NamedTuple

from tare.linux import libc, mount
from tare.linux.constants import CLONE_NEWUSER
from tare.runtime.context import Context, SetupFailed, reason
from tare.runtime.plan import step
from tare.runtime.steps.mounts import open_source

Maps = tuple[tuple[int, int, int], ...]


@step
class OpenMappedSources(NamedTuple):
    """Clone the mounts behind bind sources and translate their owners, while we have the host's rights."""

    sources: tuple[tuple[str, str, bool, str, bool, Maps, Maps], ...]
    """Destination, host path, recursive, path beneath it, translated recursively, uid map, gid map."""

    def describe(self) -> str:
        return "open bind sources with translated owners: " + ", ".join(source[1] for source in self.sources)

    def run(self, context: Context) -> None:
        for destination, path, recursive, inner, deep, uids, gids in self.sources:
            try:
                context.sources[destination] = source = open_source(path, recursive, inner)
                translation = _user_namespace(uids, gids)
                try:
                    mount.translate_owners(source, translation, recursive=deep)
                finally:
                    os.close(translation)
            except OSError as error:
                text = f'error mounting "{path}" to rootfs at "{destination}": failed to set MOUNT_ATTR_IDMAP on {path}: {reason(error)}'
                raise SetupFailed(f"{text} (maybe the filesystem used doesn't support idmap mounts on this kernel?)") from None


def _user_namespace(uids: Maps, gids: Maps) -> int:
    """A user namespace with these maps, that no process is in."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = os.fork()
        if not child:
            _be_inside(ours, theirs)
        try:
            theirs.close()
            _, fds, _, _ = socket.recv_fds(ours, 16, 1)
            if not fds:
                raise OSError(errno.EPERM, "a user namespace cannot be made")
            process = fds[0]
            try:
                for name, lines in (("uid_map", uids), ("gid_map", gids)):
                    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=process)
                    try:
                        os.write(fd, "".join(f"{inside} {outside} {size}\n" for inside, outside, size in lines).encode())
                    finally:
                        os.close(fd)
                return os.open("ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
            finally:
                os.close(process)
        finally:
            ours.close()
            os.waitpid(child, 0)


def _be_inside(ours: socket.socket, theirs: socket.socket) -> None:
    """The child: enter a new user namespace, hand out our directory in /proc (our number may mean nothing there), wait for the end."""
    try:
        ours.close()
        libc.unshare(CLONE_NEWUSER)
        socket.send_fds(theirs, [b"x"], [os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)])
        theirs.recv(1)
    finally:
        os._exit(0)
