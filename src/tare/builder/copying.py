"""COPY and ADD without a container: from sources in a file tree to the tar of a layer.

Two halves, because a cached step must not look at the image at all:

- ``gather``: which objects the sources mean (pure on the source tree); their fingerprints make the cache key;
- ``layer``: where they go in the image's root, as the tar of a layer.

Rules (dockerd's): a directory's *content* is copied, not its own mode and owner; a file goes to the destination itself, or into it when
that ends with a slash or is a directory; a source that is a symbolic link is what it points to (inside its tree), links further inside stay
links. Missing parents are made with the owner that was asked for, and with mode 0755 or the octal one that was asked for. Directories of
the image that the new files lie in appear in the layer exactly as they are. A destination is resolved inside the image's root, its links
included.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tare.builder.chmod import Mode
from tare.builder.fingerprint import fingerprint
from tare.builder.ignore import Patterns
from tare.builder.trees import DEPTH, FileTree, Found, glob, has_wildcard
from tare.errors import InvalidArgument, NotFound
from tare.store.tar import writer
from tare.store.tar.entry import Entry, Kind
from tare.store.tartree import batched

_PIVOT = b"/./"


@dataclass(frozen=True, slots=True)
class Item:
    """One source object: what it is, and what it is called at the destination."""

    tree: FileTree
    found: Found
    name: bytes
    """The last part of its path; with ``--parents`` the whole path below the pivot."""
    spread: bool
    """Its content is copied, not itself: a directory, or an archive that ADD unpacks."""
    keep_owner: bool = False
    archive: bool = False
    """What ADD unpacks: as with docker neither ``--chown`` nor ``--chmod`` reach into it."""
    above: tuple[Found | None, ...] = ()
    """With ``--parents``: the source's directories of ``name``, as far as they are directories."""

    def fingerprint(self) -> str:
        """``file:HEX`` or ``dir:HEX``."""
        return f"{'dir' if self.spread and not self.archive else 'file'}:{fingerprint(self.tree, self.found, owners=self.keep_owner)}"

    def identity(self) -> tuple[object, ...]:
        """All that the cache must know of it."""
        above = [(each.mode, self.keep_owner and (each.uid, each.gid)) for each in self.above if each is not None]
        return self.fingerprint(), self.name.hex(), self.keep_owner, above


@dataclass(frozen=True, slots=True)
class Placement:
    """How the items lie in the image."""

    destination: bytes
    """Absolute; ends with a slash when it must be a directory."""
    owner: tuple[int, int] | None = None
    """None: root, or the source's own where that is kept."""
    mode: Mode | None = None
    exclude: Patterns | None = None
    parents: bool = False
    """Names are paths: their directories are made below the destination."""
    now_ns: int = 0
    """The time of directories that are made."""
    latest_ns: int | None = None
    """No time in the layer is later than this (SOURCE_DATE_EPOCH)."""


def gather(
    tree: FileTree, sources: Sequence[str], *, keep_owner: bool, parents: bool = False, what: str = "COPY", own: bool = True
) -> list[Item]:
    """What the sources mean; a pattern that nothing matches means nothing.

    ``own``: the tree is the build's context. ``NotFound`` and ``InvalidArgument`` with dockerd's texts.
    """
    items = []
    for source in sources:
        pattern = _inside(source, what)
        for path in glob(tree, pattern.replace(_PIVOT, b"/") if parents else pattern, deep=parents):
            found = tree.find(path)
            if found is None:
                shown = os.fsdecode(path)
                where = "file not found in build context or excluded by .dockerignore: " if own else ""
                raise NotFound(f"{what} failed: {where}stat {shown}: file does not exist")
            if parents:
                name = _below_pivot(pattern, path)
                items.append(Item(tree, found, name, found.is_directory, keep_owner, above=_above(tree, path, name)))
            else:
                items.append(Item(tree, found, posixpath.basename(path), found.is_directory, keep_owner))
    return items


def _inside(source: str, what: str) -> bytes:
    """A source as a path relative to the tree's root; ``..`` may not leave it."""
    pattern = os.fsencode(source)
    if has_wildcard(pattern):
        if b".." in pattern.split(b"/"):
            raise InvalidArgument(f"{what} failed: forbidden path outside the build context: {source} ()")
        return pattern.lstrip(b"/")
    pivot = _PIVOT in pattern
    clean = posixpath.normpath(pattern.lstrip(b"/") or b".")
    if clean == b".." or clean.startswith(b"../"):
        raise InvalidArgument(f"{what} failed: forbidden path outside the build context: {source} ()")
    return pattern.lstrip(b"/") if pivot else b"" if clean == b"." else clean


