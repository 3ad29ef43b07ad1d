"""Contexts that stay, so that the next build of a big directory sends only what has changed (decision 86).

    client                                                  daemon
    walk, a *listing* (names and what stat says), its hash
    POST /tare/builds   {Context: {Name, State}}       ──►  the very same listing is here: "kept", nothing else is sent
    PUT  /tare/builds/ID/listing   the listing         ──►  which entries are new or changed: their numbers
    POST /build?session=ID   contents of those files   ──►  appended to the context's spool; a tree over old and new

Two entries are the same when all that stat says is: kind, mode, owner, size, times of content and inode, the inode's number. An entry that
was changed a moment before the walk has a mark that makes it differ the next time: a later change within the clock's tick is not missed.

What stays is one unnamed file for each context, and the tree in memory, with the digests that COPY has asked for. It goes with the daemon,
after a time without use, when there are too many, or by ``builder prune``. Trees are never changed: builds at the same time share them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tare.builder.trees import TarTree
from tare.distribution.channel import Channel
from tare.errors import Corrupt, InvalidArgument, ResourceExhausted
from tare.images.intake import intake
from tare.store.layers.tree import Node, Tree
from tare.store.tar.entry import DEFAULT_LIMITS, Entry, Kind

_KINDS = {
    "0": Kind.FILE,
    "1": Kind.LINK,
    "2": Kind.SYMLINK,
    "3": Kind.CHARACTER,
    "4": Kind.BLOCK,
    "5": Kind.DIRECTORY,
    "6": Kind.FIFO,
}
_RESERVE = 256 << 20
_IDLE_SECONDS = 3600.0
_CONTEXTS = 8
_ENTRIES = 400_000
_WASTE = 64 << 20
"""Bytes of a spool that nothing needs any more, before it is begun anew."""

Item = tuple[str, int, int, int, int, int, str, str, str]
"""Kind, mode, uid, gid, size, mtime in seconds, name, link, and the rest of what stat says. Names are bytes, shown as Latin-1."""
_LISTING = msgspec.json.Decoder(list[Item])


class Spool:
    """The file that a context's contents lie in; generations of the context share it, each with a descriptor of its own."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.end = 0

    def reserve(self, size: int) -> int:
        """Where ``size`` bytes may be written."""
        start, self.end = self.end, self.end + size
        return start


