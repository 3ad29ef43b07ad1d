"""A container in memory: its record, its task if it runs, and everybody who waits for it.

One ``asyncio.Lock`` per container guards changes of state. Nothing awaits a client or a registry while it holds that lock.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from tare.containers.health import Health
from tare.containers.record import PAUSED, REMOVING, RESTARTING, RUNNING, Record
from tare.containers.task import Attachment, Exit, Task

if TYPE_CHECKING:
    from tare.store.metadata import Records


class Container:
    """The live object behind one record."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.lock = asyncio.Lock()
        self.task: Task | None = None
        self.monitor: asyncio.Task[None] | None = None
        self.restart_timer: asyncio.Task[None] | None = None
        self.pending: list[Attachment] = []
        """Attachments that came before the start."""
        self.restart_delay = 0.0
        self.keep_after_exit = False
        """The exit that comes is one half of a restart: it does not remove a ``--rm`` container."""
        self.exec_ids: set[str] = set()
        self.health: Health | None = None
        self.health_monitor: asyncio.Task[None] | None = None
        self._exit_waiters: set[asyncio.Future[Exit]] = set()
        self._removal_waiters: set[asyncio.Future[Exit]] = set()

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def running(self) -> bool:
        """There is a task: running, paused, or about to be restarted by its policy."""
        return self.record.state.status in (RUNNING, PAUSED, RESTARTING)

    @property
    def has_task(self) -> bool:
        return self.task is not None and self.record.state.status in (RUNNING, PAUSED)

    @property
    def removing(self) -> bool:
        return self.record.state.status == REMOVING

    def save(self, records: Records) -> None:
        """Write the record. To be called before the change is announced."""
        records.put(self.record.id, self.record.name, self.record.encode())

    def last_exit(self) -> Exit:
        state = self.record.state
        return Exit(state.exit_code, state.finished_at, state.oom_killed, state.error)

    def next_exit(self) -> asyncio.Future[Exit]:
        """Done at the next exit (or removal) of this container. The caller may cancel it."""
        return self._waiter(self._exit_waiters)

    def removal(self) -> asyncio.Future[Exit]:
        """Done when the container has been removed; the result is its last exit."""
        return self._waiter(self._removal_waiters)

    @staticmethod
    def _waiter(waiters: set[asyncio.Future[Exit]]) -> asyncio.Future[Exit]:
        future: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        waiters.add(future)
        future.add_done_callback(waiters.discard)
        return future

    def announce_exit(self, exit: Exit) -> None:
        for future in list(self._exit_waiters):
            if not future.done():
                future.set_result(exit)

    def announce_removal(self) -> None:
        last = replace(self.last_exit(), error="")  # an error was the business of whoever started the container
        self.announce_exit(last)
        for future in list(self._removal_waiters):
            if not future.done():
                future.set_result(last)

    def drop_pending(self) -> None:
        """Close the connections of attachments that will never be served."""
        for attachment in self.pending:
            attachment.sock.close()
        self.pending.clear()
