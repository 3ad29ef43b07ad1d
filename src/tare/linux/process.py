"""What a process inherits and hands on: descriptors, signals, dumpability, its parent's death."""

from __future__ import annotations

import os
import signal
from _signal import getsignal as get_signal  # type: ignore[import-not-found]  # without the enums of signal.signal: those write pages
from _signal import signal as set_signal

from tare.linux import libc
from tare.linux.constants import CLOSE_RANGE_CLOEXEC, NR_CLOSE_RANGE, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG

_LAST_FD = 0xFFFFFFFF
_SIG_DFL = int(signal.SIG_DFL)
_CATCHABLE = tuple(sorted(int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))

# The two real-time signals that glibc keeps for its threads: its sigaction(2), and so Python's, refuses them, yet a parent may have
# left them ignored. The kernel's own call takes an all-zero struct sigaction (SIG_DFL) of 32 bytes.
_RESERVED = (32, 33)
_RT_SIGACTION = 134 if os.uname().machine == "aarch64" else 13
_DEFAULT_ACTION = bytes(32)


def close_range(first: int, last: int = _LAST_FD, *, on_exec: bool = False) -> None:
    """Close (or mark close-on-exec) every descriptor from ``first`` to ``last``."""
    libc.syscall(NR_CLOSE_RANGE, first, last, CLOSE_RANGE_CLOEXEC if on_exec else 0)


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor above 2 that is not in ``keep``."""
    first = 3
    for fd in sorted(keep):
        if fd > first:
            close_range(first, fd - 1)
        first = max(first, fd + 1)
    close_range(first)


def reset_signals() -> None:
    """Default action for every signal and an empty mask, as a fresh program expects (Python itself ignores SIGPIPE and SIGXFSZ)."""
    for number in _CATCHABLE:
        if get_signal(number) != _SIG_DFL:  # Python knows all actions: those it found at its start and those it made
            set_signal(number, _SIG_DFL)
    for reserved in _RESERVED:
        libc.syscall(_RT_SIGACTION, reserved, _DEFAULT_ACTION, None, 8, what="rt_sigaction")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def set_dumpable(dumpable: bool) -> None:
    """Whether others of the same user may look into this process (/proc/PID/mem, fd, exe); exec sets it again."""
    libc.prctl(PR_SET_DUMPABLE, int(dumpable))


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask for a signal when the parent dies. Cleared by a change of credentials, so set it after that."""
    libc.prctl(PR_SET_PDEATHSIG, number)


def no_new_privileges() -> None:
    """From now on exec grants no privileges (set-user-id bits, file capabilities)."""
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1)


def set_name(name: str) -> None:
    """The short name in ps and top (at most 15 bytes)."""
    fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, name.encode()[:15])
    finally:
        os.close(fd)


def redirect_standard_descriptors() -> None:
    """Connect descriptors 0, 1 and 2 with /dev/null."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd, inheritable=True)
    if null > 2:
        os.close(null)


def start_time(pid: int) -> int:
    """Start of a process in clock ticks since boot: with the pid it names a process for good. 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def alive(pid: int) -> bool:
    """Whether a process runs: neither gone nor a zombie that waits for its parent."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        return False
