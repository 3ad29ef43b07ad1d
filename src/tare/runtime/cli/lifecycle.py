"""create, run, start, state, kill, delete."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from tare.linux import process
from tare.linux.cgroup.group import Cgroup
from tare.runtime import hooks, messages
from tare.runtime.cli import bundle as bundles
from tare.runtime.cli.call import Call
from tare.runtime.cli.options import Parsed
from tare.runtime.cli.report import RuntimeFailure
from tare.runtime.cli.starter import Starter, follow
from tare.runtime.cli.state import OCI_VERSION, SOCKET, Record, alive, cgroup, document, layout, now
from tare.runtime.context import reason
from tare.runtime.plan import Plan

DEATH_SECONDS = 10.0
MOST_DESCRIPTORS = 100

MasterHandler = Callable[[int], None] | None


class Creation:
    """One ``create`` or ``run``: everything that is undone when it fails."""

    def __init__(self, call: Call, container_id: str, held: bool) -> None:
        self.call = call
        self._descriptors = descriptors(call.options)
        self.bundle = bundles.load(call.options.text("bundle") or ".")
        for warning in self.bundle.warnings:
            call.report.warning(warning)
        self.layout = layout()
        self.directory = call.store.reserve(container_id)
        self.starter: Starter | None = None
        self.record = Record(
            container_id,
            self.bundle.path,
            self.bundle.rootfs,
            now(),
            os.geteuid(),
            str(self.bundle.config.get("ociVersion") or OCI_VERSION),
            {str(key): str(value) for key, value in (self.bundle.config.get("annotations") or {}).items()},
        )
        self._listener = _listen(self.directory) if held else None

    def start(self, size: tuple[int, int] | None, on_master: MasterHandler) -> Starter:
        """Make the container; its init waits, or its program runs."""
        count, extra = self._descriptors
        listener = self._listener.fileno() if self._listener is not None else -1
        plan = bundles.lower(
            self.bundle, self.record.id, self.directory, self.layout, listener=listener, size=size, descriptors=count, environment=extra
        )
        starter = self.starter = Starter(plan.steps, self.call.options.text("console_socket"), on_master)
        starter.keeper = plan.keeper
        starter.create_hooks, starter.start_hooks = self._run_create_hooks, self._start_state
        self.record = self.record._replace(
            cgroup=plan.keeper.cgroup,
            exec_defaults={**plan.exec_defaults, "pid": plan.keeper.pid_namespace != "host"},
            own_pids=not plan.keeper.kill_rest,
        )
        self._make_cgroup(plan, starter)
        starter.enter_pid_namespace(plan.keeper.pid_namespace)
        starter.fork([listener, *range(3, 3 + count)] if listener >= 0 else range(3, 3 + count))
        self.record = self.record._replace(pid=starter.pid)
        starter.follow()
        self.record = self.record._replace(pid=starter.pid, start_time=process.start_time(starter.pid))
        for warning in starter.warnings:
            self.call.report.warning(warning)
        return starter

    def _make_cgroup(self, plan: Plan, starter: Starter) -> None:
        if self.layout is None or not plan.keeper.cgroup:
            return
        try:
            group = Cgroup(self.layout, plan.keeper.cgroup)
            group.create()
            starter.group = group
            starter.warnings.extend(group.apply(plan.keeper.resources))
        except OSError as error:
            raise RuntimeFailure(f"cannot make cgroup {plan.keeper.cgroup}: {reason(error)}") from None

    def _run_create_hooks(self) -> dict[str, Any]:
        assert self.starter is not None
        state = document(self.record._replace(pid=self.starter.pid), "creating")
        for kind in ("prestart", "createRuntime"):
            try:
                hooks.run_all(kind, hooks.read(self.bundle.config, kind), state)
            except hooks.HookFailed as error:
                raise RuntimeFailure(str(error)) from None
        return state

    def _start_state(self) -> dict[str, Any]:
        assert self.starter is not None
        return document(self.record._replace(pid=self.starter.pid), "created")

    def save(self) -> None:
        """Put the container on record, then its pid where the caller wants it."""
        self.call.store.write(self.record, self.bundle.source)
        write_pid_file(self.call.options.text("pid_file"), self.record.pid)
        if self._listener is not None:
            self._listener.close()

    def undo(self) -> None:
        """Leave nothing behind."""
        if self.starter is not None:
            self.starter.kill()
            if self.starter.group is not None:
                remove_cgroup(self.starter.group)
        self.call.store.remove(self.record.id)


def create(call: Call) -> int:
    """Make a container whose program waits for ``start``."""
    container_id = call.argument("container-id")
    made = Creation(call, container_id, held=True)
    try:
        check_console(made.bundle.tty, detached=True, console_socket=call.options.text("console_socket"))
        made.start(None, None)
        made.save()
    except BaseException:
        made.undo()
        raise
    return 0


def run(call: Call) -> int:
    """Make a container, run its program, and (in the foreground) remove it."""
    container_id = call.argument("container-id")
    detached, console_socket = call.options.flag("detach"), call.options.text("console_socket")
    made = Creation(call, container_id, held=False)
    try:
        check_console(made.bundle.tty, detached, console_socket)
        from tare.runtime.cli.foreground import Foreground, terminal_size

        waiting = None if detached else Foreground()
        proxied = made.bundle.tty and waiting is not None and not console_socket
        starter = made.start(terminal_size(0) if proxied else None, waiting.use_master if proxied and waiting else None)
        made.save()
    except BaseException:
        made.undo()
        raise
    poststart(call, made.record)
    if waiting is None:
        return 0
    code = waiting.wait(starter.pid)
    if not call.options.flag("keep"):
        remove(call, made.record)
    return code


def start(call: Call) -> int:
    """Let a created container's program run."""
    record = call.record()
    status = call.store.status(record)
    if status != "created":
        text = "cannot start a container that has stopped" if status == "stopped" else f"cannot start an already {status} container"
        raise RuntimeFailure(text)
    directory = call.store.directory(record.id)
    with _connect(directory) as line:
        messages.send(line, {"go": "exec"})

        def progress(message: dict[str, Any], fds: list[int]) -> None:
            if message["at"] == "start-hooks":
                messages.send(line, {"go": "start-hooks", "state": document(record, "created")})
            for warning in message.get("warnings") or ():
                call.report.warning(warning)

        follow(line, progress)
    os.unlink(os.path.join(directory, SOCKET))
    poststart(call, record)
    return 0


