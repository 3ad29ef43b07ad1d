"""An EROFS image that is all metadata: the files' bytes stay where they are, in the layer's tar.

EROFS (kernel: fs/erofs/erofs_fs.h) allows extra devices. Ours is the uncompressed tar, mapped behind the image in one address space of
512-byte blocks; since tar bodies begin at multiples of 512, a regular file is one extent, "flat plain", at a block of the tar.

    image file (primary device)                                     │ layer.tar (device 1)
    0      1024         1152        2048                            │ mapped at block ``blocks``
    ┌──────┬────────────┬───────────┬─────────┬────────────────────┐┌─────────────────────────────┐
    │  0   │ superblock │ dev. slot │ inodes  │ directories, links ││ header body header body ... │
    └──────┴────────────┴───────────┴─────────┴────────────────────┘└─────────────────────────────┘

    inode (extended, 64 bytes) [xattr header 12 bytes, xattr entries, padded to 32]        nid = offset / 32 from there
    directory block: dirents (nid 8, name offset 2, type 1, 0) in byte order of the names ("." and ".." sorted among them), then names

Limits: 2^32 blocks of 512 bytes (2 TiB) in one layer. What this cannot say (sparse bodies, hard links into other layers) raises
``Unmappable``; the caller extracts the layer then.
"""

from __future__ import annotations

import stat
import struct

from tare.store.layers.tree import Node, Tree

BLOCK = 512
_META_BLOCK = 4
_FIRST_INODE = 64
"""Bytes of the inode area that stay empty: a nid is the inode number, and C libraries leave out directory entries whose number is 0."""
_MAGIC = 0xE0F5E1E2
_DEVICE_TABLE = 8
"""feature_incompat: there are extra devices."""
_SLOT = 1152
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_DEVICE = struct.Struct("<64sII56x")
_INODE = struct.Struct("<HHHHQIIIIqIII12x")
_DIRENT = struct.Struct("<QHBB")
_XATTR_HEADER = bytes(12)
_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)
_FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFLNK: 7,
}


class Unmappable(Exception):
    """This layer cannot be shown through its tar; the message says why."""


def build(tree: Tree, tar_size: int, uuid: bytes) -> bytes:
    """The image for ``tree``, whose file offsets point into a tar of ``tar_size`` bytes (a multiple of 512)."""
    return _Builder(tree).build(tar_size, uuid)


def _xattrs(xattrs: dict[bytes, bytes]) -> bytes:
    """The inline attribute area of an inode: header without shared entries, then each attribute padded to 4 bytes."""
    area = bytearray(_XATTR_HEADER)
    for name in sorted(xattrs):
        value = xattrs[name]
        for prefix, index in _PREFIXES:
            if name.startswith(prefix):
                rest = name[len(prefix) :]
                area += struct.pack("<BBH", len(rest), index, len(value)) + rest + value
                area += bytes(-len(area) % 4)
                break
    return bytes(area)


