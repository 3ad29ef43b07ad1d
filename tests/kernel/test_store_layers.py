"""The layer drivers against their contract, and what is particular to each."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "suites"))

from layer_driver import LayerDriverContract, file, pack, store

from tare.errors import InvalidArgument, Unsupported
from tare.linux import libc
from tare.linux.mount import overlay
from tare.oci.digest import Digest
from tare.store.layers import choice, erofs_image
from tare.store.layers.driver import LayerDriver
from tare.store.layers.erofs import ErofsDriver, mount_image, mount_image_by_loop
from tare.store.layers.tree import Tree
from tare.store.tar.entry import Entry, Kind

pytestmark = pytest.mark.root


class TestErofs(LayerDriverContract):
    driver_name = "erofs"
    rich_form = "erofs"

    def test_an_unmount_behind_our_back_is_noticed(self, driver: LayerDriver) -> None:
        layer = store(driver, pack(file("a", b"1")))
        shown = driver.acquire([layer.diff_id])[0]
        libc.umount2(os.fsencode(shown), 2)
        assert driver.acquire([layer.diff_id])[0].joinpath("a").read_bytes() == b"1"

    def test_idle_layers_are_unmounted_after_a_while(self, driver: LayerDriver) -> None:
        used, idle = (store(driver, pack(file(name, b"1"))).diff_id for name in ("used", "idle"))
        driver.acquire([used, idle])
        driver.release([idle])
        assert driver.unmount_idle(age=3600) == 0
        assert driver.unmount_idle() == 1
        assert driver.acquire([used])[0].joinpath("used").exists()
        assert driver.acquire([idle])[0].joinpath("idle").exists()

    def test_a_foreign_mount_is_replaced(self, driver: LayerDriver, tmp_path: Path) -> None:
        layer = store(driver, pack(file("a", b"right")))
        wrong = store(driver, pack(file("a", b"wrong")))
        shown = driver.acquire([layer.diff_id])[0]
        driver.release([layer.diff_id])
        driver.unmount_idle()
        shown.mkdir()
        directory = driver.path(wrong.diff_id)
        mount_image(directory / "meta.erofs", directory / "layer.tar", shown)
        again = self.reopen(tmp_path, driver)
        assert again.acquire([layer.diff_id])[0].joinpath("a").read_bytes() == b"right"

    def test_unmounting_does_not_disturb_a_running_container(self, driver: LayerDriver, tmp_path: Path) -> None:
        layer = store(driver, pack(file("a", b"1"), file("b", b"2")))
        shown = driver.acquire([layer.diff_id])[0]
        for name in ("upper", "work"):
            (tmp_path / name).mkdir()
        merged = overlay([str(shown)], str(tmp_path / "upper"), str(tmp_path / "work"))
        try:
            driver.close()
            assert not shown.exists()
            assert Path(f"/proc/self/fd/{merged}/a").read_bytes() == b"1"
            again = self.reopen(tmp_path, driver)
            assert again.acquire([layer.diff_id])[0].joinpath("b").read_bytes() == b"2"
            assert Path(f"/proc/self/fd/{merged}/b").read_bytes() == b"2"
        finally:
            os.close(merged)

    def test_short_names_may_collide(self, driver: LayerDriver, tmp_path: Path) -> None:
        first = store(driver, pack(file("a", b"1")))
        tar = pack(file("a", b"2"))
        second = Digest.of(tar)
        link = tmp_path / "data/layers/erofs/l" / second.hex[:8]
        link.symlink_to(f"../sha256/{first.diff_id.hex}")
        store(driver, tar)
        assert driver.short(second) == second.hex[:12]
        assert driver.acquire([second])[0].joinpath("a").read_bytes() == b"2"

    def test_files_over_four_gigabytes(self, tmp_path: Path) -> None:
        size = 5 << 30
        with open(tmp_path / "tar", "wb") as tar:
            tar.truncate(512 + size)
            tar.seek(512 + (9 << 29))
            tar.write(b"needle")
        tree = Tree()
        tree.add(Entry(b"big", Kind.FILE, size=size, offset=512))
        (tmp_path / "meta").write_bytes(erofs_image.build(tree, 512 + size, b""))
        point = tmp_path / "point"
        point.mkdir()
        mount_image(tmp_path / "meta", tmp_path / "tar", point)
        try:
            assert (point / "big").stat().st_size == size
            with open(point / "big", "rb") as big:
                big.seek(9 << 29)
                assert big.read(6) == b"needle"
        finally:
            libc.umount2(os.fsencode(point), 2)


class TestErofsByLoop(LayerDriverContract):
    """Kernels that cannot mount an EROFS image from a file."""

    driver_name = "erofs"
    rich_form = "erofs"

    @pytest.fixture(autouse=True)
    def only_loops(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if not os.path.exists("/dev/loop-control"):
            pytest.skip("needs loop devices")
        monkeypatch.setattr(ErofsDriver, "ways", (_refused, mount_image_by_loop))

    def test_devices_go_with_the_mount(self, driver: LayerDriver) -> None:
        layer = store(driver, pack(file("a", b"1")))
        assert driver.acquire([layer.diff_id])[0].joinpath("a").read_bytes() == b"1"
        backing = f"{driver.path(layer.diff_id)}/"
        assert sorted(os.path.basename(path) for path in _backing_files() if path.startswith(backing)) == ["layer.tar", "meta.erofs"]
        driver.release([layer.diff_id])
        driver.unmount_idle()
        assert not [path for path in _backing_files() if path.startswith(backing)]


def _refused(image: Path, tar: Path, target: Path) -> None:
    raise OSError(errno.ENOTBLK, "Block device required")


def _backing_files() -> list[str]:
    return [path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")]


class TestVfs(LayerDriverContract):
    driver_name = "vfs"
    rich_form = "tar"

    def test_a_stack_is_made_once_and_goes_with_its_layers(self, driver: LayerDriver, tmp_path: Path) -> None:
        base = store(driver, pack(file("a", b"1"), file("d/gone", b"2"))).diff_id
        top = store(driver, pack(file("b", b"3"), file("d/.wh.gone"))).diff_id
        (shown,) = driver.acquire([base, top])
        assert sorted(os.listdir(shown)) == ["a", "b", "d"]
        assert os.listdir(shown / "d") == []
        assert driver.acquire([base, top]) == (shown,)
        for _ in range(2):
            driver.release([base, top])
        driver.remove(top)
        assert os.listdir(tmp_path / "data/layers/vfs/stacks") == []
        assert driver.acquire([base])[0].joinpath("d/gone").read_bytes() == b"2"


class TestOverlay(LayerDriverContract):
    driver_name = "overlay"


def test_choose_probes_and_explains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(choice.choose(tmp_path / "data", tmp_path / "exec"), ErofsDriver)
    assert choice.choose(tmp_path / "data", tmp_path / "exec", "overlay2").name == "overlay"
    with pytest.raises(InvalidArgument, match="unknown storage driver 'zfs': choose one of erofs, overlay"):
        choice.choose(tmp_path / "data", tmp_path / "exec", "zfs")

    def refuse(image: Path, tar: Path, target: Path) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(ErofsDriver, "ways", (refuse, refuse))
    assert choice.choose(tmp_path / "data", tmp_path / "exec").name == "overlay"
    with pytest.raises(
        Unsupported, match=r"erofs is impossible here: .* by loop .No such device, No such device.; it needs root and Linux 6.12"
    ):
        choice.choose(tmp_path / "data", tmp_path / "exec", "erofs")
    assert sorted(os.listdir(tmp_path / "data")) == ["layers"]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
