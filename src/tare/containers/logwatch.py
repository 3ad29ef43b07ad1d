"""Waking those who follow a log: one inotify instance for all of them, as the kernel gives a user 128 and shares them among everything.

The instance is there while somebody follows. A queue of events that overflowed (number -1) wakes everybody. Where there is no instance or
no watch to be had, followers look for themselves every quarter of a second.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable
from pathlib import Path

from tare.linux import inotify

_log = logging.getLogger(__name__)

POLL = 0.25


class LogWatches:
    """The directories that are followed, and by whom."""

    def __init__(self) -> None:
        self._fd = -1
        self._followers: dict[int, set[asyncio.Event]] = {}

    def add(self, directory: Path, wake: asyncio.Event) -> int:
        """``wake`` is set whenever something in the directory changes, until ``remove`` with the number returned; -1: it never is."""
        try:
            if self._fd < 0:
                self._fd = inotify.instance()
                asyncio.get_running_loop().add_reader(self._fd, self._changed)
            number = inotify.watch(self._fd, str(directory))
        except OSError as error:
            _log.debug("logs are followed without inotify: %s", error)
            self._close_unused()
            return -1
        self._followers.setdefault(number, set()).add(wake)
        return number

    def remove(self, number: int, wake: asyncio.Event) -> None:
        followers = self._followers.get(number, set())
        followers.discard(wake)
        if number >= 0 and not followers:
            self._followers.pop(number, None)
            inotify.forget(self._fd, number)
        self._close_unused()

    def _changed(self) -> None:
        numbers = inotify.changed(self._fd)
        for number in self._followers if -1 in numbers else numbers:
            for wake in self._followers.get(number, ()):
                wake.set()

    def _close_unused(self) -> None:
        if self._fd >= 0 and not self._followers:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class Follower:
    """Waits for news of one log, or for the end of its writer."""

    def __init__(self, watches: LogWatches, directory: Path, ended: Awaitable[object]) -> None:
        self._watches = watches
        self._wake = asyncio.Event()
        self._number = watches.add(directory, self._wake)
        self._ended = asyncio.ensure_future(ended)
        self._ended.add_done_callback(lambda _: self._wake.set())

    @property
    def ended(self) -> bool:
        return self._ended.done()

    async def wait(self, nanoseconds: int | None) -> None:
        """Returns when there may be something new, at the latest after that time."""
        seconds = None if nanoseconds is None else nanoseconds / 1e9
        if self._number < 0:
            seconds = POLL if seconds is None else min(POLL, seconds)
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def close(self) -> None:
        self._watches.remove(self._number, self._wake)
        self._ended.cancel()
