"""Images through registries, between us, docker and podman: what each pushes runs in the others, and keeps its id and its digest."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from debian_registry import docker_registry
from docker_calls import UnixConnection
from dockerd_world import DOCKERD, dockerd
from engine_world import DOCKER, Daemon
from image_builder import build_image, write_layout

pytestmark = [pytest.mark.root, pytest.mark.peer]
SCRIPT = "mkdir /odd; cd /odd; echo x >a; ln a b; ln -s a c; mknod d c 1 3; chmod 4711 a; rm /etc/group; mkdir -m 1777 't t'"
CHECK = "cat /odd/b; stat -c %a,%h /odd/a; test -e /etc/group || echo gone; stat -c %t,%T /odd/d"
SEEN = "x\n4711,2\ngone\n1,3\n"


class Peer:
    """docker or podman, as a command line."""

    def __init__(self, *command: str, socket: str = "") -> None:
        self.command = command
        self.socket = socket

    def __call__(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, f"{self.command[0]} {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def id_of(self, name: str) -> str:
        found = str(json.loads(self("image", "inspect", name))[0]["Id"])
        return found if found.startswith("sha256:") else f"sha256:{found}"


@pytest.fixture(scope="module")
def docker() -> Iterator[Peer]:
    if DOCKER is None or not DOCKERD.exists():
        pytest.skip("needs dockerd: apt-get install docker.io")
    with dockerd(host_network=True) as socket:
        yield Peer(DOCKER, "-H", f"unix://{socket}", socket=socket)


@pytest.fixture(scope="module")
def podman() -> Iterator[Peer]:
    if shutil.which("podman") is None:
        pytest.skip("needs podman: apt-get install podman")
    with tempfile.TemporaryDirectory(prefix="pod-", ignore_cleanup_errors=True) as root:  # its paths must be short
        yield Peer("podman", "--root", f"{root}/p", "--runroot", f"{root}/r", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    with docker_registry(tmp_path) as address:
        yield address


PODMAN_RUN = (
    "run",
    "--rm",
    "--network",
    "none",
    "--ulimit",
    "nofile=1024:1024",
    "--ulimit",
    "nproc=1024:1024",
    "--security-opt",
    "seccomp=unconfined",
)


def test_round(engine: Daemon, docker: Peer, podman: Peer, registry: str, tmp_path: Path) -> None:
    ours, packed, theirs, pods = (f"{registry}/{name}:1" for name in ("ours", "zstd", "docker", "podman"))
    engine.docker("run", "--name", "made", "--network", "none", "busybox", "sh", "-c", SCRIPT)
    engine.docker("commit", "made", ours)
    engine.docker("rm", "made")
    try:
        engine.docker("push", "-q", ours)
        engine.docker("tag", ours, packed)
        engine.tare("push", "-q", "--compression", "zstd", packed)
        image_id = engine.docker("image", "inspect", "-f", "{{.Id}}", ours).stdout.strip()

        # ours in docker and podman
        docker("pull", "-q", ours)
        assert docker.id_of(ours) == image_id
        assert docker("run", "--rm", "--network", "none", ours, "sh", "-c", CHECK) == SEEN
        for name in (ours, packed):
            podman("pull", "-q", "--tls-verify=false", name)
            assert podman.id_of(name) == image_id
            assert podman(*PODMAN_RUN, name, "sh", "-c", CHECK) == SEEN

        # theirs in ours
        docker("create", "--name", "source", "--network", "none", ours, "true")
        docker("commit", "-c", "LABEL by=dockerd", "source", theirs)
        docker("rm", "source")
        docker("push", theirs)
        podman("create", "--name", "source", "--network", "none", ours, "true")
        podman("commit", "-q", "-c", "LABEL by=podman", "source", pods)
        podman("rm", "source")
        podman("push", "-q", "--tls-verify=false", "--format", "oci", "--compression-format", "zstd", pods)
        for name, peer in ((theirs, docker), (pods, podman)):
            engine.docker("pull", "-q", name)
            assert engine.docker("image", "inspect", "-f", "{{.Id}}", name).stdout.strip() == peer.id_of(name)
            assert engine.docker("run", "--rm", "--network", "none", name, "sh", "-c", CHECK).stdout == SEEN

        # pulled images leave us as they came: through an archive and through a push to another name
        for name, peer in ((theirs, docker), (pods, podman)):
            archive = tmp_path / f"{peer.command[0].rpartition('/')[2]}.tar"
            engine.docker("save", "-o", str(archive), name)
            before = peer.id_of(name)
            peer("rmi", "-f", name)
            peer("load", "-i", str(archive))
            assert peer.id_of(name) == before
            digest = engine.docker("image", "inspect", "-f", "{{index .RepoDigests 0}}", name).stdout.strip().partition("@")[2]
            engine.docker("tag", name, f"{name}-again")
            assert digest in engine.docker("push", f"{name}-again").stdout
            engine.docker("rmi", f"{name}-again")
    finally:
        engine.docker("rmi", "-f", ours, packed, theirs, pods, check=False)
        docker("rmi", "-f", ours, theirs, check=False)
        podman("rmi", "-f", "--all", check=False)


PASSING = ("Downloading", "Verifying Checksum", "Extracting", "Pushing")
"""What dockerd leaves out when the next message is there already."""


def messages(socket: str, path: str) -> list[tuple[str, ...]]:
    """What a pull or push streams: per layer the statuses in order, layers in no order; numbers are left out, and what only passes by."""
    connection = UnixConnection(socket)
    try:
        connection.request("POST", path, b"", {"X-Registry-Auth": "e30="})
        raw = connection.getresponse().read().decode().replace("}{", "}\r\n{")
    finally:
        connection.close()
    lines: dict[str, dict[str, None]] = {}
    for line in raw.split("\r\n"):
        document = json.loads(line or "{}")
        detail = sorted(document["progressDetail"]) if "progressDetail" in document else None
        text = re.sub("sha256:[0-9a-f]+|size: [0-9]+", "N", str(document.get("status")))
        if text in PASSING:
            continue
        lines.setdefault(document.get("id", ""), {})[f"{text} {detail} {sorted(document.get('aux', ()))}"] = None
    return sorted(tuple(found) for found in lines.values())


def test_the_same_messages_as_dockerd(engine: Daemon, docker: Peer, registry: str, tmp_path: Path) -> None:
    layout = write_layout(build_image({"a": os.urandom(3 << 20)}, {"b": os.urandom(2 << 20)}), tmp_path / "layout")
    name = f"{registry}/shown"
    copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{name}:1"]
    subprocess.run(copy, check=True, timeout=60)
    sockets = {"docker": docker.socket, "tare": str(engine.socket)}
    try:
        for _ in ("new", "known"):
            found = {peer: messages(socket, f"/v1.41/images/create?fromImage={name}&tag=1") for peer, socket in sockets.items()}
            assert found["tare"] == found["docker"]
        for command in (docker, engine.docker):
            command("tag", f"{name}:1", f"{name}:2")
        for _ in ("mounted", "known"):
            found = {}
            for peer, socket in sockets.items():
                messages(socket, f"/v1.41/images/{name}:1/tag?repo={registry}/{peer}&tag=1")
                found[peer] = messages(socket, f"/v1.41/images/{registry}/{peer}/push?tag=1")
            assert found["tare"] == [tuple(line.replace("/docker]", "/tare]") for line in lines) for lines in found["docker"]]
    finally:
        engine.docker("rmi", "-f", f"{name}:1", f"{name}:2", f"{registry}/tare:1", check=False)
