"""The keeper's event loop: one epoll, callbacks by descriptor, a few timers. asyncio would cost every keeper megabytes."""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANG_UP = select.EPOLLHUP | select.EPOLLERR

Callback = Callable[[int], None]


class Timer:
    """A call in the future."""

    __slots__ = ("at", "callback")

    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at = at
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at


class Reactor:
    """Level-triggered readiness. Callbacks get the epoll event mask; errors and hang-ups are always reported."""

    def __init__(self, epoll: select.epoll | None = None) -> None:
        """``epoll`` may know descriptors already that will be watched again (those of an earlier worker)."""
        self._epoll = epoll or select.epoll()
        self.active_at = time.monotonic()
        """When something last happened."""
        self._callbacks: dict[int, Callback] = {}
        self._timers: list[Timer] = []

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Begin to watch a descriptor, or change what is watched."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            try:
                self._epoll.register(fd, events)
            except FileExistsError:
                self._epoll.modify(fd, events)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Stop watching; call it before the descriptor is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call once, later."""
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def run_once(self) -> None:
        """Wait for something to happen and handle it."""
        timeout = -1.0
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if self._timers:
            timeout = max(0.0, self._timers[0].at - time.monotonic())
        ready = self._epoll.poll(timeout, 16)
        if ready:
            self.active_at = time.monotonic()
        # A call may close descriptors, and another may be given the same number at once: what was said of the old one does not
        # concern the new one. Whoever only changed what it watches for is told again by the next poll.
        for fd, events, callback in [(fd, events, self._callbacks.get(fd)) for fd, events in ready]:
            if callback is not None and self._callbacks.get(fd) is callback:
                callback(events)
        now = time.monotonic()
        while self._timers and self._timers[0].at <= now:
            timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                timer.callback()
