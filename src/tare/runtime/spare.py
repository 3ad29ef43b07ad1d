"""Spare inits: forked before their container is known (see ``runtime.launcher``)."""

from __future__ import annotations

import json
import os
import signal
import socket

from tare.linux import libc, process
from tare.linux.cgroup.detect import Layout
from tare.linux.cgroup.group import Cgroup
from tare.linux.constants import NAMESPACE_FLAGS
from tare.linux.netlink import Route
from tare.runtime import init, messages, plan
from tare.runtime.prepared import prepare

SPARE_PREFIX = "spare-"
"""Of the cgroups in which they wait."""


class SpareInit:
    """An init that was forked ahead: it waits on ``line`` for its steps, in the cgroup ``cgroup`` (None: not in one yet)."""

    def __init__(self, pid: int, line: socket.socket, cgroup: Cgroup | None) -> None:
        self.pid = pid
        self.line = line
        self.cgroup = cgroup

    def discard(self) -> None:
        """It is not needed: nothing of it stays."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        if self.cgroup is not None:
            try:
                self.cgroup.remove()
            except OSError:
                pass


def make_spare(layout: Layout | None, cgroup_parent: str) -> SpareInit:
    """Fork an init that waits for its steps, in a new pid namespace of the caller's; on v1 it is put into cgroups already."""
    libc.unshare(NAMESPACE_FLAGS["pid"])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        process.close_all_but({theirs.fileno()})
        wait_for_steps(theirs)
    theirs.close()
    spare = SpareInit(pid, ours, None)
    try:
        if layout is not None and layout.v1:
            spare.cgroup = Cgroup(layout, f"{cgroup_parent}/{SPARE_PREFIX}{os.getpid()}")
            spare.cgroup.create()
            spare.cgroup.attach(pid)
    except OSError:
        spare.discard()
        raise
    return spare


def wait_for_steps(line: socket.socket) -> None:
    """A spare init: blocked until its keeper has a container for it."""
    process.set_dumpable(False)
    process.die_with_parent()
    ahead = prepare()
    rehearse()
    try:
        message, fds = messages.receive(line)
    except (OSError, ValueError):
        os._exit(2)
    if message is None:
        os._exit(0)
    init.run(line, message["steps"], fds, prepared=ahead)


def rehearse() -> None:
    """Decode steps and ask the kernel for a link, as every start does. A page that Python writes for the first time after a fork is
    copied by the kernel: here that happens while nobody waits."""
    nested = ["", 0, [""], {"": ""}]
    text = messages.encode_value([[name, dict.fromkeys(cls._fields, nested)] for name, cls in plan.known_steps().items()])
    plan.decode_steps(json.loads(text))
    try:
        with Route() as route:
            route.link("lo")
    except OSError:
        pass
