"""Other people's clients against our registry server, each the way it works by itself."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockerd_world import DOCKERD, dockerd
from engine_world import DOCKER, Daemon
from image_builder import build_image, busybox_image, write_layout
from registry_world import INDEX, OCI, Registry, code, content, digest_of

pytestmark = pytest.mark.peer
PLAIN = ("--src-tls-verify=false", "--dest-tls-verify=false")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    found = Registry(tmp_path_factory.mktemp("registry"))
    yield found
    found.stop()


def need(program: str) -> str:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}: apt-get install {program}")
    return program


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return str(done.stdout)


def digest(registry: Registry, name: str, reference: str) -> str:
    return registry.call("HEAD", f"/v2/{name}/manifests/{reference}").headers["Docker-Content-Digest"] or ""


@pytest.mark.root
def test_dockerd(tmp_path: Path) -> None:
    """push, push elsewhere (mounted, not sent again), pull by tag and digest, a manifest list; in dockerd's network namespace."""
    if not DOCKERD.exists() or DOCKER is None:
        pytest.skip("needs dockerd and the docker command: apt-get install docker.io")
    with dockerd() as socket:
        inside = ["nsenter", "-t", Path(socket).with_name("pid").read_text().strip(), "-n"]
        registry = Registry(tmp_path / "registry", prefix=inside)

        def docker(*arguments: str) -> str:
            return run(*inside, DOCKER, "-H", f"unix://{socket}", *arguments, env=os.environ | {"HOME": str(tmp_path)})

        try:
            first, second = f"{registry.address}/team/app:v1", f"{registry.address}/other/app:v1"
            for name in (first, second):
                docker("tag", "busybox", name)
            pushed = docker("push", first)
            assert "Mounted from team/app" in docker("push", second)
            named = pushed.rpartition("digest: ")[2].split()[0]
            docker("rmi", "-f", first, second, "busybox")
            assert "Downloaded newer image" in docker("pull", first)
            docker("rmi", "-f", first)
            docker("pull", f"{registry.address}/other/app@{named}")
            docker("manifest", "create", "--insecure", f"{registry.address}/team/app:all", first)
            docker("manifest", "push", "--insecure", f"{registry.address}/team/app:all")
            listed = json.loads(docker("manifest", "inspect", "--insecure", f"{registry.address}/team/app:all"))
            assert [entry["digest"] for entry in listed["manifests"]] == [named]
        finally:
            registry.stop()


