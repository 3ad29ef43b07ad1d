"""Pulling from a registry that may be hostile: what arrives is verified, what fails is named and leaves nothing behind."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard
from aiohttp import web

from distribution_world import World
from fake_registry import FakeRegistry, error, serving
from image_builder import build_image, build_index, sha256, tar_of
from tare.distribution import endpoints, retry
from tare.distribution.auth import Credentials
from tare.distribution.progress import Progress
from tare.errors import Corrupt, InvalidArgument, NotFound, ResourceExhausted, TareError, Unauthorized, Unavailable, Unsupported

FILES = {"etc/": b"", "etc/hostname": b"tare\n", "data": bytes(range(256)) * 3000}


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BACKOFF", 0.001)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with serving() as found:
        yield found


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    found = World(tmp_path)
    yield found
    await found.close()


# --- what works


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("docker", [False, True])
async def test_pulls_every_form(registry: FakeRegistry, world: World, compression: str, docker: bool) -> None:
    built = registry.add(build_image(FILES, {"b": b"2"}, compression=compression, docker=docker))
    told: list[Progress] = []
    image = await world.images.pull(f"{registry.address}/app", progress=told.append)
    assert image.id == built.image_id
    assert [str(diff_id) for diff_id in image.diff_ids] == built.diff_ids
    assert image.tags == (f"{registry.address}/app:latest",)
    assert image.repo_digests == (f"{registry.address}/app@{built.digest}",)
    assert image.size == len(FILES["etc/hostname"]) + len(FILES["data"]) + 1
    assert all(world.layers.has(diff_id) for diff_id in image.diff_ids)
    assert all(world.content.has(digest) for digest in (*map(world_digest, built.blobs), world_digest(built.digest)))
    statuses = [progress.status for progress in told]
    assert statuses[0] == "Pulling from app" and told[0].id == "latest"
    assert statuses[-2:] == [f"Digest: {built.digest}", f"Status: Downloaded newer image for {registry.address}/app:latest"]
    for digest in built.layers:
        short = digest.partition(":")[2][:12]
        mine = [progress.status for progress in told if progress.id == short]
        assert mine[0] == "Pulling fs layer"
        assert mine[-4:] == ["Verifying Checksum", "Download complete", "Extracting", "Pull complete"]
    assert [(event.action, event.actor_id) for event in world.events.history()] == [("pull", f"{registry.address}/app:latest")]


def world_digest(text: str):  # type: ignore[no-untyped-def]
    from tare.oci.digest import Digest

    return Digest.parse(text)


async def test_second_pull_fetches_no_blob(registry: FakeRegistry, world: World) -> None:
    registry.add(build_image(FILES))
    await world.images.pull(f"{registry.address}/app")
    registry.requests.clear()
    told: list[str] = []
    await world.images.pull(f"{registry.address}/app", progress=lambda progress: told.append(progress.status))
    assert [request[1] for request in registry.requests] == ["/v2/app/manifests/latest"]
    assert told[1:] == [told[1], f"Status: Image is up to date for {registry.address}/app:latest"]
    registry.add(build_image(FILES, config={"Cmd": ["other"]}), tag="other")
    await world.images.pull(f"{registry.address}/app:other", progress=lambda progress: told.append(progress.status))
    assert "Already exists" in told


async def test_by_digest(registry: FakeRegistry, world: World) -> None:
    built = registry.add(build_image(FILES))
    image = await world.images.pull(f"{registry.address}/app@{built.digest}")
    assert image.tags == () and image.repo_digests == (f"{registry.address}/app@{built.digest}",)
    assert world.images.get(f"{registry.address}/app@{built.digest}").id == built.image_id


@pytest.mark.parametrize("docker", [False, True])
async def test_platform_from_index(registry: FakeRegistry, world: World, docker: bool) -> None:
    images = {
        name: registry.add(build_image({"arch": name.encode()}, architecture=name.split("/")[1], docker=docker), tag=name.replace("/", "-"))
        for name in ("linux/amd64", "linux/s390x")
    }
    digest = registry.add_document(*build_index(images, docker))
    image = await world.images.pull(f"{registry.address}/app", "linux/s390x")
    assert image.id == images["linux/s390x"].image_id and image.architecture == "s390x"
    assert image.repo_digests == (f"{registry.address}/app@{digest}",)
    with pytest.raises(NotFound, match=r"^no matching manifest for linux/riscv64 in the manifest list entries$"):
        await world.images.pull(f"{registry.address}/app", "linux/riscv64")


async def test_same_layer_twice_and_shared_layers(registry: FakeRegistry, world: World) -> None:
    registry.add(build_image(FILES, {"x": b"1"}, FILES), tag="one")
    registry.add(build_image(FILES, {"y": b"2"}), tag="two")
    registry.delay = 0.001
    one, two = await asyncio.gather(*(world.images.pull(f"{registry.address}/app:{tag}") for tag in ("one", "two")))
    assert one.diff_ids[0] == one.diff_ids[2] == two.diff_ids[0]
    shared = [
        request for request in registry.asked("/blobs/") if registry.manifests and one.id not in request[1] and two.id not in request[1]
    ]
    assert len(shared) == len({request[1] for request in shared}) == 3


async def test_concurrent_pulls_share_the_work(registry: FakeRegistry, world: World) -> None:
    built = registry.add(build_image(FILES))
    told: list[list[str]] = [[], [], []]
    await asyncio.gather(
        *(world.images.pull(f"{registry.address}/app", progress=lambda progress, into=into: into.append(progress.status)) for into in told)
    )
    assert len(registry.asked(f"/blobs/{built.layers[0]}")) == 1
    assert all(statuses[-1].startswith("Status: Downloaded") for statuses in told)
    assert len(world.events.history()) == 1


async def test_one_of_two_waiters_may_leave(registry: FakeRegistry, world: World) -> None:
    registry.add(build_image(FILES))
    registry.delay = 0.01
    first = asyncio.create_task(world.images.pull(f"{registry.address}/app"))
    second = asyncio.create_task(world.images.pull(f"{registry.address}/app"))
    await asyncio.sleep(0.02)
    first.cancel()
    assert (await second).tags
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_anothers_failing_registry_does_not_fail_us(registry: FakeRegistry, world: World) -> None:
    built = registry.add(build_image(FILES))
    async with serving() as other:
        other.add(build_image(FILES, config={"Cmd": ["other"]}))

        async def stall(request: web.Request) -> web.StreamResponse | None:
            if built.layers[0] not in request.path:
                return None
            await asyncio.sleep(0.2)
            return error(404, "BLOB_UNKNOWN", "blob unknown to registry")

        other.faults.append(stall)
        theirs = asyncio.create_task(world.images.pull(f"{other.address}/app"))
        while not other.asked(built.layers[0]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        ours = asyncio.create_task(world.images.pull(f"{registry.address}/app"))
        with pytest.raises(NotFound, match="blob unknown"):
            await theirs
        assert (await ours).id == built.image_id


# --- interruptions


async def test_resumes_within_a_pull(registry: FakeRegistry, world: World) -> None:
    built = registry.add(build_image(FILES, compression="none"))
    layer = built.blobs[built.layers[0]]
    breaks = iter([len(layer) // 4, len(layer) // 2])

    async def cut(request: web.Request) -> web.StreamResponse | None:
        if built.layers[0] in request.path and (end := next(breaks, 0)):
            response = await registry.serve_blob(request, layer[:end], len(layer) - start_of(request))
            assert request.transport
            request.transport.close()
            return response
        return None

    registry.faults.append(cut)
    await world.images.pull(f"{registry.address}/app")
    ranges = [request[3] for request in registry.asked(f"/blobs/{built.layers[0]}")]
    assert ranges == ["", f"bytes={len(layer) // 4}-", f"bytes={len(layer) // 2}-"]


def start_of(request: web.Request) -> int:
    return int(request.headers.get("Range", "bytes=0-")[6:].partition("-")[0])


@pytest.mark.parametrize("ranges", [True, False])
async def test_resumes_with_the_next_pull(registry: FakeRegistry, world: World, ranges: bool) -> None:
    world.images.registry._attempts = 1
    built = registry.add(build_image(FILES))
    layer = built.blobs[built.layers[0]]
    registry.ranges = ranges
    registry.blobs[built.layers[0]] = layer[: len(layer) // 2]

    async def short(request: web.Request) -> web.StreamResponse | None:
        if built.layers[0] in request.path:
            response = await registry.serve_blob(request, layer[: len(layer) // 2], len(layer))
            assert request.transport
            request.transport.close()
            return response
        return None

    registry.faults.append(short)
    with pytest.raises(Unavailable):
        await world.images.pull(f"{registry.address}/app")
    assert [name for name in world.leftovers() if not name.startswith("blob")] == [built.layers[0].replace(":", "-")]
    assert not world.images.list() and not world.events.history()
    registry.faults.clear()
    registry.blobs[built.layers[0]] = layer
    registry.requests.clear()
    await world.images.pull(f"{registry.address}/app")
    assert registry.asked(f"/blobs/{built.layers[0]}")[0][3] == f"bytes={len(layer) // 2}-"


async def test_a_damaged_partial_is_fetched_again(registry: FakeRegistry, world: World) -> None:
    built = registry.add(build_image(FILES))
    layer = built.blobs[built.layers[0]]
    partial = world.root / "data" / "ingest" / built.layers[0].replace(":", "-")
    partial.write_bytes(b"\x1f\x8b" + b"x" * (len(layer) // 2))
    await world.images.pull(f"{registry.address}/app")
    assert world.content.has(world_digest(built.layers[0]))


async def test_cancelled_pull_leaves_only_the_partial(registry: FakeRegistry, world: World) -> None:
    built = registry.add(build_image({"big": gzip.compress(bytes(1 << 20)) * 2000}, compression="none"))
    registry.delay = 0.01
    pull = asyncio.create_task(world.images.pull(f"{registry.address}/app"))
    while not registry.asked(built.layers[0]):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert all(name.startswith(("sha256-", "blob")) for name in world.leftovers())
    assert not world.content.active()
    registry.delay = 0
    assert (await world.images.pull(f"{registry.address}/app")).id == built.image_id


# --- lies


async def refused(world: World, registry: FakeRegistry, kind: type[TareError], text: str, name: str = "app") -> str:
    """The pull fails with that error and nothing is left."""
    with pytest.raises(kind, match=text) as failure:
        await world.images.pull(f"{registry.address}/{name}")
    if not issubclass(kind, (Unavailable, ResourceExhausted)):
        assert world.leftovers() == []
    assert not world.images.list() and not world.events.history()
    return str(failure.value)


async def test_wrong_bytes_in_a_layer(registry: FakeRegistry, world: World) -> None:
    built = registry.add(build_image(FILES, compression="none"))
    layer = bytearray(built.blobs[built.layers[0]])
    layer[-600] ^= 1
    registry.blobs[built.layers[0]] = bytes(layer)
    await refused(world, registry, Corrupt, f"expected {built.layers[0]}")


async def test_wrong_diff_id(registry: FakeRegistry, world: World) -> None:
    built = build_image(FILES, rootfs={"type": "layers", "diff_ids": [sha256(b"other")]})
    registry.add(built)
    await refused(world, registry, Corrupt, f"does not match its diff_id: expected {sha256(b'other')}")


async def test_corrupt_gzip(registry: FakeRegistry, world: World) -> None:
    built = build_image(FILES)
    bad = b"\x1f\x8b\x08\x00" + b"garbage" * 1000
    registry.add(relayered(built, bad))
    await refused(world, registry, Corrupt, f"layer {sha256(bad)}: corrupt gzip data")


async def test_truncated_gzip(registry: FakeRegistry, world: World) -> None:
    built = build_image(FILES)
    bad = built.blobs[built.layers[0]][:-20]
    registry.add(relayered(built, bad))
    await refused(world, registry, Corrupt, f"layer {sha256(bad)}: corrupt gzip data: unexpected end")


async def test_bomb(registry: FakeRegistry, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tare.distribution.decompress.BOMB_FLOOR", 4 << 20)
    bomb = zstandard.ZstdCompressor().compress(tar_of({"zeros": bytes(64 << 20)}))
    registry.add(relayered(build_image(FILES), bomb))
    await refused(world, registry, Corrupt, "decompression bomb")


def relayered(built, blob: bytes):  # type: ignore[no-untyped-def]
    """The image with its only layer's blob replaced, digest and size told rightly."""
    manifest = json.loads(built.manifest)
    manifest["layers"][0].update(digest=sha256(blob), size=len(blob))
    built.manifest = json.dumps(manifest).encode()
    built.layers = [sha256(blob)]
    built.blobs[sha256(blob)] = blob
    return built


