"""The registry server under bad input and faults: fuzzed requests, slow and vanishing clients, a full disk, kill -9 during pushes.

No 500 for a client's fault, no visible half-blob, no lost acknowledged write. ``TARE_FUZZ=5000`` and ``TARE_KILLS=200`` make long rounds.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry_world import INDEX, OCI, Pusher, Registry, code, content, digest_of
from tare.registry import upkeep
from tare.registry.places import open_storage

EXAMPLES = int(os.environ.get("TARE_FUZZ", "150"))
KILLS = int(os.environ.get("TARE_KILLS", "5"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="TARE_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Afterwards it holds no more descriptors than before, and nothing of what came is left in the way."""
    found = Registry(tmp_path_factory.mktemp("registry"))
    found.push_image("a", "v1")
    before = descriptors(found)
    yield found
    for _ in range(100):
        if descriptors(found) <= before:
            break
        time.sleep(0.05)
    assert descriptors(found) <= before
    assert found.call("GET", "/v2/a/manifests/v1").status == 200
    found.stop()


def descriptors(registry: Registry) -> int:
    return len(os.listdir(f"/proc/{registry.process.pid}/fd"))


# Fuzz

_hex = st.text("0123456789abcdefABCDEFg-:/%", max_size=130)
_digests = st.one_of(
    st.builds("{}:{}".format, st.sampled_from(["sha256", "sha512", "sha384", "md5", "SHA256", "", "a+b", "sha256:sha256"]), _hex),
    st.sampled_from([digest_of(b"{}"), digest_of(b"", "sha512"), "sha256:" + "0" * 64, "sha256:" + "0" * 63, "sha512:" + "f" * 128]),
    st.text(max_size=20),
)
_names = st.one_of(
    st.sampled_from(["a", "a/b", "..", "../a", "a/../b", "_uploads", "a//b", ".", "A", "blobs", "manifests", "a/blobs/uploads", "x" * 300]),
    st.text("abzAZ09._-/%\x00 ", max_size=40),
    st.text(max_size=20),
)
_tags = st.one_of(st.sampled_from(["v1", "..", "-", "x" * 128, "x" * 129, "_", "v1/../v1"]), st.text(max_size=20), _digests)
_spans = st.one_of(
    st.sampled_from(["0-0", "bytes=0-", "bytes=-1", "bytes=-0", "0-4", "5-1", "bytes 0-4/*", "9" * 30 + "-", "bytes=0-1,2-3", "-", ""]),
    st.text("0123456789-=,bytes /*", max_size=30),
    st.builds("bytes={}-{}".format, st.integers(0, 10**20), st.integers(0, 10**20)),
)
_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=10), _digests),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
_descriptors = st.one_of(st.fixed_dictionaries({"digest": _digests, "size": _json, "mediaType": _json}, optional={"urls": _json}), _json)
_documents = st.one_of(
    st.binary(max_size=200),
    _json.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {},
        optional={
            "schemaVersion": st.one_of(st.just(2), _json),
            "mediaType": st.one_of(st.sampled_from([OCI, INDEX]), _json),
            "config": _descriptors,
            "layers": st.one_of(st.lists(_descriptors, max_size=3), _json),
            "manifests": st.one_of(st.lists(_descriptors, max_size=3), _json),
            "blobs": _json,
            "subject": _descriptors,
            "artifactType": _json,
            "annotations": _json,
        },
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"[" * 50_000, b'{"a":' * 50_000, b'{"schemaVersion": 1e999}', b"\xff\xfe{}", b'{"layers": NaN}', b"9" * 6000]),
)
_values = st.one_of(_digests, _names, st.text("0123456789-", max_size=30))
_queries = st.dictionaries(st.sampled_from(["digest", "mount", "from", "n", "last", "artifactType", "x"]), _values, max_size=3)
_headers = st.fixed_dictionaries(
    {},
    optional={
        "Range": _spans,
        "Content-Range": _spans,
        "If-Range": st.text(max_size=10),
        "If-None-Match": st.text(max_size=10),
        "Content-Type": st.one_of(st.sampled_from([OCI, INDEX, f"{OCI}; x", "text/plain"]), st.text(max_size=10)),
        "Accept": st.text(max_size=10),
        "Authorization": st.one_of(st.text(max_size=10), st.sampled_from(["Basic eDp5", "Basic x", "Bearer a.b.c", "Basic " + "A" * 5000])),
    },
)


@pytest.fixture(scope="module")
def upload(registry: Registry) -> str:
    return registry.call("POST", "/v2/a/blobs/uploads/").headers["Location"].rpartition("/")[2]


