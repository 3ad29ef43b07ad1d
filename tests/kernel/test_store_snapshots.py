"""Snapshots over both stacked drivers: the life of one, what changed in it, and trees that a hostile container prepared."""

from __future__ import annotations

import io
import os
import socket
import stat
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "suites"))

from layer_driver import CAPABILITY, file, fingerprint, other, pack, rich_tree, store

from tare.errors import Conflict, InvalidArgument, NotFound
from tare.linux.mount import overlay
from tare.oci.digest import Digest
from tare.store.changes import ChangeKind
from tare.store.layers.choice import choose
from tare.store.layers.driver import LayerDriver
from tare.store.snapshots import Snapshots
from tare.store.tar.entry import Kind

pytestmark = pytest.mark.root
A, M, D = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED


@pytest.fixture(params=["erofs", "overlay", "vfs"])
def layers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LayerDriver]:
    driver = choose(tmp_path / "data", tmp_path / "exec", request.param)
    yield driver
    driver.close()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def snapshots(layers: LayerDriver, tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "data", layers)


@pytest.fixture
def stack(layers: LayerDriver) -> list[Digest]:
    below = pack(
        other(".", Kind.DIRECTORY, mode=0o750, uid=3, gid=4), other("d", Kind.DIRECTORY), file("d/a", b"a"), file("d/b", b"b"),
        other("d/sub", Kind.DIRECTORY), file("d/sub/x", b"x"), file("f", b"f"), other("link", Kind.SYMLINK, "/etc"), file("gone", b"g"),
    )  # fmt: skip
    above = pack(file("d/c", b"c"), file(".wh.gone"))
    return [store(layers, tar).diff_id for tar in (below, above)]


def members(parts: Iterator[bytes]) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as archive:
        return {info.name: info for info in archive.getmembers()}


def test_life(snapshots: Snapshots, stack: list[Digest], tmp_path: Path, layers: LayerDriver) -> None:
    snapshots.prepare("c1", stack)
    root = snapshots.rootfs("c1")
    assert snapshots.rootfs("c1") == root
    assert len(root.lower) == (2 if layers.overlaid else 0)
    assert layers.busy() == (set(stack) if layers.overlaid else frozenset())
    status = root.upper.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o750, 3, 4)
    if layers.overlaid:
        mounted = overlay([str(path) for path in root.lower], str(root.upper), str(root.work))
        try:
            assert sorted(os.listdir(f"/proc/self/fd/{mounted}")) == ["d", "f", "link"]
            os.makedirs(f"/proc/self/fd/{mounted}/new/tree")
        finally:
            os.close(mounted)
    else:
        assert sorted(os.listdir(root.upper)) == ["d", "f", "link"]
    assert snapshots.layers("c1") == tuple(stack)
    assert list(snapshots.walk()) == ["c1"]
    snapshots.release("c1")
    snapshots.release("c1")
    assert layers.busy() == frozenset()
    snapshots.remove("c1")
    snapshots.remove("c1")
    assert list(snapshots.walk()) == []
    assert os.listdir(tmp_path / "data/snapshots/.trash") == []


def test_bad_requests(snapshots: Snapshots, stack: list[Digest]) -> None:
    snapshots.prepare("c1", stack)
    with pytest.raises(Conflict, match="snapshot c1 exists already"):
        snapshots.prepare("c1", stack)
    with pytest.raises(NotFound, match=r"layer sha256:.* is not stored"):
        snapshots.prepare("c2", [Digest.of(b"?")])
    for call in (snapshots.rootfs, snapshots.usage, snapshots.diff):
        with pytest.raises(NotFound, match="snapshot c3 does not exist"):
            call("c3")
    for bad in ("", "..", "a/b", ".trash"):
        with pytest.raises(InvalidArgument, match="invalid snapshot id"):
            snapshots.prepare(bad, stack)


def test_an_image_without_layers(snapshots: Snapshots, layers: LayerDriver) -> None:
    snapshots.prepare("c1", [])
    root = snapshots.rootfs("c1")
    assert len(root.lower) == int(layers.overlaid)
    with snapshots.mounted("c1", writable=True) as path:
        assert os.listdir(path) == []
        (path / "x").write_text("1")
    assert [change.path for change in snapshots.diff("c1")] == ["/x"]


