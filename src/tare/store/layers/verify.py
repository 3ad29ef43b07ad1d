"""Is a stored layer still what its diff_id says? The question of ``fsck``, asked of the files on disk.

The tar, kept or made again, must have the digest; and what is *shown* must be what the tar means: the EROFS index byte for byte the one
that would be built now, extracted files of the right type, owner, mode, size, target and attributes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from tare.errors import Corrupt, TareError
from tare.oci.digest import Digest
from tare.store.layers import erofs_image
from tare.store.layers.driver import Layer, LayerDriver, tree_of
from tare.store.layers.tree import Node, Tree


def verify(driver: LayerDriver, diff_id: Digest) -> str | None:
    """What is wrong with a layer; None when nothing is. Reads all of it. A layer that goes meanwhile is right."""
    try:
        layer = driver.get(diff_id)
        if layer is None:
            return "it has no record" if driver.path(diff_id).exists() else None
        if not driver.has_tar(diff_id):
            return None if layer.form == "directory" else "its tar is gone"
        tree = tree_of(_checked(driver, diff_id))
        return _index(driver, layer, tree) if layer.form == "erofs" else _files(driver, layer, tree)
    except TareError as error:
        return str(error)
    except FileNotFoundError as error:
        return None if not driver.path(diff_id).exists() else f"{error.filename} is gone"
    except OSError as error:
        return f"it cannot be read: {error}"


def _checked(driver: LayerDriver, diff_id: Digest) -> Iterator[bytes]:
    hasher = diff_id.hasher()
    for chunk in driver.tar(diff_id):
        hasher.update(chunk)
        yield chunk
    if not diff_id.matches(hasher):
        raise Corrupt(f"its tar has the digest {diff_id.algorithm}:{hasher.hexdigest()}")


def _index(driver: LayerDriver, layer: Layer, tree: Tree) -> str | None:
    padded = layer.tar_size + -layer.tar_size % erofs_image.BLOCK
    directory = driver.path(layer.diff_id)
    if (directory / "layer.tar").stat().st_size != padded:
        return "its tar has the wrong length"
    wanted = erofs_image.build(tree, padded, bytes.fromhex(layer.diff_id.hex)[:16])
    return None if (directory / "meta.erofs").read_bytes() == wanted else "its index is not the one that belongs to its tar"


def _files(driver: LayerDriver, layer: Layer, tree: Tree) -> str | None:
    if layer.form != "directory":
        return None
    root = os.fsencode(driver.path(layer.diff_id) / "fs")
    count = 0
    for path, node in tree.walk():
        count += 1
        wrong = _differs(os.path.join(root, path), node)
        if wrong and path:
            return f"{wrong} of {os.fsdecode(path)!r} is not what the layer says"
    there = 1 + sum(len(names) + len(files) for _, names, files in os.walk(root))
    return None if there == count else f"it has {there} files instead of {count}"


def _differs(path: bytes, node: Node) -> str | None:
    status = os.lstat(path)
    kind = stat.S_IFMT(node.mode)
    if stat.S_IFMT(status.st_mode) != kind:
        return "the type"
    if (status.st_uid, status.st_gid) != (node.uid, node.gid):
        return "the owner"
    if kind == stat.S_IFLNK:
        return None if os.readlink(path) == node.target else "the target"
    if stat.S_IMODE(status.st_mode) != node.mode & 0o7777:
        return "the mode"
    if kind == stat.S_IFREG and status.st_size != node.size:
        return "the length"
    if kind in (stat.S_IFCHR, stat.S_IFBLK) and status.st_rdev != os.makedev(*node.rdev):
        return "the device number"
    return None