def state(call: Call) -> int:
    """Print the state document."""
    record = call.record()
    print(json.dumps(call.store.state(record), indent=2))
    return 0


def kill(call: Call) -> int:
    """Send a signal to the init, or to every process."""
    record = call.record()
    number = signal_number(call.arguments[1] if len(call.arguments) > 1 else "SIGTERM")
    everybody = call.options.flag("all")
    if everybody or not record.own_pids:
        group = cgroup(record)
        pids = group.pids() if group is not None and group.exists() else []
        if number == signal.SIGKILL and group is not None and pids:
            group.kill()
            return 0
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if everybody or pids:
            return 0
    send_signal(record, number)
    return 0


def delete(call: Call) -> int:
    """Remove a stopped container; by force also a running one."""
    force = call.options.flag("force")
    container_id = call.argument("container-id")
    try:
        record = call.record()
    except RuntimeFailure:
        directory = call.store.directory(container_id)
        if force:
            if os.path.isdir(directory):
                call.store.remove(container_id)
            return 0
        raise
    status = call.store.status(record)
    if status in ("running", "paused") and not force:
        raise RuntimeFailure(f"cannot delete container {container_id} that is not stopped: {status}")
    if status != "stopped":
        end(record)
    remove(call, record)
    return 0


def end(record: Record) -> None:
    """Kill the init and wait until it has gone (somebody else reaps it; a zombie counts as gone)."""
    group = cgroup(record)
    if group is not None and (group.frozen() or not record.own_pids):
        group.kill()
    try:
        send_signal(record, signal.SIGKILL)
    except RuntimeFailure:
        return
    deadline = time.monotonic() + DEATH_SECONDS
    while alive(record):
        if time.monotonic() > deadline:
            raise RuntimeFailure(f"container {record.id} did not die within {DEATH_SECONDS:.0f} s of SIGKILL")
        time.sleep(0.002)


