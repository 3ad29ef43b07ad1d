"""Directories that a layer does not name, but has something in, look as the layers below have them.

A merged application of layers gives that for free. An overlay does not: the upper directory's attributes win, so one that was only implied
must be given those of the directory that it will cover. That depends on the stack; a layer for which it makes a difference is extracted
once more for that stack (``driver.py``), which few layers need.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from tare.linux.constants import O_PATH, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS
from tare.linux.mount import openat2
from tare.store.layers.tree import Tree

_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS

Attributes = tuple[int, int, int, dict[bytes, bytes]]
"""Mode, uid, gid, extended attributes."""
_PLAIN: Attributes = (0o755, 0, 0, {})


def inherited(path: bytes, lowers: Sequence[Path]) -> Attributes | None:
    """The attributes of the directory at ``path`` in the layers below (topmost first); None when those of an implied one are right."""
    for lower in lowers:
        root = os.open(lower, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = openat2(root, path, O_PATH | os.O_NOFOLLOW, _INSIDE)
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                return None  # a file, a link or a whiteout hides what lies below
            raise
        finally:
            os.close(root)
        try:
            status = os.fstat(found)
            if not stat.S_ISDIR(status.st_mode):
                return None
            link = f"/proc/self/fd/{found}"
            names = [name for name in os.listxattr(link) if not name.startswith("trusted.overlay.")]
            xattrs = {os.fsencode(name): os.getxattr(link, name) for name in names}
            attributes = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, xattrs
            return None if attributes == _PLAIN else attributes
        finally:
            os.close(found)
    return None


def inherit(tree: Tree, lowers: Sequence[Path]) -> None:
    """Give the implied directories of ``tree`` the attributes that they have in the layers below, topmost first."""
    for path, node in tree.walk():
        if node.implied and (attributes := inherited(path, lowers)) is not None:
            mode, node.uid, node.gid, xattrs = attributes
            node.mode = stat.S_IFDIR | mode
            node.xattrs = {**xattrs, **(node.xattrs or {})} or None
