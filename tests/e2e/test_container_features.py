"""Container features as the docker command asks for them: each option works, or is refused with its name and dockerd's words."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from docker_calls import Recorder
from engine_world import DOCKER, Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]

WORKS = [
    ("--cap-drop ALL", "grep CapEff /proc/self/status", r"CapEff:\s+0{16}"),
    ("--cap-drop ALL --cap-add CHOWN", "grep CapEff /proc/self/status", r"CapEff:\s+0{15}1"),
    ("--security-opt no-new-privileges", "grep NoNewPrivs /proc/self/status", r"NoNewPrivs:\s+1"),
    ("--security-opt no-new-privileges=false", "grep NoNewPrivs /proc/self/status", r"NoNewPrivs:\s+0"),
    ("--security-opt seccomp=unconfined", "grep Seccomp: /proc/self/status", r"Seccomp:\s+0"),
    ("--security-opt seccomp=builtin", "grep Seccomp: /proc/self/status", r"Seccomp:\s+2"),
    ("--security-opt systempaths=unconfined", "grep -c ' /proc/' /proc/mounts; true", r"0"),
    ("--security-opt label=disable --security-opt apparmor=unconfined", "echo ok", r"ok"),
    ("--read-only --tmpfs /run", "touch /run/x; touch /x 2>&1; true", r"touch: /x: Read-only file system"),
    ("--tmpfs /run:size=64k,mode=1777,exec", "grep ' /run ' /proc/mounts", r"tmpfs /run tmpfs rw,nosuid,nodev,relatime,size=64k.*"),
    ("--sysctl net.ipv4.ip_forward=1", "cat /proc/sys/net/ipv4/ip_forward", r"1"),
    ("--sysctl kernel.msgmax=1234", "cat /proc/sys/kernel/msgmax", r"1234"),
    ("--ulimit nofile=100:200", "ulimit -n; ulimit -Hn", r"100\n200"),
    ("--group-add audio --group-add 777", "id", r"uid=0\(root\) gid=0\(root\) groups=0\(root\),29\(audio\),777"),
    ("-u www-data", "id", r"uid=33\(www-data\) gid=33\(www-data\) groups=29\(audio\),33\(www-data\)"),
    ("-u 1000:29", "id", r"uid=1000 gid=29\(audio\) groups=29\(audio\)"),
    ("--shm-size 64m", "df /dev/shm | tail -1", r"shm\s+65536 .*"),
    ("--shm-size 1m", "df /dev/shm | tail -1", r"shm\s+1024 .*"),
    ("--oom-score-adj 100", "cat /proc/self/oom_score_adj", r"100"),
    ("--ipc none", "ls -d /dev/shm/x 2>&1; grep -c shm /proc/mounts; true", r"(?s).*\n0"),
    ("--ipc host", "cat /proc/self/ns/ipc >/dev/null 2>&1; echo ok", r"ok"),
    ("--pid host", "test $(ls /proc | grep -c '^[0-9]') -gt 5 && echo many", r"many"),
    ("--uts host", "hostname", re.escape(os.uname().nodename)),
    ("--cgroupns private", "cut -d: -f3 /proc/self/cgroup | sort -u", r"/"),
    ("--userns host", "cut -c-10 /proc/self/uid_map", r"\s+0"),
    ("--device /dev/null:/dev/foo:r", "cat /dev/foo && ls -l /dev/foo | cut -c1", r"c"),
    ("--device-cgroup-rule 'c 10:200 rwm'", "echo ok", r"ok"),
    ("--privileged", "mount -t tmpfs x /tmp && ls /dev/null && echo mounted", r"/dev/null\nmounted"),
    ("--cpuset-cpus 0", "grep Cpus_allowed_list /proc/self/status", r"Cpus_allowed_list:\s+0"),
    ("--init", "cat /proc/1/comm; echo $(tr '\\0' ' ' </proc/1/cmdline | cut -c-27)", r"docker-init\n/sbin/docker-init -- sh -c"),
    ("--hostname foo --domainname dom", "hostname; cat /proc/sys/kernel/domainname", r"foo\ndom"),
    ("-w /new/dir", "pwd", r"/new/dir"),
    ("--cpus 0.5 --cpu-shares 512 --memory 32m --memory-swap 64m --pids-limit 50 --memory-reservation 16m", "echo ok", r"ok"),
    ("--annotation a=b --runtime runc --isolation default --stop-signal INT --stop-timeout 1", "echo ok", r"ok"),
    ("--pids-limit -1", "ls -l /.dockerenv | cut -c1-10", r"-rwxr-xr-x"),
    ("--security-opt apparmor=docker-default", "echo ok", r"ok"),
    ("--log-opt mode=non-blocking --log-opt max-buffer-size=1m", "echo ok", r"ok"),
]

REFUSED = [
    ("--ipc bogus", "invalid IPC mode: bogus"),
    ("--uts host --hostname foo", "conflicting options: hostname and the UTS mode"),
    ("--tmpfs /run:bogus=1", 'invalid tmpfs option ["bogus" "1"]'),
    ("--network host --sysctl net.ipv4.ip_forward=1", 'sysctl "net.ipv4.ip_forward" not allowed in host network namespace'),
    ("--group-add bogus", "unable to find group bogus: no matching entries in group file"),
    ("--user bogus", "unable to find user bogus: no matching entries in passwd file"),
    ("--gpus all", 'could not select device driver "" with capabilities: [[gpu]]'),
    ("--device nowhere.com/dev=all", "CDI device injection failed: unresolvable CDI devices nowhere.com/dev=all"),
    ("--device /dev/nope", "error gathering device information while adding custom device"),
    ("--storage-opt size=1G", "--storage-opt is not supported by storage driver"),
    ("--runtime bogus", "unknown or invalid runtime name: bogus"),
    ("--cpuset-cpus x", "Invalid value x for cpuset cpus"),
    ("--cpus 5000", "Range of CPUs is from 0.01 to"),
    ("--memory 1m", "Minimum memory limit allowed is 6MB"),
    ("--device-read-bps /dev/nope:1mb", "stat /dev/nope: no such file or directory"),
    ("--link nope:x", "could not get container for nope: No such container: nope"),
    ("--volumes-from nope", "No such container: nope"),
    ("--pid container:nope", "No such container: nope"),
    ("--log-driver bogus", "logger: no log driver named 'bogus' is registered"),
    ("--log-driver journald", "journald is not enabled on this host"),
    ("--log-driver syslog --log-opt syslog-address=tcp://127.0.0.1:1", "failed to initialize logging driver: dial tcp"),
    ("--cgroup-parent /a/../../b", "invalid cgroup parent '/a/../../b'"),
    ("--volume-driver bogus -v name:/x", 'error looking up volume plugin bogus: plugin "bogus" not found'),
    ("--stop-signal BOGUS", "invalid signal: BOGUS"),
    ("--annotation tare.restart-on-unhealthy=perhaps", "tare.restart-on-unhealthy is true or false"),
]


@pytest.mark.parametrize(("options", "command", "pattern"), WORKS, ids=[options for options, _, _ in WORKS])
def test_works(engine: Daemon, options: str, command: str, pattern: str) -> None:
    words = re.findall(r"'[^']*'|\S+", options)
    done = engine.docker("run", "--rm", *(word.strip("'") for word in words), "busybox", "sh", "-c", command)
    assert re.fullmatch(pattern, done.stdout.rstrip("\n")), (done.stdout, done.stderr)


@pytest.mark.parametrize(("options", "text"), REFUSED, ids=[options for options, _ in REFUSED])
def test_refused(engine: Daemon, options: str, text: str) -> None:
    if "journald" in options and os.path.exists("/run/systemd/journal/socket"):
        pytest.skip("this machine has a journal")
    done = engine.docker("run", "--rm", *options.split(), "busybox", "true", check=False)
    assert done.returncode in (125, 127)  # 127: the docker command sees "no such file or directory" in the text
    assert text in done.stderr


def test_the_mark_of_a_container_is_not_its_own_doing(engine: Daemon) -> None:
    engine.docker("run", "--name", "marked", "busybox", "true")
    assert engine.docker("diff", "marked").stdout == ""
    assert b".dockerenv" in engine.docker("export", "marked", text=False).stdout
    engine.docker("commit", "marked", "marked:1")
    assert b".dockerenv" not in engine.docker("save", "marked:1", text=False).stdout
    engine.docker("rmi", "marked:1")


def test_what_a_client_may_not_ask(engine: Daemon) -> None:
    """Fields that no flag of today's docker sends to a Linux daemon."""
    recorder = Recorder(str(engine.socket))
    for host, text in (({"CpuCount": 1}, "CPU count"), ({"CpuPercent": 5}, "CPU percent"), ({"IOMaximumIOps": 5}, "IO IOps")):
        assert text in recorder.call("", "POST", "/containers/create", {"Image": "busybox", "Cmd": ["true"], "HostConfig": host})["message"]
    alone = {"Image": "busybox", "Cmd": ["ls", "/sys/class/net"], "NetworkDisabled": True}
    recorder.call("", "POST", "/containers/create?name=alone", alone)
    assert "checkpoint xx does not exist" in recorder.call("", "POST", "/containers/alone/start?checkpoint=xx")["message"]
    assert engine.docker("start", "-a", "alone").stdout == "lo\n"


