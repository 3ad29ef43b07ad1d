"""The registry server: the distribution specification's table, real clients, restarts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_world import INDEX, OCI, Registry, code, content, digest_of


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    registry = Registry(tmp_path_factory.mktemp("registry"))
    yield registry
    registry.stop()
    assert registry.process.returncode == 0


def test_base(registry: Registry) -> None:
    response = registry.call("GET", "/v2/")
    assert (response.status, response.headers["Docker-Distribution-API-Version"]) == (200, "registry/2.0")


def test_streamed_upload(registry: Registry) -> None:
    data = os.urandom(3 << 20)
    started = registry.call("POST", "/v2/up/streamed/blobs/uploads/")
    assert started.status == 202
    place = started.headers["Location"]
    half = registry.call("PATCH", place, data[: 1 << 20])
    assert (half.status, half.headers["Range"]) == (202, f"0-{(1 << 20) - 1}")
    assert registry.call("PATCH", place, data[1 << 20 : 2 << 20]).status == 202
    done = registry.call("PUT", f"{place}?digest={digest_of(data)}", data[2 << 20 :])
    assert (done.status, done.headers["Location"]) == (201, f"/v2/up/streamed/blobs/{digest_of(data)}")
    got = registry.call("GET", done.headers["Location"])
    assert content(got) == data
    assert registry.call("GET", place).status == 404


def test_chunked_upload(registry: Registry) -> None:
    place = registry.call("POST", "/v2/up/chunked/blobs/uploads/").headers["Location"]
    assert registry.call("PATCH", place, b"12345", {"Content-Range": "0-4"}).status == 202
    early = registry.call("PATCH", place, b"xx", {"Content-Range": "7-8"})
    assert (early.status, code(early), early.headers["Range"]) == (416, "BLOB_UPLOAD_INVALID", "0-4")
    assert registry.call("PATCH", place, b"xx", {"Content-Range": "5-8"}).status == 400
    state = registry.call("GET", place)
    assert (state.status, state.headers["Range"]) == (204, "0-4")
    wrong = registry.call("PUT", f"{place}?digest={digest_of(b'other')}", b"67", {"Content-Range": "5-6"})
    assert (wrong.status, code(wrong)) == (400, "DIGEST_INVALID")
    assert registry.call("PUT", f"{place}?digest={digest_of(b'1234567')}").status == 201


def test_upload_survives_kill(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    place = registry.call("POST", "/v2/a/blobs/uploads/").headers["Location"]
    registry.call("PATCH", place, b"before ")
    registry.stop(signal.SIGKILL)
    registry.start()
    assert registry.call("GET", place).headers["Range"] == "0-6"
    assert registry.call("PUT", f"{place}?digest={digest_of(b'before after')}", b"after").status == 201
    registry.stop()


def test_cancel_and_unknown_upload(registry: Registry) -> None:
    place = registry.call("POST", "/v2/up/x/blobs/uploads/").headers["Location"]
    assert registry.call("DELETE", place).status == 204
    for path in (place, "/v2/up/x/blobs/uploads/../../../etc", "/v2/up/x/blobs/uploads/nonsense"):
        assert registry.call("GET", path).status == 404
    other = registry.call("POST", "/v2/up/y/blobs/uploads/").headers["Location"]
    assert code(registry.call("GET", other.replace("/up/y/", "/up/x/"))) == "BLOB_UPLOAD_UNKNOWN"


def test_mount(registry: Registry) -> None:
    digest = registry.push_blob("mount/source", b"mounted")
    assert registry.call("HEAD", f"/v2/mount/target/blobs/{digest}").status == 404
    assert registry.call("POST", f"/v2/mount/target/blobs/uploads/?mount={digest}&from=mount/source").status == 201
    assert registry.call("HEAD", f"/v2/mount/target/blobs/{digest}").headers["Content-Length"] == "7"
    assert registry.call("POST", f"/v2/mount/other/blobs/uploads/?mount={digest}").status == 201
    assert registry.call("POST", f"/v2/mount/other/blobs/uploads/?mount={digest_of(b'none')}&from=mount/source").status == 202


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=5-", 206, b"56789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=0-9", 200, b"0123456789"),
        ("bytes=10-", 416, None),
        ("bytes=5-2", 416, None),
        ("bytes=0-1,3-4", 200, b"0123456789"),
        ("lines=1", 200, b"0123456789"),
    ],
)
def test_ranges(registry: Registry, asked: str, status: int, expected: bytes | None) -> None:
    digest = registry.push_blob("ranges", b"0123456789")
    response = registry.call("GET", f"/v2/ranges/blobs/{digest}", headers={"Range": asked})
    assert response.status == status
    if expected is not None:
        assert content(response) == expected


def test_empty_blob_and_sha512(registry: Registry) -> None:
    digest = registry.push_blob("odd", b"")
    assert content(registry.call("GET", f"/v2/odd/blobs/{digest}")) == b""
    long = digest_of(b"long", "sha512")
    assert registry.call("POST", f"/v2/odd/blobs/uploads/?digest={long}", b"long").status == 201
    assert content(registry.call("GET", f"/v2/odd/blobs/{long}")) == b"long"


def test_manifests_tags_and_pages(registry: Registry) -> None:
    digest = registry.push_image("tags/app", "v1")
    for tag in ("v2", "v10", "latest"):
        assert registry.push_image("tags/app", tag) == digest
    head = registry.call("HEAD", "/v2/tags/app/manifests/v1")
    assert (head.status, head.headers["Content-Type"], head.headers["Docker-Content-Digest"]) == (200, OCI, digest)
    assert registry.call("GET", f"/v2/tags/app/manifests/{digest}", headers={"If-None-Match": f'"{digest}"'}).status == 304
    seen: list[str] = []
    path = "/v2/tags/app/tags/list?n=3"
    while path:
        page = registry.call("GET", path)
        seen += json.loads(content(page))["tags"]
        path = page.headers.get("Link", "").partition("<")[2].partition(">")[0]
    assert seen == ["latest", "v1", "v10", "v2"]
    assert json.loads(content(registry.call("GET", "/v2/tags/app/tags/list?n=0")))["tags"] == []
    assert "tags/app" in json.loads(content(registry.call("GET", "/v2/_catalog")))["repositories"]
    assert registry.call("DELETE", "/v2/tags/app/manifests/v2").status == 202
    assert registry.call("GET", "/v2/tags/app/manifests/v2").status == 404
    assert registry.call("DELETE", f"/v2/tags/app/manifests/{digest}").status == 202
    assert code(registry.call("GET", "/v2/tags/app/manifests/v1")) == "MANIFEST_UNKNOWN"


def test_index_and_missing_parts(registry: Registry) -> None:
    image = registry.push_image("multi", "")
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"mediaType": OCI, "digest": image, "size": 1}]}
    assert registry.call("PUT", "/v2/multi/manifests/all", json.dumps(document).encode(), {"Content-Type": INDEX}).status == 201
    document["manifests"] = []
    assert registry.call("PUT", "/v2/multi/manifests/none", json.dumps(document).encode(), {"Content-Type": INDEX}).status == 201
    lost = {"schemaVersion": 2, "mediaType": OCI, "config": {"mediaType": "x", "digest": digest_of(b"lost"), "size": 4}, "layers": []}
    response = registry.call("PUT", "/v2/multi/manifests/lost", json.dumps(lost).encode(), {"Content-Type": OCI})
    assert (response.status, code(response)) == (404, "MANIFEST_BLOB_UNKNOWN")


def test_layers_that_lie_elsewhere(registry: Registry) -> None:
    layer = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": digest_of(b"elsewhere"),
        "size": 9,
        "urls": ["https://x"],
    }
    registry.push_image("foreign", "v1", layers=[layer])


def test_referrers(registry: Registry) -> None:
    subject = registry.push_image("refer", "v1")
    descriptor = {"mediaType": OCI, "digest": subject, "size": 1}
    signature = registry.push_image("refer", "", subject=descriptor, artifactType="application/signature", annotations={"a": "b"})
    registry.push_image("refer", "", subject=descriptor, artifactType="application/sbom")
    listed = json.loads(content(registry.call("GET", f"/v2/refer/referrers/{subject}")))
    assert (listed["mediaType"], len(listed["manifests"])) == (INDEX, 2)
    filtered = registry.call("GET", f"/v2/refer/referrers/{subject}?artifactType=application/signature")
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
    (found,) = json.loads(content(filtered))["manifests"]
    assert (found["digest"], found["annotations"]) == (signature, {"a": "b"})
    assert registry.call("DELETE", f"/v2/refer/manifests/{signature}").status == 202
    assert len(json.loads(content(registry.call("GET", f"/v2/refer/referrers/{subject}")))["manifests"]) == 1
    assert json.loads(content(registry.call("GET", f"/v2/refer/referrers/{digest_of(b'nobody')}")))["manifests"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "expected"),
    [
        ("GET", "/v2/Upper/manifests/x", b"", 400, "NAME_INVALID"),
        ("GET", "/v2/../etc/manifests/x", b"", 400, "NAME_INVALID"),
        ("GET", "/v2/_x/tags/list", b"", 400, "NAME_INVALID"),
        ("GET", "/v2/none/tags/list", b"", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/none/manifests/x", b"", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/a/manifests/-bad", b"", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/a/manifests/sha256:short", b"", 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/blobs/sha256:zz", b"", 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", b"", 400, "DIGEST_INVALID"),
        ("POST", "/v2/a/blobs/uploads/?digest=nonsense", b"x", 400, "DIGEST_INVALID"),
        ("PUT", "/v2/a/manifests/x", b"not json", 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/x", b"[]", 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/x", b"[" * 100000, 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/x", b'{"layers":{}}', 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/x", b" " * ((4 << 20) + 1), 413, "SIZE_INVALID"),
        ("PUT", f"/v2/a/manifests/{digest_of(b'other')}", b"{}", 400, "DIGEST_INVALID"),
        ("PATCH", "/v2/a/manifests/x", b"", 405, "UNSUPPORTED"),
        ("GET", "/v1/", b"", 404, "NAME_UNKNOWN"),
    ],
)  # fmt: skip
def test_bad_requests(registry: Registry, method: str, path: str, body: bytes, status: int, expected: str) -> None:
    response = registry.call(method, path, body, {"Content-Type": OCI})
    assert (response.status, code(response)) == (status, expected)


def run_registry(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tare.api.registry.serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_nobody_writes_from_afar_without_a_password(tmp_path: Path) -> None:
    done = run_registry("serve", "--root", str(tmp_path), "--listen", "0.0.0.0:0")
    assert done.returncode == 1
    assert "--htpasswd" in done.stderr


def test_collection_and_scrub(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    kept = registry.push_image("app", "v1")
    gone = registry.push_blob("app", b"never named by a manifest")
    assert json.loads(run_registry("gc", "--root", str(tmp_path)).stdout) == {"blobs": 0, "bytes": 0}
    link = tmp_path / "repositories/app/_blobs/sha256" / gone.partition(":")[2]
    os.utime(link, (0, 0))
    assert json.loads(run_registry("gc", "--root", str(tmp_path)).stdout) == {"blobs": 1, "bytes": 25}
    assert registry.call("HEAD", f"/v2/app/blobs/{gone}").status == 404
    registry.stop()
    assert run_registry("scrub", "--root", str(tmp_path)).returncode == 0
    blob = tmp_path / "blobs/sha256" / kept.partition(":")[2]
    blob.write_bytes(b"rotten")
    found = run_registry("scrub", "--root", str(tmp_path))
    assert (found.returncode, json.loads(found.stdout)) == (1, {"corrupt": [kept]})


def test_command_line(tmp_path: Path) -> None:
    tare = [sys.executable, "-c", "import sys; sys.argv[0] = 'tare'; from tare.cli.main import main; sys.exit(main())", "registry"]
    process = subprocess.Popen([*tare, "serve", "--root", str(tmp_path), "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("registry listens on tcp://127.0.0.1:")
    process.terminate()
    assert process.wait(20) == 0
    process.stdout.close()
    done = subprocess.run([*tare, "scrub", "--root", str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"corrupt": []})


def test_quotas(tmp_path: Path) -> None:
    """Told early where the length is known; a stream of no told length, and an upload that never ends, do not get round it."""
    settings = tmp_path / "registry.toml"
    settings.write_text('[quota]\n"team/*" = 1000\n"team/small" = 200\n')
    registry = Registry(tmp_path / "root", "--config", str(settings))
    try:
        kept = registry.push_blob("team/small", b"x" * 60)
        too_much = registry.call("POST", f"/v2/team/small/blobs/uploads/?digest={digest_of(b'y' * 141)}", b"y" * 141)
        assert (too_much.status, code(too_much)) == (403, "DENIED")
        assert json.loads(content(too_much))["errors"][0]["detail"] == {"rule": "team/small", "limit": 200, "used": 60, "wanted": 141}
        place = registry.call("POST", "/v2/team/small/blobs/uploads/").headers["Location"]
        assert registry.call("PATCH", place, b"y" * 100).status == 202
        for headers in ({}, {"Content-Range": "100-199"}):
            assert code(registry.call("PATCH", place, b"y" * 100, headers)) == "DENIED"
        assert code(registry.call("PATCH", place, chunks=[b"y" * 100])) == "DENIED"
        assert registry.call("GET", place).headers["Range"] == "0-99"
        assert registry.call("PUT", f"{place}?digest={digest_of(b'y' * 100)}").status == 201
        document = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
        assert code(registry.call("PUT", "/v2/team/small/manifests/v1", document, {"Content-Type": INDEX})) == "DENIED"
        registry.push_blob("team/other", b"z" * 800)
        mount = f"/v2/team/third/blobs/uploads/?mount={kept}&from=team/small"
        assert code(registry.call("POST", mount)) == "DENIED"
        assert registry.call("DELETE", f"/v2/team/small/blobs/{kept}").status == 202
        assert registry.call("PUT", "/v2/team/small/manifests/v1", document, {"Content-Type": INDEX}).status == 201
        registry.push_blob("free", b"w" * 5000)
    finally:
        registry.stop()
