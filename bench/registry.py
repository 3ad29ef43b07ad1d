"""The registry server beside Debian's docker-registry, in one run: blobs at 1 and 16 connections, small manifests, memory, start.

wrk (if installed) asks for manifests; curl moves blobs. Everything is also counted for each second of the server's processor time: what one
core can do, whatever else the machine does. ``--size`` is a blob's size in MiB (1024 for the figure of memory that we promise; needs 16 of
them on the disk for each server), ``--ours`` leaves docker-registry out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from peers import report

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
        self.start_processor_ms = self.processor_seconds() * 1000

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

    def manifests(self) -> tuple[float, float]:
        """Manifest GETs a second, and a second of processor time."""
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
        before = self.processor_seconds()
        done = subprocess.run(
            ["wrk", "-t1", "-c8", "-d3s", "-H", f"Accept: {OCI}", target], capture_output=True, text=True, check=True
        ).stdout
        answered = float(next(line.split()[0] for line in done.splitlines() if "requests in" in line))
        rate = float(next(line.split()[1] for line in done.splitlines() if line.startswith("Requests/sec")))
        return rate, answered / (self.processor_seconds() - before)

    def processor_seconds(self) -> float:
        """Used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

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
def servers(*names: str) -> Iterator[dict[str, Server]]:
    with tempfile.TemporaryDirectory(prefix="tare-bench-registry-") as scratch:
        found = {name: Server(name, Path(scratch) / name) for name in names}
        try:
            yield found
        finally:
            for server in found.values():
                server.process.terminate()
                server.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--ours", action="store_true")
    options = parser.parse_args()
    names = ("tare",) if options.ours else ("tare", "docker-registry")
    size = options.size << 20
    with servers(*names) as found, tempfile.NamedTemporaryFile(prefix="tare-bench-blob-") as blob:
        hasher = hashlib.sha256()
        for _ in range(options.size):
            data = os.urandom(1 << 20)
            blob.write(data)
            hasher.update(data)
        blob.flush()
        digest = f"sha256:{hasher.hexdigest()}"

        def show(what: str, figures: dict[str, float], unit: str = "ms", *, higher_is_better: bool = True) -> None:
            report(what, figures.pop("tare"), figures, unit, higher_is_better=higher_is_better)

        show("start until it answers", {name: server.start_ms for name, server in found.items()}, higher_is_better=False)
        show("start, processor time", {name: server.start_processor_ms for name, server in found.items()}, higher_is_better=False)

        def medians(measure: Callable[[Server], float], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
            """A second, and a second of processor time; in turns: the machine is not the same a minute later."""
            rates: dict[str, list[float]] = {name: [] for name in found}
            used = dict.fromkeys(found, 0.0)
            moved = dict.fromkeys(found, 0.0)
            for _ in range(rounds):
                for name, each in found.items():
                    before, started = each.processor_seconds(), time.perf_counter()
                    rates[name].append(measure(each))
                    moved[name] += rates[name][-1] * (time.perf_counter() - started)
                    used[name] += each.processor_seconds() - before
            of_one_core = {name: moved[name] / max(used[name], 0.01) for name in found}
            return {name: statistics.median(figures) for name, figures in rates.items()}, of_one_core

        for count, rounds in ((1, 5), (16, 1)):
            rates, of_one_core = medians(lambda each, n=count: each.push(Path(blob.name), digest, n), rounds)
            show(f"blob push, {count} at a time", rates, "MB/s")
            show(f"blob push, {count} at a time, of one core", of_one_core, "MB/s")
        for count, rounds in ((1, 9), (16, 3)):
            rates, of_one_core = medians(lambda each, n=count: each.pull(digest, size, n), rounds)
            show(f"blob pull, {count} at a time", rates, "MB/s")
            show(f"blob pull, {count} at a time, of one core", of_one_core, "MB/s")
        show("most memory", {name: each.memory_mb() for name, each in found.items()}, "MB", higher_is_better=False)
        if shutil.which("wrk"):
            answered = {name: each.manifests() for name, each in found.items()}
            show("manifest GETs", {name: rate for name, (rate, _) in answered.items()}, "/s")
            show("manifest GETs, of one core", {name: rate for name, (_, rate) in answered.items()}, "/s")


if __name__ == "__main__":
    main()
