"""File trees that a COPY reads from: a context (a tar that lies in a file, never unpacked) or the root of a stage or image.

Both belong to strangers. A path is resolved here, by one algorithm over both: component by component, symbolic links followed inside the
tree's root, like chroot. A context has no files to escape to, only offsets in a tar. The root of a stage is a read-only view of immutable
layers, so what was found to be a directory stays one; its files are still opened by ``openat2`` without following any link.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from tare.builder.ignore import name_pattern
from tare.errors import InvalidArgument
from tare.linux.constants import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS
from tare.linux.mount import openat2
from tare.store.layers.tree import Node, Tree
from tare.store.tar.entry import Kind
from tare.store.tartree import DIRECTORY, FILE, KINDS, attributes

_CHUNK = 1 << 20
_SMALL = 128 << 10
_HOPS = 40
DEPTH = 256


@dataclass(slots=True)
class Found:
    """One object of a tree."""

    kind: Kind
    mode: int = 0o755
    """Permission bits only."""
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    target: bytes = b""
    """Where a symbolic link points."""
    rdev: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    inode: Hashable = None
    """The same for hard links of one file; None for what has only one name."""
    handle: Node | bytes = b""
    """How the tree finds it again."""
    digest: bytes = b""
    """Of a file's content, once somebody asked (``fingerprint``)."""

    @property
    def is_directory(self) -> bool:
        return self.kind is Kind.DIRECTORY

    @property
    def implied(self) -> bool:
        """A directory that an archive has no entry for: only for what is below it."""
        return isinstance(self.handle, Node) and self.handle.implied


@dataclass(frozen=True, slots=True)
class Way:
    """Where a path leads: what exists of it, canonical, and what does not."""

    parts: tuple[bytes, ...]
    trail: tuple[Found, ...]
    """The root, then what is at each of ``parts``."""
    missing: tuple[bytes, ...] = ()

    @property
    def end(self) -> Found | None:
        """What is at the path; None when it is not there."""
        return None if self.missing else self.trail[-1]


class FileTree(ABC):
    """A tree that does not change while it is looked at."""

    root: Found

    @abstractmethod
    def child(self, directory: Found, name: bytes) -> Found | None:
        """One entry of a directory, links not followed."""

    @abstractmethod
    def names(self, directory: Found) -> list[bytes]:
        """A directory's entries in byte order."""

    @abstractmethod
    def read(self, file: Found) -> Iterator[bytes]:
        """The content of a file, exactly ``size`` bytes."""

    @abstractmethod
    def close(self) -> None:
        """Give back what is held open."""

    def children(self, directory: Found) -> Iterator[tuple[bytes, Found]]:
        """A directory's entries in byte order, sockets and the like left out."""
        for name in self.names(directory):
            found = self.child(directory, name)
            if found is not None:
                yield name, found

    def walk(self, path: bytes, *, follow: bool = True) -> Way:
        """Resolve a path inside the tree. ``InvalidArgument`` for one through a file or through too many links."""
        parts: list[bytes] = []
        trail = [self.root]
        missing: list[bytes] = []
        todo = path.split(b"/")[::-1]
        hops = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if missing:
                    missing.pop()
                elif parts:
                    parts.pop()
                    trail.pop()
                continue
            if missing:
                missing.append(part)
                continue
            if not trail[-1].is_directory:
                raise InvalidArgument(f"{os.fsdecode(path)}: not a directory")
            found = self.child(trail[-1], part)
            if found is None:
                missing.append(part)
            elif found.kind is Kind.SYMLINK and (follow or any(rest not in (b"", b".") for rest in todo)):
                hops += 1
                if hops > _HOPS or len(todo) > 4096:
                    raise InvalidArgument(f"{os.fsdecode(path)}: too many levels of symbolic links")
                if found.target.startswith(b"/"):
                    parts.clear()
                    del trail[1:]
                todo.extend(found.target.split(b"/")[::-1])
            else:
                parts.append(part)
                trail.append(found)
        return Way(tuple(parts), tuple(trail), tuple(missing))

    def find(self, path: bytes, *, follow: bool = True) -> Found | None:
        """What is at a path, or None."""
        try:
            return self.walk(path, follow=follow).end
        except InvalidArgument:
            return None


