"""The execs of one container as its keeper sees them: started on request, reported when they end, remembered for whoever asks later."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from tare.linux import namespaces, process
from tare.linux.cgroup.group import Cgroup
from tare.runtime import init, messages
from tare.runtime.children import Child, attach
from tare.runtime.context import reason
from tare.runtime.control import Connection
from tare.runtime.plan import StdioPlan
from tare.runtime.reactor import Reactor
from tare.runtime.report import EXEC_PREFIX, failure_text

REMEMBERED = 512


class Execs:
    """Running and ended execs. ``announce`` tells every connection of an end, ``closed`` hears of an exec that is gone for good."""

    def __init__(self, reactor: Reactor, announce: Callable[[dict[str, Any]], None], closed: Callable[[], None]) -> None:
        self.reactor = reactor
        self.running: dict[str, Child] = {}
        """By id; an ended one stays while a client is attached."""
        self.exits: dict[str, dict[str, Any]] = {}
        self._announce = announce
        self._closed = closed

    def find(self, exec_id: str) -> dict[str, Any]:
        """What is known of an exec: its exit, or its pid, or nothing."""
        exited = self.exits.get(exec_id)
        if exited is not None:
            return {"exit": exited}
        child = self.running.get(exec_id)
        return {"pid": child.pid, "started_at": child.started_at} if child is not None and child.started_at else {}

    def start(self, connection: Connection, message: dict[str, Any], fds: list[int], container: Child, cgroup: Cgroup | None) -> None:
        """Begin an exec; the connection is answered when it runs or has failed."""
        plan = message["plan"]
        exec_id = str(plan["id"])
        number = message.get("n")

        def started(child: Child) -> None:
            connection.answer(number, {"pid": child.pid, "started_at": child.started_at, "warnings": child.warnings})

        def failed(child: Child, failure: dict[str, Any]) -> None:
            text = failure_text(failure, EXEC_PREFIX)
            attach_all(child)
            child.stdio.say(f"{text}\r\n".encode())  # the reason goes where the output would have gone
            child.stdio.finish()
            self.running.pop(exec_id, None)
            connection.send({"n": number, "error": text, "kind": "failed", "code": failure["code"]})

        def progress(at: str, child: Child) -> None:
            if at == "console":
                attach_all(child)

        def attach_all(child: Child) -> None:
            while pending:
                description, fd = pending.pop(0)
                attach(child, description, fd, id(connection))

        pending = list(zip(message.get("attachments") or (), fds, strict=True))
        stdio = StdioPlan(**plan["stdio"])._replace(stdin_once=True)
        child = Child(self.reactor, stdio, None, progress, started, failed, self._on_ended)
        self.running[exec_id] = child
        if not stdio.tty:
            attach_all(child)
        self._fork(child, container, cgroup, str(plan["steps"]))
        messages.close_all([fd for _, fd in pending] if not stdio.tty else [])

    def _fork(self, child: Child, container: Child, cgroup: Cgroup | None, steps: str) -> None:
        try:
            # A worker that was made after a rest has, unlike the first one, no children in the container's pid namespace by itself.
            namespaces.join_process(container.pidfd, ("pid",))
        except OSError as error:
            child.abort({"failed": f"error joining pid namespace: {reason(error)}", "code": 128, "plain": False})
            return
        streams = child.streams.child
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            process.close_all_but({theirs.fileno(), container.pidfd, *streams})
            init.run(theirs, steps, streams, container.pidfd)
        theirs.close()
        child.begin(pid, ours)
        try:
            if cgroup is not None:
                cgroup.attach(pid)
        except OSError as error:
            child.abort({"failed": f"error adding pid {pid} to cgroups: {reason(error)}", "code": 128, "plain": False})
            return
        child.go("cgroup")

    def _on_ended(self, child: Child) -> None:
        exec_id = next((name for name, known in self.running.items() if known is child), "")
        child.stdio.finish()
        if exec_id and exec_id not in self.exits:
            record = {"code": child.status, "finished_at": child.ended_at, "pid": child.pid}
            self.exits[exec_id] = record
            while len(self.exits) > REMEMBERED:
                del self.exits[next(iter(self.exits))]
            self._announce({"event": "exec-exit", "exec": exec_id, **record})
        if not child.stdio.attachments:
            self.running.pop(exec_id, None)
            self._closed()

    def end(self) -> None:
        """The container has ended: so has every exec."""
        for child in list(self.running.values()):
            if child.status is None and child.pid:
                child.end()
