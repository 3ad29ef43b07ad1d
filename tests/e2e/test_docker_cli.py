"""The real docker command against tared: the issue's list, verb by verb."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import socket
import subprocess
import time
import urllib.request

import pytest

from engine_world import DOCKER, Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]


def test_run_prints_output_and_returns_the_exit_code(engine: Daemon) -> None:
    done = engine.docker("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["busybox", "no-such-program"], 127, 'exec: "no-such-program": executable file not found in $PATH'),
        (["busybox", "/no/such/program"], 127, "no such file or directory"),
        (["busybox", "/etc/not-executable"], 126, "permission denied"),
        (["busybox", "/etc"], 126, "is a directory"),
        (["--name", "-bad-", "busybox", "true"], 125, "Invalid container name"),
        (["busybox"], 125, "no command specified"),
        (["-m", "1m", "busybox"], 125, "Minimum memory limit allowed is 6MB"),
        (["-u", "nobody-here", "busybox", "true"], 125, "unable to find user nobody-here: no matching entries in passwd file"),
        (["--network", "no-such-net", "busybox", "true"], 125, "network no-such-net not found"),
        (["localhost:1/no/such:image"], 125, "localhost:1"),
    ],
)
def test_what_cannot_run_says_why_and_leaves_nothing(engine: Daemon, arguments: list[str], code: int, text: str) -> None:
    done = engine.docker("run", "--rm", *arguments, check=False)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    for _ in range(50):
        if not engine.docker("ps", "-aq").stdout:
            return
        time.sleep(0.1)
    pytest.fail("the container stayed")


def test_signals_become_exit_codes(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "victim", "busybox", "sleep", "100")
    engine.docker("kill", "-s", "USR1", "victim")  # process 1 of a namespace is deaf to signals that it does not handle
    engine.docker("kill", "victim")
    assert engine.docker("wait", "victim").stdout == "137\n"
    engine.docker("run", "-d", "--name", "sleeper", "busybox", "sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.05; done")
    engine.docker("stop", "sleeper")
    assert engine.docker("inspect", "-f", "{{.State.ExitCode}} {{.State.Status}}", "sleeper").stdout == "5 exited\n"


def test_fifty_megabytes_through_cat(engine: Daemon) -> None:
    data = os.urandom(1 << 20) * 50
    done = engine.docker("run", "-i", "--rm", "busybox", "cat", input=data, text=False)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def _in_a_terminal(command: list[str], feed: list[tuple[bytes, bytes]], timeout: float = 20) -> tuple[int, bytes]:
    """Run a command in a pty; for each (awaited output, input) pair send the input once the output was seen."""
    pid, master = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    seen, cursor, deadline = b"", 0, time.monotonic() + timeout
    pending = list(feed)
    while time.monotonic() < deadline:
        ready, _, _ = select.select([master], [], [], 0.2)
        if ready:
            try:
                data = os.read(master, 65536)
            except OSError:
                break
            if not data:
                break
            seen += data
        if pending and (at := seen.find(pending[0][0], cursor)) >= 0:
            cursor = at + len(pending[0][0])
            os.write(master, pending.pop(0)[1])
    else:
        os.kill(pid, 9)
    _, status = os.waitpid(pid, 0)
    os.close(master)
    return os.waitstatus_to_exitcode(status), seen


def test_run_in_a_terminal(engine: Daemon) -> None:
    command = [str(DOCKER), "-H", engine.host, "run", "-it", "--rm", "busybox", "sh"]
    code, seen = _in_a_terminal(command, [(b"# ", b"tty; stty size; echo mark$((1+1))\n"), (b"mark2", b"exit 3\n")])
    assert code == 3, seen
    assert b"/dev/pts/0" in seen or b"/dev/console" in seen


def test_detach_keys_leave_the_container_running(engine: Daemon) -> None:
    command = [str(DOCKER), "-H", engine.host, "run", "-it", "--name", "kept", "busybox", "sh"]
    code, seen = _in_a_terminal(command, [(b"# ", b"echo ready$((1+1))\n"), (b"ready2", b"\x10\x11")])
    assert code == 0, seen
    assert engine.docker("inspect", "-f", "{{.State.Running}}", "kept").stdout == "true\n"


def test_exec_in_a_terminal(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "target", "busybox", "sleep", "100")
    command = [str(DOCKER), "-H", engine.host, "exec", "-it", "target", "sh"]
    code, seen = _in_a_terminal(command, [(b"# ", b"echo in$((40+2))\n"), (b"in42", b"exit 4\n")])
    assert (code, b"in42" in seen) == (4, True)


def test_exec(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "target", "-e", "A=container", "busybox", "sleep", "100")
    done = engine.docker(
        "exec", "-e", "B=exec", "-w", "/tmp", "-u", "www-data", "target", "sh", "-c", "echo $A $B $(pwd) $(id -u); exit 9", check=False
    )
    assert (done.stdout, done.returncode) == ("container exec /tmp 33\n", 9)
    missing = engine.docker("exec", "target", "no-such-program", check=False)
    assert missing.returncode == 127 and "executable file not found" in missing.stdout + missing.stderr
    piped = engine.docker("exec", "-i", "target", "wc", "-c", input="x" * 100_000)
    assert piped.stdout.strip() == "100000"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_published_port(engine: Daemon) -> None:
    port = _free_port()
    script = "mkdir -p /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www"
    engine.docker("run", "-d", "--name", "web", "-p", f"{port}:80", "busybox", "sh", "-c", script)
    for _ in range(50):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as answer:
                assert answer.read() == b"hello\n"
            break
        except OSError:
            time.sleep(0.1)
    else:
        pytest.fail("the published port does not answer")
    assert f"{port}->80/tcp" in engine.docker("ps").stdout
    taken = engine.docker("run", "--rm", "-p", f"{port}:80", "busybox", "true", check=False)
    assert taken.returncode == 125 and "port is already allocated" in taken.stderr
    assert engine.docker("port", "web", "80").stdout.splitlines()[0].endswith(f":{port}")


def test_ps_and_inspect(engine: Daemon) -> None:
    identifier = engine.docker("run", "-d", "--name", "shown", "-l", "a=b", "--hostname", "scale", "busybox", "sleep", "100").stdout.strip()
    line = engine.docker("ps", "--filter", "label=a=b", "--format", "{{.ID}} {{.Image}} {{.Names}} {{.State}} {{.Command}}").stdout
    assert line == f'{identifier[:12]} busybox shown running "sleep 100"\n'
    found = json.loads(engine.docker("inspect", "shown").stdout)[0]
    assert found["Id"] == identifier and found["Config"]["Hostname"] == "scale"
    assert found["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    assert found["State"]["Pid"] > 0
    assert engine.docker("ps", "-q", "--filter", "name=nothing").stdout == ""


def test_logs_follow_until_the_end(engine: Daemon) -> None:
    engine.docker(
        "run", "-d", "--name", "talker", "busybox", "sh", "-c", "for i in 1 2 3 4 5; do echo line $i; sleep 0.1; done; echo end >&2"
    )
    done = engine.docker("logs", "-f", "talker", timeout=20)
    assert done.stdout == "".join(f"line {n}\n" for n in range(1, 6)) and done.stderr == "end\n"
    assert engine.docker("logs", "--tail", "2", "talker").stdout == "line 5\n"
    stamped = engine.docker("logs", "-t", "--tail", "1", "talker").stderr
    assert stamped.endswith("Z end\n") and len(stamped.split()[0]) == len("2026-11-23T20:50:10.247721184Z")


def test_attach(engine: Daemon) -> None:
    engine.docker("create", "-i", "--name", "echo", "busybox", "cat")
    done = engine.docker("start", "-ai", "echo", input="through attach\n", timeout=20)
    assert done.stdout == "through attach\n"


def test_attach_to_a_running_container(engine: Daemon) -> None:
    engine.docker("run", "-d", "-i", "--name", "echo", "busybox", "head", "-n", "1")
    done = engine.docker("attach", "echo", input="through attach\n", timeout=20)
    assert done.stdout == "through attach\n"


def test_wait_stop_kill_restart_rm(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "halted", "busybox", "sleep", "100")
    running = engine.docker("rm", "halted", check=False)
    assert running.returncode == 1 and "container is running: stop the container before removing or force remove" in running.stderr
    engine.docker("kill", "halted")
    assert engine.docker("wait", "halted").stdout == "137\n"
    again = engine.docker("kill", "halted", check=False)
    assert again.returncode == 1 and "is not running" in again.stderr
    engine.docker("start", "halted")
    engine.docker("restart", "-t", "0", "halted")
    assert engine.docker("inspect", "-f", "{{.State.Running}}", "halted").stdout == "true\n"
    engine.docker("stop", "-t", "0", "halted")
    engine.docker("rm", "halted")
    gone = engine.docker("inspect", "halted", check=False)
    assert gone.returncode == 1 and "No such" in gone.stderr


def test_names_are_unique(engine: Daemon) -> None:
    first = engine.docker("create", "--name", "twin", "busybox", "true").stdout.strip()
    done = engine.docker("create", "--name", "twin", "busybox", "true", check=False)
    assert done.returncode == 1
    assert f'The container name "/twin" is already in use by container "{first}"' in done.stderr


def test_stats_and_top(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "busy", "-m", "64m", "busybox", "sh", "-c", "while :; do :; done")
    fields = engine.docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}", "busy").stdout.split()
    assert fields[0] == "busy" and fields[3] == "64MiB" and int(fields[4]) >= 1
    assert "while :; do :; done" in engine.docker("top", "busy").stdout


def test_events(engine: Daemon) -> None:
    before = time.time()
    engine.docker("run", "--rm", "--name", "seen", "busybox", "true")
    shown = engine.docker(
        "events",
        "--since",
        str(before),
        "--until",
        str(time.time() + 0.2),
        "--filter",
        "container=seen",
        "--format",
        "{{.Action}}",
        timeout=20,
    ).stdout.split()
    assert [action for action in shown if action in ("create", "start", "die", "destroy")] == ["create", "start", "die", "destroy"]


def test_images(engine: Daemon) -> None:
    engine.docker("tag", "busybox", "other/name:v1")
    assert "other/name" in engine.docker("images").stdout
    identifier = engine.docker("inspect", "-f", "{{.Id}}", "busybox").stdout.strip()
    assert engine.docker("images", "-q", "--no-trunc", "other/name:v1").stdout.strip() == identifier
    assert "Untagged: other/name:v1" in engine.docker("rmi", "other/name:v1").stdout
    missing = engine.docker("rmi", "no-such-image", check=False)
    assert missing.returncode == 1 and "No such image: no-such-image" in missing.stderr


def test_limits(engine: Daemon) -> None:
    hog = "tail -c 300m /dev/zero >/dev/null"
    done = engine.docker("run", "--name", "hog", "-m", "32m", "--memory-swap", "32m", "busybox", "sh", "-c", hog, check=False)
    assert done.returncode == 137
    assert engine.docker("inspect", "-f", "{{.State.OOMKilled}}", "hog").stdout == "true\n"
    forks = engine.docker(
        "run", "--rm", "--pids-limit", "5", "busybox", "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait", check=False
    )
    assert "can't fork" in forks.stderr


def test_the_default_is_confined(engine: Daemon) -> None:
    script = (
        "grep -E 'Cap(Inh|Prm|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/kcore >/dev/null && echo readable;"
        "mount -t tmpfs x /mnt && echo mounted; echo 1 > /proc/sys/kernel/panic && echo written;"
        "hostname other && echo renamed; unshare -r true && echo unshared"
    )
    done = engine.docker("run", "--rm", "busybox", "sh", "-c", script, check=False)
    status = dict(line.split(":\t") for line in done.stdout.splitlines() if ":\t" in line)
    assert status["CapInh"] == "0000000000000000"
    assert status["CapPrm"] == status["CapBnd"] == "00000000a80425fb"
    assert status["Seccomp"] == "2"
    for word in ("mounted", "written", "renamed", "unshared"):
        assert word not in done.stdout


def test_volumes_and_binds(engine: Daemon, tmp_path: os.PathLike[str]) -> None:
    engine.docker("run", "--rm", "-v", "named:/data", "busybox", "sh", "-c", "echo kept > /data/file")
    assert engine.docker("run", "--rm", "-v", "named:/data:ro", "busybox", "cat", "/data/file").stdout == "kept\n"
    assert engine.docker("run", "--rm", "-v", f"{tmp_path}:/host", "busybox", "touch", "/host/made").returncode == 0
    assert os.path.exists(os.path.join(tmp_path, "made"))
    read_only = engine.docker("run", "--rm", "-v", f"{tmp_path}:/host:ro", "busybox", "touch", "/host/other", check=False)
    assert read_only.returncode == 1 and "Read-only" in read_only.stderr
    assert engine.docker("volume", "ls", "-q").stdout.split() == ["named"]
    engine.docker("volume", "rm", "named")


def test_network_modes(engine: Daemon) -> None:
    assert engine.docker("run", "--rm", "--network", "none", "busybox", "ls", "/sys/class/net").stdout.split() == ["lo"]
    host = engine.docker("run", "--rm", "--network", "host", "busybox", "readlink", "/proc/self/ns/net").stdout.strip()
    assert host == os.readlink("/proc/self/ns/net")
    engine.docker("run", "-d", "--name", "first", "busybox", "sleep", "100")
    shared = [
        engine.docker(*verb, "readlink", "/proc/self/ns/net").stdout
        for verb in (["exec", "first"], ["run", "--rm", "--network", "container:first", "busybox"])
    ]
    assert shared[0] == shared[1]


def test_restart_policy(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "again", "--restart", "on-failure:2", "busybox", "sh", "-c", "exit 3")
    for _ in range(100):
        state = engine.docker("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "again").stdout.split()
        if state == ["2", "exited"]:
            return
        time.sleep(0.1)
    pytest.fail(str(state))


def test_health_check(engine: Daemon) -> None:
    engine.docker(
        "run",
        "-d",
        "--name",
        "well",
        "--health-cmd",
        "test -e /ok",
        "--health-interval",
        "200ms",
        "--health-retries",
        "1",
        "busybox",
        "sleep",
        "100",
    )
    for step, status in (("true", "unhealthy"), ("touch /ok", "healthy")):
        engine.docker("exec", "well", "sh", "-c", step)
        for _ in range(60):
            found = engine.docker("inspect", "-f", "{{.State.Health.Status}}", "well").stdout.strip()
            if found == status:
                break
            time.sleep(0.1)
        assert found == status


def test_a_client_that_goes_away_does_not_stop_the_container(engine: Daemon) -> None:
    client = subprocess.Popen([str(DOCKER), "-H", engine.host, "run", "--name", "left", "busybox", "sleep", "100"])
    for _ in range(100):
        if engine.docker("ps", "-q", "--filter", "name=left").stdout:
            break
        time.sleep(0.05)
    client.kill()
    client.wait()
    time.sleep(0.3)
    assert engine.docker("inspect", "-f", "{{.State.Running}}", "left").stdout == "true\n"
