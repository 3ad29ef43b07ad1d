"""The keeper's share of a container's hooks: those that run in the host's namespaces (``runtime.hooks``).

They run one after the other in a process of their own, the *runner*, so that the keeper goes on answering meanwhile. The runner
says what went wrong through a pipe, whose end is its end.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

from tare.linux import namespaces, process
from tare.runtime import hooks
from tare.runtime.reactor import READ, Reactor

LONGEST = 300
"""Seconds for a hook that has no timeout of its own: a start or an end does not wait for ever."""


class KeeperHooks:
    """``plan`` is ``KeeperPlan.hooks``."""

    def __init__(self, reactor: Reactor, container_id: str, plan: dict[str, Any]) -> None:
        self._reactor = reactor
        self._id = container_id
        self._plan = plan
        self._runner = 0
        self._fd = -1
        self._next: Callable[[], None] | None = None

    @property
    def busy(self) -> bool:
        return self._runner > 0

    def has(self, kind: str) -> bool:
        return bool(self._plan.get(kind))

    def state(self, status: str, pid: int) -> dict[str, Any]:
        """What hooks are told of the container."""
        said = self._plan["state"]
        return {
            "ociVersion": said["ociVersion"],
            "id": self._id,
            "status": status,
            "pid": pid,
            "bundle": said["bundle"],
            "annotations": said["annotations"],
        }

    def run(self, kinds: tuple[str, ...], status: str, pid: int, done: Callable[[str], None]) -> None:
        """Run the hooks of these kinds, after those that run already; ``done`` hears what went wrong, or nothing. The hook after one that
        failed is run only where the container is there already."""
        if self.busy:
            self._next = partial(self.run, kinds, status, pid, done)
            return
        wanted = [(kind, hooks.Hook(*item)) for kind in kinds for item in self._plan.get(kind) or ()]
        if not wanted:
            done("")
            return
        own = namespaces.open_namespace("/proc/self/ns/pid")  # our children would be born into the container's
        try:
            namespaces.join(own, "pid")
        finally:
            os.close(own)
        read, write = os.pipe2(os.O_CLOEXEC)
        self._runner = os.fork()
        if self._runner == 0:
            _run(wanted, self.state(status, pid), write, every=status not in ("creating", "created"))
        os.close(write)
        self._fd = read
        said: list[bytes] = []
        self._reactor.watch(read, READ, partial(self._heard, said, done))

    def _heard(self, said: list[bytes], done: Callable[[str], None], events: int) -> None:
        if data := os.read(self._fd, 4096):
            said.append(data)
            return
        self._end()
        done(b"".join(said).decode("utf-8", "replace"))
        if self._next is not None:
            following, self._next = self._next, None
            following()

    def _end(self) -> None:
        self._reactor.forget(self._fd)
        os.close(self._fd)
        os.waitpid(self._runner, 0)
        self._runner, self._fd = 0, -1

    def cancel(self) -> None:
        """The start has failed otherwise: a hook under way ends with its runner."""
        if self.busy:
            os.kill(self._runner, signal.SIGKILL)
            self._end()


def _run(wanted: list[tuple[str, hooks.Hook]], state: dict[str, Any], out: int, *, every: bool) -> None:
    """The runner; never returns."""
    problems: list[str] = []
    try:
        process.die_with_parent()
        process.close_all_but({out})
        text = json.dumps(state).encode()
        for kind, hook in wanted:
            problem = hooks.run(hook if hook.timeout else hook._replace(timeout=LONGEST), text)
            if problem:
                problems.append(f"error running {kind} hook {hook.path}: {problem}")
                if not every:
                    break
    except BaseException as error:
        problems.append(f"error running hooks: {error}")
    finally:
        if problems:
            os.write(out, "; ".join(problems).encode()[:65536])
        os._exit(0)
