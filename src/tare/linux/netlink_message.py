"""The netlink wire format: headers, attributes and acknowledgements, as pure functions on bytes.

A netlink datagram is a sequence of messages, each padded to 4 bytes:

    nlmsghdr   u32 length | u16 type | u16 flags | u32 sequence | u32 port
    payload    a fixed struct of the family (ifinfomsg, ifaddrmsg, rtmsg), padded
    nlattr*    u16 length (header included, padding not) | u16 type | value, padded

Nested attributes are attributes whose value is a run of attributes; bits 14 and 15 of the type are flags and not part
of it.

Requests carry ``NLM_F_ACK``; the kernel answers with ``NLMSG_ERROR`` (errno 0: success). With ``NETLINK_EXT_ACK``
switched on the answer may carry a sentence that says what was wrong.

Followed: netlink(7), rtnetlink(7), linux/netlink.h. Everything is in host byte order, except where a family says
otherwise.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
ERRNO = struct.Struct("=i")

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP_INTR = 0x010
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

NLMSGERR_ATTR_MSG = 1

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF


class Message(NamedTuple):
    """One received netlink message; ``payload`` is everything behind the header."""

    type: int
    flags: int
    sequence: int
    payload: bytes


def align(length: int) -> int:
    """The length rounded up to netlink's 4 bytes."""
    return (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute with its padding."""
    length = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(length, kind) + value + b"\0" * (align(length) - length)


def attribute_u8(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=B", value))


def attribute_u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def attribute_text(kind: int, value: str) -> bytes:
    """A zero-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute that contains attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(inner))


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """One whole message. The port is 0: the kernel fills in the sender's."""
    return HEADER.pack(HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def messages(datagram: bytes) -> Iterator[Message]:
    """The messages of one received datagram.

    Raises ValueError for a datagram that is not well formed; the kernel never sends one.
    """
    offset = 0
    while offset + HEADER.size <= len(datagram):
        length, kind, flags, sequence, _port = HEADER.unpack_from(datagram, offset)
        if length < HEADER.size or offset + length > len(datagram):
            raise ValueError(f"netlink message of {length} bytes at offset {offset} of {len(datagram)}")
        yield Message(kind, flags, sequence, datagram[offset + HEADER.size : offset + length])
        offset += align(length)


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes from ``offset`` on, by type. Where a type repeats, the last one counts (as in the kernel)."""
    found: dict[int, bytes] = {}
    while offset + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < ATTRIBUTE.size or offset + length > len(data):
            raise ValueError(f"netlink attribute of {length} bytes at offset {offset} of {len(data)}")
        found[kind & NLA_TYPE_MASK] = data[offset + ATTRIBUTE.size : offset + length]
        offset += align(length)
    return found


def text(value: bytes) -> str:
    """A string attribute's value without its terminator."""
    return value.split(b"\0", 1)[0].decode(errors="replace")


def u32(value: bytes) -> int:
    """A 32-bit number in host byte order."""
    return int.from_bytes(value[:4], sys.byteorder)


def acknowledgement(answer: Message) -> tuple[int, str]:
    """Errno (0: success) and the kernel's own explanation (may be empty) of an ``NLMSG_ERROR`` or ``NLMSG_DONE``
    message."""
    if len(answer.payload) < ERRNO.size:
        return 0, ""
    (negative,) = ERRNO.unpack_from(answer.payload)
    if not answer.flags & NLM_F_ACK_TLVS:
        return -negative, ""
    offset = ERRNO.size
    if answer.type == NLMSG_ERROR:
        # The request's header follows, and unless the answer is capped its payload too.
        (request_length,) = struct.unpack_from("=I", answer.payload, offset)
        offset += HEADER.size if answer.flags & NLM_F_CAPPED else align(request_length)
    return -negative, text(attributes(answer.payload, offset).get(NLMSGERR_ATTR_MSG, b""))