class TarTree(FileTree):
    """A tree over file contents in one open file (an uncompressed tar, or nothing but contents); takes the file over.

    What is found out about its objects, ``fork`` shares; what is hidden, it does not.
    """

    def __init__(self, tree: Tree, file: int, shared: TarTree | None = None) -> None:
        self._tree = tree
        self._file = file
        self._known: dict[int, Found] = {} if shared is None else shared._known
        self._prints: dict[Hashable, str] = {} if shared is None else shared._prints
        self._hidden: frozenset[tuple[int, bytes]] = frozenset()
        self._window = 0, b""
        """Where the last bytes that were read lie, and they: small files often follow each other."""
        self.root = self._found(tree.root)

    def fork(self) -> TarTree:
        """The same tree, to be used and closed on its own."""
        return TarTree(self._tree, os.dup(self._file), self)

    def spool(self) -> int:
        """Another descriptor of the file."""
        return os.dup(self._file)

    def adopt(self, other: TarTree, pairs: Sequence[tuple[Node, Node]]) -> None:
        """Take over the digests of files that are the same: pairs of the other tree's node and of ours."""
        for theirs, ours in pairs:
            known = other._known.get(id(theirs))
            if known is not None and known.digest:
                self._found(ours).digest = known.digest

    def fingerprint(self, found: Found, owners: bool, compute: Callable[[], str]) -> str:
        """``compute``'s answer, remembered as long as the same is hidden."""
        key = id(found), owners, self._hidden
        if key not in self._prints:
            self._prints[key] = compute()
        return self._prints[key]

    def _found(self, node: Node) -> Found:
        known = self._known.get(id(node))
        if known is None:
            known = self._known[id(node)] = Found(
                KINDS[stat.S_IFMT(node.mode)],
                stat.S_IMODE(node.mode),
                node.uid,
                node.gid,
                node.size if stat.S_ISREG(node.mode) else 0,
                node.mtime_ns,
                node.target or b"",
                node.rdev,
                node.xattrs or {},
                id(node),
                node,
            )
        return known

    def child(self, directory: Found, name: bytes) -> Found | None:
        assert isinstance(directory.handle, Node) and directory.handle.children is not None
        node = directory.handle.children.get(name)
        if node is None or node.is_whiteout or node.lower is not None or (self._hidden and (id(directory.handle), name) in self._hidden):
            return None
        return self._found(node)

    def names(self, directory: Found) -> list[bytes]:
        assert isinstance(directory.handle, Node) and directory.handle.children is not None
        found = sorted(directory.handle.children)
        return [name for name in found if (id(directory.handle), name) not in self._hidden] if self._hidden else found

    def hide(self, path: bytes) -> None:
        """Take a file out of the tree."""
        head, _, name = path.rpartition(b"/")
        parent = self.find(head)
        if parent is not None and isinstance(parent.handle, Node) and parent.handle.children is not None:
            self._hidden |= {(id(parent.handle), name)}

    def read(self, file: Found) -> Iterator[bytes]:
        node = file.handle
        assert isinstance(node, Node)
        if node.sparse is None and node.size <= _SMALL:
            if node.size:
                yield self._small(node)
            return
        regions = [(0, node.size)] if node.sparse is None else node.sparse
        at, written = node.offset, 0
        for start, length in regions:
            yield from _zeros(start - written)
            written = start + length
            while length:
                chunk = os.pread(self._file, min(length, _CHUNK), at)
                if not chunk:
                    raise OSError(errno.EIO, "the build context ended early")
                at += len(chunk)
                length -= len(chunk)
                yield chunk
        yield from _zeros(node.size - written)

    def _small(self, node: Node) -> bytes:
        start, window = self._window  # one look at it: stages read side by side
        at = node.offset - start
        if at < 0 or at + node.size > len(window):
            window, at = os.pread(self._file, _CHUNK, node.offset), 0
            self._window = node.offset, window
        data = window[at : at + node.size]
        if len(data) != node.size:
            raise OSError(errno.EIO, "the build context ended early")
        return data

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        step = min(count, _CHUNK)
        yield bytes(step)
        count -= step


