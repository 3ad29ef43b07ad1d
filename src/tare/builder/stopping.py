"""Ending work of worker threads from outside: a build that is cancelled does not wait for a slow server, a program or a long copy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tare.errors import TareError


class Stopped(TareError):
    """The build is being cancelled."""


class Stop:
    """One build's. ``stop`` may be called from any thread, more than once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[int, Callable[[], None]] = {}
        self._number = 0
        self.stopped = False

    def stop(self) -> None:
        """End what is under way now; what begins later fails at once."""
        with self._lock:
            self.stopped = True
            ends = list(self._ends.values())
        for end in ends:
            end()

    def check(self) -> None:
        if self.stopped:
            raise Stopped("context canceled")

    @contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """While in this block, ``stop`` calls ``end``, from another thread: it makes the block fail soon."""
        with self._lock:
            self.check()
            self._number += 1
            number = self._number
            self._ends[number] = end
        try:
            yield
        finally:
            with self._lock:
                del self._ends[number]
            self.check()

    def watched(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, until the build is stopped."""
        for chunk in chunks:
            self.check()
            yield chunk
