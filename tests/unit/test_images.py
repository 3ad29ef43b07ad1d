"""The images service: names, listing, removal, import, history, and what is deleted from the stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from image_builder import COMPRESSORS, tar_of
from tare.config import EngineConfig
from tare.errors import Conflict, Corrupt, InvalidArgument, NotFound
from tare.events import EventBus
from tare.images.changes import apply_changes
from tare.images.filters import compile_pattern, moment
from tare.images.image import Image, epoch
from tare.images.service import Images
from tare.oci.digest import Digest
from tare.oci.image import ContainerConfig, ImageConfig, RootFS
from tare.oci.reference import Reference
from tare.store.content import ContentStore
from tare.store.layers.erofs import ErofsDriver
from tare.store.metadata import Metadata


class World:
    def __init__(self, root: Path) -> None:
        config = EngineConfig(data_root=root / "data", exec_root=root / "exec")
        self.events = EventBus()
        self.metadata = Metadata(config.database)
        self.content = ContentStore(config.data_root)
        self.layers = ErofsDriver(config.data_root, config.exec_root)
        self.images = Images(config, self.content, self.layers, self.metadata, self.events)
        self.users: dict[str, list[tuple[str, bool]]] = {}
        self.images.users_of = lambda image_id: self.users.get(image_id, [])

    async def make(self, name: str = "", content: bytes = b"x", **options: Any) -> Image:
        repository, _, tag = name.partition(":")
        return await self.images.import_(stream(tar_of({"file": content})), repository, tag, **options)

    async def delete(self, name: str, **options: bool) -> list[tuple[str, str]]:
        return [(removal.kind, removal.name) for removal in await self.images.delete(name, **options)]

    def actions(self) -> list[str]:
        return [event.action for event in self.events.history()]

    def stored(self) -> tuple[int, int]:
        return len(list(self.layers.walk())), len(list(self.content.walk()))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    found = World(tmp_path)
    yield found
    await found.images.close()
    found.metadata.close()


async def stream(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def conflict(world: World, name: str, text: str, **options: bool) -> None:
    with pytest.raises(Conflict) as failure:
        await world.images.delete(name, **options)
    assert str(failure.value) == text


# --- import


@pytest.mark.parametrize("compression", list(COMPRESSORS))
async def test_import(world: World, compression: str) -> None:
    tar = tar_of({"etc/": b"", "etc/hostname": b"tare\n"})
    changes = ["CMD echo hi", 'ENTRYPOINT ["/bin/sh", "-c"]', "ENV A=1 B='two words'", "EXPOSE 80 53/udp", "LABEL a=b", "WORKDIR /srv"]
    packed = COMPRESSORS[compression](tar)
    image = await world.images.import_(stream(packed), "app", "v1", changes, "made by a test")
    assert image.tags == ("app:v1",) and image.diff_ids == (Digest.of(tar),) and image.size == 5
    config = image.container_config()
    assert config["Cmd"] == ["/bin/sh", "-c", "echo hi"] and config["Entrypoint"] == ["/bin/sh", "-c"]
    assert config["Env"] == ["A=1", "B=two words"] and set(config["ExposedPorts"]) == {"80/tcp", "53/udp"}
    assert config["Labels"] == {"a": "b"} and config["WorkingDir"] == "/srv"
    assert world.images.history("app:v1")[0].comment == "made by a test"
    assert Digest.of(world.images.raw_config(image)) == image.id
    assert world.actions() == ["import"]


async def test_bad_imports_leave_nothing(world: World) -> None:
    good = tar_of({"a": b"x" * 5000})
    with pytest.raises(Corrupt):
        await world.images.import_(stream(COMPRESSORS["gzip"](good)[:-9]), "app")
    with pytest.raises(Corrupt):
        await world.images.import_(stream(b"this is no tar at all " * 100), "app")
    with pytest.raises(InvalidArgument, match="FROM is not a valid change command"):
        await world.images.import_(stream(good), "app", changes=["FROM x"])
    with pytest.raises(InvalidArgument, match="must be lowercase"):
        await world.images.import_(stream(good), "App")

    async def broken() -> AsyncIterator[bytes]:
        yield good[:1024]
        raise ConnectionError("client went away")

    with pytest.raises(ConnectionError):
        await world.images.import_(broken(), "app")
    assert world.stored() == (0, 0) and not world.images.list() and not world.actions()


# --- finding


async def test_get(world: World) -> None:
    image = await world.make("app:v1")
    hexadecimal = image.id.removeprefix("sha256:")
    for name in ("app:v1", "docker.io/library/app:v1", image.id, hexadecimal, hexadecimal[:12], f"sha256:{hexadecimal[:7]}"):
        assert world.images.get(name).id == image.id
    for name, shown in (("app", "app:latest"), ("nope", "nope:latest"), ("f" * 64, "f" * 64), ("app:v2", "app:v2")):
        with pytest.raises(NotFound) as failure:
            world.images.get(name)
        assert str(failure.value) == f"No such image: {shown}"
    with pytest.raises(InvalidArgument, match="invalid reference format"):
        world.images.get("not//valid")


async def test_a_name_wins_over_an_id(world: World) -> None:
    one, two = await world.make("one", b"1"), await world.make("two", b"2")
    prefix = two.id.removeprefix("sha256:")[:6]
    world.images.tag("one", prefix)
    assert world.images.get(prefix).id == one.id


async def test_list_and_filters(world: World) -> None:
    old = await world.make("old:1", b"1", changes=["LABEL kind=a"])
    await asyncio.sleep(0.01)
    new = await world.make("user/new:2", b"2", changes=["LABEL kind=b"])
    bare = await world.make("", b"3")
    world.images.tag("old:1", "localhost:5000/old")

    def ids(**filters: list[str]) -> list[str]:
        return [image.id for image in world.images.list(filters)]

    assert ids() == [bare.id, new.id, old.id]
    assert ids(dangling=["true"]) == [bare.id] and ids(dangling=["0"]) == [new.id, old.id]
    assert ids(label=["kind=a"]) == [old.id] and ids(label=["kind"]) == [new.id, old.id]
    assert ids(before=["user/new:2"]) == [old.id] and ids(since=["old:1"]) == [bare.id, new.id]
    assert ids(reference=["old*"]) == [old.id] and ids(reference=["*"]) == [old.id]
    assert ids(reference=["*/*"]) == [new.id, old.id]
    assert world.images.list({"reference": ["old:1"]})[0].tags == ("old:1",)
    assert ids(until=["1h"]) == []
    for bad in ({"nope": ["1"]}, {"dangling": ["maybe"]}, {"until": ["soon"]}, {"reference": ["[a"]}):
        with pytest.raises(InvalidArgument):
            world.images.list(bad)


def test_patterns_and_times() -> None:
    assert compile_pattern("a[b-d]?\\*").fullmatch("acx*") and not compile_pattern("a[^b]").fullmatch("ab")
    assert not compile_pattern("*").fullmatch("a/b")
    assert moment("1h30m", 10_000.0) == 4600.0 and moment("12.5", 0) == 12.5 and moment("1970-01-01T00:01:00Z", 0) == 60
    assert epoch("2024-05-06T07:08:09.123456789Z") == pytest.approx(1714979289.123456) and epoch("0001-01-01T00:00:00Z") == 0
    assert epoch("yesterday") == 0


# --- names


async def test_tag_moves(world: World) -> None:
    one, two = await world.make("app", b"1"), await world.make("other", b"2")
    world.images.tag("other", "app")
    assert world.images.get("app").id == two.id and world.images.get(one.id).dangling
    assert world.images.get("app").tags == ("app:latest", "other:latest")
    for repository, tag, text in (
        ("app@" + one.id, "", "refusing to create a tag with a digest reference"),
        ("sha256", "x", "refusing to create an ambiguous tag using digest algorithm as name"),
        ("app", "a/b", "invalid tag format"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            world.images.tag("other", repository, tag)


# --- removal


async def test_last_name_takes_the_image(world: World) -> None:
    image = await world.make("app:1")
    world.images.tag("app:1", "app", "2")
    assert await world.delete("app:1") == [("Untagged", "app:1")]
    assert world.images.get("app:2").id == image.id
    assert await world.delete("app:2") == [("Untagged", "app:2"), ("Deleted", image.id), ("Deleted", str(image.diff_ids[0]))]
    assert world.stored() == (0, 0) and not world.images.list()
    assert world.actions() == ["import", "tag", "untag", "untag", "delete"]


async def test_digests_go_with_the_last_tag_of_their_repository(world: World) -> None:
    image = await world.make("app:1")
    digest = Digest.of(b"manifest")
    world.images._names.set(Reference.parse("app").with_digest(digest), image.id)
    world.images.tag("app:1", "other")
    assert await world.delete("app:1") == [("Untagged", "app:1"), ("Untagged", f"app@{digest}")]
    assert world.images.get("other").id == image.id


async def test_by_id(world: World) -> None:
    image = await world.make("app:1")
    world.images.tag("app:1", "other")
    short = Digest.parse(image.id).short
    await conflict(world, short, f"conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories")
    gone = await world.delete(short, force=True)
    assert gone[:3] == [("Untagged", "app:1"), ("Untagged", "other:latest"), ("Deleted", image.id)]


async def test_users(world: World) -> None:
    image = await world.make("app")
    short = Digest.parse(image.id).short
    world.users[image.id] = [("c" * 64, False)]
    using = 'conflict: unable to remove repository reference "app" (must force) - container cccccccccccc is using its referenced image '
    await conflict(world, "app", using + short)
    stopped = f"conflict: unable to delete {short} (must be forced) - image is being used by stopped container cccccccccccc"
    await conflict(world, short, stopped)
    world.users[image.id] = [("c" * 64, True)]
    running = f"conflict: unable to delete {short} (cannot be forced) - image is being used by running container cccccccccccc"
    await conflict(world, short, running, force=True)
    assert await world.delete("app", force=True) == [("Untagged", "app:latest")]
    assert world.images.get(image.id).dangling


async def test_layers_of_containers_survive_force(world: World) -> None:
    image = await world.make("app")
    world.users[image.id] = [("c" * 64, False)]
    world.images.layers_in_use = lambda: [str(diff_id) for diff_id in image.diff_ids]
    assert await world.delete("app", force=True) == [("Untagged", "app:latest"), ("Deleted", image.id)]
    assert world.layers.has(image.diff_ids[0])
    await world.images.collect_garbage()
    assert world.layers.has(image.diff_ids[0])
    world.images.layers_in_use = tuple
    await world.images.collect_garbage()
    assert world.stored() == (0, 0)


async def child_of(world: World, parent: Image, name: str) -> Image:
    config = ImageConfig("amd64", "linux", RootFS(list(parent.diff_ids)), config=ContainerConfig(cmd=[name]))
    return await world.images.create_from_layers(config, Reference.parse(name) if name else None, parent=parent.id)


async def test_children_and_their_parents(world: World) -> None:
    parent = await world.make("parent")
    child = await child_of(world, parent, "child")
    short = Digest.parse(parent.id).short
    text = f"conflict: unable to delete {short} (cannot be forced) - image has dependent child images"
    await conflict(world, short, text, force=True)
    assert await world.delete("parent") == [("Untagged", "parent:latest")]
    gone = await world.delete("child")
    assert gone == [("Untagged", "child:latest"), ("Deleted", child.id), ("Deleted", parent.id), ("Deleted", str(parent.diff_ids[0]))]
    assert world.stored() == (0, 0)


async def test_shared_layers_stay(world: World) -> None:
    one = await world.make("one", b"same")
    two = await child_of(world, one, "two")
    world.metadata.images.put(two.id, None, world.metadata.images.get(two.id).replace(one.id.encode(), b""))  # type: ignore[union-attr]
    gone = await world.delete("one")
    assert gone == [("Untagged", "one:latest"), ("Deleted", one.id)]
    assert world.layers.has(two.diff_ids[0])


async def test_prune(world: World) -> None:
    await world.make("kept", b"1")
    bare = await world.make("", b"2")
    used = await world.make("", b"3")
    world.users[used.id] = [("c" * 64, False)]
    removals, freed = await world.images.prune()
    assert [removal.name for removal in removals] == [bare.id] and freed > 0
    removals, _ = await world.images.prune(dangling=False)
    assert "kept:latest" in [removal.name for removal in removals]
    assert [image.id for image in world.images.list()] == [used.id]


async def test_a_pin_keeps_what_is_being_used(world: World) -> None:
    image = await world.make("app")
    async with world.images._garbage.pins() as pins:
        await pins.add(image.diff_ids)
        await world.images.delete("app")
        assert world.layers.has(image.diff_ids[0])
    await world.images.collect_garbage()
    assert not world.layers.has(image.diff_ids[0])


# --- changes


@pytest.mark.parametrize("change", ["RUN x", "ENV", "ENV a", "EXPOSE http", "EXPOSE 99999", "LABEL 'a", "ENV =x"])
def test_bad_changes(change: str) -> None:
    with pytest.raises(InvalidArgument):
        apply_changes(ContainerConfig(), [change])


def test_changes_replace_and_add() -> None:
    config = apply_changes(ContainerConfig(env=["A=1"], working_dir="/a"), ["ENV A=2", "ENV B a value", "WORKDIR b/../c", "VOLUME /x /y"])
    assert config.env == ["A=2", "B=a value"] and config.working_dir == "/a/c" and config.volumes == {"/x": {}, "/y": {}}
