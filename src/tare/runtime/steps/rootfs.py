"""Steps that finish the new root: /dev, the console, masked and read-only paths, and the move into it."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import NamedTuple

from tare.linux import libc, mount, pty
from tare.linux.constants import (
    AT_FDCWD,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_REC,
    O_PATH,
    RESOLVE_NO_SYMLINKS,
)
from tare.runtime.context import Context, SetupFailed, reason
from tare.runtime.plan import step

DEVICE_LINKS: tuple[tuple[str, str], ...] = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
)

DEFAULT_DEVICES: tuple[tuple[str, str, int, int, int, int, int], ...] = (
    ("/dev/null", "c", 1, 3, 0o666, 0, 0),
    ("/dev/zero", "c", 1, 5, 0o666, 0, 0),
    ("/dev/full", "c", 1, 7, 0o666, 0, 0),
    ("/dev/random", "c", 1, 8, 0o666, 0, 0),
    ("/dev/urandom", "c", 1, 9, 0o666, 0, 0),
    ("/dev/tty", "c", 5, 0, 0o666, 0, 0),
)
"""What the OCI runtime-spec demands; path, type, major, minor, mode, uid, gid."""

_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


@step
class MakeDevices(NamedTuple):
    """Make device nodes; inside a user namespace, where mknod is forbidden, bind the host's."""

    nodes: tuple[tuple[str, str, int, int, int, int, int], ...]
    """Path, type (c, b, p), major, minor, mode, uid, gid."""
    by_bind: bool = False

    def describe(self) -> str:
        return "make devices: " + " ".join(node[0] for node in self.nodes)

    def run(self, context: Context) -> None:
        if context.dev_filled and self.nodes == DEFAULT_DEVICES:
            return
        for node in self.nodes:
            try:
                parent = mount.make_in_root(context.root_fd, os.path.dirname(node[0]) or "/", directory=True)
                try:
                    if self.by_bind:
                        _bind_device(parent, node[0])
                    else:
                        context.use_device(partial(_make_device, parent, *node))
                finally:
                    os.close(parent)
            except OSError as error:
                raise SetupFailed(f"error creating device nodes: {node[0]}: {reason(error)}") from None


def _make_device(parent: int, path: str, kind: str, major: int, minor: int, permissions: int, uid: int, gid: int) -> None:
    name, mode, device = os.path.basename(path), _KINDS[kind] | permissions, os.makedev(major, minor)
    try:
        os.mknod(name, mode, device, dir_fd=parent)
    except FileExistsError:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_IFMT(status.st_mode) != stat.S_IFMT(mode) or status.st_rdev != device:
            raise
        return
    if uid or gid:
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)


def _bind_device(parent: int, path: str) -> None:
    name = os.path.basename(path)
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=parent))
    source = mount.open_tree(AT_FDCWD, path, recursive=False)
    target = os.open(name, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    mount.move_mount(source, target)
    os.close(source)
    os.close(target)


@step
class LinkDevices(NamedTuple):
    """The links that every /dev has: fd, stdin, stdout, stderr, core, ptmx."""

    def describe(self) -> str:
        return "link /dev/fd, stdin, stdout, stderr, core, ptmx"

    def run(self, context: Context) -> None:
        if context.dev_filled:
            return
        parent = mount.open_in_root(context.root_fd, "/dev", O_PATH | os.O_DIRECTORY, RESOLVE_NO_SYMLINKS)
        try:
            _link_devices(parent)
        finally:
            os.close(parent)


def _link_devices(directory: int) -> None:
    for name, target in DEVICE_LINKS:
        try:
            os.symlink(target, name, dir_fd=directory)
        except FileExistsError:
            pass


def fill_dev(directory: int) -> None:
    """The default devices and links, in a /dev that is not mounted yet."""
    for node in DEFAULT_DEVICES:
        _make_device(directory, *node)
    _link_devices(directory)


@step
class OpenConsole(NamedTuple):
    """A terminal from the container's own devpts: the keeper gets the master, /dev/console is the slave."""

    rows: int
    columns: int
    bind_console: bool
    """Mount the slave on /dev/console (the container's first process, not an exec)."""

    def describe(self) -> str:
        return "open a terminal" + (" and mount it on /dev/console" if self.bind_console else "")

    def run(self, context: Context) -> None:
        try:
            master, slave = context.use_device(partial(pty.open_pair, self._devpts(context)))
            if self.rows and self.columns:
                pty.set_size(master, self.rows, self.columns)
            if self.bind_console:
                _mount_console(context.root_fd, slave)
        except OSError as error:
            raise SetupFailed(f"error opening the console: {reason(error)}") from None
        context.tell("console", [master])
        os.close(master)
        context.console = slave

    def _devpts(self, context: Context) -> int:
        if context.devpts_fd < 0:
            if context.root_fd < 0:
                context.devpts_fd = mount.openat2(AT_FDCWD, "/dev/pts", O_PATH | os.O_DIRECTORY, RESOLVE_NO_SYMLINKS)
            else:
                context.devpts_fd = mount.open_in_root(context.root_fd, "/dev/pts", O_PATH | os.O_DIRECTORY, RESOLVE_NO_SYMLINKS)
        return context.devpts_fd


def _mount_console(root_fd: int, slave: int) -> None:
    """Mount by descriptor onto a file that cannot be a link (CVE-2025-52565)."""
    parent = mount.open_in_root(root_fd, "/dev", O_PATH | os.O_DIRECTORY, RESOLVE_NO_SYMLINKS)
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            os.close(os.open("console", os.O_CREAT | os.O_EXCL | os.O_WRONLY | flags, 0o620, dir_fd=parent))
        except FileExistsError:
            pass
        target = os.open("console", O_PATH | flags, dir_fd=parent)
        try:
            if mount.is_symlink(target):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), "/dev/console")
            source = mount.open_tree(slave, "", recursive=False)
            mount.move_mount(source, target)
            os.close(source)
        finally:
            os.close(target)
    finally:
        os.close(parent)


