"""Waiting in the foreground: signals go to the container, and with a terminal its bytes go both ways.

Signals wake one poll loop through a pipe. What the user types is buffered to a bound, so that a container that does not read cannot stop
its own output from being shown.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import termios
import tty
from types import FrameType
from typing import Any

from tare.linux import pty
from tare.runtime.cli.report import RuntimeFailure

CHUNK = 65536
NOT_FORWARDED = frozenset(
    (signal.SIGCHLD, signal.SIGURG, signal.SIGPIPE, signal.SIGKILL, signal.SIGSTOP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP)
)


def terminal_size(fd: int) -> tuple[int, int]:
    """Rows and columns, zeros when it is no terminal."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return 0, 0
    return rows, columns


def _note(number: int, frame: FrameType | None) -> None:
    """A handler of our own makes the wake-up descriptor tell of the signal."""


class Foreground:
    """Everything between a caller at the terminal and a process in the container."""

    def __init__(self) -> None:
        self._wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in signal.valid_signals() - NOT_FORWARDED:
            try:
                signal.signal(number, _note)
            except (OSError, ValueError):
                continue
        self._master = -1
        self._typed = b""
        self._poller = select.poll()
        self._saved: list[Any] | None = None

    def use_master(self, master: int) -> None:
        """Proxy this terminal."""
        self._master = master

    def wait(self, pid: int) -> int:
        """Until the process ends; its exit status as a shell reports it."""
        pidfd = os.pidfd_open(pid)
        try:
            self._poller.register(pidfd, select.POLLIN)
            self._poller.register(self._wakeup, select.POLLIN)
            self._begin_proxy()
            self._loop(pidfd)
        finally:
            self._end_proxy()
            os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _begin_proxy(self) -> None:
        if self._master < 0:
            return
        os.set_blocking(self._master, False)
        self._poller.register(self._master, select.POLLIN)
        if os.isatty(0):
            self._saved = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSANOW)
        self._poller.register(0, select.POLLIN)

    def _end_proxy(self) -> None:
        if self._master >= 0:
            while self._show() > 0:
                pass
        if self._saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)

    def _loop(self, pidfd: int) -> None:
        while True:
            ready = dict(self._poller.poll())
            if self._master in ready:
                if ready[self._master] & select.POLLOUT:
                    self._deliver()
                if ready[self._master] & ~select.POLLOUT and self._show() < 0:
                    self._poller.unregister(self._master)
            if 0 in ready and self._master >= 0:
                self._take()
            if self._wakeup in ready:
                self._forward(pidfd)
            if pidfd in ready:
                return

    def _forward(self, pidfd: int) -> None:
        for number in os.read(self._wakeup, 64):
            if number == signal.SIGWINCH and self._master >= 0:
                rows, columns = terminal_size(0)
                if rows:
                    pty.set_size(self._master, rows, columns)
                continue
            try:
                signal.pidfd_send_signal(pidfd, number)
            except ProcessLookupError:
                pass

    def _take(self) -> None:
        data = os.read(0, CHUNK)
        self._typed += data
        if not data:
            self._poller.unregister(0)
        self._deliver()

    def _deliver(self) -> None:
        try:
            while self._typed:
                self._typed = self._typed[os.write(self._master, self._typed) :]
        except BlockingIOError:
            pass
        except OSError:
            self._typed = b""
        try:
            self._poller.modify(self._master, select.POLLIN | (select.POLLOUT if self._typed else 0))
        except FileNotFoundError:
            pass

    def _show(self) -> int:
        """Show what the container wrote: how much, 0 for nothing now, -1 for never again."""
        try:
            data = os.read(self._master, CHUNK)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: the last process closed its side
            return -1
        size = len(data)
        while data:
            try:
                data = data[os.write(1, data) :]
            except OSError as error:
                raise RuntimeFailure(f"cannot write to standard output: {error.strerror}") from None
        return size or -1
