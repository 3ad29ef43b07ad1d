"""What a layer *means*: the tree of inodes that extracting its tar would leave, built in memory while the tar streams by.

Why a model first. Every hole of tar extraction (``..``, links followed, a directory replaced by a link to ``/``, duplicate entries) is a
question about the state of a half-extracted tree. Here that tree has no path to the host: the questions are decided on plain objects, once
for all drivers, and only the finished tree is turned into an EROFS image or into files. A name that occurs twice costs nothing twice.

Rules (Docker's and the OCI layer spec's):
- Names are cleaned lexically; one that leaves the root is refused. A path *through* a symbolic link of this layer is followed inside the
  layer's root, like chroot; through anything else that is not a directory it is refused. Missing parents appear as root-owned 0755; they
  are ``implied``: where a layer below has the directory, its attributes count.
- A later entry replaces an earlier one of the same name (a whole directory too); a directory on a directory only updates its attributes.
- ``.wh.NAME`` hides NAME of the layers *below*: never what this layer itself holds, whatever the order. If this layer has a directory of
  that name it becomes opaque. ``.wh..wh..opq`` makes its directory opaque. Other ``.wh..wh.`` names are AUFS's own and dropped.
- ``trusted.overlay.*`` and ``user.overlay.*`` attributes in a tar are dropped: only the engine speaks overlayfs's language.
- A hard link names an entry of this layer and brings its own owner, mode, time and attributes for both (as Docker and containerd have it);
  if there is none, it waits (``missing``) for the layers below to be known.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator

from tare.errors import Corrupt, InvalidArgument
from tare.store.tar.entry import DEFAULT_LIMITS, Entry, Kind, Limits

OPAQUE = b"trusted.overlay.opaque"
_WHITEOUT = b".wh."
_AUFS = b".wh..wh."
_OPAQUE_NAME = b".wh..wh..opq"
_MAX_HOPS = 40
_MAX_XATTRS = 65536
"""Bytes of attributes on one inode; a kernel lists no more (XATTR_LIST_MAX)."""
_XATTRS = re.compile(rb"(?!(?:trusted|user)\.overlay\.)(?:user|trusted|security)\..+|system\.posix_acl_(?:access|default)", re.DOTALL)
"""Attributes that a layer may carry: those that every file system for layers can hold, less overlayfs's own."""
_SPECIAL = (b"", b".", b"..")
_FORMATS = {
    Kind.FILE: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.FIFO: stat.S_IFIFO,
}


