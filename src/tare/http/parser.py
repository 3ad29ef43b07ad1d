"""Sans-io parser for HTTP/1.0 and HTTP/1.1 requests: bytes in, request heads and body pieces out. No socket, no clock.

States:

    HEAD ──next_head()──► BODY ──next_data() … b""──► DONE ──next_head()──► BODY …
      │                                                 │
      └── take_rest() after a hijack, from DONE: the bytes that belong to the protocol that follows

Invariants:
- A head is parsed only after the body of the request before it was read to its end, so pipelined requests come out strictly in order.
- There is one way to read a message's length. What two parsers could read differently is refused, not repaired (RFC 9112 §6.3, §11.2):
  Transfer-Encoding together with Content-Length, repeated or non-decimal Content-Length, any transfer coding but ``chunked``, bare CR or
  LF, folded headers, white space before the colon.
- Memory is bounded by ``MAX_HEAD`` plus what was fed while nobody was reading; the server stops feeding (flow control).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MAX_HEAD = 1024 * 1024
"""Bytes of request line and headers together; X-Registry-Auth and X-Registry-Config are long."""
MAX_HEADERS = 256
MAX_CHUNK_LINE = 1024
MAX_TRAILERS = 16 * 1024
MAX_BLANK_LINES = 4

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])")
# One pass of the regular expression engine over all header lines makes the split below safe.
_HEADERS = re.compile(rb"(?:" + _TOKEN + rb"+:[\t\x20-\x7e\x80-\xff]*(?:\r\n|\Z))*")
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,15})[\t ]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_LENGTH = re.compile(r"[0-9]{1,18}")
_TOKEN_START = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


class ProtocolError(Exception):
    """The peer broke HTTP; ``status`` is the answer it gets before the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Headers(Mapping[str, str]):
    """Header fields; names are case-insensitive, repeated fields are joined with ", " (RFC 9110 §5.3)."""

    __slots__ = ("_fields",)

    def __init__(self, fields: dict[str, str]) -> None:
        """``fields`` must have lower-case names."""
        self._fields = fields

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Headers({self._fields!r})"

    def tokens(self, name: str) -> list[str]:
        """The members of a comma-separated field, lower case."""
        value = self._fields.get(name.lower())
        return [] if value is None else [token.strip().lower() for token in value.split(",") if token.strip()]


@dataclass(slots=True)
class RequestHead:
    """Request line and headers, with the framing already decided."""

    method: str
    target: str
    """As sent, still percent-encoded; bytes above 0x7f as latin-1."""
    version: tuple[int, int]
    headers: Headers
    content_length: int | None
    chunked: bool
    keep_alive: bool
    expect_continue: bool

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.content_length)


_HEAD, _FIXED, _CHUNK_SIZE, _CHUNK_DATA, _CHUNK_END, _TRAILERS, _DONE = range(7)