@step
class ReadonlyPaths(NamedTuple):
    """Bind each path on itself, read-only. Missing paths do not matter."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        return "make read-only: " + " ".join(self.paths)

    def run(self, context: Context) -> None:
        for path in self.paths:
            try:
                target = mount.open_in_root(context.root_fd, path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                clone = mount.open_tree(target, "", recursive=True)
                mount.set_attributes(clone, add=MOUNT_ATTR_RDONLY, recursive=True)
                mount.move_mount(clone, target)
                os.close(clone)
            except OSError as error:
                raise SetupFailed(f"readonly path {path}: {reason(error)}") from None
            finally:
                os.close(target)


@step
class MaskPaths(NamedTuple):
    """Cover files with /dev/null and directories with an empty read-only tmpfs. Missing paths do not matter."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        return "mask: " + " ".join(self.paths)

    def run(self, context: Context) -> None:
        covers: dict[bool, int] = {}
        for path in self.paths:
            try:
                target = mount.open_in_root(context.root_fd, path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                directory = mount.is_directory(target)
                if directory not in covers:
                    covers[directory] = _empty_directory() if directory else _null_device()
                    mount.move_mount(covers[directory], target)
                    continue
                # A mount can be cloned once it is attached; detached ones only since 6.15.
                clone = mount.open_tree(covers[directory], "", recursive=False)
                mount.move_mount(clone, target)
                os.close(clone)
            except OSError as error:
                raise SetupFailed(f"mask path {path}: {reason(error)}") from None
            finally:
                os.close(target)
        for fd in covers.values():
            os.close(fd)


def _empty_directory() -> int:
    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    return mount.new_filesystem("tmpfs", ("mode=755", "size=4k"), attributes, "tmpfs")


def _null_device() -> int:
    """The host's /dev/null: we are still in its tree, but check what it is all the same."""
    fd = mount.openat2(AT_FDCWD, "/dev/null", O_PATH, RESOLVE_NO_SYMLINKS)
    try:
        mount.verify_device(fd, 1, 3)
        clone = mount.open_tree(fd, "", recursive=False)
    finally:
        os.close(fd)
    mount.verify_device(clone, 1, 3)
    return clone


@step
class PivotRoot(NamedTuple):
    """Make the new root ours and let go of the host's tree."""

    readonly: bool
    propagation: int

    def describe(self) -> str:
        return "move into the new root" + (", read-only" if self.readonly else "")

    def run(self, context: Context) -> None:
        for fd in context.late_readonly:
            mount.set_attributes(fd, add=MOUNT_ATTR_RDONLY)
            os.close(fd)
        context.late_readonly.clear()
        if self.readonly:
            mount.set_attributes(context.root_fd, add=MOUNT_ATTR_RDONLY)
        try:
            os.fchdir(context.root_fd)
            libc.pivot_root(b".", b".")
            libc.umount2(b".", MNT_DETACH)
            os.chdir("/")
        except OSError as error:
            raise SetupFailed(f"error jailing process inside rootfs: pivot_root: {reason(error)}") from None
        if self.propagation:
            mount.set_attributes(context.root_fd, propagation=self.propagation & ~MS_REC, recursive=bool(self.propagation & MS_REC))
        for fd in (context.root_fd, context.devpts_fd):
            if fd >= 0:
                os.close(fd)
        context.root_fd = context.devpts_fd = -1
