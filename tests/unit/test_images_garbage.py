"""The collector: what nothing needs goes, what is in flight never does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from image_builder import tar_of
from tare.config import EngineConfig
from tare.errors import NotFound
from tare.events import EventBus
from tare.images.garbage import Garbage
from tare.images.service import Images
from tare.oci.digest import Digest
from tare.store.content import ContentStore
from tare.store.layers.driver import LayerDriver
from tare.store.layers.overlay import OverlayDriver
from tare.store.metadata import Metadata

pytestmark = pytest.mark.root


class World:
    def __init__(self, root: Path) -> None:
        self.content = ContentStore(root / "data")
        self.layers: LayerDriver = OverlayDriver(root / "data", root / "run")
        self.metadata = Metadata(root / "data/metadata.db")
        self.images = Images(EngineConfig(root / "data", root / "run"), self.content, self.layers, self.metadata, EventBus())
        self.garbage = Garbage(self.content, self.layers, self.metadata)

    def layer(self, content: bytes) -> Digest:
        with self.layers.writer() as writer:
            writer.write(tar_of({"file": content}))
            return writer.commit().diff_id


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.images.close()
    made.metadata.close()


async def test_marks(world: World) -> None:
    blobs = [world.content.put(data) for data in (b"dead", b"pinned", b"rooted")]
    layers = [world.layer(data) for data in (b"dead", b"pinned", b"rooted", b"container", b"acquired")]
    world.garbage.in_use = lambda: [layers[3]]
    world.garbage.roots.append(lambda: [blobs[2], layers[2]])
    world.layers.acquire([layers[4]])
    async with world.garbage.pins() as pins:
        pins.hold(blobs[1], layers[1])
        freed = await world.garbage.collect_all()
    assert freed.layers == {layers[0]} and freed.bytes > 4
    assert set(world.content.walk()) == set(blobs[1:])
    assert set(world.layers.walk()) == set(layers[1:])
    world.garbage.in_use, world.garbage.roots = tuple, []
    world.layers.release([layers[4]])
    assert (await world.garbage.collect_all()).layers == set(layers[1:])
    assert list(world.content.walk()) == []


async def test_age(world: World) -> None:
    blob, layer = world.content.put(b"1"), world.layer(b"1")
    await world.garbage.collect_all(age=3600)
    assert world.content.has(blob) and world.layers.has(layer)
    os.utime(world.content.path(blob), (1, 1))
    await world.garbage.collect_all(age=3600)
    assert not world.content.has(blob) and world.layers.has(layer)


async def test_work_that_ends_while_a_collection_runs_keeps_what_it_found(world: World) -> None:
    """It found garbage that the collection had listed, recorded it after the marks were taken, and let its pins go."""
    blob, layer = world.content.put(b"found"), world.layer(b"found")

    async def work() -> None:
        async with world.garbage.pins() as pins:
            pins.hold(blob, layer)
            assert world.content.has(blob) and world.layers.has(layer)

    original = world.garbage._delete

    def after_the_work(blobs: list[Digest], layers: list[Digest]) -> object:
        asyncio.run_coroutine_threadsafe(work(), loop).result()
        return original(blobs, layers)

    loop = asyncio.get_running_loop()
    world.garbage._delete = after_the_work  # type: ignore[assignment,method-assign]
    freed = await world.garbage.collect_all()
    assert freed.bytes == 0
    assert world.content.has(blob) and world.layers.has(layer)


async def test_imports_beside_collections(world: World) -> None:
    """Every import ends with an image whose layer is there, however often collections run meanwhile."""

    async def source(data: bytes) -> AsyncIterator[bytes]:
        yield data

    async def collect() -> None:
        while True:
            await world.images.collect_garbage()

    collecting = asyncio.create_task(collect())
    try:
        for number in range(30):
            image = await world.images.import_(source(tar_of({"f": b"%d" % (number % 3)})), f"app{number}")
            assert world.layers.has(image.diff_ids[0])
            world.layers.acquire(image.diff_ids)
            world.layers.release(image.diff_ids)
            await world.images.delete(f"app{number}")
    finally:
        collecting.cancel()
        with suppress(asyncio.CancelledError):
            await collecting
    await world.images.collect_garbage()
    assert list(world.layers.walk()) == list(world.content.walk()) == []


async def test_a_failed_import_leaves_nothing(world: World) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield tar_of({"f": b"1"})
        raise NotFound("the client has gone")

    with pytest.raises(NotFound, match="the client has gone"):
        await world.images.import_(broken())
    assert list(world.layers.walk()) == []
