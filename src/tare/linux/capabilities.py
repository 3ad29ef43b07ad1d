"""Capability sets of the calling thread: capabilities(7).

The inheritable set is always written as empty: a non-empty one lets an unprivileged process in the container gain file capabilities that it
should not have (CVE-2022-24769, CVE-2022-29162, CVE-2022-27649). The price is that ambient capabilities cannot exist, because the kernel
demands that they be inheritable.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from tare.linux import libc
from tare.linux.constants import PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, PR_CAPBSET_DROP, PR_CAPBSET_READ, PR_SET_KEEPCAPS

NAMES: tuple[str, ...] = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
    "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE",
    "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
"""Names in the kernel's order: the index is the number."""

NUMBERS: dict[str, int] = {name: number for number, name in enumerate(NAMES)}

_VERSION_3 = 0x20080522


def numbers_of(names: Iterable[str]) -> list[int]:
    """Sorted capability numbers. Raises ValueError naming an unknown capability."""
    result = set()
    for name in names:
        number = NUMBERS.get(name.upper())
        if number is None:
            raise ValueError(f"unknown capability: {name}")
        result.add(number)
    return sorted(result)


def mask(numbers: Iterable[int]) -> int:
    """The bit set of some capability numbers."""
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits


def held_permitted() -> int:
    """The calling thread's permitted set."""
    data = libc.capget(struct.pack("=Ii", _VERSION_3, 0))
    return int.from_bytes(data[4:8], "little") | int.from_bytes(data[16:20], "little") << 32


def held_bounding() -> int:
    """The calling thread's bounding set, as far as the kernel knows capabilities."""
    bits = 0
    for number in range(64):
        try:
            held = libc.prctl(PR_CAPBSET_READ, number)
        except OSError:
            break
        if held:
            bits |= 1 << number
    return bits


def limit_bounding(bits: int) -> None:
    """Drop everything outside ``bits`` from the bounding set."""
    for number in range(64):
        if bits >> number & 1:
            continue
        try:
            libc.prctl(PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == 22:  # EINVAL: beyond the kernel's last capability
                return
            raise


def keep_over_setuid(keep: bool) -> None:
    """Whether the permitted set survives a change from user id 0 (PR_SET_KEEPCAPS)."""
    libc.prctl(PR_SET_KEEPCAPS, int(keep))


def clear_ambient() -> None:
    """Empty the ambient set."""
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)


def apply(effective: int, permitted: int) -> None:
    """Set the effective and permitted sets (bit sets); the inheritable set becomes empty."""
    low = 0xFFFFFFFF
    data = struct.pack("=6I", effective & low, permitted & low, 0, effective >> 32, permitted >> 32, 0)
    libc.capset(struct.pack("=Ii", _VERSION_3, 0), data)
