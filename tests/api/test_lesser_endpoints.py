"""Endpoints that the docker command does not call: attach by WebSocket, one image as an archive, updates of volumes, distribution."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import tarfile
from pathlib import Path

import pytest

from debian_registry import docker_registry
from docker_calls import Recorder, UnixConnection
from engine_world import Daemon

pytestmark = [pytest.mark.root]


class WebSocket:
    """A client of RFC 6455, as small as the test can do with."""

    def __init__(self, daemon: Daemon, target: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(20)
        self._sock.connect(str(daemon.socket))
        key = base64.b64encode(os.urandom(16)).decode()
        head = f"GET {target} HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        self._sock.sendall(f"{head}Sec-WebSocket-Key: {key}\r\n\r\n".encode())
        self._file = self._sock.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        while self._file.readline() != b"\r\n":
            pass

    def send(self, payload: bytes, opcode: int = 2) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        self._sock.sendall(bytes((0x80 | opcode, 0x80 | len(payload))) + mask + masked)

    def read(self) -> tuple[int, bytes]:
        """Opcode and payload of one (short) frame."""
        first, size = self._file.read(2)
        return first & 0x0F, self._file.read(size)

    def close(self) -> None:
        self._file.close()
        self._sock.close()


def fetch(daemon: Daemon, path: str) -> bytes:
    connection = UnixConnection(str(daemon.socket))
    connection.request("GET", path)
    try:
        return connection.getresponse().read()
    finally:
        connection.close()


def test_attach_by_websocket(engine: Daemon) -> None:
    """Input in masked frames, output in binary ones, and a close frame when the container has ended."""
    box = engine.docker("create", "-i", "busybox", "sh", "-c", "read line; echo got $line; read line; exit 3").stdout.strip()
    web = WebSocket(engine, f"/v1.51/containers/{box}/attach/ws?stream=1&stdin=1&stdout=1&stderr=1")
    assert web.status == 101
    engine.docker("start", box)
    web.send(b"one\n", opcode=1)
    received = b""
    while not received.endswith(b"\n"):
        opcode, payload = web.read()
        assert opcode == 2, "output is binary and not multiplexed"
        received += payload
    assert received == b"got one\n"
    web.send(b"two\n")
    opcode, _ = web.read()
    assert opcode == 8
    web.close()
    assert engine.docker("wait", box).stdout == "3\n"
    nobody = WebSocket(engine, "/containers/nobody/attach/ws?stream=1")
    assert nobody.status == 404
    nobody.close()


def test_one_image_as_an_archive(engine: Daemon) -> None:
    """The path names one image: the same archive as from the endpoint that takes a list."""
    recorder = Recorder(str(engine.socket))
    one = fetch(engine, "/images/busybox/get")
    with tarfile.open(fileobj=io.BytesIO(one)) as archive:
        member = archive.extractfile("manifest.json")
        assert member is not None and json.load(member)[0]["RepoTags"] == ["busybox:latest"]
    assert one == fetch(engine, "/images/get?names=busybox")
    recorder.call("missing", "GET", "/images/nobody/get")
    assert recorder.answers["missing"].status == 404


def test_volumes_are_updated_in_a_swarm_only(engine: Daemon) -> None:
    """dockerd knows updates of cluster volumes alone; labels are our own."""
    recorder = Recorder(str(engine.socket))
    recorder.call("create", "POST", "/volumes/create", {"Name": "kept"})
    try:
        recorder.call("spec", "PUT", "/volumes/kept?version=1", {"Spec": {"Availability": "drain"}})
        answer = recorder.answers["spec"]
        assert (answer.status, answer.document["message"]) == (
            503,
            "volume update only valid for cluster volumes, but swarm is unavailable",
        )
        assert recorder.call("labels", "PUT", "/volumes/kept", {"Labels": {"a": "b"}})["Labels"] == {"a": "b"}
        recorder.call("cluster", "POST", "/volumes/create", {"Name": "c", "ClusterVolumeSpec": {}})
        assert recorder.answers["cluster"].status == 503
        assert engine.tare("volume", "update", "--label-add", "c=d", "--label-rm", "a", "kept").stdout == "kept\n"
        assert recorder.call("after", "GET", "/volumes/kept")["Labels"] == {"c": "d"}
        for command in (engine.docker, engine.tare):
            refused = command("volume", "update", "--availability", "drain", "kept", check=False)
            assert (refused.returncode, refused.stderr) == (1, "can only update cluster volumes\n")
    finally:
        recorder.call("remove", "DELETE", "/volumes/kept")


def test_what_a_registry_has(engine: Daemon, tmp_path: Path) -> None:
    """The descriptor and the platforms of an image that was pushed; what is not there is told of as dockerd does."""
    recorder = Recorder(str(engine.socket))
    with docker_registry(tmp_path) as registry:
        name = f"{registry}/told/of:v1"
        engine.docker("tag", "busybox", name)
        try:
            pushed = engine.docker("push", "-q", name).stdout.strip()
            assert pushed == name
            found = recorder.call("there", "GET", f"/distribution/{name}/json")
            assert found["Descriptor"]["digest"].startswith("sha256:") and found["Descriptor"]["size"] > 100
            assert found["Descriptor"]["mediaType"].endswith(("manifest.v2+json", "manifest.v1+json"))
            assert [(each["os"], each["architecture"]) for each in found["Platforms"]] == [("linux", "amd64")]
            recorder.call("absent", "GET", f"/distribution/{registry}/told/nothing:v1/json")
            assert recorder.answers["absent"].status in (401, 404)
        finally:
            engine.docker("rmi", name)
    recorder.call("bad", "GET", "/distribution/UPPER/json")
    assert recorder.answers["bad"].status == 400
