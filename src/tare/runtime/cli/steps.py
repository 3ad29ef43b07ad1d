"""Steps of an init that has no keeper: it outlives the command that made it, and waits by itself for the order to start.

``create`` leaves behind a listening socket, ``start.sock`` in the container's state directory, which only its init holds.
``start`` connects; from then on that connection is the init's line, so that a program that cannot be executed is an error of ``start``:

    start → init   {"go": "exec"}
    init → start   {"at": "start-hooks"}, answered with the state           only with such hooks (``runtime.steps.hooks``)
                   {"at": "ready"}, then the line closes: the program runs
                   {"failed": ...}
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from typing import Any, NamedTuple

from tare.linux import mount, process
from tare.runtime.context import Context, KeeperGone, SetupFailed, reason
from tare.runtime.plan import Step, decode_steps, step


@step
class Outlive(NamedTuple):
    """Do not die with the command that forked us."""

    def describe(self) -> str:
        return "outlive the command"

    def run(self, context: Context) -> None:
        process.die_with_parent(0)


@step
class AwaitStart(NamedTuple):
    """Wait for ``tare-runtime start`` to connect."""

    listener: int

    def describe(self) -> str:
        return "wait for `tare-runtime start`"

    def run(self, context: Context) -> None:
        with socket.socket(fileno=self.listener) as listener:
            _check_accept(listener)
            context.tell("held")
            while True:
                connection, _ = listener.accept()
                with connection:
                    # The same object goes on as the line: whoever reports a failure holds it.
                    os.dup2(connection.fileno(), context.line.fileno(), inheritable=False)
                try:
                    context.wait("exec")
                    return
                except (KeeperGone, ConnectionError):
                    continue


def _check_accept(listener: socket.socket) -> None:
    """Find out while ``create`` still listens whether the container's own filter lets us wait; nobody connects before."""
    flags = fcntl.fcntl(listener, fcntl.F_GETFL)  # not os.set_blocking: it makes an ioctl(2), and the filter may deny that too
    fcntl.fcntl(listener, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        listener.accept()
    except BlockingIOError:
        fcntl.fcntl(listener, fcntl.F_SETFL, flags)
    except OSError as error:
        remedy = "allow it, or set process.noNewPrivileges so that the filter comes last"
        raise SetupFailed(f"the seccomp filter denies accept4(2), by which a created container waits for its start: {remedy}") from error


@step
class KeepDescriptors(NamedTuple):
    """Hand on descriptors that the caller opened for the program (``--preserve-fds``, ``LISTEN_FDS``)."""

    last: int

    def describe(self) -> str:
        return f"keep descriptors 3 to {self.last} open"

    def run(self, context: Context) -> None:
        for fd in range(3, self.last + 1):
            try:
                os.set_inheritable(fd, True)
            except OSError as error:
                raise SetupFailed(f"cannot preserve descriptor {fd}: {(error.strerror or '').lower()}") from None


@step
class FillTmpfs(NamedTuple):
    """A tmpfs that begins with what the root has in its place (``tmpcopyup``): open that, mount, copy."""

    destination: str
    mounting: tuple[str, dict[str, Any]]
    """The step that mounts, encoded."""

    def describe(self) -> str:
        return f"{self._step().describe()}, filled with what the root has there"

    def _step(self) -> Step:
        return decode_steps([list(self.mounting)])[0]

    def run(self, context: Context) -> None:
        below = mount.make_in_root(context.root_fd, self.destination, directory=True)
        try:
            self._step().run(context)
            above = mount.open_in_root(context.root_fd, self.destination, os.O_RDONLY | os.O_DIRECTORY)
            try:
                source = os.open(f"/proc/self/fd/{below}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    copy_tree(source, above)
                finally:
                    os.close(source)
            finally:
                os.close(above)
        except OSError as error:
            raise SetupFailed(f'error copying "{self.destination}" into its tmpfs: {reason(error)}') from None
        finally:
            os.close(below)


def copy_tree(source: int, target: int) -> None:
    """Copy what one open directory holds into another: files, directories and links, with owner, mode and times, following nothing."""
    for name in os.listdir(source):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif stat.S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner, copy = os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=target)
            try:
                copy_tree(inner, copy)
            finally:
                os.close(inner)
                os.close(copy)
        elif stat.S_ISREG(status.st_mode):
            _copy_file(name, source, target)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_file(name: str, source: int, target: int) -> None:
    old = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    try:
        new = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            while os.sendfile(new, old, None, 1 << 24):
                pass
        finally:
            os.close(new)
    finally:
        os.close(old)
