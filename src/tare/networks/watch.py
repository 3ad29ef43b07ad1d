"""Noticing that somebody else changed what is ours in the kernel: packet rules (a flush, a firewall's reload, dockerd's or ufw's FORWARD
policy) and links (a bridge or a veth deleted by hand).

What is heard starts a look, at most one per second: what is missing is put back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

log = logging.getLogger(__name__)

SECONDS_BEFORE = 0.1
SECONDS_BETWEEN = 1.0


class Subscription(Protocol):
    """What the kernel tells; readable when there is something."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


T = TypeVar("T", bound=Subscription)


class Watch(Generic[T]):
    """Calls ``look`` soon after ``heard`` said that what it read from a subscription matters. Runs on the event loop."""

    def __init__(self, subscribe: Callable[[], T], heard: Callable[[T], bool], look: Callable[[], Awaitable[None]]) -> None:
        self._subscribe = subscribe
        self._heard = heard
        self._look = look
        self._subscription: T | None = None
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def start(self) -> None:
        """Raises OSError where the kernel does not tell."""
        self._subscription = self._subscribe()
        asyncio.get_running_loop().add_reader(self._subscription, self._on_change)

    def stop(self) -> None:
        """Look no more."""
        if self._subscription is not None:
            asyncio.get_running_loop().remove_reader(self._subscription)
            self._subscription.close()
            self._subscription = None
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Look no more, and wait for a look that is under way."""
        self.stop()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _on_change(self) -> None:
        assert self._subscription is not None
        if not self._heard(self._subscription):
            return
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """Look until nothing has changed since."""
        await asyncio.sleep(SECONDS_BEFORE)  # a reload is several transactions
        while self._again:
            self._again = False
            try:
                await self._look()
            except OSError as error:
                log.warning("what changed in the kernel cannot be looked at: %s", error.strerror or error)
            await asyncio.sleep(SECONDS_BETWEEN)