@pytest.mark.root
def test_podman(registry: Registry, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tare-podman-") as root:
        podman = [need("podman"), "--root", f"{root}/p", "--runroot", f"{root}/r", "--storage-driver", "vfs"]
        plain = tmp_path / "registries.conf"
        plain.write_text(f'[[registry]]\nlocation = "{registry.address}"\ninsecure = true\n')
        layout = write_layout(busybox_image(), tmp_path / "layout")
        image = run(*podman, "pull", "-q", f"oci:{layout}:latest").strip()
        for kind in ("oci", "v2s2"):
            run(*podman, "push", "-q", "--tls-verify=false", "--format", kind, image, f"{registry.address}/podman/app:{kind}")
        run(*podman, "rmi", "-f", image)
        assert run(*podman, "pull", "-q", "--tls-verify=false", f"{registry.address}/podman/app:oci").strip() == image
        run(
            *podman,
            "manifest",
            "create",
            "all",
            f"docker://{registry.address}/podman/app:oci",
            env=os.environ | {"CONTAINERS_REGISTRIES_CONF": str(plain)},
        )
        run(*podman, "manifest", "push", "-q", "--all", "--tls-verify=false", "all", f"docker://{registry.address}/podman/app:all")
        assert registry.call("GET", "/v2/podman/app/manifests/all").headers["Content-Type"] == INDEX
        found = json.loads(
            run(*podman, "search", "--list-tags", "--tls-verify=false", "--format", "json", f"{registry.address}/podman/app")
        )
        assert sorted(found[0]["Tags"]) == ["all", "oci", "v2s2"]


def test_skopeo_and_a_layout_of_umoci(registry: Registry, tmp_path: Path) -> None:
    """umoci makes it, skopeo pushes, mounts, lists, compares and deletes; what lies on disk is a layout to skopeo and umoci."""
    need("umoci"), need("skopeo")
    layout = tmp_path / "layout"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:v1")
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/hello").write_bytes(os.urandom(300_000))
    run("umoci", "insert", "--image", f"{layout}:v1", tmp_path / "tree", "/")
    base = f"docker://{registry.address}"
    run("skopeo", "copy", *PLAIN, "--preserve-digests", f"oci:{layout}:v1", f"{base}/skopeo/app:v1")
    run("skopeo", "copy", *PLAIN, f"{base}/skopeo/app:v1", f"{base}/skopeo/app:v2")
    run("skopeo", "copy", *PLAIN, "--format", "v2s2", f"{base}/skopeo/app:v1", f"{base}/skopeo/docker:v1")
    run("skopeo", "copy", *PLAIN, "--all", f"{base}/skopeo/app:v1", f"{base}/skopeo/mounted:v1")
    assert json.loads(run("skopeo", "list-tags", "--tls-verify=false", f"{base}/skopeo/app"))["Tags"] == ["v1", "v2"]
    inspected = json.loads(run("skopeo", "inspect", "--tls-verify=false", f"{base}/skopeo/mounted:v1"))
    assert inspected["Digest"] == digest(registry, "skopeo/app", "v1")
    run("skopeo", "copy", *PLAIN, f"{base}/skopeo/docker:v1", f"oci:{tmp_path / 'back'}:v1")
    on_disk = Path(registry.root) / "repositories/skopeo/app/_oci"
    run("skopeo", "copy", f"oci:{on_disk}:v1", f"dir:{tmp_path / 'dir'}")
    assert digest_of((tmp_path / "dir/manifest.json").read_bytes()) == inspected["Digest"]
    assert "v2" in run("umoci", "ls", "--layout", on_disk)
    if os.geteuid() == 0:
        run("umoci", "unpack", "--image", f"{on_disk}:v1", tmp_path / "bundle")
        assert (tmp_path / "bundle/rootfs/etc/hello").stat().st_size == 300_000
    run("skopeo", "delete", "--tls-verify=false", f"{base}/skopeo/app:v1")
    assert registry.call("GET", "/v2/skopeo/app/manifests/v1").status == 404
    sync = tmp_path / "sync"
    sync.mkdir()
    run("skopeo", "sync", "--src-tls-verify=false", "--src", "docker", "--dest", "dir", f"{registry.address}/skopeo/mounted", sync)
    assert list(sync.rglob("manifest.json"))


@pytest.mark.root
def test_our_own_client(engine: Daemon, registry: Registry) -> None:
    name = f"{registry.address}/ours/app"
    for tag in ("v1", "v2"):
        engine.tare("tag", "busybox", f"{name}:{tag}")
        engine.tare("push", f"{name}:{tag}")
    engine.tare("tag", "busybox", f"{registry.address}/ours/copy:v1")
    assert "Mounted from ours/app" in engine.tare("push", f"{registry.address}/ours/copy:v1").stdout
    pushed = digest(registry, "ours/app", "v1")
    engine.tare("rmi", f"{name}:v1", f"{name}:v2", f"{registry.address}/ours/copy:v1")
    assert pushed in engine.tare("pull", f"{name}@{pushed}").stdout
    assert "v2" in engine.tare("pull", "-a", name).stdout
    engine.tare("rmi", "-f", f"{name}:v1", f"{name}:v2", f"{name}@{pushed}", check=False)


class Crane:
    """The requests of crane, oras and containerd, over one kept connection."""

    def __init__(self, registry: Registry) -> None:
        self._connection = http.client.HTTPConnection(registry.address, timeout=20)

    def call(self, method: str, path: str, body: object = None, status: int = 200, **headers: str) -> http.client.HTTPResponse:
        self._connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})  # type: ignore[arg-type]
        response = self._connection.getresponse()
        response.content = response.read()  # type: ignore[attr-defined]
        assert response.status == status, (method, path, response.status, content(response))
        return response

    def upload(self, name: str, data: bytes, source: str = "") -> bool:
        """True when it was mounted or there already. The bytes go as one streamed PATCH of no told length."""
        digest = digest_of(data)
        self._connection.request("HEAD", f"/v2/{name}/blobs/{digest}")
        response = self._connection.getresponse()
        response.read()
        if response.status == 200:
            return True
        query = f"?mount={digest}&from={source}" if source else ""
        self._connection.request("POST", f"/v2/{name}/blobs/uploads/{query}", headers={"Content-Type": "application/json"})
        begun = self._connection.getresponse()
        begun.read()
        if begun.status == 201:
            return True
        assert begun.status == 202
        pieces = (data[start : start + 7000] for start in range(0, len(data), 7000))
        patched = self.call("PATCH", begun.headers["Location"], pieces, 202)
        self.call("PUT", f"{patched.headers['Location']}?digest={digest}", b"", 201, Content_Length="0")
        return False

    def close(self) -> None:
        self._connection.close()