def _blocks(length: int) -> int:
    return -(-length // BLOCK)


class _Builder:
    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._nids: dict[Node, int] = {}
        self._links: dict[Node, int] = {}
        self._parents: dict[Node, Node] = {tree.root: tree.root}
        self._areas: dict[Node, bytes] = {}
        self._starts: dict[Node, int] = {}
        self._sizes: dict[Node, int] = {}
        self._data = bytearray()

    def build(self, tar_size: int, uuid: bytes) -> bytes:
        inode_bytes = self._number()
        first_data = _META_BLOCK + _blocks(inode_bytes)
        for node in self._nids:
            if node.children is not None:
                self._place(node, self._directory(node, node.children), first_data)
            elif node.target is not None:
                self._place(node, node.target, first_data)
        blocks = first_data + _blocks(len(self._data))
        if blocks + _blocks(tar_size) >= 1 << 32:
            raise Unmappable("the layer is larger than 2 TiB")
        image = bytearray(_META_BLOCK * BLOCK)
        _SUPERBLOCK.pack_into(
            image, 1024, _MAGIC, 0, 0, 9, 0, self._nids[self._tree.root], len(self._nids), 0, 0, blocks, _META_BLOCK, 0,
            uuid[:16].ljust(16, b"\0"), b"tare".ljust(16, b"\0"), _DEVICE_TABLE, 0, 1, _SLOT // 128, 0, 0, 0, 0, 0,
        )  # fmt: skip
        _DEVICE.pack_into(image, _SLOT, b"", _blocks(tar_size), blocks)
        image += self._inodes(inode_bytes, blocks)
        image += self._data
        return bytes(image)

    def _number(self) -> int:
        """Give every inode its place, count links and find parents; returns the length of the inode area."""
        position = _FIRST_INODE
        stack = [self._tree.root]
        links = self._links
        while stack:
            node = stack.pop()
            if node in self._nids:
                continue
            if node.sparse is not None:
                raise Unmappable("a file is stored sparse")
            if node.lower is not None:
                raise Unmappable("a hard link points into a layer below")
            self._nids[node] = position // 32
            position += 64
            if node.xattrs:
                area = self._areas[node] = _xattrs(node.xattrs)
                position += len(area)
                position += -position % 32
            if node.children is not None:
                links[node] = links.get(node, 0) + 2
                for child in node.children.values():
                    if child.children is not None:
                        self._parents[child] = node
                        links[node] += 1
                    else:
                        links[child] = links.get(child, 0) + 1
                    stack.append(child)
        return position + -position % BLOCK

    def _directory(self, node: Node, children: dict[bytes, Node]) -> bytes:
        """A directory's blocks, the last one cut at its end."""
        entries = [*children.items(), (b".", node), (b"..", self._parents[node])]
        entries.sort(key=lambda item: item[0])
        blocks: list[bytes] = []
        current: list[tuple[bytes, Node]] = []
        used = 0
        for entry in entries:
            need = 12 + len(entry[0])
            if used + need > BLOCK:
                blocks.append(self._directory_block(current).ljust(BLOCK, b"\0"))
                current, used = [], 0
            current.append(entry)
            used += need
        blocks.append(self._directory_block(current))
        return b"".join(blocks)

    def _directory_block(self, entries: list[tuple[bytes, Node]]) -> bytes:
        offset = 12 * len(entries)
        parts = []
        for name, node in entries:
            parts.append(_DIRENT.pack(self._nids[node], offset, _FILE_TYPES[node.mode & 0o170000], 0))
            offset += len(name)
        parts.extend(name for name, _ in entries)
        return b"".join(parts)

    def _place(self, node: Node, data: bytes, first_block: int) -> None:
        self._starts[node] = first_block + len(self._data) // BLOCK
        self._sizes[node] = len(data)
        self._data += data
        self._data += bytes(-len(data) % BLOCK)

    def _inodes(self, length: int, mapped: int) -> bytes:
        area = bytearray(length)
        for number, (node, nid) in enumerate(self._nids.items(), 1):
            kind = node.mode & 0o170000
            size = place = 0
            if kind == stat.S_IFREG:
                size = node.size
                place = mapped + node.offset // BLOCK if size else 0
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                major, minor = node.rdev
                place = (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
            elif kind != stat.S_IFIFO:
                size, place = self._sizes[node], self._starts[node]
            xattrs = self._areas.get(node)
            count = 0
            if xattrs is not None:
                count = 1 + (len(xattrs) - len(_XATTR_HEADER)) // 4
                area[nid * 32 + 64 : nid * 32 + 64 + len(xattrs)] = xattrs
            seconds, nanoseconds = divmod(node.mtime_ns, 1_000_000_000)
            _INODE.pack_into(
                area, nid * 32, 1, count, node.mode, 0, size, place, number,
                node.uid, node.gid, seconds, nanoseconds, self._links.get(node, 1), 0,
            )  # fmt: skip
        return bytes(area)
