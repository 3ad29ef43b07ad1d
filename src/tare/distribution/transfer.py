"""One layer from the registry into the stores: download, hash, decompress, verify and index in one pass.

    socket ──┬──► [compressed] ──► blob stage: hash, write into the content store
             └──► [compressed] ──► inflate stage ──► [plain] ──► layer stage: hash, write the tar, build its index

Each stage is a thread and the channels between them are bounded, so a layer of any size needs the same memory and the
slowest stage sets the pace. Invariants:
- The blob is committed only if its digest is the descriptor's; the layer only after that, and only if its digest is the
  diff_id that the (verified) config names. Whatever fails, the layer's partial data is removed.
- A download that breaks off is resumed where it stopped while the other stages wait. If the registry stays away, the
  partial blob is kept for the next pull; a blob with wrong bytes is not.
- Durability (fsync) is the stores' part of commit, so that it overlaps with other layers' transfers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from tare.distribution.channel import Broken, Channel
from tare.distribution.decompress import decompress
from tare.distribution.progress import Progress, Report
from tare.distribution.segments import Budget, SegmentedBlob
from tare.errors import Corrupt, ResourceExhausted, TareError, Unavailable, Upstream
from tare.oci.digest import Digest
from tare.oci.image import Descriptor
from tare.store.content import ContentStore, Ingest
from tare.store.layers.driver import LayerDriver

if TYPE_CHECKING:
    from tare.distribution.remote import Repository

ATTEMPTS = 5
"""Tries in a row that may bring nothing before a download counts as failed, unless the daemon is told otherwise."""
COMPRESSED_LIMIT = 4 << 20
PLAIN_LIMIT = 4 << 20
STAGES = 3
"""Threads that one transfer needs at the same time."""
_READ = 1 << 20
_REPORT_INTERVAL = 0.1


class _DamagedPartial(Exception):
    """What an earlier pull left of the blob turned out to be wrong: fetch all of it again."""


class LayerTransfer:
    """The transfer of one layer. Use once."""

    def __init__(
        self,
        descriptor: Descriptor,
        diff_id: Digest,
        content: ContentStore,
        layers: LayerDriver,
        pool: ThreadPoolExecutor,
        report: Report,
        budget: Budget,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._attempts = attempts
        self._budget = budget
        self._descriptor = descriptor
        self._diff_id = diff_id
        self._content = content
        self._layers = layers
        self._pool = pool
        self._report = report
        self._last_report = 0.0
        self._reset()

    def _reset(self) -> None:
        self._to_blob = Channel(COMPRESSED_LIMIT)
        self._to_inflate = Channel(COMPRESSED_LIMIT)
        self._to_layer = Channel(PLAIN_LIMIT)
        self._blob_safe = threading.Event()
        self._broke_off = False
        """The download ended early: what has arrived of the blob is still written, for the next pull."""

    async def run(self, repository: Repository) -> None:
        """Bring the layer in. On return blob and layer are complete and durable."""
        try:
            if self._content.has(self._descriptor.digest):
                await self._from_content()
            else:
                await self._from_registry(repository)
        except OSError as error:
            raise ResourceExhausted(f"cannot store layer {self._descriptor.digest}: {error}") from error
        self._say("Verifying Checksum")
        self._say("Download complete")
        self._say("Extracting", self._descriptor.size)
        self._say("Pull complete")

    async def _from_registry(self, repository: Repository) -> None:
        try:
            await self._receive(repository)
        except _DamagedPartial:
            self._reset()
            await self._receive(repository)

    async def _receive(self, repository: Repository) -> None:
        ingest = await self._begin()
        start = ingest.offset
        try:
            await self._line(
                self._feed(repository, start),
                lambda: self._store_blob(ingest),
                lambda: self._inflate(_partial_then(ingest.path, start, self._to_inflate)),
                self._index,
            )
        except (Unavailable, ResourceExhausted, asyncio.CancelledError):
            if ingest.offset:
                ingest.suspend()
            else:
                ingest.abort()
            raise
        except BaseException as error:
            ingest.abort()
            if start and isinstance(error, Corrupt):
                raise _DamagedPartial from error
            raise

    async def _begin(self) -> Ingest:
        """Open the ingest in a thread (it reads what an earlier pull left); if we are cancelled meanwhile, it is let go."""
        opening = self._pool.submit(self._content.ingest, self._descriptor.digest, self._descriptor.size)
        try:
            return await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            if not opening.cancel():
                opening.add_done_callback(lambda done: None if done.exception() else done.result().suspend())
            raise

    async def _from_content(self) -> None:
        """The blob is here already (an earlier pull with another layer driver, or one that was cut off)."""
        self._blob_safe.set()
        path = self._content.path(self._descriptor.digest)
        await self._line(None, lambda: self._inflate(_read_file(path)), self._index)

    async def _line(self, feed: Coroutine[Any, Any, None] | None, *stages: Callable[[], None]) -> None:
        """Run all stages to their end; the first real failure stops the line and is raised."""
        loop = asyncio.get_running_loop()
        running: list[asyncio.Future[None]] = [loop.run_in_executor(self._pool, self._guard, stage) for stage in stages]
        source = asyncio.ensure_future(feed) if feed is not None else None
        if source is not None:
            running.append(source)
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            if not all(future.done() and not future.cancelled() and not future.exception() for future in running):
                self._break()
            if source is not None:
                source.cancel()
            failures = await _settle(running)
        for failure in sorted(failures, key=lambda error: isinstance(error, (Broken, asyncio.CancelledError))):
            raise failure

    def _guard(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except BaseException:
            self._break()
            raise

    def _break(self) -> None:
        if not self._broke_off:
            self._to_blob.break_()
        self._to_inflate.break_()
        self._to_layer.break_()
        self._blob_safe.set()

    async def _feed(self, repository: Repository, offset: int) -> None:
        """Bring in the blob from ``offset`` on; whatever stops it, what did arrive reaches the blob stage."""
        try:
            await self._download(repository, offset)
        except BaseException:
            self._broke_off = True
            self._to_blob.close()
            raise
        self._to_blob.close()
        self._to_inflate.close()

    async def _download(self, repository: Repository, offset: int) -> None:
        """Download from ``offset`` to the end, through as many connections as it takes."""
        from tare.distribution.retry import PATIENCE, backoff

        size, failed = self._descriptor.size, 0
        while offset < size:
            before = offset
            try:
                blob = SegmentedBlob(repository, self._descriptor, self._budget)
                async with aclosing(blob.chunks(offset)) as chunks:
                    async for chunk in chunks:
                        offset += len(chunk)
                        await self._put(chunk, offset)
                if offset < size:
                    raise Upstream(f"blob {self._descriptor.digest}: broke off at byte {offset} of {size}")
            except (Unavailable, ResourceExhausted) as error:
                failed = 1 if offset > before else failed + 1
                wait = getattr(error, "wait", 0.0)
                if failed >= self._attempts or not 0 <= wait <= PATIENCE:
                    raise
                await asyncio.sleep(max(wait, backoff(failed - 1)))

    async def _put(self, chunk: bytes, offset: int) -> None:
        if offset > self._descriptor.size:
            raise Corrupt(f"blob {self._descriptor.digest}: longer than the {self._descriptor.size} bytes it should have")
        await self._to_inflate.put_async(chunk)
        await self._to_blob.put_async(chunk)
        self._downloaded(offset)

    def _store_blob(self, ingest: Ingest) -> None:
        for chunk in self._to_blob:
            ingest.write(chunk)
        if self._broke_off:
            return
        ingest.commit()
        self._blob_safe.set()

    def _inflate(self, source: Iterable[bytes]) -> None:
        for chunk in decompress(source, f"layer {self._descriptor.digest}"):
            self._to_layer.put(chunk)
        self._to_layer.close()

    def _index(self) -> None:
        writer = self._layers.writer()
        try:
            for chunk in self._to_layer:
                writer.write(chunk)
            self._blob_safe.wait()
            for _ in self._to_layer:  # raises Broken if the blob turned out to be bad
                pass
            writer.commit(self._diff_id)
        except BaseException:
            with suppress(OSError, TareError):
                writer.abort()
            raise

    def _downloaded(self, offset: int) -> None:
        now = monotonic()
        if now - self._last_report >= _REPORT_INTERVAL:
            self._last_report = now
            self._say("Downloading", offset)

    def _say(self, status: str, current: int | None = None) -> None:
        total = None if current is None else self._descriptor.size
        self._report(Progress(status, self._descriptor.digest.short, current, total))


async def _settle(running: list[asyncio.Future[None]]) -> list[BaseException]:
    """The failures, once every future is done: threads must not outlive their line, even while it is being cancelled."""
    pending = asyncio.ensure_future(asyncio.wait(running))
    cancelled = False
    while not pending.done():
        try:
            await asyncio.shield(pending)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    outcomes = [asyncio.CancelledError() if future.cancelled() else future.exception() for future in running]
    return [outcome for outcome in outcomes if outcome is not None]


def _read_file(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_READ):
            yield chunk


def _partial_then(path: Path, left: int, rest: Iterable[bytes]) -> Iterator[bytes]:
    """The ``left`` bytes that an earlier, broken-off pull had of the blob, then what comes now."""
    if left:
        with path.open("rb", buffering=0) as file:
            while left and (chunk := file.read(min(_READ, left))):
                left -= len(chunk)
                yield chunk
    yield from rest
