"""From plain bytes to a compressed stream, with all processors where that pays.

- gzip up to level 3: isal, a gigabyte a second on one processor. One member, so the same tar gives the same blob everywhere.
- gzip from level 4 on: zlib, which is slow; blocks of a fixed size are packed side by side, each a member of its own (RFC 1952 allows any
  number, and every engine reads them).
- zstd: the library's own threads.

What comes out depends on the input and the level only, not on the number of processors. Encoders block: use them in a worker thread.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from tare.errors import InvalidArgument

LEVELS = {"gzip": range(10), "zstd": range(1, 23)}
_DEFAULTS = {"gzip": 2, "zstd": 3}
_ISAL_BEST = 3
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Compression:
    """How layers are packed. ``level`` is ``None`` where any will do."""

    name: str = "gzip"
    level: int | None = None

    @classmethod
    def parse(cls, text: str) -> Compression:
        """``gzip``, ``zstd``, or one of them with a level: ``zstd:19``."""
        name, colon, level = text.partition(":")
        if name not in LEVELS:
            raise InvalidArgument(f'unknown compression "{text}": gzip or zstd is expected, with a level if need be (zstd:19)')
        if not colon:
            return cls(name)
        if not (level.isascii() and level.isdigit() and int(level) in LEVELS[name]):
            levels = LEVELS[name]
            raise InvalidArgument(f'invalid compression level "{level}": {name} has {levels[0]} to {levels[-1]}')
        return cls(name, int(level))

    def encoder(self) -> Encoder:
        level = _DEFAULTS[self.name] if self.level is None else self.level
        if self.name == "zstd":
            return _Zstd(level)
        return _Isal(level) if level <= _ISAL_BEST else _Blocks(level)


class Encoder(Protocol):
    """Packs one stream. ``close`` ends its threads and may come at any time."""

    def write(self, chunk: bytes) -> bytes:
        """Take a chunk; returns what is ready."""

    def finish(self) -> bytes:
        """The rest."""

    def close(self) -> None: ...


class _Isal:
    def __init__(self, level: int) -> None:
        from isal import isal_zlib

        # A gzip header without time and name: the same tar gives the same blob.
        self._encoder: Any = isal_zlib.compressobj(level, isal_zlib.DEFLATED, 31)

    def write(self, chunk: bytes) -> bytes:
        packed: bytes = self._encoder.compress(chunk)
        return packed

    def finish(self) -> bytes:
        packed: bytes = self._encoder.flush()
        return packed

    def close(self) -> None:
        pass


class _Zstd:
    def __init__(self, level: int) -> None:
        import zstandard

        # One worker is not the same stream as none: at least two, whatever the machine has.
        self._encoder = zstandard.ZstdCompressor(level=level, threads=max(2, _processors())).compressobj()

    def write(self, chunk: bytes) -> bytes:
        return self._encoder.compress(chunk)

    def finish(self) -> bytes:
        return self._encoder.flush()

    def close(self) -> None:
        pass


class _Blocks:
    """gzip members packed side by side and put together in order."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._workers = _processors()
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="tare-gzip")
        self._running: deque[Future[bytes]] = deque()
        self._held = bytearray()
        self._any = False

    def write(self, chunk: bytes) -> bytes:
        self._held += chunk
        while len(self._held) >= _BLOCK:
            self._submit(bytes(self._held[:_BLOCK]))
            del self._held[:_BLOCK]
        return self._ready(self._workers * 2)

    def finish(self) -> bytes:
        if self._held or not self._any:
            self._submit(bytes(self._held))
            self._held.clear()
        return self._ready(0)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, block: bytes) -> None:
        self._any = True
        self._running.append(self._pool.submit(_member, block, self._level))

    def _ready(self, leave: int) -> bytes:
        packed = bytearray()
        while self._running and (len(self._running) > leave or self._running[0].done()):
            packed += self._running.popleft().result()
        return bytes(packed)


def _member(block: bytes, level: int) -> bytes:
    encoder = zlib.compressobj(level, zlib.DEFLATED, 31)
    return encoder.compress(block) + encoder.flush()


def _processors() -> int:
    return max(1, len(os.sched_getaffinity(0)))
