"""The files that a build is sent: a tar, plain or compressed, kept as *one* unnamed file and a model of what is in it.

    request body ──► [channel] ──► worker thread: decompress, parse, append to the spool ──► ``TarTree``

Nothing is extracted, so no name in a hostile tar ever becomes a path on this machine. The spool has no name either: whatever kills the
daemon, the kernel takes it away.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from tare.builder.trees import TarTree
from tare.distribution.decompress import decompress
from tare.errors import Corrupt, InvalidArgument, ResourceExhausted
from tare.images.intake import intake
from tare.store.durability import write_all
from tare.store.layers.tree import Tree
from tare.store.tar.entry import BLOCK, Entry, Limits
from tare.store.tar.reader import Parser

_RESERVE = 256 << 20
"""Bytes that a context must leave free on a big disk; a sixteenth of a small one."""
_PROBE = 64 << 10


async def receive(source: AsyncIterator[bytes], directory: Path) -> TarTree:
    """Take in a context; the spool lies in the file system of ``directory``. Close the tree when the build is over."""
    return await intake(source, lambda channel: spool(channel, directory, "build context"), TarTree.close)


def empty(directory: Path) -> TarTree:
    """A context without files."""
    return spool((), directory, "build context")


def spool(packed: Iterable[bytes], directory: Path, what: str) -> TarTree:
    """A tree over the tar in ``packed``, whatever its compression. ``what`` names it in errors. Blocks."""
    state = os.statvfs(directory)
    reserve = min(_RESERVE, state.f_blocks * state.f_frsize // 16)
    free = state.f_bavail * state.f_frsize - reserve
    if free <= 0:
        raise ResourceExhausted(f"{what}: no space left on device: {reserve >> 20} MiB have to stay free under {directory}")
    limits = Limits(total=free)
    tree, parser = Tree(limits), Parser(limits, bodies=False)
    try:
        with tempfile.TemporaryFile(buffering=0, dir=directory) as file:
            for chunk in decompress(packed, what):
                write_all(file.fileno(), chunk)
                for entry in parser.feed(chunk):
                    if isinstance(entry, Entry):
                        tree.add(entry)
            parser.close()
            if tree.missing():
                raise Corrupt(f"{what}: a hard link names a file that is not in it")
            return TarTree(tree, os.dup(file.fileno()))
    except OSError as error:
        raise ResourceExhausted(f"cannot take in the {what}: {os.strerror(error.errno or 0).lower()}: free some space") from error
    except InvalidArgument as error:
        raise InvalidArgument(f"{what}: {error}") from None


def is_archive(packed: Iterable[bytes]) -> bool:
    """Whether ADD unpacks this file: a tar, whatever its compression."""
    head = b""
    try:
        for chunk in decompress(packed, "file"):
            head += chunk
            if len(head) >= BLOCK:
                break
        if len(head) < BLOCK or not any(head[:BLOCK]):
            return False
        for _ in Parser(bodies=False).feed(head[:BLOCK]):
            pass
    except (Corrupt, InvalidArgument):
        return False
    return True
