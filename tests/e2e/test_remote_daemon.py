"""A daemon on TCP with TLS on both sides, under socket activation, with a group, metrics, a JSON log, and read options again."""

from __future__ import annotations

import grp
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import new_daemon
from engine_world import BIN, DOCKER, Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]

ACTIVATE = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
os.dup2(sock.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="tare.socket")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What systemd does for tare.socket: the listening socket is descriptor 3 of the new process."""


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Path]]:
    """A daemon on a free port of 127.0.0.1, with metrics and a JSON log; and the directory of its certificates."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run([BIN / "tare", "system", "certs", "--dir", folder, "--host", "localhost", "--host", "127.0.0.1"], check=True)
    daemon = new_daemon()
    configuration = daemon.root / "daemon.json"
    configuration.write_text(json.dumps({"labels": ["a=b"], "slow-request": 1}))
    daemon.flags = (
        "-H", "tcp://127.0.0.1:0", "--tlsverify", "--tlscacert", str(folder / "ca.pem"), "--tlscert", str(folder / "server-cert.pem"),
        "--tlskey", str(folder / "server-key.pem"), "--metrics-addr", "127.0.0.1:0", "--log-format", "json",
        "--group", grp.getgrgid(1).gr_name, "--config-file", str(configuration), "--default-ulimit", "nofile=100:200",
        "--cdi-spec-dir", str(folder), "--default-shm-size", "1m", "--no-new-privileges", "--default-ipc-mode", "shareable",
        "--seccomp-profile", "unconfined",
    )  # fmt: skip
    daemon.start()
    daemon.load_busybox()
    yield daemon, folder
    daemon.stop()


def records(daemon: Daemon) -> list[dict[str, Any]]:
    return [json.loads(line) for line in daemon.log.splitlines(keepends=True) if line.endswith("\n")]


def address(daemon: Daemon, text: str) -> str:
    return next(found[1] for record in records(daemon) if (found := re.fullmatch(text, record["msg"])))


