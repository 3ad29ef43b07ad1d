"""Starting, stopping and watching tasks: the moving half of the containers service.

Invariants:
- One monitor per running task. It alone turns an exit into state: record written, then event, then waiters.
- The record never says ``running`` before the task runs, and says ``exited`` before anybody is told of the exit.
- What a start acquires (layer mounts, an address, ports) is released by the same start if it fails, else by the monitor.
- A restart policy acts only after an exit that the user did not ask for; its delay doubles from 100 ms to a minute and falls back when a
  task ran for ten seconds.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import TYPE_CHECKING

from tare.containers.container import Container
from tare.containers.health import UNHEALTHY, HealthMonitor, command_of, restarts_unhealthy
from tare.containers.record import CREATED, EXITED, PAUSED, RESTARTING, RUNNING
from tare.containers.signals import parse_signal
from tare.containers.task import Attachment, Checkpoint, Exit, Task
from tare.errors import Conflict, NotModified, ResourceExhausted, StartFailed, TareError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tare.containers.launch import Launcher
    from tare.containers.task import TaskDriver
    from tare.events import EventBus
    from tare.store.metadata import Records

_log = logging.getLogger(__name__)

DEFAULT_STOP_TIMEOUT = 10
KILL_TIMEOUT = 10.0
_SHORTEST_DELAY, _LONGEST_DELAY, _STABLE_AFTER = 0.1, 60.0, 10.0


class Lifecycle:
    """Moves containers between their states."""

    def __init__(
        self,
        records: Records,
        events: EventBus,
        driver: TaskDriver,
        launcher: Launcher,
        remove: Callable[[Container], Coroutine[None, None, None]],
    ) -> None:
        self._records = records
        self._events = events
        self._driver = driver
        self._launcher = launcher
        self._remove = remove
        self._closing = False
        self._background: set[asyncio.Task[None]] = set()

    # -- start -----------------------------------------------------------------------------------------------------------------------

    async def start(self, container: Container, restore: Checkpoint | None = None) -> None:
        """Start the task, or restore it. Raises ``NotModified`` when it runs, ``Conflict`` when it cannot now, ``StartFailed``."""
        async with container.lock:
            status = container.record.state.status
            if status == PAUSED:
                raise Conflict("cannot start a paused container, try unpause instead")
            if status == RUNNING:
                raise NotModified(f"container {container.name} is already running")
            if container.removing:
                raise Conflict("container is marked for removal and cannot be started")
            self._cancel_restart(container)
            container.record.stopped_by_user = False
            container.record.restart_count = 0
            container.restart_delay = 0.0
            await self._start_locked(container, restore)

    async def _start_locked(self, container: Container, restore: Checkpoint | None = None) -> None:
        record = container.record
        attachments, container.pending = container.pending, []
        try:
            launch = await self._launcher.prepare(record, attachments, restore)
            try:
                task = await self._driver.start(launch)
            except BaseException:
                await self._launcher.release(record)
                raise
        except BaseException as error:
            for attachment in attachments:
                attachment.sock.close()
            await self._start_failed(container, error)
            raise
        self._adopt(container, task)
        self._launcher.started(record)
        record.state.status = RUNNING
        record.state.exit_code = 0
        record.state.error = ""
        record.state.oom_killed = False
        container.save(self._records)
        self.publish(container, "start")
        self._observe(container, task)

    def _observe(self, container: Container, task: Task) -> None:
        """Watch for the task's exit, and check its health if it says how."""
        record = container.record
        container.monitor = asyncio.create_task(self._watch(container, task), name=f"monitor-{record.id[:12]}")
        check, command = record.config.healthcheck, command_of(record.config)
        if check is not None and command is not None:
            monitor = HealthMonitor(container, check, command, self._launcher.exec_process, self._health_changed)
            container.health_monitor = asyncio.create_task(monitor.run(), name=f"health-{record.id[:12]}")

    async def _health_changed(self, container: Container, status: str) -> None:
        self.publish(container, f"health_status: {status}")
        if status == UNHEALTHY and restarts_unhealthy(container.record.host_config):
            # Not awaited: the restart ends the monitor that calls us.
            restart = asyncio.create_task(self._restart_unhealthy(container), name=f"unhealthy-{container.id[:12]}")
            self._background.add(restart)
            restart.add_done_callback(self._background.discard)

    async def _restart_unhealthy(self, container: Container) -> None:
        try:
            if not container.record.stopped_by_user:
                await self.restart(container)
        except TareError as error:
            _log.warning("container %s: is unhealthy and could not be restarted: %s", container.id, error)

    async def _start_failed(self, container: Container, error: BaseException) -> None:
        state = container.record.state
        state.status = CREATED if state.started_at == 0 else EXITED
        state.error = str(error)
        state.exit_code = error.exit_code if isinstance(error, StartFailed) else 128
        state.pid = 0
        container.save(self._records)
        if isinstance(error, Exception):
            # No waiter is told: nothing ran that could have exited, and the caller of start has the reason.
            self.publish(container, "die", {"exitCode": str(state.exit_code)})
            if container.record.host_config.auto_remove:
                asyncio.get_running_loop().create_task(self._remove(container))

    @staticmethod
    def _adopt(container: Container, task: Task) -> None:
        container.task = task
        container.record.state.pid = task.pid
        container.record.state.started_at = task.started_at

    # -- take over after a restart of the daemon ------------------------------------------------------------------------------------

    async def recover(self, container: Container) -> None:
        """Find the container's task again: still running, or ended while no daemon was there to see it."""
        record = container.record
        state = record.state
        task = await self._driver.recover(record.id, self._launcher.run_dir(record.id))
        if task is None:
            if state.status in (RUNNING, PAUSED):
                # Neither a keeper nor its exit record: the machine was restarted.
                await self._ended(container, Exit(255, time.time_ns()), None)
            elif state.status == RESTARTING:
                self._restart_soon(container)
            return
        exit = task.exit
        if exit is not None and exit.finished_at == state.finished_at:
            # This exit is on record; the daemon was killed before it had tidied up.
            await self._launcher.release(record)
            await task.release()
            if state.status == RESTARTING:
                self._restart_soon(container)
            return
        if state.status not in (RUNNING, PAUSED):
            # Its start was not recorded yet; that start was the user's, or the policy's.
            record.stopped_by_user = False
        self._adopt(container, task)
        if exit is not None:
            await self._ended(container, exit, task)
            return
        try:
            self._launcher.adopt(record)
        except (TareError, OSError) as error:
            # It runs on what it has mounted already; a restart of it will say the same as an error.
            _log.warning("container %s: its layers cannot be held: %s", record.id, error)
        state.status = PAUSED if task.paused else RUNNING
        container.save(self._records)
        self._observe(container, task)

    def _restart_soon(self, container: Container) -> None:
        """A restart was due when the daemon was killed."""
        container.restart_timer = asyncio.create_task(self._restart_later(container, _SHORTEST_DELAY))

    # -- the monitor -----------------------------------------------------------------------------------------------------------------

    async def _watch(self, container: Container, task: Task) -> None:
        try:
            exit = await task.wait()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            _log.exception("container %s: lost sight of its task", container.id)
            exit = Exit(255, time.time_ns(), error=str(error))
        await self._ended(container, exit, task)

    async def _ended(self, container: Container, exit: Exit, task: Task | None) -> None:
        async with container.lock:
            keep = container.keep_after_exit
            record = container.record
            state = record.state
            state.pid = 0
            state.exit_code, state.finished_at = exit.code, exit.finished_at
            state.oom_killed, state.error = exit.oom_killed, exit.error
            delay = self._restart_delay(container, exit)
            if not container.removing:
                state.status = EXITED if delay is None else RESTARTING
            container.task = None
            if container.health_monitor is not None:
                container.health_monitor.cancel()
                container.health_monitor = None
            saved = self._save_exit(container)
            if exit.oom_killed:
                self.publish(container, "oom")
            duration = str(max(0, exit.finished_at - state.started_at) // 1_000_000_000)
            self.publish(container, "die", {"exitCode": str(exit.code), "execDuration": duration})
            await self._launcher.release(record)
            container.announce_exit(exit)  # who waits need not wait for the keeper's tidying; whoever does something next takes the lock
            if task is not None and saved:
                await task.release()
            if delay is not None:
                container.restart_timer = asyncio.create_task(self._restart_later(container, delay))
        if record.host_config.auto_remove and not keep and not container.removing and delay is None:
            await self._remove(container)

    def _save_exit(self, container: Container) -> bool:
        """Put an exit on record. On a full disk it is told all the same; the keeper's own record then stays for the next daemon."""
        try:
            container.save(self._records)
        except ResourceExhausted as error:
            _log.error("container %s: its exit is not on record: %s", container.id, error)
            return False
        return True

    def _restart_delay(self, container: Container, exit: Exit) -> float | None:
        """Seconds until the restart policy's next start; None when it does not want one."""
        record = container.record
        policy = record.host_config.restart_policy
        if record.stopped_by_user or container.removing or self._closing:
            return None
        wanted = policy.name in ("always", "unless-stopped") or (
            policy.name == "on-failure"
            and exit.code != 0
            and (policy.maximum_retry_count == 0 or record.restart_count < policy.maximum_retry_count)
        )
        if not wanted:
            return None
        if exit.finished_at - record.state.started_at > _STABLE_AFTER * 1e9:
            container.restart_delay = 0.0
        container.restart_delay = min(_LONGEST_DELAY, max(_SHORTEST_DELAY, container.restart_delay * 2))
        return container.restart_delay

    async def _restart_later(self, container: Container, delay: float) -> None:
        await asyncio.sleep(delay)
        async with container.lock:
            container.restart_timer = None
            if container.record.state.status != RESTARTING:
                return
            container.record.restart_count += 1
            try:
                await self._start_locked(container)
            except TareError as error:
                _log.warning("container %s: restart failed: %s", container.id, error)

    def _cancel_restart(self, container: Container) -> None:
        if container.restart_timer is not None:
            container.restart_timer.cancel()
            container.restart_timer = None

    # -- stop, kill, pause -----------------------------------------------------------------------------------------------------------

    async def kill(self, container: Container, signal_name: str = "", reference: str = "") -> None:
        """Send a signal (default KILL) to the container's first process. After KILL the container has ended when this returns."""
        number = parse_signal(signal_name) if signal_name else int(signal.SIGKILL)
        if container.record.state.status == RESTARTING:
            if number == signal.SIGKILL or number == self._stop_signal(container):
                await self._end_restarting(container)
            return
        if not container.has_task:
            raise Conflict(f"cannot kill container: {reference or container.id}: container {container.id} is not running")
        if number == signal.SIGKILL or number == self._stop_signal(container):
            self._stopped_by_user(container)
        gone = container.next_exit()
        try:
            await self._signal(container, number)
            self.publish(container, "kill", {"signal": str(number)})
            if number != signal.SIGKILL:
                return
            if container.record.state.status == PAUSED:
                await self._thaw(container)
            if not await _within(gone, KILL_TIMEOUT):
                shown = reference or container.id
                raise Conflict(f"cannot kill container: {shown}: tried to kill container, but did not receive an exit event")
        finally:
            gone.cancel()

    def _stopped_by_user(self, container: Container) -> None:
        """Put on record, before the signal is sent, that the exit is wanted: no restart policy of any later daemon may undo it."""
        if not container.record.stopped_by_user:
            container.record.stopped_by_user = True
            container.save(self._records)

    async def _end_restarting(self, container: Container) -> bool:
        """Call off the restart that is due; False when it has happened meanwhile."""
        self._stopped_by_user(container)
        async with container.lock:
            if container.record.state.status != RESTARTING:
                return False
            self._cancel_restart(container)
            container.record.state.status = EXITED
            container.save(self._records)
            return True

    async def _signal(self, container: Container, number: int) -> None:
        if (task := container.task) is not None:
            await task.kill(number)

    @staticmethod
    def _stop_signal(container: Container) -> int:
        name = container.record.config.stop_signal
        return parse_signal(name) if name else int(signal.SIGTERM)

    async def stop(self, container: Container, timeout: int | None = None, signal_name: str = "") -> None:
        """Stop signal, then SIGKILL after ``timeout`` seconds (negative: never). ``NotModified`` when it does not run."""
        number = parse_signal(signal_name) if signal_name else self._stop_signal(container)
        if not container.running:
            raise NotModified(f"container {container.name} is not running")
        await self._stop(container, timeout, number)
        self.publish(container, "stop")

    async def _stop(self, container: Container, timeout: int | None, number: int) -> None:
        self._stopped_by_user(container)
        if container.record.state.status == RESTARTING and await self._end_restarting(container):
            return
        if timeout is None:
            configured = container.record.config.stop_timeout
            timeout = DEFAULT_STOP_TIMEOUT if configured is None else configured
        gone = container.next_exit()
        try:
            if not container.has_task:
                return
            await self._signal_ignoring_exit(container, number)
            if number != signal.SIGKILL:
                self.publish(container, "kill", {"signal": str(number)})
            if container.record.state.status == PAUSED:
                await self._thaw(container)
            if not await _within(gone, None if timeout < 0 else float(timeout)):
                await self._signal_ignoring_exit(container, int(signal.SIGKILL))
                self.publish(container, "kill", {"signal": str(int(signal.SIGKILL))})
                if not await _within(gone, KILL_TIMEOUT):
                    raise Conflict(f"cannot stop container: {container.id}: tried to kill container, but did not receive an exit event")
        finally:
            gone.cancel()

    async def _signal_ignoring_exit(self, container: Container, number: int) -> None:
        try:
            await self._signal(container, number)
        except Conflict:
            pass  # it ended by itself meanwhile: the exit is on its way

    async def restart(self, container: Container, timeout: int | None = None, signal_name: str = "") -> None:
        number = parse_signal(signal_name) if signal_name else self._stop_signal(container)
        if container.running:
            container.keep_after_exit = True  # in memory only: should we be killed between stop and start, the container goes
            try:
                await self._stop(container, timeout, number)
            finally:
                container.keep_after_exit = False
            self.publish(container, "stop")
        prefix = f"Cannot restart container {container.name}: "
        try:
            await self.start(container)
        except NotModified:
            pass
        except StartFailed as error:
            raise StartFailed(f"{prefix}{error}", error.exit_code) from error
        except TareError as error:
            raise type(error)(f"{prefix}{error}") from error
        self.publish(container, "restart")

    async def force_kill(self, container: Container) -> None:
        """Kill at once and wait for the exit (``rm --force``)."""
        await self._stop(container, 0, int(signal.SIGKILL))

    async def pause(self, container: Container) -> None:
        async with container.lock:
            task = self.require_task(container)
            if container.record.state.status == PAUSED:
                raise Conflict(f"Container {container.id} is already paused")
            await task.pause()
            container.record.state.status = PAUSED
            container.save(self._records)
        self.publish(container, "pause")

    async def checkpoint(self, container: Container, checkpoint: Checkpoint, *, leave_running: bool) -> None:
        """Make a checkpoint. Unless the container is left running it has ended when this returns, as if the user had stopped it."""
        gone = container.next_exit()
        try:
            async with container.lock:
                task = self.require_task(container)
                before = container.record.stopped_by_user
                if not leave_running:
                    self._stopped_by_user(container)
                try:
                    await task.checkpoint(checkpoint, leave_running=leave_running)
                except BaseException:
                    container.record.stopped_by_user = before
                    container.save(self._records)
                    raise
            if not leave_running:
                await _within(gone, KILL_TIMEOUT)
        finally:
            gone.cancel()
        self.publish(container, "checkpoint")

    async def unpause(self, container: Container) -> None:
        if container.record.state.status != PAUSED:
            raise Conflict(f"Container {container.id} is not paused")
        await self._thaw(container)
        self.publish(container, "unpause")

    async def _thaw(self, container: Container) -> None:
        async with container.lock:
            if container.task is not None and container.record.state.status == PAUSED:
                await container.task.resume()
                container.record.state.status = RUNNING
                container.save(self._records)

    # -- attach ----------------------------------------------------------------------------------------------------------------------

    def require_task(self, container: Container) -> Task:
        """The running task, or dockerd's refusal."""
        if container.record.state.status == RESTARTING:
            raise Conflict(f"container {container.id} is restarting, wait until the container is running")
        if container.task is None or not container.has_task:
            raise Conflict(f"container {container.id} is not running")
        return container.task

    @staticmethod
    def check_attachable(container: Container) -> None:
        """Raise what ``attach`` would raise before a connection is taken over."""
        if container.record.state.status == PAUSED:
            raise Conflict(f"container {container.id} is paused, unpause the container before attach")
        if container.record.state.status == RESTARTING:
            raise Conflict(f"container {container.id} is restarting, wait until the container is running")
        if container.removing:
            raise Conflict(f"container {container.id} is marked for removal and cannot be attached to")

    async def attach(self, container: Container, attachment: Attachment) -> tuple[int, tuple[int, int]] | None:
        """Connect a client now, or at the next start. Returns the attachment's number and where in the log it begins, if live."""
        async with container.lock:
            self.publish(container, "attach")
            if container.task is None or not container.has_task:
                attachment.corked = False
                container.pending.append(attachment)
                return None
            number, position = await container.task.attach(attachment)
            return number, (position.inode, position.size)

    # -- events, end -----------------------------------------------------------------------------------------------------------------

    def publish(self, container: Container, action: str, attributes: dict[str, str] | None = None) -> None:
        record = container.record
        self._events.publish(
            "container",
            action,
            record.id,
            {**(record.config.labels or {}), **(attributes or {}), "image": record.config.image, "name": record.name},
        )

    async def close(self, containers: list[Container]) -> None:
        """Let go of all tasks; they run on."""
        self._closing = True
        for restart in self._background:
            restart.cancel()
        for container in containers:
            self._cancel_restart(container)
            if container.monitor is not None:
                container.monitor.cancel()
            if container.health_monitor is not None:
                container.health_monitor.cancel()
            container.drop_pending()
        await asyncio.gather(*(c.monitor for c in containers if c.monitor is not None), return_exceptions=True)


async def _within(future: asyncio.Future[Exit], seconds: float | None) -> bool:
    done, _ = await asyncio.wait([future], timeout=seconds)
    return bool(done)
