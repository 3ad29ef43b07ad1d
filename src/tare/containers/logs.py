"""Reading a container's json-file log: the past, the tail, and what is still being written.

The keeper writes; this module only reads, so any number of readers costs the container nothing. On disk:

    ID-json.log        being written
    ID-json.log.1      rotated, the newer
    ID-json.log.N      rotated, the oldest

Rotation renames every file one number up and begins a new one. A reader holds its file open and knows it by its inode: at the end of a
file it looks where that inode stands now; if it was moved to number k, the next file to read is number k-1. The keeper writes whole
records only, but a read may end inside one, so the unfinished rest is carried over to the next read.

The reader runs on the event loop: the files are in the page cache or close to it, reads are bounded (``CHUNK``), and between
two of them the consumer awaits its client.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from tare.linux import inotify

CHUNK = 256 * 1024
_TAIL_BLOCK = 64 * 1024
STDOUT, STDERR = 1, 2


class LogRecord(msgspec.Struct):
    """One record as json-file stores it."""

    log: str = ""
    stream: str = "stdout"
    time: str = ""
    attrs: dict[str, str] | None = None


class Line(NamedTuple):
    stream: int
    data: bytes
    time: str
    attributes: dict[str, str] | None


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


_decoder = msgspec.json.Decoder(LogRecord)


def parse_time(text: str) -> int:
    """RFC 3339 with up to nine decimals, in nanoseconds since the epoch."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0")[:9] or "0")


def padded_time(text: str) -> str:
    """The same time with exactly nine decimals, as ``docker logs -t`` prints it."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return f"{whole}.{fraction.ljust(9, '0')}Z"


class LogReader:
    """Reads one container's log files."""

    def __init__(self, path: Path, max_file: int = 1) -> None:
        self._path = path
        self._max_file = max(1, max_file)

    async def read(self, query: LogQuery, ended: Awaitable[object] | None = None) -> AsyncIterator[list[Line]]:
        """Batches of lines, oldest first. With ``follow`` goes on until ``ended`` is done and all is read."""
        remaining: int | None = None
        with self._open_at(query.tail) as state:
            watch = _Watch(self._path.parent, ended) if query.follow and ended is not None else None
            try:
                while True:
                    # Whether the writer has ended is asked before reading: what it wrote last is then surely read.
                    last = watch is None or watch.ended
                    for batch in self._available(state, query):
                        if chosen := self._select(batch, query):
                            yield chosen
                        if state.finished:
                            return
                    if last:
                        return
                    assert watch is not None
                    if query.until:
                        remaining = max(0, query.until - time.time_ns())
                    await watch.wait(remaining)
                    if query.until and time.time_ns() > query.until:
                        return
            finally:
                if watch is not None:
                    watch.close()

    def _select(self, batch: list[bytes], query: LogQuery) -> list[Line]:
        lines: list[Line] = []
        for raw in batch:
            try:
                record = _decoder.decode(raw)
            except msgspec.MsgspecError:
                continue  # a record torn by a full disk or a power cut: the rest of the log is still good
            stream = STDERR if record.stream == "stderr" else STDOUT
            if not (query.stderr if stream == STDERR else query.stdout):
                continue
            if query.since or query.until:
                at = parse_time(record.time)
                if at < query.since or (query.until and at > query.until):
                    continue
            lines.append(Line(stream, record.log.encode("utf-8", "surrogatepass"), record.time, record.attrs))
        return lines

    def _files(self) -> list[Path]:
        """Existing log files, the one being written first."""
        return [self._path, *(Path(f"{self._path}.{number}") for number in range(1, self._max_file))]

    @contextmanager
    def _open_at(self, tail: int | None) -> Iterator[_State]:
        state = _State()
        files = [path for path in self._files() if path.exists()]
        try:
            if tail is None:
                state.open(files[-1] if files else self._path)
            else:
                self._seek_tail(state, files or [self._path], tail)
            yield state
        finally:
            state.close()

    def _seek_tail(self, state: _State, files: list[Path], tail: int) -> None:
        for index, path in enumerate(files):
            if not state.open(path):
                return
            offset, found = _tail_offset(state.fd, tail)
            state.offset = offset
            tail -= found
            if tail <= 0 or index == len(files) - 1:
                return

    def _available(self, state: _State, query: LogQuery) -> Iterator[list[bytes]]:
        """What can be read now, over as many files as there are."""
        while state.fd >= 0 or state.open(self._path):
            limit = CHUNK
            if query.end is not None and state.inode == query.end[0]:
                limit = min(limit, query.end[1] - state.offset)
                if limit <= 0:
                    state.finished = True
                    return
            data = os.pread(state.fd, limit, state.offset)
            if data:
                state.offset += len(data)
                lines = (state.rest + data).split(b"\n")
                state.rest = lines.pop()
                yield lines
            elif not self._advance(state):
                return

    def _advance(self, state: _State) -> bool:
        """At a file's end: go on to the next newer file, if there is one."""
        inodes: list[int] = []
        for path in self._files():
            try:
                inodes.append(os.stat(path).st_ino)
            except FileNotFoundError:
                inodes.append(0)
        if state.inode == inodes[0]:
            return False
        if state.inode in inodes:
            number = inodes.index(state.inode) - 1
        else:
            number = max((at for at, inode in enumerate(inodes) if inode), default=-1)
        if number < 0 or not inodes[number]:
            return False
        if os.fstat(state.fd).st_size > state.offset:
            return True  # grew between the read and the rename
        return state.open(self._files()[number])


class _State:
    """Position of one reader."""

    def __init__(self) -> None:
        self.fd = -1
        self.inode = 0
        self.offset = 0
        self.rest = b""
        self.finished = False

    def open(self, path: Path) -> bool:
        self.close()
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        self.inode = os.fstat(self.fd).st_ino
        self.offset, self.rest = 0, b""
        return True

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Watch:
    """Wakes a follower when the log directory changes or the writer has ended."""

    def __init__(self, directory: Path, ended: Awaitable[object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._fd = inotify.watch_directory(str(directory))
        self._loop.add_reader(self._fd, self._changed)
        self._ended = asyncio.ensure_future(ended)
        self._ended.add_done_callback(lambda _: self._wake.set())

    @property
    def ended(self) -> bool:
        return self._ended.done()

    def _changed(self) -> None:
        inotify.drain(self._fd)
        self._wake.set()

    async def wait(self, nanoseconds: int | None) -> None:
        try:
            async with asyncio.timeout(None if nanoseconds is None else nanoseconds / 1e9):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._ended.cancel()


def _tail_offset(fd: int, count: int) -> tuple[int, int]:
    """Where the last ``count`` lines of a file begin, and how many of them there are."""
    position = os.fstat(fd).st_size
    if count <= 0 or position == 0:
        return position, 0
    found = -1  # the newline that ends the last line does not begin another
    while position > 0:
        size = min(_TAIL_BLOCK, position)
        position -= size
        block = os.pread(fd, size, position)
        here = block.count(b"\n")
        if found + here < count:
            found += here
            continue
        at = len(block)
        while found < count:
            at = block.rfind(b"\n", 0, at)
            found += 1
        return position + at + 1, count
    return 0, found + 1
