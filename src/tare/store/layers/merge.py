"""The trees of a stack of layers as one tree: what overlayfs does with directories, done on the model, for the driver that has no overlay.

An upper directory keeps the lower one's content unless it is opaque, and brings its own attributes; a whiteout removes; anything else
replaces. A hard link into a layer below becomes a copy, as copy-up would make it. Since layers are different tars, the file offsets of
layer N are moved to ``N << SHIFT``: one address space, of which ``extract`` takes the parts apart again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from tare.errors import Corrupt
from tare.store.layers.extract import SHIFT
from tare.store.layers.tree import OPAQUE, Node, Tree


def merge(trees: Iterable[Tree]) -> Tree:
    """One tree of several, given bottom first, which are used up."""
    merged = Tree()
    for number, tree in enumerate(trees):
        _move(tree.root, number << SHIFT, merged)
        _lay(merged.root, tree.root, own=tree.root_given)
        merged.root_given |= tree.root_given
    return merged


def _move(root: Node, base: int, below: Tree) -> None:
    """Move all offsets by ``base``, and put copies of the files of ``below`` in the place of hard links to them, one inode for each."""
    seen: set[int] = set()
    copies: dict[bytes, Node] = {}
    stack = [root]
    while stack:
        children = stack.pop().children
        assert children is not None
        for name, node in children.items():
            if node.children is not None:
                stack.append(node)
            elif node.lower is not None:
                if node.lower not in copies:
                    copies[node.lower] = _copy(below, node.lower)
                children[name] = copies[node.lower]
            elif id(node) not in seen:
                seen.add(id(node))
                node.offset += base


def _copy(below: Tree, target: bytes) -> Node:
    found = below.locate(target)
    if found is None or found.children is not None:
        raise Corrupt(f"hard link to {os.fsdecode(target)!r}, which neither this layer nor those below it hold")
    node = Node(found.mode)
    for name in Node.__slots__:
        setattr(node, name, getattr(found, name))
    return node


def _lay(lower: Node, upper: Node, *, own: bool = True) -> None:
    """Lay one directory over another: ``lower`` becomes the result. ``own``: the upper one's attributes count."""
    stack = [(lower, upper, own)]
    while stack:
        lower, upper, own = stack.pop()
        assert lower.children is not None and upper.children is not None
        if own:
            lower.mode, lower.uid, lower.gid, lower.mtime_ns = upper.mode, upper.uid, upper.gid, upper.mtime_ns
            lower.xattrs = {key: value for key, value in (upper.xattrs or {}).items() if key != OPAQUE} or None
        if upper.xattrs is not None and OPAQUE in upper.xattrs:
            lower.children.clear()
        for name, node in upper.children.items():
            if node.is_whiteout:
                lower.children.pop(name, None)
            elif node.children is None:
                lower.children[name] = node
            else:
                below = lower.children.get(name)
                if below is None or below.children is None:
                    below = lower.children[name] = Node(node.mode)
                    stack.append((below, node, True))
                else:
                    stack.append((below, node, not node.implied))
