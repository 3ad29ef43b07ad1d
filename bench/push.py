"""How long a push takes, to a registry that has nothing. Usage (root): python bench/push.py [--rounds N]

The image has 12 layers of 50 MB, half of it noise (``bench/pull.py``). Each engine has it as pulled, skopeo as an OCI layout; every push
goes to a fresh docker-registry, so that no blob is there.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from peers import DOCKER, dockerd, isolate, podman, report, tared
from pull import layout, noisy_layers, publish, registry, verdict


def measure(root: Path, rounds: int, push: Callable[[str], list[list[str]]]) -> float:
    """Median seconds of the last of the commands that ``push`` makes for a registry's address."""
    times = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=root) as folder, registry(Path(folder)) as address:
            *before, last = push(address)
            for command in before:
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            started = time.perf_counter()
            subprocess.run(last, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    isolate()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tare-bench-", ignore_cleanup_errors=True)))
        source = stack.enter_context(registry(root))
        directory = layout(noisy_layers(12, 50, 1), root / "layers")
        image = publish(directory, source)
        ours = stack.enter_context(tared(root / "tare"))
        theirs = stack.enter_context(dockerd(root / "docker", "--bridge=none", "--iptables=false"))
        other = podman(root / "podman")
        engines = {"tare": [DOCKER, "-H", f"unix://{ours.socket}"], "docker": theirs.command}
        if other is not None:
            engines["podman"] = other.command
        figures: dict[str, float] = {}
        for name, command in engines.items():
            plain = ["--tls-verify=false"] if name == "podman" else []
            subprocess.run([*command, "pull", "-q", *plain, image], check=True, stdout=subprocess.DEVNULL)

            def push(address: str, command: list[str] = command, plain: list[str] = plain) -> list[list[str]]:
                return [[*command, "tag", image, f"{address}/copy"], [*command, "push", "-q", *plain, f"{address}/copy"]]

            figures[name] = measure(root, options.rounds, push)
        copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{directory}:latest"]
        figures["skopeo"] = measure(root, options.rounds, lambda address: [[*copy, f"docker://{address}/copy"]])
        mine = figures.pop("tare")
        report("push of 12 layers", mine * 1000, {name: seconds * 1000 for name, seconds in figures.items()})
        good = verdict("skopeo's time in ours", figures["skopeo"] / mine, 1, at_least=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