def remove(call: Call, record: Record) -> None:
    """Remove what is left of a container whose init has ended, then run its last hooks."""
    group = cgroup(record)
    if group is not None:
        remove_cgroup(group)
    after = hooks.read(call.store.config(record.id), "poststop")
    call.store.remove(record.id)
    for hook in after:
        problem = hooks.run(hook, json.dumps(document(record, "stopped")).encode())
        if problem:
            call.report.warning(f"poststop hook {hook.path}: {problem}")


def remove_cgroup(group: Cgroup) -> None:
    """Kill what is left in a cgroup and remove it."""
    try:
        group.kill()
        group.remove()
    except OSError as error:
        raise RuntimeFailure(f"cannot remove cgroup {group.path}: {reason(error)}") from None


def poststart(call: Call, record: Record) -> None:
    for hook in hooks.read(call.store.config(record.id), "poststart"):
        problem = hooks.run(hook, json.dumps(document(record, "running")).encode())
        if problem:
            call.report.warning(f"poststart hook {hook.path}: {problem}")


def send_signal(record: Record, number: int) -> None:
    """Signal the init through a pidfd that is checked to be its own."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except OSError:
        raise RuntimeFailure("container not running") from None
    try:
        if not alive(record):
            raise RuntimeFailure("container not running")
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        raise RuntimeFailure("container not running") from None
    finally:
        os.close(pidfd)


def signal_number(text: str) -> int:
    """A signal by number or name, with or without SIG."""
    if text.isdigit():
        number = int(text)
        if 1 <= number <= signal.SIGRTMAX:
            return number
    else:
        name = text.upper().removeprefix("SIG")
        base, sign, offset = (name.partition("+") if "+" in name else name.partition("-")) if name.startswith("RTM") else (name, "", "")
        found = getattr(signal, "SIG" + base, None)
        if isinstance(found, signal.Signals) and (not sign or offset.isdigit()):
            return int(found) + (int(offset) if sign == "+" else -int(offset) if sign else 0)
    raise RuntimeFailure(f"unknown signal {text!r}")


def check_console(tty: bool, detached: bool, console_socket: str) -> None:
    """A terminal needs somebody who takes its master."""
    if tty and detached and not console_socket:
        raise RuntimeFailure("cannot allocate tty if the command will detach without setting console socket")
    if console_socket and not (tty and detached):
        raise RuntimeFailure("cannot use console socket if the command will not detach or allocate tty")


def descriptors(options: Parsed) -> tuple[int, tuple[str, ...]]:
    """How many descriptors above 2 the program inherits, and what it must be told of them."""
    count, extra = options.number("preserve_fds"), tuple[str, ...]()
    sockets = os.environ.get("LISTEN_FDS", "")
    if sockets.isdigit() and int(sockets) > 0:
        count, extra = count + int(sockets), (f"LISTEN_FDS={sockets}", "LISTEN_PID=1")
    if not 0 <= count <= MOST_DESCRIPTORS:
        raise RuntimeFailure(f"cannot preserve {count} descriptors, at most {MOST_DESCRIPTORS}")
    for fd in range(3, 3 + count):
        try:
            os.fstat(fd)
        except OSError:
            raise RuntimeFailure(f"cannot preserve descriptor {fd}: it is not open") from None
    return count, extra


def write_pid_file(path: str, pid: int) -> None:
    """Write and rename, so that nobody reads half a number."""
    if not path:
        return
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")
    with open(temporary, "w") as file:
        file.write(str(pid))
    os.rename(temporary, path)


def _listen(directory: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{fd}/{SOCKET}")
        listener.listen(1)
    finally:
        os.close(fd)
    return listener


def _connect(directory: str) -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        line.connect(f"/proc/self/fd/{fd}/{SOCKET}")
    except OSError as error:
        line.close()
        raise RuntimeFailure(f"container is not waiting to be started: {reason(error)}") from None
    finally:
        os.close(fd)
    return line
