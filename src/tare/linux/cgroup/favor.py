"""Moving a process into a group without waiting for the kernel.

Before the kernel moves a process it locks out forks and exits. By default that lock is built for the benefit of forks: taking it costs
an RCU grace period, 5 to 10 ms on an idle machine, once the largest single part of a container's start. The mount option
``favordynmods`` (6.0) turns the bargain around: measured here 6.3 ms → 0.45 ms for a move in ten hierarchies, no difference to a fork.

The option belongs to a hierarchy but acts on the whole kernel while any hierarchy has it. Changing the machine's own mounts would replace
their other options, so a named hierarchy without controllers is made for it, mounted nowhere: it lives as long as its descriptor
is open. While it does, ``/proc/PID/cgroup`` has one more line. From 6.18 on the effect outlives it and the descriptor is closed at once.

This is a hint: whatever fails (an older kernel, no v1 support, a confined engine) leaves the kernel as it was.
"""

from __future__ import annotations

import os

from tare.linux import libc

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_CLOEXEC = 1
_LASTING = (6, 18)


def fast_migration(name: str = "tare") -> int | None:
    """Ask the kernel for cheap moves. Returns a descriptor to be kept open for as long as that is wanted, or None if nothing is to be
    kept: the kernel cannot do it, or does it from now on in any case."""
    try:
        context = libc.syscall(_FSOPEN, b"cgroup", _CLOEXEC, what="fsopen cgroup")
    except OSError:
        return None
    try:
        libc.syscall(_FSCONFIG, context, _SET_FLAG, b"none", None, 0, what="cgroup option none")
        libc.syscall(_FSCONFIG, context, _SET_STRING, b"name", name.encode(), 0, what="cgroup option name")
        libc.syscall(_FSCONFIG, context, _SET_FLAG, b"favordynmods", None, 0, what="cgroup option favordynmods")
        libc.syscall(_FSCONFIG, context, _CREATE, None, None, 0, what="cgroup")
        mount = libc.syscall(_FSMOUNT, context, _CLOEXEC, 0, what="fsmount cgroup")
    except OSError:
        return None
    finally:
        os.close(context)
    if _release(os.uname().release) >= _LASTING:
        os.close(mount)
        return None
    return mount


def _release(text: str) -> tuple[int, int]:
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
