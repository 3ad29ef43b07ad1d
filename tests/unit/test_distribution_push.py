"""Pushing to a registry that breaks off, forgets, refuses chunks or large bodies: what arrives there is whole or an error says why."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from distribution_world import World
from fake_registry import FakeRegistry, TokenServer, error, serving
from image_builder import BuiltImage, build_image, build_index, sha256
from tare.distribution import retry, upload
from tare.distribution.auth import Credentials
from tare.distribution.compress import Compression
from tare.distribution.decompress import decompress
from tare.distribution.indexes import publish_index
from tare.distribution.progress import Progress, silent
from tare.errors import InvalidArgument, NotFound, Upstream
from tare.oci.platform import Platform
from tare.oci.reference import Reference

CHUNK = 64 << 10
NOISE = random.Random(8).randbytes(CHUNK * 3 + 99)
ALICE = Credentials("alice", "x")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BACKOFF", 0.001)
    monkeypatch.setattr(upload, "CHUNK", CHUNK)


@pytest.fixture
async def target() -> AsyncIterator[FakeRegistry]:
    async with serving() as found:
        yield found


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    found = World(tmp_path)
    yield found
    await found.close()


async def pulled(world: World, target: FakeRegistry, **options: object) -> BuiltImage:
    """An image that came from another registry, named for ``target``."""
    async with serving() as source:
        built = source.add(build_image({"noise": NOISE}, compression="none", **options))  # type: ignore[arg-type]
        await world.images.pull(f"{source.address}/app")
        world.images.tag(f"{source.address}/app", f"{target.address}/copy")
    return built


async def push(world: World, target: FakeRegistry, credentials: Credentials | None = None) -> list[Progress]:
    told: list[Progress] = []
    await world.images.publisher.push(f"{target.address}/copy", "latest", credentials, told.append)
    return told


def arrived(target: FakeRegistry, built: BuiltImage) -> bool:
    """Whether the very bytes that were pulled are there."""
    return target.manifests["copy:latest"] == (built.manifest, built.media_type) and built.blobs.items() <= target.blobs.items()


@pytest.mark.parametrize("docker", [False, True])
async def test_large_layers_go_in_chunks(world: World, target: FakeRegistry, docker: bool) -> None:
    built = await pulled(world, target, docker=docker)
    told = await push(world, target)
    assert arrived(target, built)
    assert len(target.asked("/blobs/uploads/", "PATCH")) == -(-len(built.blobs[built.layers[0]]) // CHUNK)
    assert told[-2].status == f"latest: digest: {built.digest} size: {len(built.manifest)}"
    assert [progress.status for progress in await push(world, target)][2] == "Layer already exists"


async def test_upload_goes_on_where_it_broke_off(world: World, target: FakeRegistry) -> None:
    built = await pulled(world, target)
    broken = iter([True])

    async def cut(request: web.Request) -> web.StreamResponse | None:
        if request.method != "PATCH" or not request.headers["Content-Range"].startswith(f"{CHUNK}-") or not next(broken, False):
            return None
        target.uploads[request.path.rpartition("/")[2]] += await request.content.readexactly(1000)
        assert request.transport
        request.transport.abort()
        return web.Response(status=500)

    target.faults.append(cut)
    await push(world, target)
    assert arrived(target, built)
    assert len(target.asked("/blobs/uploads/", "GET")) == 1 and len(target.asked("/blobs/uploads/", "POST")) == 2


async def test_an_upload_that_the_registry_forgot_begins_anew(world: World, target: FakeRegistry) -> None:
    built = await pulled(world, target)
    lost = iter([True])

    async def forget(request: web.Request) -> web.StreamResponse | None:
        if request.method == "PATCH" and request.headers["Content-Range"].startswith(f"{CHUNK * 2}-") and next(lost, False):
            target.uploads.clear()
            return error(503, "UNAVAILABLE", "restarted")
        return None

    target.faults.append(forget)
    await push(world, target)
    assert arrived(target, built)


async def test_a_registry_without_chunks(world: World, target: FakeRegistry) -> None:
    built = await pulled(world, target)

    async def refuse(request: web.Request) -> web.StreamResponse | None:
        return error(405, "UNSUPPORTED", "") if request.method == "PATCH" else None

    target.faults.append(refuse)
    await push(world, target)
    assert arrived(target, built)


async def test_a_limit_on_bodies(world: World, target: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy before the registry takes small bodies only: the blob goes in smaller pieces."""
    monkeypatch.setattr(upload, "CHUNK", 64 << 20)
    built = await pulled(world, target)
    large = len(built.blobs[built.layers[0]]) // 2

    async def limit(request: web.Request) -> web.StreamResponse | None:
        if int(request.headers.get("Content-Length", "0")) <= large:
            return None
        await request.read()
        return web.Response(status=413, text="too large")

    target.faults.append(limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload, "SMALLEST_CHUNK", 4096)
        await push(world, target)
    assert arrived(target, built)


