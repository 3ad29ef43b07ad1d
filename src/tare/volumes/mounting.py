"""Volumes that are file systems of their own: mounted when the first user comes, unmounted when the last one goes.

Truth lies in the kernel: which volumes are mounted is read from /proc/self/mountinfo when the daemon starts, who uses them is told again
by ``hold`` for each container that still runs, and ``settle`` then unmounts what nobody holds. A reboot or a kill -9 between a mount and
its first user therefore leaves nothing behind. ``hold`` and ``release`` may block (nfs): they are called in a thread, one at a time per
volume.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

from tare.errors import TareError
from tare.linux import libc
from tare.linux.mountinfo import mount_points

_log = logging.getLogger(__name__)

_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 32, 4096, 16384
_MNT_DETACH = 2
_FLAGS: dict[str, tuple[bool, int]] = {
    "defaults": (False, 0), "ro": (False, 1), "rw": (True, 1), "nosuid": (False, 2), "suid": (True, 2), "nodev": (False, 4),
    "dev": (True, 4), "noexec": (False, 8), "exec": (True, 8), "sync": (False, 16), "async": (True, 16), "remount": (False, 32),
    "mand": (False, 64), "nomand": (True, 64), "dirsync": (False, 128), "noatime": (False, 1024), "atime": (True, 1024),
    "nodiratime": (False, 2048), "diratime": (True, 2048), "bind": (False, _MS_BIND), "rbind": (False, _MS_BIND | _MS_REC),
    "relatime": (False, 1 << 21), "norelatime": (True, 1 << 21), "strictatime": (False, 1 << 24), "nostrictatime": (True, 1 << 24),
}  # fmt: skip
"""mount(8)'s words: whether the flag is cleared, and which."""
_PROPAGATION = {
    "unbindable": 1 << 17, "runbindable": 1 << 17 | _MS_REC, "private": 1 << 18, "rprivate": 1 << 18 | _MS_REC,
    "slave": 1 << 19, "rslave": 1 << 19 | _MS_REC, "shared": 1 << 20, "rshared": 1 << 20 | _MS_REC,
}  # fmt: skip
_PASSWORD = re.compile(r"(?<=password=)[^,]*")


class MountFailed(TareError):
    """The kernel refused a volume's mount."""


def parse_options(text: str) -> tuple[int, list[int], str]:
    """mount(2) flags, propagation changes, and what is left for the file system."""
    flags, propagation, data = 0, [], []
    for word in text.split(","):
        if word in _FLAGS:
            clear, bits = _FLAGS[word]
            flags = flags & ~bits if clear else flags | bits
        elif word in _PROPAGATION:
            propagation.append(_PROPAGATION[word])
        elif word:
            data.append(word)
    return flags, propagation, ",".join(data)


class VolumeMounts:
    """Mounts below one volumes directory, and who holds them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._holders: dict[str, set[str]] = defaultdict(set)
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._mounted: set[str] = set()

    def start(self) -> None:
        """Find what an earlier daemon mounted."""
        root = os.path.realpath(self._root)
        for path in mount_points():
            name, _, rest = path.removeprefix(f"{root}/").partition("/")
            if path.startswith(f"{root}/") and rest == "_data":
                self._mounted.add(name)

    def settle(self) -> None:
        """Unmount what no running container holds."""
        for name in list(self._mounted):
            if not self._holders.get(name):
                try:
                    self._unmount(name)
                except OSError as error:
                    _log.warning("volume %s: its mount stays: %s", name, error)

    def holders(self, name: str) -> int:
        return len(self._holders.get(name, ()))

    def adopt(self, name: str, holder: str) -> None:
        """``holder`` ran on while the daemon was away."""
        self._holders[name].add(holder)

    def hold(self, name: str, options: Mapping[str, str], holder: str) -> None:
        """Mount the volume unless it is, for ``holder``."""
        with self._locks[name]:
            if name not in self._mounted:
                self._mount(name, options)
                self._mounted.add(name)
            self._holders[name].add(holder)

    def release(self, name: str, holder: str) -> None:
        """``holder`` is done; the last one's going unmounts. Releasing twice is harmless."""
        with self._locks[name]:
            holders = self._holders[name]
            holders.discard(holder)
            if not holders and name in self._mounted:
                try:
                    self._unmount(name)
                except OSError as error:
                    _log.warning("volume %s: its mount stays: %s", name, error)

    def forget(self, name: str) -> None:
        """The volume is being removed: whatever is mounted goes. OSError when it cannot be unmounted."""
        with self._locks[name]:
            if name in self._mounted:
                self._unmount(name)
            self._holders.pop(name, None)
        self._locks.pop(name, None)

    def _unmount(self, name: str) -> None:
        target = os.fsencode(self._root / name / "_data")
        try:
            libc.umount2(target, 0)
        except OSError as error:
            if error.errno == errno.EBUSY:
                libc.umount2(target, _MNT_DETACH)
            elif error.errno not in (errno.EINVAL, errno.ENOENT):  # somebody else unmounted it
                raise
        self._mounted.discard(name)

    def _mount(self, name: str, options: Mapping[str, str]) -> None:
        target = str(self._root / name / "_data")
        device, fstype, text = options.get("device", ""), options.get("type", ""), options.get("o", "")
        try:
            device, text = _resolved(device, fstype, text)
            _mount(device, target, fstype, text)
        except MountFailed as error:
            raise MountFailed(f"error while mounting volume '{target}': {error}") from None


def _mount(device: str, target: str, fstype: str, text: str) -> None:
    flags, propagation, data = parse_options(text)
    said = f"mount {device}:{target}"
    if flags:
        said += f", flags: {flags:#x}"
    if data:
        said += f", data: {_PASSWORD.sub('********', data)}"
    raw = os.fsencode(target)
    try:
        libc.mount(os.fsencode(device), raw, fstype.encode(), flags, data.encode() or None)
    except OSError as error:
        raise MountFailed(f"failed to mount local volume: {said}: {os.strerror(error.errno or 0).lower()}") from None
    try:
        for change in propagation:
            libc.mount(None, raw, None, change)
        if flags & _MS_BIND and flags & _MS_RDONLY:
            libc.mount(None, raw, None, _MS_REMOUNT | _MS_BIND | flags & ~_MS_REC)
    except OSError as error:
        libc.umount2(raw, _MNT_DETACH)
        raise MountFailed(f"failed to mount local volume: {said}: {os.strerror(error.errno or 0).lower()}") from None


def _resolved(device: str, fstype: str, text: str) -> tuple[str, str]:
    """The kernel's nfs and cifs take addresses only: host names of ``addr=`` and of a share are looked up here."""
    if fstype.startswith("nfs") or fstype == "cifs":
        for word in text.split(","):
            if word.startswith("addr="):
                return device, ",".join(f"addr={_address(w[5:])}" if w.startswith("addr=") else w for w in text.split(","))
    if fstype == "cifs" and device.startswith("//"):
        host = device[2:].partition("/")[0]
        if _is_address(host):
            return device, text
        return device, ",".join(filter(None, (text, f"addr={_address(host)}")))
    return device, text


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _address(host: str) -> str:
    if _is_address(host):
        return host
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError):
        raise MountFailed(f"error resolving passed in network volume address: lookup {host}: no such host") from None
