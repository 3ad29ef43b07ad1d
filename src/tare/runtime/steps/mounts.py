"""Steps that mount: sources are opened on the host first, targets are resolved inside the new root, and a mount goes onto a descriptor."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from tare.linux import libc, mount
from tare.linux.constants import (
    AT_FDCWD,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    MS_REC,
    O_PATH,
    PROC_SUPER_MAGIC,
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
)
from tare.runtime.context import Context, SetupFailed, reason, why
from tare.runtime.plan import step

PROC_FILES = frozenset(
    "/proc/" + name
    for name in ("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "net/dev", "sys/kernel/ns_last_pid")
)
"""What may be bound over inside /proc (lxcfs does); anything else there could blind the security checks (CVE-2019-16884)."""


def real_directory(context: Context, path: str) -> int:
    """Open a directory of the root that must not be reached through any link (CVE-2023-27561, -28642); made when missing."""
    parts = [part for part in path.split("/") if part]
    current = os.dup(context.root_fd)
    for part in parts:
        try:
            try:
                os.mkdir(part, 0o755, dir_fd=current)
            except FileExistsError:
                pass
            following = os.open(part, O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise SetupFailed(f'error mounting to rootfs at "{path}": must be mounted on ordinary directory') from None
            raise
        finally:
            os.close(current)
        current = following
    return current


def attach(context: Context, mount_fd: int, target_fd: int, destination: str) -> None:
    """Put a detached mount onto its target, unless that lies inside /proc, or is /proc and the mount is something else."""
    if os.path.normpath(destination) == "/proc" and libc.filesystem_magic(mount_fd) != PROC_SUPER_MAGIC:
        raise SetupFailed('error mounting to rootfs at "/proc": "/proc" cannot be mounted because it is not of type proc')
    if libc.filesystem_magic(target_fd) == PROC_SUPER_MAGIC and not allowed_in_proc(context, target_fd, mount_fd, destination):
        raise SetupFailed(f'error mounting to rootfs at "{destination}": "{destination}" cannot be mounted because it is inside /proc')
    mount.move_mount(mount_fd, target_fd)


def allowed_in_proc(context: Context, target_fd: int, mount_fd: int, destination: str) -> bool:
    """Whether this target on a procfs is one of the few that may be covered, reached without links."""
    normal = os.path.normpath(destination)
    if normal == "/proc":
        return libc.filesystem_magic(mount_fd) == PROC_SUPER_MAGIC
    if normal not in PROC_FILES:
        return False
    direct = mount.open_in_root(context.root_fd, normal, resolve=RESOLVE_NO_SYMLINKS)
    try:
        return os.path.samestat(os.fstat(direct), os.fstat(target_fd))
    finally:
        os.close(direct)


DIRECTORY_HINT = (
    ": Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type"
)


def open_source(path: str, recursive: bool, inner: str) -> int:
    """Clone the mount behind a host path. ``inner`` is resolved beneath it: what lies there is not trusted."""
    if not inner:
        return mount.open_tree(AT_FDCWD, path, recursive=recursive)
    base = os.open(path, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place = mount.openat2(base, inner, O_PATH, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
        try:
            return mount.open_tree(place, "", recursive=recursive)
        finally:
            os.close(place)
    finally:
        os.close(base)


@step
class OpenSources(NamedTuple):
    """Clone the mounts behind all bind sources while we still see the host's tree, with its propagation."""

    sources: tuple[tuple[str, str, bool, str], ...]
    """Destination, host path, recursive, and a path that is resolved beneath the host path: what lies there is not trusted."""

    def describe(self) -> str:
        return "open bind sources: " + ", ".join(path + (f" ({inner})" if inner else "") for _, path, _, inner in self.sources)

    def run(self, context: Context) -> None:
        for destination, path, recursive, inner in self.sources:
            try:
                context.sources[destination] = open_source(path, recursive, inner)
            except OSError as error:
                text = f'error mounting "{path}" to rootfs at "{destination}": {path}: {why(error)}'
                raise SetupFailed(text) from None


