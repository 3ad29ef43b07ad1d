"""DNS messages as bytes: what a resolver between clients and servers has to read and write. Pure, standard library only.

Only the question and the times-to-live are ever taken apart; an answer of an upstream server is passed on as it came. Names are handled
as text in lower case without the last dot; a label that is no text stays distinct (``backslashreplace``).

Followed: RFC 1035 (messages, compression), RFC 2308 (how long a denial holds), RFC 6891 (the OPT record).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_PAIR = struct.Struct("!HH")

A, PTR, SOA, AAAA, OPT, ANY = 1, 12, 6, 28, 41, 255
IN = 1

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5

RESPONSE = 0x8000
OPCODE = 0x7800
TRUNCATED = 0x0200
RECURSION_DESIRED = 0x0100
RECURSION_AVAILABLE = 0x0080

PLAIN_UDP_SIZE = 512
MAX_UDP_SIZE = 1232
_MAX_LABELS = 128


class Malformed(ValueError):
    """Bytes that are no DNS message."""


@dataclass(frozen=True, slots=True)
class Query:
    """A client's question. ``question`` are its bytes, which an answer repeats exactly (clients compare the case)."""

    id: int
    flags: int
    name: str
    type: int
    klass: int
    question: bytes
    udp_size: int
    """How long an answer by UDP may be."""
    extended: bool
    """Whether the client sent an OPT record, so that the answer has one too."""
    dnssec: bool


def parse_query(data: bytes) -> Query:
    """A query with exactly one question. Raises ``Malformed``."""
    if len(data) < HEADER.size:
        raise Malformed("shorter than a header")
    number, flags, questions, answers, authorities, extras = HEADER.unpack_from(data)
    if flags & RESPONSE or questions != 1:
        raise Malformed("not a query with one question")
    name, end = read_name(data, HEADER.size)
    if end + 4 > len(data):
        raise Malformed("question cut off")
    kind, klass = _PAIR.unpack_from(data, end)
    end += 4
    size, extended, dnssec = PLAIN_UDP_SIZE, False, False
    offset = end
    for _ in range(min(answers + authorities + extras, 16)):
        _, offset = read_name(data, offset)
        if offset + _RECORD.size > len(data):
            raise Malformed("record cut off")
        record_type, record_class, ttl, length = _RECORD.unpack_from(data, offset)
        if record_type == OPT:
            size, extended, dnssec = max(PLAIN_UDP_SIZE, min(record_class, MAX_UDP_SIZE)), True, bool(ttl & 0x8000)
        offset += _RECORD.size + length
    return Query(number, flags, name, kind, klass, data[HEADER.size : end], size, extended, dnssec)


def read_name(data: bytes, offset: int) -> tuple[str, int]:
    """The name at ``offset`` in lower case, and where what follows it begins. Pointers only lead backwards, so this ends."""
    labels: list[str] = []
    end = -1
    limit = offset
    while True:
        if offset >= len(data):
            raise Malformed("name cut off")
        length = data[offset]
        if length >= 0xC0:
            if offset + 1 >= len(data):
                raise Malformed("pointer cut off")
            if end < 0:
                end = offset + 2
            offset = (length & 0x3F) << 8 | data[offset + 1]
            if offset >= limit:
                raise Malformed("pointer that does not lead backwards")
            limit = offset
        elif length >= 0x40:
            raise Malformed("unknown kind of label")
        elif not length:
            return ".".join(labels), end if end >= 0 else offset + 1
        else:
            label = data[offset + 1 : offset + 1 + length]
            if len(label) < length or len(labels) >= _MAX_LABELS:
                raise Malformed("label cut off, or too many of them")
            labels.append(label.lower().decode("ascii", "backslashreplace"))
            offset += 1 + length


def pack_name(name: str) -> bytes:
    """A name, uncompressed. Labels longer than 63 bytes, which no container's name has, are cut."""
    labels = (label.encode("ascii", "replace")[:63] for label in name.strip(".").split(".") if label)
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def answer(query: Query, records: Iterable[bytes] = (), *, code: int = NOERROR, ttl: int = 600, size: int = 65535) -> bytes:
    """The answer to a query: one record per data of ``records``, all of the type and name asked for. What exceeds ``size`` is left
    out whole, with the bit that makes a client ask again by TCP."""
    packed = [b"\xc0\x0c" + _RECORD.pack(query.type, IN, ttl, len(data)) + data for data in records]
    tail = b"\0" + _RECORD.pack(OPT, MAX_UDP_SIZE, 0, 0) if query.extended else b""
    flags = RESPONSE | query.flags & (OPCODE | RECURSION_DESIRED) | RECURSION_AVAILABLE | code
    body = b"".join(packed)
    if HEADER.size + len(query.question) + len(body) + len(tail) > size:
        packed, body, flags = [], b"", flags | TRUNCATED
    return HEADER.pack(query.id, flags, 1, len(packed), 0, 1 if tail else 0) + query.question + body + tail


