"""The driver that unpacks nothing: a layer's tar is its own file system, through an EROFS index beside it (``erofs_image.py``).

Needs file-backed EROFS mounts (Linux 6.12); on older kernels with EROFS loop devices do, two for each layer in use (the kernel must know
blocks of 512 bytes, 6.4). What works is tried when the driver is probed and remembered. A layer that the index cannot express is extracted
instead, so every layer works.

Mounts lie at ``exec_root/layers/erofs/SHORT``, one per layer, shared by all containers, made at the first ``acquire`` and kept. They
outlive the daemon: the next one finds them in the mount table and takes over those whose source is the index that it would mount itself.
Unmounting is always safe, because an overlay holds private clones of its lower mounts.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from tare.errors import TareError, Unsupported
from tare.linux import libc, loop
from tare.linux.constants import MNT_DETACH, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, O_PATH
from tare.linux.mount import FSCONFIG_STRING_LIMIT, Filesystem, move_mount
from tare.oci.digest import Digest
from tare.store.durability import make_directory, remove_tree, write_all
from tare.store.layers import erofs_image
from tare.store.layers.driver import Layer, LayerDriver, LayerWriter
from tare.store.layers.overlay import probe_overlay
from tare.store.layers.tree import Tree
from tare.store.tar.entry import DEFAULT_LIMITS, Entry, Kind, Limits

_NO_SUCH_WAY = (errno.ENOTBLK, errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP)
"""What a kernel without file-backed EROFS answers."""
_ATTRIBUTES = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID


def mount_image(image: Path, tar: Path, target: Path) -> None:
    """Mount an index with its tar at ``target``, both as plain files (Linux 6.12)."""
    opened: list[int] = []

    def name(path: Path) -> str:
        text = str(path)
        if len(os.fsencode(text)) <= FSCONFIG_STRING_LIMIT:
            return text
        opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return f"/proc/self/fd/{opened[-1]}"

    try:
        _mount(name(image), name(tar), target)
    finally:
        for file in opened:
            os.close(file)


def mount_image_by_loop(image: Path, tar: Path, target: Path) -> None:
    """The same through two loop devices, which go with the mount."""
    opened: list[int] = []

    def device(path: Path) -> str:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        opened.append(file)
        made, name = loop.attach(file)
        opened.append(made)
        return name

    try:
        _mount(device(image), device(tar), target)
    finally:
        for file in opened:
            os.close(file)


def _mount(source: str, device: str, target: Path) -> None:
    with Filesystem("erofs") as context:
        context.set("source", source)
        context.set("device", device)
        context.set("ro")  # a read-only block device is opened for writing otherwise
        mounted = context.mount(_ATTRIBUTES)
    try:
        point = os.open(target, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            move_mount(mounted, point)
        finally:
            os.close(point)
    finally:
        os.close(mounted)


def mount_table(below: Path) -> dict[str, str]:
    """Mount points directly below a directory (their last component) and the sources of their topmost mounts, from mountinfo."""
    found: dict[str, str] = {}
    prefix = str(below) + "/"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.rstrip("\n").partition(" - ")
            point = _unescape(left.split(" ")[4])
            if point.startswith(prefix) and "/" not in point[len(prefix) :]:
                fstype, source = right.split(" ")[:2]
                source = _unescape(source)
                if source.startswith("/dev/loop"):
                    source = loop.backing_file(source) or source
                found[point[len(prefix) :]] = source if fstype == "erofs" else f"{fstype}:"
    return found


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


class ErofsDriver(LayerDriver):
    """Layers shown through their tars."""

    name = "erofs"
    keeps_tar = True
    ways: ClassVar[tuple[Callable[[Path, Path, Path], None], ...]] = (mount_image, mount_image_by_loop)
    """How to mount, best first."""

    def __init__(self, root: Path, exec_root: Path, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(root, exec_root, limits)
        self._real_exec = self._exec.resolve()
        self._mounted: dict[str, str] = mount_table(self._real_exec)
        """Short names of mounted layers, with the source of each."""
        self._device = os.stat(self._exec).st_dev

    @classmethod
    def probe(cls, root: Path, exec_root: Path) -> None:
        scratch = None
        point = None
        try:
            make_directory(root, 0o711)
            make_directory(exec_root / "layers")
            scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=root))
            point = Path(tempfile.mkdtemp(prefix=".probe-", dir=exec_root / "layers"))
            tree = Tree()
            tree.add(Entry(b"probe", Kind.FILE, size=5, offset=512))
            (scratch / "tar").write_bytes(bytes(512) + b"tare\n".ljust(512, b"\0"))
            (scratch / "meta").write_bytes(erofs_image.build(tree, 1024, b"probe"))
            _try_ways(cls.ways, scratch, point)
            (scratch / "overlay").mkdir()
            try:
                probe_overlay(point, scratch / "overlay", cls.name)
            finally:
                libc.umount2(os.fsencode(point), MNT_DETACH)
        finally:
            if point is not None:
                point.rmdir()
            if scratch is not None:
                remove_tree(scratch)

    def _form(self, writer: LayerWriter, diff_id: Digest) -> str:
        try:
            tar_size = writer.offset + -writer.offset % erofs_image.BLOCK
            image = erofs_image.build(writer.tree, tar_size, bytes.fromhex(diff_id.hex)[:16])
        except erofs_image.Unmappable:
            return self._extract_into(writer)
        file = os.open(writer.staging / "meta.erofs", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            write_all(file, image)
            os.fsync(file)
        finally:
            os.close(file)
        os.fsync(writer.file)
        return "erofs"

    def _show(self, layer: Layer) -> Path:
        if layer.form != "erofs":
            return super()._show(layer)
        short = self.short(layer.diff_id)
        point = self._exec / short
        directory = self._root / "l" / short
        source = str(directory / "meta.erofs")
        held = self._mounted.get(short)
        if held in (source, os.path.realpath(source)) and self._is_mounted(point):
            return point
        if held is not None:
            self._unmount(short)
        point.mkdir(mode=0o700, exist_ok=True)
        try:
            self._mount_image(directory / "meta.erofs", directory / "layer.tar", point)
        except OSError as error:
            raise _unmountable(layer, error) from error
        self._mounted[short] = source
        return point

    def _mount_image(self, image: Path, tar: Path, point: Path) -> None:
        """Mount in the first way that works here; loop devices only where files cannot be mounted at all."""
        for way in self.ways[:-1]:
            try:
                way(image, tar, point)
                return
            except OSError as error:
                if error.errno not in _NO_SUCH_WAY:
                    raise
        self.ways[-1](image, tar, point)

    def _is_mounted(self, point: Path) -> bool:
        """Whether somebody unmounted it behind our back: a mount point is on another device than its parent."""
        try:
            return os.stat(point).st_dev != self._device
        except FileNotFoundError:
            return False

    def _unmount(self, short: str) -> None:
        point = self._exec / short
        self._mounted.pop(short, None)
        if self._is_mounted(point):
            libc.umount2(os.fsencode(point), MNT_DETACH)
        try:
            point.rmdir()
        except OSError:
            pass  # something else is mounted or lies there: not ours to judge

    def _hide(self, layer: Layer) -> None:
        short = self.short(layer.diff_id)
        if short in self._mounted:
            self._unmount(short)

    def unmount_idle(self, age: float = 0.0) -> int:
        with self._lock:
            since = time.monotonic() - age
            recent = (diff_id for diff_id, released in self._released.items() if released > since)
            busy = {self.short(diff_id) for diff_id in (*self._counts, *recent)}
            idle = [short for short in self._mounted if short not in busy]
            for short in idle:
                self._unmount(short)
            return len(idle)


def _try_ways(ways: Sequence[Callable[[Path, Path, Path], None]], scratch: Path, point: Path) -> None:
    """Mount the probe's image at ``point`` in the first way that works. Raises ``Unsupported`` telling why none does."""
    reasons = []
    for way in ways:
        try:
            way(scratch / "meta", scratch / "tar", point)
            if (point / "probe").read_bytes() == b"tare\n":
                return
            libc.umount2(os.fsencode(point), MNT_DETACH)
            reasons.append("a test image reads wrongly")
        except OSError as error:
            reasons.append(str(error.strerror or error))
    raise Unsupported(
        f"storage driver erofs is impossible here: an EROFS image can be mounted neither from a file nor by loop ({', '.join(reasons)}); "
        "it needs root and Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE, or 6.4 with loop devices; use --storage-driver overlay"
    )


def _unmountable(layer: Layer, error: OSError) -> TareError:
    said = error.strerror or error
    return Unsupported(f"layer {layer.diff_id} cannot be mounted ({said}): see the kernel's log; remove its image and pull again")