@step
class PrivateMounts(NamedTuple):
    """From now on no mount of ours shows outside, and none from outside here (bind sources keep their own propagation)."""

    propagation: int

    def describe(self) -> str:
        return f"set propagation of the whole tree to {self.propagation:#x}"

    def run(self, context: Context) -> None:
        libc.mount(None, b"/", None, self.propagation | MS_REC)


@step
class MountOverlayRoot(NamedTuple):
    """Mount the overlay that is the container's root."""

    lower: tuple[str, ...]
    upper: str
    work: str
    anchor: str
    """Any host directory: the root is attached there until pivot_root."""
    options: tuple[str, ...] = ()

    def describe(self) -> str:
        return f"mount the root: overlay of {len(self.lower)} layers under {self.upper}"

    def run(self, context: Context) -> None:
        try:
            context.root_fd = mount.overlay(self.lower, self.upper, self.work, self.options)
        except OSError as error:
            raise SetupFailed(f"error mounting the overlay root file system: {reason(error)}") from None
        place_root(context, self.anchor)


@step
class MountDirectoryRoot(NamedTuple):
    """Take a directory, with what is mounted below it, as the container's root."""

    path: str
    anchor: str

    def describe(self) -> str:
        return f"mount the root: directory {self.path}"

    def run(self, context: Context) -> None:
        try:
            context.root_fd = mount.open_tree(AT_FDCWD, self.path, recursive=True)
            mount.set_attributes(context.root_fd, propagation=MS_PRIVATE, recursive=True)
        except OSError as error:
            raise SetupFailed(f"error mounting the root file system: {reason(error)}") from None
        place_root(context, self.anchor)


