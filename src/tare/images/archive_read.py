"""An image archive that somebody sends us, made accessible by name: hostile until each digest is verified.

The stream (plain, gzip, zstd, bzip2 or xz) is unpacked into one unlinked scratch file, and only a table of names, offsets and sizes is
held. Nothing of it ever becomes a path: a name is a key of the table, a link is a second key. So there is nothing to traverse and nothing
to clean up. Documents are read with a cap, layers as streams. Blocking; used in worker threads.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path

from tare.distribution.decompress import decompress
from tare.errors import Corrupt, InvalidArgument, ResourceExhausted
from tare.oci.digest import Digest
from tare.oci.image import CONFIG_LIMIT
from tare.store.tar.entry import Entry, Kind, Limits
from tare.store.tar.reader import Parser

CHUNK = 1 << 20
LIMITS = Limits(entries=100_000, metadata=32 << 20)
_LINK_DEPTH = 8


class Archive:
    """One received archive. ``close`` frees its disk space."""

    def __init__(self, scratch: Path) -> None:
        self._file = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        scratch.unlink()
        self._files: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}

    @classmethod
    def receive(cls, source: Iterable[bytes], scratch: Path) -> Archive:
        """Take a whole archive; ``scratch`` is a file name on a disk with room for it."""
        archive = cls(scratch)
        try:
            parser = Parser(LIMITS, bodies=False)
            for chunk in decompress(source, "image archive"):
                archive._write(chunk)
                for entry in parser.feed(chunk):
                    if isinstance(entry, Entry):
                        archive._add(entry)
            parser.close()
        except BaseException:
            archive.close()
            raise
        return archive

    def close(self) -> None:
        """Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def size(self, name: str) -> int:
        return self._need(name)[1]

    def read(self, name: str, limit: int = CONFIG_LIMIT) -> bytes:
        """A document whole; ``InvalidArgument`` when it is missing or over ``limit`` bytes."""
        _, size = self._need(name)
        if size > limit:
            raise InvalidArgument(f"invalid archive: {name} has {size} bytes, more than {limit}")
        return b"".join(self.chunks(name))

    def blob(self, digest: Digest, limit: int = CONFIG_LIMIT) -> bytes:
        """A document of an OCI layout, verified."""
        raw = self.read(blob_name(digest), limit)
        if Digest.of(raw, digest.algorithm) != digest:
            raise Corrupt(f"invalid archive: {blob_name(digest)} does not match its digest")
        return raw

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's content."""
        offset, left = self._need(name)
        while left:
            chunk = os.pread(self._file, min(CHUNK, left), offset)
            if not chunk:
                raise Corrupt(f"invalid archive: {name} is cut off")
            offset += len(chunk)
            left -= len(chunk)
            yield chunk

    def _write(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise ResourceExhausted(f"cannot take the image archive in: {(error.strerror or 'write failed').lower()}") from None

    def _add(self, entry: Entry) -> None:
        name = _key(entry.name)
        self._files.pop(name, None)
        self._links.pop(name, None)
        if entry.kind is Kind.FILE:
            if entry.sparse is not None:
                raise Corrupt(f"invalid archive: {name} is sparse")
            self._files[name] = (entry.offset, entry.stored)
        elif entry.kind is Kind.LINK:
            self._links[name] = _key(entry.linkname)
        elif entry.kind is Kind.SYMLINK:
            self._links[name] = _key(posixpath.dirname(name).encode("utf-8", "surrogateescape") + b"/" + entry.linkname)
        elif entry.kind is not Kind.DIRECTORY:
            raise Corrupt(f"invalid archive: {name} is a {entry.kind.value}")

    def _find(self, name: str) -> tuple[int, int] | None:
        key = posixpath.normpath(name)
        for _ in range(_LINK_DEPTH):
            if key in self._files:
                return self._files[key]
            if key not in self._links:
                return None
            key = self._links[key]
        return None

    def _need(self, name: str) -> tuple[int, int]:
        found = self._find(name)
        if found is None:
            raise InvalidArgument(f"invalid archive: does not contain a {name}")
        return found


def blob_name(digest: Digest) -> str:
    """Where an OCI layout has a blob."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _key(name: bytes) -> str:
    key = posixpath.normpath(name.decode("utf-8", "surrogateescape").lstrip("/") or ".")
    if key == ".." or key.startswith("../"):
        raise Corrupt(f"invalid archive: {key!r} leads out of it")
    return key
