"""Docker's json-file log, written at the speed of ``bytes.replace``.

On disk, one record per line of output, newest file first (``max_file`` of them):

    ID-json.log      {"log":"a line\\n","stream":"stdout","time":"2026-01-02T03:04:05.678901234Z"}
    ID-json.log.1    older
    ID-json.log.2    oldest

With labels or tags a record has ``"attrs":{...}`` before the time. A line longer than 16 KiB becomes several records;
all but the last lack the ``\\n``. Text that is not UTF-8 becomes U+FFFD byte by byte, and escapes are those of Go's
encoder, so that any reader of Docker's files reads ours.

Why whole chunks: a record per line in Python costs more than a microsecond per line; the common case here (complete
lines, plain text) is one scan for special bytes and one ``replace`` of the newlines by "end of record, begin of
record". All lines of a chunk share one time stamp. Only whole records are ever written, in one write(2): a reader
that follows the file sees no torn line.

The end of output without a newline waits (at most 16 KiB per stream) for more, or for ``flush``.
"""

from __future__ import annotations

import binascii
import json
import os
import time
from collections.abc import Mapping
from typing import Any

LINE_LIMIT = 16 * 1024
_BEGIN = b'{"log":"'

_PLAIN = bytes(c for c in range(0x20, 0x7F) if c not in b'"\\<>&') + b"\n\x7f"
_ESCAPES: tuple[tuple[bytes, bytes], ...] = (
    (b"\\", b"\\\\"),
    (b'"', b'\\"'),
    *((bytes([c]), b"\\r" if c == 0x0D else b"\\u00%02x" % c) for c in [*range(0x20), *b"<>&"] if c != 0x0A),
)
_LINE_SEPARATORS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))

_INVALID = "\ufffd".encode()


def _replace_invalid(text: bytes) -> bytes:
    """One U+FFFD for each byte that is not UTF-8, as Go's decoder counts them.

    Only error handlers that the interpreter has in C are used (one of ours, called for each byte, costs ten times as much): such bytes
    become lone surrogates, which the encoder writes as question marks; the real question marks stand aside meanwhile as a character
    that the text does not contain.
    """
    decoded = text.decode("utf-8", "surrogateescape")
    aside = next(chr(code) for code in range(0xFFFE, 0x10FFFF) if chr(code) not in decoded)
    encoded = decoded.replace("?", aside).encode("utf-8", "replace")
    return encoded.replace(b"?", _INVALID).replace(aside.encode(), b"?")


def escape(text: bytes) -> bytes:
    """The inside of JSON strings for ``text``, except that newlines stay as they are (they end records)."""
    special = text.translate(None, _PLAIN)
    if not special:
        return text
    if not special.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            text = _replace_invalid(text)
        for raw, escaped in _LINE_SEPARATORS:
            if raw in text:
                text = text.replace(raw, escaped) if b"\\" not in special else _separators_later(text, raw, escaped)
    present = set(special)
    for raw, escaped in _ESCAPES:
        if raw[0] in present:
            text = text.replace(raw, escaped)
    return text.replace(_MARK, b"\\") if _MARK in text else text


# While backslashes are still to be doubled, an inserted one is written as a byte that valid UTF-8 never contains.
_MARK = b"\xff"


def _separators_later(text: bytes, raw: bytes, escaped: bytes) -> bytes:
    return text.replace(raw, escaped.replace(b"\\", _MARK))


