"""The daemon is killed at random points of pull, load, import, commit and remove: ``fsck`` is clean every time, the repeated command
succeeds, and nothing is half-visible.

``TARE_FAULT_ROUNDS`` sets the number of rounds (200 for a long night); ``TARE_FAULT_SEED`` repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conftest import new_daemon
from crash_world import client, tracebacks
from debian_registry import docker_registry
from engine_world import Daemon
from image_builder import BuiltImage, build_image, build_index, sha256
from tare.maintenance import fsck

pytestmark = pytest.mark.root

ROUNDS = int(os.environ.get("TARE_FAULT_ROUNDS", "6"))
SEED = int(os.environ.get("TARE_FAULT_SEED", "0")) or random.randrange(1 << 30)


def attestation(about: BuiltImage) -> tuple[BuiltImage, dict[str, Any]]:
    """An artifact, and its entry in an index that has ``about``."""
    statement = os.urandom(1 << 18)
    blobs = {sha256(b"{}"): b"{}", sha256(statement): statement}
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2}
    layer = {"mediaType": "application/vnd.in-toto+json", "digest": sha256(statement), "size": len(statement)}
    raw = json.dumps({"schemaVersion": 2, "mediaType": about.media_type, "config": empty, "layers": [layer]}).encode()
    notes = {"vnd.docker.reference.digest": about.digest, "vnd.docker.reference.type": "attestation-manifest"}
    entry = {"mediaType": about.media_type, "digest": sha256(raw), "size": len(raw), "annotations": notes}
    return BuiltImage(raw, about.media_type, "", [], [], blobs), entry


@contextmanager
def serving(images: dict[str, BuiltImage]) -> Iterator[str]:
    """A registry that has an index of images by platform, with an attestation each, in a thread; yields the index's name."""
    index, kind = build_index(images)
    document = json.loads(index)
    attested = [attestation(image) for image in images.values()]
    document["manifests"] += [entry for _, entry in attested]
    index = json.dumps(document).encode()
    every = [*images.values(), *(image for image, _ in attested)]
    manifests = {image.digest: (image.manifest, image.media_type) for image in every}
    blobs = {digest: data for image in every for digest, data in image.blobs.items()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            part = self.path.rpartition("/")[2]
            if "/manifests/" in self.path:
                body, media_type = manifests.get(part, (index, kind))
            else:
                body, media_type = blobs.get(part, b"{}"), "application/octet-stream"
            self.send_response(200)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                for start in range(0, len(body), 1 << 16):
                    self.wfile.write(body[start : start + (1 << 16)])
            except OSError:
                pass

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}/app:latest"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Rounds:
    """One daemon that is killed again and again, and what it is asked to do meanwhile."""

    def __init__(self, daemon: Daemon, pulled: str, folder: Path) -> None:
        self.daemon = daemon
        self.random = random.Random(SEED)
        self.tar = folder / "import.tar"
        self.archive = folder / "load.tar"
        self.family = folder / "family.tar"
        self.work: dict[str, tuple[list[str], str]] = {
            "pull": (["pull", "-q", pulled], pulled),
            "load": (["load", "-q", "-i", str(self.archive)], "loaded:1"),
            "load of two platforms": (["load", "-q", "-i", str(self.family)], "family:1"),
            "import": (["import", str(self.tar), "imported:1"], "imported:1"),
            "commit": (["commit", "writer", "committed:1"], "committed:1"),
        }

    def prepare(self) -> None:
        """The archives and the container that the work needs."""
        body = os.urandom(3 << 20)
        folder = self.tar.parent / "tree"
        (folder / "d").mkdir(parents=True)
        (folder / "big").write_bytes(body)
        for number in range(200):
            (folder / f"d/{number}").write_bytes(body[:number])
        subprocess.run(["tar", "-C", folder, "-cf", self.tar, "."], check=True)
        docker = self.daemon.docker
        docker(*self.work["pull"][0])
        docker("tag", self.work["pull"][1], "loaded:1")
        docker("save", "-o", str(self.archive), "loaded:1")
        docker("rmi", self.work["pull"][1], "loaded:1")
        self.daemon.tare("pull", "-q", "--all-platforms", self.work["pull"][1])
        docker("tag", self.work["pull"][1], "family:1")
        docker("save", "-o", str(self.family), "family:1")
        docker("rmi", self.work["pull"][1], "family:1")
        script = "dd if=/dev/urandom of=/w bs=1M count=3; for i in `seq 200`; do echo $i > /$i; done"
        docker("run", "--name", "writer", "busybox", "sh", "-c", script)

    def images(self) -> set[str]:
        return set(self.daemon.docker("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split())

    def crash(self, *command: str) -> None:
        """Begin a command, kill the daemon at some point of it, look at what lies there, start again."""
        running = client(self.daemon, *command)
        time.sleep(self.random.uniform(0.01, 0.25))
        self.daemon.kill()
        running.communicate(timeout=30)
        findings = fsck(self.daemon.root / "data", repair=False)
        assert findings["problems"] == [], f"{command} with TARE_FAULT_SEED={SEED}"
        self.daemon.start()

    def round(self) -> None:
        kind = self.random.choice(sorted(self.work))
        command, name = self.work[kind]
        self.crash(*command)
        self.daemon.docker(*command)
        assert name in self.images()
        self.crash("rmi", name)
        if name in self.images():
            self.daemon.docker("rmi", name)
        assert name not in self.images()

    def finish(self) -> None:
        """In the end nothing remains but what was there at the beginning."""
        self.daemon.docker("rm", "-f", "writer")
        self.daemon.docker("image", "prune", "-f")
        assert self.daemon.tare("system", "fsck").stdout.endswith("1 blobs, 1 layers, 1 images, 0 containers checked: clean\n")


@pytest.mark.parametrize("driver", ["erofs", "overlay", "vfs"])
def test_killed_at_any_point(driver: str, tmp_path: Path) -> None:
    layers = [{"big": os.urandom(1 << 20), **{f"d{n}/{i}": b"x" * i for i in range(50)}} for n in range(5)]
    daemon = new_daemon("--storage-driver", driver)
    try:
        images = {"linux/amd64": build_image(*layers), "linux/arm64": build_image(layers[0], {"arm": b"x"}, architecture="arm64")}
        with serving(images) as name:
            daemon.start()
            daemon.load_busybox()
            rounds = Rounds(daemon, name, tmp_path)
            rounds.prepare()
            for _ in range(max(1, ROUNDS // 3)):
                rounds.round()
            rounds.finish()
        assert not tracebacks(daemon)
    finally:
        if daemon.process is not None and daemon.process.poll() is not None:
            daemon.start()
        daemon.stop()


def test_full_disk(tmp_path: Path) -> None:
    """Whatever brings or packs bytes says so, leaves nothing, and works once there is room."""
    daemon = new_daemon()
    data = daemon.root / "data"
    data.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=711", "tmpfs", data], check=True)
    images = {"linux/amd64": build_image({"big": os.urandom(3 << 20)}, {"more": os.urandom(3 << 20)})}
    try:
        daemon.start()
        daemon.load_busybox()
        with serving(images) as name, docker_registry(tmp_path / "registry") as address:
            rounds = Rounds(daemon, name, tmp_path)
            rounds.prepare()
            daemon.docker("image", "prune", "-f")
            daemon.docker("commit", "writer", f"{address}/unpacked")
            work = [*(command for command, _ in rounds.work.values()), ["push", f"{address}/unpacked"]]
            before = rounds.images()
            filler = data / "filler"
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, os.statvfs(data).f_bavail * 4096 - (2 << 20))
            for command in work:
                refused = daemon.docker(*command, check=False)
                assert refused.returncode != 0, command
                assert "no space left" in refused.stderr.lower(), (command, refused.stderr)
                assert rounds.images() == before
                assert "clean" in daemon.tare("system", "fsck").stdout
            filler.unlink()
            for command in work:
                daemon.docker(*command)
            assert before | {name for _, name in rounds.work.values()} == rounds.images()
            daemon.docker("rm", "-f", "writer")
            daemon.docker("rmi", f"{address}/unpacked", *(name for _, name in rounds.work.values()))
        assert not tracebacks(daemon)
        daemon.remove_all()
        daemon.terminate()
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.terminate()
        subprocess.run(["umount", "-l", data], check=False)
        daemon.stop()
