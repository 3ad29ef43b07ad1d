"""``--squash``: all that a build put on its base image as one layer.

As Docker's classic builder does it: the history keeps its lines, marked as empty, and a last one tells of the merge. The layer is what a
comparison of the two file trees says, so what one step wrote and a later one removed is not in it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from tare.images.committing import store_layer
from tare.oci.digest import Digest
from tare.oci.image import History, ImageConfig, RootFS, encode
from tare.store.changes import ChangeKind, compare_whole
from tare.store.tartree import tar_changes, tar_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tare.builder.solver import Build, Origin
    from tare.store.layers.driver import Layer


async def squash(build: Build, config: ImageConfig, origin: Origin) -> ImageConfig:
    """The config with one layer over those of ``origin``; the layer is stored and pinned."""
    base = config.diff_ids[: origin.layers]
    if len(config.diff_ids) - len(base) < 1:
        return config
    layer = await build.in_thread(lambda: _merge(build, base, config.diff_ids))
    lines = list(config.history or ())
    lines[origin.history :] = [msgspec.structs.replace(line, empty_layer=True) for line in lines[origin.history :]]
    id = Digest.of(encode(config))
    comment = f"merge {id} to {origin.image}" if origin.image else f"create new from {id}"
    grown = layer.entries > 0
    lines.append(History(created=build.now_text(), comment=comment, empty_layer=not grown))
    diff_ids = [*base, layer.diff_id] if grown else list(base)
    return msgspec.structs.replace(config, rootfs=RootFS(diff_ids), history=lines, created=build.now_text())


def _merge(build: Build, base: tuple[Digest, ...], whole: tuple[Digest, ...]) -> Layer:
    with build.snapshots.view(whole) as root, build.snapshots.view(base) as lower:
        return store_layer(build.layers, _changes(root, lower) if base else tar_tree(root), build.pins.hold)


def _changes(root: int, lower: int) -> Iterator[bytes]:
    changes = [(os.fsencode(change.path)[1:], change.kind) for change in compare_whole(root, lower)]
    kept = frozenset(path for path, kind in changes if kind is not ChangeKind.DELETED)
    return tar_changes(root, kept, [path for path, kind in changes if kind is ChangeKind.DELETED])
