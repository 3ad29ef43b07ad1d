"""The driver for any kernel with overlayfs: layers are extracted, each into a directory of its own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tare.errors import Unsupported
from tare.linux.mount import overlay
from tare.oci.digest import Digest
from tare.store.durability import make_directory, remove_tree
from tare.store.layers.driver import LayerDriver, LayerWriter


def probe_overlay(lower: Path, scratch: Path, driver: str) -> None:
    """Mount an overlay over ``lower`` with its upper directory in ``scratch`` (detached: nobody sees it) and write through it."""
    upper, work = scratch / "upper", scratch / "work"
    upper.mkdir()
    work.mkdir()
    try:
        mounted = overlay([str(lower)], str(upper), str(work))
    except OSError as error:
        raise Unsupported(
            f"storage driver {driver} is impossible under {scratch.parent}: overlayfs cannot be mounted there ({error}); "
            "use a data root on ext4, xfs, btrfs or tmpfs (not on another overlay)"
        ) from error
    try:
        os.mkdir("written", dir_fd=mounted)
    except OSError as error:
        raise Unsupported(f"storage driver {driver} is impossible: overlayfs under {scratch.parent} is not writable ({error})") from error
    finally:
        os.close(mounted)


class OverlayDriver(LayerDriver):
    """Extracted layers for overlayfs."""

    name = "overlay"

    @classmethod
    def probe(cls, root: Path, exec_root: Path) -> None:
        make_directory(root, 0o711)
        scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=root))
        try:
            (scratch / "lower").mkdir()
            probe_overlay(scratch / "lower", scratch, cls.name)
        finally:
            remove_tree(scratch)

    def _form(self, writer: LayerWriter, diff_id: Digest) -> str:
        return self._extract_into(writer)
