"""The launcher: a warm process from which keepers are forked.

It is started once by the daemon and has everything imported, so that a fork is a container's whole start-up cost. It
runs one thread, holds one socket to the daemon, and ends when that closes. Keepers in use do not depend on it.

Spares. Forking a keeper and its init and making cgroups in ten hierarchies costs milliseconds that no container has
to wait for: the launcher keeps a few pairs ready. A spare keeper has entered its new pid namespace and forked an init
into it, which sits in cgroups named ``spare-PID`` below the cgroup parent (v1: they are renamed for the container)
and waits for its steps. A spare serves every container with a pid namespace of its own and the default cgroup parent;
the pool is refilled when the launcher has been idle for a moment.

Spares end with the launcher: the end of its socket is their signal. What a kill -9 of everything leaves behind, the next launcher removes.

Start request of the daemon (one packet): one byte, ``S`` (a spare will do) or ``C`` (it will not), then JSON ``{"id",
"keeper", "steps": text, "exec_defaults": text, "attachments": [...]}``, with the descriptors [control connection,
attachment sockets ...]. The answer comes from the keeper over the control connection.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tare.linux import process
from tare.linux.cgroup import favor
from tare.linux.cgroup.detect import Layout, detect
from tare.linux.cgroup.group import Cgroup
from tare.runtime import init, keeper, messages, plan, zygote
from tare.runtime.holder import Holder
from tare.runtime.spare import SPARE_PREFIX, SpareInit, make_spare
from tare.runtime.steps import idmap, network, restore
from tare.runtime.steps import process as process_steps
from tare.runtime.zygote import Zygote

SPARE, PLAIN = b"S", b"P"
"""Kinds of keepers to be ordered: with an init forked ahead, or without."""
REFILL_AFTER_MS = 15
"""Idle time before the pool is refilled: a burst of starts is not slowed down by it."""


class Launcher:
    """State of the fork server."""

    def __init__(self, sock: socket.socket, cgroup_parent: str, spares: int) -> None:
        self.sock = sock
        self.cgroup_parent = "/" + cgroup_parent.strip("/")
        self.wanted = spares
        self.spares: list[socket.socket] = []
        self.zygote: Zygote | None = None
        self.layout: Layout | None
        try:
            self.layout = detect()
        except OSError:
            self.layout = None

    def run(self) -> None:
        """Serve until the daemon closes the socket."""
        poller = select.poll()
        poller.register(self.sock.fileno(), select.POLLIN)
        while True:
            short = len(self.spares) < self.wanted
            if short and not poller.poll(REFILL_AFTER_MS):
                self.spares.append(self._order(SPARE))
                continue
            try:
                data, fds = messages.receive_bytes(self.sock)
            except InterruptedError:
                continue
            except OSError:
                return
            if not data:
                return
            self._start(data, fds)
            messages.close_all(fds)

    def _start(self, data: bytes, fds: list[int]) -> None:
        while self.spares and data[:1] == b"S":
            spare = self.spares.pop()
            try:
                messages.send_bytes(spare, data[1:], fds)
                return
            except OSError:
                continue
            finally:
                spare.close()
        line = self._order(PLAIN)
        try:
            messages.send_bytes(line, data[1:], fds)
        except OSError as error:
            text = f"cannot fork a keeper: {error.strerror}"
            messages.send(socket.socket(fileno=os.dup(fds[0])), {"event": "failed", "message": text, "code": 128})
        finally:
            line.close()

    def _order(self, kind: bytes) -> socket.socket:
        """The line of a new keeper."""
        assert self.zygote is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.zygote.order(theirs.detach(), kind)
        return ours

    def work(self, holder: Holder) -> None:
        """What a keeper's first worker does."""
        fd, kind = zygote.parse(holder.order)
        process.close_all_but(holder.descriptors | {fd})
        process.redirect_standard_descriptors()
        line = socket.socket(fileno=fd)
        spare = None
        try:
            spare = make_spare(self.layout, self.cgroup_parent) if kind == SPARE else None
            data, fds = messages.receive_bytes(line)
            line.close()
            if data:
                run_keeper(data, fds, self.layout, spare, holder)
        except OSError:
            pass
        finally:
            if spare is not None:
                spare.discard()
            os._exit(0)

    def go_on(self, holder: Holder) -> None:
        """What every later worker does."""
        state = holder.load()
        guard(str(state["plan"]["run_dir"]), lambda: keeper.go_on(state, self.layout, holder))

    def remove_stale_spares(self) -> None:
        """Remove cgroups of spares that were killed without a chance to tidy up."""
        if self.layout is None:
            return
        names: set[str] = set()
        for hierarchy in (*self.layout.v1, *((self.layout.unified,) if self.layout.unified else ())):
            try:
                names.update(name for name in os.listdir(hierarchy.mount + self.cgroup_parent) if name.startswith(SPARE_PREFIX))
            except OSError:
                continue
        for name in names:
            if not os.path.exists("/proc/" + name[len(SPARE_PREFIX) :]):
                group = Cgroup(self.layout, f"{self.cgroup_parent}/{name}")
                try:
                    group.kill()
                    group.remove()
                except OSError:
                    continue


