"""Mounts and paths by file descriptor: the new mount API and openat2.

The one pattern behind most escapes of container runtimes is a path that is checked as a string and then used. Here a
path inside a root is resolved once, by the kernel, with RESOLVE_IN_ROOT; what comes back is a descriptor, and
mounting happens onto that descriptor. A mount is made detached (``fsopen``/``open_tree``), given its attributes, and
only then attached (``move_mount``): it is never visible half-configured.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterable

from tare.linux import libc
from tare.linux.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    MOUNT_ATTR_IDMAP,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    NR_FSCONFIG,
    NR_FSMOUNT,
    NR_FSOPEN,
    NR_MOUNT_SETATTR,
    NR_MOVE_MOUNT,
    NR_OPEN_TREE,
    NR_OPENAT2,
    O_PATH,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
)

MAX_SYMLINKS = 40
_PSEUDO = frozenset((
    0x9FA0, 0x62656572, 0x27E0EB, 0x63677270, 0x1CD1, 0x19800202, 0x64626720, 0x74726163, 0x73636673, 0xCAFE4A11, 0x6165676C, 0xDE5E81E4,
))  # fmt: skip
"""proc, sysfs, cgroup, cgroup2, devpts, mqueue, debugfs, tracefs, securityfs, bpf, pstore, efivarfs (statfs(2), linux/magic.h)."""
FSCONFIG_STRING_LIMIT = 255
"""Longest string value that fsconfig(2) takes."""


def openat2(dir_fd: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2), close-on-exec, retried while a concurrent rename makes the kernel's resolution race (EAGAIN)."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    name = os.fsencode(path)
    for _ in range(64):
        try:
            return libc.syscall(NR_OPENAT2, dir_fd, name, how, len(how), what=os.fsdecode(name))
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    raise OSError(errno.EAGAIN, "path keeps changing while it is resolved", os.fsdecode(name))


def open_in_root(root_fd: int, path: str, flags: int = O_PATH, resolve: int = 0) -> int:
    """Open ``path`` as a process chrooted into ``root_fd`` would, without ever leaving it or following magic links."""
    return openat2(root_fd, path.lstrip("/") or ".", flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | resolve)


def open_tree(dir_fd: int, path: str | bytes, *, recursive: bool, clone: bool = True) -> int:
    """open_tree(2): a detached copy of the mount at ``path`` (bind mount); an empty path means ``dir_fd`` itself."""
    flags = OPEN_TREE_CLOEXEC
    if clone:
        flags |= OPEN_TREE_CLONE
    if recursive:
        flags |= AT_RECURSIVE
    name = os.fsencode(path)
    if not name:
        flags |= AT_EMPTY_PATH
    return libc.syscall(NR_OPEN_TREE, dir_fd, name, flags, what=os.fsdecode(name))


def move_mount(mount_fd: int, target_fd: int) -> None:
    """Attach a detached mount onto an open file or directory."""
    libc.syscall(NR_MOVE_MOUNT, mount_fd, b"", target_fd, b"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)


def set_attributes(mount_fd: int, *, add: int = 0, clear: int = 0, propagation: int = 0, recursive: bool = False) -> None:
    """mount_setattr(2) on an open mount."""
    attributes = struct.pack("=QQQQ", add, clear, propagation, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    libc.syscall(NR_MOUNT_SETATTR, mount_fd, b"", flags, attributes, len(attributes))


def translate_owners(mount_fd: int, user_namespace: int, *, recursive: bool = False) -> None:
    """Show the files of a detached mount with the owners that a user namespace's maps make of theirs."""
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    libc.syscall(NR_MOUNT_SETATTR, mount_fd, b"", flags, attributes, len(attributes))


class Filesystem:
    """A file system being configured: fsopen(2), fsconfig(2), fsmount(2). Use as a context manager."""

    def __init__(self, fstype: str) -> None:
        self.fstype = fstype
        self.fd = libc.syscall(NR_FSOPEN, fstype.encode(), FSOPEN_CLOEXEC, what=fstype)

    def __enter__(self) -> Filesystem:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def set(self, key: str, value: str | None = None) -> None:
        """Set one parameter: a flag without value, a string with."""
        try:
            if value is None:
                libc.syscall(NR_FSCONFIG, self.fd, FSCONFIG_SET_FLAG, key.encode(), None, 0)
            else:
                libc.syscall(NR_FSCONFIG, self.fd, FSCONFIG_SET_STRING, key.encode(), os.fsencode(value), 0)
        except OSError as error:
            raise OSError(error.errno, self._said(error), f"{self.fstype} {key}={value}") from None

    def set_options(self, options: Iterable[str]) -> None:
        """Set parameters written as in mount(8): ``key`` or ``key=value``."""
        for option in options:
            key, separator, value = option.partition("=")
            self.set(key, value if separator else None)

    def mount(self, attributes: int = 0) -> int:
        """Create the superblock; returns a detached mount."""
        try:
            libc.syscall(NR_FSCONFIG, self.fd, FSCONFIG_CMD_CREATE, None, None, 0)
            return libc.syscall(NR_FSMOUNT, self.fd, FSMOUNT_CLOEXEC, attributes)
        except OSError as error:
            raise OSError(error.errno, self._said(error), self.fstype) from None

    def _said(self, error: OSError) -> str:
        """The kernel's own explanation, which the file system context keeps, else errno's text."""
        number = error.errno or 0
        lines: list[str] = []
        try:
            while len(lines) < 8:
                lines.append(os.read(self.fd, 4096).decode("utf-8", "replace").partition(" ")[2].strip())
        except OSError:
            pass
        text = os.strerror(number)
        return f"{text} ({'; '.join(lines)})" if lines else text


