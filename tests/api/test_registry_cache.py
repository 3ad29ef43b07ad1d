"""The registry server as a pull-through cache of Debian's docker-registry, and of upstreams that misbehave."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from debian_registry import docker_registry
from registry_upstream import BLOB, Upstream, image
from registry_world import INDEX, OCI, Registry, code, content, digest_of


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    found = Upstream()
    yield found
    found.close()


@contextmanager
def cache(root: Path, upstream: str, settings: str = "", *options: str) -> Iterator[Registry]:
    config = root.with_suffix(".toml")
    config.write_text(f'[[cache]]\nprefix = "far"\nupstream = "{upstream}"\n{settings}\n')
    registry = Registry(root, "--config", str(config), *options)
    try:
        yield registry
    finally:
        registry.stop()
        assert registry.process.returncode == 0
        assert not list((root / "uploads").iterdir()), "an upload was left behind"


def seed(registry: str, name: str, tag: str, *layers: bytes) -> str:
    """Push an image into a registry that needs no password."""
    connection = http.client.HTTPConnection(registry, timeout=20)

    def call(method: str, path: str, body: bytes, kind: str) -> http.client.HTTPResponse:
        connection.request(method, path, body, {"Content-Type": kind})
        response = connection.getresponse()
        response.read()
        return response

    for data in (b"{}", *layers):
        place = call("POST", f"/v2/{name}/blobs/uploads/", b"", "").headers["Location"]
        assert call("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest_of(data)}", data, "application/octet-stream").status == 201
    assert call("PUT", f"/v2/{name}/manifests/{tag}", image(*layers), OCI).status == 201
    connection.close()
    return digest_of(image(*layers))


@pytest.mark.peer
def test_what_was_pulled_once_is_served_without_the_upstream(tmp_path: Path) -> None:
    layers = [os.urandom(1 << 20), b"small"]
    with docker_registry(tmp_path / "debian") as address:
        digest = seed(address, "team/app", "v1", *layers)
        other = seed(address, "team/other", "v1", layers[0])
        with cache(tmp_path / "cache", address, "ttl = 3600") as registry:
            response = registry.call("GET", "/v2/far/team/app/manifests/v1")
            assert (response.status, content(response)) == (200, image(*layers))
            assert (response.headers["Docker-Content-Digest"], response.headers["Content-Type"]) == (digest, OCI)
            for data in (*layers, b"{}"):
                path = f"/v2/far/team/app/blobs/{digest_of(data)}"
                assert registry.call("HEAD", path).headers["Content-Length"] == str(len(data))
                assert content(registry.call("GET", path)) == data
            assert registry.call("HEAD", "/v2/far/team/app/manifests/none").status == 404
            assert registry.call("GET", f"/v2/far/team/app/blobs/{digest_of(b'none')}").status == 404
            assert json.loads(content(registry.call("GET", "/v2/far/team/app/tags/list"))) == {"name": "far/team/app", "tags": ["v1"]}
            # A layer that is here already comes from here, once the upstream says that this repository has it, too.
            assert registry.call("HEAD", f"/v2/far/team/other/blobs/{digest_of(layers[1])}").status == 404
            assert registry.call("GET", "/v2/far/team/other/manifests/v1").headers["Docker-Content-Digest"] == other
            assert content(registry.call("GET", f"/v2/far/team/other/blobs/{digest_of(layers[0])}")) == layers[0]
            pushed = registry.call("POST", "/v2/far/team/app/blobs/uploads/")
            assert (pushed.status, code(pushed)) == (405, "UNSUPPORTED")
            registry.push_image("own/app", "v1")
            catalog = json.loads(content(registry.call("GET", "/v2/_catalog")))["repositories"]
            assert catalog == ["far/team/app", "far/team/other", "own/app"]
    with cache(tmp_path / "cache", address, "ttl = 0") as registry:  # the upstream is gone, and every tag wants to be compared
        assert content(registry.call("GET", "/v2/far/team/app/manifests/v1")) == image(*layers)
        assert content(registry.call("GET", f"/v2/far/team/app/manifests/{digest}")) == image(*layers)
        ranged = registry.call("GET", f"/v2/far/team/app/blobs/{digest_of(layers[0])}", headers={"Range": "bytes=5-9"})
        assert (ranged.status, content(ranged)) == (206, layers[0][5:10])
        assert json.loads(content(registry.call("GET", "/v2/far/team/app/tags/list")))["tags"] == ["v1"]
        missing = registry.call("GET", "/v2/far/team/app/manifests/v2")
        assert (missing.status, code(missing)) == (503, "UNAVAILABLE") and "connection refused" in content(missing).decode()
        assert registry.call("DELETE", f"/v2/far/team/app/manifests/{digest}").status == 202
        assert registry.call("GET", "/v2/far/team/app/manifests/v1").status == 503


@pytest.mark.peer
def test_credentials_and_names(tmp_path: Path) -> None:
    """An upstream with a password; the mirror's and containerd's ways of naming; rights go by the name with the prefix."""
    with docker_registry(tmp_path / "closed", closed=True) as address:
        secret = tmp_path / "secret"
        secret.write_text("x\n")
        settings = f'username = "alice"\npassword-file = "{secret}"'
        rules = '[access]\n[[access.rule]]\nrepositories = ["far/open/*"]\nrights = ["pull"]\nanonymous = true'
        with pushed_by_alice(tmp_path, address) as seeded:
            digest = seeded
        with cache(tmp_path / "cache", address, settings, "--mirror", "far") as registry:
            for path, headers in (
                ("/v2/far/open/app/manifests/v1", {}),
                ("/v2/open/app/manifests/v1", {}),
                (f"/v2/open/app/manifests/v1?ns={address}", {}),
                ("/v2/open/app/manifests/v1?ns=here.example", {"Host": "here.example"}),
            ):
                assert registry.call("GET", path, headers=headers).headers["Docker-Content-Digest"] == digest, path
            unknown = registry.call("GET", "/v2/open/app/manifests/v1?ns=other.example")
            assert (unknown.status, code(unknown)) == (404, "NAME_UNKNOWN")
            assert code(registry.call("POST", "/v2/mine/blobs/uploads/")) == "UNSUPPORTED"
        with cache(tmp_path / "cache2", address, 'username = "alice"\npassword = "wrong"') as registry:
            refused = registry.call("GET", "/v2/far/open/app/manifests/v1")
            assert (refused.status, code(refused)) == (403, "DENIED")
        with cache(tmp_path / "cache3", address, f"{settings}\n{rules}", "--mirror", "far") as registry:
            assert registry.call("GET", "/v2/open/app/manifests/v1").status == 200
            assert registry.call("GET", "/v2/far/open/app/manifests/v1").status == 200
            assert registry.call("GET", "/v2/closed/app/manifests/v1").status == 401


@contextmanager
def pushed_by_alice(root: Path, address: str) -> Iterator[str]:
    """``open/app:v1`` in a registry that asks for alice's password; its digest."""
    connection = http.client.HTTPConnection(address, timeout=20)
    login = {"Authorization": "Basic YWxpY2U6eA=="}
    for data in (b"{}", b"layer"):
        connection.request("POST", "/v2/open/app/blobs/uploads/", headers=login)
        response = connection.getresponse()
        response.read()
        connection.request(
            "PUT", f"{response.headers['Location']}&digest={digest_of(data)}", data, {**login, "Content-Type": "application/octet-stream"}
        )
        response = connection.getresponse()
        response.read()
        assert response.status == 201
    connection.request("PUT", "/v2/open/app/manifests/v1", image(b"layer"), {**login, "Content-Type": OCI})
    response = connection.getresponse()
    response.read()
    assert response.status == 201
    yield digest_of(image(b"layer"))
    connection.close()