def place_root(context: Context, anchor: str) -> None:
    """Attach the new root somewhere in our private tree: pivot_root wants it attached."""
    target = os.open(anchor, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mount.move_mount(context.root_fd, target)
    finally:
        os.close(target)


@step
class MountFilesystem(NamedTuple):
    """Mount a new file system instance (proc, sysfs, tmpfs, devpts, mqueue, ...)."""

    fstype: str
    destination: str
    source: str = ""
    options: tuple[str, ...] = ()
    attributes: int = 0
    propagation: int = 0
    strict: bool = False
    """The target must be a real directory of the root, no link on the way."""

    def describe(self) -> str:
        options = ",".join(self.options)
        return f"mount {self.fstype} on {self.destination}" + (f" ({options})" if options else "")

    def run(self, context: Context) -> None:
        target = -1
        try:
            if self.strict:
                target = real_directory(context, self.destination)
            else:
                target = mount.make_in_root(context.root_fd, self.destination, directory=True)
            late = self.attributes & MOUNT_ATTR_RDONLY if self.fstype == "tmpfs" else 0
            mount_fd = -1
            if context.prepared is not None:
                mount_fd = context.prepared.take((self.fstype, self.options, self.attributes))
                context.dev_filled |= mount_fd >= 0 and os.path.normpath(self.destination) == "/dev"
            if mount_fd < 0:
                mount_fd = mount.new_filesystem(self.fstype, self.options, self.attributes & ~late, self.source or self.fstype)
        except OSError as error:
            text = f'error mounting "{self.source or self.fstype}" to rootfs at "{self.destination}": {reason(error)}'
            raise SetupFailed(text) from None
        finally:
            if target >= 0 and "mount_fd" not in locals():
                os.close(target)
        try:
            self._attach(context, mount_fd, target)
        finally:
            os.close(target)
        if self.fstype == "devpts" and os.path.normpath(self.destination) == "/dev/pts":
            context.devpts_fd = mount_fd
        elif late:
            context.late_readonly.append(mount_fd)
        else:
            os.close(mount_fd)

    def _attach(self, context: Context, mount_fd: int, target: int) -> None:
        try:
            attach(context, mount_fd, target, self.destination)
            if self.propagation:
                mount.set_attributes(mount_fd, propagation=self.propagation & ~MS_REC, recursive=bool(self.propagation & MS_REC))
        except OSError as error:
            text = f'error mounting "{self.source or self.fstype}" to rootfs at "{self.destination}": {reason(error)}'
            raise SetupFailed(text) from None


@step
class BindMount(NamedTuple):
    """Attach a bind source opened before."""

    source: str
    destination: str
    add: int = 0
    clear: int = 0
    add_recursive: int = 0
    clear_recursive: int = 0
    propagation: int = MS_PRIVATE | MS_REC
    strict: bool = False

    def describe(self) -> str:
        readonly = " read-only" if (self.add | self.add_recursive) & MOUNT_ATTR_RDONLY else ""
        return f"bind {self.source} on {self.destination}{readonly}"

    def run(self, context: Context) -> None:
        source = context.sources.pop(self.destination)
        target = -1
        try:
            if self.propagation:
                mount.set_attributes(source, propagation=self.propagation & ~MS_REC, recursive=bool(self.propagation & MS_REC))
            if self.add or self.clear:
                mount.set_attributes(source, add=self.add, clear=self.clear)
            if self.add_recursive or self.clear_recursive:
                mount.set_attributes(source, add=self.add_recursive, clear=self.clear_recursive, recursive=True)
            if self.strict:
                target = real_directory(context, self.destination)
            else:
                target = mount.make_in_root(context.root_fd, self.destination, directory=mount.is_directory(source))
            if mount.is_directory(source) != mount.is_directory(target):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            attach(context, source, target, self.destination)
        except OSError as error:
            text = f'error mounting "{self.source}" to rootfs at "{self.destination}": {reason(error)}'
            if error.errno == errno.ENOTDIR:
                text += DIRECTORY_HINT
            raise SetupFailed(text, 127 if error.errno == errno.ENOTDIR else 128) from None
        finally:
            os.close(source)
            if target >= 0:
                os.close(target)


@step
class MountCgroupFiles(NamedTuple):
    """Show the container its own cgroups, by version: one v2 mount, or a tmpfs with one bind per v1 hierarchy.

    On v1 the binds are always read-only unless the configuration says otherwise (CVE-2022-0492: release_agent).
    """

    destination: str
    cgroup: str
    attributes: int
    hierarchies: tuple[tuple[str, str], ...]
    """v1: (mount point on the host, name in the container); empty on v2."""

    def describe(self) -> str:
        kind = f"{len(self.hierarchies)} v1 hierarchies" if self.hierarchies else "cgroup2"
        return f"mount cgroup files ({kind}) on {self.destination}"

    def run(self, context: Context) -> None:
        target = -1
        try:
            target = mount.make_in_root(context.root_fd, self.destination, directory=True)
            if self.hierarchies:
                self._version1(context, target)
            else:
                mount_fd = mount.new_filesystem("cgroup2", (), self.attributes, "cgroup")
                attach(context, mount_fd, target, self.destination)
                os.close(mount_fd)
        except OSError as error:
            raise SetupFailed(f'error mounting "cgroup" to rootfs at "{self.destination}": {reason(error)}') from None
        finally:
            if target >= 0:
                os.close(target)

    def _version1(self, context: Context, target: int) -> None:
        writable = self.attributes & ~MOUNT_ATTR_RDONLY
        top = mount.new_filesystem("tmpfs", ("mode=755", "size=64k"), writable, "tmpfs")
        attach(context, top, target, self.destination)
        for host, name in self.hierarchies:
            os.mkdir(name, 0o755, dir_fd=top)
            try:
                source = mount.open_tree(AT_FDCWD, host + self.cgroup, recursive=False)
            except FileNotFoundError:
                continue
            mount.set_attributes(source, add=self.attributes | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
            place = os.open(name, O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
            mount.move_mount(source, place)
            os.close(place)
            os.close(source)
            if "," in name:
                for single in name.split(","):
                    os.symlink(name, single, dir_fd=top)
        if self.attributes & MOUNT_ATTR_RDONLY:
            context.late_readonly.append(top)
        else:
            os.close(top)
