"""Health checks: a command run in the container again and again, and what its results say about the container.

States: ``starting`` → ``healthy`` ⇄ ``unhealthy``. A failure during the start period does not count until the first success ends that
period. ``retries`` failures in a row make the container unhealthy; one success makes it healthy. The last five results are kept.

One asyncio task per running container with a check; it ends with the container's task. The check itself is an ordinary exec with the
container's own settings, so it has no right that the container lacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tare.containers.names import new_id
from tare.containers.task import Attachment, ExecLaunch, Stdio
from tare.errors import TareError
from tare.wire.container import ExecCreateRequest

if TYPE_CHECKING:
    from tare.containers.container import Container
    from tare.wire.container import Config, Healthcheck, HostConfig

NONE, STARTING, HEALTHY, UNHEALTHY = "none", "starting", "healthy", "unhealthy"
_KEPT_RESULTS = 5
_KEPT_OUTPUT = 4096
_INTERVAL, _TIMEOUT, _START_INTERVAL, _RETRIES = 30.0, 30.0, 5.0, 3


@dataclass(frozen=True)
class Result:
    """One run of the check; times in nanoseconds since the epoch."""

    start: int
    end: int
    exit_code: int
    output: str


@dataclass
class Health:
    """What is known of a container's health."""

    status: str = STARTING
    failing_streak: int = 0
    results: list[Result] = field(default_factory=list)


def command_of(config: Config) -> list[str] | None:
    """The command line of the config's check; None when there is none."""
    test = (config.healthcheck.test if config.healthcheck else None) or []
    if len(test) > 1 and test[0] == "CMD":
        return test[1:]
    if len(test) == 2 and test[0] == "CMD-SHELL":
        return [*(config.shell or ["/bin/sh", "-c"]), test[1]]
    return None


RESTART_ANNOTATION = "tare.restart-on-unhealthy"
"""``--annotation tare.restart-on-unhealthy=true``: a container that becomes unhealthy is restarted.

An annotation and no label, because labels come from images too, and an image does not decide what the engine does.
"""


def restarts_unhealthy(host: HostConfig) -> bool:
    """Whether the container is to be restarted when it becomes unhealthy."""
    return (host.annotations or {}).get(RESTART_ANNOTATION) == "true"


def _seconds(nanoseconds: int, default: float) -> float:
    return nanoseconds / 1e9 if nanoseconds else default


class HealthMonitor:
    """Runs one container's check until it is cancelled."""

    def __init__(
        self,
        container: Container,
        check: Healthcheck,
        command: list[str],
        process: Callable[[Container, ExecCreateRequest], dict[str, Any]],
        changed: Callable[[Container, str], Awaitable[None]],
    ) -> None:
        self._container = container
        self._check = check
        self._command = command
        self._process = process
        self._changed = changed
        self._started = time.monotonic()

    def _starting(self) -> bool:
        return time.monotonic() - self._started < self._check.start_period / 1e9

    async def run(self) -> None:
        health = self._container.health = Health()
        while True:
            pause = _seconds(self._check.interval, _INTERVAL)
            if health.status == STARTING and self._starting():
                pause = min(pause, _seconds(self._check.start_interval, _START_INTERVAL))
            await asyncio.sleep(pause)
            if self._container.record.state.status != "running":
                continue
            try:
                result = await self._probe()
            except TareError as error:
                if self._container.task is None:
                    return
                result = Result(time.time_ns(), time.time_ns(), -1, str(error))
            await self._judge(health, result)

    async def _judge(self, health: Health, result: Result) -> None:
        before = health.status
        health.results = [*health.results, result][-_KEPT_RESULTS:]
        if result.exit_code == 0:
            health.status, health.failing_streak = HEALTHY, 0
        elif not (health.status == STARTING and self._starting()):
            health.failing_streak += 1
            if health.failing_streak >= (self._check.retries or _RETRIES):
                health.status = UNHEALTHY
        if health.status != before:
            await self._changed(self._container, health.status)

    async def _probe(self) -> Result:
        """One run of the check, killed when it takes too long."""
        task = self._container.task
        if task is None:
            raise TareError("the container does not run")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        start = time.time_ns()
        launch = ExecLaunch(
            id=new_id(),
            process=self._process(self._container, ExecCreateRequest(cmd=self._command)),
            stdio=Stdio(),
            user=self._container.record.config.user,
            additional_groups=tuple(self._container.record.host_config.group_add or ()),
            attachments=(Attachment(theirs, stdin=False, stdout=True, stderr=True, multiplexed=False),),
        )
        try:
            probe = await task.exec(launch)
            timeout = _seconds(self._check.timeout, _TIMEOUT)
            output = asyncio.create_task(_read_bounded(ours))
            try:
                async with asyncio.timeout(timeout):
                    exit = await probe.wait()
            except TimeoutError:
                with contextlib.suppress(TareError):
                    await probe.kill(9)
                output.cancel()
                return Result(start, time.time_ns(), -1, f"Health check exceeded timeout ({timeout:g}s)")
            return Result(start, time.time_ns(), exit.code, (await output).decode("utf-8", "replace"))
        finally:
            ours.close()


async def _read_bounded(sock: socket.socket) -> bytes:
    """What comes until the end, of which the first few kilobytes are kept."""
    loop = asyncio.get_running_loop()
    kept = b""
    while data := await loop.sock_recv(sock, 65536):
        if len(kept) < _KEPT_OUTPUT:
            kept = (kept + data)[:_KEPT_OUTPUT]
    return kept
