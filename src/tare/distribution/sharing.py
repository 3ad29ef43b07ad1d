"""One task for everybody who wants the same thing at the same time; and several tasks as one.

Two pulls of one image, or of two images with a common layer, must not fetch it twice. ``SharedTasks.run`` starts the work
for the first who asks and lets the others wait for it; each sees the progress from the beginning. Whoever is cancelled
leaves; the work goes on while anybody waits, and is cancelled with the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, Generic, TypeVar

from tare.distribution.progress import Progress, Report

_T = TypeVar("_T")
_REPLAY_LIMIT = 512


async def together(jobs: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Run jobs side by side; their results in order. The first failure ends the others and is raised itself, not a group."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except BaseExceptionGroup as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    return [task.result() for task in tasks]


class _Share(Generic[_T]):
    """One running piece of work, its watchers and what they were told so far."""

    def __init__(self) -> None:
        self.task: asyncio.Task[_T] | None = None
        self.waiting = 0
        self.watchers: list[Report] = []
        self.told: dict[tuple[str, str], Progress] = {}

    def report(self, progress: Progress) -> None:
        if len(self.told) < _REPLAY_LIMIT:
            self.told[progress.id, progress.status] = progress
        for watcher in self.watchers:
            watcher(progress)


class SharedTasks(Generic[_T]):
    """Running work by key."""

    def __init__(self) -> None:
        self._shares: dict[Hashable, _Share[_T]] = {}

    async def run(self, key: Hashable, work: Callable[[Report], Coroutine[Any, Any, _T]], report: Report) -> _T:
        """The result of ``work`` for ``key``: started now, or the one that is under way."""
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = _Share()
            share.task = asyncio.create_task(work(share.report), name=f"shared:{key}")
            share.task.add_done_callback(lambda _: self._drop(key, share))
        else:
            for message in share.told.values():
                report(message)
        assert share.task is not None
        share.watchers.append(report)
        share.waiting += 1
        try:
            return await asyncio.shield(share.task)
        finally:
            share.waiting -= 1
            share.watchers.remove(report)
            if not share.waiting and not share.task.done():
                self._drop(key, share)
                share.task.cancel()
                await asyncio.wait([share.task])
                if not share.task.cancelled():
                    share.task.exception()  # seen: nobody is left to hear of it

    def _drop(self, key: Hashable, share: _Share[_T]) -> None:
        if self._shares.get(key) is share:
            del self._shares[key]
