"""Steps that set kernel parameters of the container: names, sysctls, limits, its loopback."""

from __future__ import annotations

import errno
import os
import resource
from typing import NamedTuple

from tare.linux import libc, loopback, mount
from tare.linux.constants import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    PROC_SUPER_MAGIC,
    RESOLVE_BENEATH,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
)
from tare.runtime.context import Context, SetupFailed, reason
from tare.runtime.plan import step


@step
class SetNames(NamedTuple):
    """Host name and NIS domain name."""

    hostname: str
    domainname: str

    def describe(self) -> str:
        return f"set host name {self.hostname!r}" + (f", domain name {self.domainname!r}" if self.domainname else "")

    def run(self, context: Context) -> None:
        if self.hostname:
            libc.sethostname(self.hostname.encode())
        if self.domainname:
            libc.setdomainname(self.domainname.encode())


def private_procfs() -> int:
    """A procfs that nobody else can have mounted over or replaced (CVE-2025-52881, CVE-2019-19921)."""
    fd = mount.new_filesystem("proc", (), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, "proc")
    if libc.filesystem_magic(fd) != PROC_SUPER_MAGIC:
        os.close(fd)
        raise OSError(errno.EXDEV, "not a proc file system")
    return fd


def write_beneath(procfs: int, path: str, value: bytes) -> None:
    """Write a file of a private procfs, without following any link or mount."""
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
    fd = mount.openat2(procfs, path, os.O_WRONLY, resolve)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


@step
class SetSysctls(NamedTuple):
    """Kernel parameters of the container's own namespaces."""

    values: dict[str, str]

    def describe(self) -> str:
        return "set sysctls: " + " ".join(f"{key}={value}" for key, value in self.values.items())

    def run(self, context: Context) -> None:
        procfs = private_procfs()
        try:
            for key, value in self.values.items():
                try:
                    write_beneath(procfs, "sys/" + key.replace(".", "/"), value.encode())
                except OSError as error:
                    raise SetupFailed(f"open sysctl {key} file: {reason(error)}") from None
        finally:
            os.close(procfs)


@step
class ApparmorProfile(NamedTuple):
    """The AppArmor profile that exec switches to."""

    profile: str

    def describe(self) -> str:
        return f"apply apparmor profile {self.profile} at exec"

    def run(self, context: Context) -> None:
        try:
            procfs = private_procfs()
            try:
                pid = os.readlink("self", dir_fd=procfs)
                write_beneath(procfs, f"{pid}/attr/apparmor/exec", b"exec " + self.profile.encode())
            finally:
                os.close(procfs)
        except OSError as error:
            raise SetupFailed(f"unable to apply apparmor profile: {reason(error)}") from None


RESOURCES: dict[str, int] = {
    name: int(getattr(resource, name))
    for name in (
        "RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_NICE",
        "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_RSS", "RLIMIT_RTPRIO", "RLIMIT_RTTIME", "RLIMIT_SIGPENDING", "RLIMIT_STACK",
    )
    if hasattr(resource, name)
} | {"RLIMIT_LOCKS": 10}  # fmt: skip


@step
class SetLimits(NamedTuple):
    """Resource limits. Raising a hard limit needs CAP_SYS_RESOURCE, which this host may withhold: then it stays, with a warning."""

    limits: tuple[tuple[str, int, int], ...]
    """Name, soft, hard; -1 or 2^64-1 mean unlimited."""

    def describe(self) -> str:
        return "set limits: " + " ".join(f"{name}={soft}:{hard}" for name, soft, hard in self.limits)

    def run(self, context: Context) -> None:
        for name, soft, hard in self.limits:
            wanted = (_limit(soft), _limit(hard))
            try:
                resource.setrlimit(RESOURCES[name], wanted)
            except (PermissionError, ValueError) as error:
                present = resource.getrlimit(RESOURCES[name])
                lowered = _lowest(wanted[0], present[1])
                try:
                    resource.setrlimit(RESOURCES[name], (lowered, present[1]))
                except (OSError, ValueError):
                    pass
                why = error if isinstance(error, OSError) else OSError(errno.EPERM, os.strerror(errno.EPERM))
                context.warn(f"error setting rlimit type {RESOURCES[name]} ({name} {soft}:{hard})", why)


def _limit(value: int) -> int:
    """rlim_t of 2^63 and more is infinity for Python."""
    return resource.RLIM_INFINITY if value < 0 or value >= 1 << 63 else value


def _lowest(first: int, second: int) -> int:
    if first == resource.RLIM_INFINITY:
        return second
    return first if second == resource.RLIM_INFINITY else min(first, second)


@step
class LoopbackUp(NamedTuple):
    """Bring up the loopback of a new network namespace."""

    def describe(self) -> str:
        return "bring up lo"

    def run(self, context: Context) -> None:
        if context.prepared is not None and "net" in context.prepared.namespaces:
            return
        loopback.bring_up()
