"""The ``local`` log: compact, exact and fast. Output is stored as it came, in records of many lines.

    record:  length of data (4 bytes) | stream 1 or 2 | flags | 2 zero bytes | time in ns (8 bytes) | data | length of data (4 bytes)

Numbers are little-endian. ``data`` are complete lines with their newlines, or (flag 1) a piece of a line that goes on in the next record of
its stream. The length stands at both ends, so that the file can be read backwards for its tail. Files are rotated and compressed
by ``runtime.logfile``; the reader is ``containers.logformats``.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from typing import Any

from tare.runtime.logfile import LineLog, LogFile

HEAD = struct.Struct("<IBBxxQ")
TAIL = struct.Struct("<I")
PARTIAL = 1
STREAMS = {"stdout": 1, "stderr": 2}


class LocalLog(LineLog):
    """The log of one container in our own format."""

    def __init__(self, file: LogFile, resting: Mapping[str, Any] | None = None) -> None:
        super().__init__(resting)
        self.file = file

    def rest(self) -> dict[str, Any]:
        """All that another worker needs to go on."""
        return super().rest() | self.file.rest()

    def position(self) -> tuple[int, int]:
        """(inode, size) of the present file: all that is in the log lies before it."""
        return self.file.position()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self.file.close()

    def _write_records(self, stream: str, lines: bytes, partial: list[bytes], now: int) -> None:
        self.write_records(stream, lines, partial, now or time.time_ns())

    def write_records(self, stream: str, lines: bytes, partial: list[bytes], now: int) -> None:
        """Write lines that were cut already."""
        number = STREAMS[stream]
        block = record(number, 0, now, lines) if lines else b""
        for piece in partial:
            block += record(number, PARTIAL, now, piece)
        if len(block) > self.file.room() and not self.file.empty:
            self.file.rotate()
        self.file.put(block)


def record(stream: int, flags: int, now: int, data: bytes) -> bytes:
    """One record."""
    return HEAD.pack(len(data), stream, flags, now) + data + TAIL.pack(len(data))