def test_a_joined_ipc_namespace_shares_memory(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "owner", "--ipc", "shareable", "busybox", "sh", "-c", "echo secret >/dev/shm/f; sleep 1000")
    done = engine.docker("run", "--rm", "--ipc", "container:owner", "busybox", "sh", "-c", "until cat /dev/shm/f; do sleep .05; done")
    assert done.stdout.endswith("secret\n")


def test_a_private_ipc_namespace_is_not_joined(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "owner", "busybox", "sleep", "1000")
    done = engine.docker("run", "--rm", "--ipc", "container:owner", "busybox", "true", check=False)
    assert "non-shareable IPC (hint: use IpcMode:shareable for the donor container)" in done.stderr


def test_a_joined_container_may_be_renamed(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "before", "busybox", "sleep", "1000")
    engine.docker("create", "--name", "guest", "--pid", "container:before", "--network", "container:before", "busybox", "ps", "-o", "args")
    engine.docker("rename", "before", "after")
    assert "sleep 1000" in engine.docker("start", "-a", "guest").stdout


def test_a_link_in_the_owners_dev_shm_leads_nowhere(engine: Daemon) -> None:
    """The path of a joined /dev/shm is resolved in its owner's root, not in ours."""
    command = "umount /dev/shm; rmdir /dev/shm; ln -s /etc /dev/shm; touch /etc/inside; touch /ready; sleep 1000"
    engine.docker("run", "-d", "--name", "owner", "--privileged", "--ipc", "shareable", "busybox", "sh", "-c", command)
    engine.docker("exec", "owner", "sh", "-c", "until test -e /ready; do sleep .05; done")
    done = engine.docker("run", "--rm", "--ipc", "container:owner", "busybox", "ls", "/dev/shm", check=False)
    assert "shadow" not in done.stdout and "hostname" not in done.stdout.split()[:0]
    assert done.returncode != 0 or "inside" in done.stdout