def _below_pivot(pattern: bytes, path: bytes) -> bytes:
    """``--parents``: what is kept of a path, all of it or what follows ``/./`` in the source."""
    clean = b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))
    if _PIVOT not in b"/" + pattern:
        return clean
    head = (b"/" + pattern).partition(_PIVOT)[0]
    skip = len([part for part in head.split(b"/") if part not in (b"", b".")])
    return b"/".join(clean.split(b"/")[skip:])


def _above(tree: FileTree, path: bytes, name: bytes) -> tuple[Found | None, ...]:
    """The directories above ``path`` that are part of ``name``, outermost first."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    first = len(parts) - len(name.split(b"/"))
    found = [tree.find(b"/".join(parts[: depth + 1])) for depth in range(first, len(parts) - 1)]
    return tuple(each if each is not None and each.is_directory else None for each in found)


def layer(root: FileTree, items: Iterable[Item], placement: Placement) -> Iterator[bytes]:
    """The tar of a layer that adds the items to the image whose root is ``root``. Blocks, as it reads files."""
    return batched(_Layer(root, placement).items(items))


def directory(
    root: FileTree, path: str, now_ns: int, latest_ns: int | None, owner: Callable[[], tuple[int, int] | None]
) -> Iterator[bytes] | None:
    """The tar of a layer that makes a directory and its missing parents (WORKDIR); None when it is there already.

    ``owner`` is asked when something is made.
    """
    way = root.walk(os.fsencode(path))
    if not way.missing:
        if not way.trail[-1].is_directory:
            raise InvalidArgument(f"Cannot mkdir: {path} is not a directory")
        return None
    target = _Layer(root, Placement(b"/", owner=owner(), now_ns=now_ns, latest_ns=latest_ns))
    return batched(target.directories((*way.parts, *way.missing)))


@dataclass(slots=True)
class _Layer:
    """One layer being written."""

    root: FileTree
    placement: Placement
    made: set[tuple[bytes, ...]] = field(default_factory=set)
    links: dict[object, bytes] = field(default_factory=dict)

    new_mode: int = 0o755
    """Of directories that are made: an octal ``--chmod`` is for them as well, as with dockerd and its umask; archives know none."""

    def items(self, items: Iterable[Item]) -> Iterator[bytes]:
        for item in items:
            given = self.placement.mode.absolute if self.placement.mode is not None and not item.archive else None
            self.new_mode = 0o755 if given is None else given & 0o755
            exclude = self.placement.exclude
            shown = item.name if self.placement.parents else posixpath.basename(item.name)
            if exclude is not None and not item.spread and exclude.excluded(os.fsdecode(shown)):
                continue
            self.links.clear()  # files that only several sources together have twice are copied twice
            yield from self._spread(item) if item.spread else self._file(item)

    def _spread(self, item: Item) -> Iterator[bytes]:
        target = self.placement.destination
        if self.placement.parents:
            target = target.rstrip(b"/") + b"/" + item.name
        parts, existing = self._target(target, follow=True)
        if existing is not None and not existing.is_directory:
            raise InvalidArgument(f"cannot copy to non-directory: {os.fsdecode(target)}")
        if existing is None and parts and self.placement.parents:
            yield from self._parents(item, parts)
            if parts not in self.made:
                self.made.add(parts)
                yield self._header(item, item.found, parts)
        yield from self.directories(parts)
        yield from self._content(item, parts)

    def _parents(self, item: Item, parts: tuple[bytes, ...]) -> Iterator[bytes]:
        """The directories above a target; with ``--parents`` those that are missing are made like the source's."""
        first = len(parts) - 1 - len(item.above)
        for depth, source in enumerate(item.above, first + 1):
            yield from self.directories(parts[: depth - 1])
            path = parts[:depth]
            if source is not None and path not in self.made and self.root.walk(b"/".join(path), follow=False).end is None:
                self.made.add(path)
                yield self._header(item, source, path)
        yield from self.directories(parts[:-1])

    def _content(self, item: Item, parts: tuple[bytes, ...]) -> Iterator[bytes]:
        prefix = item.name + b"/" if self.placement.parents and item.name else b""
        stack = [(parts, prefix, item.tree.children(item.found))]
        while stack:
            above, below, children = stack[-1]
            for name, found in children:
                path = below + name
                exclude = self.placement.exclude
                left_out = exclude is not None and exclude.excluded(os.fsdecode(path))
                if exclude is not None and left_out and not (found.is_directory and not exclude.can_skip(os.fsdecode(path))):
                    continue
                target = (*above, name)
                yield from self._object(item, found, target)
                if found.is_directory:
                    self.made.add(target)
                    if len(stack) > DEPTH:
                        raise InvalidArgument(f"{os.fsdecode(path)}: nested deeper than {DEPTH} directories")
                    stack.append((target, path + b"/", item.tree.children(found)))
                    break
            else:
                stack.pop()

    def _file(self, item: Item) -> Iterator[bytes]:
        destination = self.placement.destination
        into = destination.endswith(b"/") or self.placement.parents
        if not into:
            _, existing = self._target(destination, follow=True)
            into = existing is not None and existing.is_directory
        if into:
            parts, existing = self._target(destination.rstrip(b"/") + b"/" + item.name, follow=False)
        else:
            parts, existing = self._target(destination, follow=True)
        if existing is not None and existing.is_directory:
            raise InvalidArgument(f"cannot overwrite directory {os.fsdecode(b'/' + b'/'.join(parts))} with non-directory")
        yield from self._parents(item, parts)
        yield from self._object(item, item.found, parts)

    def _target(self, path: bytes, *, follow: bool) -> tuple[tuple[bytes, ...], Found | None]:
        if follow:
            way = self.root.walk(path)
            return (*way.parts, *way.missing), way.end
        head, _, name = path.rpartition(b"/")
        way = self.root.walk(head)
        if way.missing:
            return (*way.parts, *way.missing, name), None
        return (*way.parts, name), self.root.child(way.trail[-1], name) if way.trail[-1].is_directory else None

    def directories(self, parts: tuple[bytes, ...]) -> Iterator[bytes]:
        """A directory of the image and those above it: as they are, or made."""
        for depth in range(1, len(parts) + 1):
            path = parts[:depth]
            if path in self.made:
                continue
            self.made.add(path)
            found = self.root.walk(b"/".join(path), follow=False).end
            if found is not None and not found.is_directory:
                raise InvalidArgument(f"/{os.fsdecode(b'/'.join(path))}: not a directory")
            name = b"/".join(path)
            if found is not None:
                yield writer.header(
                    Entry(name, Kind.DIRECTORY, found.mode, found.uid, found.gid, mtime_ns=self._time(found.mtime_ns), xattrs=found.xattrs)
                )
            else:
                uid, gid = self.placement.owner or (0, 0)
                yield writer.header(Entry(name, Kind.DIRECTORY, self.new_mode, uid, gid, mtime_ns=self._time(self.placement.now_ns)))

    def _object(self, item: Item, found: Found, parts: tuple[bytes, ...]) -> Iterator[bytes]:
        if parts[-1].startswith(b".wh."):
            return  # in a layer this name would hide another: it cannot be told
        name = b"/".join(parts)
        if found.kind is Kind.FILE and found.inode is not None:
            first = self.links.setdefault((id(item.tree), found.inode), name)
            if first != name:
                yield writer.header(Entry(name, Kind.LINK, linkname=first, mtime_ns=self._time(found.mtime_ns)))
                return
        yield self._header(item, found, parts)
        if found.kind is Kind.FILE and found.size:
            yield from item.tree.read(found)
            yield writer.padding(found.size)

    def _header(self, item: Item, found: Found, parts: tuple[bytes, ...]) -> bytes:
        given = None if item.archive and found.implied else self.placement.owner
        uid, gid = given or ((found.uid, found.gid) if item.keep_owner else (0, 0))
        mode = found.mode
        if self.placement.mode is not None and found.kind is not Kind.SYMLINK and not item.archive:
            mode = self.placement.mode.applied(mode, directory=found.is_directory)
        entry = Entry(
            b"/".join(parts), found.kind, mode, uid, gid, found.size, self._time(found.mtime_ns), found.target, *found.rdev, found.xattrs
        )
        return writer.header(entry)

    def _time(self, mtime_ns: int) -> int:
        latest = self.placement.latest_ns
        return mtime_ns if latest is None else min(mtime_ns, latest)
