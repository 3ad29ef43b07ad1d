"""The initramfs of the test machine: a static busybox, the modules for the shared root, and a script that enters it.

Written as a "newc" cpio archive (Documentation/driver-api/early-userspace/buffer-format.rst) without any tool. The script mounts the host's
root directory (virtiofs, read-only), lays a tmpfs over it, and hands over to ``guest.py`` there.
"""

from __future__ import annotations

from pathlib import Path

_SCRIPT = """#!/bin/busybox sh
B=/bin/busybox
$B mount -t devtmpfs dev /dev
for module in {modules}; do $B insmod /modules/$module || echo "tare-vm: $module failed"; done
$B mount -t virtiofs -o ro host /lower || exec $B poweroff -f
$B mount -t tmpfs -o mode=755 tmpfs /space
$B mkdir /space/upper /space/work
$B mount -t overlay -o lowerdir=/lower,upperdir=/space/upper,workdir=/space/work root /root || exec $B poweroff -f
$B mount --move /dev /root/dev
$B cp /job.json /root/job.json
exec $B switch_root /root {python} -I {guest}
"""


def build(busybox: Path, modules: list[Path], python: Path, guest: Path, job: bytes) -> bytes:
    """The archive. ``python`` and ``guest`` are paths on the host, and thereby in the guest."""
    archive = _Archive()
    for name in ("bin", "dev", "modules", "lower", "space", "root"):
        archive.add(name, 0o040755, b"")
    archive.add("bin/busybox", 0o100755, busybox.read_bytes())
    for module in modules:
        archive.add(f"modules/{module.name}", 0o100644, module.read_bytes())
    script = _SCRIPT.format(modules=" ".join(module.name for module in modules), python=python, guest=guest)
    archive.add("init", 0o100755, script.encode())
    archive.add("job.json", 0o100600, job)
    # The kernel opens /dev/console for init before any script could mount a devtmpfs.
    archive.add("dev/console", 0o020600, b"", device=(5, 1))
    return archive.finish()


class _Archive:
    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts += [_padded(header + encoded), _padded(data)]

    def finish(self) -> bytes:
        self.add("TRAILER!!!", 0, b"")
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
