"""Save, load, export, copy and commit beside Docker and Podman. Usage (root): python bench/archives.py [--rounds N] [--megabytes N]

One image of many files (half of the bytes noise) is imported into each engine; then each verb is timed with the engine's own files on the
same disk. Podman has no daemon, so its figures contain its start.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from peers import DOCKER, dockerd, isolate, podman, report, tared
from pull import layout, publish, registry

_FILES_PER_MEGABYTE = 10


def sample(megabytes: int, seed: int = 7) -> bytes:
    """A tar of small and large files in a few hundred directories; the same each time."""
    chance = random.Random(seed)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(megabytes * _FILES_PER_MEGABYTE):
            size = (1 << 20) // _FILES_PER_MEGABYTE
            noise = chance.randbytes(size // 2)
            info = tarfile.TarInfo(f"data/{number % 256}/{number}")
            info.size = size
            archive.addfile(info, io.BytesIO(noise + bytes(size - len(noise))))
    return buffer.getvalue()


def timed(*command: str, data: bytes | None = None) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, input=data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure(command: list[str], root: Path, tar: bytes, rounds: int) -> dict[str, float]:
    """Median seconds of each verb."""
    subprocess.run([*command, "import", "-", "bench:1"], check=True, input=tar, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found: dict[str, list[float]] = {}
    archive = root / "saved.tar"

    def note(verb: str, action: Callable[[], float]) -> None:
        os.sync()
        found.setdefault(verb, []).append(action())

    for _ in range(rounds):
        archive.unlink(missing_ok=True)
        note("save", lambda: timed(*command, "save", "-o", str(archive), "bench:1"))
        subprocess.run([*command, "rmi", "-f", "bench:1"], check=True, stdout=subprocess.DEVNULL)
        note("load", lambda: timed(*command, "load", "-i", str(archive)))
        subprocess.run([*command, "create", "--name", "bench", "bench:1", "true"], check=True, stdout=subprocess.DEVNULL)
        note("export", lambda: timed(*command, "export", "bench"))
        note("cp from", lambda: timed(*command, "cp", "bench:/data", "-"))
        note("cp to", lambda: timed(*command, "cp", "-", "bench:/", data=tar))
        note("commit", lambda: timed(*command, "commit", "bench", "bench:2"))
        subprocess.run([*command, "rm", "bench"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*command, "rmi", "bench:2"], check=True, stdout=subprocess.DEVNULL)
    return {verb: statistics.median(times) for verb, times in found.items()}


def measure_pulled(command: list[str], image: str, root: Path, rounds: int, *flags: str) -> dict[str, float]:
    """Median seconds of save and load of an image that was pulled: its layers have been compressed elsewhere."""
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, "pull", "-q", *flags, image], **quiet)  # type: ignore[call-overload]
    archive, found = root / "pulled.tar", {"save": [0.0] * 0, "load": [0.0] * 0}
    for _ in range(rounds):
        archive.unlink(missing_ok=True)
        os.sync()
        found["save"].append(timed(*command, "save", "-o", str(archive), image))
        subprocess.run([*command, "rmi", "-f", image], **quiet)  # type: ignore[call-overload]
        os.sync()
        found["load"].append(timed(*command, "load", "-i", str(archive)))
    return {f"{verb} of a pulled image": statistics.median(times) for verb, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=200)
    options = parser.parse_args()
    isolate()
    tar = sample(options.megabytes)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tare-bench-", ignore_cleanup_errors=True)))
        ours = stack.enter_context(tared(root / "tare"))
        commands = {"tare": [DOCKER, "-H", f"unix://{ours.socket}"]}
        commands["docker"] = stack.enter_context(dockerd(root / "docker", "--bridge=none", "--iptables=false")).command
        other = podman(root / "podman")
        if other is not None:
            commands["podman"] = other.command
        figures = {name: measure(command, root, tar, options.rounds) for name, command in commands.items()}
        image = publish(layout([sample(options.megabytes, 8)], root / "pulled"), stack.enter_context(registry(root)))
        for name, command in commands.items():
            flags = ("--tls-verify=false",) if name == "podman" else ()
            figures[name] |= measure_pulled(command, image, root, options.rounds, *flags)
    for verb, seconds in figures["tare"].items():
        report(f"{verb}, {options.megabytes} MB", seconds, {name: each[verb] for name, each in figures.items() if name != "tare"}, "s")


if __name__ == "__main__":
    main()