@fuzz
@given(data=st.data())
def test_requests(registry: Registry, upload: str, data: st.DataObject) -> None:
    """Every answer is one that the specification knows, and none says that the fault is ours."""
    name = data.draw(st.one_of(st.just("a"), _names))
    form = data.draw(st.sampled_from(["manifests/{}", "blobs/{}", "blobs/uploads/", "blobs/uploads/{}", "tags/list", "referrers/{}"]))
    part = data.draw(st.one_of(_digests, _tags, st.just(upload)))
    method = data.draw(st.sampled_from(["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"]))
    path = f"/v2/{quote(name, safe='/')}/{form.format(quote(part, safe=':'))}"
    query = "&".join(f"{key}={quote(value)}" for key, value in data.draw(_queries).items())
    if method == "DELETE" and name == "a" and part == upload:
        method = "GET"
    body = data.draw(st.one_of(st.just(b""), _documents)) if method in ("PUT", "POST", "PATCH", "DELETE") else b""
    headers = {key: value.encode("utf-8") for key, value in data.draw(_headers).items() if not set(value) & set("\r\n\0")}
    connection = http.client.HTTPConnection(registry.address, timeout=20)
    connection.putrequest(method, path + (f"?{query}" if query else ""), skip_accept_encoding=True)
    for key, value in headers.items():
        connection.putheader(key, value)
    if body:
        connection.putheader("Content-Length", str(len(body)))
    try:
        connection.endheaders(body or None)
    except ValueError:  # not even this client would send it
        connection.close()
        return
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status < 500, (method, path, text)
    if answer.status >= 400 and method != "HEAD" and answer.headers["Content-Type"] == "application/json":
        (error,) = json.loads(text)["errors"]
        assert error["code"].replace("_", "").isupper()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v2/a/manifests/\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v2/a/tags/list HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v2/a/manifests/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v2/ HTTP/1.1\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
    ],
)
def test_what_is_no_request(registry: Registry, request_bytes: bytes) -> None:
    host, _, port = registry.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(request_bytes)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            answer = sock.recv(65536)
            assert not answer or answer[:10] in (b"HTTP/1.1 4", b"HTTP/1.1 5", b"HTTP/1.1 2")
            assert b" 500 " not in answer[:20]


# Slow and vanishing clients


