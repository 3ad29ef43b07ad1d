"""Volumes out of the machine and back: export and import as tars, clones and snapshots.

What comes in is made beside the volumes and appears whole, by a rename (``Volumes.publish``): a kill half-way leaves a directory that the
next start sweeps. An imported tar is spooled, understood as a tree and only then written (``store.layers``: names that leave the root
and bombs are refused there). A clone of a volume in use is what a copy of live files is: each file as it was when its turn came.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tare.errors import Conflict, InvalidArgument, ResourceExhausted
from tare.store.durability import write_all
from tare.store.layers.extract import extract
from tare.store.layers.tree import Tree
from tare.store.tar.entry import Entry, Kind
from tare.store.tar.reader import Parser
from tare.store.tar.writer import header
from tare.store.tartree import tar_tree
from tare.store.treecopy import copy_tree
from tare.volumes.model import SIZE_OPTION, Volume, check_name

if TYPE_CHECKING:
    from tare.volumes.service import Volumes

SNAPSHOT_LABEL = "tare.snapshot.of"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


async def export(volumes: Volumes, name: str) -> AsyncGenerator[bytes, None]:
    """A volume's content as a tar."""
    holder = secrets.token_hex(8)
    path = await volumes.hold(name, holder)
    try:
        with _opened(path) as fd:
            yield _root_header(fd)
            pieces = tar_tree(fd)
            while piece := await asyncio.to_thread(next, pieces, b""):
                yield piece
    finally:
        await volumes.release([name], holder)


async def load(volumes: Volumes, name: str, body: AsyncIterable[bytes], labels: Mapping[str, str] | None = None) -> Volume:
    """A new volume of a tar. ``Corrupt`` for what is no tar, ``Conflict`` for a name that is taken; nothing is left then."""
    volume, staging = _new(volumes, name, None, labels)
    try:
        fd = os.open(staging / "import.tar", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            tree, parser = Tree(), Parser(bodies=False)
            async for chunk in body:
                await asyncio.to_thread(write_all, fd, chunk)
                for entry in parser.feed(chunk):
                    if isinstance(entry, Entry):
                        tree.add(entry)
            parser.close()
            await asyncio.to_thread(extract, tree, fd, staging / "_data")
            if not tree.root.mtime_ns:
                os.utime(staging / "_data")  # the archive says nothing of its root
        finally:
            os.close(fd)
        os.unlink(staging / "import.tar")
        volumes.publish(volume, staging)
    except OSError as error:
        await asyncio.to_thread(volumes.discard, staging)
        raise ResourceExhausted(f"import {name}: {os.strerror(error.errno or 0).lower()}") from error
    except BaseException:
        await asyncio.to_thread(volumes.discard, staging)
        raise
    return volume


async def clone(volumes: Volumes, source: str, name: str = "", labels: Mapping[str, str] | None = None) -> Volume:
    """A new volume with what another holds. Without a name: a snapshot, named after its source and the time."""
    origin = volumes.get(source)
    if not name:
        now = time.time_ns()
        name = f"{source}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now // 10**9))}-{now // 10**6 % 1000:03d}"
        labels = {**(origin.labels or {}), SNAPSHOT_LABEL: source, **(labels or {})}
    options = {key: value for key, value in (origin.options or {}).items() if key == SIZE_OPTION} or None
    volume, staging = _new(volumes, name, options, origin.labels if labels is None else labels)
    holder = secrets.token_hex(8)
    try:
        path = await volumes.hold(source, holder)
        try:
            await asyncio.to_thread(_copy, path, staging / "_data")
        finally:
            await volumes.release([source], holder)
        volumes.publish(volume, staging)
    except OSError as error:
        await asyncio.to_thread(volumes.discard, staging)
        raise ResourceExhausted(f"clone {source}: {os.strerror(error.errno or 0).lower()}") from error
    except BaseException:
        await asyncio.to_thread(volumes.discard, staging)
        raise
    return volume


def _new(volumes: Volumes, name: str, options: dict[str, str] | None, labels: Mapping[str, str] | None) -> tuple[Volume, Path]:
    if not name:
        raise InvalidArgument("name the volume that is to be made")
    check_name(name)
    if volumes.exists(name):
        raise Conflict(f"create {name}: volume name must be unique")
    kept = None if labels is None else dict(labels)
    return volumes.stage(Volume(name=name, created=time.time_ns(), labels=kept, options=options))


def _root_header(fd: int) -> bytes:
    """The volume's own directory: an import gives it its owner and mode back."""
    status = os.fstat(fd)
    root = Entry(
        b"./", Kind.DIRECTORY, mode=stat.S_IMODE(status.st_mode), uid=status.st_uid, gid=status.st_gid, mtime_ns=status.st_mtime_ns
    )
    return header(root)


def _copy(source: Path, target: Path) -> None:
    with _opened(source) as origin, _opened(target) as copy:
        copy_tree(origin, copy)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, _DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)
