"""From a compressed stream to its plain bytes, in bounded memory, with a cap against decompression bombs.

The compression is told by the magic number, never by the media type. ``decompress`` is a generator over a generator: it
pulls chunks of the compressed stream and yields plain chunks of at most about ``CHUNK`` bytes, so however well something
is compressed, only one chunk of it exists at a time. It blocks: run it in a worker thread. isal and zstandard release
the GIL while they work.

Rules for the end of a stream:
- gzip: members may follow one another; zero padding after the last is ignored; anything else is refused; an end in the
  middle of a member is refused.
- zstd: frames and skippable frames may follow one another; anything else is refused.
- bzip2 and xz (``docker import`` takes them) as gzip, without padding rules of their own.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tare.errors import Corrupt

CHUNK = 1 << 20
BOMB_FLOOR = 8 << 30
"""Bytes that any layer may unpack to, however small it came."""
BOMB_RATIO = 100
"""Beyond the floor, how many times its compressed size a layer may unpack to."""
_ZSTD_WINDOW = 128 << 20


def decompress(source: Iterable[bytes], what: str, found: Callable[[str], None] | None = None) -> Iterator[bytes]:
    """The plain bytes of ``source``; ``what`` names it in errors, ``found`` learns the compression's name.

    Raises ``Corrupt`` for broken data and for a decompression bomb.
    """
    feed = _Feed(source)
    name = sniff(feed.peek(6))
    if found is not None:
        found(name)
    produced = 0
    try:
        for chunk in _DECODERS[name](feed):
            produced += len(chunk)
            if produced > BOMB_FLOOR and produced > BOMB_RATIO * feed.consumed:
                raise Corrupt(f"{what} unpacks to more than {produced} bytes from {feed.consumed}: refused as decompression bomb")
            yield chunk
    except _decoder_errors() as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the source's trouble, not the data's (bz2 reports bad data as a bare OSError)
        raise Corrupt(f"{what}: corrupt {name} data: {error}") from None


def sniff(head: bytes) -> str:
    """The compression of a stream that starts with ``head``: gzip, zstd, bzip2, xz or none."""
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    if head[:4] == b"\x28\xb5\x2f\xfd" or (len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return "zstd"
    if head[:3] == b"BZh":
        return "bzip2"
    if head[:6] == b"\xfd7zXZ\x00":
        return "xz"
    return "none"


class _Feed:
    """The compressed stream, with a look ahead and a count."""

    def __init__(self, source: Iterable[bytes]) -> None:
        self._source = iter(source)
        self._held = b""
        self.consumed = 0

    def peek(self, count: int) -> bytes:
        while len(self._held) < count:
            chunk = next(self._source, b"")
            if not chunk:
                break
            self._held += chunk
        return self._held[:count]

    def next(self) -> bytes:
        """The next chunk, empty at the end."""
        chunk, self._held = self._held, b""
        while not chunk:
            try:
                chunk = next(self._source)
            except StopIteration:
                return b""
        self.consumed += len(chunk)
        return chunk

    def push_back(self, data: bytes) -> None:
        self._held = data + self._held
        self.consumed -= len(data)

    def read(self, size: int = -1) -> bytes:
        """For decoders that want a file: at most ``size`` bytes, empty at the end."""
        chunk = self.next()
        if 0 <= size < len(chunk):
            self.push_back(chunk[size:])
            chunk = chunk[:size]
        return chunk


def _plain(feed: _Feed) -> Iterator[bytes]:
    while chunk := feed.next():
        yield chunk


def _gzip(feed: _Feed) -> Iterator[bytes]:
    from isal import isal_zlib

    while True:
        decoder: Any = isal_zlib.decompressobj(31)
        while not decoder.eof:
            data = feed.next()
            if not data:
                raise EOFError("unexpected end of data")
            while data and not decoder.eof:
                if out := decoder.decompress(data, CHUNK):
                    yield out
                data = decoder.unconsumed_tail
            while not decoder.eof and (out := decoder.decompress(b"", CHUNK)):
                yield out
        feed.push_back(decoder.unused_data)
        if not _next_member(feed):
            return


def _next_member(feed: _Feed) -> bool:
    """Skip padding; whether another gzip member follows."""
    while data := feed.next():
        rest = data.lstrip(b"\0")
        if rest:
            feed.push_back(rest)
            if len(rest) == len(data) and feed.peek(2) == b"\x1f\x8b":
                return True
            raise ValueError("trailing garbage after the compressed data")
    return False


def _zstd(feed: _Feed) -> Iterator[bytes]:
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    source: Any = feed
    with decoder.stream_reader(source, read_size=CHUNK, read_across_frames=True) as reader:
        while chunk := reader.read(CHUNK):
            yield chunk


def _stdlib(make: Callable[[], Any]) -> Callable[[_Feed], Iterator[bytes]]:
    """bz2 and lzma share one decoder interface."""

    def decode(feed: _Feed) -> Iterator[bytes]:
        while feed.peek(1):
            decoder = make()
            while not decoder.eof:
                data = feed.next() if decoder.needs_input else b""
                if decoder.needs_input and not data:
                    raise EOFError("unexpected end of data")
                if out := decoder.decompress(data, CHUNK):
                    yield out
            feed.push_back(decoder.unused_data)

    return decode


def _decoder_errors() -> tuple[type[Exception], ...]:
    """What the decoders raise for bad data; asked for only when something was raised."""
    import zstandard
    from isal import isal_zlib

    isal_error: Any = isal_zlib.error
    return (ValueError, EOFError, OSError, lzma.LZMAError, isal_error, zstandard.ZstdError)


_DECODERS: dict[str, Callable[[_Feed], Iterator[bytes]]] = {
    "none": _plain,
    "gzip": _gzip,
    "zstd": _zstd,
    "bzip2": _stdlib(bz2.BZ2Decompressor),
    "xz": _stdlib(lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=256 << 20)),
}