def test_a_filter_that_denies_what_a_start_uses_does_not_hinder_it(engine: Daemon, tmp_path: Path) -> None:
    """A profile for the program alone, and one from before openat2(2) and its like."""
    names = """sendto sendmsg recvmsg recvfrom socket socketpair connect accept accept4 poll openat2 close_range faccessat2 execveat
        memfd_create open_tree move_mount mount_setattr mount umount2 pivot_root setns unshare ioctl fstatfs
        statfs fchown pidfd_open getrandom"""
    rules = [{"names": names.split(), "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))
    for extra in ("", "--security-opt no-new-privileges", "--user 1000 --workdir /new"):
        done = engine.docker("run", "--rm", *extra.split(), "--security-opt", f"seccomp={profile}", "busybox", "echo", "started")
        assert done.stdout == "started\n"


def test_links(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "web", "--expose", "5432", "-e", "FOO=bar", "busybox", "sleep", "1000")
    script = "env | grep ^DB_ | sort; ping -c1 -W5 db >/dev/null && echo reached"
    done = engine.docker("run", "--rm", "--name", "me", "--link", "web:db", "busybox", "sh", "-c", script)
    address = engine.docker("inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "web").stdout.strip()
    assert done.stdout.splitlines() == [
        "DB_ENV_FOO=bar", "DB_NAME=/me/db", f"DB_PORT=tcp://{address}:5432", f"DB_PORT_5432_TCP=tcp://{address}:5432",
        f"DB_PORT_5432_TCP_ADDR={address}", "DB_PORT_5432_TCP_PORT=5432", "DB_PORT_5432_TCP_PROTO=tcp", "reached",
    ]  # fmt: skip
    engine.docker("run", "-d", "--name", "long", "--link", "web", "busybox", "sleep", "1000")
    assert engine.docker("inspect", "-f", "{{.HostConfig.Links}}", "long").stdout == "[/web:/long/web]\n"
    assert engine.docker("ps", "--no-trunc", "--filter", "name=^/web$", "--format", "{{.Names}}").stdout == "long/web,web\n"
    engine.docker("stop", "-t", "0", "web")
    engine.docker("run", "-d", "--name", "other", "busybox", "sleep", "1000")  # takes the address
    engine.docker("start", "web")
    now = engine.docker("inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "web").stdout.strip()
    assert f"{now}\tweb" in engine.docker("exec", "long", "cat", "/etc/hosts").stdout
    engine.docker("stop", "-t", "0", "web", "long")
    done = engine.docker("start", "long", check=False)
    assert "Cannot link to a non running container: /web AS /long/web" in done.stderr
    engine.docker("rm", "--link", "/long/web")
    assert engine.docker("inspect", "-f", "{{.HostConfig.Links}}", "long").stdout == "[]\n"
    assert "No such container: long/web" in engine.docker("rm", "--link", "/long/web", check=False).stderr
    engine.docker("start", "long")


@pytest.mark.parametrize("driver", ["local", "json-file"])
def test_rotated_logs_read_back(engine: Daemon, driver: str) -> None:
    limits = ["--log-opt", "max-size=30k", "--log-opt", "max-file=3", "--log-opt", "compress=true"]
    script = "i=0; while [ $i -lt 12000 ]; do echo line $i; i=$((i+1)); done; echo end >&2"
    engine.docker(
        "run",
        "--name",
        "talker",
        "--log-driver",
        driver,
        *limits,
        "busybox",
        "sh",
        "-c",
        script,
        stdout=subprocess.DEVNULL,
        capture_output=False,
    )
    lines = engine.docker("logs", "talker").stdout.splitlines()
    first = int(lines[0].split()[1])
    assert 0 < first < 11_900
    assert lines == [f"line {number}" for number in range(first, 12000)]
    assert engine.docker("logs", "--tail", "3", "talker").stdout.splitlines() == lines[-2:]
    assert engine.docker("logs", "--tail", "1", "talker").stderr == "end\n"
    stamped = engine.docker("logs", "-t", "--tail", "2", "talker").stdout
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z line 11999\n", stamped)
    names = {path.name.rpartition("log")[2] for path in (engine.root / "data" / "containers").glob("*/*log*")}
    assert ".1.gz" in names and ".1" not in names


def test_following_over_rotation(engine: Daemon) -> None:
    limits = ["--log-driver", "local", "--log-opt", "max-size=100k", "--log-opt", "max-file=3"]
    script = "i=0; while [ $i -lt 6000 ]; do echo line $i; i=$((i+1)); [ $((i % 300)) -eq 0 ] && sleep 0.01; done"
    engine.docker("run", "-d", "--name", "talker", *limits, "busybox", "sh", "-c", script)
    done = engine.docker("logs", "-f", "talker")
    assert done.stdout.splitlines() == [f"line {number}" for number in range(6000)]


def test_syslog_and_its_cache(engine: Daemon, tmp_path: Path) -> None:
    received: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log"))
        server.settimeout(20)
        reader = threading.Thread(target=lambda: received.extend(server.recv(4096) for _ in range(2)))
        reader.start()
        options = ["--log-driver", "syslog", "--log-opt", f"syslog-address=unixgram://{tmp_path}/log", "--log-opt", "tag={{.Name}}"]
        engine.docker("run", "--name", "talker", *options, "busybox", "sh", "-c", "echo hello; echo bad >&2")
        reader.join()
    assert re.fullmatch(rb"<30>\w{3} [ \d]\d \d\d:\d\d:\d\d talker\[\d+\]: hello\n", min(received, key=lambda each: b"bad" in each))
    assert any(each.startswith(b"<27>") and each.endswith(b"bad\n") for each in received)
    assert engine.docker("logs", "talker").stdout == "hello\n"


def test_a_log_that_cannot_be_read(engine: Daemon) -> None:
    engine.docker("run", "--name", "quiet", "--log-driver", "none", "busybox", "echo", "x")
    done = engine.docker("logs", "quiet", check=False)
    assert "configured logging driver does not support reading" in done.stderr


def test_details_of_lines(engine: Daemon) -> None:
    options = ["--log-opt", "labels=a", "--log-opt", "env=B", "--log-opt", "tag={{.Name}}"]
    engine.docker("run", "--name", "talker", "--label", "a=1", "-e", "B=2", *options, "busybox", "echo", "x")
    assert engine.docker("logs", "--details", "talker").stdout == "B=2,a=1,tag=talker x\n"


UPDATES = [
    ("--memory 64m", "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"),
    ("--memory 32m --memory-swap 16m", "Minimum memoryswap limit should be larger than memory limit"),
    ("--cpu-quota 20000", "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set"),
    ("--cpu-period 20000", "Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set"),
    ("--cpuset-cpus 5000", "Requested CPUs are not available"),
    ("--restart always:3", "maximum retry count can only be used with 'on-failure'"),
]


def test_update(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "worker", "--cpus", "0.5", "busybox", "sleep", "1000")
    for options, text in UPDATES:
        done = engine.docker("update", *options.split(), "worker", check=False)
        assert done.returncode == 1 and text in done.stderr, (options, done.stderr)
    engine.docker(
        "update", "--memory", "64m", "--memory-swap", "128m", "--cpus", "0.25", "--cpuset-cpus", "0", "--pids-limit", "77", "worker"
    )
    engine.docker("update", "--restart", "on-failure:2", "worker")
    shown = (
        "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.NanoCpus}} {{.HostConfig.CpusetCpus}} {{.HostConfig.PidsLimit}}"
    )
    assert engine.docker("inspect", "-f", shown, "worker").stdout == "67108864 134217728 250000000 0 77\n"
    assert engine.docker("exec", "worker", "grep", "Cpus_allowed_list", "/proc/1/status").stdout.split() == ["Cpus_allowed_list:", "0"]


def test_an_exec_does_not_make_its_directory(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "worker", "busybox", "sleep", "1000")
    done = engine.docker("exec", "-w", "/nope", "worker", "true", check=False)
    assert done.returncode in (126, 127) and 'chdir to cwd ("/nope")' in done.stdout + done.stderr
    assert engine.docker("exec", "-u", "nope", "worker", "true", check=False).returncode == 126


def test_killing_ends_restarting(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "again", "--restart", "always", "busybox", "false")
    _until(engine, "again", "{{.State.Status}} {{ge .RestartCount 3}}", "restarting true")
    engine.docker("kill", "again")
    _until(engine, "again", "{{.State.Status}}", "exited")
    count = engine.docker("inspect", "-f", "{{.RestartCount}}", "again").stdout
    assert engine.docker("start", "again", check=False).returncode == 0
    engine.docker("rm", "-f", "again")
    assert int(count) >= 3


def test_removal_by_force_beats_a_start(engine: Daemon) -> None:
    for number in range(int(os.environ.get("TARE_RACE_ROUNDS", "5"))):
        name = f"racer{number}"
        engine.docker("create", "--name", name, "busybox", "sleep", "1000")
        starter = threading.Thread(target=lambda name=name: engine.docker("start", name, check=False))
        starter.start()
        done = engine.docker("rm", "-f", name, check=False)
        starter.join()
        assert done.returncode == 0, done.stderr
        assert engine.docker("inspect", name, check=False).returncode == 1


def test_restart_keeps_what_is_removed_at_exit(engine: Daemon) -> None:
    engine.docker("run", "-d", "--rm", "--name", "fleeting", "busybox", "sleep", "1000")
    engine.docker("restart", "-t", "0", "fleeting")
    assert engine.docker("inspect", "-f", "{{.State.Status}} {{.HostConfig.AutoRemove}}", "fleeting").stdout == "running true\n"
    engine.docker("stop", "-t", "0", "fleeting")
    for _ in range(200):
        if engine.docker("inspect", "fleeting", check=False).returncode:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the container is still there")


def test_a_daemon_killed_in_a_restart_still_removes_at_exit(own_daemon: Daemon) -> None:
    own_daemon.docker("run", "-d", "--rm", "--name", "fleeting", "busybox", "sleep", "1000")
    command = [str(DOCKER), "-H", own_daemon.host, "restart", "-t", "100", "fleeting"]  # sleep, as process 1, does not hear SIGTERM
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        events = own_daemon.docker("events", "--since", "1h", "--until", _soon(), "--filter", "event=kill", "--format", "{{.Action}}")
        assert "kill" in events.stdout
        own_daemon.kill()
        client.wait(20)
    own_daemon.start()
    assert own_daemon.docker("inspect", "-f", "{{.HostConfig.AutoRemove}}", "fleeting").stdout == "true\n"
    own_daemon.docker("kill", "fleeting")
    for _ in range(200):
        if own_daemon.docker("inspect", "fleeting", check=False).returncode:
            return
        time.sleep(0.05)
    raise AssertionError("the container is still there")


def _soon() -> str:
    return str(int(time.time()) + 2)


def test_the_unhealthy_are_restarted(engine: Daemon) -> None:
    check = ["--health-cmd", "test ! -e /sick", "--health-interval", "50ms", "--health-retries", "2", "--stop-timeout", "0"]
    engine.docker("run", "-d", "--name", "patient", "--annotation", "tare.restart-on-unhealthy=true", *check, "busybox", "sleep", "1000")
    _until(engine, "patient", "{{.State.Health.Status}}", "healthy")
    before = engine.docker("inspect", "-f", "{{.State.StartedAt}}", "patient").stdout
    engine.docker("exec", "patient", "touch", "/sick")
    _until(engine, "patient", "{{ne .State.StartedAt `" + before.strip() + "`}}", "true")


def _until(engine: Daemon, name: str, template: str, wanted: str) -> None:
    for _ in range(300):
        found = engine.docker("inspect", "-f", template, name).stdout.strip()
        if found == wanted:
            return
        time.sleep(0.05)
    raise AssertionError(f"{name}: {found}, not {wanted}")
