"""Images and the disk: retention rules, and images without the compressed form in which they came."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import new_daemon
from debian_registry import docker_registry
from engine_world import Daemon
from image_builder import busybox_image, write_layout

pytestmark = [pytest.mark.root, pytest.mark.peer]


@pytest.fixture(params=["flag", "prune"])
def dropping(request: pytest.FixtureRequest) -> Iterator[tuple[Daemon, bool]]:
    """A daemon, and whether it drops compressed layers by itself."""
    daemon = new_daemon(*(["--drop-compressed-layers"] if request.param == "flag" else []))
    try:
        daemon.start()
        yield daemon, request.param == "flag"
    finally:
        daemon.stop()


def blobs(daemon: Daemon) -> set[str]:
    return {f"sha256:{path.name}" for path in (daemon.root / "data" / "blobs" / "sha256").iterdir()}


def test_images_without_their_compressed_layers(dropping: tuple[Daemon, bool], tmp_path: Path) -> None:
    """They run, are saved, loaded and pushed; where the registry has the layers, the digest stays."""
    daemon, by_itself = dropping
    image = busybox_image()
    layout = write_layout(image, tmp_path / "layout")
    with docker_registry(tmp_path / "one") as one, docker_registry(tmp_path / "two") as two:
        name = f"{one}/app"
        copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{name}:latest"]
        subprocess.run(copy, check=True, timeout=60)
        daemon.docker("pull", "-q", name)
        if not by_itself:
            assert set(image.layers) <= blobs(daemon)
            assert "Total reclaimed space: 0B" not in daemon.tare("image", "prune", "-f", "--compressed").stdout
        assert not set(image.layers) & blobs(daemon)
        assert daemon.docker("run", "--rm", "--network", "none", name, "/bin/busybox", "echo", "x").stdout == "x\n"
        assert "up to date" in daemon.docker("pull", name).stdout
        assert json.loads(daemon.tare("system", "fsck", "--format", "json", check=False).stdout or "{}").get("Problems", []) == []
        daemon.docker("tag", name, f"{one}/app:again")
        assert image.digest in daemon.docker("push", f"{one}/app:again").stdout
        daemon.docker("tag", name, f"{two}/app")
        assert "Pushed" in daemon.docker("push", f"{two}/app").stdout
        archive = tmp_path / "saved.tar"
        daemon.docker("save", "-o", str(archive), name)
        daemon.docker("rmi", name, f"{one}/app:again", f"{two}/app")
        daemon.docker("load", "-i", str(archive))
        assert daemon.docker("image", "inspect", "-f", "{{.Id}}", name).stdout.strip() == image.image_id
        daemon.docker("rmi", name)
        daemon.docker("pull", "-q", f"{two}/app")
        assert daemon.docker("image", "inspect", "-f", "{{.Id}}", f"{two}/app").stdout.strip() == image.image_id


def test_retention_rules(engine: Daemon) -> None:
    names = [f"keep.example/app:{number}" for number in range(4)]
    engine.docker("create", "--name", "source", "--network", "none", "busybox", "true")
    for name in names:
        engine.docker("commit", "-c", "LABEL kept=by-rule", "-m", name, "source", name)
    engine.docker("rm", "source")
    rule = ("image", "prune", "-f", "--filter", "label=kept=by-rule")
    left = ("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "label=kept=by-rule")
    try:
        assert "Deleted" not in engine.tare(*rule, "--keep-last", "2", "--unused-for", "1h").stdout
        assert len(engine.docker(*left).stdout.split()) == 4
        engine.tare(*rule, "--keep-last", "2")
        assert engine.docker(*left).stdout.split() == names[:1:-1]
        assert "give a number" in engine.docker(*rule, "--filter", "keep-last=two", "-a", check=False).stderr
        engine.tare(*rule, "--unused-for", "0s")
        assert engine.docker(*left).stdout == ""
    finally:
        engine.docker("rmi", "-f", *names, check=False)