def docker_tls(daemon: Daemon, folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    host = address(daemon, r"API listen on (tcp://.*)")
    flags = ["--tlsverify", "--tlscacert", folder / "ca.pem", "--tlscert", folder / "cert.pem", "--tlskey", folder / "key.pem"]
    return subprocess.run([DOCKER, "-H", host, *flags, *arguments], capture_output=True, text=True, timeout=60, **options)  # type: ignore[list-item]


def test_docker_over_tls(remote: tuple[Daemon, Path]) -> None:
    daemon, folder = remote
    done = docker_tls(daemon, folder, "run", "--rm", "-i", "busybox", "sh", "-c", "cat; echo error >&2; exit 3", input="through\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, "through\n", "error\n")


def test_a_client_without_certificate_is_refused(remote: tuple[Daemon, Path], tmp_path: Path) -> None:
    daemon, folder = remote
    host = address(daemon, r"API listen on tcp://(.*)")
    done = subprocess.run(["curl", "-sS", "--cacert", folder / "ca.pem", f"https://{host}/_ping"], capture_output=True, text=True)
    assert done.returncode != 0 and "OK" not in done.stdout
    plain = subprocess.run(["curl", "-s", f"http://{host}/_ping"], capture_output=True, text=True)
    assert plain.stdout == "Client sent an HTTP request to an HTTPS server.\n"
    subprocess.run([BIN / "tare", "system", "certs", "--dir", tmp_path, "--host", "localhost"], check=True, capture_output=True)
    stranger: list[str | Path] = ["--cert", tmp_path / "cert.pem", "--key", tmp_path / "key.pem", "--cacert", folder / "ca.pem"]
    done = subprocess.run(["curl", "-sS", *stranger, f"https://{host}/_ping"], capture_output=True, text=True)
    assert done.returncode != 0 and "OK" not in done.stdout, "signed by another authority"


def test_the_certificates(remote: tuple[Daemon, Path]) -> None:
    _, folder = remote
    assert {path.name for path in folder.iterdir()} == {
        "ca.pem", "ca-key.pem", "server-cert.pem", "server-key.pem", "cert.pem", "key.pem",
    }  # fmt: skip
    assert all(stat.S_IMODE((folder / name).stat().st_mode) == 0o600 for name in ("ca-key.pem", "server-key.pem", "key.pem"))
    again = subprocess.run([BIN / "tare", "system", "certs", "--dir", folder], capture_output=True, text=True)
    assert again.returncode == 1 and "use --force" in again.stderr
    authority = (folder / "ca.pem").read_bytes()
    first = (folder / "cert.pem").read_bytes()
    subprocess.run([BIN / "tare", "system", "certs", "--dir", folder, "--force"], check=True, capture_output=True)
    assert (folder / "ca.pem").read_bytes() == authority and (folder / "cert.pem").read_bytes() != first


def test_the_socket_belongs_to_the_group(remote: tuple[Daemon, Path]) -> None:
    daemon, _ = remote
    found = daemon.socket.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, 1)


def test_containers_get_the_daemons_defaults(remote: tuple[Daemon, Path]) -> None:
    daemon, _ = remote
    look = "ulimit -n; ulimit -Hn; df /dev/shm | tail -1 | awk '{print $2}'; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status"
    said = daemon.docker("run", "--rm", "busybox", "sh", "-c", look).stdout.split()
    assert said == ["100", "200", "1024", "NoNewPrivs:", "1", "Seccomp:", "0"]
    own = ["--ulimit", "nofile=50:60", "--shm-size", "2m", "--security-opt", "no-new-privileges=false", "--security-opt", "seccomp=builtin"]
    said = daemon.docker("run", "--rm", *own, "busybox", "sh", "-c", look).stdout.split()
    assert said == ["50", "60", "2048", "NoNewPrivs:", "0", "Seccomp:", "2"]


SCALE = """\
cdiVersion: 0.7.0
kind: test.example/scale
containerEdits:
  hooks:
  - {hookName: createRuntime, path: HOOK, args: [hook, createRuntime]}
  - {hookName: createContainer, path: HOOK, args: [hook, createContainer], env: ["PATH=/bin:/usr/bin"], timeout: 20}
  - {hookName: startContainer, path: /bin/busybox, args: [sh, -c, "cat > /state"]}
  - {hookName: poststart, path: HOOK, args: [hook, poststart]}
  - {hookName: poststop, path: HOOK, args: [hook, poststop]}
devices:
- name: "one"
  containerEdits:
    additionalGids: [4242]
    deviceNodes: [{path: /dev/scale, hostPath: /dev/zero, permissions: rw}]
    env: [SCALE=1]
    mounts: [{hostPath: FOLDER, containerPath: /certs, options: [ro, nosuid, bind]}]
- name: broken
  containerEdits:
    hooks: [{hookName: prestart, path: /bin/false}]
"""

HOOK = """\
#!/bin/sh
# What the hooks of vendors do: they take the state, look up the container's root, and prepare something in it.
[ -z "$LD_PRELOAD$SCALE" ] || exit 9  # nothing of the container's environment (CVE-2025-23266)
state=$(cat)
bundle=$(echo "$state" | sed 's/.*"bundle": *"\\([^"]*\\)".*/\\1/')
root=$(sed 's/.*"path": *"\\([^"]*\\)".*/\\1/' "$bundle/config.json")
[ "$1" != createContainer ] || ln -s scale "$root/dev/balance"
echo "$1 $(readlink /proc/self/ns/pid) $state" >> FOLDER/heard
"""


def test_devices_by_name(remote: tuple[Daemon, Path]) -> None:
    daemon, folder = remote
    hook = folder / "hook"
    hook.write_text(HOOK.replace("FOLDER", str(folder)))
    hook.chmod(0o755)
    (folder / "scale.yaml").write_text(SCALE.replace("FOLDER", str(folder)).replace("HOOK", str(hook)))
    (folder / "other.yaml").write_text("cdiVersion: 0.6.0\n")
    command = "head -c 3 /dev/balance | wc -c; echo $SCALE; ls /certs/ca.pem; id -G; cat /state"
    device = ["--device", "test.example/scale=one"]
    done = daemon.docker(
        "run", "--rm", "--name", "weigher", "--annotation", "by=hand", "-e", "LD_PRELOAD=/x", *device, "busybox", "sh", "-c", command
    )
    assert done.stdout.split()[:5] == ["3", "1", "/certs/ca.pem", "0", "4242"]
    assert json.loads(done.stdout[done.stdout.index("{") :])["status"] == "created"
    lines = [line.split(" ", 2) for line in (folder / "heard").read_text().splitlines()]
    states = [json.loads(state) for _, _, state in lines]
    assert [(kind, state["status"]) for (kind, _, _), state in zip(lines, states, strict=True)] == [
        ("createRuntime", "creating"), ("createContainer", "creating"), ("poststart", "running"), ("poststop", "stopped")
    ]  # fmt: skip
    own = os.readlink("/proc/self/ns/pid")
    assert [space == own for _, space, _ in lines] == [True, False, True, True]
    assert all(state["pid"] > 1 for state in states[:3]) and all(state["annotations"] == {"by": "hand"} for state in states)
    assert "cdi: test.example/scale=one" in daemon.tare("info").stdout
    done = daemon.docker("run", "--rm", "--device", "test.example/scale=two", "busybox", "true", check=False)
    assert f"unresolvable CDI devices test.example/scale=two ({folder}/other.yaml: Object missing required field `kind`)" in done.stderr
    done = daemon.docker("run", "--rm", "--device", "test.example/scale=broken", "busybox", "true", check=False)
    assert "error running prestart hook /bin/false: exit status 1" in done.stderr
    device = "--device=test.example/scale"
    command = "head -c 3 /dev/balance | wc -c > /weight && ls /certs >> /weight && echo $SCALE >> /weight"
    file = f"FROM busybox\nRUN {device}=one {command}\nRUN {device}=none,required=false cat /weight && ! ls /dev/balance /certs\n"
    allow = "device=test.example/scale=one"
    done = daemon.tare("build", "--progress=plain", "--allow", allow, "-t", "weighed", "-", input=file)
    assert daemon.docker("run", "--rm", "weighed", "cat", "/weight").stdout.split()[-1] == "1"
    done = daemon.tare("build", "-", input=file, check=False)
    assert (
        "device test.example/scale=one is requested by the build but not allowed: pass --allow device=test.example/scale=one" in done.stderr
    )
    for name in ("scale.yaml", "other.yaml", "hook", "heard"):
        (folder / name).unlink()


def test_metrics(remote: tuple[Daemon, Path]) -> None:
    daemon, _ = remote
    url = f"http://{address(daemon, r'Metrics API listening on (.*)')}"
    daemon.docker("create", "--name", "metered", "busybox", "true")
    daemon.docker("rm", "metered")
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        lines = answer.read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert int(values['engine_daemon_container_actions_seconds_count{action="create"}']) >= 1
    assert values['engine_daemon_container_states_containers{state="running"}'] == "0"
    assert int(values["engine_daemon_events_total"]) >= 2
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{url}/containers/json")


def test_slow_requests_are_named(remote: tuple[Daemon, Path]) -> None:
    daemon, _ = remote
    daemon.docker("run", "--rm", "busybox", "true")
    slow = [record for record in records(daemon) if record["msg"] == "slow request"]
    assert any(record["method"] == "POST" and record["path"].endswith("/start") and record["ms"] >= 1 for record in slow)


def test_options_are_read_again(remote: tuple[Daemon, Path]) -> None:
    daemon, _ = remote
    assert daemon.process is not None
    (daemon.root / "daemon.json").write_text(
        json.dumps({"labels": ["c=d"], "debug": True, "mtu": 1400, "insecure-registries": ["r.example"]})
    )
    daemon.process.send_signal(signal.SIGHUP)
    for _ in range(100):
        if any(record["msg"] == "Reloaded configuration" for record in records(daemon)):
            break
        time.sleep(0.05)
    assert daemon.docker("info", "--format", "{{.Labels}} {{.Debug}}").stdout == "[c=d] true\n"
    assert "r.example" in daemon.docker("info", "--format", "{{json .RegistryConfig.IndexConfigs}}").stdout
    reload = daemon.docker(
        "events", "--since", "1m", "--until", str(int(time.time()) + 1), "--filter", "type=daemon", "--format", "{{json .Actor.Attributes}}"
    )
    assert json.loads(reload.stdout)["insecure-registries"] == '["r.example"]'
    assert "changes of mtu take effect at the next start" in daemon.log
    (daemon.root / "daemon.json").write_text("{broken")
    daemon.process.send_signal(signal.SIGHUP)
    for _ in range(100):
        if "configuration not reloaded" in daemon.log:
            break
        time.sleep(0.05)
    assert daemon.docker("info", "--format", "{{.Labels}}").stdout == "[c=d]\n"


def test_stacks_of_a_daemon_that_seems_to_hang(own_daemon: Daemon) -> None:
    assert own_daemon.process is not None
    own_daemon.process.send_signal(signal.SIGUSR1)
    for _ in range(100):
        if found := list((own_daemon.root / "run").glob("stacks-*.log")):
            break
        time.sleep(0.05)
    assert "Stack for <Task" in found[0].read_text() and own_daemon.docker("version").returncode == 0


def test_a_setting_in_two_places_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "daemon.json"
    file.write_text(json.dumps({"labels": ["a=b"], "log-level": "warn"}))
    done = subprocess.run(
        [BIN / "tared", "--config-file", file, "--log-level", "info", "--validate"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "the following directives are specified both as a flag and in the configuration file: log-level" in done.stderr


def test_socket_activation_and_upgrade(tmp_path: Path) -> None:
    """The socket outlives the daemon, and a container started by one daemon is served by the next."""
    daemon = new_daemon()
    flags = ["--data-root", daemon.root / "data", "--exec-root", daemon.root / "run", "--pidfile", daemon.root / "pid"]
    command = [sys.executable, "-c", ACTIVATE, daemon.socket, BIN / "tared", "-H", "fd://", *flags, "--cgroup-parent", daemon.group]

    def start() -> None:
        daemon.socket.unlink(missing_ok=True)
        with (daemon.root / "tared.log").open("ab") as log:
            daemon.process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, start_new_session=True)
        for _ in range(200):
            if daemon.docker("version", check=False).returncode == 0:
                return
            time.sleep(0.05)
        raise AssertionError(daemon.log)

    start()
    try:
        daemon.load_busybox()
        daemon.docker("run", "-d", "--name", "lasting", "busybox", "sleep", "1000")
        pid = daemon.docker("inspect", "-f", "{{.State.Pid}}", "lasting").stdout
        daemon.terminate()
        assert daemon.socket.exists(), "the file belongs to the service manager"
        start()
        assert daemon.docker("inspect", "-f", "{{.State.Pid}} {{.State.Running}}", "lasting").stdout == f"{pid.strip()} true\n"
    finally:
        daemon.stop()


def test_requests_under_way_are_finished(own_daemon: Daemon) -> None:
    """SIGTERM while a stop is waiting for its container: the client gets its answer."""
    own_daemon.docker("run", "-d", "--name", "slow", "busybox", "sh", "-c", "trap 'sleep 1; exit 5' TERM; while :; do sleep 0.1; done")
    with subprocess.Popen([str(DOCKER), "-H", own_daemon.host, "stop", "slow"], stdout=subprocess.PIPE, text=True) as stopping:
        time.sleep(0.3)  # the request is under way; a moment too early or too late would only make the test easier
        own_daemon.terminate()
        assert stopping.communicate(timeout=30)[0] == "slow\n" and stopping.returncode == 0
    own_daemon.start()
    assert own_daemon.docker("inspect", "-f", "{{.State.ExitCode}}", "slow").stdout == "5\n"


def test_dial_stdio(engine: Daemon) -> None:
    done = subprocess.run(
        [BIN / "tare", "-H", engine.host, "system", "dial-stdio"], input=b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n",
        capture_output=True, timeout=30,
    )  # fmt: skip
    assert done.stdout.startswith(b"HTTP/1.1 200 OK\r\n") and done.stdout.endswith(b"OK")
    left, right = socket.socketpair()
    with left, right:
        process = subprocess.Popen(
            [str(BIN / "tare"), "-H", engine.host, "system", "dial-stdio"], stdin=right.fileno(), stdout=right.fileno()
        )
        right.close()
        left.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
        assert left.recv(4096).startswith(b"HTTP/1.1 200 OK")
        left.shutdown(socket.SHUT_WR)
        assert process.wait(30) == 0
