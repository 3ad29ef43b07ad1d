"""What limits do, from the API to the kernel, on whatever control groups the machine has; ``tests/vm`` runs this on a pure cgroup v2 one.

No command line is involved and few processes are started: in the emulated machine everything takes twenty times as long.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import new_daemon
from docker_calls import UnixConnection
from engine_world import BIN, Daemon, busybox_tar
from tare.linux.cgroup.detect import Layout, detect

pytestmark = [pytest.mark.root]

PATIENCE = 200.0 if os.environ.get("TARE_VM") else 15.0


class Engine:
    """A private daemon and its API."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.layout: Layout = detect()

    def start(self) -> None:
        """Not ``Daemon.start``: that one asks the docker command whether the daemon answers."""
        root = self.daemon.root
        command = [BIN / "tared", "-H", self.daemon.host, "--data-root", root / "data", "--exec-root", root / "run"]
        command += ["--pidfile", root / "pid", "--cgroup-parent", self.daemon.group]
        with (root / "tared.log").open("ab") as log:
            self.daemon.process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, start_new_session=True)
        self.until(self.daemon.socket.exists, "the daemon's socket")
        self.call("POST", "/images/create?fromSrc=-&repo=busybox&tag=latest", busybox_tar(), kind="application/x-tar")

    def call(self, method: str, path: str, body: Any = None, *, kind: str = "application/json") -> Any:
        """The answer: JSON decoded, or bytes. AssertionError for any error."""
        status, data, is_json = self.try_call(method, path, body, kind=kind)
        assert status < 400, data
        return json.loads(data) if is_json and b"\n{" not in data and data else data

    def try_call(self, method: str, path: str, body: Any = None, *, kind: str = "application/json") -> tuple[int, bytes, bool]:
        connection = UnixConnection(str(self.daemon.socket))
        connection.timeout = 4 * PATIENCE
        try:
            data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
            connection.request(method, path, data, {"Content-Type": kind} if data is not None else {})
            answer = connection.getresponse()
            return answer.status, answer.read(), "json" in (answer.getheader("Content-Type") or "")
        finally:
            connection.close()

    def run(self, script: str, **host: Any) -> str:
        """The id of a started container."""
        body = {"Image": "busybox", "Cmd": ["sh", "-c", script], "HostConfig": {"NetworkMode": "none", "CgroupnsMode": "private", **host}}
        identifier: str = self.call("POST", "/containers/create", body)["Id"]
        self.call("POST", f"/containers/{identifier}/start")
        return identifier

    def wait(self, identifier: str) -> int:
        return int(self.call("POST", f"/containers/{identifier}/wait")["StatusCode"])

    def state(self, identifier: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"/containers/{identifier}/json")["State"]
        return found

    def logs(self, identifier: str) -> str:
        return plain(self.call("GET", f"/containers/{identifier}/logs?stdout=1&stderr=1"))

    def exec(self, identifier: str, *command: str) -> str:
        made = self.call("POST", f"/containers/{identifier}/exec", {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True})
        return plain(self.call("POST", f"/exec/{made['Id']}/start", {"Detach": False}))

    def group(self, identifier: str, controller: str) -> Path:
        """The container's directory in the hierarchy of a controller."""
        hierarchy = self.layout.hierarchy(controller)
        assert hierarchy is not None, controller
        return Path(hierarchy.mount + self.daemon.group) / identifier

    def limit(self, identifier: str, controller: str, on_v2: str, on_v1: str) -> str:
        """A file of the group by its name on either kind of machine."""
        return (self.group(identifier, controller) / (on_v2 if self.layout.mode == "v2" else on_v1)).read_text().strip()

    def until(self, holds: Any, what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            process = self.daemon.process
            assert process is None or process.poll() is None, self.daemon.log[-3000:]
            assert time.monotonic() < end, f"did not come: {what}\n{self.daemon.log[-2000:]}"
            time.sleep(0.05)

    def stop(self) -> None:
        for each in self.call("GET", "/containers/json?all=1"):
            self.call("DELETE", f"/containers/{each['Id']}?force=1")
        self.daemon.terminate()
        end = time.monotonic() + PATIENCE
        while self.daemon.leaks() and time.monotonic() < end:
            time.sleep(0.1)
        assert not self.daemon.leaks()


def plain(data: bytes) -> str:
    """The text of multiplexed frames."""
    text = b""
    while data:
        size = int.from_bytes(data[4:8], "big")
        text, data = text + data[8 : 8 + size], data[8 + size :]
    return text.decode()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(new_daemon())
    try:
        engine.start()
        yield engine
        engine.stop()
    finally:
        if engine.daemon.process is not None and engine.daemon.process.poll() is None:
            engine.daemon.process.kill()
            engine.daemon.process.wait()


def test_memory_that_runs_out(engine: Engine) -> None:
    """Process 1 dies of it, or a child does while process 1 goes on: both are told, as by dockerd."""
    hog = engine.run("exec tail -c 300m /dev/zero", Memory=32 << 20, MemorySwap=32 << 20)
    child = engine.run("tail -c 300m /dev/zero; echo went on; exit 3", Memory=32 << 20, MemorySwap=32 << 20)
    spared = engine.run("head -c 3m /dev/zero | tail -c 2m | wc -c", Memory=32 << 20)
    assert engine.wait(hog) == 137
    assert engine.state(hog)["OOMKilled"] is True
    assert engine.wait(child) == 3
    assert "went on" in engine.logs(child)
    assert engine.state(child)["OOMKilled"] is True
    assert engine.wait(spared) == 0
    assert engine.state(spared)["OOMKilled"] is False
    events = engine.call("GET", f"/events?since=0&until={time.time() + 1:.0f}&filters=" + '{"event":["oom"]}')
    told = events if isinstance(events, bytes) else json.dumps(events).encode()
    assert hog.encode() in told
    assert spared.encode() not in told


def test_limits_reach_the_kernel_change_and_hold(engine: Engine) -> None:
    one = engine.run(
        "trap exit TERM; while true; do :; done",
        Memory=64 << 20, MemorySwap=128 << 20, NanoCpus=30_000_000, CpuShares=512, CpusetCpus="0", PidsLimit=40,
        DeviceCgroupRules=["c 10:200 r"],
    )  # fmt: skip
    assert engine.limit(one, "memory", "memory.max", "memory.limit_in_bytes") == str(64 << 20)
    assert engine.limit(one, "memory", "memory.swap.max", "memory.memsw.limit_in_bytes") == str(
        (64 if engine.layout.mode == "v2" else 128) << 20
    )
    assert engine.limit(one, "pids", "pids.max", "pids.max") == "40"
    assert engine.limit(one, "cpuset", "cpuset.cpus", "cpuset.cpus") == "0"
    assert engine.limit(one, "cpu", "cpu.max", "cpu.cfs_quota_us").split()[0] == "3000"
    engine.until(lambda: throttled(engine, one) > 3, "throttling of a busy loop")
    stats = engine.call("GET", f"/containers/{one}/stats?stream=0&one-shot=1")
    assert stats["memory_stats"]["limit"] == 64 << 20
    assert stats["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert stats["cpu_stats"]["throttling_data"]["throttled_periods"] > 3
    assert stats["pids_stats"]["current"] >= 1
    engine.call("POST", f"/containers/{one}/update", {"Memory": 48 << 20, "MemorySwap": 48 << 20, "PidsLimit": 30, "NanoCpus": 500_000_000})
    assert engine.limit(one, "memory", "memory.max", "memory.limit_in_bytes") == str(48 << 20)
    assert engine.limit(one, "pids", "pids.max", "pids.max") == "30"
    assert engine.limit(one, "cpu", "cpu.max", "cpu.cfs_quota_us").split()[0] == "50000"
    assert engine.exec(one, "cat", "/proc/self/status").count("Cpus_allowed_list:\t0\n") == 1


def throttled(engine: Engine, identifier: str) -> int:
    text = (engine.group(identifier, "cpu") / "cpu.stat").read_text()
    return int(text.split("nr_throttled ")[1].split()[0])


def test_pids_devices_and_the_view_from_inside(engine: Engine) -> None:
    one = engine.run(
        "for i in 1 2 3 4 5 6 7 8 9; do sleep 100 & done; echo unreachable",
        PidsLimit=5,
    )
    engine.wait(one)
    assert "can't fork" in engine.logs(one)
    script = """
        cut -d: -f3 /proc/self/cgroup | sort -u
        touch /sys/fs/cgroup/x 2>&1
        head -c 1 /dev/zero | wc -c
        mknod /tmp/disk b 254 0 && cat /tmp/disk 2>&1 | head -c 60
        mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg 2>&1 | head -c 60
        mknod /tmp/null c 1 3 && echo ok >/tmp/null && echo null works
        mknod /tmp/tun c 10 200; head -c 0 /tmp/tun 2>&1; echo x 2>&1 >/tmp/tun
        """
    two = engine.run(script, DeviceCgroupRules=["c 10:200 r"])
    engine.wait(two)
    lines = engine.logs(two).splitlines()
    assert lines[0] == "/"
    assert "Read-only file system" in lines[1]
    assert lines[2] == "1"
    assert "Operation not permitted" in lines[3]
    assert "Operation not permitted" in lines[4]
    assert lines[5] == "null works"
    assert "Operation not permitted" in lines[-1]


def test_pause_exec_and_kill(engine: Engine) -> None:
    one = engine.run("n=0; while true; do n=$((n+1)); echo $n >/tmp/n; sleep 0.01; done")
    engine.until(lambda: engine.exec(one, "cat", "/tmp/n").strip().isdigit(), "a first number")
    engine.call("POST", f"/containers/{one}/pause")
    assert engine.state(one)["Paused"] is True
    counted = Path(f"/proc/{engine.state(one)['Pid']}/root/tmp/n")
    before = counted.read_text()
    time.sleep(0.3)
    assert counted.read_text() == before
    status, text, _ = engine.try_call("POST", f"/containers/{one}/exec", {"Cmd": ["true"]})
    assert status == 409 and b"is paused" in text
    engine.call("POST", f"/containers/{one}/unpause")
    engine.until(lambda: counted.read_text() not in (before, ""), "going on")
    engine.call("POST", f"/containers/{one}/kill?signal=KILL")
    assert engine.wait(one) == 137
    engine.until(lambda: not engine.group(one, "memory").exists(), "the removal of its group")


def test_the_daemon_has_nothing_to_complain_of(engine: Engine) -> None:
    assert "Traceback" not in engine.daemon.log, engine.daemon.log