async def fetch(address: str, path: str, seen: list[int] | None = None) -> bytes:
    """The body of a GET as far as it comes; ``seen`` tells how far that is meanwhile."""
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    body = bytearray()
    try:
        while data := await reader.read(65536):
            body += data
            if seen is not None:
                seen[0] = len(body)
    except ConnectionError:
        pass
    finally:
        writer.close()
    return bytes(body)


async def test_clients_share_a_download_and_read_along(tmp_path: Path, upstream: Upstream) -> None:
    """Ten ask while the upstream is in the middle of the blob: one request there, bytes for everybody at once, the rest when it comes."""
    with cache(tmp_path / "cache", upstream.address) as registry:
        path = f"/v2/far/app/blobs/{digest_of(BLOB)}"
        assert registry.call("GET", "/v2/far/app/manifests/v1").status == 200
        upstream.pause_at = 2 << 20
        upstream.gate.clear()
        counters = [[0] for _ in range(10)]
        readers = [asyncio.create_task(fetch(registry.address, path, counter)) for counter in counters]
        gone = asyncio.create_task(fetch(registry.address, path))
        for _ in range(500):
            await asyncio.sleep(0.02)
            if all(counter[0] >= 1 << 20 for counter in counters):
                break
        assert all(1 << 20 <= counter[0] < len(BLOB) for counter in counters)
        gone.cancel()
        upstream.gate.set()
        assert all(body == BLOB for body in await asyncio.gather(*readers))
        assert upstream.count(f"GET {path.replace('/far', '')}") == 1
        assert await fetch(registry.address, path) == BLOB
        assert upstream.count("/blobs/") == 1


