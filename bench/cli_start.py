"""What the command line itself costs: start of ``tare`` against the docker CLI, and the imports behind it.

    python bench/cli_start.py [--host unix:///run/tare/tare.sock] [--runs 40]

``version`` needs a daemon; without one only ``--help`` and ``--version`` are measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

LIMIT_MS = 45.0
FORBIDDEN = ("http.client", "urllib.request", "email", "typing", "pathlib", "inspect", "argparse", "socket", "ssl", "subprocess")


def measure(command: list[str], runs: int) -> float:
    """Median wall time in milliseconds."""
    times = []
    for _ in range(runs + 2):
        begin = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        times.append((time.perf_counter() - begin) * 1000)
    return statistics.median(times[2:])


def imported(tare: str, words: list[str]) -> set[str]:
    """Modules that a call loads."""
    done = subprocess.run([sys.executable, "-X", "importtime", tare, *words], capture_output=True, text=True, check=False)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--host", default=os.environ.get("TARE_HOST", "unix:///run/tare/tare.sock"))
    parser.add_argument("--runs", type=int, default=40)
    options = parser.parse_args()
    tare = str(Path(sys.executable).with_name("tare"))
    docker = shutil.which("docker")
    reachable = subprocess.run([tare, "-H", options.host, "version"], capture_output=True, check=False).returncode == 0
    cases = [["--version"], ["--help"]] + ([["version"]] if reachable else [])
    print(f"{'':12}{'tare':>10}{'docker':>10}   (median of {options.runs}, ms)")
    print(f"{'python':12}{measure([sys.executable, '-c', 'pass'], options.runs):10.1f}")
    worst = 0.0
    for words in cases:
        ours = measure([tare, "-H", options.host, *words], options.runs)
        theirs = f"{measure([docker, '-H', options.host, *words], options.runs):10.1f}" if docker else " " * 10
        worst = max(worst, ours)
        print(f"{words[0]:12}{ours:10.1f}{theirs}")
    heavy = sorted(imported(tare, ["-H", "unix:///nonexistent", "run", "x"]) & set(FORBIDDEN))
    print(
        f"limit {LIMIT_MS:.0f} ms: {'met' if worst <= LIMIT_MS else 'NOT met'}; heavy imports on the run path: {', '.join(heavy) or 'none'}"
    )
    return 0 if worst <= LIMIT_MS and not heavy else 1


if __name__ == "__main__":
    sys.exit(main())
