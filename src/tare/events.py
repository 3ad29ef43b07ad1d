"""The engine's event bus: what happened, to which object, in order.

Invariants: publishing never blocks and never fails; a subscriber that falls behind by more than ``QUEUE_LIMIT`` events is closed
rather than let to grow; the last ``HISTORY_LIMIT`` events can be replayed (dockerd keeps 256). An event is published only after the
state that it announces was written. All of it runs on the engine's event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

HISTORY_LIMIT = 1024
QUEUE_LIMIT = 4096


@dataclass(frozen=True)
class Event:
    """One thing that happened. ``type`` and ``action`` use Docker's words (container/start, image/pull, network/connect, ...)."""

    type: str
    action: str
    actor_id: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    time_nano: int = 0
    scope: str = "local"


class Subscription:
    """A bounded queue of events; iterate with ``async for``. Ends when closed or overrun."""

    def __init__(self) -> None:
        self._queue: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._closed = False

    def _offer(self, event: Event) -> None:
        if self._closed:
            return
        if len(self._queue) >= QUEUE_LIMIT:
            self._closed = True
        else:
            self._queue.append(event)
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            while self._queue:
                yield self._queue.popleft()
            if self._closed:
                return
            self._wake.clear()
            await self._wake.wait()


class EventBus:
    """Publishes events to subscribers and keeps a bounded history."""

    def __init__(self) -> None:
        self._history: deque[Event] = deque(maxlen=HISTORY_LIMIT)
        self._subscriptions: set[Subscription] = set()
        self._last = 0
        self.published = 0
        """Events since the start."""

    def publish(self, type: str, action: str, actor_id: str, attributes: Mapping[str, str] | None = None) -> Event:
        """Publish one event, stamped with a strictly increasing time in nanoseconds since the epoch."""
        self._last = max(time.time_ns(), self._last + 1)
        event = Event(type, action, actor_id, dict(attributes or {}), self._last)
        self._history.append(event)
        self.published += 1
        for subscription in self._subscriptions:
            subscription._offer(event)
        return event

    def history(self) -> list[Event]:
        """Past events, oldest first."""
        return list(self._history)

    @property
    def subscriber_count(self) -> int:
        return len(self._subscriptions)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Receive every event published from now until the context ends."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.close()
