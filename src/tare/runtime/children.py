"""A process that the keeper starts: its line during set-up, its stdio, its end. The container's init and every exec are one of these.

States:  setting up ──(line closes after "ready")──► running ──(pidfd readable, output drained)──► ended
              └──("failed", or the line closes too early)──► failed
"""

from __future__ import annotations

import binascii
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from tare.runtime import messages
from tare.runtime.logfile import ContainerLog
from tare.runtime.plan import StdioPlan
from tare.runtime.reactor import READ, Reactor
from tare.runtime.stdio import Stdio

DRAIN_SECONDS = 2.0
"""How long output may go on after the process has ended, when somebody else still holds its pipes."""


class Streams:
    """Both sides of a process's standard streams before the fork."""

    def __init__(self, plan: StdioPlan, inherited: list[int]) -> None:
        self.child: list[int] = []
        self.ours: dict[str, int] = {}
        if plan.inherit and not plan.tty:
            self.child = list(inherited)
        if plan.tty or plan.inherit:
            return
        if plan.open_stdin:
            read, self.ours["stdin"] = os.pipe2(os.O_CLOEXEC)
        else:
            read = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.ours["stdout"], out = os.pipe2(os.O_CLOEXEC)
        self.ours["stderr"], err = os.pipe2(os.O_CLOEXEC)
        self.child = [read, out, err]

    def close_child_side(self) -> None:
        messages.close_all(self.child)
        self.child = []


def send_console(sockets: list[int], masters: list[int]) -> None:
    """Send a terminal's master as runc does: the name of its slave as data, the descriptor beside it. Closes the socket."""
    for fd in sockets:
        sock = socket.socket(fileno=fd)
        try:
            socket.send_fds(sock, [b"/dev/ptmx"], masters)
        finally:
            sock.close()