def new_filesystem(fstype: str, options: Iterable[str] = (), attributes: int = 0, source: str | None = None) -> int:
    """A detached mount of a new file system instance."""
    with Filesystem(fstype) as context:
        if source:
            context.set("source", source[:FSCONFIG_STRING_LIMIT])
        context.set_options(options)
        return context.mount(attributes)


def overlay(lower: Iterable[str], upper: str, work: str, options: Iterable[str] = (), attributes: int = 0) -> int:
    """A detached overlay mount: ``lower`` topmost first. One parameter per layer (Linux 6.5); on older kernels one option string."""
    paths = list(lower)
    descriptors: list[int] = []

    def short(path: str) -> str:
        """A name that fits into a parameter: long paths are opened and named by descriptor."""
        if len(os.fsencode(path)) <= FSCONFIG_STRING_LIMIT:
            return path
        descriptors.append(os.open(path, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        return f"/proc/self/fd/{descriptors[-1]}"

    try:
        with Filesystem("overlay") as context:
            try:
                context.set("source", "overlay")
                for path in paths:
                    context.set("lowerdir+", short(path))
                context.set("upperdir", short(upper))
                context.set("workdir", short(work))
                context.set_options(options)
                return context.mount(attributes)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # Before 6.5 overlay takes any parameter and looks at them only at the end, or when they fill a page.
                try:
                    return _overlay_by_string(paths, upper, work, options, attributes)
                except OSError:
                    raise error from None
    finally:
        for fd in descriptors:
            os.close(fd)


def _overlay_by_string(lower: list[str], upper: str, work: str, options: Iterable[str], attributes: int) -> int:
    """mount(2) takes one page of options: name every directory by descriptor, so that a hundred layers fit. Needs a
    mount point: ``work``."""
    descriptors = [os.open(path, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in [*lower, upper, work]]
    try:
        names = [f"/proc/self/fd/{fd}" for fd in descriptors]
        text = f"lowerdir={':'.join(names[:-2])},upperdir={names[-2]},workdir={names[-1]}"
        data = ",".join([text, *options]).encode()
        target = os.fsencode(work)
        libc.mount(b"overlay", target, b"overlay", 0, data)
        try:
            mount_fd = open_tree(AT_FDCWD, target, recursive=False)
        finally:
            libc.umount2(target, 2)
    finally:
        for fd in descriptors:
            os.close(fd)
    if attributes:
        set_attributes(mount_fd, add=attributes)
    return mount_fd


def is_symlink(fd: int) -> bool:
    """Whether an O_PATH|O_NOFOLLOW descriptor is a symbolic link."""
    return stat.S_ISLNK(os.fstat(fd).st_mode)


def make_in_root(root_fd: int, path: str, *, directory: bool, mode: int = 0o755) -> int:
    """Open ``path`` inside a root (O_PATH), making what is missing: directories, and at the end a directory or an empty file.

    Symbolic links are followed as inside a chroot, also dangling ones (their targets are then made). Every step works on a descriptor
    of the directory before it, so nothing can appear outside the root whatever changes meanwhile.
    """
    try:
        return open_in_root(root_fd, path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    pending = [part for part in path.split("/") if part not in ("", ".")][::-1]
    trail = [os.dup(root_fd)]
    links = 0
    try:
        while pending:
            part = pending.pop()
            if part == "..":
                if len(trail) > 1:
                    os.close(trail.pop())
                continue
            fd = _open_or_make(trail[-1], part, directory=directory or bool(pending), mode=mode)
            if not is_symlink(fd):
                trail.append(fd)
                continue
            links += 1
            target = os.readlink(b"", dir_fd=fd)
            os.close(fd)
            if links > MAX_SYMLINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith(b"/"):
                while len(trail) > 1:
                    os.close(trail.pop())
            pending.extend(p for p in reversed(os.fsdecode(target).split("/")) if p not in ("", "."))
        return os.dup(trail[-1])
    finally:
        for fd in trail:
            os.close(fd)


def _open_or_make(parent: int, name: str, *, directory: bool, mode: int) -> int:
    flags = O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        pass
    if directory:
        try:
            os.mkdir(name, mode, dir_fd=parent)
        except FileExistsError:
            pass
    else:
        try:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent))
        except FileExistsError:
            pass
    return os.open(name, flags, dir_fd=parent)


def is_pseudo(fd: int) -> bool:
    """Whether a descriptor lies on a file system that holds no files but the kernel's state: nothing to copy from or to."""
    return libc.filesystem_magic(fd) in _PSEUDO


def is_directory(fd: int) -> bool:
    """Whether a descriptor is a directory."""
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def verify_device(fd: int, major: int, minor: int) -> None:
    """Raise unless ``fd`` is the character device major:minor (CVE-2025-31133: a replaced /dev/null)."""
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(major, minor):
        raise OSError(errno.ENODEV, f"not the character device {major}:{minor}")
