"""How long a pull of a one-layer Debian image takes, from a local registry. Usage (root): python bench/pull.py [--rounds N] [--tar FILE]

The image (about 190 MB unpacked, 70 MB gzip) is made once with mmdebstrap and kept in ``/var/cache/tare-bench``; Debian's docker-registry
serves it on a loopback port. Every engine pulls it and removes it again, several times; the median counts. ``tare`` and ``docker`` are
driven by the same docker command. Our peak memory is read from the daemon afterwards.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from peers import DOCKER, dockerd, isolate, podman, report, tared

CACHE = Path("/var/cache/tare-bench")
LIMIT = 4.0
"""How many times faster than docker the pull must be."""


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


def layout(tar: Path, directory: Path) -> None:
    """An OCI layout with the tar as its only, gzip-compressed layer."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str, **more: object) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(data), **more}

    plain = tar.read_bytes()
    layer = put(gzip.compress(plain, 6), "layer.v1.tar+gzip")
    diff_ids = ["sha256:" + hashlib.sha256(plain).hexdigest()]
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}, "config": {"Cmd": ["bash"]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": [layer],
    }
    name = {"org.opencontainers.image.ref.name": "latest"}
    entry = put(json.dumps(manifest).encode(), "manifest.v1+json", annotations=name)
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    print(f"image: {len(plain) / 1e6:.0f} MB in one layer, {layer['size'] / 1e6:.0f} MB gzip")  # type: ignore[operator]


@contextmanager
def registry(root: Path) -> Iterator[str]:
    """Debian's docker-registry on a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (root / "registry").mkdir()
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tar", type=Path, default=None)
    options = parser.parse_args()
    tar = options.tar or debian_tar()  # before isolation: making it needs the network
    isolate()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tare-bench-", ignore_cleanup_errors=True)))
        layout(tar, root / "layout")
        address = stack.enter_context(registry(root))
        image = f"{address}/debian:latest"
        subprocess.run(
            ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{root / 'layout'}:latest", f"docker://{image}"], check=True
        )
        ours = stack.enter_context(tared(root / "tare"))
        seconds = measure([DOCKER, "-H", f"unix://{ours.socket}"], image, options.rounds)
        assert ours.process is not None
        memory = peak_megabytes(ours.process.pid)
        theirs = stack.enter_context(dockerd(root / "docker", "--bridge=none", "--iptables=false"))
        peers = {"docker": measure(theirs.command, image, options.rounds)}
        other = podman(root / "podman")
        if other is not None:
            peers["podman"] = measure(other.command, image, options.rounds, "--tls-verify=false")
        report("pull of a one-layer Debian image", seconds * 1000, {name: value * 1000 for name, value in peers.items()})
        print(f"peak memory of tared: {memory:.0f} MB")
        ratio = peers["docker"] / seconds
        print(f"must be {LIMIT:.0f} times as fast as docker: {ratio:.1f} {'ok' if ratio >= LIMIT else 'MISSED'}")
        sys.stdout.flush()
        os.sync()
    sys.exit(0 if ratio >= LIMIT else 1)


if __name__ == "__main__":
    main()