def run_keeper(data: bytes, fds: list[int], layout: Layout | None, spare: SpareInit | None, holder: Holder) -> None:
    """Serve one container, then end the process."""
    request: dict[str, Any] = json.loads(data)
    guard(str(request["keeper"]["run_dir"]), lambda: keeper.serve(request, fds, layout, spare, holder))


def guard(directory: str, work: Callable[[], None]) -> NoReturn:
    """Work, then end the process. A failure of our own is left in the run directory for whoever looks."""
    try:
        work()
    except BaseException:
        import traceback

        try:
            with open(os.path.join(directory, "keeper.err"), "a") as file:
                traceback.print_exc(file=file)
        finally:
            os._exit(70)
    os._exit(0)


def preload() -> None:
    """Import and run once whatever a keeper or init could otherwise load late: an init must not import inside a container's root."""
    import encodings.ascii
    import encodings.idna
    import encodings.latin_1
    import encodings.utf_8  # noqa: F401
    import traceback  # noqa: F401

    json.loads(messages.encode({"a": ["\u00fc", 1.5, None, True]}))
    os.fsencode("\udcff")
    str(OSError(2, os.strerror(2), "x"))


def remove_stale_folders(directory: str) -> None:
    """Remove what launchers that were killed while they warmed up left in the daemon's directory."""
    for name in os.listdir(directory):
        kind, _, pid = name.partition("launcher-")
        if not kind and pid.isdecimal() and not os.path.exists("/proc/" + pid):
            _remove_folder(os.path.join(directory, name))


def _remove_folder(path: str) -> None:
    for name in WARM_FILES:
        try:
            os.unlink(os.path.join(path, name))
        except OSError:
            continue
    try:
        os.rmdir(path)
    except OSError:
        pass


WARM_FILES = ("log", "exit.json", "exit.json.new", "task.json", "task.json.new", "keeper.sock")
STEP_MODULES = (*init.STEP_MODULES, idmap, network, restore)
"""Importing them has made their steps known to the decoder."""
WARM_ROUNDS = 10
"""CPython specializes a function's code in place after eight calls."""


def warm_up(layout: Layout | None, cgroup_parent: str, directory: str) -> None:
    """Be the keeper of a few short processes on the host. What CPython writes when code runs for the first times (specialized instructions,
    caches of attributes and types) is then written here, once, and not in every keeper on pages of its own."""
    steps = plan.encode_steps((
        process_steps.NewSession(),
        process_steps.ConnectStreams(),
        process_steps.CloseDescriptors(),
        process_steps.FindProgram(("/bin/true",), ()),
        process_steps.Execute(),
    ))  # fmt: skip
    client = {"stdin": True, "stdout": True, "stderr": True, "multiplexed": True, "prefix": "", "detach_keys": "", "corked": False}
    work = os.path.join(directory, f"launcher-{os.getpid()}")
    try:
        os.mkdir(work, 0o700)
        keeper_plan = plan.KeeperPlan(
            plan.StdioPlan(open_stdin=True, stdin_once=True), plan.LogPlan("json-file", work + "/log"), work, pid_namespace="host"
        )
        if layout is not None:
            keeper_plan = keeper_plan._replace(cgroup=f"{cgroup_parent}/{SPARE_PREFIX}{os.getpid()}", resources={"pids": {"limit": 100}})
        document = plan.Plan("warm", keeper_plan, ()).to_json()
        text = messages.encode_value(steps)
        for _ in range(WARM_ROUNDS):
            control, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            attached, user = socket.socketpair()
            request = {"id": "warm", "keeper": document["keeper"], "steps": text, "exec_defaults": "{}", "attachments": [client]}
            user.close()
            keeper.serve(json.loads(messages.encode(request)), [control.detach(), attached.detach()], layout)
            ours.close()
    except OSError:
        pass
    finally:
        _remove_folder(work)


def main(arguments: dict[str, Any]) -> None:
    """Entry point of the launcher's process."""
    sock = socket.socket(fileno=int(arguments["fd"]))
    os.set_inheritable(sock.fileno(), False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o022)
    os.chdir("/")
    process.set_name("tare-launcher")
    process.set_dumpable(False)
    preload()
    launcher = Launcher(sock, str(arguments["cgroup_parent"]), int(arguments["spares"]))
    if arguments.get("fast_migration", True):
        favor.fast_migration()
    if arguments.get("warm", True):
        warm_up(launcher.layout, launcher.cgroup_parent, str(arguments["directory"]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    # With the descriptor of its clone the standard library goes out of reach: everything was imported.
    process.close_all_but({sock.fileno()})
    launcher.remove_stale_spares()
    remove_stale_folders(str(arguments["directory"]))
    sys.stdin = None
    gc.collect()
    gc.disable()
    gc.freeze()
    launcher.zygote = Zygote(launcher.work, launcher.go_on)
    try:
        messages.send(sock, {"ready": os.getpid()})
    except OSError:
        os._exit(0)  # the daemon was killed while we were getting ready
    launcher.run()
    os._exit(0)