async def test_longer_than_announced_by_the_manifest(registry: FakeRegistry, world: World) -> None:
    built = registry.add(build_image(FILES))
    registry.blobs[built.layers[0]] += b"more"
    size = len(built.blobs[built.layers[0]])
    await refused(world, registry, Corrupt, f"blob {built.layers[0]}: the manifest says {size} bytes, the registry sends {size + 4}")


async def test_endless_blob(registry: FakeRegistry, world: World) -> None:
    built = registry.add(build_image(FILES, compression="none"))

    async def endless(request: web.Request) -> web.StreamResponse | None:
        if built.layers[0] not in request.path:
            return None
        response = web.StreamResponse()
        await response.prepare(request)
        with_data = built.blobs[built.layers[0]]
        try:
            for _ in range(100):
                await response.write(with_data)
        except ConnectionError:
            pass
        return response

    registry.faults.append(endless)
    await refused(world, registry, Corrupt, "longer than the")


async def test_wrong_manifest_for_digest(registry: FakeRegistry, world: World) -> None:
    built = registry.add(build_image(FILES))
    registry.manifests[f"app:{built.digest}"] = (built.manifest + b" ", built.media_type)
    await refused(world, registry, Corrupt, f"manifest verification failed for digest {built.digest}", f"app@{built.digest}")


