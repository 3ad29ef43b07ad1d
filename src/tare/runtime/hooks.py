"""The OCI hooks: programs of the caller's that are told of the container's state on their standard input.

    prestart, createRuntime   in the host's namespaces, once the container's exist and before its root is entered
    createContainer           by the init, in the container's namespaces, before its root is entered
    startContainer            by the init, inside, just before the program
    poststart, poststop       in the host's namespaces, once the program runs, and when it has ended; a failure is only a warning

Those of the host's namespaces are run by the keeper (``runtime.keeperhooks``) or by the command ``tare-runtime``. Those before the program
must succeed, or there is no container.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tare.linux import process

OUTPUT_LIMIT = 4096
OUTSIDE = ("prestart", "createRuntime", "poststart", "poststop")
"""The kinds that run in the host's namespaces."""


class Hook(NamedTuple):
    """One hook; ``timeout`` in seconds, 0 for none."""

    path: str
    args: tuple[str, ...]
    env: tuple[str, ...]
    timeout: int


class HookFailed(OSError):
    """``str()`` says which hook and why."""

    def __str__(self) -> str:
        return str(self.args[0])


def read(config: Mapping[str, Any], kind: str) -> tuple[Hook, ...]:
    """The hooks of one kind in a configuration; ValueError for a malformed one."""
    found = []
    for item in (config.get("hooks") or {}).get(kind) or ():
        path = str(item.get("path") or "")
        if not path.startswith("/"):
            raise ValueError(f"hooks.{kind}: path must be absolute: {path!r}")
        timeout = item.get("timeout")
        if timeout is not None and int(timeout) <= 0:
            raise ValueError(f"hooks.{kind}: timeout must be greater than 0")
        found.append(Hook(path, tuple(item.get("args") or (path,)), tuple(item.get("env") or ()), int(timeout or 0)))
    return tuple(found)


def run_all(kind: str, hooks: Iterable[Hook], state: Mapping[str, Any]) -> None:
    """Run hooks in order; ``HookFailed`` at the first failure."""
    text = json.dumps(state).encode()
    for hook in hooks:
        problem = run(hook, text)
        if problem:
            raise HookFailed(f"error running {kind} hook {hook.path}: {problem}")


def run(hook: Hook, state: bytes) -> str:
    """Run one hook; returns what went wrong, or nothing."""
    said = os.memfd_create("hook-output", os.MFD_CLOEXEC)
    given = os.memfd_create("hook-state", os.MFD_CLOEXEC)
    try:
        os.write(given, state)
        os.lseek(given, 0, os.SEEK_SET)
        pid = os.fork()
        if pid == 0:
            _become(hook, given, said)
        code = _wait(pid, hook.timeout)
        if code is None:
            return f"timed out after {hook.timeout} s"
        if code == 0:
            return ""
        output = os.pread(said, OUTPUT_LIMIT, 0).decode("utf-8", "replace").strip()
        how = f"exit status {code}" if code > 0 else f"signal: {-code}"
        return how + (f", output: {output}" if output else "")
    finally:
        os.close(given)
        os.close(said)


def _become(hook: Hook, given: int, said: int) -> None:
    """The child's side; never returns."""
    try:
        os.setpgid(0, 0)
        process.die_with_parent()
        os.dup2(given, 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        process.close_range(3, on_exec=True)
        process.reset_signals()
        environment = dict(entry.split("=", 1) for entry in hook.env if "=" in entry)
        try:
            os.execve(hook.path, hook.args, environment)
        except OSError as error:
            os.write(2, (error.strerror or "cannot execute").lower().encode())
    finally:
        os._exit(127)


def _wait(pid: int, timeout: int) -> int | None:
    """The exit code (negative: signal), None after a timeout."""
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        in_time = bool(poller.poll(timeout * 1000 if timeout else None))
        if not in_time:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status) if in_time else None
    finally:
        os.close(pidfd)
