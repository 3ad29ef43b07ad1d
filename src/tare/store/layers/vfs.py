"""The driver for file systems without overlayfs: a stack of layers is one plain directory, and a container's root a copy of it.

Layers stay tars (form *tar*). On disk, beside what every driver has:

    stacks/KEY/fs/         a stack as one tree, extracted when it is first acquired, for all that use it
    stacks/KEY/layers      the diff_ids it is made of, bottom first; KEY is their hash

Stacks are made again when they are missing, and go with the first of their layers. No overlay attributes and no whiteout devices are ever
written, so the data root may itself lie on an overlay.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tare.errors import Unsupported
from tare.oci.digest import Digest
from tare.store.durability import make_directory, remove_tree, sync_filesystem
from tare.store.layers.driver import Layer, LayerDriver, LayerWriter, tree_of
from tare.store.layers.extract import extract
from tare.store.layers.merge import merge
from tare.store.tar.entry import DEFAULT_LIMITS, Limits


class VfsDriver(LayerDriver):
    """Plain copies."""

    name = "vfs"
    keeps_tar = True
    overlaid = False

    def __init__(self, root: Path, exec_root: Path, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(root, exec_root, limits)
        self._stacks = self._root / "stacks"
        make_directory(self._stacks)

    @classmethod
    def probe(cls, root: Path, exec_root: Path) -> None:
        make_directory(root, 0o711)
        scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=root))
        try:
            os.mknod(scratch / "null", 0o600 | 0o020000, os.makedev(1, 3))
            os.chown(scratch / "null", 1, 1)
        except OSError as error:
            raise Unsupported(f"storage driver vfs is impossible under {root}: it keeps no devices and owners ({error})") from error
        finally:
            remove_tree(scratch)

    def _form(self, writer: LayerWriter, diff_id: Digest) -> str:
        os.fsync(writer.file)
        return "tar"

    def show(self, diff_ids: Sequence[Digest]) -> tuple[Path, ...]:
        with self._lock:
            layers = [layer for layer in map(self._need, diff_ids) if layer.entries]
            return (self._stack(layers),) if layers else (self._root / "empty",)

    def _stack(self, layers: Sequence[Layer]) -> Path:
        names = "".join(f"{layer.diff_id}\n" for layer in layers)
        target = self._stacks / hashlib.sha256(names.encode()).hexdigest()[:32]
        if target.exists():
            return target / "fs"
        staging = Path(tempfile.mkdtemp(dir=self._root / "tmp"))
        try:
            with ExitStack() as opened:
                tars = [opened.enter_context(open(self.path(layer.diff_id) / "layer.tar", "rb")) for layer in layers]
                tree = merge(tree_of(self.tar(layer.diff_id), self._limits) for layer in layers)
                (staging / "fs").mkdir(mode=0o755)
                extract(tree, [tar.fileno() for tar in tars], staging / "fs")
            (staging / "layers").write_text(names)
            sync_filesystem(staging)
            staging.rename(target)
        except OSError as error:
            raise self.translate(error) from error
        finally:
            remove_tree(staging)
        return target / "fs"

    def _hide(self, layer: Layer) -> None:
        """A stack goes with its layers."""
        for stack in list(self._stacks.iterdir()):
            if str(layer.diff_id) in (stack / "layers").read_text().split():
                self._discard(stack)