def rfc3339(nanoseconds: int) -> str:
    """A time as Go's RFC3339Nano: UTC, trailing zeros of the fraction left out."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    year, month, day, hour, minute, second = time.gmtime(seconds)[:6]
    text = f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
    return f"{text}.{fraction:09}".rstrip("0") + "Z" if fraction else text + "Z"


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


def has_long_line(text: bytes, limit: int = LINE_LIMIT) -> bool:
    """Whether some line may exceed the limit. Such a line covers a whole aligned half-limit block, so few bytes are looked at."""
    if len(text) <= limit:
        return False
    half = limit // 2
    return any(text.find(b"\n", start, start + half) < 0 for start in range(0, len(text) - half + 1, half))


class JsonLog:
    """The log of one container. Errors of the disk never reach the container: output that cannot be written is counted as lost."""

    def __init__(
        self,
        path: str,
        max_size: int = 0,
        max_file: int = 1,
        attributes: Mapping[str, str] | None = None,
        resting: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.max_size = max_size
        self.max_file = max(1, max_file)
        self.lost = 0
        attrs = json.dumps(dict(sorted(attributes.items())), separators=(",", ":"), ensure_ascii=False) if attributes else ""
        self._attributes = b',"attrs":' + attrs.encode("utf-8", "replace") if attrs else b""
        self._tails: dict[str, bytes] = {}
        self._fd = -1
        self._size = 0
        if resting is None:
            self._open()
        else:
            self._wake(resting)

    def rest(self) -> dict[str, Any]:
        """All that another worker needs to go on: the open file and the lines that are not complete."""
        tails = {stream: binascii.b2a_base64(tail, newline=False).decode() for stream, tail in self._tails.items() if tail}
        return {"fd": self._fd, "size": self._size, "lost": self.lost, "tails": tails}

    def _wake(self, resting: Mapping[str, Any]) -> None:
        self._fd, self._size, self.lost = resting["fd"], resting["size"], resting["lost"]
        self._tails = {stream: binascii.a2b_base64(tail) for stream, tail in resting["tails"].items()}

    def _open(self, truncate: bool = False) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | (os.O_TRUNC if truncate else 0)
        self._fd = os.open(self.path, flags, 0o640)
        self._size = os.fstat(self._fd).st_size

    def position(self) -> tuple[int, int]:
        """(inode, size) of the present file: all that is in the log lies before it."""
        return (os.fstat(self._fd).st_ino, self._size) if self._fd >= 0 else (0, 0)

    def pending(self, stream: str) -> bytes:
        """Output that waits for its newline and is not in the file yet."""
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
        """Write what waits for a newline (at the end of the output)."""
        for stream, tail in self._tails.items():
            if tail:
                self._write_records(stream, b"", [tail], now)
        self._tails.clear()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write_records(self, stream: str, lines: bytes, partial: list[bytes], now: int) -> None:
        stamp = rfc3339(now or time.time_ns()).encode()
        close = b'","stream":"' + stream.encode() + b'"' + self._attributes + b',"time":"' + stamp + b'"}\n'
        block = b""
        if lines:
            plain = not has_long_line(lines)
            text = escape(lines).replace(b"\n", b"\\n" + close + _BEGIN) if plain else self._with_partials(lines, close)
            block = _BEGIN + text[: -len(_BEGIN)]
        for piece in partial:
            block += _BEGIN + escape(piece) + close
        self._append(block)

    def _with_partials(self, lines: bytes, close: bytes) -> bytes:
        """As the common case, with long lines cut into several records."""
        separator = close + _BEGIN
        records = []
        for line in lines[:-1].split(b"\n"):
            pieces = [line] if len(line) <= LINE_LIMIT else split_long(line)
            records.append(separator.join(map(escape, pieces)) + b"\\n" + separator)
        return b"".join(records)

    def _append(self, block: bytes) -> None:
        """Write whole records, rotating between them when the file is full."""
        while self.max_size and self._size + len(block) > self.max_size:
            room = max(0, self.max_size - self._size - 1)
            cut = block.find(b"\n", room) + 1 if self._size < self.max_size else 0
            if cut >= len(block):
                break
            self._put(block[:cut])
            block = block[cut:]
            self._rotate()
        self._put(block)

    def _put(self, block: bytes) -> None:
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

    def _rotate(self) -> None:
        try:
            if self.max_file > 1:
                for number in range(self.max_file - 1, 1, -1):
                    try:
                        os.rename(f"{self.path}.{number - 1}", f"{self.path}.{number}")
                    except FileNotFoundError:
                        pass
                os.rename(self.path, f"{self.path}.1")
            os.close(self._fd)
            self._fd = -1
            self._open(truncate=self.max_file == 1)
        except OSError:
            if self._fd < 0:
                try:
                    self._open()
                except OSError:
                    pass
