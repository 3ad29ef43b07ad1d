"""How to write an extracted layer's tar again, byte for byte: the headers as they came, the bodies from the extracted files.

Extraction loses what a tar says beside its files: the dialect of its headers, the order of its entries, names said twice, bytes in the
padding. A recipe keeps exactly that. It lies beside the extracted files (form *directory*) as ``tar.recipe``, one zlib stream of records:

    kind 1  path length 4  offset 8  length 8  (little endian)
    0 RAW   path length 0, offset 0            then ``length`` bytes of the tar
    1 FILE                                     then the path below ``fs``; its bytes [offset, offset + length) come here in the tar

Bodies that no file of the finished tree holds (a later entry replaced them) are RAW. Whoever reads gets each byte hashed: when a file was
tampered with, the end of the stream is ``Corrupt`` instead of a layer that is another one.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path

from tare.errors import Corrupt
from tare.linux.constants import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS
from tare.linux.mount import openat2
from tare.oci.digest import Digest
from tare.store.durability import write_all
from tare.store.layers.tree import Tree

NAME = "tar.recipe"
_RECORD = struct.Struct("<BIQQ")
_RAW, _FILE = 0, 1
_CHUNK = 1 << 20
_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS


def write(tree: Tree, tar: int, size: int, target: Path) -> None:
    """Write the recipe of the open file ``tar`` (its first ``size`` bytes), whose tree was extracted. Not synced."""
    file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        encoder = zlib.compressobj(1)
        for part in _records(tree, tar, size):
            data = encoder.compress(part)
            if data:
                write_all(file, data)
        write_all(file, encoder.flush())
    finally:
        os.close(file)


def _records(tree: Tree, tar: int, size: int) -> Iterator[bytes]:
    position = 0
    for start, offset, length, path in sorted(_bodies(tree)):
        yield from _raw(tar, position, start)
        yield _RECORD.pack(_FILE, len(path), offset, length) + path
        position = start + length
    yield from _raw(tar, position, size)


def _bodies(tree: Tree) -> Iterator[tuple[int, int, int, bytes]]:
    """Each run of file bytes: where it begins in the tar, where in the file, its length, the file's path."""
    seen: set[int] = set()
    for path, node in tree.walk():
        if not node.size or node.target is not None or node.lower is not None or id(node) in seen:
            continue
        seen.add(id(node))
        at = node.offset
        for offset, length in node.sparse if node.sparse is not None else ((0, node.size),):
            if length:
                yield at, offset, length, path
            at += length


def _raw(tar: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        chunk = os.pread(tar, min(end - start, _CHUNK), start)
        if not chunk:
            raise OSError(5, "the spooled tar of a layer ended early")
        yield _RECORD.pack(_RAW, 0, 0, len(chunk)) + chunk
        start += len(chunk)


def read(directory: Path, diff_id: Digest) -> Generator[bytes, None, None]:
    """The tar of the layer in ``directory``, in chunks. Raises ``Corrupt`` at the end at the latest when it is no more what it was."""
    hasher = diff_id.hasher()
    root = os.open(directory / "fs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(directory / NAME, "rb") as file:
            reader = _Reader(iter(lambda: file.read(_CHUNK), b""))
            while head := reader.take(_RECORD.size):
                kind, path_length, offset, length = _RECORD.unpack(head)
                chunks = _body(root, reader.need(path_length), offset, length) if kind == _FILE else iter((reader.need(length),))
                for chunk in chunks:
                    hasher.update(chunk)
                    yield chunk
    except (zlib.error, OSError, EOFError, struct.error) as error:
        raise _damaged(diff_id, str(error)) from error
    finally:
        os.close(root)
    if not diff_id.matches(hasher):
        raise _damaged(diff_id, "its files are not what they were")


def _damaged(diff_id: Digest, why: str) -> Corrupt:
    return Corrupt(f"layer {diff_id} is damaged on disk ({why}): remove its image and pull or load it again")


def _body(root: int, path: bytes, offset: int, length: int) -> Iterator[bytes]:
    file = openat2(root, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, _INSIDE)
    try:
        while length:
            chunk = os.pread(file, min(length, _CHUNK), offset)
            if not chunk:
                raise EOFError(f"{os.fsdecode(path)!r} is too short")
            yield chunk
            offset += len(chunk)
            length -= len(chunk)
    finally:
        os.close(file)


class _Reader:
    """Exact amounts of the decompressed stream, never much more of it in memory than was asked for."""

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source = source
        self._decoder = zlib.decompressobj()
        self._pending = b""
        self._held = bytearray()

    def take(self, length: int) -> bytes:
        """``length`` bytes, or nothing at the end of the stream."""
        while len(self._held) < length and not self._decoder.eof:
            data = self._pending or next(self._source, b"")
            fresh = self._decoder.decompress(data, _CHUNK)
            if not data and not fresh and not self._decoder.eof:
                raise EOFError("the recipe of its tar is cut off")
            self._held += fresh
            self._pending = self._decoder.unconsumed_tail
        if self._held and len(self._held) < length:
            raise EOFError("the recipe of its tar is cut off")
        data = bytes(self._held[:length])
        del self._held[:length]
        return data

    def need(self, length: int) -> bytes:
        data = self.take(length)
        if len(data) != length:
            raise EOFError("the recipe of its tar is cut off")
        return data
