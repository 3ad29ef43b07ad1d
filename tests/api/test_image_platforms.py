"""Several platforms under one name, attestations and referrers: pulled, shown, saved, loaded, pushed and removed, beside real peers."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from debian_registry import docker_registry
from engine_world import Daemon
from image_builder import OCI, BuiltImage, build_image, busybox_image, sha256
from registry_world import Registry

pytestmark = [pytest.mark.root, pytest.mark.peer]
MANIFEST, INDEX = f"{OCI}manifest.v1+json", f"{OCI}index.v1+json"
PLATFORMS = ("linux/amd64", "linux/arm64")


def call(address: str, method: str, path: str, body: bytes = b"", kind: str = "application/octet-stream") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=20)
    headers = {"Content-Type": kind, "Accept": f"{MANIFEST}, {INDEX}"}
    connection.request(method, path, body or None, headers)
    answer = connection.getresponse()
    raw = answer.read()
    if method == "POST":
        location = answer.headers["Location"]
        path = location.partition(address)[2] if address in location else location
        connection.request("PUT", f"{path}{'&' if '?' in path else '?'}digest={sha256(body)}", body, headers)
        answer = connection.getresponse()
        raw = answer.read()
    connection.close()
    return answer.status, raw


def artifact(kind: str, content: bytes, subject: dict[str, Any] | None = None) -> BuiltImage:
    """A manifest with one blob that is no layer."""
    blobs = {sha256(b"{}"): b"{}", sha256(content): content}
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": kind,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/vnd.in-toto+json", "digest": sha256(content), "size": len(content)}],
    }
    if subject:
        document["subject"] = subject
    return BuiltImage(json.dumps(document).encode(), MANIFEST, "", [], [], blobs)


def descriptor(raw: bytes, kind: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": sha256(raw), "size": len(raw)} | more


class Published:
    """An index of two platforms with an attestation each; a signature of the index, one of an image, and a note about that one."""

    def __init__(self, address: str, name: str) -> None:
        self.address, self.name = address, name
        self.images = {
            "linux/amd64": busybox_image(),
            "linux/arm64": build_image({"etc/": b"", "etc/machine": b"arm"}, architecture="arm64"),
        }
        self.attestations = {key: artifact("application/vnd.in-toto+json", key.encode()) for key in self.images}
        entries = []
        for key, image in self.images.items():
            os_name, architecture = key.split("/")
            entries.append(descriptor(image.manifest, image.media_type, platform={"os": os_name, "architecture": architecture}))
        for key, found in self.attestations.items():
            notes = {
                "vnd.docker.reference.digest": self.images[key].digest,
                "vnd.docker.reference.type": "attestation-manifest",
            }
            unknown = {"os": "unknown", "architecture": "unknown"}
            entries.append(descriptor(found.manifest, MANIFEST, platform=unknown, annotations=notes))
        self.index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
        host = self.images["linux/amd64"]
        self.signature = artifact("application/signature", b"signed index", descriptor(self.index, INDEX))
        self.seal = artifact("application/signature", b"signed image", descriptor(host.manifest, host.media_type))
        self.note = artifact("application/note", b"about the seal", descriptor(self.seal.manifest, MANIFEST))
        for image in (*self.images.values(), *self.attestations.values(), self.signature, self.seal, self.note):
            for blob in image.blobs.values():
                assert call(address, "POST", f"/v2/{name}/blobs/uploads/", blob)[0] == 201
            if "subject" not in json.loads(image.manifest):
                self._put(image.digest, image.manifest, image.media_type)
        self._put("latest", self.index, INDEX)
        for image in (self.signature, self.seal, self.note):
            self._put(image.digest, image.manifest, MANIFEST)
            subject = json.loads(image.manifest)["subject"]["digest"]
            if call(address, "GET", f"/v2/{name}/referrers/{subject}")[0] != 200:
                listed = [descriptor(image.manifest, MANIFEST, artifactType="application/x")]
                tagged = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}).encode()
                self._put(subject.replace(":", "-"), tagged, INDEX)

    def _put(self, target: str, raw: bytes, kind: str) -> None:
        status, answer = call(self.address, "PUT", f"/v2/{self.name}/manifests/{target}", raw, kind)
        assert status == 201, answer

    def there(self, name: str, digest: str) -> bool:
        return call(self.address, "GET", f"/v2/{name}/manifests/{digest}")[0] == 200

    def referrers(self, name: str, digest: str) -> set[str]:
        status, raw = call(self.address, "GET", f"/v2/{name}/referrers/{digest}")
        if status != 200:
            status, raw = call(self.address, "GET", f"/v2/{name}/manifests/{digest.replace(':', '-')}")
        return {entry["digest"] for entry in json.loads(raw)["manifests"]} if status == 200 else set()


@pytest.fixture(params=["docker-registry", "tare"])
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Published]:
    if request.param == "tare":
        registry = Registry(tmp_path / "registry")
        try:
            yield Published(registry.address, "src/app")
        finally:
            registry.stop()
    else:
        with docker_registry(tmp_path) as address:
            yield Published(address, "src/app")


def inspect(engine: Daemon, name: str, *options: str) -> Any:
    return json.loads(engine.docker("image", "inspect", *options, name).stdout)[0]


def blob_files(engine: Daemon) -> set[str]:
    return {f"sha256:{path.name}" for path in (engine.root / "data" / "blobs" / "sha256").iterdir()}


def test_all_of_an_index_goes_round(own_daemon: Daemon, published: Published, tmp_path: Path) -> None:
    engine = own_daemon
    name, other = f"{published.address}/src/app", f"{published.address}/dst/app:2"
    before = blob_files(engine)
    host, arm = (published.images[key] for key in PLATFORMS)
    engine.tare("pull", "--all-platforms", "--referrers", name)
    try:
        # one name, one line; both platforms are there
        assert engine.docker("images", "-q", "--no-trunc", name).stdout.split() == [host.image_id]
        assert arm.image_id not in engine.docker("images", "-q", "--no-trunc").stdout
        assert arm.image_id not in engine.docker("images", "-q", "--no-trunc", "-f", "dangling=true").stdout
        assert arm.image_id in engine.docker("images", "-aq", "--no-trunc").stdout
        assert inspect(engine, name, "--platform", "linux/arm64")["Id"] == arm.image_id
        assert inspect(engine, arm.image_id)["RepoDigests"] == [f"{name}@{sha256(published.index)}"]
        refused = engine.docker("image", "inspect", "--platform", "linux/s390x", name, check=False)
        assert refused.returncode and "linux/s390x" in refused.stderr
        tree = engine.tare("image", "ls", "--tree").stdout
        assert all(platform in tree for platform in PLATFORMS)
        assert all(platform in engine.docker("image", "ls", "--tree").stdout for platform in PLATFORMS)
        assert engine.docker("run", "--rm", "--network", "none", name, "/bin/busybox", "echo", "hi").stdout == "hi\n"
        created = engine.docker("create", "--platform", "linux/arm64", "--name", "armed", name, "x").stdout.strip()
        assert json.loads(engine.docker("inspect", created).stdout)[0]["Image"] == arm.image_id
        engine.docker("image", "prune", "-af")  # in use, through its sibling
        assert inspect(engine, name)["Id"] == host.image_id
        engine.docker("rm", created)

        # pushed as it came, with what refers to it
        engine.docker("tag", name, other)
        pushed = engine.docker("push", other).stdout
        assert sha256(published.index) in pushed
        for found in (*published.images.values(), *published.attestations.values(), published.signature, published.seal, published.note):
            assert published.there("dst/app", found.digest)
        assert published.referrers("dst/app", sha256(published.index)) == {published.signature.digest}
        assert published.referrers("dst/app", host.digest) == {published.seal.digest}
        assert published.referrers("dst/app", published.seal.digest) == {published.note.digest}
        only = f"{published.address}/only/app"
        engine.docker("tag", name, f"{only}:arm")
        assert arm.digest in engine.docker("push", "--platform", "linux/arm64", f"{only}:arm").stdout
        assert not published.there("only/app", host.digest)

        # saved as it came; skopeo reads all of it
        archive = tmp_path / "all.tar"
        engine.docker("save", "-o", str(archive), name)
        with tarfile.open(archive) as tar:
            index = json.loads(tar.extractfile("index.json").read())  # type: ignore[union-attr]
            layers = json.loads(tar.extractfile("manifest.json").read())[0]["Layers"]  # type: ignore[union-attr]
        assert index["manifests"][0]["digest"] == sha256(published.index)
        assert layers == [f"blobs/sha256/{digest[7:]}" for digest in host.layers]
        skopeo = shutil.which("skopeo")
        if skopeo:
            layout = tmp_path / "layout"
            subprocess.run(
                [skopeo, "copy", "-q", "--all", f"oci-archive:{archive}:latest", f"oci:{layout}:x"], check=True, capture_output=True
            )
            assert (layout / "blobs" / "sha256" / arm.digest[7:]).exists()
        engine.docker("save", "--platform", "linux/arm64", "-o", str(tmp_path / "arm.tar"), name)

        # nothing is left, then all of it is back
        engine.docker("rmi", name, other, f"{only}:arm")
        assert blob_files(engine) <= before
        assert f"Loaded image: {name}:latest" in engine.docker("load", "-i", str(archive)).stdout
        assert inspect(engine, name, "--platform", "linux/arm64")["Id"] == arm.image_id
        again = f"{published.address}/again/app"
        engine.docker("tag", name, again)
        assert sha256(published.index) in engine.docker("push", again).stdout
        assert published.referrers("again/app", sha256(published.index)) == {published.signature.digest}

        # one platform goes: the names pass to the other
        gone = engine.docker("image", "rm", "--platform", "linux/amd64", name).stdout
        assert host.image_id in gone and "Untagged" not in gone
        assert inspect(engine, name)["Id"] == arm.image_id
        engine.docker("rmi", name, again)
        engine.docker("load", "--platform", "linux/arm64", "-i", str(archive))
        assert inspect(engine, name)["Id"] == arm.image_id
        assert host.image_id not in engine.docker("images", "-aq", "--no-trunc").stdout
        engine.docker("load", "-i", str(tmp_path / "arm.tar"))
        assert inspect(engine, name)["Id"] == arm.image_id
    finally:
        engine.docker("rmi", "-f", *{host.image_id, arm.image_id}, check=False)
    assert blob_files(engine) <= before


@pytest.mark.parametrize("published", ["tare"], indirect=True)
def test_platform_after_platform(own_daemon: Daemon, published: Published) -> None:
    """The name goes to what was asked for last; the other stays beside it. Attestations come without being asked for, referrers do not."""
    engine, name = own_daemon, f"{published.address}/src/app"
    before = blob_files(engine)
    host, arm = (published.images[key] for key in PLATFORMS)
    try:
        engine.docker("pull", "-q", name)
        kept = blob_files(engine) - before
        assert published.attestations["linux/amd64"].digest in kept and published.attestations["linux/arm64"].digest not in kept
        assert published.seal.digest not in kept
        one = f"{published.address}/one/app"
        engine.docker("tag", name, one)
        assert host.digest in engine.docker("push", one).stdout  # not the index: half of it is missing
        assert published.there("one/app", host.digest) and not published.there("one/app", arm.digest)
        engine.docker("rmi", one)
        engine.docker("pull", "-q", "--platform", "linux/arm64", name)
        assert inspect(engine, name)["Id"] == arm.image_id
        assert inspect(engine, name, "--platform", "linux/amd64")["Id"] == host.image_id
        engine.docker("image", "prune", "-f")
        assert host.image_id in engine.docker("images", "-aq", "--no-trunc").stdout
        both = f"{published.address}/both/app"
        engine.docker("tag", name, both)
        assert sha256(published.index) in engine.docker("push", both).stdout  # now all of it is here
        engine.docker("rmi", both)
        summary = json.loads(_get(engine, "/v1.48/images/json?manifests=1"))
        kinds = [entry["Kind"] for image in summary if image["Id"] == arm.image_id for entry in image["Manifests"]]
        assert kinds == ["image", "image", "attestation", "attestation"]
        engine.docker("image", "prune", "-af")
    finally:
        engine.docker("rmi", "-f", host.image_id, arm.image_id, check=False)
    assert not {published.attestations[key].digest for key in PLATFORMS} & blob_files(engine)


def _get(engine: Daemon, path: str) -> bytes:
    socket = engine.host.removeprefix("unix://")
    return subprocess.run(["curl", "-s", "--unix-socket", socket, f"http://x{path}"], check=True, capture_output=True).stdout
