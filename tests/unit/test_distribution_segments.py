"""Large layers through several connections, and registries that stall, ask for patience or do not keep to ranges."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from aiohttp import web

from distribution_world import World
from fake_registry import FakeRegistry, error, serving
from image_builder import BuiltImage, build_image
from tare.distribution import retry, segments, transport
from tare.distribution.retry import retry_after
from tare.errors import Unavailable

SEGMENT = 64 << 10
NOISE = random.Random(7).randbytes(SEGMENT * 9 + 77)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BACKOFF", 0.001)
    monkeypatch.setattr(segments, "SEGMENT", SEGMENT)
    monkeypatch.setattr(segments, "WORTHWHILE", SEGMENT * 2)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with serving() as found:
        yield found


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    found = World(tmp_path)
    yield found
    await found.close()


def noisy(registry: FakeRegistry) -> BuiltImage:
    return registry.add(build_image({"noise": NOISE}, compression="none"))


def ranges(registry: FakeRegistry, built: BuiltImage) -> list[str]:
    return [request[3] for request in registry.asked(f"/blobs/{built.layers[0]}")]


async def test_segments_in_parallel_and_in_order(registry: FakeRegistry, world: World) -> None:
    built = noisy(registry)
    running, most = 0, 0

    async def count(request: web.Request) -> web.StreamResponse | None:
        nonlocal running, most
        if built.layers[0] not in request.path:
            return None
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        response = await registry.serve_blob(request, registry.blobs[built.layers[0]])
        running -= 1
        return response

    registry.faults.append(count)
    await world.images.pull(f"{registry.address}/app")
    assert most > 1
    size = len(registry.blobs[built.layers[0]])
    wanted = [f"bytes={start}-{min(start + SEGMENT, size) - 1}" for start in range(0, size, SEGMENT)]
    assert sorted(ranges(registry, built)) == sorted(wanted)


async def test_a_registry_without_ranges_is_asked_once(registry: FakeRegistry, world: World) -> None:
    built = noisy(registry)
    registry.ranges = False
    await world.images.pull(f"{registry.address}/app")
    assert len(ranges(registry, built)) == 1


@pytest.mark.parametrize("fault", ["503", "cut", "ignore", "lie"])
async def test_one_segment_goes_wrong(registry: FakeRegistry, world: World, fault: str) -> None:
    built = noisy(registry)
    wrong = iter([True])

    async def spoil(request: web.Request) -> web.StreamResponse | None:
        start = request.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
        if built.layers[0] not in request.path or start != str(SEGMENT * 3) or not next(wrong, False):
            return None
        blob = registry.blobs[built.layers[0]]
        if fault == "503":
            return error(503, "UNAVAILABLE", "later")
        if fault == "ignore":
            return web.Response(body=blob)
        if fault == "lie":
            return web.Response(status=206, body=blob[:10], headers={"Content-Range": f"bytes 0-9/{len(blob)}"})
        response = await registry.serve_blob(request, blob[: SEGMENT * 3 + 5], SEGMENT)
        assert request.transport
        request.transport.close()
        return response

    registry.faults.append(spoil)
    image = await world.images.pull(f"{registry.address}/app")
    assert image.id == built.image_id


async def test_budget_is_given_back(registry: FakeRegistry, world: World) -> None:
    built = noisy(registry)

    async def fail(request: web.Request) -> web.StreamResponse | None:
        if built.layers[0] in request.path and not request.headers["Range"].startswith("bytes=0-"):
            return error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        return None

    registry.faults.append(fail)
    for _ in range(3):
        with pytest.raises(Exception, match="blob unknown"):
            await world.images.pull(f"{registry.address}/app")
    budget = world.images.registry._budget
    assert [budget.take() for _ in range(5)] == [True] * 4 + [False]


async def test_a_registry_that_hangs(registry: FakeRegistry, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "STALL_TIMEOUT", 0.05)
    world.images.registry._attempts = 2
    built = noisy(registry)
    released = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse | None:
        if built.layers[0] in request.path:
            await released.wait()
        return None

    registry.faults.append(hang)
    with pytest.raises(Unavailable, match="timed out: no data"):
        await world.images.pull(f"{registry.address}/app")
    released.set()
    assert (await world.images.pull(f"{registry.address}/app")).id == built.image_id


async def test_patience_that_a_busy_registry_asks_for(registry: FakeRegistry, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    noisy(registry)
    busy = iter([error(503, "UNAVAILABLE", "later", Retry_After="7")])

    async def later(request: web.Request) -> web.StreamResponse | None:
        return next(busy, None) if "/manifests/" in request.path else None

    registry.faults.append(later)
    await world.images.pull(f"{registry.address}/app")
    assert slept[0] == 7


def test_retry_after() -> None:
    assert retry_after("120") == 120
    moment = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < (retry_after(format_datetime(moment, usegmt=True)) or 0) <= 100
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [retry_after(text) for text in ("", "soon", "-1", "1e9", "9" * 40)] == [None] * 5