class Node:
    """One inode. Several directory entries may hold the same node (hard links)."""

    __slots__ = ("children", "gid", "implied", "lower", "mode", "mtime_ns", "offset", "rdev", "size", "sparse", "target", "uid", "xattrs")

    def __init__(self, mode: int, uid: int = 0, gid: int = 0, mtime_ns: int = 0) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.size = 0
        self.offset = 0
        self.rdev = (0, 0)
        self.target: bytes | None = None
        """Where a symbolic link points."""
        self.lower: bytes | None = None
        """For a hard link whose target is not in this layer: the target's path."""
        self.sparse: tuple[tuple[int, int], ...] | None = None
        self.xattrs: dict[bytes, bytes] | None = None
        self.implied = False
        """Whether this directory has no entry of its own (yet): only something below it has."""
        self.children: dict[bytes, Node] | None = {} if mode & 0o170000 == stat.S_IFDIR else None

    @property
    def is_whiteout(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFCHR and self.rdev == (0, 0)


def _whiteout() -> Node:
    return Node(stat.S_IFCHR)


def _show(name: bytes) -> str:
    return repr(name.decode("utf-8", "backslashreplace"))


class Tree:
    """The growing tree of one layer."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.root = Node(stat.S_IFDIR | 0o755)
        self.root_given = False
        """Whether the layer itself has an entry for its root directory."""
        self.dropped: set[bytes] = set()
        """Names of extended attributes that were left out."""
        self._limits = limits
        self._implies = False
        self._missing: list[tuple[bytes, Node]] = []
        self._directories: dict[bytes, Node] = {b"": self.root, b".": self.root}
        """Cache: a directory part as tars write it → its node. Emptied whenever a directory or a symbolic link is replaced."""

    def add(self, entry: Entry) -> Node | None:
        """Apply one entry, as extracting it would; the node that its name has now, if it is an object of its own."""
        name = entry.name
        if name.endswith(b"/"):
            name = name.rstrip(b"/")
        head, _, base = name.rpartition(b"/")
        if _AUFS in head and any(part.startswith(_AUFS) for part in head.split(b"/")):
            return None
        parent = self._directories.get(head)
        if parent is None or base in _SPECIAL or len(base) > self._limits.name:
            parts = self._clean(entry.name)
            if not parts:
                self._set_root(entry)
                return None
            base = parts.pop()
            parent = self._descend(parts, entry.name)
            if not entry.name.endswith(b"/..") and b"/../" not in entry.name:
                self._directories[head] = parent
        if base.startswith(_WHITEOUT):
            self._hide(parent, base)
            return None
        children = parent.children
        assert children is not None
        old = children.get(base)
        if entry.kind is Kind.LINK:
            new = self._link(entry)
            if new is old:
                return new
        else:
            if entry.kind is Kind.DIRECTORY and old is not None and old.children is not None:
                self._update(old, entry)
                return old
            new = self._node(entry)
        if old is not None:
            self._replaced(old, new)
        children[base] = new
        return new

    def _clean(self, name: bytes) -> list[bytes]:
        """The components of a name, ``.`` and ``..`` resolved lexically; absolute names are taken as relative to the root."""
        parts: list[bytes] = []
        for part in name.split(b"/"):
            if part == b"..":
                if not parts:
                    if name.startswith(b"/"):
                        continue
                    raise Corrupt(f"entry {_show(name)} is outside of the layer")
                parts.pop()
            elif part not in _SPECIAL:
                if len(part) > self._limits.name:
                    raise InvalidArgument(f"entry {_show(name[:80])} has a name longer than {self._limits.name} bytes")
                parts.append(part)
        return parts

    def _descend(self, parts: list[bytes], name: bytes) -> Node:
        """The directory at ``parts``, made where missing; symbolic links are followed inside the root."""
        found = self._walk(parts, name, create=True)
        assert found is not None
        return found

    def _walk(self, parts: list[bytes], name: bytes, *, create: bool) -> Node | None:
        todo = parts[::-1]
        path = [self.root]
        hops = 0
        while todo:
            part = todo.pop()
            if part == b"" or part == b".":
                continue
            if part == b"..":
                if len(path) > 1:
                    path.pop()
                continue
            children = path[-1].children
            assert children is not None
            node = children.get(part)
            if node is not None and node.target is not None:
                hops += 1
                if hops > _MAX_HOPS or len(todo) > self._limits.path:
                    raise Corrupt(f"entry {_show(name)} goes through too many symbolic links")
                if node.target.startswith(b"/"):
                    del path[1:]
                todo.extend(node.target.split(b"/")[::-1])
                continue
            if node is None or node.is_whiteout:
                if not create:
                    return None
                if len(part) > self._limits.name:
                    raise InvalidArgument(f"entry {_show(name[:80])} has a name longer than {self._limits.name} bytes")
                made = Node(stat.S_IFDIR | 0o755)
                made.implied = node is None
                self._implies |= made.implied
                if node is not None:
                    made.xattrs = {OPAQUE: b"y"}
                children[part] = node = made
            elif node.children is None:
                if not create:
                    return None
                raise Corrupt(f"entry {_show(name)} lies below {_show(part)}, which is not a directory")
            path.append(node)
            if create and len(path) > self._limits.depth:
                raise InvalidArgument(f"entry {_show(name[:80])} is nested deeper than {self._limits.depth} directories")
        return path[-1]

    def _node(self, entry: Entry) -> Node:
        node = Node(_FORMATS[entry.kind] | entry.mode, entry.uid, entry.gid, entry.mtime_ns)
        kind = entry.kind
        if kind is Kind.FILE:
            node.size, node.offset, node.sparse = entry.size, entry.offset, entry.sparse
        elif kind is Kind.SYMLINK:
            if not entry.linkname:
                raise Corrupt(f"entry {_show(entry.name)} is a symbolic link without a target")
            node.target, node.size, node.mode = entry.linkname, len(entry.linkname), stat.S_IFLNK | 0o777
        elif kind is Kind.CHARACTER or kind is Kind.BLOCK:
            if not 0 <= entry.major < 1 << 12 or not 0 <= entry.minor < 1 << 20:
                raise Corrupt(f"entry {_show(entry.name)} has an impossible device number {entry.major}:{entry.minor}")
            node.rdev = entry.major, entry.minor
        if entry.xattrs:
            node.xattrs = self._keep(entry.xattrs)
        return node

    def _keep(self, xattrs: dict[bytes, bytes]) -> dict[bytes, bytes] | None:
        kept = {}
        if sum(map(len, xattrs)) + sum(map(len, xattrs.values())) > _MAX_XATTRS:
            raise InvalidArgument(f"an entry has more than {_MAX_XATTRS} bytes of extended attributes")
        for key, value in xattrs.items():
            if not _XATTRS.fullmatch(key) or len(key) > 255 or len(value) > 65535:
                self.dropped.add(key)
            else:
                kept[key] = value
        return kept or None

    def _update(self, node: Node, entry: Entry) -> None:
        """A directory entry for a directory that exists: its attributes change, its content and opacity stay."""
        opaque = node.xattrs is not None and OPAQUE in node.xattrs
        node.implied = False
        node.mode = stat.S_IFDIR | entry.mode
        node.uid, node.gid, node.mtime_ns = entry.uid, entry.gid, entry.mtime_ns
        node.xattrs = self._keep(entry.xattrs) if entry.xattrs else None
        if opaque:
            node.xattrs = {**(node.xattrs or {}), OPAQUE: b"y"}

    def _set_root(self, entry: Entry) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise Corrupt(f"entry {_show(entry.name)} would replace the layer's root by a {entry.kind.value}")
        self.root_given = True
        self._update(self.root, entry)

    def _hide(self, parent: Node, base: bytes) -> None:
        """Apply a whiteout or opaque mark."""
        if base == _OPAQUE_NAME:
            parent.xattrs = {**(parent.xattrs or {}), OPAQUE: b"y"}
            return
        hidden = base[len(_WHITEOUT) :]
        if base.startswith(_AUFS):
            return
        if hidden in _SPECIAL:
            raise Corrupt(f"whiteout {_show(base)} names no file")
        children = parent.children
        assert children is not None
        old = children.get(hidden)
        if old is None:
            children[hidden] = _whiteout()
        elif old.children is not None:
            old.xattrs = {**(old.xattrs or {}), OPAQUE: b"y"}

    def _replaced(self, old: Node, new: Node) -> None:
        if old.is_whiteout and new.children is not None:
            new.xattrs = {**(new.xattrs or {}), OPAQUE: b"y"}
        if old.children is not None or old.target is not None:
            self._directories = {b"": self.root, b".": self.root}

    def _link(self, entry: Entry) -> Node:
        parts = self._clean(entry.linkname)
        found = self._find(parts, entry.linkname)
        if found is None:
            waiting = Node(stat.S_IFREG)
            waiting.lower = b"/".join(parts)
            self._missing.append((entry.name, waiting))
            return waiting
        if found.children is not None:
            raise Corrupt(f"entry {_show(entry.name)} is a hard link to the directory {_show(entry.linkname)}")
        found.uid, found.gid = entry.uid, entry.gid
        if found.target is None:
            found.mode = stat.S_IFMT(found.mode) | entry.mode
            found.mtime_ns = entry.mtime_ns
            if entry.xattrs:
                found.xattrs = {**(found.xattrs or {}), **(self._keep(entry.xattrs) or {})} or None
        return found

    def _find(self, parts: list[bytes], name: bytes) -> Node | None:
        if not parts:
            return self.root
        parent = self._directories.get(b"/".join(parts[:-1])) or self._walk(parts[:-1], name, create=False)
        if parent is None or parent.children is None:
            return None
        node = parent.children.get(parts[-1])
        return None if node is None or node.is_whiteout else node

    def locate(self, path: bytes) -> Node | None:
        """What lies at ``path`` in the finished tree, links in its directories followed inside the root; None when nothing does."""
        parts = self._clean(path)
        if not parts:
            return self.root
        parent = self._walk(parts[:-1], path, create=False)
        return parent.children.get(parts[-1]) if parent is not None and parent.children is not None else None

    def missing(self) -> dict[bytes, list[Node]]:
        """Hard links still in the tree whose targets are not: target path → the nodes that wait for it."""
        if not self._missing:
            return {}
        present = {id(node) for _, node in self.walk()}
        waiting: dict[bytes, list[Node]] = {}
        for _, node in self._missing:
            if id(node) in present and node.lower is not None:
                waiting.setdefault(node.lower, []).append(node)
        return waiting

    def implied(self) -> list[bytes]:
        """The paths of directories that have no entry of their own."""
        return [path for path, node in self.walk() if node.implied] if self._implies else []

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every path with its node, the root (as ``b""``) first, parents before children, names in byte order."""
        stack: list[tuple[bytes, Node]] = [(b"", self.root)]
        while stack:
            path, node = stack.pop()
            yield path, node
            if node.children:
                prefix = path + b"/" if path else b""
                stack.extend((prefix + name, node.children[name]) for name in sorted(node.children, reverse=True))
