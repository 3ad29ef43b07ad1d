"""What the files of a log hold: Docker's json-file records, and the records of our ``local`` driver.

A format cuts what was read into whole records (and the rest, which the next read completes), turns a record into lines, and
finds where the last lines of a file begin.
"""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol

import msgspec

from tare.runtime.jsonlog import rfc3339
from tare.runtime.locallog import HEAD, TAIL

STDOUT, STDERR = 1, 2
_TAIL_BLOCK = 64 * 1024


class Line(NamedTuple):
    stream: int
    data: bytes
    time: str
    attributes: dict[str, str] | None


class Format(Protocol):
    def split(self, data: bytes) -> tuple[list[bytes], bytes]: ...

    def lines(self, record: bytes) -> list[Line]: ...

    def tail(self, fd: int, count: int) -> tuple[int, int, int]: ...


class LogRecord(msgspec.Struct):
    """One record as json-file stores it."""

    log: str = ""
    stream: str = "stdout"
    time: str = ""
    attrs: dict[str, str] | None = None


_decoder = msgspec.json.Decoder(LogRecord)


class JsonFormat:
    """One JSON object a line, one line of output each."""

    def split(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Whole records, and the rest."""
        records = data.split(b"\n")
        return records, records.pop()

    def lines(self, record: bytes) -> list[Line]:
        """The record's line; none if it was torn by a full disk or a power cut: the rest of the log is still good."""
        try:
            found = _decoder.decode(record)
        except msgspec.MsgspecError:
            return []
        stream = STDERR if found.stream == "stderr" else STDOUT
        return [Line(stream, found.log.encode("utf-8", "surrogatepass"), found.time, found.attrs)]

    def tail(self, fd: int, count: int) -> tuple[int, int, int]:
        """Where the last ``count`` lines of a file begin, how many of them there are, and how many before them share their record."""
        position = os.fstat(fd).st_size
        if count <= 0 or position == 0:
            return position, 0, 0
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
            return position + at + 1, count, 0
        return 0, found + 1, 0


class LocalFormat:
    """Binary records of many lines (``runtime.locallog``)."""

    def split(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Whole records, and the rest."""
        records: list[bytes] = []
        at, total = 0, len(data)
        while total - at >= HEAD.size:
            end = at + HEAD.size + HEAD.unpack_from(data, at)[0] + TAIL.size
            if end > total:
                break
            records.append(data[at:end])
            at = end
        return records, data[at:]

    def lines(self, record: bytes) -> list[Line]:
        """The record's lines; they share its time."""
        _, stream, _, now = HEAD.unpack_from(record)
        payload, stamp = record[HEAD.size : -TAIL.size], rfc3339(now)
        if payload.find(b"\n", 0, -1) < 0:
            return [Line(stream, payload, stamp, None)]
        return [Line(stream, piece + b"\n", stamp, None) for piece in payload.removesuffix(b"\n").split(b"\n")]

    def tail(self, fd: int, count: int) -> tuple[int, int, int]:
        """As ``JsonFormat.tail``."""
        position, found = os.fstat(fd).st_size, 0
        while position >= HEAD.size + TAIL.size and found < count:
            length = TAIL.unpack(os.pread(fd, TAIL.size, position - TAIL.size))[0]
            start = position - TAIL.size - length - HEAD.size
            if start < 0:
                break  # torn: what follows can be read all the same
            found += max(1, os.pread(fd, length, start + HEAD.size).count(b"\n"))
            position = start
        return position, min(found, count), max(0, found - count) if count > 0 else 0


FORMATS: dict[str, Format] = {"json-file": JsonFormat(), "local": LocalFormat()}
