"""An incremental tar parser that does no input or output: feed it chunks of any size, get entries and bodies.

Theory. A tar is a sequence of 512-byte blocks: a header, its body padded to a block, the next header. Extension headers (PAX ``x``, GNU
``L`` and ``K``) are entries whose body is about the *next* header. The parser is a machine with three things to want: *collect* N bytes
and hand them to a handler (headers, extension bodies, sparse maps), *deliver* a body (passed on as memoryviews of the caller's chunk,
never copied), *skip* padding. Bodies are stepped over arithmetically, so the cost of a stream is a cost per entry and per chunk.

              ┌────────────── padding ◄───────────────┐
              ▼                                       │
    ──► header block ──► [extension body] ──► … ──► entry ──► body
              │
              └─ two zero blocks ──► end (everything after it is ignored, as by GNU tar and Go)

Dialects: v7, ustar (prefix), star, GNU (long names, base-256, old sparse), PAX (path, linkpath, size, uid, gid, mtime, SCHILY.xattr.*, GNU
sparse 0.0, 0.1 and 1.0). Global PAX headers are ignored, as by Docker and containerd: they would make an entry's meaning depend on
another's. Every malformed or oversized input raises ``Corrupt`` naming the place; a parser that has raised is dead.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from tare.errors import Corrupt, InvalidArgument
from tare.store.tar import numbers
from tare.store.tar.entry import BLOCK, DEFAULT_LIMITS, Entry, Kind, Limits

_UNPACK = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s").unpack
_ZERO = bytes(BLOCK)
_KINDS = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"S": Kind.FILE,
    b"1": Kind.LINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
_XATTR = b"SCHILY.xattr."
_MAX_ID = 0xFFFFFFFE
_MAX_SIZE = (1 << 63) - 1
_MAX_TIME = (1 << 62) * 1_000_000_000


class Parser:
    """Turns the bytes of a tar into entries.

    ``feed`` yields each ``Entry`` when its header is complete and then, if ``bodies``, the parts of its body as memoryviews of the chunk
    (valid as long as the caller keeps the chunk). Consume each ``feed`` to its end; then call ``close``.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, *, bodies: bool = True) -> None:
        self.position = 0
        """Bytes fed so far."""
        self.entries = 0
        """Entries yielded so far."""
        self._limits = limits
        self._bodies = bodies
        self._collected = bytearray()
        self._want = BLOCK
        self._handler: Callable[[bytes, int], Entry | None] = self._header
        self._body = 0
        self._padding = 0
        self._skip = 0
        self._zeros = 0
        self._ended = False
        self._metadata = 0
        self._at = 0
        self._clear_extensions()

    def _clear_extensions(self) -> None:
        self._pax: dict[bytes, bytes] | None = None
        self._long_name: bytes | None = None
        self._long_link: bytes | None = None
        self._entry: Entry | None = None

    @property
    def ended(self) -> bool:
        """Whether the end-of-archive mark was seen."""
        return self._ended

    def feed(self, chunk: bytes | bytearray | memoryview) -> Iterator[Entry | memoryview]:
        """Parse the next part of the stream."""
        view = memoryview(chunk)
        end = len(view)
        base = self.position
        self.position = base + end
        if self.position > self._limits.total:
            raise InvalidArgument(f"archive is larger than the limit of {self._limits.total} bytes")
        at = 0
        while at < end:
            if self._skip:
                step = min(self._skip, end - at)
                self._skip -= step
                at += step
            elif self._body:
                step = min(self._body, end - at)
                self._body -= step
                if self._bodies:
                    yield view[at : at + step]
                at += step
                if not self._body:
                    self._skip = self._padding
            elif self._ended:
                return
            else:
                if not self._collected and end - at >= self._want:
                    block = bytes(view[at : at + self._want])
                    at += self._want
                else:
                    take = min(self._want - len(self._collected), end - at)
                    self._collected += view[at : at + take]
                    at += take
                    if len(self._collected) < self._want:
                        return
                    block = bytes(self._collected)
                    self._collected.clear()
                entry = self._handle(block, base + at)
                if entry is not None:
                    yield entry

    def close(self) -> None:
        """Declare the end of the stream. A missing end mark or missing final padding is accepted, as everywhere; a cut entry is not."""
        started = self._collected or self._body or self._pax is not None or self._long_name is not None or self._long_link is not None
        if not self._ended and (started or self._entry is not None):
            raise Corrupt(f"archive is truncated after {self.position} bytes")

    def _handle(self, block: bytes, after: int) -> Entry | None:
        try:
            return self._handler(block, after)
        except ValueError as error:
            raise Corrupt(f"invalid tar header at byte {self._at}: {error}") from None

    def _collect(self, want: int, handler: Callable[[bytes, int], Entry | None]) -> None:
        self._want = want
        self._handler = handler

    def _header(self, block: bytes, after: int) -> Entry | None:
        self._at = after - BLOCK
        if block[0] == 0 and block == _ZERO:
            self._zeros += 1
            self._ended = self._zeros == 2
            return None
        fields = _UNPACK(block)
        if not numbers.checksum_matches(block, numbers.number(fields[6])):
            raise ValueError("checksum does not match")
        if self._zeros:
            raise ValueError("data after a zero block")
        kind = fields[7]
        if kind in b"xLKgX":
            self._extension(kind, numbers.number(fields[4]))
            return None
        if kind == b"V":
            self._step_over(numbers.number(fields[4]))
            return None
        entry = self._read(fields, kind)
        if kind == b"S":
            return self._old_sparse(entry, block, after)
        return self._finish(entry, after)

    def _extension(self, kind: bytes, size: int) -> None:
        if not 0 <= size <= self._limits.extension:
            raise ValueError(f"extension header of {size} bytes is over the limit of {self._limits.extension}")
        if kind == b"g":
            self._step_over(size)
            return
        padded = -(-size // BLOCK) * BLOCK
        if not padded:
            return

        def collected(data: bytes, _after: int) -> None:
            data = data[:size]
            if kind == b"L":
                self._long_name = data.partition(b"\0")[0]
            elif kind == b"K":
                self._long_link = data.partition(b"\0")[0]
            else:
                self._pax = numbers.pax_records(data)
            self._collect(BLOCK, self._header)

        self._collect(padded, collected)

    def _step_over(self, size: int) -> None:
        if not 0 <= size <= _MAX_SIZE:
            raise ValueError("size is out of range")
        self._skip = -(-size // BLOCK) * BLOCK

    def _read(self, fields: tuple[bytes, ...], kind: bytes) -> Entry:
        """The entry as its own header has it, then as the extension headers before it correct it."""
        known = _KINDS.get(kind)
        if known is None:
            raise ValueError(f"unknown entry type {kind!r}")
        name = fields[0].partition(b"\0")[0]
        magic = fields[9]
        if magic[:6] == b"ustar\0" and fields[14][0]:
            prefix = fields[14][:131] if fields[15][8:] == b"tar\0" else fields[14]
            name = prefix.partition(b"\0")[0] + b"/" + name
        number = numbers.number
        entry = Entry(
            name if self._long_name is None else self._long_name,
            known,
            number(fields[1]) & 0o7777,
            number(fields[2]),
            number(fields[3]),
            number(fields[4]),
            number(fields[5]) * 1_000_000_000,
            fields[8].partition(b"\0")[0] if self._long_link is None else self._long_link,
        )
        if magic[:5] == b"ustar":
            entry.uname = fields[10].partition(b"\0")[0]
            entry.gname = fields[11].partition(b"\0")[0]
        if known is Kind.CHARACTER or known is Kind.BLOCK:
            entry.major, entry.minor = number(fields[12]), number(fields[13])
        if self._pax:
            self._apply(entry, self._pax)
        if kind == b"\0" and entry.name.endswith(b"/"):
            entry.kind = Kind.DIRECTORY
        if not 0 <= entry.uid <= _MAX_ID or not 0 <= entry.gid <= _MAX_ID:
            raise ValueError(f"owner {entry.uid}:{entry.gid} is out of range")
        if not 0 <= entry.size <= _MAX_SIZE:
            raise ValueError("size is out of range")
        if abs(entry.mtime_ns) > _MAX_TIME:
            raise ValueError("time is out of range")
        return entry

    def _apply(self, entry: Entry, pax: dict[bytes, bytes]) -> None:
        for key, value in pax.items():
            if key.startswith(_XATTR):
                entry.xattrs[key[len(_XATTR) :]] = value
            elif not value:
                continue
            elif key == b"path":
                entry.name = value
            elif key == b"linkpath":
                entry.linkname = value
            elif key == b"size":
                entry.size = numbers.decimal(value)
            elif key == b"uid":
                entry.uid = numbers.decimal(value)
            elif key == b"gid":
                entry.gid = numbers.decimal(value)
            elif key == b"mtime":
                entry.mtime_ns = numbers.time_ns(value)
            elif key == b"uname":
                entry.uname = value
            elif key == b"gname":
                entry.gname = value
            elif key == b"GNU.sparse.name":
                entry.name = value

    def _finish(self, entry: Entry, after: int) -> Entry | None:
        """Deliver the entry, or first collect the sparse map at the beginning of its body."""
        if entry.kind is not Kind.FILE:
            entry.size = 0
        pax = self._pax
        if pax and entry.kind is Kind.FILE and b"GNU.sparse.major" in pax:
            self._new_sparse(entry, pax)
            return None
        stored = entry.size
        if pax and entry.kind is Kind.FILE and b"GNU.sparse.map" in pax:
            entry.size = numbers.decimal(pax.get(b"GNU.sparse.size", b"%d" % stored))
            flat = [numbers.decimal(part) for part in pax[b"GNU.sparse.map"].split(b",")]
            entry.sparse = numbers.sparse_regions(flat, stored, entry.size)
        return self._deliver(entry, stored, after)

    def _deliver(self, entry: Entry, stored: int, after: int) -> Entry:
        if b"\0" in entry.name or b"\0" in entry.linkname:
            raise ValueError("NUL in a name")
        limits = self._limits
        if len(entry.name) > limits.path or len(entry.linkname) > limits.path:
            raise ValueError(f"path is longer than {limits.path} bytes")
        self._metadata += len(entry.name) + len(entry.linkname) + sum(map(len, entry.xattrs)) + sum(map(len, entry.xattrs.values()))
        self.entries += 1
        if self.entries > limits.entries or self._metadata > limits.metadata:
            raise InvalidArgument(f"archive is over the limit of {limits.entries} entries or {limits.metadata} bytes of names")
        entry.offset, entry.stored = after, stored
        self._body = stored
        self._padding = -stored % BLOCK
        self._clear_extensions()
        self._collect(BLOCK, self._header)
        return entry

    def _old_sparse(self, entry: Entry, block: bytes, after: int) -> Entry | None:
        """GNU's first sparse format: four regions in the header itself, more in continuation blocks, then the body."""
        real = numbers.number(block[483:495])
        if not 0 <= real <= _MAX_SIZE:
            raise ValueError("size is out of range")
        stored = entry.size
        entry.size = real
        flat: list[int] = []

        def regions(data: bytes, count: int) -> None:
            for start in range(0, 24 * count, 24):
                if data[start + 12] == 0:
                    break
                flat.extend((numbers.number(data[start : start + 12]), numbers.number(data[start + 12 : start + 24])))
            if len(flat) * 12 > self._limits.extension:
                raise ValueError("sparse map is too long")

        def continued(data: bytes, end: int) -> Entry | None:
            regions(data, 21)
            return None if data[504] else done(end)

        def done(end: int) -> Entry:
            entry.sparse = numbers.sparse_regions(flat, stored, real)
            return self._deliver(entry, stored, end)

        regions(block[386:482], 4)
        if not block[482]:
            return done(after)
        self._entry = entry
        self._collect(BLOCK, continued)
        return None

    def _new_sparse(self, entry: Entry, pax: dict[bytes, bytes]) -> None:
        """GNU sparse format 1.0: the body begins with the map (decimals on lines, padded to a block)."""
        body = entry.size
        entry.size = numbers.decimal(pax.get(b"GNU.sparse.realsize", b""))
        text = bytearray()
        lines = 0

        def mapped(data: bytes, end: int) -> Entry | None:
            nonlocal lines
            text.extend(data)
            lines += data.count(b"\n")
            if len(text) > min(body, self._limits.extension):
                raise ValueError("sparse map does not fit the entry")
            if not lines:
                return None
            count = numbers.decimal(bytes(text[: text.index(b"\n")]))
            if lines < 1 + 2 * count:
                return None
            stored = body - len(text)
            flat = [numbers.decimal(line) for line in bytes(text).split(b"\n")[1 : 1 + 2 * count]]
            entry.sparse = numbers.sparse_regions(flat, stored, entry.size)
            return self._deliver(entry, stored, end)

        self._entry = entry
        self._collect(BLOCK, mapped)