def _wait_for_own(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


class Child:
    """One process."""

    def __init__(
        self,
        reactor: Reactor,
        plan: StdioPlan,
        log: ContainerLog | None,
        on_message: Callable[[str, Child], None],
        on_started: Callable[[Child], None],
        on_failed: Callable[[Child, dict[str, Any]], None],
        on_ended: Callable[[Child], None],
        inherited: list[int] | None = None,
        resting: dict[str, Any] | None = None,
    ) -> None:
        self.reactor = reactor
        self.plan = plan
        self._inherited = list(inherited or ())
        self.streams = Streams(plan, self._inherited) if resting is None else Streams(StdioPlan(inherit=True), [])
        self.stdio = Stdio(reactor, log, plan.stdin_once, plan.tty, self._stdio_ended)
        self.pid = 0
        self.pidfd = -1
        self.status: int | None = None
        """Exit code as Docker's, once the process has ended."""
        self.ended_at = 0
        self.started_at = 0
        self.warnings: list[str] = []
        self.ready_at = 0
        """When everything was set up and only exec was left; nanoseconds since the epoch, 0 before."""
        self.restored = 0
        """The process that will go on in this one's place: it runs already (``steps.restore``)."""
        self.finished = False
        self.wait_status: Callable[[int], int] = _wait_for_own
        """How the wait status of the ended process is got."""
        self._line: socket.socket | None = None
        self._on_message = on_message
        self._on_started = on_started
        self._on_failed = on_failed
        self._on_ended = on_ended
        if resting is None:
            self._open_streams()
        else:
            self._wake(resting)

    def rest(self) -> dict[str, Any] | None:
        """All that is needed to go on with a running process in another worker; None when that is not possible now."""
        stdio = self.stdio.rest()
        if stdio is None or not self.running or self._line is not None:
            return None
        return {
            "pid": self.pid,
            "pidfd": self.pidfd,
            "ready_at": self.ready_at,
            "started_at": self.started_at,
            "warnings": self.warnings,
            "stdio": stdio,
        }

    def _wake(self, resting: dict[str, Any]) -> None:
        self.pid, self.pidfd = resting["pid"], resting["pidfd"]
        self.ready_at, self.started_at = resting["ready_at"], resting["started_at"]
        self.warnings = resting["warnings"]
        self.stdio.wake(resting["stdio"])
        self.reactor.watch(self.pidfd, READ, self._on_exit)

    def _open_streams(self) -> None:
        ours = self.streams.ours
        if "stdin" in ours:
            self.stdio.open_input(ours["stdin"])
        for name in ("stdout", "stderr"):
            if name in ours:
                self.stdio.open_output(name, ours[name])

    def begin(self, pid: int, line: socket.socket) -> None:
        """The process exists; follow its set-up."""
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._line = line
        self.streams.close_child_side()
        self.reactor.watch(line.fileno(), READ, self._on_line)
        self.reactor.watch(self.pidfd, READ, self._on_exit)

    def go(self, what: str, **said: Any) -> None:
        """Tell the process that something it waits for is done."""
        if self._line is not None:
            try:
                messages.send(self._line, {"go": what, **said})
            except OSError:
                pass

    @property
    def running(self) -> bool:
        return self.started_at > 0 and self.status is None

    def _on_line(self, events: int) -> None:
        assert self._line is not None
        try:
            message, fds = messages.receive(self._line)
        except (OSError, ValueError) as error:
            message, fds = {"failed": str(error), "code": 128, "plain": False}, []
        if message is None:
            self._close_line()
            if self.ready_at:
                self.started_at = self.ready_at
                self._on_started(self)
            else:
                self._fail({"failed": "the process ended while it was being set up", "code": 128, "plain": False})
        elif "failed" in message:
            messages.close_all(fds)
            self._close_line()
            self._fail(message)
        else:
            self._progress(message, fds)

    def _progress(self, message: dict[str, Any], fds: list[int]) -> None:
        at = str(message.get("at"))
        if "warnings" in message:
            self.warnings = list(message["warnings"])
        if at == "ready":
            self.ready_at = time.time_ns()
        elif at == "restored":
            self.restored = int(message["pid"])
        elif at == "forked":
            self._follow_fork(int(message["pid"]))
        elif at == "console" and self.plan.inherit:
            send_console(self._inherited, fds)
            self._inherited = []
        elif at == "console" and len(fds) == 1:
            self.stdio.open_input(os.dup(fds[0]))
            self.stdio.open_output("stdout", fds[0])
            fds = []
        messages.close_all(fds)
        self._on_message(at, self)

    def _follow_fork(self, pid: int) -> None:
        """The process goes on as its child, in a pid namespace of its own (``ForkIntoPidNamespace``)."""
        before, self.pidfd = self.pidfd, os.pidfd_open(pid)  # a number of its own: an event of the old one may be under way
        self.reactor.forget(before)
        os.close(before)
        os.waitpid(self.pid, 0)
        self.pid = pid
        self.reactor.watch(self.pidfd, READ, self._on_exit)

    def _close_line(self) -> None:
        if self._line is not None:
            self.reactor.forget(self._line.fileno())
            self._line.close()
            self._line = None

    def _fail(self, failure: dict[str, Any]) -> None:
        self._reap(kill=True)
        self.stdio.drain()
        self._on_failed(self, failure)

    def abort(self, failure: dict[str, Any]) -> None:
        """Give up during set-up. A process that has failed by itself says why better than we, who only found it gone."""
        failure = self._last_words() or failure
        self._close_line()
        self._fail(failure)

    def _last_words(self) -> dict[str, Any] | None:
        """The failure that the process has told already."""
        if self._line is None:
            return None
        poller = select.poll()
        poller.register(self._line, select.POLLIN)
        while poller.poll(0):
            try:
                message, fds = messages.receive(self._line)
            except (OSError, ValueError):
                break
            messages.close_all(fds)
            if message is None or "failed" in message:
                return message
        return None

    def kill(self, number: int) -> None:
        """Send a signal; ProcessLookupError when the process has ended."""
        if self.status is not None or self.pidfd < 0:
            raise ProcessLookupError(3, "no such process")
        signal.pidfd_send_signal(self.pidfd, number)

    def _reap(self, kill: bool = False) -> None:
        """Collect the exit status (blocking only after a SIGKILL)."""
        if self.status is not None or not self.pid:
            return
        if kill:
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            code = os.waitstatus_to_exitcode(self.wait_status(self.pid))
        except ChildProcessError:
            code = 255
        self.status = code if code >= 0 else 128 - code
        self.ended_at = time.time_ns()
        self.reactor.forget(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1

    def _on_exit(self, events: int) -> None:
        if self._line is not None:
            # What it said before it died comes first.
            pid = self.pid
            self.reactor.forget(self.pidfd)
            while self._line is not None:
                self._on_line(READ)
                if self.pid != pid:
                    return  # it has not ended, but gone on as another process
            if self.status is not None:
                return
        self._reap()
        self._on_message("exit", self)
        self.stdio.drain()
        if self.stdio.drained:
            self._finish()
        else:
            self.reactor.after(DRAIN_SECONDS, self._finish)

    def _stdio_ended(self) -> None:
        """Output has ended, or (once finished) the last attachment has gone."""
        if self.finished:
            self._on_ended(self)
        elif self.status is not None and self.started_at and self.stdio.drained:
            self._finish()

    def _finish(self) -> None:
        if not self.finished:
            self.finished = True
            self._on_ended(self)

    def end(self) -> None:
        """Kill it, collect its status, and be done with it."""
        self._reap(kill=True)
        self._finish()


def attach(child: Child, description: dict[str, Any], fd: int, owner: int) -> int:
    """Connect a client's socket (owned) with a process."""
    return child.stdio.attach(
        socket.socket(fileno=fd),
        stdin=bool(description["stdin"]),
        stdout=bool(description["stdout"]),
        stderr=bool(description["stderr"]),
        multiplexed=bool(description["multiplexed"]),
        prefix=binascii.a2b_base64(description.get("prefix") or ""),
        detach_keys=binascii.a2b_base64(description.get("detach_keys") or ""),
        corked=bool(description.get("corked")),
        owner=owner,
    )