async def test_wrong_config(registry: FakeRegistry, world: World) -> None:
    built = registry.add(build_image(FILES))
    registry.blobs[built.image_id] = built.blobs[built.image_id].replace(b"PATH", b"LATH")
    await refused(world, registry, Corrupt, f"image config verification failed for digest {built.image_id}")


async def test_diff_ids_and_layers_differ_in_number(registry: FakeRegistry, world: World) -> None:
    registry.add(build_image(FILES, rootfs={"type": "layers", "diff_ids": []}))
    await refused(world, registry, Corrupt, "names 0 layers")


async def test_ambiguous_manifest(registry: FakeRegistry, world: World) -> None:
    """CVE-2021-41190."""
    built = build_image(FILES)
    document = json.loads(built.manifest) | {"manifests": []}
    registry.add_document(json.dumps(document).encode(), built.media_type)
    await refused(world, registry, InvalidArgument, "ambiguous manifest")


async def test_media_type_must_agree(registry: FakeRegistry, world: World) -> None:
    built = build_image(FILES)
    registry.add_document(built.manifest, "application/vnd.oci.image.index.v1+json")
    await refused(world, registry, InvalidArgument, "was delivered as")


async def test_artifacts_are_no_images(registry: FakeRegistry, world: World) -> None:
    built = build_image(FILES)
    document = json.loads(built.manifest)
    document["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    registry.add_document(json.dumps(document).encode(), built.media_type)
    await refused(world, registry, Unsupported, "^unsupported media type .*helm")


async def test_huge_manifest(registry: FakeRegistry, world: World) -> None:
    registry.add_document(b'{"schemaVersion": 2, "x": "' + b"y" * (5 << 20) + b'"}', "application/vnd.oci.image.manifest.v1+json")
    await refused(world, registry, Corrupt, "answer is larger than")


async def test_html_instead_of_a_manifest(registry: FakeRegistry, world: World) -> None:
    async def portal(request: web.Request) -> web.StreamResponse | None:
        return web.Response(text="<html><body>Log in to the hotel network</body></html>", content_type="text/html")

    registry.faults.append(portal)
    await refused(world, registry, Unavailable, "HTML page: is it a registry")


async def test_index_of_indexes_without_end(registry: FakeRegistry, world: World) -> None:
    kind = "application/vnd.oci.image.index.v1+json"
    target = {"mediaType": kind, "digest": sha256(b"?"), "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}
    for level in range(5):
        raw = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [target]}).encode()
        target = target | {"digest": registry.add_document(raw, kind), "size": len(raw)}
        del level
    await refused(world, registry, Unsupported, "nested more than")


