"""Long work that is watched: progress on its way to a client that may be slow, and what becomes of failures."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from tare.api.docker.streams import JsonStream
from tare.distribution.progress import Progress
from tare.http.message import Request

FLUSH_SECONDS = 0.1
"""Progress is told at most this often: a fast download must not spend its time on talking about itself."""


class ProgressFeed:
    """What a pull reports, waiting for a client that may be slow: of one layer only the newest count is kept, so the feed stays bounded."""

    def __init__(self) -> None:
        self._waiting: list[dict[str, Any]] = []
        self._counts: dict[tuple[str, str], int] = {}
        self._wake = asyncio.Event()
        self.substantial = False
        """Something was said beyond what is about to be tried; before that a failure can still become an HTTP status."""

    def report(self, progress: Progress) -> None:
        document = progress.document()
        key = (progress.id, progress.status)
        if progress.current is not None and key in self._counts:
            self._waiting[self._counts[key]] = document
        else:
            if progress.current is not None:
                self._counts[key] = len(self._waiting)
            self._waiting.append(document)
        if not progress.status.startswith("Pulling from"):
            self.substantial = True
            self._wake.set()

    def take(self) -> list[dict[str, Any]]:
        taken, self._waiting = self._waiting, []
        self._counts.clear()
        self._wake.clear()
        return taken

    async def news(self) -> None:
        await self._wake.wait()


async def follow(request: Request, work: asyncio.Task[Any], feed: ProgressFeed, *, statuses: bool = True) -> None:
    """Stream what ``work`` reports. A failure before the first report is an HTTP status, after it the last line of the stream.

    Without ``statuses`` it is always a line of the stream.

    A client that goes away ends its own interest; the service decides whether the transfer goes on for others.
    """
    try:
        async with request.until_disconnected():
            await first_news(work, feed)
            if statuses and work.done() and work.exception() is not None and not feed.substantial:
                await work
            stream = await JsonStream.open(request, end=b"\r\n")
            while not work.done():
                for document in feed.take():
                    await stream.send(document)
                await asyncio.wait({work}, timeout=FLUSH_SECONDS)
            for document in feed.take():
                await stream.send(document)
            error = work.exception()
            if error is not None:
                await stream.fail(error, request.id)
    finally:
        if not work.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work
        elif not work.cancelled():
            work.exception()  # seen, whether or not somebody was left to be told


async def first_news(work: asyncio.Task[Any], feed: ProgressFeed) -> None:
    """Wait until the work has ended or has said something."""
    news = asyncio.create_task(feed.news())
    try:
        await asyncio.wait({work, news}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        news.cancel()