def shortened(query: Query, data: bytes) -> bytes:
    """An answer as it may be sent by UDP: one that is too long becomes a hint to ask by TCP."""
    return data if len(data) <= query.udp_size else answer(query, [b"\0" * query.udp_size], size=query.udp_size)


def format_error(data: bytes) -> bytes:
    """What to say to bytes that are no query, or nothing where not even a number can be read or an answer would start a loop."""
    if len(data) < HEADER.size or data[2] & 0x80:
        return b""
    number, flags = struct.unpack_from("!HH", data)
    code = NOTIMP if flags & OPCODE else FORMERR
    return HEADER.pack(number, RESPONSE | flags & (OPCODE | RECURSION_DESIRED) | RECURSION_AVAILABLE | code, 0, 0, 0, 0)


def answers_to(data: bytes, number: bytes, question: bytes) -> bool:
    """Whether ``data`` is the answer to this very question (case of letters included: it makes forging harder)."""
    return len(data) >= HEADER.size and data[:2] == number and bool(data[2] & 0x80) and data[12 : 12 + len(question)] == question


def code_of(data: bytes) -> int:
    return data[3] & 0x0F


def is_truncated(data: bytes) -> bool:
    return bool(data[2] & 0x02)


def _records(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Section (0 answer, 1 authority, 2 additional), type, offset of the time-to-live, its value, offset of the data."""
    _, _, questions, *counts = HEADER.unpack_from(data)
    offset = HEADER.size
    for _ in range(questions):
        offset = read_name(data, offset)[1] + 4
    for section, count in enumerate(counts):
        for _ in range(count):
            _, offset = read_name(data, offset)
            if offset + _RECORD.size > len(data):
                raise Malformed("record cut off")
            kind, _, ttl, length = _RECORD.unpack_from(data, offset)
            yield section, kind, offset + 4, ttl, offset + _RECORD.size
            offset += _RECORD.size + length


def lifetime(data: bytes) -> tuple[int, tuple[int, ...]]:
    """For how many seconds an answer may be kept (0: not at all), and where its times-to-live stand. Denials hold as long as the SOA
    record of the zone says (RFC 2308), and not at all without one."""
    code = code_of(data)
    offsets: list[int] = []
    least: int | None = None
    negative = 0
    answered = False
    for section, kind, offset, ttl, start in _records(data):
        if kind == OPT:
            continue
        offsets.append(offset)
        ttl = 0 if ttl >= 1 << 31 else ttl
        least = ttl if least is None else min(least, ttl)
        answered = answered or section == 0
        if section == 1 and kind == SOA:
            _, after = read_name(data, start)
            _, after = read_name(data, after)
            if after + 20 <= len(data):
                negative = min(ttl, int.from_bytes(data[after + 16 : after + 20], "big"))
    if is_truncated(data) or code not in (NOERROR, NXDOMAIN):
        return 0, ()
    return ((least or 0) if answered and code == NOERROR else negative), tuple(offsets)


def aged(data: bytes, offsets: Iterable[int], seconds: int) -> bytes:
    """An answer as it is after some seconds: every time-to-live shorter by as much."""
    fresh = bytearray(data)
    for offset in offsets:
        left = max(0, int.from_bytes(fresh[offset : offset + 4], "big") - seconds)
        fresh[offset : offset + 4] = left.to_bytes(4, "big")
    return bytes(fresh)


def reverse_address(name: str) -> str:
    """The address that a name below in-addr.arpa or ip6.arpa stands for, or empty."""
    labels = name.split(".")
    if labels[-2:] == ["in-addr", "arpa"] and len(labels) == 6:
        return ".".join(reversed(labels[:4]))
    if labels[-2:] == ["ip6", "arpa"] and len(labels) == 34:
        digits = "".join(reversed(labels[:32]))
        return ":".join(digits[start : start + 4] for start in range(0, 32, 4))
    return ""