# --- refusals


async def test_unknown_tag_and_repository(registry: FakeRegistry, world: World) -> None:
    registry.add(build_image(FILES))
    text = await refused(world, registry, NotFound, "^", "app:nope")
    assert text == f"manifest for {registry.address}/app:nope not found: manifest unknown: manifest unknown"
    text = await refused(world, registry, NotFound, "^", "nope")
    assert text == f"repository {registry.address}/nope not found: name unknown: repository name not known to registry"


async def test_denied(registry: FakeRegistry, world: World) -> None:
    async def deny(request: web.Request) -> web.StreamResponse | None:
        return error(403, "DENIED", "requested access to the resource is denied") if "/manifests/" in request.path else None

    registry.faults.append(deny)
    text = await refused(world, registry, NotFound, "^")
    assert text == (
        f"pull access denied for {registry.address}/app, repository does not exist or may require 'docker login': "
        "denied: requested access to the resource is denied"
    )


async def test_nobody_listens(world: World) -> None:
    with pytest.raises(Unavailable) as failure:
        await world.images.pull("127.0.0.1:1/x")
    assert str(failure.value) == 'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'


async def test_plain_http_from_a_host_that_must_use_tls(registry: FakeRegistry, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tare.distribution.endpoints.RegistryPolicy.is_insecure", lambda self, host: False)
    with pytest.raises(Unavailable, match="http: server gave HTTP response to HTTPS client"):
        await world.images.pull(f"{registry.address}/app")
    assert not registry.requests


@pytest.mark.parametrize("wait", ["1", "100000", "soon"])
async def test_rate_limit(registry: FakeRegistry, world: World, wait: str) -> None:
    built = registry.add(build_image(FILES))
    limited = iter([True] + [wait != "1"] * 10)

    async def limit(request: web.Request) -> web.StreamResponse | None:
        if "/manifests/" in request.path and next(limited):
            return error(429, "TOOMANYREQUESTS", "You have reached your pull rate limit.", Retry_After=wait)
        return None

    registry.faults.append(limit)
    if wait == "1":
        assert (await world.images.pull(f"{registry.address}/app")).id == built.image_id
    else:
        text = await refused(world, registry, ResourceExhausted, "^toomanyrequests: You have reached your pull rate limit.")
        assert ("retry after 100000 seconds" in text) == (wait == "100000")
        assert len(registry.asked("/manifests/")) == 1


async def test_server_errors_are_retried_then_named(registry: FakeRegistry, world: World) -> None:
    built = registry.add(build_image(FILES))
    failing = True

    async def fail(request: web.Request) -> web.StreamResponse | None:
        recovered = len(registry.asked(request.path)) > 2 and not failing
        return None if request.path == "/v2/" or recovered else web.Response(status=503, text="down")

    registry.faults.append(fail)
    await refused(world, registry, Unavailable, "received unexpected HTTP status: 503 Service Unavailable .*: down")
    failing = False
    assert (await world.images.pull(f"{registry.address}/app")).id == built.image_id


# --- credentials


def bearer(registry: FakeRegistry, realm: str, accept: str = "anonymous", **parameters: str) -> None:
    """Let the registry demand a token named ``accept`` from ``realm``."""

    async def guard(request: web.Request) -> web.StreamResponse | None:
        if not request.path.startswith("/v2/") or request.headers.get("Authorization") == f"Bearer {accept}":
            return None
        extra = "".join(f',{name}="{value}"' for name, value in parameters.items())
        scope = f',scope="repository:app:pull"{extra}' if request.path != "/v2/" else ""
        answer = error(401, "UNAUTHORIZED", "authentication required")
        answer.headers["WWW-Authenticate"] = f'Bearer realm="{realm}",service="reg, istry"{scope}'
        return answer

    registry.faults.append(guard)


def tokens(registry: FakeRegistry, user: str = "", password: str = "", identity: str = "") -> None:
    """Let the registry be a token server too."""

    async def token(request: web.Request) -> web.StreamResponse | None:
        if request.path != "/token":
            return None
        if identity and request.method == "POST":
            form = await request.post()
            return web.json_response({"access_token": "granted"}) if form["refresh_token"] == identity else error(401, "UNAUTHORIZED", "")
        expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode() if user else ""
        if request.headers.get("Authorization", "") != expected:
            return error(401, "UNAUTHORIZED", "incorrect username or password")
        return web.json_response({"token": "granted"})

    registry.faults.insert(0, token)


async def test_anonymous_token(registry: FakeRegistry, world: World) -> None:
    registry.add(build_image(FILES))
    tokens(registry)
    bearer(registry, f"http://{registry.address}/token", "granted")
    await world.images.pull(f"{registry.address}/app")
    asked = registry.asked("/token")
    assert len(asked) == 1
    assert "service=reg%2C+istry" in asked[0][1] and "scope=repository%3Aapp%3Apull" in asked[0][1] and asked[0][2] == ""


@pytest.mark.parametrize(
    "credentials",
    [Credentials("me", "secret"), Credentials(identity_token="refresh"), Credentials(registry_token="granted")],
)
async def test_token_for_credentials(registry: FakeRegistry, world: World, credentials: Credentials) -> None:
    registry.add(build_image(FILES))
    tokens(registry, "me", "secret", "refresh")
    bearer(registry, f"http://{registry.address}/token", "granted")
    await world.images.pull(f"{registry.address}/app", credentials=credentials)
    with pytest.raises(Unauthorized, match="unauthorized: incorrect username or password"):
        await world.images.pull(f"{registry.address}/app:other", credentials=Credentials("me", "wrong"))


async def test_token_without_the_right(registry: FakeRegistry, world: World) -> None:
    tokens(registry)
    bearer(registry, f"http://{registry.address}/token", "another", error="insufficient_scope")
    await refused(world, registry, NotFound, "^pull access denied for .*denied: requested access to the resource is denied$")


async def test_basic(registry: FakeRegistry, world: World) -> None:
    registry.add(build_image(FILES))
    expected = Credentials("me", "pass:word").basic()

    async def guard(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") == expected:
            return None
        answer = error(401, "UNAUTHORIZED", "authentication required")
        answer.headers["WWW-Authenticate"] = 'Basic realm="here"'
        return answer

    registry.faults.append(guard)
    await world.images.pull(f"{registry.address}/app", credentials=Credentials("me", "pass:word"))
    with pytest.raises(Unauthorized, match="no basic auth credentials"):
        await world.images.pull(f"{registry.address}/app")
    with pytest.raises(Unauthorized, match="unauthorized: authentication required"):
        await world.images.pull(f"{registry.address}/app", credentials=Credentials("me", "other"))


async def test_no_credentials_across_hosts(registry: FakeRegistry, world: World) -> None:
    """CVE-2020-15157, CVE-2024-3727."""
    built = registry.add(build_image(FILES))
    tokens(registry)
    bearer(registry, f"http://{registry.address}/token", "granted")
    async with serving() as storage:
        storage.blobs.update(built.blobs)

        async def redirect(request: web.Request) -> web.StreamResponse | None:
            if built.layers[0] in request.path:
                return web.Response(status=307, headers={"Location": f"http://{storage.address}{request.path}?signed=a%2Fb"})
            return None

        registry.faults.append(redirect)
        await world.images.pull(f"{registry.address}/app")
        assert [request[1:3] for request in storage.requests] == [(f"/v2/app/blobs/{built.layers[0]}?signed=a%2Fb", "")]
    assert all(request[2] == "Bearer granted" for request in registry.asked("/blobs/"))


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/v2/app/manifests/latest"])
async def test_bad_redirects(registry: FakeRegistry, world: World, location: str) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=302, headers={"Location": location}) if "/manifests/" in request.path else None

    registry.faults.append(redirect)
    await refused(world, registry, Unavailable, "refused redirect|stopped after 5 redirects")


async def test_foreign_urls_are_not_plain_http(registry: FakeRegistry, world: World) -> None:
    built = build_image(FILES)
    manifest = json.loads(built.manifest)
    manifest["layers"][0]["urls"] = [f"http://{registry.address}/secret", "file:///etc/shadow"]
    built.manifest = json.dumps(manifest).encode()
    registry.add(built)
    del registry.blobs[built.layers[0]]
    await refused(world, registry, NotFound, "foreign layer without an https address")
    assert not registry.asked("/secret")


# --- mirrors


async def test_mirror_serves_and_fails_over(registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = registry.add(build_image(FILES), name="library/app")
    async with serving() as hub:
        hub.add(built, name="library/app")
        monkeypatch.setattr(endpoints, "HUB", endpoints.Endpoint(hub.address, ("http",)))
        world = World(tmp_path, registry_mirrors=(f"http://{registry.address}",))
        try:
            image = await world.images.pull("app", credentials=Credentials("me", "secret", registry_token="mine"))
            assert image.tags == ("app:latest",) and not hub.requests
            assert not any(request[2] for request in registry.requests)
            await world.images.delete("app")

            async def broken(request: web.Request) -> web.StreamResponse | None:
                return web.Response(status=500)

            registry.faults.append(broken)
            assert (await world.images.pull("app")).id == built.image_id
            assert hub.asked("/manifests/") and hub.asked("/blobs/")
        finally:
            await world.close()
