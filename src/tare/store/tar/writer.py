"""Tar entries as bytes: the exact opposite of the reader, in the dialect that every engine reads (ustar, with PAX where ustar ends).

The output depends on the entry alone (no clock, no host names, sorted keys), so the same tree gives the same digest. Bodies are the
caller's business: write ``header(entry)``, the body, ``padding(entry.size)``, and after the last entry ``END``.
"""

from __future__ import annotations

from tare.store.tar.entry import BLOCK, Entry, Kind

END = bytes(2 * BLOCK)
"""The end-of-archive mark."""

_TYPES = {
    Kind.FILE: b"0",
    Kind.LINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
_OCTAL_SIZE = 8**11
_OCTAL_ID = 8**7


def padding(size: int) -> bytes:
    """The zeros that follow a body of ``size`` bytes."""
    return bytes(-size % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    total = length + len(str(length))
    if len(str(total)) > len(str(length)):
        total = length + len(str(total))
    return b"%d %s=%s\n" % (total, key, value)


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """A name as ustar's name and prefix, or None when they cannot hold it."""
    if len(name) <= 100:
        return name, b""
    at = name.find(b"/", len(name) - 101)
    if 0 < at <= 155 and at + 1 < len(name):
        return name[at + 1 :], name[:at]
    return None


def _block(name: bytes, prefix: bytes, entry: Entry, type_: bytes, size: int, seconds: int, link: bytes) -> bytes:
    uid, gid = (number if number < _OCTAL_ID else 0 for number in (entry.uid, entry.gid))
    block = bytearray(
        name.ljust(100, b"\0")
        + b"%07o\0%07o\0%07o\0" % (entry.mode & 0o7777, uid, gid)
        + b"%011o\0%011o\0" % (size, seconds)
        + b"        "
        + type_
        + link.ljust(100, b"\0")
        + b"ustar\x0000"
        + entry.uname[:31].ljust(32, b"\0")
        + entry.gname[:31].ljust(32, b"\0")
        + b"%07o\0%07o\0" % (entry.major, entry.minor)
        + prefix.ljust(155, b"\0")
        + bytes(12)
    )
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def header(entry: Entry) -> bytes:
    """The header block of ``entry``, with a PAX extension before it when its values need one. Sparse maps are not written."""
    name = entry.name + b"/" if entry.kind is Kind.DIRECTORY and not entry.name.endswith(b"/") else entry.name
    size = entry.size if entry.kind is Kind.FILE else 0
    seconds, fraction = divmod(entry.mtime_ns, 1_000_000_000)
    pax: dict[bytes, bytes] = {b"SCHILY.xattr." + key: value for key, value in entry.xattrs.items()}
    split = _split(name)
    if split is None:
        pax[b"path"] = name
        split = name[:100], b""
    if len(entry.linkname) > 100:
        pax[b"linkpath"] = entry.linkname
    if size >= _OCTAL_SIZE:
        pax[b"size"] = b"%d" % size
    if fraction or not 0 <= seconds < _OCTAL_SIZE:
        pax[b"mtime"] = _time(entry.mtime_ns)
    if entry.uid >= _OCTAL_ID:
        pax[b"uid"] = b"%d" % entry.uid
    if entry.gid >= _OCTAL_ID:
        pax[b"gid"] = b"%d" % entry.gid
    main = _block(
        split[0],
        split[1],
        entry,
        _TYPES[entry.kind],
        size if size < _OCTAL_SIZE else 0,
        seconds if 0 <= seconds < _OCTAL_SIZE else 0,
        entry.linkname[:100],
    )
    if not pax:
        return main
    body = b"".join(_record(key, pax[key]) for key in sorted(pax))
    carrier = Entry(b"PaxHeaders.0/" + name.rstrip(b"/").rpartition(b"/")[2][:80], Kind.FILE, 0o644)
    return _block(carrier.name, b"", carrier, b"x", len(body), 0, b"") + body + padding(len(body)) + main


def _time(ns: int) -> bytes:
    sign, ns = (b"-", -ns) if ns < 0 else (b"", ns)
    return (sign + b"%d.%09d" % divmod(ns, 1_000_000_000)).rstrip(b"0").rstrip(b".")
