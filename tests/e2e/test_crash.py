"""kill -9 of the daemon, a keeper, the launcher, the whole machine: what must survive does, and nothing else stays.

``TARE_CRASH_ROUNDS`` sets the number of rounds of the test under load (default 20; 100 take a minute).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import new_daemon
from crash_world import (
    client,
    folders,
    groups,
    inspect,
    keeper_pid,
    launcher_pid,
    processes,
    state,
    tracebacks,
    until,
    veths,
)
from engine_world import Daemon, busybox_tar

pytestmark = pytest.mark.root

COUNTER = "i=0; while :; do echo $i; i=$((i+1)); usleep 2000; done"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon whose log must be free of tracebacks at the end, however often it was killed."""
    daemon = new_daemon()
    try:
        daemon.start()
        daemon.load_busybox()
        yield daemon
        assert not tracebacks(daemon)
    finally:
        if daemon.process is not None and daemon.process.poll() is not None:
            daemon.start()
        daemon.stop()


def crash(daemon: Daemon) -> None:
    daemon.kill()
    daemon.start()


def test_logs_go_on_without_gap_or_duplicate(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "counter", "busybox", "sh", "-c", COUNTER)
    for _ in range(3):
        time.sleep(0.1)
        crash(daemon)
    follower = client(daemon, "logs", "-f", "counter")
    time.sleep(0.3)
    daemon.docker("stop", "-t", "0", "counter")
    followed, _ = follower.communicate(timeout=20)
    numbers = [int(line) for line in daemon.docker("logs", "counter").stdout.split()]
    assert len(numbers) > 100
    assert numbers == list(range(len(numbers)))
    assert [int(line) for line in followed.split()] == numbers
    assert state(daemon, "counter") == ("exited", 137)


def test_exits_while_no_daemon_ran(daemon: Daemon) -> None:
    codes = {"zero": 0, "three": 3, "top": 255}
    for name, code in codes.items():
        daemon.docker("run", "-d", "--name", name, "busybox", "sh", "-c", f"read x < /dev/zero & sleep 0.6; echo last words; exit {code}")
    daemon.docker("run", "-d", "--name", "signalled", "busybox", "sh", "-c", "sleep 0.6; kill -TERM $$; kill -9 1; exec sleep 1000")
    memory = daemon.docker("run", "-d", "--name", "eater", "-m", "16m", "busybox", "sh", "-c", "sleep 0.6; tail /dev/zero")
    daemon.docker("run", "-d", "--rm", "--name", "fleeting", "busybox", "sleep", "0.6")
    daemon.docker("run", "-d", "--name", "other", "busybox", "sleep", "1000")
    other = str(inspect(daemon, "other")["Id"])
    daemon.kill()
    pid = json.loads((daemon.root / "run/containers" / other / "task.json").read_bytes())["pid"]
    os.kill(pid, signal.SIGTERM)  # init ignores it: it has no handler
    os.kill(pid, signal.SIGKILL)
    eater = memory.stdout.strip()
    until(lambda: (daemon.root / "run/containers" / eater / "exit.json").exists(), "the end of the memory eater")
    until(lambda: (daemon.root / "run/containers" / other / "exit.json").exists(), "the end of the killed container")
    time.sleep(0.3)
    before = time.time()
    daemon.start()
    for name, code in codes.items():
        assert state(daemon, name) == ("exited", code)
        assert daemon.docker("wait", name).stdout.strip() == str(code)
        assert daemon.docker("logs", name).stdout == "last words\n"
    assert state(daemon, "other") == ("exited", 137)
    seen = inspect(daemon, "eater")["State"]
    assert isinstance(seen, dict)
    assert (seen["Status"], seen["ExitCode"], seen["OOMKilled"]) == ("exited", 137, True)
    finished = subprocess.run(["date", "+%s", "-d", str(seen["FinishedAt"])], capture_output=True, text=True, check=True).stdout
    assert int(finished) < before, "the time of the exit, not of its discovery"
    assert daemon.docker("inspect", "fleeting", check=False).returncode != 0, "--rm is kept after the crash"


