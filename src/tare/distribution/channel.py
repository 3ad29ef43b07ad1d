"""A bounded channel of byte chunks from the event loop, or from a thread, to a thread.

Theory. A transfer is a line of stages that run at the same time: socket, hash and store, decompress, index. Between two of
them lies a channel that holds at most ``limit`` bytes, so the slowest stage sets the pace and memory stays bounded. States:

    open ──close()──► closed: the reader gets what is left, then the end
      └────break_()─► broken: every put and get raises ``Broken`` at once

``break_`` is how a failure anywhere stops the whole line; it is idempotent and safe from any thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator


class Broken(Exception):
    """Another stage failed; its error is the one to report."""


class Channel:
    """One producer, one consumer. The consumer iterates in a thread; the producer is a thread or the event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._closed = False
        self._broken = False
        self._changed = threading.Condition()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, chunk: bytes) -> None:
        """Add a chunk from a thread; blocks while the channel is full."""
        with self._changed:
            while self._held >= self._limit and not self._broken:
                self._changed.wait()
            self._add(chunk)

    async def put_async(self, chunk: bytes) -> None:
        """Add a chunk from the event loop; waits while the channel is full."""
        while True:
            with self._changed:
                if self._held < self._limit or self._broken:
                    self._add(chunk)
                    return
                waiter = self._waiter = asyncio.get_running_loop().create_future()
            await waiter

    def close(self) -> None:
        """No more chunks will come."""
        with self._changed:
            self._closed = True
            self._wake()

    def break_(self) -> None:
        """Make both sides fail."""
        with self._changed:
            self._broken = True
            self._chunks.clear()
            self._wake()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                while not (self._chunks or self._closed or self._broken):
                    self._changed.wait()
                if self._broken:
                    raise Broken
                if not self._chunks:
                    return
                chunk = self._chunks.popleft()
                self._held -= len(chunk)
                self._wake()
            yield chunk

    def _add(self, chunk: bytes) -> None:
        if self._broken:
            raise Broken
        self._chunks.append(chunk)
        self._held += len(chunk)
        self._changed.notify_all()

    def _wake(self) -> None:
        self._changed.notify_all()
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.get_loop().call_soon_threadsafe(_resolve, waiter)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