async def test_tokens_of_a_push(world: World, target: FakeRegistry) -> None:
    built = await pulled(world, target)
    tokens = TokenServer().install(target)
    runs_out = iter([True])

    async def run_out(request: web.Request) -> web.StreamResponse | None:
        if request.method == "PATCH" and next(runs_out, False):
            tokens.revoke()
        return None

    target.faults.insert(0, run_out)
    await push(world, target, ALICE)
    assert arrived(target, built)
    assert {asked["scope"] for asked in tokens.asked} == {"repository:copy:pull,push"} and len(tokens.asked) == 2


async def test_upload_elsewhere_gets_no_credentials(world: World, target: FakeRegistry) -> None:
    built = await pulled(world, target)
    async with serving() as storage:
        storage.uploads["there"] = bytearray()

        async def elsewhere(request: web.Request) -> web.StreamResponse | None:
            if request.method == "POST" and "mount" not in request.query:
                storage.uploads["there"] = bytearray()
                return web.Response(status=202, headers={"Location": f"http://{storage.address}/v2/x/blobs/uploads/there"})
            return None

        target.faults.append(elsewhere)
        TokenServer().install(target)
        await push(world, target, ALICE)
        assert storage.requests and all(request[2] == "" for request in storage.requests)
        assert built.blobs.items() <= {**target.blobs, **storage.blobs}.items()


async def test_mounted_from_a_neighbour(world: World, target: FakeRegistry) -> None:
    built = target.add(build_image({"noise": NOISE}))
    await world.images.pull(f"{target.address}/app")
    world.images.tag(f"{target.address}/app", f"{target.address}/copy")

    async def not_in_copy(request: web.Request) -> web.StreamResponse | None:
        head = request.method == "HEAD" and "/copy/blobs/" in request.path and built.layers[0] in request.path
        return web.Response(status=404) if head else None

    target.faults.append(not_in_copy)
    told = [progress.status for progress in await push(world, target)]
    assert "Mounted from app" in told and not target.asked("/blobs/uploads/", "PUT")
    target.mounts = False
    told = [progress.status for progress in await push(world, target)]
    assert "Pushed" in told and len(target.asked("/blobs/uploads/", "DELETE")) == 1


async def test_a_registry_that_stays_broken(world: World, target: FakeRegistry) -> None:
    await pulled(world, target)

    async def broken(request: web.Request) -> web.StreamResponse | None:
        return error(500, "UNKNOWN", "disk on fire") if request.method == "PATCH" else None

    target.faults.append(broken)
    with pytest.raises(Upstream, match="disk on fire"):
        await world.images.publisher.push(f"{target.address}/copy", "latest", None, silent)
    assert "copy:latest" not in target.manifests


# --- another compression


