"""``fsck``: damage of every kind is found, and repaired as far as it can be; what is only unused is no problem."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from image_builder import tar_of
from tare.config import EngineConfig
from tare.events import EventBus
from tare.images.check import Checker, Findings
from tare.images.image import Image, ImageRecord
from tare.images.layertar import pack
from tare.images.publishing import write_manifest
from tare.images.service import Images
from tare.oci import media_types
from tare.oci.digest import Digest
from tare.oci.image import Descriptor
from tare.store.content import ContentStore
from tare.store.layers.choice import DRIVERS
from tare.store.metadata import Metadata
from tare.store.snapshots import Snapshots

pytestmark = pytest.mark.root


class World:
    def __init__(self, root: Path, driver: str) -> None:
        self.root = root / "data"
        self.content = ContentStore(self.root)
        self.layers = DRIVERS[driver](self.root, root / "run")
        self.metadata = Metadata(self.root / "metadata.db")
        self.snapshots = Snapshots(self.root, self.layers)
        self.images = Images(EngineConfig(self.root, root / "run"), self.content, self.layers, self.metadata, EventBus())

    async def make(self, name: str = "app") -> Image:
        async def source() -> AsyncIterator[bytes]:
            yield tar_of({"file": b"content" * 1000, "other": name.encode()})

        return await self.images.import_(source(), name)

    def keep_blob(self, image: Image) -> Digest:
        """Give the image a manifest and a compressed layer, as a push or pull would."""
        made = pack(self.layers, self.content, image.diff_ids[0])
        made.packer.commit(made.digest)
        layer = Descriptor(media_types.DOCKER_LAYER_GZIP, made.digest, made.size)
        config = Digest.parse(image.id)
        raw = write_manifest(media_types.DOCKER_MANIFEST, config, self.content.size(config), [layer])
        manifest = self.content.put(raw)
        record = msgspec.json.decode(self.metadata.images.get(image.id) or b"", type=ImageRecord)
        record = msgspec.structs.replace(
            record, manifest=str(manifest), documents=[*record.documents, str(manifest)], blobs=[str(made.digest)]
        )
        self.metadata.images.put(image.id, None, msgspec.json.encode(record))
        return made.digest

    def check(self, repair: bool = False) -> Findings:
        return Checker(self.root, self.metadata, self.content, self.layers, repair=repair).run()

    def found(self, repair: bool = False) -> list[tuple[str, str]]:
        return [(problem.kind, problem.repair) for problem in self.check(repair).problems]

    def overwrite(self, path: Path, data: bytes) -> None:
        path.chmod(0o600)
        path.write_bytes(data)


@pytest.fixture(params=sorted(DRIVERS))
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made = World(tmp_path, request.param)
    yield made
    await made.images.close()
    made.layers.close()
    made.metadata.close()


def spoil(world: World, diff_id: Digest) -> None:
    """Change one byte of a layer's content."""
    directory = world.layers.path(diff_id)
    kept = directory / "layer.tar"
    target = kept if kept.exists() else directory / "fs/file"
    with target.open("r+b") as file:
        file.seek(1500)
        file.write(b"!")


async def test_clean(world: World) -> None:
    image = await world.make()
    world.keep_blob(image)
    world.content.put(b"left by a pull that was broken off")
    findings = world.check()
    assert findings.problems == []
    assert (findings.images, findings.layers, findings.blobs) == (1, 1, 4)
    assert findings.notes == ["1 blobs and 0 layers (34 bytes) are needed by nothing: prune images"]


async def test_a_damaged_layer_is_written_again_from_its_blob(world: World) -> None:
    image = await world.make()
    world.keep_blob(image)
    spoil(world, image.diff_ids[0])
    assert [kind for kind, _ in world.found()] == ["layer", "image"]
    (problem,) = world.check(repair=True).problems
    assert problem.repair.startswith("written again from blob ")
    assert world.found() == []
    assert world.images.get("app").id == image.id


async def test_a_missing_layer_is_written_again_from_its_blob(world: World) -> None:
    image = await world.make()
    world.keep_blob(image)
    world.layers.remove(image.diff_ids[0])
    (problem,) = world.check(repair=True).problems
    assert (problem.kind, problem.text) == ("layer", "it is missing")
    assert world.found() == []