def test_all_verbs_after_take_over(daemon: Daemon) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    daemon.docker(
        "run", "-d", "--name", "server", "--label", "a=b", "-p", f"{port}:7", "busybox", "nc", "-ll", "-p", "7", "-e", "cat"
    )  # fmt: skip
    daemon.docker("run", "-di", "--name", "listener", "busybox", "sh", "-c", "while read x; do echo got $x; done; exit 4")
    daemon.docker("run", "-d", "--name", "frozen", "busybox", "sh", "-c", COUNTER)
    daemon.docker("pause", "frozen")
    gateway = json.loads(daemon.docker("network", "inspect", "bridge").stdout)[0]["IPAM"]["Config"][0]["Gateway"]
    connection = _connected(gateway, port)

    def echo() -> None:
        connection.sendall(b"ping\n")
        assert connection.recv(100) == b"ping\n"

    with connection:
        echo()
        before = inspect(daemon, "server")
        daemon.kill()
        echo()
        daemon.start()
        echo()
        after = inspect(daemon, "server")
        assert after == before
        assert "ok" in daemon.docker("exec", "server", "echo", "ok").stdout
        with socket.create_connection((gateway, port), timeout=10) as again:
            again.sendall(b"new\n")
            assert again.recv(100) == b"new\n"
    assert state(daemon, "frozen")[0] == "paused"
    lines = daemon.docker("logs", "frozen").stdout
    time.sleep(0.05)
    assert daemon.docker("logs", "frozen").stdout == lines
    daemon.docker("unpause", "frozen")
    until(lambda: daemon.docker("logs", "frozen").stdout != lines, "output of the container that goes on")
    waiter = client(daemon, "wait", "listener")
    attached = client(daemon, "attach", "--sig-proxy=false", "listener", stdin=subprocess.PIPE)
    assert attached.stdin is not None and attached.stdout is not None
    attached.stdin.write("hello\n")
    attached.stdin.flush()
    assert attached.stdout.readline() == "got hello\n"
    daemon.docker("kill", "listener")
    attached.communicate(timeout=20)
    assert waiter.communicate(timeout=20)[0].strip() == "137"
    daemon.docker("stop", "-t", "1", "frozen")
    daemon.docker("start", "frozen")
    daemon.docker("rm", "-f", "frozen", "listener", "server")
    until(lambda: veths(daemon) == 0, "the end of all links")
    with pytest.raises(OSError):
        socket.create_connection((gateway, port), timeout=1).close()


def _connected(host: str, port: int) -> socket.socket:
    """A connection, as soon as the container's server listens."""
    end = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection((host, port), timeout=10)
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_restart_policies_after_take_over(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "always", "--restart", "always", "busybox", "sleep", "0.5")
    daemon.docker("run", "-d", "--name", "failing", "--restart", "on-failure:1", "busybox", "sh", "-c", "sleep 0.5; exit 3")
    daemon.docker("run", "-d", "--name", "fine", "--restart", "on-failure", "busybox", "sleep", "0.5")
    daemon.docker("run", "-d", "--name", "stopped", "--restart", "unless-stopped", "busybox", "sleep", "1000")
    daemon.docker("kill", "stopped")
    daemon.docker("wait", "stopped")
    daemon.kill()
    time.sleep(0.7)
    daemon.start()
    until(lambda: daemon.docker("inspect", "-f", "{{.RestartCount}}", "always").stdout != "0\n", "a restart")
    until(lambda: state(daemon, "failing") == ("exited", 3), "the end of the second try")
    assert daemon.docker("inspect", "-f", "{{.RestartCount}}", "failing").stdout == "1\n"
    assert state(daemon, "fine") == ("exited", 0)
    assert state(daemon, "stopped") == ("exited", 137)


def test_sigterm_leaves_containers_running(daemon: Daemon) -> None:
    daemon.docker("run", "-d", "--name", "counter", "busybox", "sh", "-c", COUNTER)
    pid = daemon.docker("inspect", "-f", "{{.State.Pid}}", "counter").stdout
    follower = client(daemon, "logs", "-f", "counter")
    daemon.terminate()
    follower.communicate(timeout=10)
    assert Path(f"/proc/{int(pid)}").exists()
    daemon.start()
    assert daemon.docker("inspect", "-f", "{{.State.Pid}}", "counter").stdout == pid
    daemon.docker("rm", "-f", "counter")


def test_killed_keeper_takes_only_its_own_container(daemon: Daemon) -> None:
    for name in ("one", "two", "late"):
        daemon.docker("run", "-d", "--name", name, "busybox", "sleep", "1000")
    waiter = client(daemon, "wait", "one")
    time.sleep(0.2)
    os.kill(keeper_pid(daemon, str(inspect(daemon, "one")["Id"])), signal.SIGKILL)
    assert waiter.communicate(timeout=20)[0].strip() == "137"
    assert state(daemon, "one") == ("exited", 137)
    assert state(daemon, "two") == ("running", 0)
    late = str(inspect(daemon, "late")["Id"])
    keeper = keeper_pid(daemon, late)
    daemon.kill()
    os.kill(keeper, signal.SIGKILL)
    daemon.start()
    assert state(daemon, "late") == ("exited", 137)
    assert groups(daemon) - {name for name in groups(daemon) if name.startswith("spare-")} == {str(inspect(daemon, "two")["Id"])}
    daemon.docker("start", "one", "late")
    assert state(daemon, "one") == ("running", 0)


