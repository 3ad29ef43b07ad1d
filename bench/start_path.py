"""What a container costs between ``driver.start`` and its recorded exit. Usage (root): python bench/start_path.py [COUNT] [--bridge NAME]

Starts busybox ``true`` COUNT times with spares (waiting for the pool between starts) and COUNT times without, and prints the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tare.containers.driver import RuntimeDriver
from tare.containers.task import ExecLaunch, Launch, LogTarget, OverlayRoot, Stdio, VethLink

CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID"]


def configuration(arguments: list[str]) -> dict[str, Any]:
    """An OCI configuration close to what Docker makes."""

    def mount(fstype: str, destination: str, *options: str) -> dict[str, Any]:
        return {"destination": destination, "type": fstype, "source": fstype, "options": list(options)}

    safe = ("nosuid", "noexec", "nodev")
    return {
        "process": {
            "args": arguments,
            "cwd": "/",
            "env": ["PATH=/bin"],
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
        },
        "hostname": "bench",
        "mounts": [
            mount("proc", "/proc", *safe),
            mount("tmpfs", "/dev", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("devpts", "/dev/pts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
            mount("sysfs", "/sys", *safe, "ro"),
            mount("cgroup", "/sys/fs/cgroup", *safe, "ro"),
            mount("mqueue", "/dev/mqueue", *safe),
            mount("tmpfs", "/dev/shm", *safe, "mode=1777", "size=67108864"),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc", "cgroup")],
            "resources": {"memory": {"limit": 256 << 20}, "pids": {"limit": 100}},
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def make_root(path: Path) -> None:
    """A root with busybox."""
    (path / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", path / "bin/busybox")
    for name in ("sh", "true", "sleep"):
        (path / "bin" / name).symlink_to("busybox")


def make_launch(base: Path, number: int, arguments: list[str], bridge: str) -> Launch:
    """A start of one container."""
    name = f"bench-{os.getpid()}-{number}"
    home = base / name
    for directory in ("run", "upper", "work"):
        (home / directory).mkdir(parents=True, mode=0o700)
    links: tuple[VethLink, ...] = ()
    if bridge:
        host_name = f"vb{os.getpid() % 100000}n{number}"
        links = (VethLink(host_name, bridge, "eth0", "", (f"10.213.{number // 250}.{number % 250 + 2}/16",), ("10.213.0.1",)),)
    log = LogTarget("json-file", home / "log")
    root = OverlayRoot((base / "root",), home / "upper", home / "work")
    return Launch(name, configuration(arguments), root, Stdio(), log, home / "run", links=links)


async def measure(base: Path, count: int, spares: int, bridge: str, offset: int) -> tuple[list[float], list[float]]:
    """Milliseconds until started, and until the exit is recorded."""
    driver = RuntimeDriver(base, "/tare-bench", spares=spares)
    driver.start_launcher()
    await asyncio.sleep(0.6)
    started, ended = [], []
    for number in range(offset, offset + count):
        launch = make_launch(base, number, ["/bin/true"], bridge)
        begin = time.perf_counter()
        task = await driver.start(launch)
        started.append((time.perf_counter() - begin) * 1000)
        exit = await task.wait()
        ended.append((time.perf_counter() - begin) * 1000)
        assert exit.code == 0, exit
        await task.release()
        await asyncio.sleep(0.06)
    await driver.close()
    return started, ended


async def measure_exec(base: Path, count: int) -> list[float]:
    """Milliseconds from exec to its exit."""
    driver = RuntimeDriver(base, "/tare-bench")
    driver.start_launcher()
    task = await driver.start(make_launch(base, 100_000, ["/bin/sleep", "1000"], ""))
    process = configuration(["/bin/true"])["process"]
    times = []
    for number in range(count):
        begin = time.perf_counter()
        child = await task.exec(ExecLaunch(f"e{number}", process, Stdio()))
        await child.wait()
        times.append((time.perf_counter() - begin) * 1000)
    await task.kill(9)
    await task.wait()
    await task.release()
    await driver.close()
    return times


def line(name: str, times: list[float]) -> str:
    times.sort()
    return f"{name:38} min {times[0]:6.2f}  median {statistics.median(times):6.2f}  p90 {times[len(times) * 9 // 10]:6.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=50)
    parser.add_argument("--bridge", default="")
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="tare-bench-"))
    try:
        make_root(base / "root")
        for spares, name in ((2, "spare"), (0, "cold")):
            started, ended = asyncio.run(measure(base, options.count, spares, options.bridge, spares * 1000))
            print(line(f"{name}: start", started))
            print(line(f"{name}: start to recorded exit", ended))
        print(line("exec to exit", asyncio.run(measure_exec(base, options.count))))
    finally:
        shutil.rmtree(base)
        subprocess.run(["sh", "-c", "rmdir /sys/fs/cgroup/*/tare-bench 2>/dev/null"], check=False)


if __name__ == "__main__":
    main()
