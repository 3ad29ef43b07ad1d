"""Volumes with a size, on a file system that counts projects (where the kernel has such)."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.events import EventBus
from tare.store.metadata import Metadata
from tare.volumes.service import Volumes

pytestmark = pytest.mark.root
MIB = 1 << 20


@pytest.fixture
def counted() -> Iterator[Path]:
    """A directory, reachable for everybody, on an ext4 that is mounted with prjquota."""
    with tempfile.TemporaryDirectory(prefix="tare-test-") as folder:
        os.chmod(folder, 0o711)
        image, place = Path(folder, "image"), Path(folder, "place")
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(64 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota", image], check=True)
        if subprocess.run(["mount", "-o", "loop,prjquota", image, place], capture_output=True, check=False).returncode:
            pytest.skip("this kernel mounts no ext4 with project quotas")
        yield place
        subprocess.run(["umount", place], check=True)


FILL = """
import errno, os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
written = 0
try:
    while written < 16 << 20:
        written += os.write(fd, bytes(65536))
        os.fsync(fd)
except OSError as error:
    assert error.errno == errno.EDQUOT, error
print(written)
"""


def fill(directory: Path) -> int:
    """How many bytes fit, for somebody without CAP_SYS_RESOURCE (which no limit holds, and which containers do not have)."""
    os.chown(directory, 65534, 65534)
    command = ["/usr/bin/python3", "-I", "-c", FILL, str(directory / "f")]
    return int(subprocess.run(command, user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=True).stdout)


def test_a_volume_holds_no_more_than_its_size(counted: Path) -> None:
    metadata = Metadata(counted / "metadata.db")
    volumes = Volumes(counted / "volumes", metadata.volumes, EventBus())
    volumes.start()
    try:
        volumes.create("small", options={"size": "1m"})
        volumes.create("large", options={"size": "4m"})
        volumes.create("free")
        assert 0 < fill(volumes.mountpoint("small")) <= MIB
        assert MIB < fill(volumes.mountpoint("large")) <= 4 * MIB
        assert fill(volumes.mountpoint("free")) == 16 * MIB
        used = volumes.get("small").project
        volumes.remove("small")
        again = volumes.create("again", options={"size": "2m"})
        assert again.project == used and MIB < fill(volumes.mountpoint("again")) <= 2 * MIB
    finally:
        metadata.close()