def test_changes(snapshots: Snapshots, stack: list[Digest]) -> None:
    snapshots.prepare("c1", stack)
    assert snapshots.diff("c1") == []
    with snapshots.mounted("c1", writable=True) as root:
        (root / "d/a").write_text("changed")
        (root / "d/c").unlink()
        (root / "d/n").mkdir()
        (root / "d/n/y").write_text("12345")
        os.link(root / "d/n/y", root / "d/n/z")
        (root / "f").unlink()
        (root / "f").mkdir()
        (root / "link").unlink()
        (root / "link").mkdir()
        (root / "link/passwd").write_text("mine")
    assert [(change.path, change.kind) for change in snapshots.diff("c1")] == [
        ("/d", M), ("/d/a", M), ("/d/c", D), ("/d/n", A), ("/d/n/y", A), ("/d/n/z", A), ("/f", M), ("/link", M), ("/link/passwd", A),
    ]  # fmt: skip
    assert snapshots.usage("c1") == len("changed") + 5 + 4


def test_a_replaced_directory_is_opaque(snapshots: Snapshots, stack: list[Digest], layers: LayerDriver) -> None:
    snapshots.prepare("c1", stack)
    with snapshots.mounted("c1", writable=True) as root:
        for name in ("a", "b", "c", "sub/x"):
            (root / "d" / name).unlink()
        (root / "d/sub").rmdir()
        (root / "d").rmdir()
        (root / "d").mkdir()
        (root / "d/b").write_text("new")
    assert [(change.path, change.kind) for change in snapshots.diff("c1")] == [
        ("/d", M), ("/d/a", D), ("/d/b", M), ("/d/c", D), ("/d/sub", D),
    ]  # fmt: skip
    tar = b"".join(snapshots.changeset("c1"))
    marks = ["d", "d/.wh..wh..opq"] if layers.overlaid else ["d/.wh.a", "d/.wh.c", "d/.wh.sub", "d"]
    assert list(members(iter([tar]))) == [*marks, "d/b"]
    committed = store(layers, tar)
    snapshots.prepare("c2", [*stack, committed.diff_id])
    with snapshots.mounted("c2") as merged, snapshots.mounted("c1") as original:
        assert fingerprint(merged) == fingerprint(original)
        with pytest.raises(OSError, match="Read-only"):
            (merged / "x").mkdir()


def test_export_and_commit_keep_everything(snapshots: Snapshots, layers: LayerDriver, tmp_path: Path) -> None:
    rich_tree(tmp_path / "rich")
    snapshots.prepare("c1", [])
    upper = snapshots.rootfs("c1").upper
    os.rmdir(upper)
    os.rename(tmp_path / "rich", upper)
    upper = snapshots.rootfs("c1").upper
    os.removexattr(upper / "size4096", "trusted.thing")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(upper / "socket"))
    assert os.getxattr(upper / "size4096", "security.capability") == CAPABILITY
    exported = store(layers, b"".join(snapshots.export("c1")))
    committed = store(layers, b"".join(snapshots.changeset("c1")))
    assert exported == committed
    (upper / "socket").unlink()
    shown = fingerprint(layers.acquire([exported.diff_id])[0])
    original = fingerprint(upper)
    assert shown.pop(b"")
    assert original.pop(b"")
    assert shown == original
    layers.release([exported.diff_id])


def test_hostile_trees(snapshots: Snapshots, tmp_path: Path) -> None:
    """Links that lead out, whiteout names, deep nesting: nothing outside is read, errors are clean."""
    snapshots.prepare("c1", [])
    upper = snapshots.rootfs("c1").upper
    (tmp_path / "secret").write_text("the host's own")
    (upper / "out").symlink_to(tmp_path)
    (upper / "out2").symlink_to(tmp_path / "secret")
    assert b"the host's own" not in b"".join(snapshots.export("c1"))
    assert [change.path for change in snapshots.diff("c1")] == ["/out", "/out2"]
    here = os.open(upper, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    for call in (snapshots.diff, lambda id: list(snapshots.changeset(id))):
        with pytest.raises(InvalidArgument, match="nested deeper than 256"):
            call("c1")
    assert snapshots.usage("c1") > 0
    before = len(os.listdir("/proc/self/fd"))
    snapshots.remove("c1")
    assert len(os.listdir("/proc/self/fd")) == before


def test_trash_is_cleaned_after_a_crash(snapshots: Snapshots, stack: list[Digest], layers: LayerDriver, tmp_path: Path) -> None:
    snapshots.prepare("c1", stack)
    assert snapshots.discard("c1") is not None
    assert list(snapshots.walk()) == []
    again = Snapshots(tmp_path / "data", layers)
    again.prepare("c1", stack)
    for path in again.leftovers():
        again.delete(path)
    assert os.listdir(tmp_path / "data/snapshots/.trash") == []
    assert again.diff("c1") == []
