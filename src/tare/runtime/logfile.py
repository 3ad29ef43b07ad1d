"""What all log drivers of the keeper share: output cut into lines, and files that are rotated and compressed.

On disk, newest file first (``max_file`` of them):

    PATH          being written
    PATH.1        rotated, or PATH.1.gz when it has been compressed
    PATH.N        rotated, the oldest

Rotation renames every file one number up. A follower knows its file by inode; compression makes another file, so the gzip header's comment
keeps the inode of the original (``inode=123``).

Compression has no thread and no process of its own: every write takes a piece of the rotated file along, twice as long as what it writes,
so that a file is compressed long before the next one is full; what is left is done when the keeper goes to rest or ends.

The end of output without a newline waits (at most 16 KiB per stream) for more, or for ``flush``.
"""

from __future__ import annotations

import binascii
import os
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

LINE_LIMIT = 16 * 1024
_PIECE = 64 * 1024


class ContainerLog(Protocol):
    """Where a keeper writes its container's output."""

    def write(self, stream: str, data: bytes, now: int = 0) -> None: ...

    def pending(self, stream: str) -> bytes: ...

    def position(self) -> tuple[int, int]: ...

    def rest(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


def split_long(text: bytes, limit: int = LINE_LIMIT) -> list[bytes]:
    """Cut into pieces of at most ``limit`` bytes, never within a UTF-8 character if that can be helped."""
    pieces = []
    start = 0
    while len(text) - start > limit:
        end = start + limit
        for back in range(4):
            if text[end - back] & 0xC0 != 0x80:
                end -= back
                break
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces


class LineLog:
    """Cuts chunks of output into complete lines and what waits for its newline; a driver says what becomes of them."""

    def __init__(self, resting: Mapping[str, Any] | None = None) -> None:
        tails: Mapping[str, str] = {} if resting is None else resting["tails"]
        self._tails: dict[str, bytes] = {stream: binascii.a2b_base64(tail) for stream, tail in tails.items()}

    def rest(self) -> dict[str, Any]:
        """All that another worker needs to go on."""
        return {"tails": {stream: binascii.b2a_base64(tail, newline=False).decode() for stream, tail in self._tails.items() if tail}}

    def pending(self, stream: str) -> bytes:
        """Output that waits for its newline and is not in the log yet."""
        return self._tails.get(stream, b"")

    def write(self, stream: str, data: bytes, now: int = 0) -> None:
        """Log a chunk of output; ``now`` in nanoseconds since the epoch (0: the present)."""
        tail = self._tails.get(stream)
        if tail:
            data = tail + data
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        if len(rest) > LINE_LIMIT:
            pieces = split_long(rest)
            rest = pieces.pop()
        else:
            pieces = []
        self._tails[stream] = rest
        if end or pieces:
            self._write_records(stream, data[:end] if end != len(data) else data, pieces, now)

    def flush(self, now: int = 0) -> None:
        """Log what waits for a newline (at the end of the output)."""
        for stream, tail in self._tails.items():
            if tail:
                self._write_records(stream, b"", [tail], now)
        self._tails.clear()

    def _write_records(self, stream: str, lines: bytes, partial: list[bytes], now: int) -> None:
        """Log complete ``lines`` (with their newlines), then pieces of a line that goes on."""
        raise NotImplementedError


class LogFile:
    """The files of one log. Errors of the disk never reach the container: output that cannot be written is counted as lost."""

    def __init__(
        self, path: str, max_size: int = 0, max_file: int = 1, compress: bool = False, resting: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self.max_size = max_size
        self.max_file = max(1, max_file)
        self.lost = 0
        self._fd = -1
        self._size = 0
        self._compress = compress and self.max_file > 1
        self._squeezing: _Compression | None = None
        if resting is None:
            self._open()
        else:
            self._fd, self._size, self.lost = resting["fd"], resting["size"], resting["lost"]

    def rest(self) -> dict[str, Any]:
        """All that another worker needs to go on."""
        self._squeeze(None)
        return {"fd": self._fd, "size": self._size, "lost": self.lost}

    def _open(self, truncate: bool = False) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | (os.O_TRUNC if truncate else 0)
        self._fd = os.open(self.path, flags, 0o640)
        self._size = os.fstat(self._fd).st_size

    def position(self) -> tuple[int, int]:
        """(inode, size) of the present file: all that is in the log lies before it."""
        return (os.fstat(self._fd).st_ino, self._size) if self._fd >= 0 else (0, 0)

    @property
    def full(self) -> bool:
        return bool(self.max_size) and self._size >= self.max_size

    @property
    def empty(self) -> bool:
        return self._size == 0

    def room(self) -> int:
        """Bytes until the file is to be rotated; a large number without rotation."""
        return max(0, self.max_size - self._size) if self.max_size else 1 << 62

    def put(self, block: bytes) -> None:
        """Append whole records in one piece."""
        if not block or self._fd < 0:
            self.lost += len(block)
            return
        try:
            written = os.write(self._fd, block)
            while written < len(block):
                written += os.write(self._fd, memoryview(block)[written:])
            self._size += len(block)
        except OSError:
            self.lost += len(block)
            try:
                os.ftruncate(self._fd, self._size)
            except OSError:
                pass
        if self._squeezing is not None:
            self._squeeze(max(_PIECE, 2 * len(block)))

    def rotate(self) -> None:
        """Begin a new file."""
        self._squeeze(None)
        try:
            if self.max_file > 1:
                for number in range(self.max_file - 1, 1, -1):
                    self._rename_rotated(number - 1, number)
                os.rename(self.path, f"{self.path}.1")
                _unlink(f"{self.path}.1.gz")
            os.close(self._fd)
            self._fd = -1
            self._open(truncate=self.max_file == 1)
        except OSError:
            if self._fd < 0:
                try:
                    self._open()
                except OSError:
                    return
        if self._compress:
            try:
                self._squeezing = _Compression(f"{self.path}.1")
            except OSError:
                pass  # a file that is not compressed is a log all the same

    def _rename_rotated(self, old: int, new: int) -> None:
        for kept, gone in (("", ".gz"), (".gz", "")):
            try:
                os.rename(f"{self.path}.{old}{kept}", f"{self.path}.{new}{kept}")
            except FileNotFoundError:
                continue
            _unlink(f"{self.path}.{new}{gone}")
            return

    def _squeeze(self, budget: int | None) -> None:
        """Compress so many bytes of the rotated file (None: all that is left)."""
        squeezing = self._squeezing
        if squeezing is not None:
            try:
                if squeezing.advance(budget):
                    self._squeezing = None
            except OSError:
                squeezing.abandon()
                self._squeezing = None

    def close(self) -> None:
        self._squeeze(None)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Compression:
    """One rotated file on its way to its .gz, step by step."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._new = f"{path}.gz.new"
        self._engine = zlib.compressobj(1, zlib.DEFLATED, -15)
        self._crc = 0
        self._length = 0
        self._source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._target = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        except OSError:
            os.close(self._source)
            raise
        os.write(self._target, b"\x1f\x8b\x08\x10\0\0\0\0\0\xff" + b"inode=%d\0" % os.fstat(self._source).st_ino)

    def advance(self, budget: int | None) -> bool:
        """Compress at least ``budget`` bytes more; True when the .gz is complete and has replaced the file."""
        done = 0
        while budget is None or done < budget:
            data = os.read(self._source, _PIECE)
            if not data:
                self._finish()
                return True
            done += len(data)
            self._crc = zlib.crc32(data, self._crc)
            self._length += len(data)
            self._put(self._engine.compress(data))
        return False

    def _put(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._target, data) :]

    def _finish(self) -> None:
        self._put(self._engine.flush() + self._crc.to_bytes(4, "little") + (self._length & 0xFFFFFFFF).to_bytes(4, "little"))
        self._close()
        os.rename(self._new, f"{self._path}.gz")
        _unlink(self._path)

    def _close(self) -> None:
        os.close(self._source)
        os.close(self._target)

    def abandon(self) -> None:
        try:
            self._close()
        except OSError:
            pass
        _unlink(self._new)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
