"""Conversion between layer drivers: what containers see stays, whatever the way and wherever it is broken off."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "suites"))

from layer_driver import file, fingerprint, other, pack, store

from tare.errors import Conflict, InvalidArgument
from tare.maintenance import migrate
from tare.oci.digest import Digest
from tare.store.layers import choice
from tare.store.layers.driver import LayerDriver
from tare.store.metadata import Metadata
from tare.store.migration import Migration
from tare.store.snapshots import Snapshots
from tare.store.tar.entry import Kind

pytestmark = pytest.mark.root


class World:
    """A data root whose driver changes."""

    def __init__(self, root: Path) -> None:
        self.root = root / "data"
        self.exec = root / "exec"
        self.stack: list[Digest] = []

    def fill(self, driver: str) -> None:
        layers = choice.choose(self.root, self.exec, driver)
        metadata = Metadata(self.root / "metadata.db")
        below = pack(
            other(".", Kind.DIRECTORY, mode=0o750, uid=3, gid=4), file("d/a", b"a", mode=0o640, uid=7), file("d/b", b"b"),
            other("hard", Kind.LINK, "d/a"), file("gone", b"g"), file("later", b"l"), other("o", Kind.DIRECTORY), file("o/x", b"x"),
        )  # fmt: skip
        above = pack(file(".wh.gone"), file("d/c", b"c"), other("again", Kind.LINK, "later"))
        self.stack = [store(layers, tar).diff_id for tar in (below, above)]
        snapshots = Snapshots(self.root, layers)
        snapshots.prepare("c1", self.stack)
        metadata.containers.put("c1", "/one", json.dumps({"diff_ids": self.stack, "driver": driver, "state": {"pid": 0}}).encode())
        with snapshots.mounted("c1", writable=True) as root:
            (root / "new").write_bytes(b"n" * 100_000)
            (root / "later").unlink()
            (root / "o/x").unlink()
            (root / "o").rmdir()
            (root / "o").mkdir()
            (root / "o/y").write_text("y")
            (root / "link").symlink_to("/etc")
            os.setxattr(root / "d/b", "user.note", b"kept")
            os.utime(root / "d", ns=(0, 1_600_000_000_000_000_000))
        layers.close()
        metadata.close()

    def seen(self) -> tuple[dict[bytes, tuple[object, ...]], list[object]]:
        """What a container sees, and what it is said to have changed."""
        layers = choice.choose(self.root, self.exec)
        try:
            snapshots = Snapshots(self.root, layers)
            with snapshots.mounted("c1") as root:
                return fingerprint(root), list(snapshots.diff("c1"))
        finally:
            layers.close()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def _without_links(tree: dict[bytes, tuple[object, ...]]) -> dict[bytes, tuple[object, ...]]:
    """Copying one of several hard links up breaks the link: link counts and groups differ between drivers by design."""
    return {path: (*entry[:4], entry[6], entry[7]) for path, entry in tree.items()}


@pytest.mark.parametrize(("source", "target"), list(permutations(choice.DRIVERS, 2)))
def test_every_way(world: World, source: str, target: str) -> None:
    world.fill(source)
    tree, changes = world.seen()
    done = migrate(world.root, target)
    assert (done["source"], done["target"], done["layers"]) == (source, target, 2)
    assert done["snapshots"] == (1 if "vfs" in (source, target) else 0)
    assert choice.on_disk(world.root) == target
    assert sorted(os.listdir(world.root / "layers")) == sorted(["driver", target])
    after, changed = world.seen()
    assert _without_links(after) == _without_links(tree)
    assert [change for change in changed if str(getattr(change, "path", "")) != "/hard"] == changes
    assert sorted(os.listdir(world.root / "snapshots/c1")) == ["layers", "whole" if target == "vfs" else "upper", "work"]
    metadata = Metadata(world.root / "metadata.db")
    assert json.loads(metadata.containers.get("c1") or b"")["driver"] == target
    metadata.close()
    with pytest.raises(Conflict, match=f"stored by driver {target}, not {source}.*tare system migrate"):
        choice.choose(world.root, world.exec, source)


def _steps() -> Iterator[tuple[str, str]]:
    yield from (("_layers", "before"), ("_snapshots", "before"), ("_snapshots", "after"), ("_finish", "before"))


@pytest.mark.parametrize(("step", "moment"), list(_steps()))
def test_broken_off_anywhere(world: World, monkeypatch: pytest.MonkeyPatch, step: str, moment: str) -> None:
    world.fill("overlay")
    tree, _ = world.seen()
    original: Callable[..., object] = getattr(Migration, step)

    def dies(*arguments: object) -> None:
        if moment == "after":
            original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Migration, step, dies)
        with pytest.raises(KeyboardInterrupt):
            migrate(world.root, "vfs")
    assert _without_links(world.seen()[0]) == _without_links(tree)
    migrate(world.root, "vfs")
    assert choice.on_disk(world.root) == "vfs"
    assert _without_links(world.seen()[0]) == _without_links(tree)
    assert sorted(os.listdir(world.root / "snapshots/c1")) == ["layers", "whole", "work"]


def test_refusals(world: World) -> None:
    world.fill("overlay")
    with pytest.raises(InvalidArgument, match="unknown storage driver 'zfs'"):
        migrate(world.root, "zfs")
    metadata = Metadata(world.root / "metadata.db")
    metadata.containers.put("c1", "/one", b'{"state": {"pid": 1}}')
    metadata.close()
    with pytest.raises(Conflict, match="container /one is running"):
        migrate(world.root, "vfs")


def test_a_root_stays_with_its_driver(world: World) -> None:
    world.fill("overlay")
    layers: LayerDriver = choice.choose(world.root, world.exec)
    assert layers.name == "overlay"