@dataclass
class Kept:
    """One context as it was last."""

    name: str
    state: str
    tree: TarTree
    entries: dict[str, tuple[Item, Node]]
    """Files by name."""
    spool: Spool
    live: int
    """Bytes of the spool that the tree needs."""
    made: float
    used: float
    count: int = 1

    @property
    def id(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()[:25]


@dataclass
class Plan:
    """A listing that was received, and what has to be sent for it. Close it when nothing is received for it."""

    name: str
    state: str
    items: list[Item]
    needed: list[int]
    before: Kept | None
    file: int
    """The spool, open; -1 when it is to be begun."""

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


class KeptContexts:
    """The contexts that one builder keeps. Event loop only."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kept: dict[str, Kept] = {}

    def find(self, name: str, state: str) -> TarTree | None:
        """A tree of the context, if it is just the same; to be closed by the caller."""
        kept = self._kept.get(name)
        if kept is None or kept.state != state:
            return None
        kept.used, kept.count = time.time(), kept.count + 1
        self._kept[name] = self._kept.pop(name)
        return kept.tree.fork()

    async def plan(self, name: str, listing: bytes) -> Plan:
        """What has to be sent. ``InvalidArgument`` for a listing that is none."""
        before = self._kept.get(name)
        if before is not None and before.spool.end - before.live > max(before.live, _WASTE):
            before = None
        file = before.tree.spool() if before is not None else -1
        try:
            return await asyncio.to_thread(_plan, name, listing, before, file)
        except BaseException:
            if file >= 0:
                os.close(file)
            raise

    async def receive(self, plan: Plan, source: AsyncIterator[bytes]) -> TarTree:
        """Take in the contents that were asked for; the tree of the whole. Both the tree and the plan are to be closed by the caller."""
        size = sum(plan.items[number][4] for number in plan.needed)
        if plan.file < 0:
            plan.file = await asyncio.to_thread(self._begin)
        spool = plan.before.spool if plan.before is not None else Spool(plan.file)
        start = spool.reserve(size)
        kept = await intake(source, lambda channel: _take_in(plan, channel, spool, start, size), lambda kept: kept.tree.close())
        self._keep(kept)
        return kept.tree.fork()

    def _begin(self) -> int:
        try:
            with tempfile.TemporaryFile(buffering=0, dir=self._directory) as file:
                return os.dup(file.fileno())
        except OSError as error:
            raise _full(error) from error

    def _keep(self, kept: Kept) -> None:
        old = self._kept.pop(kept.name, None)
        if old is not None:
            kept.made, kept.count = old.made, old.count + 1
            old.tree.close()
        self._kept[kept.name] = kept
        while len(self._kept) > _CONTEXTS or (len(self._kept) > 1 and sum(len(each.entries) for each in self._kept.values()) > _ENTRIES):
            self.drop(next(iter(self._kept.values())).id)
        asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._expire, kept.name)

    def _expire(self, name: str) -> None:
        kept = self._kept.get(name)
        if kept is None:
            return
        left = kept.used + _IDLE_SECONDS - time.time()
        if left > 1:
            asyncio.get_running_loop().call_later(left, self._expire, name)
        else:
            self.drop(kept.id)

    def all(self) -> list[Kept]:
        """Least recently used first."""
        return list(self._kept.values())

    def drop(self, id: str) -> int:
        """Forget a context; the bytes that become free when no build uses it any more."""
        for kept in list(self._kept.values()):
            if kept.id == id:
                del self._kept[kept.name]
                kept.tree.close()
                return kept.spool.end
        return 0

    def close(self) -> None:
        for kept in list(self._kept.values()):
            self.drop(kept.id)


def _full(error: OSError) -> ResourceExhausted:
    return ResourceExhausted(f"cannot take in the build context: {os.strerror(error.errno or 0).lower()}: free some space")


def _plan(name: str, listing: bytes, before: Kept | None, file: int) -> Plan:
    try:
        items = _LISTING.decode(listing)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"listing of the build context: {error}") from None
    known = before.entries if before is not None else {}
    needed = [
        number
        for number, item in enumerate(items)
        if item[0] == "0" and item[4] and ((old := known.get(item[6])) is None or old[0] != item)
    ]
    return Plan(name, hashlib.blake2b(listing, digest_size=20).hexdigest(), items, needed, before, file)


def _take_in(plan: Plan, channel: Channel, spool: Spool, start: int, size: int) -> Kept:
    """Write the contents from ``start`` on and make the tree. In a worker thread."""
    try:
        state = os.fstatvfs(plan.file)
        if size > max(0, state.f_bavail * state.f_frsize - _RESERVE):
            raise InvalidArgument(f"the build context needs {size} bytes: free some space")
        at = start
        for chunk in channel:
            view = memoryview(chunk)
            if at + len(view) > start + size:
                raise Corrupt("the build context is longer than its listing")
            while view:
                written = os.pwrite(plan.file, view, at)
                at += written
                view = view[written:]
        if at != start + size:
            raise Corrupt("the build context ended early")
    except OSError as error:
        raise _full(error) from error
    return _tree(plan, spool, start)


def _tree(plan: Plan, spool: Spool, start: int) -> Kept:
    tree, offset, live = Tree(), start, 0
    entries: dict[str, tuple[Item, Node]] = {}
    new = set(plan.needed)
    old = plan.before.entries if plan.before is not None else {}
    reused: list[tuple[Node, Node]] = []
    for number, item in enumerate(plan.items):
        entry = _entry(item)
        before: Node | None = None
        if entry.kind is Kind.FILE:
            live += entry.size
            if number in new:
                entry.offset = offset
                offset += entry.size
            elif entry.size:
                before = old[item[6]][1]
                entry.offset = before.offset
        node = tree.add(entry)
        if entry.kind is Kind.FILE and node is not None:
            entries[item[6]] = item, node
            if before is not None:
                reused.append((before, node))
    if tree.missing():
        raise Corrupt("the build context has a hard link to a file that is not in it")
    made = TarTree(tree, os.dup(plan.file))
    if plan.before is not None:
        made.adopt(plan.before.tree, reused)
    now = time.time()
    return Kept(plan.name, plan.state, made, entries, spool, live, now, now)


def _entry(item: Item) -> Entry:
    """A line of a listing. ``InvalidArgument`` for what no client of ours says."""
    kind, mode, uid, gid, size, mtime, name, link, _ = item
    if kind not in _KINDS or size < 0 or "\0" in name or "\0" in link or max(len(name), len(link)) > DEFAULT_LIMITS.path:
        raise InvalidArgument(f"listing of the build context: {name[:80]!r} cannot be")
    try:
        path, target = name.encode("latin-1"), link.encode("latin-1")
        major, minor = (int(part) for part in link.split(":")) if kind in "34" else (0, 0)
    except ValueError:
        raise InvalidArgument(f"listing of the build context: {name[:80]!r} cannot be") from None
    return Entry(path, _KINDS[kind], mode & 0o7777, uid, gid, size, mtime * 1_000_000_000, target, major, minor)


def ranges(needed: Sequence[int]) -> list[list[int]]:
    """Numbers as ranges ``[first, count]``."""
    found: list[list[int]] = []
    for number in needed:
        if found and found[-1][0] + found[-1][1] == number:
            found[-1][1] += 1
        else:
            found.append([number, 1])
    return found
