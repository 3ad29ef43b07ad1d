"""Reading a container's log: the past, the tail, and what is still being written.

The keeper writes; this module only reads, so any number of readers costs the container nothing. Files and rotation are those of
``runtime.logfile``, what they hold is known to ``logformats``.

A reader holds its file open and knows it by its inode: at the end of a file it looks where that inode stands now; if it was moved to number
k, the next file to read is number k-1. A file that was compressed meanwhile names its former inode. The keeper writes whole records
only, but a read may end inside one, so the unfinished rest is carried over to the next read.

The reader runs on the event loop: the files are in the page cache or close to it, reads are bounded (``CHUNK``), and between
two of them the consumer awaits its client. Readers take turns (``Readers``): one chunk in each round of the event loop, however many of
them follow a container that floods its log, so that whoever asks for anything else waits for a millisecond. Only compressed files are
unpacked in a thread.

What a reader holds while its client does not read is one batch, which its consumer has turned into bytes and emptied.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from tare.containers.logformats import FORMATS, STDERR, Line
from tare.containers.logwatch import Follower, LogWatches

CHUNK = 64 * 1024
_HEADER = 64
_TRIES = 20
_PACKED_CHUNK = 64 * 1024


@dataclass(frozen=True)
class LogQuery:
    """What of a log is wanted. Times in nanoseconds since the epoch (0: no bound); ``tail`` None means all."""

    stdout: bool = True
    stderr: bool = True
    since: int = 0
    until: int = 0
    tail: int | None = None
    follow: bool = False
    end: tuple[int, int] | None = None
    """Stop at this size of the file with this inode: where a live attachment takes over."""


def parse_time(text: str) -> int:
    """RFC 3339 with up to nine decimals, in nanoseconds since the epoch."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0")[:9] or "0")


def padded_time(text: str) -> str:
    """The same time with exactly nine decimals, as ``docker logs -t`` prints it."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return f"{whole}.{fraction.ljust(9, '0')}Z"


class Readers:
    """What all readers of an engine's logs share: their watches, and turns. One of them does its work in a round of the event loop, the
    others wait in line; the work itself does not await."""

    def __init__(self) -> None:
        self.watches = LogWatches()
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().call_soon(self._lock.release)  # not yet: who is next would go on in this very round


class LogReader:
    """Reads one container's log files."""

    def __init__(self, path: Path, max_file: int = 1, driver: str = "json-file", readers: Readers | None = None) -> None:
        self._path = path
        self._max_file = max(1, max_file)
        self._format = FORMATS[driver]
        self._readers = readers or Readers()

    async def read(self, query: LogQuery, ended: Awaitable[object] | None = None) -> AsyncIterator[list[Line]]:
        """Batches of lines, oldest first; each belongs to the consumer. With ``follow`` goes on until ``ended`` is done and all is read."""
        remaining: int | None = None
        state = _State()
        watch = Follower(self._readers.watches, self._path.parent, ended) if query.follow and ended is not None else None
        try:
            await self._open_at(state, query.tail)
            while True:
                # Whether the writer has ended is asked before reading: what it wrote last is then surely read.
                last = watch is None or watch.ended
                while (chosen := await self._available(state, query)) is not None:
                    if chosen:
                        yield chosen
                if last or state.finished:
                    return
                assert watch is not None
                if query.until:
                    remaining = max(0, query.until - time.time_ns())
                await watch.wait(remaining)
                if query.until and time.time_ns() > query.until:
                    return
        finally:
            state.close()
            if watch is not None:
                watch.close()

    def _select(self, batch: list[bytes], query: LogQuery, state: _State) -> list[Line]:
        chosen: list[Line] = []
        for record in batch:
            lines = self._format.lines(record)
            if state.skip:
                skipped = min(state.skip, len(lines))
                state.skip -= skipped
                lines = lines[skipped:]
            for line in lines:
                if not (query.stderr if line.stream == STDERR else query.stdout):
                    continue
                if query.since or query.until:
                    at = parse_time(line.time)
                    if at < query.since or (query.until and at > query.until):
                        continue
                chosen.append(line)
        return chosen

    def _files(self) -> list[Path]:
        """Existing log files, the one being written first."""
        return [self._path, *(Path(f"{self._path}.{number}") for number in range(1, self._max_file))]

    async def _open_at(self, state: _State, tail: int | None) -> None:
        files = [path for path in self._files() if path.exists() or _compressed(path).exists()] or [self._path]
        if tail is None:
            for path in reversed(files):  # the oldest may go while we look
                if await state.open(path):
                    return
            return
        for index, path in enumerate(files):
            if not await state.open(path):
                return
            state.offset, found, state.skip = self._format.tail(state.fd, tail)
            tail -= found
            if tail <= 0 or index == len(files) - 1:
                return

    async def _available(self, state: _State, query: LogQuery) -> list[Line] | None:
        """The next lines that can be read now, in whichever file they are; None when there are none."""
        while state.fd >= 0 or await state.open(self._path):
            limit = CHUNK
            if query.end is not None and state.inode == query.end[0]:
                limit = min(limit, query.end[1] - state.offset)
                if limit <= 0:
                    state.finished = True
                    return None
            async with self._readers:
                if data := os.pread(state.fd, limit, state.offset):
                    state.offset += len(data)
                    records, state.rest = self._format.split(state.rest + data)
                    return self._select(records, query, state)
            if not await self._advance(state):
                return None
        return None

    async def _advance(self, state: _State) -> bool:
        """At a file's end: go on to the next newer file, if there is one."""
        for _ in range(_TRIES):  # the keeper may rename between our look and our open
            found = [_identity(path) for path in self._files()]
            present = [number for number, identity in enumerate(found) if identity is not None]
            here = next((number for number in present if state.reads(found[number])), None)
            number = max(present, default=-1) if here is None else here - 1
            size = os.fstat(state.fd).st_size
            if number < 0 or number not in present:
                if here == 0 and size < state.offset:
                    state.offset, state.rest = 0, b""  # a log of one file begins anew in its place
                    return size > 0
                return False
            if size > state.offset:
                return True  # grew between the read and the rename
            following = _State()
            if await following.open(self._files()[number]):
                if following.reads(found[number]):
                    state.take_over(following)
                    return True
                following.close()
        return False