def test_killed_launcher_is_replaced(daemon: Daemon) -> None:
    daemon.terminate()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))  # the daemon raises its own
    try:
        daemon.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    daemon.docker("run", "-d", "--name", "older", "busybox", "sleep", "1000")
    limits = daemon.docker("exec", "older", "cat", "/proc/self/limits").stdout
    for _ in range(2):
        os.kill(launcher_pid(daemon), signal.SIGKILL)
        assert daemon.docker("run", "--rm", "busybox", "cat", "/proc/self/limits").stdout == limits
    assert daemon.docker("exec", "older", "echo", "ok").stdout == "ok\n"


def test_reboot(daemon: Daemon) -> None:
    """What a power cut leaves: the data root. Everything else has to be thought of as gone."""
    for name, policy in (("plain", "no"), ("ever", "always"), ("unless", "unless-stopped"), ("halted", "unless-stopped")):
        daemon.docker("run", "-d", "--name", name, "--restart", policy, "-p", "7", "busybox", "sleep", "1000")
    daemon.docker("run", "-d", "--rm", "--name", "fleeting", "busybox", "sleep", "1000")
    daemon.docker("stop", "-t", "0", "halted")
    launcher = launcher_pid(daemon)
    daemon.kill()
    os.kill(launcher, signal.SIGKILL)
    for pid in processes(daemon):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    until(lambda: not processes(daemon), "the end of everything")
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(daemon.root) in line]
    for mount in reversed(mounts):
        subprocess.run(["umount", "-l", mount], check=True)
    shutil.rmtree(daemon.root / "run")
    daemon.start()
    assert state(daemon, "plain") == ("exited", 255)
    assert "Exited (255)" in daemon.docker("ps", "-a", "--filter", "name=plain").stdout
    until(lambda: state(daemon, "ever")[0] == "running", "a restart by policy always")
    until(lambda: state(daemon, "unless")[0] == "running", "a restart by policy unless-stopped")
    assert state(daemon, "halted") == ("exited", 137)
    assert daemon.docker("inspect", "fleeting", check=False).returncode != 0
    assert daemon.docker("exec", "ever", "echo", "ok").stdout == "ok\n"


def test_killed_while_importing(daemon: Daemon, tmp_path: Path) -> None:
    archive = tmp_path / "big.tar"
    block = os.urandom(1 << 20)
    (tmp_path / "file").write_bytes(block * 24)
    archive.write_bytes(busybox_tar())
    with tarfile.open(archive, "a") as tar:
        for number in range(4):
            tar.add(tmp_path / "file", f"file{number}")
    for pause in (0.02, 0.06, 0.12, 0.2):
        importing = client(daemon, "import", str(archive), "big:latest")
        time.sleep(pause)
        daemon.kill()
        importing.communicate(timeout=20)
        daemon.start()
        assert list((daemon.root / "data" / "ingest").iterdir()) == []
        assert daemon.docker("images", "-q", "big").stdout.count("\n") <= 1
    daemon.docker("import", str(archive), "big:latest", timeout=60)
    checksum = daemon.docker("run", "--rm", "big", "md5sum", "/file3").stdout.split()[0]
    assert checksum == hashlib.md5(block * 24).hexdigest()


def test_state_is_closed_to_others_whatever_the_umask() -> None:
    mask = os.umask(0)
    try:
        daemon = new_daemon()
        daemon.root.chmod(0o755)
        try:
            daemon.start()
            daemon.load_busybox()
            daemon.docker("run", "-d", "--name", "open", "-v", "vol:/v", "busybox", "sleep", "1000")
            loose = []
            for top in ("data", "run"):
                for path in [daemon.root / top, *(daemon.root / top).rglob("*")]:
                    inside = {"upper", "_data", "fs"} & set(path.parts)
                    mode = path.lstat().st_mode & 0o777
                    if path.is_symlink() or path.name == "empty":
                        continue
                    if path.is_dir() and not inside and not os.path.ismount(path) and not _below_mount(path) and mode & 0o066:
                        loose.append(f"{path} {mode:o}")
                    if path.is_file() and not inside and not _below_mount(path) and mode & 0o022:
                        loose.append(f"{path} {mode:o}")
            assert not loose
        finally:
            daemon.stop()
    finally:
        os.umask(mask)


def _below_mount(path: Path) -> bool:
    return any(os.path.ismount(parent) for parent in path.parents if len(parent.parts) > 3)


