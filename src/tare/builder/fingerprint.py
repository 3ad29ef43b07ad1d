"""What a COPY's sources are, as one digest: names, kinds, modes, owners, attributes and contents. Times do not matter.

This is what the cache asks, so whatever changes the layer that comes out, times apart, must change it.
"""

from __future__ import annotations

import hashlib

from tare.builder.trees import FileTree, Found, TarTree
from tare.store.tar.entry import Kind


def content(tree: FileTree, file: Found) -> bytes:
    """SHA-256 of a file's content, remembered with it."""
    if not file.digest:
        hasher = hashlib.sha256(usedforsecurity=False)
        for chunk in tree.read(file):
            hasher.update(chunk)
        file.digest = hasher.digest()
    return file.digest


def fingerprint(tree: FileTree, found: Found, *, owners: bool) -> str:
    """The digest of one object and all that is in it. ``owners``: they are going to be kept, so they count."""
    if isinstance(tree, TarTree):
        return tree.fingerprint(found, owners, lambda: _fingerprint(tree, found, owners=owners))
    return _fingerprint(tree, found, owners=owners)


def _fingerprint(tree: FileTree, found: Found, *, owners: bool) -> str:
    hasher = hashlib.sha256(usedforsecurity=False)
    links: dict[object, bytes] = {}
    stack: list[tuple[bytes, Found]] = [(b"", found)]
    while stack:
        path, each = stack.pop()
        fields: list[bytes] = [path, each.kind.value.encode(), b"%o" % each.mode]
        if owners:
            fields.append(b"%d:%d" % (each.uid, each.gid))
        if each.kind is Kind.FILE:
            first = links.setdefault(each.inode, path) if each.inode is not None else path
            fields += [b"%d" % each.size, content(tree, each), first]
        elif each.kind is Kind.SYMLINK:
            fields.append(each.target)
        elif each.kind in (Kind.CHARACTER, Kind.BLOCK):
            fields.append(b"%d:%d" % each.rdev)
        for name in sorted(each.xattrs):
            fields += [name, each.xattrs[name]]
        hasher.update(b"".join(b"%d:%s," % (len(field), field) for field in fields) + b"\n")
        if each.is_directory:
            inside = [(path + b"/" + name, child) for name, child in tree.children(each)]
            stack += reversed(inside)
    return hasher.hexdigest()
