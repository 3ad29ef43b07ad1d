"""The keeper's part of a start, played by a command that may end as soon as the process runs.

The command forks the init itself, so that after its end the init is a child of whoever reaps for the caller (conmon, containerd's shim).
It follows the init over its line, as a keeper does: writes user maps, puts it into its cgroup, hands the terminal on, runs the hooks in
between.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterable
from typing import Any

from tare.linux import libc, namespaces, process
from tare.linux.cgroup.group import Cgroup
from tare.linux.constants import NAMESPACE_FLAGS, PR_SET_CHILD_SUBREAPER
from tare.runtime import init, messages
from tare.runtime.cli.report import RuntimeFailure
from tare.runtime.context import reason
from tare.runtime.plan import KeeperPlan, Step, UserMap, encode_steps

PREFIX = "unable to start container process: "


class Starter:
    """One start (of a container or of an exec)."""

    def __init__(self, steps: Iterable[Step], console_socket: str, on_master: Callable[[int], None] | None = None) -> None:
        self._steps: list[Any] = encode_steps(tuple(steps))
        self._console_socket = console_socket
        self._on_master = on_master
        self.pid = 0
        self.warnings: list[str] = []
        self.group: Cgroup | None = None
        self.keeper = KeeperPlan()
        self.create_hooks: Callable[[], dict[str, Any]] = dict
        self.start_hooks: Callable[[], dict[str, Any]] = dict
        self._line: socket.socket | None = None

    def enter_pid_namespace(self, kind: str) -> None:
        """Where the init will be forked: ``new``, ``host``, ``own`` (the init does it itself), or a path."""
        if kind == "new":
            libc.unshare(NAMESPACE_FLAGS["pid"])
        elif kind == "own":
            libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        elif kind != "host":
            fd = namespaces.open_namespace(kind)
            namespaces.join(fd, "pid")
            os.close(fd)

    def fork(self, keep: Iterable[int] = (), pidfd: int = -1) -> None:
        """Fork the process; it has our standard descriptors and ``keep``."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            kept = {theirs.fileno(), *keep}
            if pidfd >= 0:
                kept.add(pidfd)
            process.close_all_but(kept)
            init.run(theirs, self._steps, [0, 1, 2], pidfd)
        theirs.close()
        self.pid, self._line = pid, ours

    def follow(self) -> str:
        """Until the process waits for its start ("held") or runs ("ready"). ``RuntimeFailure`` says why it does neither."""
        assert self._line is not None
        try:
            if self.keeper.pid_namespace != "own":
                self._attach()
            reached = follow(self._line, self._progress)
        except BaseException:
            self.kill()
            raise
        self._line.close()
        return reached

    def _attach(self) -> None:
        assert self._line is not None
        if self.group is not None:
            try:
                self.group.attach(self.pid)
            except OSError as error:
                raise RuntimeFailure(f"{PREFIX}error adding pid {self.pid} to cgroups: {reason(error)}") from None
        _go(self._line, "cgroup")

    def _progress(self, message: dict[str, Any], fds: list[int]) -> None:
        assert self._line is not None
        at = message["at"]
        self.warnings.extend(message.get("warnings") or ())
        if at == "user":
            write_maps(self.pid, self.keeper.uid_map, self.keeper.gid_map)
            _go(self._line, "user")
        elif at == "forked":
            os.waitpid(self.pid, 0)
            self.pid = int(message["pid"])
            self._attach()
        elif at == "console":
            self._hand_on(fds[0])
        elif at == "create-hooks":
            _go(self._line, at, self.create_hooks())
        elif at == "start-hooks":
            _go(self._line, at, self.start_hooks())

    def _hand_on(self, master: int) -> None:
        if self._on_master is not None:
            self._on_master(os.dup(master))
        else:
            send_master(self._console_socket, master)

    def kill(self) -> None:
        """Give up: no process of this start survives."""
        if self._line is not None:
            self._line.close()
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass


def follow(line: socket.socket, progress: Callable[[dict[str, Any], list[int]], None]) -> str:
    """Read an init's line to "held", or to its end after "ready"."""
    ready = False
    while True:
        try:
            message, fds = messages.receive(line)
        except ConnectionError:
            message, fds = None, []
        try:
            if message is None:
                if ready:
                    return "ready"
                raise RuntimeFailure(f"{PREFIX}the process ended while it was being set up")
            if "failed" in message:
                raise RuntimeFailure(PREFIX + str(message["failed"]))
            if message["at"] == "held":
                return "held"
            ready = ready or message["at"] == "ready"
            progress(message, fds)
        finally:
            messages.close_all(fds)


def _go(line: socket.socket, what: str, state: dict[str, Any] | None = None) -> None:
    try:
        messages.send(line, {"go": what} if state is None else {"go": what, "state": state})
    except (BrokenPipeError, ConnectionError):
        pass  # It has ended; its last word, or the end of the line, says why.


def send_master(path: str, master: int) -> None:
    """Give a terminal to whoever listens on the console socket: its name as data, the descriptor beside it."""
    parent, name = os.path.split(path)
    directory = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(f"/proc/self/fd/{directory}/{name}")
            socket.send_fds(sock, [b"/dev/ptmx"], [master])
    except OSError as error:
        raise RuntimeFailure(f"console socket {path}: {reason(error)}") from None
    finally:
        os.close(directory)


def write_maps(pid: int, uid_map: tuple[UserMap, ...], gid_map: tuple[UserMap, ...]) -> None:
    """Fill in a new user namespace."""
    for name, lines in (("uid_map", uid_map), ("gid_map", gid_map)):
        text = "".join(f"{line.container} {line.host} {line.size}\n" for line in lines)
        try:
            fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise RuntimeFailure(f"{PREFIX}failed to write {name}: {reason(error)}") from None