async def test_an_image_whose_layer_is_lost_is_removed(world: World) -> None:
    image = await world.make()
    spoil(world, image.diff_ids[0])
    assert world.found(repair=True) == [("layer", "deleted"), ("image", "removed with its names: pull or load it again")]
    assert world.found() == []
    assert world.images.list() == []
    again = await world.make()
    assert again.diff_ids == image.diff_ids
    assert world.found() == []


@pytest.mark.parametrize("damage", ["record", "index or recipe", "extra file"])
async def test_damaged_layers_are_noticed(world: World, damage: str) -> None:
    image = await world.make()
    world.keep_blob(image)
    directory = world.layers.path(image.diff_ids[0])
    shown = next(directory / name for name in ("fs", "meta.erofs", "layer.tar") if (directory / name).exists())
    if damage == "record":
        world.overwrite(directory / "layer.json", b"{}")
        world.layers._records.clear()
    elif damage == "extra file" and shown.is_dir():
        (shown / "added").write_bytes(b"")
    else:
        target = shown if shown.is_file() else directory / "tar.recipe"
        world.overwrite(target, target.read_bytes()[:-1])
    assert [kind for kind, _ in world.found()] == ["layer", "image"]
    world.found(repair=True)
    assert world.found() == []
    assert world.images.get("app").id == image.id


async def test_blobs_and_documents(world: World) -> None:
    image = await world.make()
    blob = world.keep_blob(image)
    world.overwrite(world.content.path(blob), b"something else")
    assert world.found(repair=True) == [("blob", "deleted"), ("image", "forgotten")]
    assert world.found() == []
    config = Digest.parse(image.id)
    world.overwrite(world.content.path(config), b"{}")
    assert [kind for kind, _ in world.found(repair=True)] == ["blob", "image"]
    assert world.found() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda world, image: world.metadata.tags.put("docker.io/library/lost:latest", None, b"{}", "sha256:" + "0" * 64),
        lambda world, image: world.metadata.images.put(image.id, None, b"no json"),
        lambda world, image: world.metadata.images.put(image.id, None, b'{"diff_ids": [], "size": 0}'),
    ],
    ids=["name without image", "damaged record", "record and config differ"],
)
async def test_records(world: World, damage: Callable[[World, Image], None]) -> None:
    damage(world, await world.make())
    assert [repair[:7] for _, repair in world.found(repair=True)] == ["removed"]
    assert world.found() == []


async def test_containers(world: World) -> None:
    image = await world.make()
    world.snapshots.prepare("c" * 64, image.diff_ids)
    findings = world.check()
    assert findings.problems == [] and "belongs to no container" in findings.notes[0]
    world.metadata.containers.put("c" * 64, "/one", json.dumps({"diff_ids": [str(image.diff_ids[0])]}).encode())
    assert world.found() == []
    spoil(world, image.diff_ids[0])
    kinds = [kind for kind, _ in world.found()]
    assert kinds == ["layer", "image", "container"]
    world.snapshots.remove("c" * 64)
    assert [kind for kind, _ in world.found()] == [*kinds, "container"]


async def test_offline_tool(world: World) -> None:
    image = await world.make()
    world.keep_blob(image)
    spoil(world, image.diff_ids[0])
    world.metadata.close()

    def run(*flags: str) -> tuple[int, str]:
        command = [os.path.join(os.path.dirname(sys.executable), "tare"), "system", "fsck", "--data-root", str(world.root), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    code, text = run()
    assert code == 4 and f"layer {image.diff_ids[0]}: " in text
    assert text.endswith("3 blobs, 1 layers, 1 images, 0 containers checked: 2 problems\n")
    code, text = run("--repair")
    assert code == 1 and "[written again from blob " in text
    code, text = run()
    assert (code, text) == (0, "3 blobs, 1 layers, 1 images, 0 containers checked: clean\n")
    code, text = run("--format", "json")
    assert code == 0 and json.loads(text)["problems"] == []
