"""Checkpoints with the real docker command and our own: processes go on where they stopped, and nothing else changes."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import new_daemon
from crash_world import keeper_pid
from crash_world import until as until_so
from docker_calls import Recorder
from engine_world import DOCKER, Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]

COUNTER = "i=0; while :; do i=$((i+1)); echo $i; usleep 50000; done"


@functools.cache
def working_criu() -> str:
    """A criu that works on this kernel: the machine's, or the one of ``scripts/fetch-criu``; skips when there is none."""
    said = "there is none (scripts/fetch-criu)"
    for program in (shutil.which("criu"), "/opt/tare-test/criu/criu"):
        if program and os.path.exists(program):
            done = subprocess.run([program, "check"], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return program
            said = done.stderr[-200:]
    pytest.skip(f"needs a criu that works on this kernel: {said}")


@pytest.fixture(scope="module")
def machine() -> Iterator[Daemon]:
    daemon = new_daemon("--criu", working_criu())
    try:
        daemon.start()
        daemon.load_busybox()
        yield daemon
        assert "Traceback" not in daemon.log
    finally:
        if daemon.process is not None and daemon.process.poll() is not None:
            daemon.start()
        daemon.stop()


@pytest.fixture
def daemon(machine: Daemon) -> Iterator[Daemon]:
    yield machine
    machine.remove_all()


def until(holds: Callable[[], object]) -> None:
    until_so(holds, "what is waited for")


def inspect(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.docker("inspect", name).stdout)[0]
    return found


def state(daemon: Daemon, name: str) -> dict[str, Any]:
    return dict(inspect(daemon, name)["State"])


def numbers(daemon: Daemon, name: str) -> list[int]:
    """What a counter has said so far."""
    return [int(line) for line in daemon.docker("logs", name).stdout.split()]


def counter(daemon: Daemon, name: str, *options: str, script: str = COUNTER) -> None:
    daemon.docker("run", "-d", "--name", name, *options, "busybox", "sh", "-c", script)
    until(lambda: len(numbers(daemon, name)) > 2)


def goes_on(daemon: Daemon, name: str) -> None:
    """The counter counts, and has never begun again nor left out a number."""
    before = len(numbers(daemon, name))
    until(lambda: len(numbers(daemon, name)) > before + 2)
    found = numbers(daemon, name)
    assert found == list(range(1, len(found) + 1))


def test_a_counter_goes_on(daemon: Daemon) -> None:
    assert daemon.docker("info", "-f", "{{.ExperimentalBuild}}").stdout == "true\n"
    counter(daemon, "one")
    assert daemon.docker("checkpoint", "create", "one", "first").stdout == "first\n"
    assert state(daemon, "one")["Status"] == "exited" and state(daemon, "one")["ExitCode"] == 137
    stopped = numbers(daemon, "one")
    assert daemon.docker("checkpoint", "ls", "one").stdout.split() == ["CHECKPOINT", "NAME", "first"]
    daemon.docker("start", "--checkpoint", "first", "one")
    goes_on(daemon, "one")
    assert len(stopped) < len(numbers(daemon, "one"))
    assert "sh -c" in daemon.docker("exec", "one", "ps").stdout
    assert daemon.docker("exec", "one", "hostname").stdout.strip() == inspect(daemon, "one")["Config"]["Hostname"]
    daemon.docker("checkpoint", "rm", "one", "first")
    assert daemon.docker("checkpoint", "ls", "one").stdout.split() == ["CHECKPOINT", "NAME"]
    events = daemon.docker(
        "events", "--since", "10m", "--until", str(int(time.time()) + 1), "--filter", "container=one", "--format", "{{.Action}}"
    ).stdout
    assert [line for line in events.splitlines() if not line.startswith("exec_")] == ["create", "start", "die", "checkpoint", "start"]


def test_left_running_with_our_own_command(daemon: Daemon, tmp_path: Path) -> None:
    """Twice the same container, from a folder of the client's choice; files on the container's disk are not part of a checkpoint."""
    counter(daemon, "two", "-v", f"{tmp_path}:/data", "--tmpfs", "/run")
    daemon.tare("exec", "two", "sh", "-c", "echo kept >/run/f; echo kept >/dev/shm/f")
    place = str(tmp_path / "kept" / "here")
    assert daemon.tare("checkpoint", "create", "--leave-running", "--checkpoint-dir", place, "two", "copy.1").stdout == "copy.1\n"
    assert state(daemon, "two")["Status"] == "running"
    goes_on(daemon, "two")
    assert daemon.tare("checkpoint", "ls", "two").stdout == "CHECKPOINT NAME\n"
    assert daemon.tare("checkpoint", "ls", "--checkpoint-dir", place, "two").stdout == "CHECKPOINT NAME\ncopy.1\n"
    assert sorted(os.listdir(place)) == ["copy.1"] and os.stat(f"{place}/copy.1").st_mode & 0o777 == 0o700
    daemon.docker("rm", "-f", "two")
    assert os.path.exists(f"{place}/copy.1/tare.json")
    assert "no such container" in daemon.tare("start", "--checkpoint", "copy.1", "two", check=False).stderr.lower()
    counter(daemon, "two", "-v", f"{tmp_path}:/data", "--tmpfs", "/run")
    daemon.docker("kill", "two")
    for _ in range(2):
        daemon.tare("start", "--checkpoint", "copy.1", "--checkpoint-dir", place, "two")
        assert daemon.tare("exec", "two", "cat", "/run/f", "/dev/shm/f").stdout == "kept\nkept\n"
        assert daemon.tare("exec", "two", "sh", "-c", "echo written >/data/w; cat /data/w").stdout == "written\n"
        daemon.docker("stop", "-t", "0", "two")
    daemon.tare("checkpoint", "rm", "--checkpoint-dir", place, "two", "copy.1")
    assert os.listdir(place) == []


def test_another_container_goes_on_in_its_place(daemon: Daemon, tmp_path: Path) -> None:
    """Made of the same image, with the same mounts, never started."""
    counter(daemon, "first", "-v", f"{tmp_path}:/deep/er", "--network", "none")
    daemon.docker("checkpoint", "create", "--checkpoint-dir", str(tmp_path), "first", "base")
    last = numbers(daemon, "first")[-1]
    daemon.docker("create", "--name", "second", "-v", f"{tmp_path}:/deep/er", "--network", "none", "busybox", "false")
    daemon.docker("start", "--checkpoint", "base", "--checkpoint-dir", str(tmp_path), "second")
    until(lambda: len(numbers(daemon, "second")) > 2)
    assert numbers(daemon, "second")[0] in (last, last + 1, last + 2)
    assert "base" in daemon.docker("exec", "second", "ls", "/deep/er").stdout


def test_a_service_keeps_its_state_and_its_port(daemon: Daemon) -> None:
    """The address may be another: the listening socket is not bound to it, and the port is published anew."""
    script = "i=0; while :; do i=$((i+1)); echo count $i | nc -l -p 80; done"
    daemon.docker("network", "create", "web")
    daemon.docker("run", "-d", "--init", "--name", "service", "--network", "web", "-p", "127.0.0.1:0:80", "busybox", "sh", "-c", script)

    def ask() -> str:
        port = daemon.docker("port", "service", "80").stdout.rpartition(":")[2]
        try:
            with socket.create_connection(("127.0.0.1", int(port)), timeout=2) as sock:
                return sock.recv(100).decode().strip()
        except OSError:
            return ""

    until(lambda: ask() != "")
    until(lambda: ask() != "")
    last = int(ask().split()[1])
    time.sleep(0.2)
    daemon.docker("checkpoint", "create", "service", "served")
    daemon.docker("start", "--checkpoint", "served", "service")
    heard = ask()
    assert heard == f"count {last + 1}", (heard, daemon.docker("ps", "-a").stdout)
    found = daemon.docker("run", "--rm", "--network", "web", "busybox", "nslookup", "-type=a", "service").stdout
    assert inspect(daemon, "service")["NetworkSettings"]["Networks"]["web"]["IPAddress"] in found
    assert daemon.docker("exec", "service", "nslookup", "-type=a", "service").returncode == 0
    daemon.docker("exec", "service", "ping", "-c", "1", inspect(daemon, "service")["NetworkSettings"]["Networks"]["web"]["Gateway"])
    daemon.docker("rm", "-f", "service")
    daemon.docker("network", "rm", "web")


def test_input_output_exit_and_limits_of_what_was_restored(daemon: Daemon) -> None:
    script = "trap 'echo bye >&2; exit 7' TERM; while read line; do echo heard $line; done; exit 5"
    limits = ("-m", "32m", "--pids-limit", "50", "--cap-drop", "ALL")
    daemon.docker(
        "run", "-d", "-i", "--name", "three", "--read-only", *limits, "busybox", "sh", "-c", script
    )  # fmt: skip
    daemon.docker("checkpoint", "create", "three", "cp")
    attached = subprocess.Popen(
        [str(DOCKER), "-H", daemon.host, "start", "-ai", "--checkpoint", "cp", "three"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert attached.stdin is not None and attached.stdout is not None
    attached.stdin.write("me\n")
    attached.stdin.flush()
    assert attached.stdout.readline() == "heard me\n"
    shown = daemon.docker("exec", "three", "sh", "-c", "touch /x; grep CapEff /proc/1/status; grep Seccomp: /proc/1/status", check=False)
    assert "Read-only file system" in shown.stderr and "CapEff:\t0000000000000000" in shown.stdout and "Seccomp:\t2" in shown.stdout
    stats = daemon.docker("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "three").stdout
    assert "/ 32MiB" in stats and stats.split()[-1] == "1"
    daemon.docker("stop", "three")
    attached.stdin.close()
    assert attached.wait(10) == 7
    attached.stdout.close()
    assert state(daemon, "three")["ExitCode"] == 7
    assert daemon.docker("logs", "three").stderr == "bye\n"


def test_what_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    recorder = Recorder(str(daemon.socket))

    def refused(name: str, body: dict[str, object] | None = None) -> str:
        return str(
            recorder.call("", "POST", f"/containers/{name}/checkpoints", {"CheckpointID": "cp", "Exit": True} | (body or {}))["message"]
        )

    daemon.docker("create", "--name", "still", "busybox", "true")
    assert refused("still") == "Container still not running"
    assert "No such container: nobody" in refused("nobody")
    counter(daemon, "four")
    for name in ("../x", "a/b", "", ".x", "x\n", "a"):
        assert "Invalid checkpoint ID" in refused("four", {"CheckpointID": name})
    assert "must be an absolute path" in refused("four", {"CheckpointDir": "relative"})
    (tmp_path / "cp").write_text("mine")
    assert "is not a directory" in refused("four", {"CheckpointDir": str(tmp_path)})
    recorder.call("", "DELETE", f"/containers/four/checkpoints/cp?dir={tmp_path}")
    assert (tmp_path / "cp").read_text() == "mine"
    assert "does not exist" in daemon.docker("checkpoint", "ls", "--checkpoint-dir", f"{tmp_path}/none", "four", check=False).stderr
    daemon.docker("run", "-d", "-t", "--name", "terminal", "busybox", "sleep", "100")
    assert refused("terminal") == "cannot checkpoint container terminal: it has a terminal (--tty)"
    daemon.docker("run", "-d", "--name", "host", "--pid", "host", "busybox", "sleep", "100")
    assert "no pid namespace of its own" in refused("host")
    daemon.docker("run", "-d", "--name", "joined", "--network", "container:host", "busybox", "sleep", "100")
    assert "shares namespaces" in refused("joined")
    daemon.docker("pause", "four")
    assert "unpause it first" in refused("four")
    daemon.docker("unpause", "four")
    daemon.docker("checkpoint", "create", "--leave-running", "four", "cp")
    assert "checkpoint with name cp already exists for container four" in refused("four")
    goes_on(daemon, "four")
    assert "you cannot restore multiple" in daemon.tare("start", "--checkpoint", "cp", "four", "still", check=False).stderr
    done = daemon.docker("start", "--checkpoint", "none", "still", check=False)
    assert "checkpoint none does not exist for container still" in done.stderr
    assert "does not exist" in daemon.docker("checkpoint", "rm", "four", "none", check=False).stderr
    # Images that no criu can read: the start fails with the reason and where criu's log is, and leaves nothing behind.
    images = Path(inspect(daemon, "four")["HostsPath"]).parent / "checkpoints" / "cp"
    daemon.docker("kill", "four")
    (images / "inventory.img").write_bytes(b"nonsense")
    done = daemon.docker("start", "--checkpoint", "cp", "four", check=False)
    assert done.returncode == 1 and "criu failed: " in done.stderr and "restore.log" in done.stderr
    assert state(daemon, "four")["Status"] == "exited"
    (images / "tare.json").write_text('{"version": 99}')
    assert "not a checkpoint of this version" in daemon.docker("start", "--checkpoint", "cp", "four", check=False).stderr
    daemon.docker("start", "four")
    daemon.docker("rm", "-f", "four")
    assert not images.exists()


def test_a_link_at_a_mount_point_is_not_followed(daemon: Daemon, tmp_path: Path) -> None:
    """What the container makes of its files after a checkpoint must not tell criu where to mount."""
    (tmp_path / "victim").mkdir()
    counter(daemon, "five", "-v", f"{tmp_path}:/data", "-v", "/mine/deep")
    daemon.docker("checkpoint", "create", "five", "cp")
    upper = Path(inspect(daemon, "five")["GraphDriver"]["Data"]["UpperDir"])
    shutil.rmtree(upper / "mine")
    (upper / "mine").symlink_to(f"{tmp_path}/victim")
    done = daemon.docker("start", "--checkpoint", "cp", "five", check=False)
    assert done.returncode == 1 and 'error restoring the mount on "/mine/deep"' in done.stderr
    assert not list((tmp_path / "victim").iterdir())


def test_restart_policies_and_the_daemons_death(daemon: Daemon) -> None:
    """A checkpoint is a stop that the user wanted; the keeper finishes it without the daemon; a restored container is taken over."""
    counter(daemon, "six", "--restart", "unless-stopped")
    daemon.docker("checkpoint", "create", "six", "cp")
    time.sleep(0.5)
    assert state(daemon, "six")["Status"] == "exited"
    daemon.docker("start", "--checkpoint", "cp", "six")
    daemon.kill()
    daemon.start()
    assert state(daemon, "six")["Status"] == "running"
    goes_on(daemon, "six")
    time.sleep(1.2)  # its keeper has gone to rest
    done = subprocess.Popen([str(DOCKER), "-H", daemon.host, "checkpoint", "create", "six", "again"], stderr=subprocess.DEVNULL)
    time.sleep(0.05)
    daemon.kill()
    done.wait(10)
    daemon.start()
    until(lambda: state(daemon, "six")["Status"] == "exited" or "again" not in daemon.docker("checkpoint", "ls", "six").stdout)
    if state(daemon, "six")["Status"] == "exited":
        daemon.docker("start", "--checkpoint", "again", "six")
    goes_on(daemon, "six")
    os.kill(keeper_pid(daemon, inspect(daemon, "six")["Id"]), signal.SIGKILL)
    until(lambda: numbers(daemon, "six").count(1) == 2)  # the policy starts it anew


def test_without_criu(tmp_path: Path) -> None:
    """What does not work is said with the remedy, and clients see from the start that there are no checkpoints."""
    broken = tmp_path / "criu"
    broken.write_text("#!/bin/sh\necho this kernel is not for me >&2\nexit 1\n")
    broken.chmod(0o755)
    daemon = new_daemon("--criu", str(broken))
    try:
        daemon.start()
        daemon.load_busybox()
        counter(daemon, "one")
        recorder = Recorder(str(daemon.socket))
        said = recorder.call("", "POST", "/containers/one/checkpoints", {"CheckpointID": "cp"})["message"]
        assert "does not work with this kernel: this kernel is not for me" in said and "--criu" in said
        assert "need criu" in daemon.tare("checkpoint", "create", "one", "cp", check=False).stderr
        assert "experimental" in daemon.docker("checkpoint", "create", "one", "cp", check=False).stderr
        assert recorder.call("", "GET", "/containers/one/checkpoints") == []
    finally:
        daemon.stop()
