"""The daemon is killed at random points of pull, load, import, commit and remove: ``fsck`` is clean every time, the repeated command
succeeds, and nothing is half-visible.

``TARE_FAULT_ROUNDS`` sets the number of rounds (200 for a long night); ``TARE_FAULT_SEED`` repeats a run.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import new_daemon
from crash_world import client, tracebacks
from engine_world import Daemon
from image_builder import BuiltImage, build_image
from tare.maintenance import fsck

pytestmark = pytest.mark.root

ROUNDS = int(os.environ.get("TARE_FAULT_ROUNDS", "6"))
SEED = int(os.environ.get("TARE_FAULT_SEED", "0")) or random.randrange(1 << 30)


@contextmanager
def serving(image: BuiltImage) -> Iterator[str]:
    """A registry that has one image, in a thread; yields the image's name."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            part = self.path.rpartition("/")[2]
            kind = "application/octet-stream"
            if "/manifests/" in self.path:
                body, kind = image.manifest, image.media_type
            else:
                body = image.blobs.get(part, b"{}")
            self.send_response(200)
            self.send_header("Content-Type", kind)
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
        self.work: dict[str, tuple[list[str], str]] = {
            "pull": (["pull", "-q", pulled], pulled),
            "load": (["load", "-q", "-i", str(self.archive)], "loaded:1"),
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
        with serving(build_image(*layers)) as name:
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