@pytest.mark.parametrize(("asked", "suffix"), [("zstd", "+zstd"), ("gzip:9", "gzip"), ("gzip", "gzip")])
async def test_packed_anew_for_a_push(world: World, target: FakeRegistry, asked: str, suffix: str) -> None:
    built = await pulled(world, target, docker=asked == "gzip:9")
    compression = Compression.parse(asked)
    await world.images.publisher.push(f"{target.address}/copy", "latest", None, silent, compression=compression)
    raw, _ = target.manifests["copy:latest"]
    (layer,) = json.loads(raw)["layers"]
    assert layer["mediaType"].endswith(suffix) and json.loads(raw)["config"]["digest"] == built.image_id
    assert sha256(b"".join(decompress([target.blobs[layer["digest"]]], "it"))) == built.diff_ids[0]
    await push(world, target)
    assert arrived(target, built), "without --compression an image goes out as it came"


async def test_what_was_packed_is_kept_for_the_next_push(world: World, target: FakeRegistry) -> None:
    await pulled(world, target)
    manifests = []
    for _ in range(2):
        await world.images.publisher.push(f"{target.address}/copy", "latest", None, silent, compression=Compression("zstd"))
        manifests.append(target.manifests["copy:latest"])
        target.blobs.clear()
    assert manifests[0] == manifests[1]


async def test_platform_of_a_push(world: World, target: FakeRegistry) -> None:
    await pulled(world, target)
    with pytest.raises(NotFound, match="does not match the specified platform: wanted linux/s390x, actual: linux/amd64"):
        await world.images.publisher.push(f"{target.address}/copy", "latest", None, silent, Platform.parse("linux/s390x"))
    assert not target.requests


@pytest.mark.parametrize("text", ["gzip", "gzip:0", "gzip:9", "zstd", "zstd:19"])
def test_encoders_give_back_what_they_took(text: str) -> None:
    data = NOISE + b"text " * 700_000
    encoder = Compression.parse(text).encoder()
    try:
        packed = b"".join([*(encoder.write(data[start : start + 99_999]) for start in range(0, len(data), 99_999)), encoder.finish()])
    finally:
        encoder.close()
    assert b"".join(decompress([packed], "it")) == data
    empty = Compression.parse(text).encoder()
    assert b"".join(decompress([empty.finish()], "nothing")) == b""
    empty.close()


@pytest.mark.parametrize("text", ["", "lzma", "zstd:0", "zstd:23", "gzip:x", "gzip:", "gzip:10"])
def test_unknown_compressions(text: str) -> None:
    with pytest.raises(InvalidArgument, match="compression"):
        Compression.parse(text)


# --- indexes


async def test_index_over_several_registries(world: World, target: FakeRegistry) -> None:
    """Its images come from the repository itself, from a neighbour (mounted) and from another registry (copied); the index goes last."""
    own = target.add(build_image({"a": b"1"}), name="copy", tag="amd64")
    async with serving() as source:
        arm = source.add(build_image({"noise": NOISE}, architecture="arm64", compression="none"), name="arm")
        raw, media_type = build_index({"linux/amd64": own, "linux/arm64": arm})
        sources = [Reference.parse(f"{target.address}/copy@{own.digest}"), Reference.parse(f"{source.address}/arm@{arm.digest}")]
        name = Reference.parse(f"{target.address}/copy:all")
        digest = await publish_index(world.images.registry, name, raw, media_type, sources, {})
    assert str(digest) == sha256(raw) and target.manifests["copy:all"] == (raw, media_type)
    assert target.manifests[f"copy:{arm.digest}"] == (arm.manifest, arm.media_type) and arm.blobs.items() <= target.blobs.items()
    assert [request[1] for request in target.requests if request[0] == "PUT"][-1] == "/v2/copy/manifests/all"
    assert not world.leftovers()
    with pytest.raises(InvalidArgument, match="its source is not named"):
        await publish_index(world.images.registry, name, raw, media_type, sources[:1], {})


async def test_index_with_a_missing_image_is_not_published(world: World, target: FakeRegistry) -> None:
    built = build_image({"a": b"1"})
    raw, media_type = build_index({"linux/amd64": built})
    source = Reference.parse(f"{target.address}/copy@{built.digest}")
    with pytest.raises(NotFound):
        await publish_index(world.images.registry, source.repository, raw, media_type, [source], {})
    assert not target.manifests
