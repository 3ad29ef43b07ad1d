"""One blob on its way from an upstream into the storage, and to everybody who wants it meanwhile.

    upstream ──► upload of the storage ──► blob, once its digest is right
                   │ (a file)
                   ├──► client at byte 70,000,000
                   └──► client at byte 12,000        each reads what is there already, at its own pace

Invariants. There is one download for a blob of a repository, however many ask. Nobody gets the last byte before the digest has been
verified: a blob that turns out wrong reaches no one whole. A slow client neither holds up the download nor costs memory; one that goes away
does not end it. A connection that breaks off is resumed where it stopped.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tare.distribution.retry import backoff
from tare.errors import Corrupt, TareError, Unavailable
from tare.oci.digest import Digest
from tare.registry.errors import RegistryError
from tare.registry.storage import Appender, Storage

ATTEMPTS = 4
"""Tries in a row that may bring nothing."""


class Stream(Protocol):
    """``distribution.remote.BlobStream``."""

    @property
    def offset(self) -> int: ...

    @property
    def chunks(self) -> AsyncIterator[bytes]: ...


Open = Callable[[int], AbstractAsyncContextManager[Stream]]
"""Opens the upstream's blob from an offset on."""
InThread = Callable[..., Awaitable[Any]]


class Download:
    """``start`` it once; ``available`` tells each reader how far it may read from ``file``."""

    def __init__(self, storage: Storage, name: str, digest: Digest, size: int, run: InThread, spool: Path | None) -> None:
        """``run`` calls in a thread, to its end. ``spool``: where a copy is kept when the storage's uploads are no files."""
        self.digest, self.size = digest, size
        self.file: BinaryIO
        self._storage, self._name, self._run, self._spool = storage, name, run, spool
        self._copy: BinaryIO | None = None
        self._offset = 0
        self._done = False
        self._users = 1
        self._error: Exception | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, open_stream: Open, slots: asyncio.Semaphore, ended: Callable[[], None]) -> None:
        """Begin; ``ended`` is called when it is over, however."""
        self._upload = await self._run(self._storage.start_upload, self._name)
        file = await self._run(self._storage.objects.upload_file, self._upload)
        if file is None:
            file = self._copy = await self._run(tempfile.TemporaryFile, dir=self._spool)
        self.file = file
        self._task = asyncio.create_task(self._work(open_stream, slots), name=f"registry:download:{self.digest}")
        self._task.add_done_callback(lambda _: self._end(ended))

    def _end(self, ended: Callable[[], None]) -> None:
        ended()
        self.release()

    def hold(self) -> None:
        """One more reader."""
        self._users += 1

    def release(self) -> None:
        """A reader is done; the last one closes the file."""
        self._users -= 1
        if not self._users:
            self.file.close()

    async def available(self, position: int) -> int:
        """How far one may read, once that is more than ``position``. Raises what made the download fail."""
        while True:
            if self._error is not None:
                raise self._error
            limit = self._offset if self._done else min(self._offset, self.size - 1)
            if limit > position or (self._done and position >= self.size):
                return limit
            await self._changed.wait()

    async def finished(self) -> None:
        """Wait until the blob is stored. Raises what made it fail."""
        while not self._done:
            await self.available(self.size - 1)

    async def stop(self) -> None:
        """Give up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _work(self, open_stream: Open, slots: asyncio.Semaphore) -> None:
        try:
            async with slots:
                await self._receive(open_stream)
            await self._run(self._storage.finish_upload, self._name, self._upload, self.digest)
            self._done = True
        except asyncio.CancelledError:
            self._error = Unavailable("the registry is shutting down")
            raise
        except RegistryError as error:
            message = f"blob {self.digest} is not what the upstream sent" if error.code == "DIGEST_INVALID" else str(error)
            self._error = Corrupt(message)
        except Exception as error:
            self._error = error
        finally:
            self._wake()
            if not self._done:
                await asyncio.shield(self._run(self._forget))

    def _forget(self) -> None:
        try:
            self._storage.cancel_upload(self._name, self._upload)
        except RegistryError:
            return

    async def _receive(self, open_stream: Open) -> None:
        appender = await self._run(self._storage.append, self._name, self._upload, self.digest.algorithm)
        try:
            failures = 0
            while self._offset < self.size:
                before = self._offset
                try:
                    await self._copy_from(open_stream, appender)
                    reason: TareError = Corrupt(f"blob {self.digest}: the upstream sent {self._offset} of {self.size} bytes")
                except Unavailable as error:
                    reason = error
                failures = 0 if self._offset > before else failures + 1
                if self._offset < self.size:
                    if failures >= ATTEMPTS:
                        raise reason
                    await asyncio.sleep(backoff(failures))
        finally:
            await asyncio.shield(self._run(appender.close))

    async def _copy_from(self, open_stream: Open, appender: Appender) -> None:
        async with open_stream(self._offset) as stream:
            skip = self._offset - stream.offset  # a server that knows no ranges starts anew
            async for data in stream.chunks:
                if skip:
                    data, skip = data[skip:], max(0, skip - len(data))
                if not data:
                    continue
                if self._offset + len(data) > self.size:
                    raise Corrupt(f"blob {self.digest}: the upstream sends more than {self.size} bytes")
                await self._run(self._write, appender, data)
                self._offset += len(data)
                self._wake()

    def _write(self, appender: Appender, data: bytes) -> None:
        appender.write(data)
        if self._copy is not None:
            place, rest = self._offset, memoryview(data)
            while rest:  # by place: who sends from the file moves its position
                count = os.pwrite(self._copy.fileno(), rest, place)
                place, rest = place + count, rest[count:]
