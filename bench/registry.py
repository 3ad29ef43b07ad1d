"""The registry server beside Debian's docker-registry, in one run: blobs at 1 and 16 connections, small manifests, memory, start.

wrk (if installed) asks for manifests; curl moves blobs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from peers import report

BLOB = 256 << 20
OCI = "application/vnd.oci.image.manifest.v1+json"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """A registry on loopback."""

    def __init__(self, name: str, root: Path) -> None:
        port = free_port()
        self.base = f"http://127.0.0.1:{port}"
        root.mkdir()
        if name == "tare":
            command = [sys.executable, "-m", "tare.api.registry.serve", "serve", "--root", str(root), "--listen", f"127.0.0.1:{port}"]
        else:
            configuration = root.with_suffix(".yml")
            configuration.write_text(
                f"version: 0.1\nlog: {{accesslog: {{disabled: true}}, level: error}}\n"
                f"storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
            )
            command = ["docker-registry", "serve", str(configuration)]
        started = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                urllib.request.urlopen(f"{self.base}/v2/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.005)
        self.start_ms = (time.perf_counter() - started) * 1000

    def push(self, file: Path, digest: str, count: int) -> float:
        """MB/s of ``count`` simultaneous pushes, each into a repository of its own."""
        places = []
        for number in range(count):
            request = urllib.request.Request(f"{self.base}/v2/push{count}-{number}/blobs/uploads/", method="POST")
            with urllib.request.urlopen(request) as answer:
                places.append(answer.headers["Location"])
        started = time.perf_counter()
        commands = []
        for place in places:
            url = place if place.startswith("http") else self.base + place
            url += ("&" if "?" in url else "?") + f"digest={digest}"
            commands.append(
                ["curl", "-sf", "-o", "/dev/null", "-X", "PUT", "-H", "Content-Type: application/octet-stream", "-T", str(file), url]
            )
        together(commands)
        return count * file.stat().st_size / 1e6 / (time.perf_counter() - started)

    def pull(self, digest: str, size: int, count: int) -> float:
        """MB/s of ``count`` simultaneous pulls."""
        started = time.perf_counter()
        together([["curl", "-sf", "-o", "/dev/null", f"{self.base}/v2/push1-0/blobs/{digest}"]] * count)
        return count * size / 1e6 / (time.perf_counter() - started)

    def manifests(self) -> float:
        """Manifest GETs a second."""
        config = b"{}"
        digest = "sha256:" + hashlib.sha256(config).hexdigest()
        request = urllib.request.Request(f"{self.base}/v2/small/blobs/uploads/", method="POST")
        with urllib.request.urlopen(request) as answer:
            place = answer.headers["Location"]
        url = (place if place.startswith("http") else self.base + place) + ("&" if "?" in place else "?") + f"digest={digest}"
        urllib.request.urlopen(urllib.request.Request(url, config, {"Content-Type": "application/octet-stream"}, method="PUT")).close()
        document = {
            "schemaVersion": 2,
            "mediaType": OCI,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 2},
            "layers": [],
        }
        target = f"{self.base}/v2/small/manifests/v1"
        data = json.dumps(document).encode()
        urllib.request.urlopen(urllib.request.Request(target, data, {"Content-Type": OCI}, method="PUT")).close()
        done = subprocess.run(
            ["wrk", "-t1", "-c8", "-d3s", "-H", f"Accept: {OCI}", target], capture_output=True, text=True, check=True
        ).stdout
        return float(next(line.split()[1] for line in done.splitlines() if line.startswith("Requests/sec")))

    def memory_mb(self) -> float:
        """Most resident memory so far."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
        return 0.0


def together(commands: list[list[str]]) -> None:
    processes = [subprocess.Popen(command) for command in commands]
    if any(process.wait() for process in processes):
        raise RuntimeError("a transfer failed")


@contextmanager
def servers() -> Iterator[dict[str, Server]]:
    with tempfile.TemporaryDirectory(prefix="tare-bench-registry-") as scratch:
        found = {name: Server(name, Path(scratch) / name) for name in ("tare", "docker-registry")}
        try:
            yield found
        finally:
            for server in found.values():
                server.process.terminate()
                server.process.wait()


def main() -> None:
    with servers() as found, tempfile.NamedTemporaryFile(prefix="tare-bench-blob-") as blob:
        data = os.urandom(BLOB)
        blob.write(data)
        blob.flush()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        del data
        ours, peer = found["tare"], found["docker-registry"]
        report("start until it answers", ours.start_ms, {"docker-registry": peer.start_ms})
        for count in (1, 16):
            figures = {name: server.push(Path(blob.name), digest, count) for name, server in found.items()}
            report(f"blob push, {count} at a time", figures.pop("tare"), figures, "MB/s", higher_is_better=True)
        for count in (1, 16):
            figures = {name: server.pull(digest, BLOB, count) for name, server in found.items()}
            report(f"blob pull, {count} at a time", figures.pop("tare"), figures, "MB/s", higher_is_better=True)
        report("most memory", ours.memory_mb(), {"docker-registry": peer.memory_mb()}, "MB")
        if shutil.which("wrk"):
            figures = {name: server.manifests() for name, server in found.items()}
            report("manifest GETs", figures.pop("tare"), figures, "/s", higher_is_better=True)


if __name__ == "__main__":
    main()