class RequestParser:
    """Parses the requests of one connection. After a ``ProtocolError`` the parser must not be used again."""

    __slots__ = ("_blank", "_buffer", "_left", "_scanned", "_state")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._state = _HEAD
        self._left = 0
        self._scanned = 0
        self._blank = 0

    @property
    def buffered(self) -> int:
        """Bytes fed and not yet taken."""
        return len(self._buffer)

    @property
    def in_body(self) -> bool:
        """A head was returned and its body has not been read to the end."""
        return _HEAD < self._state < _DONE

    @property
    def unfed(self) -> int:
        """Bytes left of a body whose length was told, when nothing of it is buffered: who reads them elsewhere calls ``skip``."""
        return self._left if self._state == _FIXED and not self._buffer else 0

    def skip(self, length: int) -> None:
        """Count ``length`` of the ``unfed`` bytes as read."""
        assert self._state == _FIXED and length <= self._left
        self._left -= length
        if not self._left:
            self._state = _DONE

    def feed(self, data: bytes | memoryview) -> None:
        self._buffer += data

    def take_rest(self) -> bytes:
        """All bytes behind the finished request; the connection no longer speaks HTTP."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        return rest

    def next_head(self) -> RequestHead | None:
        """The next request head, or None when more bytes are needed."""
        assert self._state in (_HEAD, _DONE)
        self._state = _HEAD
        buffer = self._buffer
        while self._scanned == 0 and buffer.startswith(b"\r\n"):  # RFC 9112 §2.2: a robust server skips them
            self._blank += 1
            if self._blank > MAX_BLANK_LINES:
                raise ProtocolError(400, "too many blank lines before the request")
            del buffer[:2]
        if not buffer or buffer == b"\r":  # the second may be half of a blank line
            return None
        # Something that is not HTTP at all (a TLS hello, garbage) is answered at once, not after a time-out.
        if self._scanned == 0 and buffer[0] not in _TOKEN_START:
            raise ProtocolError(400, "malformed HTTP request")
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
        if end < 0:
            self._scanned = len(buffer)
            if self._scanned > MAX_HEAD:
                raise ProtocolError(431, "request header fields too large")
            return None
        if end > MAX_HEAD:
            raise ProtocolError(431, "request header fields too large")
        head = bytes(buffer[:end])
        del buffer[: end + 4]
        self._scanned = self._blank = 0
        parsed = _parse_head(head)
        if parsed.chunked:
            self._state = _CHUNK_SIZE
        elif parsed.content_length:
            self._state, self._left = _FIXED, parsed.content_length
        else:
            self._state = _DONE
        return parsed

    def next_data(self) -> bytes | None:
        """The next piece of the body; ``b""`` at its end, None when more bytes are needed."""
        while True:
            state = self._state
            if state == _DONE:
                return b""
            if state in (_FIXED, _CHUNK_DATA):
                buffer = self._buffer
                if not buffer:
                    return None
                if len(buffer) > self._left:
                    with memoryview(buffer) as view:
                        data = bytes(view[: self._left])
                else:
                    data = bytes(buffer)
                del buffer[: len(data)]
                self._left -= len(data)
                if not self._left:
                    self._state = _DONE if state == _FIXED else _CHUNK_END
                return data
            if not self._advance_chunk(state):
                return None

    def _advance_chunk(self, state: int) -> bool:
        """Step over chunk framing; False when more bytes are needed."""
        if state == _CHUNK_END:
            if not self._buffer.startswith(b"\r\n"):
                if len(self._buffer) >= 2 or (self._buffer and self._buffer[0] != 0x0D):
                    raise ProtocolError(400, "malformed chunked encoding")
                return False
            del self._buffer[:2]
            self._state = _CHUNK_SIZE
            return True
        line = self._take_line(MAX_CHUNK_LINE if state == _CHUNK_SIZE else self._left)
        if line is None:
            return False
        if state == _CHUNK_SIZE:
            match = _CHUNK_LINE.fullmatch(line)
            if match is None:
                raise ProtocolError(400, "invalid chunk size")
            self._left = int(match[1], 16)
            if self._left:
                self._state = _CHUNK_DATA
            else:
                self._state, self._left = _TRAILERS, MAX_TRAILERS
        elif not line:
            self._state = _DONE
        else:  # Trailer fields are checked and dropped: nothing in the API uses them, and merging them is a known hole.
            if _HEADERS.fullmatch(line) is None:
                raise ProtocolError(400, "malformed trailer")
            self._left -= len(line)
        return True

    def _take_line(self, limit: int) -> bytes | None:
        end = self._buffer.find(b"\n", 0, limit + 2)
        if end < 0:
            if len(self._buffer) > limit:
                raise ProtocolError(400, "chunk header or trailer too long")
            return None
        if end == 0 or self._buffer[end - 1] != 0x0D:
            raise ProtocolError(400, "malformed chunked encoding")
        line = bytes(self._buffer[: end - 1])
        del self._buffer[: end + 1]
        return line


def _parse_head(head: bytes) -> RequestHead:
    line, _, block = head.partition(b"\r\n")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise ProtocolError(400, "malformed HTTP request line")
    method, target, major, minor = match.groups()
    version = (major[0] - 48, minor[0] - 48)
    if version not in ((1, 1), (1, 0)):
        raise ProtocolError(505, "unsupported protocol version")
    if _HEADERS.fullmatch(block) is None or block.endswith(b"\r\n"):
        raise ProtocolError(400, "malformed HTTP header")
    fields = _parse_fields(block)
    chunked, length = _framing(fields, version)
    host = fields.get("host")
    if host is None and version == (1, 1):
        raise ProtocolError(400, "missing required Host header")
    keep_alive = version == (1, 1)
    if "connection" in fields:
        options = [option.strip() for option in fields["connection"].lower().split(",")]
        keep_alive = "close" not in options and (keep_alive or "keep-alive" in options)
    expect = fields.get("expect")
    if expect is not None and expect.lower() != "100-continue":
        raise ProtocolError(417, "unsupported expectation")
    return RequestHead(
        method.decode("latin-1"),
        target.decode("latin-1"),
        version,
        Headers(fields),
        length,
        chunked,
        keep_alive,
        expect is not None and version == (1, 1),
    )


def _parse_fields(block: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    if not block:
        return fields
    lines = block.decode("latin-1").split("\r\n")
    if len(lines) > MAX_HEADERS:
        raise ProtocolError(431, "too many header fields")
    for line in lines:
        name, _, value = line.partition(":")
        name = name.lower()
        value = value.strip(" \t")
        if name in fields:
            if name in ("host", "content-length", "transfer-encoding"):
                raise ProtocolError(400, f"repeated {name} header")
            value = f"{fields[name]}, {value}"
        fields[name] = value
    return fields


def _framing(fields: dict[str, str], version: tuple[int, int]) -> tuple[bool, int | None]:
    """(chunked, content length): the one reading of the message's length."""
    coding = fields.get("transfer-encoding")
    length = fields.get("content-length")
    if coding is not None:
        if length is not None:
            raise ProtocolError(400, "both Transfer-Encoding and Content-Length are given")
        if version == (1, 0):
            raise ProtocolError(400, "Transfer-Encoding in an HTTP/1.0 request")
        if coding.lower() != "chunked":
            raise ProtocolError(501, "unsupported transfer encoding")
        return True, None
    if length is None:
        return False, None
    if _LENGTH.fullmatch(length) is None:
        raise ProtocolError(400, "bad Content-Length")
    return False, int(length)
