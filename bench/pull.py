"""How long a pull takes, from a local registry. Usage (root): python bench/pull.py [--rounds N] [--tar FILE] [--only NAME]

Three images, served by Debian's docker-registry on a loopback port:
- ``debian``: one layer, about 190 MB unpacked, made once with mmdebstrap and kept in ``/var/cache/tare-bench``;
- ``layers``: 12 layers of 50 MB, half of it noise;
- ``big`` (ours only): 2 GB of noise in 4 layers, for the daemon's memory.
Every engine pulls and removes them again, several times; the median counts. ``tare`` and ``docker`` are driven by the same docker command.
The second pull of a present image is measured beside the bare round trip of its one request.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import http.client
import io
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from peers import DOCKER, dockerd, isolate, podman, report, tared

CACHE = Path("/var/cache/tare-bench")
LIMITS = {"debian": 6.0, "layers": 4.0}
"""How many times faster than docker the pull must be."""
PODMAN_LIMIT = 4.0
MEMORY_LIMIT = 150.0
"""Megabytes that the daemon may use while it pulls 2 GB."""
SECOND_LIMIT = 50.0
"""Milliseconds beyond one round trip that the pull of a present image may take."""


def debian_tar() -> Path:
    """The root file system of a Debian with perl and python, made on first use."""
    path = CACHE / "debian.tar"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.tar")
        packages = "--include=perl,python3-minimal,ca-certificates,curl"
        subprocess.run(["mmdebstrap", "--quiet", "--variant=apt", packages, "bookworm", part], check=True)
        part.rename(path)
    return path


def layout(tars: Iterable[bytes], directory: Path, level: int = 1) -> Path:
    """An OCI layout with the tars as its gzip-compressed layers."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str, **more: object) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(data), **more}

    layers, diff_ids, plain = [], [], 0
    for tar in tars:
        layers.append(put(gzip.compress(tar, level, mtime=0), "layer.v1.tar+gzip"))
        diff_ids.append("sha256:" + hashlib.sha256(tar).hexdigest())
        plain += len(tar)
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}, "config": {"Cmd": ["bash"]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": layers,
    }
    name = {"org.opencontainers.image.ref.name": "latest"}
    entry = put(json.dumps(manifest).encode(), "manifest.v1+json", annotations=name)
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    packed = sum(int(str(layer["size"])) for layer in layers)
    print(f"{directory.name}: {plain / 1e6:.0f} MB in {len(layers)} layers, {packed / 1e6:.0f} MB gzip", flush=True)
    return directory


def noisy_layers(count: int, megabytes: int, seed: int, noise: float = 0.5) -> Iterator[bytes]:
    """Tars of files of 100 kB, part of each noise and the rest one line again and again."""
    source = random.Random(seed)
    for layer in range(count):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for number in range(megabytes * 10):
                entry = tarfile.TarInfo(f"layer{layer}/d{number % 16}/f{number}")
                content = source.randbytes(int(100_000 * noise))
                content += (b"line %d of a text that compresses\n" % number * 4000)[: 100_000 - len(content)]
                entry.size, entry.mode = len(content), 0o644
                tar.addfile(entry, io.BytesIO(content))
        yield buffer.getvalue()


@contextmanager
def registry(root: Path) -> Iterator[str]:
    """Debian's docker-registry on a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (root / "registry").mkdir(parents=True)
    settings = {"version": 0.1, "log": {"level": "error"}, "storage": {"filesystem": {"rootdirectory": str(root / "registry")}}}
    (root / "registry.yml").write_text(json.dumps({**settings, "http": {"addr": address}}))
    process = subprocess.Popen(["docker-registry", "serve", root / "registry.yml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex((address.split(":")[0], int(address.split(":")[1]))) == 0:
                    break
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait()


def measure(command: list[str], image: str, rounds: int, *flags: str) -> float:
    """Median seconds of a pull into a store that does not have the image."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run([*command, "pull", "--quiet", *flags, image], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
        subprocess.run([*command, "rmi", image], check=True, stdout=subprocess.DEVNULL)
    return statistics.median(times)


