"""The scalar encodings inside tar headers: octal and base-256 numbers, PAX decimals and times, PAX records, sparse maps.

All of them are pure; a malformed value raises ``ValueError``, which the parser turns into ``tare.errors.Corrupt`` with the entry's place.
"""

from __future__ import annotations

import zlib

_ADLER_BASE = 65521


def number(raw: bytes) -> int:
    """A numeric header field: NUL- or space-padded octal, or base-256 (big-endian two's complement) when its top bit is set."""
    first = raw[0]
    if first & 0x80:
        value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
        if first & 0x40:
            value -= 1 << (8 * len(raw) - 1)
        return value
    text = raw.strip(b"\0 ")
    if b"\0" in text:
        text = text.partition(b"\0")[0].rstrip(b" ")
    if not text:
        return 0
    if not text.isdigit():
        raise ValueError("number is not octal")
    return int(text, 8)


def checksum_matches(block: bytes, stored: int) -> bool:
    """Whether a header block's checksum field (read as ``stored``) is right; signed sums of old Sun tars are accepted too.

    The sum of 512 bytes in Python costs more than all the rest of a header. Adler-32's low half is one plus the sum of the bytes,
    modulo 65521, at C speed; reducing both sides by that modulus keeps the check as good as the original.
    """
    low = zlib.adler32(block[156:], zlib.adler32(block[:148])) & 0xFFFF
    if (low + 8 * 0x20) % _ADLER_BASE == (stored + 1) % _ADLER_BASE and 0 <= stored <= 512 * 255:
        return True
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 8 * 0x20
    return signed == stored


def decimal(raw: bytes) -> int:
    """A non-negative decimal as PAX writes it."""
    if not raw.isdigit() or len(raw) > 20:
        raise ValueError("number is not decimal")
    return int(raw)


def time_ns(raw: bytes) -> int:
    """A PAX time (decimal seconds with an optional fraction and sign) in nanoseconds, exact, truncated towards minus infinity."""
    negative = raw.startswith(b"-")
    whole, dot, fraction = raw[1 if negative else 0 :].partition(b".")
    if not whole.isdigit() or len(whole) > 19 or (dot and fraction and not fraction.isdigit()):
        raise ValueError("time is not decimal")
    value = int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
    return -value if negative else value


def pax_records(data: bytes) -> dict[bytes, bytes]:
    """The ``length key=value\\n`` records of a PAX extended header, the last of a key winning.

    The pairs of GNU sparse format 0.0 repeat their keys; they are gathered, in order, under ``GNU.sparse.map``, which is how 0.1 says it.
    """
    records: dict[bytes, bytes] = {}
    regions: list[bytes] = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        if space < 0:
            if not data[position:].strip(b"\0"):
                break
            raise ValueError("malformed PAX record")
        end = position + decimal(data[position:space])
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= space + 2 or data[end - 1] != 0x0A or not equals or not key or b"\0" in key:
            raise ValueError("malformed PAX record")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (len(regions) % 2 == 0) != (key == b"GNU.sparse.offset"):
                raise ValueError("malformed sparse map")
            regions.append(value)
        else:
            records[key] = value
        position = end
    if regions:
        records[b"GNU.sparse.map"] = b",".join(regions)
    return records


def sparse_regions(numbers: list[int], stored: int, size: int) -> tuple[tuple[int, int], ...]:
    """The flat list of offsets and lengths as pairs, checked: ascending, disjoint, inside the file, together ``stored`` bytes long."""
    if len(numbers) % 2:
        raise ValueError("sparse map has an odd length")
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    end = total = 0
    for offset, length in pairs:
        if offset < end or length < 0:
            raise ValueError("sparse map is not in order")
        end = offset + length
        total += length
    if end > size or total != stored:
        raise ValueError("sparse map does not fit the file")
    return tuple((offset, length) for offset, length in pairs if length)