async def test_a_blob_that_breaks_off_is_resumed(tmp_path: Path, upstream: Upstream) -> None:
    with cache(tmp_path / "cache", upstream.address) as registry:
        upstream.cut_at = 1 << 20
        assert await fetch(registry.address, f"/v2/far/app/blobs/{digest_of(BLOB)}") == BLOB
        assert upstream.count("GET /v2/app/blobs/") == 2 and upstream.count("HEAD /v2/app/blobs/") == 1


async def test_a_wrong_blob_reaches_nobody_whole(tmp_path: Path, upstream: Upstream) -> None:
    digest = digest_of(BLOB)
    upstream.blobs[digest] = BLOB[:-5] + b"wrong"
    with cache(tmp_path / "cache", upstream.address) as registry:
        assert len(await fetch(registry.address, f"/v2/far/app/blobs/{digest}")) < len(BLOB)
        assert not (tmp_path / "cache/blobs/sha256" / digest.partition(":")[2]).exists()
        upstream.blobs[digest] = BLOB[:1000]
        registry.call("GET", "/v2/far/app/manifests/v1")
        short = registry.call("GET", f"/v2/far/app/blobs/{digest}")
        assert (short.status, code(short)) == (502, "UNAVAILABLE")
        upstream.manifest = b"<html>"
        assert registry.call("GET", "/v2/far/app/manifests/v1").status == 200  # fresh enough
        assert registry.call("GET", f"/v2/far/app/manifests/{digest_of(b'x')}").status == 404