class _State:
    """Position of one reader."""

    def __init__(self) -> None:
        self.fd = -1
        self._packed = -1
        """The compressed file that ``fd`` was unpacked from."""
        self.inode = 0
        self.offset = 0
        self.rest = b""
        self.skip = 0
        """Lines of the first record that are not wanted."""
        self.finished = False

    async def open(self, path: Path) -> bool:
        """Go on with another file, or its compressed form; False when there is neither."""
        self.close()
        self.offset, self.rest, self.skip = 0, b"", 0
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.inode = os.fstat(self.fd).st_ino
        except FileNotFoundError:
            try:
                self._packed, self.fd = await asyncio.to_thread(_unpack, _compressed(path))
            except FileNotFoundError:
                return False
            self.inode = 0
        return True

    def take_over(self, other: _State) -> None:
        """Go on at the beginning of the file that ``other`` has opened."""
        self.close()
        self.fd, self._packed, self.inode = other.fd, other._packed, other.inode
        self.offset, self.rest, self.skip = 0, b"", 0

    def reads(self, identity: _Identity | None) -> bool:
        """Whether that file is the one that is being read. What we hold open keeps its inode number to itself; what
        was freed may lend it to a newer file, therefore a compressed file that was opened as such is known by its own."""
        if identity is None:
            return False
        if self._packed >= 0:
            return identity.packed == os.fstat(self._packed).st_ino
        return self.inode in (identity.plain, identity.original)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._packed >= 0:
            os.close(self._packed)
            self._packed = -1


def _compressed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


class _Identity(NamedTuple):
    """Inodes that a log file goes by (0: none): as it is, compressed, and the one that it had before it was compressed."""

    plain: int
    packed: int = 0
    original: int = 0


def _identity(path: Path) -> _Identity | None:
    """None when there is no such file."""
    try:
        return _Identity(os.stat(path).st_ino)
    except FileNotFoundError:
        pass
    try:
        with _compressed(path).open("rb") as file:
            return _Identity(0, os.fstat(file.fileno()).st_ino, _original_inode(file.read(_HEADER)))
    except FileNotFoundError:
        return None


def _original_inode(header: bytes) -> int:
    """From the comment that the keeper writes into the gzip header."""
    found = re.match(rb"inode=(\d+)\0", header[10:])
    return int(found[1]) if found else -1


def _unpack(path: Path) -> tuple[int, int]:
    """Descriptors of a compressed file and of its content in a file without a name (owned by the caller)."""
    with path.open("rb") as packed, tempfile.TemporaryFile(dir=path.parent) as plain:
        engine = zlib.decompressobj(31)
        while data := packed.read(_PACKED_CHUNK):
            plain.write(engine.decompress(data))
        plain.flush()
        return os.dup(packed.fileno()), os.dup(plain.fileno())
