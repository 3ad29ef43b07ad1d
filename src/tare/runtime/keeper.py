"""The keeper: one process per container, parent of its init and of its execs. It outlives the daemon.

What it holds: standard input and output, the log, the cgroup, the exit status. On disk, in the container's run directory (mode 0700):

    keeper.sock   control socket (SOCK_SEQPACKET, mode 0600), there while the keeper lives
    task.json     {"id", "pid", "start_time", "keeper", "keeper_start_time", "started_at", "cgroup", "warnings",
                  "exec_defaults"}; once started
    exit.json     {"code", "finished_at", "oom_killed", "error", "pid", "started_at", "warnings", "execs": {id: {...}}}

It is two processes: a worker, which runs this module while something happens, and a holder, which stays (``runtime.holder``). The worker
goes to rest when the container runs, no exec does, no client is attached and nothing has happened for a while: ``_rest`` writes down what
the next one continues from in ``go_on``.

Order at the end: init reaped → rest killed → output drained, log closed → exit.json written → announced → mounts let go, cgroup removed →
poststop hooks → socket removed → attachments linger → the keeper exits.

Control protocol (``runtime.messages``): requests ``{"op", "n", ...}`` are answered by ``{"n", "ok": {...}}`` or
``{"n", "error": text, "kind": errno name}``; events are ``{"event": "started" | "failed" | "exit" | "exec-exit",
...}`` on every connection.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import select
import socket
import time
from typing import Any

from tare.linux import libc, namespaces, process, pty
from tare.linux.cgroup.detect import Layout
from tare.linux.cgroup.group import Cgroup
from tare.linux.constants import NAMESPACE_FLAGS, PR_SET_CHILD_SUBREAPER
from tare.runtime import criu, init, messages
from tare.runtime.children import Child, attach
from tare.runtime.context import SetupFailed, reason
from tare.runtime.control import Connection, ControlSocket, listen
from tare.runtime.execs import Execs
from tare.runtime.holder import AT_REST, Holder
from tare.runtime.keeperhooks import KeeperHooks
from tare.runtime.links import make_links, serve_names
from tare.runtime.logdrivers import open_log
from tare.runtime.plan import KeeperPlan
from tare.runtime.reactor import Reactor, Timer
from tare.runtime.report import CREATE_PREFIX, failure_text
from tare.runtime.spare import SpareInit

TRIM_SECONDS = 0.2
QUIET_SECONDS = 0.5
"""Without any event for so long, the worker rests. Woken again soon, it waits twice as long the next time."""
MOST_QUIET_SECONDS = 2.0
SOON = 4
"""Times the quiet: rests shorter than that were not worth the fork."""
TIDY_AFTER_EXECS = 32

Request = dict[str, Any]


class Keeper:
    """State and event loop of one keeper."""

    def __init__(self, container_id: str, plan: dict[str, Any], layout: Layout | None, holder: Holder | None, run_fd: int = -1) -> None:
        self.id = container_id
        self._plan_text = plan
        self.plan = KeeperPlan.from_json(plan)
        self.holder = holder
        self.pid = holder.pid if holder is not None else os.getpid()
        """The process on record as the keeper."""
        self.steps_text = self.exec_defaults_text = ""
        self.reactor = Reactor(holder.epoll if holder is not None else None)
        self.hooks = KeeperHooks(self.reactor, container_id, self.plan.hooks)
        self.control = ControlSocket(self.reactor, self.handle, self._disconnected)
        self.layout = layout
        self.cgroup: Cgroup | None = None
        self.child: Child | None = None
        self.execs = Execs(self.reactor, self._announce, self._exec_closed)
        self.dump: criu.Dump | None = None
        """The checkpoint that is being made."""
        self.exit: dict[str, Any] | None = None
        self.failed = False
        self.held = False
        self.removed = False
        self._execs_since_tidy = 0
        self.warnings: list[str] = []
        self._attachments: list[tuple[dict[str, Any], int]] = []
        self._inherited: list[int] = []
        self._quiet = QUIET_SECONDS
        self._rest_timer: Timer | None = None
        self._mounts_fd = -1
        """The container's mount namespace, held so that its end does not wait for the unmounting: the kernel tells that a process has ended
        only after it has let go of its namespaces, and the last mount namespace costs milliseconds."""
        self._run_fd = run_fd if run_fd >= 0 else os.open(self.plan.run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    # Start

    def take(self, request: Request, fds: list[int]) -> None:
        """Take over what came with the start request."""
        self.steps_text = str(request["steps"])
        self.exec_defaults_text = str(request["exec_defaults"])
        self._starter = self.control.adopt(socket.socket(fileno=fds[0]))
        inherited = (1 if self.plan.stdio.tty else 3) if self.plan.stdio.inherit else 0
        self._inherited = fds[1 : 1 + inherited]
        self._attachments = list(zip(request.get("attachments") or (), fds[1 + inherited :], strict=True))

    def start(self, spare: SpareInit | None) -> None:
        """Set everything up and let the init go; the rest happens in the event loop."""
        try:
            self._begin(spare)
        except (OSError, ValueError, SetupFailed) as error:
            text = error.text if isinstance(error, SetupFailed) else reason(error) if isinstance(error, OSError) else str(error)
            failure = {"failed": text, "code": 128, "plain": False}
            if self.child is not None and self.child.pid:
                self.child.abort(failure)
                return
            if spare is not None:
                spare.discard()
            self._on_failed(self.child, failure)

    def _begin(self, spare: SpareInit | None) -> None:
        """A spare init gets its steps first of all: it goes to work while we do the rest, until it needs its cgroup."""
        self.child = Child(
            self.reactor, self.plan.stdio, None, self._on_progress, self._on_started, self._on_failed, self._on_ended, self._inherited
        )
        if spare is not None:
            self.cgroup = spare.cgroup
            text = '{"steps":' + self.steps_text + "}"
            messages.send_bytes(spare.line, text.encode(), self.child.streams.child)
            self.child.begin(spare.pid, spare.line)
        self.control.listen(listen(self._run_fd))
        # A daemon that starts from now on finds this socket; one that was killed before cannot know of this start, which gives itself up.
        if self._abandoned():
            raise SetupFailed("nobody waits for this start any more")
        self.child.stdio.log = open_log(self.plan.log)
        self._attach_early()
        if spare is None:
            self._fork_init(self.child)
        self._enter_cgroup(self.child)

    def _attach_early(self) -> None:
        assert self.child is not None
        if self.plan.stdio.tty:
            return  # The terminal comes later; then there is something to attach to.
        self._attach_all(self.child)

    def _attach_all(self, child: Child) -> None:
        pending, self._attachments = self._attachments, []
        for description, fd in pending:
            attach(child, description, fd, id(self._starter))

    def _fork_init(self, child: Child) -> None:
        streams = child.streams.child
        self._enter_pid_namespace()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            process.close_all_but({theirs.fileno(), *streams})
            init.run(theirs, self.steps_text, streams)
        theirs.close()
        child.begin(pid, ours)

    def _enter_pid_namespace(self) -> None:
        kind = self.plan.pid_namespace
        if kind == "new":
            libc.unshare(NAMESPACE_FLAGS["pid"])
        elif kind == "own":
            libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # the init will be a grandchild
        elif kind != "host":
            fd = namespaces.open_namespace(kind)
            namespaces.join(fd, "pid")
            os.close(fd)

    def _enter_cgroup(self, child: Child) -> None:
        if self.layout is not None and self.plan.cgroup:
            if self.cgroup is not None:
                self.cgroup.rename(self.plan.cgroup)
            else:
                group = Cgroup(self.layout, self.plan.cgroup)
                group.create()
                self.cgroup = group
                group.attach(child.pid)
            if self.plan.resources:
                self.warnings.extend(self.cgroup.apply(self.plan.resources))
        child.go("cgroup")

    def _abandoned(self) -> bool:
        """Whether whoever asked for this start has gone."""
        poller = select.poll()
        poller.register(self._starter.sock.fileno(), 0)
        return bool(poller.poll(0))

    def _on_progress(self, at: str, child: Child) -> None:
        if child is not self.child:
            return
        if at == "console":
            self._attach_all(child)
        elif at == "user":
            self._write_user_maps(child)
        elif at == "namespaces":
            self._hold_mounts(child)
            self._make_links(child)
        elif at == "create-hooks":
            self.hooks.run(("prestart", "createRuntime"), "creating", child.pid, self._on_create_hooks)
        elif at == "start-hooks":
            child.go(at, state=self.hooks.state("created", child.pid))
        elif at == "restored":
            self._serve_restored(child)
        elif at == "forked":
            # The mounts of a restored container are not those of the process that restored it.
            self._release_mounts()
            self._hold_mounts(child)
        elif at == "ready":
            # Written while the program is being executed; should that fail, it goes again.
            self._write_task(child)
        elif at == "held":
            self.held = True
            self._write_task(child)
            self._announce({"event": "held", "pid": child.pid, "warnings": self.warnings + child.warnings})
        elif at == "exit" and self.plan.kill_rest and self.cgroup is not None:
            self.cgroup.kill()

    def _on_create_hooks(self, problem: str) -> None:
        assert self.child is not None
        if problem:
            self.child.abort({"failed": problem, "code": 128, "plain": False})
        else:
            self.child.go("create-hooks", state=self.hooks.state("creating", self.child.pid))

    def _hold_mounts(self, child: Child) -> None:
        try:
            self._mounts_fd = namespaces.open_namespace(f"/proc/{child.pid}/ns/mnt")
        except OSError:
            pass  # it has failed meanwhile, or the host has no such file: its end takes a little longer

    def _release_mounts(self) -> None:
        if self._mounts_fd >= 0:
            os.close(self._mounts_fd)
            self._mounts_fd = -1

    def _make_links(self, child: Child) -> None:
        if not self.plan.links:
            return
        try:
            make_links(self.plan.links, self.plan.name_server, self.id, child.pid)
            child.go("network")
        except OSError as error:
            text = f"failed to set up container networking: failed to add interface: {reason(error)}"
            child.abort({"failed": text, "code": 128, "plain": True})

    def _serve_restored(self, child: Child) -> None:
        """The name server has answered for as long as the process lives that restores: from now on for as long as what it restored."""
        try:
            if self.plan.name_server:
                serve_names(self.plan.name_server, self.id, child.restored)
            child.go("restored")
        except OSError as error:
            child.abort({"failed": f"failed to set up container networking: {reason(error)}", "code": 128, "plain": True})

    def _write_user_maps(self, child: Child) -> None:
        try:
            for name, lines in (("uid_map", self.plan.uid_map), ("gid_map", self.plan.gid_map)):
                text = "".join(f"{line.container} {line.host} {line.size}\n" for line in lines)
                write_file(f"/proc/{child.pid}/{name}", text.encode())
            child.go("user")
        except OSError as error:
            child.abort({"failed": f"failed to write the user namespace's maps: {reason(error)}", "code": 128, "plain": False})

    def _on_started(self, child: Child) -> None:
        if child is not self.child:
            return
        self.warnings += child.warnings
        self._announce({"event": "started", "pid": child.pid, "started_at": child.started_at, "warnings": self.warnings})
        self.steps_text = ""
        if self.hooks.has("poststart"):
            self.hooks.run(("poststart",), "running", child.pid, self._on_late_hooks)

    def _on_late_hooks(self, problem: str) -> None:
        if problem:
            self.warnings.append(problem)

    def _write_task(self, child: Child) -> None:
        fields = {
            "id": self.id,
            "pid": child.pid,
            "start_time": process.start_time(child.pid),
            "keeper": self.pid,
            "keeper_start_time": process.start_time(self.pid),
            "started_at": child.ready_at,
            "cgroup": self.plan.cgroup,
            "warnings": self.warnings + child.warnings,
        }
        text = json.dumps(fields, separators=(",", ":"))[:-1] + ',"exec_defaults":' + self.exec_defaults_text + "}"
        self._write("task.json", text.encode())

    def _on_failed(self, child: Child | None, failure: dict[str, Any]) -> None:
        self.failed = True
        self.hooks.cancel()
        for _, fd in self._attachments:
            messages.close_all([fd])
        self._attachments = []
        if child is not None:
            child.stdio.finish()
        self._release_mounts()
        if self.cgroup is not None:
            self._remove_cgroup()
        for name in ("keeper.sock", "task.json"):
            try:
                os.unlink(name, dir_fd=self._run_fd)
            except FileNotFoundError:
                pass
        text = failure_text(failure, CREATE_PREFIX)
        self._announce({"event": "failed", "message": text, "code": failure["code"]})

    # Requests

    def handle(self, connection: Connection, message: Request, fds: list[int]) -> dict[str, Any] | None:
        """One request. Returns the answer, or None when it comes later. OSError becomes an error answer."""
        operation = getattr(self, "_op_" + str(message.get("op")).replace("-", "_"), None)
        if operation is None:
            messages.close_all(fds)
            raise OSError(errno.EINVAL, f"unknown operation {message.get('op')!r}")
        result: dict[str, Any] | None = operation(connection, message, fds)
        return result

    def _running(self) -> Child:
        if self.child is None or not self.child.running:
            raise ProcessLookupError(errno.ESRCH, "container is not running")
        return self.child

    def _op_status(self, connection: Connection, message: Request, fds: list[int]) -> dict[str, Any]:
        child = self.child
        state = "creating"
        if self.exit is not None:
            state = "exited"
        elif child is not None and child.started_at:
            state = "running"
        elif self.held:
            state = "held"
        result: dict[str, Any] = {"state": state, "warnings": self.warnings, "exit": self.exit, "removed": self.removed}
        if child is not None:
            result |= {"pid": child.pid, "started_at": child.started_at}
        if state == "running" and self.cgroup is not None:
            result["paused"] = self.cgroup.frozen()
        return result

    def _op_go(self, connection: Connection, message: Request, fds: list[int]) -> dict[str, Any]:
        if not self.held or self.child is None:
            raise OSError(errno.EINVAL, "container is not waiting to be started")
        self.held = False
        self.child.go("exec")
        return {}

    def _target(self, message: Request) -> Child:
        exec_id = message.get("exec")
        if exec_id is None:
            if self.held and self.child is not None:
                return self.child
            return self._running()
        child = self.execs.running.get(str(exec_id))
        if child is None or not child.running:
            raise ProcessLookupError(errno.ESRCH, "process is not running")
        return child

    def _op_signal(self, connection: Connection, message: Request, fds: list[int]) -> dict[str, Any]:
        child = self._target(message)
        if message.get("all") and self.cgroup is not None:
            for pid in self.cgroup.pids():
                try:
                    os.kill(pid, int(message["signal"]))
                except ProcessLookupError:
                    pass
        else:
            child.kill(int(message["signal"]))
        return {}

    def _op_resize(self, connection: Connection, message: Request, fds: list[int]) -> dict[str, Any]:
        child = self._target(message)
        if not child.plan.tty or not child.stdio.outputs:
            raise OSError(errno.ENOTTY, "process has no terminal")
        pty.set_size(child.stdio.outputs[0].fd, int(message["rows"]), int(message["columns"]))
        return {}

    def _op_attach(self, connection: Connection, message: Request, fds: list[int]) -> dict[str, Any]:
        child = self._running()
        inode, size = child.stdio.log.position() if child.stdio.log is not None else (0, 0)
        number = attach(child, message["attachment"], fds[0], id(connection))
        return {"number": number, "inode": inode, "size": size}

    def _op_uncork(self, connection: Connection, message: Request, fds: list[int]) -> dict[str, Any]:
        if self.child is not None:
            attachment = self.child.stdio.attachments.get(int(message["number"]))
            if attachment is not None:
                attachment.uncork()
        return {}

    def _op_update(self, connection: Connection, message: Request, fds: list[int]) -> dict[str, Any]:
        return {"warnings": self._group().apply(message["resources"])}

    def _op_pause(self, connection: Connection, message: Request, fds: list[int]) -> dict[str, Any]:
        self._group().freeze()
        return {}

    def _op_resume(self, connection: Connection, message: Request, fds: list[int]) -> dict[str, Any]:
        self._group().thaw()
        return {}

    def _op_checkpoint(self, connection: Connection, message: Request, fds: list[int]) -> None:
        """Make a checkpoint (``runtime.criu``); answered when it is there or has failed. Unless left running the container is killed."""
        child, number = self._running(), message["n"]
        if self.dump is not None:
            raise OSError(errno.EBUSY, "a checkpoint of this container is being made")
        if self.cgroup is not None and self.cgroup.frozen():
            raise OSError(errno.EBUSY, "the container is paused: unpause it first")

        def answer(failure: str) -> None:
            self.dump = None
            connection.send({"n": number, "error": failure, "kind": "EIO"} if failure else {"n": number, "ok": {}})

        self.dump = criu.begin(self.reactor, self.id, child, self.cgroup, message, answer)

    def _group(self) -> Cgroup:
        if not self.held:
            self._running()
        if self.cgroup is None:
            raise OSError(errno.EOPNOTSUPP, "container has no cgroup")
        return self.cgroup

    def _op_exec(self, connection: Connection, message: Request, fds: list[int]) -> dict[str, Any] | None:
        self.execs.start(connection, message, fds, self._running(), self.cgroup)
        return None

    def _op_find_exec(self, connection: Connection, message: Request, fds: list[int]) -> dict[str, Any]:
        return self.execs.find(str(message["exec"]))

    def _exec_closed(self) -> None:
        self._execs_since_tidy += 1
        if self._execs_since_tidy >= TIDY_AFTER_EXECS:
            self._execs_since_tidy = 0
            self.reactor.after(TRIM_SECONDS, self.tidy)

    # The end

    def _on_ended(self, child: Child) -> None:
        """Called once output is drained, and again when the last attachment has gone."""
        if self.exit is not None or child.status is None:
            return
        oom_killed = False
        try:
            oom_killed = self.cgroup is not None and self.cgroup.oom_kills() > 0
        except OSError:
            pass
        self.exit = {
            "code": child.status,
            "finished_at": child.ended_at,
            "oom_killed": oom_killed,
            "error": "",
            "pid": child.pid,
            "started_at": child.started_at,
            "warnings": self.warnings,
        }
        # Now that this is set: a client that has nothing more to say is gone at once, and its going calls us again.
        child.stdio.finish()
        self.execs.end()
        self._write("exit.json", json.dumps({**self.exit, "execs": self.execs.exits}, separators=(",", ":")).encode())
        self._announce({"event": "exit", **self.exit})
        self._release_mounts()
        self._remove_cgroup()
        if self.hooks.has("poststop"):
            self.hooks.run(("poststop",), "stopped", 0, self._on_removed)
        else:
            self._on_removed("")

    def _on_removed(self, problem: str) -> None:
        self._on_late_hooks(problem)
        try:
            os.unlink("keeper.sock", dir_fd=self._run_fd)
        except FileNotFoundError:
            pass
        self.removed = True
        self._announce({"event": "removed"})

    def _remove_cgroup(self) -> None:
        if self.cgroup is not None:
            try:
                self.cgroup.kill()
                self.cgroup.remove()
            except OSError:
                pass

    def _write(self, name: str, data: bytes) -> None:
        """Write and rename: a reader sees the whole file or none. No fsync: the run directory does not survive a power cut."""
        temporary = name + ".new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._run_fd)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=self._run_fd, dst_dir_fd=self._run_fd)

    def _announce(self, event: dict[str, Any]) -> None:
        self.control.broadcast(event)

    def _disconnected(self, connection: Connection) -> None:
        """Nobody will uncork what this connection corked."""
        for child in (self.child, *self.execs.running.values()):
            if child is not None:
                child.stdio.release_corked(id(connection))

    def tidy(self) -> None:
        """Give back what the start needed. The collector is off (it would touch every page shared with the launcher)."""
        self.steps_text = self.exec_defaults_text = ""
        gc.collect()
        libc.malloc_trim()

    def run(self) -> None:
        """The event loop, until there is nothing left to keep."""
        while not self._done():
            if self.holder is not None and self._rest_timer is None and self._at_rest():
                self._rest_timer = self.reactor.after(self._quiet, self._maybe_rest)
            self.reactor.run_once()
        self.control.close()

    # Rest

    def _at_rest(self) -> bool:
        child = self.child
        if child is None or not child.running or self.hooks.busy or self.dump is not None:
            return False
        return not self.execs.running and child.stdio.rest() is not None and self.control.flushed

    def _maybe_rest(self) -> None:
        self._rest_timer = None
        if self.holder is not None and self._at_rest() and time.monotonic() - self.reactor.active_at >= self._quiet * 0.9:
            self._rest(self.holder)

    def _rest(self, holder: Holder) -> None:
        """End this worker, unless something is in the way after all."""
        assert self.child is not None
        child, control = self.child.rest(), self.control.descriptors()
        if child is None or control is None:
            return
        log = self.child.stdio.log
        holder.save({
            "id": self.id,
            "plan": self._plan_text | {"resources": {}},
            "run_fd": self._run_fd,
            "mounts_fd": self._mounts_fd,
            "control": control,
            "child": child,
            "log": log.rest() if log is not None else None,
            "cgroup": self.cgroup is not None,
            "warnings": self.warnings,
            "exec_exits": self.execs.exits,
            "quiet": self._quiet,
            "since": time.monotonic(),
        })  # fmt: skip
        os._exit(AT_REST)

    def wake(self, state: Request) -> None:
        """Go on where the worker that wrote ``state`` stopped."""
        assert self.holder is not None
        control = state["control"]
        self.control.listen(socket.socket(fileno=control["listener"]))
        for fd in control["connections"]:
            self.control.adopt(socket.socket(fileno=fd))
        self._mounts_fd = state["mounts_fd"]
        self.warnings = state["warnings"]
        self.execs.exits = state["exec_exits"]
        self.cgroup = Cgroup(self.layout, self.plan.cgroup) if self.layout is not None and state["cgroup"] else None
        log = open_log(self.plan.log, state["log"])
        self.child = Child(
            self.reactor,
            self.plan.stdio,
            log,
            self._on_progress,
            self._on_started,
            self._on_failed,
            self._on_ended,
            resting=state["child"],
        )
        self.child.wait_status = self.holder.wait_for
        soon = time.monotonic() - state["since"] < SOON * state["quiet"]
        self._quiet = min(MOST_QUIET_SECONDS, state["quiet"] * 2) if soon else QUIET_SECONDS

    def _done(self) -> bool:
        if (self.exit is None and not self.failed) or self.hooks.busy or self.dump is not None:
            return False
        children = [*self.execs.running.values(), *([self.child] if self.child else [])]
        return not any(child.stdio.attachments for child in children) and self.control.flushed


def write_file(path: str, data: bytes) -> None:
    """Write a kernel file in one call."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def serve(request: Request, fds: list[int], layout: Layout | None, spare: SpareInit | None = None, holder: Holder | None = None) -> None:
    """Be the keeper of one container, from its plan to its first rest or its end."""
    try:
        keeper = Keeper(str(request["id"]), request["keeper"], layout, holder)
        keeper.take(request, fds)
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = reason(error) if isinstance(error, OSError) else repr(error)
        failure = {"failed": f"cannot set up the keeper: {text}", "code": 128}
        sock = socket.socket(fileno=fds[0])
        messages.send(sock, {"event": "failed", "message": failure_text(failure, CREATE_PREFIX), "code": 128})
        if spare is not None:
            spare.discard()
        return
    # The plan is long and needed only once; a keeper may live for years.
    request.clear()
    keeper.start(spare)
    if holder is None:
        keeper.reactor.after(TRIM_SECONDS, keeper.tidy)
    keeper.run()


def go_on(state: Request, layout: Layout | None, holder: Holder) -> None:
    """Be the keeper from one rest to the next, or to the end."""
    keeper = Keeper(state["id"], state["plan"], layout, holder, state["run_fd"])
    keeper.wake(state)
    keeper.run()
