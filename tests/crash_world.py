"""What the crash tests share: a look at everything that a daemon's containers can leave on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from engine_world import DOCKER, Daemon

KEEPER_NAMES = (b"tare-keeper", b"tare-launcher")


def until(holds: Callable[[], object], what: str, seconds: float = 15.0) -> None:
    """Wait for a condition that is on its way."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"did not come: {what}"
        time.sleep(0.02)


def inspect(daemon: Daemon, name: str) -> dict[str, object]:
    found: list[dict[str, object]] = json.loads(daemon.docker("inspect", name).stdout)
    return found[0]


def state(daemon: Daemon, name: str) -> tuple[str, int]:
    """Status and exit code."""
    status, code = daemon.docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name).stdout.split()
    return status, int(code)


def keeper_pid(daemon: Daemon, container_id: str) -> int:
    """The keeper's process id, from the task's own record."""
    record = json.loads((daemon.root / "run" / "containers" / container_id / "task.json").read_bytes())
    return int(record["keeper"])


def launcher_pid(daemon: Daemon) -> int:
    """The child of the daemon that is the fork server."""
    assert daemon.process is not None
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
    return next(int(pid) for pid in children if _comm(pid) in KEEPER_NAMES)


def _comm(pid: str | int) -> bytes:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().strip()
    except OSError:
        return b""


def groups(daemon: Daemon) -> set[str]:
    """Names of all control groups below the daemon's parent, in any hierarchy."""
    name = daemon.group.strip("/")
    return {path.name for path in Path("/sys/fs/cgroup").glob(f"*/{name}/*") if path.is_dir()} | {
        path.name for path in Path("/sys/fs/cgroup").glob(f"{name}/*") if path.is_dir()
    }


def processes(daemon: Daemon) -> set[int]:
    """Every process that is in one of the daemon's control groups, or that is a keeper or launcher with a descriptor under its roots."""
    found: set[int] = set()
    root = str(daemon.root)
    own = {daemon.process.pid} if daemon.process is not None else set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = daemon.group in (process / "cgroup").read_text()
            ours = _comm(process.name) in KEEPER_NAMES and any(
                os.readlink(fd).startswith(root) for fd in (process / "fd").iterdir() if os.path.islink(fd)
            )
        except OSError:
            continue
        if inside or ours:
            found.add(int(process.name))
    return found - own


def veths(daemon: Daemon) -> int:
    """Links on the daemon's own default bridge."""
    gateway = json.loads(daemon.docker("network", "inspect", "bridge").stdout)[0]["IPAM"]["Config"][0]["Gateway"]
    links = json.loads(subprocess.run(["ip", "-j", "-4", "address"], capture_output=True, check=True).stdout)
    bridge = next(link["ifname"] for link in links if any(each["local"] == gateway for each in link["addr_info"]))
    ports = Path(f"/sys/class/net/{bridge}/brif")
    return len(list(ports.iterdir())) if ports.exists() else 0


def folders(daemon: Daemon) -> dict[str, set[str]]:
    """Names under every folder that holds something per container."""
    places = ("data/containers", "data/snapshots", "run/containers", "data/snapshots/.trash")
    return {place: {path.name for path in (daemon.root / place).iterdir()} - {".trash"} for place in places}


def client(daemon: Daemon, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """A docker command that goes on by itself."""
    assert DOCKER is not None
    command = [DOCKER, "-H", daemon.host, *arguments]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def tracebacks(daemon: Daemon) -> list[str]:
    """Lines of the daemon's log that tell of its own mistakes."""
    lines = daemon.log.splitlines()
    bad = [n for n, line in enumerate(lines) if "Traceback" in line or "never retrieved" in line or "level=fatal" in line]
    return ["\n".join(lines[number : number + 40]) for number in bad]