def started_upload(registry: Registry, path: str, length: int, data: bytes) -> socket.socket:
    host, _, port = registry.address.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=20)
    sock.sendall(f"PATCH {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode() + data)
    return sock


def test_slow_clients_are_in_nobodys_way(registry: Registry) -> None:
    """A hundred clients that hardly send and hardly read: others are served meanwhile, and in the end the slow ones are."""
    blob = registry.push_blob("slow", os.urandom(8 << 20))
    paths = [registry.call("POST", "/v2/slow/blobs/uploads/").headers["Location"] for _ in range(50)]
    senders = [started_upload(registry, path, 10, b"01234") for path in paths]
    host, _, port = registry.address.rpartition(":")
    readers = []
    for _ in range(50):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(20)
        sock.connect((host, int(port)))
        sock.sendall(f"GET /v2/slow/blobs/{blob} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        readers.append(sock)
    started = time.monotonic()
    registry.push_image("quick", "v1")
    assert time.monotonic() - started < 15
    for sock, path in zip(senders, paths, strict=True):
        sock.sendall(b"56789")
        assert sock.recv(1000).startswith(b"HTTP/1.1 202")
        sock.close()
        assert registry.call("PUT", f"{path}?digest={digest_of(b'0123456789')}").status == 201
    for sock in readers:
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
        sock.close()


def test_uploads_that_break_off_go_on(registry: Registry) -> None:
    """What came stays, and is no blob; the client asks how far it is and sends the rest."""
    data = os.urandom(3 << 20)
    digest, blob = digest_of(data), f"/v2/broken/blobs/{digest_of(data)}"
    path = registry.call("POST", "/v2/broken/blobs/uploads/").headers["Location"]
    sent = 0

    def until(method: str, body: bytes = b"", *, beyond: int = 0) -> int:
        for _ in range(500):
            state = registry.call(method, path, body)
            offset = int(state.headers.get("Range", "0-0").partition("-")[2]) + 1
            if state.status in (202, 204) and offset > beyond:
                return offset
            time.sleep(0.02)
        raise AssertionError("the registry does not take any bytes")

    for part, reset in ((2, False), (70_000, True), (1 << 20, True)):
        sock = started_upload(registry, path, len(data) - sent, data[sent : sent + part])
        until("GET", beyond=max(sent, 1))
        assert registry.call("PATCH", path, b"x").status == 409
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        before, sent = sent, until("PATCH", beyond=1)  # of nothing, as soon as the other one has ended
        assert before < sent <= before + part
        assert registry.call("GET", path).headers["Range"] == f"0-{sent - 1}"
        assert registry.call("HEAD", blob).status == 404
    finished = registry.call("PUT", f"{path}?digest={digest}", data[sent:], {"Content-Range": f"{sent}-{len(data) - 1}"})
    assert finished.status == 201
    assert content(registry.call("GET", blob)) == data


def test_a_cancelled_upload_under_way(registry: Registry) -> None:
    path = registry.call("POST", "/v2/cancelled/blobs/uploads/").headers["Location"]
    sock = started_upload(registry, path, 10, b"01234")
    time.sleep(0.1)
    assert registry.call("DELETE", path).status == 204
    sock.sendall(b"56789")
    sock.recv(1000)
    sock.close()
    assert registry.call("PUT", f"{path}?digest={digest_of(b'0123456789')}").status == 404
    assert registry.call("HEAD", f"/v2/cancelled/blobs/{digest_of(b'0123456789')}").status == 404


# A full disk


@pytest.mark.root
def test_a_full_disk(tmp_path: Path) -> None:
    """507 and a way on; what is there is served; with room again everything goes on."""
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=12m none "$0" && exec "$@"', str(tmp_path)]
    registry = Registry(tmp_path, prefix=mount)
    try:
        image = registry.push_image("app", "v1")
        data = os.urandom(8 << 20)
        path = registry.call("POST", "/v2/app/blobs/uploads/").headers["Location"]
        assert registry.call("PATCH", path, data).status == 202
        full = [registry.call("POST", f"/v2/app/blobs/uploads/?digest={digest_of(data + b'x')}", data + b"x") for _ in range(2)]
        chunk = registry.call("PATCH", path, data)
        for answer in (*full, chunk):
            assert (answer.status, code(answer)) == (507, "UNAVAILABLE")
        assert registry.call("HEAD", f"/v2/app/blobs/{digest_of(data + b'x')}").status == 404
        assert registry.call("GET", "/v2/app/manifests/v1").headers["Docker-Content-Digest"] == image
        offset = int(registry.call("GET", path).headers["Range"].partition("-")[2]) + 1
        assert len(data) <= offset < 2 * len(data)
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": {"filler": "x" * (4_000_000)}}
        manifest = registry.call("PUT", "/v2/app/manifests/big", json.dumps(index).encode(), {"Content-Type": INDEX})
        assert (manifest.status, code(manifest)) == (507, "UNAVAILABLE")
        assert registry.call("GET", "/v2/app/manifests/big").status == 404
        assert registry.call("DELETE", path).status == 204
        assert registry.call("POST", f"/v2/app/blobs/uploads/?digest={digest_of(data)}", data).status == 201
        assert content(registry.call("GET", f"/v2/app/blobs/{digest_of(data)}")) == data
    finally:
        registry.stop()


def test_no_descriptors_left(tmp_path: Path) -> None:
    """Idle connections take all that there are: who is connected hears 503, and is served when some have gone."""
    registry = Registry(tmp_path, prefix=["prlimit", "--nofile=48"])
    image = registry.push_image("app", "v1")
    kept = http.client.HTTPConnection(registry.address, timeout=20)
    kept.request("GET", "/v2/")
    assert kept.getresponse().read() == b"{}"
    host, _, port = registry.address.rpartition(":")
    idle = [socket.create_connection((host, int(port)), timeout=20) for _ in range(60)]
    deadline = time.monotonic() + 60
    while True:
        kept.request("GET", "/v2/app/manifests/v1")
        answer = kept.getresponse()
        assert answer.status in (200, 503), answer.read()
        if answer.status == 503:
            assert json.loads(answer.read())["errors"][0]["code"] == "UNAVAILABLE"
            break
        answer.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for sock in idle:
        sock.close()
    while True:
        kept.request("HEAD", "/v2/app/manifests/v1")
        answer = kept.getresponse()
        answer.read()
        if answer.status == 200:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert answer.headers["Docker-Content-Digest"] == image
    kept.close()
    registry.stop()


# Kills


def test_kills_in_the_middle_of_pushes(tmp_path: Path) -> None:
    """After each kill -9: what was acknowledged is there, whole; what was not is there whole or not at all."""
    rounds = random.Random(int(os.environ.get("TARE_SEED", "7")))
    registry = Registry(tmp_path)
    for number in range(KILLS):
        pushers = [Pusher(registry, f"team/app{each}", rounds.randrange(10**9)) for each in range(3)]
        for pusher in pushers:
            pusher.start()
        time.sleep(rounds.uniform(0.02, 0.6))
        registry.stop(signal.SIGKILL)
        for pusher in pushers:
            pusher.join()
        if number % 2:
            storage = open_storage(str(tmp_path))
            assert list(upkeep.scrub(storage)) == []
            upkeep.collect(storage)
            storage.close()
        registry.start()
        for pusher in pushers:
            pusher.check()
    storage = open_storage(str(tmp_path))
    assert list(upkeep.scrub(storage)) == []
    upkeep.collect(storage, grace=-60)
    assert upkeep.collect(storage, grace=-60) == (0, 0)
    for name in storage.repositories():
        for found in storage.manifests(name):
            for blob in upkeep.named_by(json.loads(storage.document(found))):
                assert storage.has_blob(name, blob)
        layout = json.loads((tmp_path / "repositories" / name / "_oci/index.json").read_text())
        assert {entry["digest"] for entry in layout["manifests"]} == set(storage.manifests(name))
    storage.objects.tidy(time.time() + 60)
    assert os.listdir(tmp_path / "hidden/sha256") == []
    registry.stop()