def test_full_disk(tmp_path: Path) -> None:
    daemon = new_daemon()
    (daemon.root / "data").mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=711", "tmpfs", daemon.root / "data"], check=True)
    try:
        daemon.start()
        daemon.load_busybox()
        big = tmp_path / "big"
        big.write_bytes(os.urandom(8 << 20))
        subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "big.tar", "big"], check=True)
        refused = daemon.docker("import", str(tmp_path / "big.tar"), "big", check=False)
        assert refused.returncode != 0
        assert "no space left" in refused.stderr.lower()
        assert daemon.docker("run", "--rm", "busybox", "echo", "ok").stdout == "ok\n"
        line = "0123456789" * 7
        writer = f"i=0; while [ $i -lt 90000 ]; do echo {line}; i=$((i+1)); done"
        chatty = daemon.docker("run", "--name", "chatty", "busybox", "sh", "-c", f"{writer}; exit 5", check=False)
        assert chatty.returncode == 5, "a full disk never stops a container's output"
        assert chatty.stdout.count("\n") == 90000
        assert daemon.docker("logs", "chatty").stdout.startswith("0123")
        daemon.docker("rm", "-f", "chatty")
        assert daemon.docker("run", "--rm", "busybox", "echo", "ok").stdout == "ok\n"
        assert not tracebacks(daemon)
        daemon.remove_all()
        daemon.terminate()
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()
        subprocess.run(["umount", "-l", daemon.root / "data"], check=True)
        daemon.stop()


def test_rounds_under_load(daemon: Daemon) -> None:
    rounds = int(os.environ.get("TARE_CRASH_ROUNDS", "20"))
    chance = random.Random(4)
    expected: dict[str, str] = {}
    daemon.docker("run", "-d", "--name", "witness", "busybox", "sh", "-c", COUNTER)
    for number in range(rounds):
        code = chance.randrange(1, 120)
        exiting = f"exiting{number}"
        clients = {
            "detached": client(daemon, "run", "-d", "--name", f"detached{number}", "busybox", "sleep", "1000"),
            "exiting": client(daemon, "run", "-d", "--name", exiting, "busybox", "sh", "-c", f"sleep 0.2; exit {code}"),
            "created": client(daemon, "create", "--name", f"created{number}", "busybox", "true"),
            "fleeting": client(daemon, "run", "--rm", "busybox", "true"),
            "exec": client(daemon, "exec", "witness", "echo", "hello"),
            "removed": client(daemon, "rm", "-f", f"detached{number - 1}", f"created{number - 1}"),
        }
        time.sleep(chance.random() * 0.5)
        daemon.kill()
        done = {kind: (*process.communicate(timeout=30), process.returncode) for kind, process in clients.items()}
        for name, outcome in (("detached", "running"), ("exiting", str(code)), ("created", "created")):
            if done[name][2] == 0:
                expected[f"{name}{number}"] = outcome
        for name in done["removed"][0].split():
            expected[name] = "gone"
        for name in (f"detached{number - 1}", f"created{number - 1}"):
            if expected.get(name) in ("running", "created"):
                expected.pop(name)  # its removal was asked for, and may have happened
        daemon.start()
    until(lambda: not daemon.docker("ps", "-q", "--filter", "name=exiting").stdout.strip(), "the end of all short containers")
    ids = daemon.docker("ps", "-aq", "--no-trunc").stdout.split()
    found = {each["Name"].strip("/"): each for each in json.loads(daemon.docker("inspect", *ids).stdout)}
    for name, outcome in expected.items():
        if outcome == "gone":
            assert name not in found
        elif outcome in ("running", "created"):
            assert found[name]["State"]["Status"] == outcome
        else:
            assert (found[name]["State"]["Status"], found[name]["State"]["ExitCode"]) == ("exited", int(outcome)), name
    daemon.docker("stop", "-t", "0", "witness")
    numbers = [int(line) for line in daemon.docker("logs", "witness").stdout.split()]
    assert numbers == list(range(len(numbers)))
    _nothing_else_is_left(daemon, set(ids), {each["Id"] for each in found.values() if each["State"]["Running"]} - {found["witness"]["Id"]})
    daemon.remove_all()
    _nothing_else_is_left(daemon, set(), set())


def _nothing_else_is_left(daemon: Daemon, ids: set[str], running: set[str]) -> None:
    """Only what these containers need is on the machine (and the launcher with its spares)."""
    until(lambda: not folders(daemon)["data/snapshots/.trash"], "an empty trash")
    found = folders(daemon)
    assert found["data/containers"] == ids
    assert found["data/snapshots"] == ids
    assert {name for name in found["run/containers"] if any((daemon.root / "run/containers" / name).iterdir())} == running
    assert found["run/containers"] <= ids
    assert len([path for path in (daemon.root / "run").iterdir() if path.name.startswith("launcher-")]) <= 1
    until(lambda: veths(daemon) == len(running), f"{len(running)} links")
    until(lambda: {name for name in groups(daemon) if not name.startswith("spare-")} == running, "no other control group")
    until(lambda: len([name for name in groups(daemon) if name.startswith("spare-")]) <= 2, "two spares")
    # The launcher; two spares and running containers with a keeper and an init each.
    until(lambda: len(processes(daemon)) <= 1 + 2 * (2 + len(running)), "no further process")