def test_crane_like_flows(registry: Registry) -> None:
    """push, ls, catalog, digest, copy (mounts), tag, export with a broken download, attach and discover, delete."""
    crane = Crane(registry)
    image = build_image({"etc/hello": os.urandom(100_000)})
    for data in image.blobs.values():
        assert not crane.upload("crane/app", data)
        assert crane.upload("crane/app", data)
    types = ", ".join((OCI, INDEX, "application/vnd.docker.distribution.manifest.v2+json"))
    crane.call("PUT", "/v2/crane/app/manifests/v1", image.manifest, 201, Content_Type=image.media_type)
    crane.call("PUT", "/v2/crane/app/manifests/v2", image.manifest, 201, Content_Type=image.media_type)
    assert json.loads(content(crane.call("GET", "/v2/crane/app/tags/list?n=1000")))["tags"] == ["v1", "v2"]
    assert "crane/app" in json.loads(content(crane.call("GET", "/v2/_catalog?n=1000")))["repositories"]
    assert crane.call("HEAD", "/v2/crane/app/manifests/v1", Accept=types).headers["Docker-Content-Digest"] == image.digest
    for data in image.blobs.values():
        assert crane.upload("crane/copy", data, "crane/app")
    crane.call("PUT", f"/v2/crane/copy/manifests/{image.digest}", image.manifest, 201, Content_Type=image.media_type)
    layer = image.layers[0]
    whole, half = image.blobs[layer], len(image.blobs[layer]) // 2
    rest = crane.call("GET", f"/v2/crane/copy/blobs/{layer}", status=206, Range=f"bytes={half}-")
    assert hashlib.sha256(whole[:half] + content(rest)).hexdigest() == layer.partition(":")[2]
    for blob in (b"{}", b"a signature"):
        crane.upload("crane/copy", blob)
    signature = json.dumps({
        "schemaVersion": 2, "mediaType": OCI, "artifactType": "application/vnd.example.signature",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2},
        "layers": [{"mediaType": "text/plain", "digest": digest_of(b"a signature"), "size": 11}],
        "subject": {"mediaType": image.media_type, "digest": image.digest, "size": len(image.manifest)},
    }).encode()  # fmt: skip
    put = crane.call("PUT", f"/v2/crane/copy/manifests/{digest_of(signature)}", signature, 201, Content_Type=OCI)
    assert put.headers["OCI-Subject"] == image.digest
    (found,) = json.loads(content(crane.call("GET", f"/v2/crane/copy/referrers/{image.digest}")))["manifests"]
    assert found["digest"] == digest_of(signature)
    crane.call("DELETE", f"/v2/crane/copy/manifests/{digest_of(signature)}", status=202)
    assert json.loads(content(crane.call("GET", f"/v2/crane/copy/referrers/{image.digest}")))["manifests"] == []
    crane.call("DELETE", "/v2/crane/app/manifests/v1", status=202)
    assert code(crane.call("GET", "/v2/crane/app/manifests/v1", status=404)) == "MANIFEST_UNKNOWN"
    crane.close()
