"""Exec sessions: further processes in running containers, from ``create`` over ``start`` to ``inspect``.

A session is created first and started once. Its settings live in memory only, as dockerd's do: a daemon that was restarted does not know
sessions of before, though their processes run on and end with their container.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tare.containers.names import new_id
from tare.containers.task import Attachment, ExecLaunch, ExecTask, Exit, Stdio
from tare.errors import Conflict, InvalidArgument, NotFound, StartFailed
from tare.linux.process import alive

if TYPE_CHECKING:
    from tare.containers.container import Container
    from tare.containers.lifecycle import Lifecycle
    from tare.wire.container import ExecCreateRequest

_KEPT_AFTER_EXIT = 300.0
_SETTLE_WITHIN = 2.0


@dataclass
class ExecSession:
    """One exec: its request, and its process once started."""

    id: str
    container: Container
    request: ExecCreateRequest
    running: bool = False
    started: bool = False
    exit_code: int | None = None
    pid: int = 0
    task: ExecTask | None = None
    launched: asyncio.Event = field(default_factory=asyncio.Event)
    """The start has succeeded or failed."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ended_at: float = 0.0


class ExecSessions:
    """All exec sessions of the engine."""

    def __init__(self, lifecycle: Lifecycle, process: Callable[[Container, ExecCreateRequest], dict[str, Any]]) -> None:
        self._lifecycle = lifecycle
        self._process = process
        self._sessions: dict[str, ExecSession] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    def create(self, container: Container, request: ExecCreateRequest) -> ExecSession:
        """Register a session. ``Conflict`` when the container does not run, ``InvalidArgument`` without a command."""
        if container.record.state.status == "paused":
            raise Conflict(f"container {container.name} is paused, unpause the container before exec")
        self._lifecycle.require_task(container)
        if not request.cmd:
            raise InvalidArgument("no exec command specified")
        self._forget_old()
        session = ExecSession(new_id(), container, request)
        self._sessions[session.id] = session
        container.exec_ids.add(session.id)
        self._lifecycle.publish(container, f"exec_create: {_action_text(request.cmd)}", {"execID": session.id})
        return session

    def get(self, exec_id: str) -> ExecSession:
        session = self._sessions.get(exec_id)
        if session is None:
            matches = [each for key, each in self._sessions.items() if exec_id and key.startswith(exec_id)]
            if len(matches) != 1:
                raise NotFound(f"No such exec instance: {exec_id}")
            session = matches[0]
        return session

    def check_startable(self, session: ExecSession) -> None:
        """Raise what ``start`` would raise before any connection is taken over."""
        if session.exit_code is not None and session.started:
            raise Conflict(f"exec command {session.id} has already run")
        if session.started:
            raise Conflict(f"exec command {session.id} is already running")
        self._lifecycle.require_task(session.container)

    async def start(self, session: ExecSession, attachment: Attachment | None, console_size: tuple[int, int] = (0, 0)) -> None:
        """Start the session's process, connected with ``attachment``. ``StartFailed`` carries the exit code that is kept."""
        self.check_startable(session)
        task = self._lifecycle.require_task(session.container)
        session.started = True
        request = session.request
        launch = ExecLaunch(
            id=session.id,
            process=self._process(session.container, request),
            stdio=Stdio(tty=request.tty, open_stdin=request.attach_stdin, stdin_once=True, console_size=console_size),
            user=request.user or session.container.record.config.user,
            additional_groups=() if request.user else tuple(session.container.record.host_config.group_add or ()),
            attachments=(attachment,) if attachment else (),
            privileged=request.privileged,
        )
        try:
            session.task = await task.exec(launch)
        except StartFailed as error:
            # As dockerd: what fails before there is a command to speak of (an unknown user) is "cannot be invoked".
            self._finish(session, Exit(126 if error.exit_code == 128 else error.exit_code, time.time_ns(), error=str(error)))
            raise
        except BaseException:
            self._finish(session, Exit(128, time.time_ns()))
            raise
        session.running = True
        session.pid = session.task.pid
        session.launched.set()
        self._lifecycle.publish(session.container, f"exec_start: {_action_text(request.cmd or [])}", {"execID": session.id})
        watcher = asyncio.create_task(self._watch(session, session.task), name=f"exec-{session.id[:12]}")
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _watch(self, session: ExecSession, task: ExecTask) -> None:
        exit = await task.wait()
        self._finish(session, exit)
        self._lifecycle.publish(session.container, "exec_die", {"execID": session.id, "exitCode": str(exit.code)})

    def _finish(self, session: ExecSession, exit: Exit) -> None:
        session.running = False
        session.pid = 0
        session.exit_code = exit.code
        session.ended_at = time.monotonic()
        session.launched.set()
        session.ended.set()
        session.container.exec_ids.discard(session.id)

    async def settle(self, session: ExecSession) -> None:
        """Wait (briefly) until the session shows what its client has already seen.

        The keeper closes the client's connection itself, so a client may ask for the exit code before the keeper's word of the exit, or
        even of the start, has come here. A session that is being started, or whose process is dead, is about to change.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_WITHIN):
                if session.started:
                    await session.launched.wait()
                if session.running and not alive(session.pid):
                    await session.ended.wait()

    async def resize(self, session: ExecSession, rows: int, columns: int) -> None:
        if session.task is None or not session.running:
            raise Conflict(f"exec process {session.id} is not running")
        await session.task.resize(rows, columns)

    def _forget_old(self) -> None:
        """Ended sessions stay for a while, because clients inspect them after the fact."""
        now = time.monotonic()
        for key, session in list(self._sessions.items()):
            if session.ended_at and now - session.ended_at > _KEPT_AFTER_EXIT:
                del self._sessions[key]

    def forget_container(self, container: Container) -> None:
        """Drop the sessions of a removed container."""
        for key, session in list(self._sessions.items()):
            if session.container is container:
                del self._sessions[key]

    async def close(self) -> None:
        for watcher in list(self._watchers):
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)


def exec_environment(container_env: list[str], own: list[str] | None) -> list[str]:
    """The container's environment under the exec's own."""
    merged = {entry.partition("=")[0]: entry for entry in container_env if "=" in entry}
    for entry in own or ():
        name, equals, _ = entry.partition("=")
        if equals:
            merged[name] = entry
        else:
            merged.pop(name, None)
    return list(merged.values())


def _action_text(command: list[str]) -> str:
    """A command in an event's action: the program, a blank, its arguments; the blank is there without arguments too."""
    return f"{command[0] if command else ''} {' '.join(command[1:])}"