def test_tags_are_compared_when_they_are_old(tmp_path: Path, upstream: Upstream) -> None:
    path, first = "/v2/far/app/manifests/v1", digest_of(upstream.manifest)
    with cache(tmp_path / "cache", upstream.address, "ttl = 3600") as registry:
        for _ in range(3):
            assert registry.call("GET", path).headers["Docker-Content-Digest"] == first
        assert upstream.count("/manifests/") == 1
        assert content(registry.call("GET", "/v2/far/app/tags/list")) == b'{"name":"far/app","tags":["v1","v2"]}'
        (found,) = json.loads(content(registry.call("GET", f"/v2/far/app/referrers/{first}")))["manifests"]
        assert found["digest"] == digest_of(b"sig")
    with cache(tmp_path / "cache", upstream.address, "ttl = 0\ntimeout = 1") as registry:
        upstream.asked.clear()
        assert registry.call("GET", path).headers["Docker-Content-Digest"] == first
        assert [line for line in upstream.asked if "manifests" in line] == ["HEAD /v2/app/manifests/v1"]
        upstream.manifest = image(b"another")
        second = digest_of(upstream.manifest)
        assert registry.call("HEAD", path).headers["Docker-Content-Digest"] == second
        assert registry.call("GET", f"/v2/far/app/manifests/{first}").status == 200
        for status in (503, 429):  # overloaded, or it limits us: what is known goes on
            upstream.status = status
            assert registry.call("GET", path).headers["Docker-Content-Digest"] == second
        upstream.asked.clear()
        assert registry.call("GET", path).status == 200 and not upstream.asked  # it is left alone for a while
        other = registry.call("GET", "/v2/far/app/manifests/v9")
        assert (other.status, code(other)) == (429, "TOOMANYREQUESTS")
    upstream.status = 0
    with cache(tmp_path / "cache", upstream.address, "ttl = 0") as registry:
        upstream.manifest = b""  # nothing has this digest: the tag is gone
        original, upstream.answer = (
            upstream.answer,
            lambda handler: upstream.reply(  # type: ignore[method-assign]
                handler, 404 if "manifests" in handler.path else 200, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', {}
            ),
        )
        gone = registry.call("GET", path)
        assert (gone.status, code(gone)) == (404, "MANIFEST_UNKNOWN")
        assert not (tmp_path / "cache/repositories/far/app/_tags/v1").exists()
        upstream.answer = original  # type: ignore[method-assign]


def test_a_killed_cache_starts_anew(tmp_path: Path, upstream: Upstream) -> None:
    """kill -9 in the middle of a blob: nothing half-visible, and the next one fetches it whole."""
    with cache(tmp_path / "cache", upstream.address) as registry:
        path = f"/v2/far/app/blobs/{digest_of(BLOB)}"
        upstream.pause_at = 1 << 20
        upstream.gate.clear()
        thread = threading.Thread(target=lambda: asyncio.run(fetch(registry.address, path)))
        thread.start()
        for _ in range(200):
            if any(file.stat().st_size > 500_000 for file in (tmp_path / "cache/uploads").glob("*/data")):
                break
            time.sleep(0.02)
        registry.stop(9)
        thread.join()
        assert not (tmp_path / "cache/blobs/sha256" / digest_of(BLOB).partition(":")[2]).exists()
        for folder in (tmp_path / "cache/uploads").iterdir():  # what the collection does with it a week later
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        upstream.gate.set()
        registry.start()
        assert content(registry.call("GET", path)) == BLOB


async def test_eviction(tmp_path: Path, upstream: Upstream) -> None:
    """The oldest go first, until what is left fits; what was asked for lately stays."""
    from tare.api.registry import manifests
    from tare.registry.places import open_storage
    from tare.registry.upstream import PullThrough, Source

    storage = open_storage(str(tmp_path / "root"))
    now = time.time()
    digests = []
    for number, age in enumerate((50, 40, 1)):
        name, layer = f"far/app{number}", bytes([number]) * 1000
        for data in (layer, b"{}"):
            upload = storage.start_upload(name)
            with storage.append(name, upload) as appender:
                appender.write(data)
            storage.finish_upload(name, upload, manifests.Digest.of(data))
        document = image(layer)
        checked = manifests.check(document, "v1", OCI)
        storage.put_manifest(name, document, checked.digest, OCI, None, "v1", [])
        link = tmp_path / f"root/repositories/{name}/_manifests" / checked.digest.replace(":", "/")
        os.utime(link, (now - age * 86400, now - age * 86400))
        digests.append(checked.digest)

    def left(**limits: Any) -> list[str]:
        through = PullThrough(storage, [Source("far", "x", **limits)], "", manifests.check, None)
        assert through.evicts
        through.evict()
        return [name for name in storage.repositories() if storage.tags(name)]

    assert left(size=10_000_000) == ["far/app0", "far/app1", "far/app2"]
    assert left(keep=45 * 86400.0) == ["far/app1", "far/app2"]
    assert left(size=len(image(b"")) + 1500) == ["far/app2"]
    assert hashlib.sha256(image(bytes([2]) * 1000)).hexdigest() == digests[2].hex and INDEX
