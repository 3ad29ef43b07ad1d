"""The built-in init of ``--init`` where the host has no static one: process 1 stays ours, and the program is its child.

What an init owes its container: the program gets every signal that process 1 gets, orphans are reaped, and process 1 ends as the program
did. It does so under the program's own limits (user, capabilities, seccomp filter), holds no descriptor above 2, cannot be looked into
(not dumpable: ``/proc/1/exe``, ``fd`` and ``mem`` are closed to the container's root too), and imports and opens nothing: we are inside
the container's root. Its interpreter was executed from a read-only mount that the container does not have (CVE-2019-5736).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Sequence

from tare.linux import capabilities, libc, process
from tare.linux.constants import PR_SET_CHILD_SUBREAPER, PR_SET_NAME

NAME = "docker-init"
"""As ``ps`` in a container knows such a process."""

_FAULTS = (signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS)
_CAUGHT = signal.valid_signals().difference(_FAULTS, (signal.SIGKILL, signal.SIGSTOP))


def _argument_area() -> tuple[int, int]:
    """Where the kernel looks for this process's command line (proc(5), arg_start and arg_end); forks have theirs at the same place."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[45]), int(fields[46])
    except (OSError, IndexError, ValueError):
        return 0, 0


_AREA = _argument_area()


def show_as(arguments: Sequence[str]) -> None:
    """Let ``ps`` show another command line, cut to the space there is."""
    libc.prctl_text(PR_SET_NAME, NAME.encode())
    start, end = _AREA
    if end <= start:
        return
    text = b"\0".join(os.fsencode(argument) for argument in arguments)[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def hold_signals() -> None:
    """From now on signals wait, to be forwarded. Every action must be the default one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _CAUGHT)


def supervise(argv: list[str]) -> None:
    """Fork. Returns in the child, which is to execute the program; process 1 stays here until the child ends, and ends like it."""
    if os.getpid() != 1:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans come here also in the host's process namespace
    child = os.fork()
    if child == 0:
        _own_group()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return
    code = 1
    try:
        _close_descriptors()
        if os.geteuid() != 0:
            capabilities.apply(0, 0)  # what an exec takes from a program that is not root's
        show_as([f"/sbin/{NAME}", "--", *argv])
        code = _watch(child)
    finally:
        os._exit(code)


def _close_descriptors() -> None:
    try:
        process.close_range(3)
    except OSError:  # a filter that knows no close_range(2)
        os.closerange(3, 1024)


def _own_group() -> None:
    """A process group of its own, in the foreground of the terminal if there is one."""
    os.setpgid(0, 0)
    try:
        os.tcsetpgrp(0, os.getpgrp())
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.ENXIO, errno.EPERM):
            raise


def _watch(child: int) -> int:
    """Forward signals to the child and reap, until the child has ended; returns the exit code."""
    while True:
        number = signal.sigwaitinfo(_CAUGHT).si_signo
        if number == signal.SIGCHLD:
            code = _reap(child)
            if code is not None:
                return code
        elif number not in (signal.SIGTTIN, signal.SIGTTOU):
            try:
                os.kill(child, number)
            except ProcessLookupError:
                pass


def _reap(child: int) -> int | None:
    """Collect everything that has ended; the exit code (128 + signal) if the child is among it."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            code = code if code >= 0 else 128 - code