def peak_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def second_pull(command: list[str], address: str, name: str, rounds: int) -> tuple[float, float]:
    """Milliseconds of a pull of a present image over the API, and of its one request alone."""
    socket_path = command[2].removeprefix("unix://")

    def ask(connection: http.client.HTTPConnection, method: str, path: str) -> float:
        started = time.perf_counter()
        connection.request(method, path, headers={"Accept": "application/vnd.oci.image.manifest.v1+json"})
        connection.getresponse().read()
        return (time.perf_counter() - started) * 1000

    ours = http.client.HTTPConnection("localhost")
    ours.sock = socket.socket(socket.AF_UNIX)
    ours.sock.connect(socket_path)
    bare = http.client.HTTPConnection(address)
    pulls = [ask(ours, "POST", f"/images/create?fromImage={address}/{name}&tag=latest") for _ in range(rounds + 1)][1:]
    trips = [ask(bare, "GET", f"/v2/{name}/manifests/latest") for _ in range(rounds + 1)][1:]
    return statistics.median(pulls), statistics.median(trips)


def publish(directory: Path, address: str) -> str:
    image = f"{address}/{directory.name}:latest"
    subprocess.run(["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{directory}:latest", f"docker://{image}"], check=True)
    return image


def verdict(what: str, value: float, limit: float, *, at_least: bool) -> bool:
    good = value >= limit if at_least else value <= limit
    print(f"{what}: {value:.1f} (must be {'at least' if at_least else 'at most'} {limit:.0f}) {'ok' if good else 'MISSED'}", flush=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tar", type=Path, default=None)
    parser.add_argument("--only", choices=("debian", "layers", "big"), default=None)
    options = parser.parse_args()
    wanted = [options.only] if options.only else ["debian", "layers", "big"]
    tar = (options.tar or debian_tar()) if "debian" in wanted else None  # before isolation: making it needs the network
    isolate()
    good = True
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tare-bench-", ignore_cleanup_errors=True)))
        address = stack.enter_context(registry(root))
        images = {}
        if tar is not None:
            images["debian"] = publish(layout([tar.read_bytes()], root / "debian", 6), address)
        if "layers" in wanted:
            images["layers"] = publish(layout(noisy_layers(12, 50, 1), root / "layers"), address)
        ours = stack.enter_context(tared(root / "tare"))
        docker_command = [DOCKER, "-H", f"unix://{ours.socket}"]
        theirs = stack.enter_context(dockerd(root / "docker", "--bridge=none", "--iptables=false"))
        other = podman(root / "podman")
        for name, image in images.items():
            seconds = measure(docker_command, image, options.rounds)
            peers = {"docker": measure(theirs.command, image, options.rounds)}
            if other is not None:
                peers["podman"] = measure(other.command, image, options.rounds, "--tls-verify=false")
            report(f"pull of {name}", seconds * 1000, {peer: value * 1000 for peer, value in peers.items()})
            good &= verdict(f"{name}: times as fast as docker", peers["docker"] / seconds, LIMITS[name], at_least=True)
            if name == "debian" and "podman" in peers:
                good &= verdict(f"{name}: times as fast as podman", peers["podman"] / seconds, PODMAN_LIMIT, at_least=True)
        if images:
            name, image = next(iter(images.items()))
            subprocess.run([*docker_command, "pull", "-q", image], check=True, stdout=subprocess.DEVNULL)
            pull, trip = second_pull(docker_command, address, name, 20)
            good &= verdict(f"second pull in ms beyond its round trip of {trip:.1f}", pull - trip, SECOND_LIMIT, at_least=False)
        if "big" in wanted:
            image = publish(layout(noisy_layers(4, 500, 2, noise=1.0), root / "big"), address)
            measure(docker_command, image, 1)
            assert ours.process is not None
            good &= verdict("peak memory of tared in MB", peak_megabytes(ours.process.pid), MEMORY_LIMIT, at_least=False)
        os.sync()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