class DirectoryTree(FileTree):
    """A tree below an open directory that nobody changes; takes the descriptor over."""

    def __init__(self, root: int) -> None:
        self._fd = root
        self.root = self._describe(os.fstat(root), b".")

    def _describe(self, status: os.stat_result, path: bytes) -> Found:
        found = Found(
            KINDS[stat.S_IFMT(status.st_mode)],
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_size if stat.S_ISREG(status.st_mode) else 0,
            status.st_mtime_ns,
            rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)),
            inode=(status.st_dev, status.st_ino) if status.st_nlink > 1 else None,
            handle=path,
        )
        if found.kind is Kind.SYMLINK:
            found.target = os.readlink(path, dir_fd=self._fd)
        elif found.kind in (Kind.FILE, Kind.DIRECTORY):
            file = self._open(path, FILE if found.kind is Kind.FILE else DIRECTORY)
            try:
                found.xattrs = attributes(file)
            finally:
                os.close(file)
        return found

    def _open(self, path: bytes, flags: int) -> int:
        return openat2(self._fd, path, flags, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)

    def child(self, directory: Found, name: bytes) -> Found | None:
        assert isinstance(directory.handle, bytes)
        path = name if directory.handle == b"." else directory.handle + b"/" + name
        try:
            status = os.lstat(path, dir_fd=self._fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            raise
        if stat.S_IFMT(status.st_mode) not in KINDS:
            return None
        return self._describe(status, path)

    def names(self, directory: Found) -> list[bytes]:
        assert isinstance(directory.handle, bytes)
        opened = self._open(directory.handle, DIRECTORY)
        try:
            return sorted(map(os.fsencode, os.listdir(opened)))
        finally:
            os.close(opened)

    def read(self, file: Found) -> Iterator[bytes]:
        assert isinstance(file.handle, bytes)
        opened = self._open(file.handle, FILE)
        try:
            left = file.size
            while left:
                chunk = os.read(opened, min(left, _CHUNK))
                if not chunk:
                    raise OSError(errno.EIO, "a file became shorter while it was copied")
                left -= len(chunk)
                yield chunk
        finally:
            os.close(opened)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def glob(tree: FileTree, pattern: bytes, *, deep: bool = False) -> list[bytes]:
    """The paths that a source pattern means, as in Go's ``filepath.Match``: a wildcard never crosses a slash. Sorted by byte order.

    ``deep``: but ``**`` spans any number of directories (links not followed), and what lies in a directory that matches is not named again.
    Without a wildcard the path itself, existing or not.
    """
    if not has_wildcard(pattern):
        return [pattern]
    found: list[tuple[bytes, ...]] = [()]
    for part in _name_patterns(pattern, deep):
        step: dict[tuple[bytes, ...], None] = {}
        matcher = name_pattern(os.fsdecode(part)) if has_wildcard(part) else None
        for path in found:
            if part == _SPANS and deep:
                step |= dict.fromkeys(_directories(tree, path))
                continue
            directory = _directory(tree, path)
            if directory is None:
                continue
            names = [part] if matcher is None else [name for name in tree.names(directory) if matcher.fullmatch(os.fsdecode(name))]
            step |= dict.fromkeys((*path, name) for name in names if tree.child(directory, name) is not None)
        found = list(step)
    if deep:
        whole = {path for path in found if _directory(tree, path) is not None}
        found = [path for path in found if not any(path[:depth] in whole for depth in range(1, len(path)))]
    return sorted(b"/".join(path) for path in found)


_SPANS = b"**"


def _name_patterns(pattern: bytes, deep: bool) -> list[bytes]:
    """One for each name; with ``deep``, ``**`` alone stands for directories in between: ``**.txt`` is ``**/*.txt``, ``a/**`` is ``a/*``."""
    parts: list[bytes] = []
    for part in pattern.split(b"/"):
        if part in (b"", b"."):
            continue
        if deep and part.startswith(_SPANS) and part != _SPANS:
            parts += [_SPANS, part[1:]]
        elif not (deep and part == _SPANS and parts[-1:] == [_SPANS]):
            parts.append(part)
    if deep and parts[-1:] == [_SPANS]:
        parts[-1] = b"*"
    return parts


def _directory(tree: FileTree, path: tuple[bytes, ...]) -> Found | None:
    try:
        end = tree.walk(b"/".join(path)).end
    except InvalidArgument:
        return None
    return end if end is not None and end.is_directory else None


def _directories(tree: FileTree, path: tuple[bytes, ...]) -> Iterator[tuple[bytes, ...]]:
    """A directory and all below it."""
    stack = [path]
    while stack:
        above = stack.pop()
        directory = _directory(tree, above)
        if directory is None:
            continue
        if len(above) > DEPTH:
            raise InvalidArgument(f"{os.fsdecode(b'/'.join(above))}: nested deeper than {DEPTH} directories")
        yield above
        stack += [(*above, name) for name, found in tree.children(directory) if found.is_directory]


def has_wildcard(pattern: bytes) -> bool:
    """Whether Go's ``filepath.Match`` sees more in it than a name."""
    return any(character in pattern for character in (b"*", b"?", b"[", b"\\"))
