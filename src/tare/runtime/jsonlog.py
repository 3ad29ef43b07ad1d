"""Docker's json-file log, written at the speed of ``bytes.replace``.

On disk (files and rotation: ``runtime.logfile``), one record per line of output:

    ID-json.log      {"log":"a line\\n","stream":"stdout","time":"2026-01-02T03:04:05.678901234Z"}
With labels or tags a record has ``"attrs":{...}`` before the time. A line longer than 16 KiB becomes several records;
all but the last lack the ``\\n``. Text that is not UTF-8 becomes U+FFFD byte by byte, and escapes are those of Go's
encoder, so that any reader of Docker's files reads ours.

Why whole chunks: a record per line in Python costs more than a microsecond per line; the common case here (complete
lines, plain text) is one scan for special bytes and one ``replace`` of the newlines by "end of record, begin of
record". All lines of a chunk share one time stamp. Only whole records are ever written, in one write(2): a reader
that follows the file sees no torn line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from tare.runtime.logfile import LINE_LIMIT, LineLog, LogFile, split_long

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


def has_long_line(text: bytes, limit: int = LINE_LIMIT) -> bool:
    """Whether some line may exceed the limit. Such a line covers a whole aligned half-limit block, so few bytes are looked at."""
    if len(text) <= limit:
        return False
    half = limit // 2
    return any(text.find(b"\n", start, start + half) < 0 for start in range(0, len(text) - half + 1, half))


class JsonLog(LineLog):
    """The log of one container in Docker's format."""

    def __init__(self, file: LogFile, attributes: Mapping[str, str] | None = None, resting: Mapping[str, Any] | None = None) -> None:
        super().__init__(resting)
        self.file = file
        attrs = json.dumps(dict(sorted(attributes.items())), separators=(",", ":"), ensure_ascii=False) if attributes else ""
        self._attributes = b',"attrs":' + attrs.encode("utf-8", "replace") if attrs else b""

    def rest(self) -> dict[str, Any]:
        """All that another worker needs to go on: the open file and the lines that are not complete."""
        return super().rest() | self.file.rest()

    def position(self) -> tuple[int, int]:
        """(inode, size) of the present file: all that is in the log lies before it."""
        return self.file.position()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self.file.close()

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
        while len(block) > (room := self.file.room()):
            cut = 0 if self.file.full else block.find(b"\n", max(0, room - 1)) + 1
            if cut >= len(block):
                break
            self.file.put(block[:cut])
            block = block[cut:]
            self.file.rotate()
        self.file.put(block)
