"""``tare-runtime`` on real containers: its verbs, side by side with runc, and as the runtime of podman and dockerd."""

from __future__ import annotations

import errno
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from runtime_world import alive, make_busybox_root

from tare.runtime.cli import describe

pytestmark = pytest.mark.root

RUNTIME = Path(sys.executable).with_name("tare-runtime")
if not os.path.exists("/bin/busybox") or not RUNTIME.exists():
    pytest.skip("needs busybox-static and the installed console script", allow_module_level=True)

Configure = Callable[[dict[str, Any]], None]


class Host:
    """A bundle, a state directory, and the containers of one test."""

    def __init__(self, base: Path, root: Path) -> None:
        self.base, self.root, self.state = base, root, base / "state"
        self.prefix = f"tare-cli-{uuid.uuid4().hex[:8]}"
        self.number = 0

    def bundle(self, args: list[str], configure: Configure | None = None) -> Path:
        self.number += 1
        path = self.base / f"bundle{self.number}"
        path.mkdir()
        config = describe.example()
        config["process"] |= {"terminal": False, "args": args}
        config["root"]["path"] = str(self.root)
        config["linux"]["cgroupsPath"] = f"/{self.prefix}/{self.number}"
        if configure is not None:
            configure(config)
        (path / "config.json").write_text(json.dumps(config))
        return path

    def command(self, *words: str | Path, runtime: str = str(RUNTIME)) -> list[str]:
        return [runtime, "--root", str(self.base / Path(runtime).name), *map(str, words)]

    def call(self, *words: str | Path, check: bool = True, runtime: str = str(RUNTIME), **fields: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(*words, runtime=runtime), capture_output=True, text=True, timeout=30, **fields)
        assert not check or done.returncode == 0, done
        return done

    def run(self, args: list[str], configure: Configure | None = None, **fields: Any) -> subprocess.CompletedProcess[str]:
        return self.call("run", "-b", self.bundle(args, configure), self.name(), check=False, **fields)

    def sh(self, script: str, configure: Configure | None = None, **fields: Any) -> str:
        done = self.run(["sh", "-c", script], configure, **fields)
        assert done.returncode == 0, done
        return done.stdout

    def name(self) -> str:
        return f"{self.prefix}-{self.number}"

    def create(self, args: list[str], configure: Configure | None = None, *words: str | Path, **fields: Any) -> str:
        """A created container. Its output goes nowhere: it would hold our pipes open."""
        bundle = self.bundle(args, configure)
        log = self.base / "log"
        command = self.command("--log", log, "create", "-b", bundle, *words, self.name())
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30, **fields)
        assert done.returncode == 0, log.read_text()
        return self.name()

    def status(self, name: str) -> str:
        return str(json.loads(self.call("state", name).stdout)["status"])

    def until(self, name: str, status: str) -> None:
        deadline = time.monotonic() + 10
        while self.status(name) != status:
            assert time.monotonic() < deadline, self.status(name)
            time.sleep(0.02)

    def close(self) -> None:
        for entry in json.loads(self.call("list", "-f", "json").stdout):
            self.call("delete", "--force", entry["id"])
        left = [str(path) for path in (self.base / RUNTIME.name).glob("*")]
        for hierarchy in Path("/sys/fs/cgroup").iterdir():
            parent = hierarchy / self.prefix
            if parent.is_dir():
                groups = [str(path) for path in parent.iterdir() if path.is_dir()]
                left += groups
                if not groups:
                    parent.rmdir()
        left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.base) in line]
        assert not left, left


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("busybox") / "root"
    make_busybox_root(root)
    return root


@pytest.fixture
def host(tmp_path: Path, busybox: Path) -> Iterator[Host]:
    world = Host(tmp_path, busybox)
    yield world
    world.close()


def test_run_gives_output_input_and_exit_status(host: Host) -> None:
    done = host.run(["sh", "-c", "cat; echo wrong >&2; exit 7"], input="in")
    assert (done.stdout, done.stderr, done.returncode) == ("in", "wrong\n", 7)


def test_a_signal_is_128_and_more(host: Host) -> None:
    assert host.run(["sh", "-c", "kill -9 $$; sleep 9"], lambda config: config["linux"]["namespaces"].pop(0)).returncode == 137


def test_life_of_a_container(host: Host) -> None:
    pid_file = host.base / "pid"
    name = host.create(["sleep", "60"], None, "--pid-file", pid_file)
    pid = int(pid_file.read_text())
    document = json.loads(host.call("state", name).stdout)
    assert document == {
        "ociVersion": "1.0.2", "id": name, "status": "created", "pid": pid, "bundle": str(host.base / "bundle1"), "annotations": {},
    }  # fmt: skip
    assert "already exists" in host.call("create", "-b", host.base / "bundle1", name, check=False).stderr
    host.call("start", name)
    assert host.status(name) == "running"
    assert "already running" in host.call("start", name, check=False).stderr
    assert json.loads(host.call("ps", "-f", "json", name).stdout) == [pid]
    host.call("pause", name)
    assert host.status(name) == "paused"
    assert "paused" in host.call("exec", name, "true", check=False).stderr
    host.call("resume", name)
    assert host.call("exec", name, "sh", "-c", "echo $A; exit 5", check=False).returncode == 5
    options = ("-e", "A=b", "--cwd", "/tmp", "-u", "1000:1001")
    assert host.call("exec", *options, name, "sh", "-c", "echo $A $(pwd) $(id -u):$(id -g)").stdout == "b /tmp 1000:1001\n"
    assert json.loads(host.call("events", "--stats", name).stdout)["data"]["pids"]["current"] >= 1
    assert "not stopped" in host.call("delete", name, check=False).stderr
    host.call("kill", name, "KILL")
    host.until(name, "stopped")
    assert "container not running" in host.call("kill", name, check=False).stderr
    host.call("delete", name)
    assert "does not exist" in host.call("state", name, check=False).stderr
    assert host.call("delete", "--force", name).returncode == 0


def test_a_created_container_can_be_deleted(host: Host) -> None:
    name = host.create(["sleep", "60"])
    pid = json.loads(host.call("state", name).stdout)["pid"]
    host.call("delete", name)
    assert not alive(pid)


def test_a_program_that_is_not_there(host: Host) -> None:
    done = host.run(["nosuch"])
    assert done.returncode == 1
    assert 'exec: "nosuch": executable file not found in $PATH' in done.stderr
    assert not list((host.base / RUNTIME.name).glob("*"))


def test_the_interpreter_cannot_be_written(host: Host) -> None:
    """CVE-2019-5736: what a container finds behind /proc/PID/exe of a process on its way in lies on a read-only mount."""
    name = host.create(["sleep", "60"])
    pid = json.loads(host.call("state", name).stdout)["pid"]
    with pytest.raises(OSError) as caught:
        os.open(f"/proc/{pid}/exe", os.O_WRONLY)
    assert caught.value.errno in (errno.EROFS, errno.ETXTBSY)
    target = os.open(f"/proc/{pid}/exe", os.O_PATH)
    assert os.fstatvfs(target).f_flag & os.ST_RDONLY
    os.close(target)


def test_a_filter_under_which_nobody_could_start_it_is_refused(host: Host) -> None:
    def filtered(config: dict[str, Any]) -> None:
        rule = {"names": ["accept", "accept4", "ioctl", "openat2"], "action": "SCMP_ACT_ERRNO"}
        config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
        config["process"]["noNewPrivileges"] = False

    assert host.run(["echo", "runs"], filtered).stdout == "runs\n"
    done = host.call("create", "-b", host.bundle(["true"], filtered), "refused", check=False)
    assert done.returncode == 1
    assert "seccomp filter denies accept4(2)" in done.stderr and "noNewPrivileges" in done.stderr


def test_only_named_descriptors_come_along(host: Host, tmp_path: Path) -> None:
    bundle = host.bundle(["sh", "-c", "ls /proc/self/fd | wc -l; [ ! -e /proc/self/fd/3 ] || echo kept >&3"])
    opened = ["sh", "-c", f'exec 3>>"{tmp_path}/kept"; exec "$@"', "sh"]
    plain = subprocess.run([*opened, *host.command("run", "-b", bundle, host.name())], capture_output=True, text=True, check=True)
    assert (tmp_path / "kept").read_text() == ""
    command = [*opened, *host.command("run", "--preserve-fds", "1", "-b", bundle, host.name())]
    kept = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(kept.stdout) == int(plain.stdout) + 1
    assert (tmp_path / "kept").read_text() == "kept\n"


def test_limits_of_the_cgroup(host: Host) -> None:
    limits = {"memory": {"limit": 64 << 20}, "pids": {"limit": 30}}
    name = host.create(["sleep", "60"], lambda config: config["linux"]["resources"].update(limits))
    host.call("start", name)
    version1 = Path(f"/sys/fs/cgroup/memory/{host.prefix}/1/memory.limit_in_bytes")
    limit = version1 if version1.exists() else Path(f"/sys/fs/cgroup/{host.prefix}/1/memory.max")
    assert int(limit.read_text()) == 64 << 20
    host.call("update", "--memory", "32m", "--memory-swap", "64m", name)
    assert int(limit.read_text()) == 32 << 20
    host.call("update", "--resources", "-", name, input=json.dumps({"memory": {"limit": 48 << 20}}))
    assert int(limit.read_text()) == 48 << 20
    assert host.call("exec", name, "sh", "-c", "echo > /dev/null && head -c 3 /dev/zero | wc -c").stdout == "3\n"


def test_hooks(host: Host) -> None:
    out = host.base / "hooks"
    script = host.base / "hook"
    script.write_text(f'#!/bin/sh\n/bin/busybox echo "$1 $(/bin/busybox cat)" >> {out}\n')
    script.chmod(0o755)

    def hook(name: str) -> list[dict[str, Any]]:
        return [{"path": str(script), "args": ["hook", name], "env": ["A=b"], "timeout": 10}]

    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    inside = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/state"]}]}

    def configure(config: dict[str, Any]) -> None:
        config["hooks"] = {kind: hook(kind) for kind in kinds} | inside
        config["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]})

    name = host.create(["sleep", "60"], configure)
    pid = json.loads(host.call("state", name).stdout)["pid"]
    host.call("start", name)
    assert json.loads(host.call("exec", name, "cat", "/tmp/state").stdout)["status"] == "created"
    host.call("delete", "--force", name)
    heard = [(line.split(" ", 1)[0], json.loads(line.split(" ", 1)[1])) for line in out.read_text().splitlines()]
    assert [kind for kind, _ in heard] == list(kinds)
    assert [document["status"] for _, document in heard] == ["creating", "creating", "creating", "running", "stopped"]
    assert [document["pid"] for _, document in heard] == [pid, pid, pid, pid, 0]
    assert {document["id"] for _, document in heard} == {name}


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer", "startContainer"])
def test_a_failing_hook_prevents_the_container(host: Host, kind: str) -> None:
    path = "/bin/false" if kind == "startContainer" else shutil.which("false")
    done = host.run(["echo", "ran"], lambda config: config.update(hooks={kind: [{"path": path}]}))
    assert done.returncode == 1 and done.stdout == ""
    assert f"error running {kind} hook {path}: exit status 1" in done.stderr
    assert not list((host.base / RUNTIME.name).glob("*"))


def test_a_hook_that_hangs(host: Host) -> None:
    hook = {"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1}
    assert "timed out after 1 s" in host.run(["true"], lambda config: config.update(hooks={"createRuntime": [hook]})).stderr


def test_namespaces_by_path(host: Host) -> None:
    first = host.create(["sleep", "60"])
    pid = json.loads(host.call("state", first).stdout)["pid"]
    host.call("start", first)

    def join(config: dict[str, Any]) -> None:
        for item in config["linux"]["namespaces"]:
            name = {"network": "net", "pid": "pid", "ipc": "ipc", "uts": "uts"}.get(item["type"])
            if name:
                item["path"] = f"/proc/{pid}/ns/{name}"
        del config["hostname"]

    out = host.sh("readlink /proc/self/ns/net; hostname; ps -o args | grep -cx 'sleep 60'", join).split()
    assert out == [os.readlink(f"/proc/{pid}/ns/net"), "tare", "1"]


def receive_master(listener: socket.socket) -> int:
    connection, _ = listener.accept()
    with connection:
        name, fds, _, _ = socket.recv_fds(connection, 4096, 1)
    assert name == b"/dev/ptmx"
    return fds[0]


def read_terminal(master: int) -> str:
    data = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            return data.decode()
        data += chunk


def test_the_terminal_goes_to_the_console_socket(host: Host) -> None:
    path = host.base / "console"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def terminal(config: dict[str, Any]) -> None:
            config["process"] |= {"terminal": True, "consoleSize": {"height": 11, "width": 33}}

        name = host.create(["sh", "-c", "tty; stty size; read x; echo got $x; sleep 60"], terminal, "--console-socket", path)
        master = receive_master(listener)
        host.call("start", name)
        os.write(master, b"word\n")
        seen = b""
        while b"got word" not in seen:
            seen += os.read(master, 4096)
        assert b"/dev/pts/0" in seen and b"11 33" in seen
        command = host.command("exec", "--detach", "--tty", "--console-socket", path, name, "tty")
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=30)
        second = receive_master(listener)
        assert "/dev/pts/1" in read_terminal(second)
        for fd in (master, second):
            os.close(fd)


def test_run_in_a_terminal(host: Host) -> None:
    bundle = host.bundle(["sh", "-c", "tty; read x; echo got $x; exit 3"], lambda config: config["process"].update(terminal=True))
    pid, master = pty.fork()
    if pid == 0:
        command = host.command("run", "-b", bundle, host.name())
        os.execv(command[0], command)
    seen = b""
    while b"/dev/pts/0" not in seen:
        seen += os.read(master, 4096)
    os.write(master, b"word\r")
    seen += read_terminal(master).encode()
    os.close(master)
    assert b"got word" in seen
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_a_terminal_needs_somebody(host: Host) -> None:
    done = host.call("create", "-b", host.bundle(["true"], lambda config: config["process"].update(terminal=True)), "x", check=False)
    assert "console socket" in done.stderr


PROBE = """
id; hostname; pwd; env | sort; umask; ulimit -n
grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|SigBlk)' /proc/self/status
cut -d' ' -f5,6,9- /proc/self/mountinfo | sed 's/ro,rel/ro,rel/' | cut -d' ' -f1 | grep -v cgroup/ | sort
ls -l /dev | awk '{print $1,$3,$4,$5,$6,$NF}' | grep -v -e total -e core | sort
for f in /proc/kcore /sys/firmware /proc/timer_list; do ls -A $f 2>/dev/null | wc -l; done
touch /x 2>&1; echo 1 2>&1 > /proc/sys/kernel/domainname; ip link | grep -c UP
"""


@pytest.mark.peer
def test_the_same_bundle_looks_the_same_from_inside_as_with_runc(host: Host) -> None:
    runc = shutil.which("runc")
    if runc is None:
        pytest.skip("needs runc: apt-get install runc")

    def configure(config: dict[str, Any]) -> None:
        config["process"] |= {"user": {"uid": 1000, "gid": 1001, "additionalGids": [10, 50]}, "cwd": "/tmp"}
        config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}],
        }  # fmt: skip

    ours = host.sh(PROBE, configure)
    theirs = host.sh(PROBE, configure, runtime=runc)
    assert ours == theirs


@pytest.mark.peer
def test_the_configuration_that_runc_writes(host: Host) -> None:
    runc = shutil.which("runc")
    if runc is None:
        pytest.skip("needs runc: apt-get install runc")
    path = host.base / "written"
    path.mkdir()
    subprocess.run([runc, "spec"], cwd=path, check=True)
    config = json.loads((path / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["echo", "done"]}
    config["root"]["path"] = str(host.root)
    config["linux"]["cgroupsPath"] = f"/{host.prefix}/written"
    (path / "config.json").write_text(json.dumps(config))
    assert host.call("run", "-b", path, host.name()).stdout == "done\n"


@pytest.fixture
def podman(host: Host) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    if shutil.which("podman") is None:
        pytest.skip("needs podman: apt-get install podman")
    store = Path("/tmp") / host.prefix  # podman limits the length of this path
    base = ["podman", "--root", f"{store}/root", "--runroot", f"{store}/run", "--storage-driver", "vfs"]
    base += ["--cgroup-manager", "cgroupfs", "--runtime", str(RUNTIME)]

    def call(*words: str, check: bool = True, **fields: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*base, *words], capture_output=True, text=True, timeout=60, **fields)
        assert not check or done.returncode == 0, done
        return done

    archive = host.base / "root.tar"
    subprocess.run(["tar", "-C", host.root, "-cf", archive, "."], check=True)
    try:
        call("import", str(archive), "bb")
        yield call
    finally:
        call("rm", "-af", "-t", "0", check=False)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if f"{store}/" in line:
                subprocess.run(["umount", "-l", line.split()[4]], check=False)
        shutil.rmtree(store, ignore_errors=True)


@pytest.mark.peer
def test_podman(host: Host, podman: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    run = ("run", "--rm", "--network=none")
    assert podman(*run, "-i", "bb", "sh", "-c", "cat; exit 3", input="in", check=False).stdout == "in"
    assert podman(*run, "bb", "sh", "-c", "exit 3", check=False).returncode == 3
    missing = podman(*run, "bb", "nosuch", check=False)
    assert missing.returncode == 127 and "executable file not found" in missing.stderr
    assert podman(*run, "-t", "bb", "tty").stdout.strip() == "/dev/pts/0"
    options = ("--read-only", "-u", "1000", "-v", f"{host.root}:/mnt:ro")
    assert podman(*run, *options, "bb", "sh", "-c", "id -u; ls -d /mnt/bin").stdout.split() == ["1000", "/mnt/bin"]
    name = f"{host.prefix}-podman"
    podman("run", "-d", "--name", name, "--network=none", "--memory", "64m", "bb", "sleep", "60")
    assert podman("exec", name, "sh", "-c", "echo in; exit 5", check=False).returncode == 5
    assert podman("exec", "-t", name, "tty").stdout.strip() == "/dev/pts/0"
    podman("pause", name)
    podman("unpause", name)
    podman("kill", name)
    assert podman("wait", name).stdout.strip() == "137"
    podman("rm", name)


@pytest.fixture
def dockerd(host: Host) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    if shutil.which("dockerd") is None or shutil.which("docker") is None:
        pytest.skip("needs dockerd and docker: apt-get install docker.io")
    base = Path("/tmp") / host.prefix
    base.mkdir()
    address = f"unix://{base}/sock"
    flags = ["--data-root", f"{base}/data", "--exec-root", f"{base}/exec", "-H", address, "-p", f"{base}/pid", "--storage-driver", "vfs"]
    flags += ["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
    with (base / "log").open("wb") as log:
        daemon = subprocess.Popen(["dockerd", *flags, "--add-runtime", f"tare={RUNTIME}"], stdout=log, stderr=log)

    def call(*words: str, check: bool = True, **fields: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(["docker", "-H", address, *words], capture_output=True, text=True, timeout=60, **fields)
        assert not check or done.returncode == 0, done
        return done

    try:
        deadline = time.monotonic() + 30
        while call("version", check=False).returncode:
            assert daemon.poll() is None and time.monotonic() < deadline, (base / "log").read_text()[-2000:]
            time.sleep(0.1)
        archive = base / "root.tar"
        subprocess.run(["tar", "-C", host.root, "-cf", archive, "."], check=True)
        call("import", str(archive), "bb")
        yield call
        for name in call("ps", "-aq").stdout.split():
            call("rm", "-f", name, check=False)
    finally:
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if str(base) in line:
                subprocess.run(["umount", "-l", line.split()[4]], check=False)
        shutil.rmtree(base, ignore_errors=True)


@pytest.mark.peer
def test_dockerd(host: Host, dockerd: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    run = ("run", "--rm", "--runtime", "tare", "--network", "none")
    assert dockerd(*run, "-i", "bb", "sh", "-c", "cat", input="in").stdout == "in"
    assert dockerd(*run, "bb", "sh", "-c", "exit 3", check=False).returncode == 3
    missing = dockerd(*run, "bb", "nosuch", check=False)
    assert missing.returncode == 127 and "executable file not found" in missing.stderr
    assert dockerd(*run, "-t", "bb", "tty").stdout.strip() == "/dev/pts/0"
    assert "2" in dockerd(*run, "bb", "grep", "Seccomp:", "/proc/self/status").stdout
    assert dockerd(*run, "--privileged", "bb", "true").returncode == 0
    name = host.prefix
    dockerd("run", "-d", "--name", name, "--runtime", "tare", "--network", "none", "-m", "64m", "bb", "sleep", "60")
    assert dockerd("exec", "-i", name, "sh", "-c", "cat; exit 5", input="x", check=False).returncode == 5
    dockerd("pause", name)
    assert "Paused" in dockerd("ps", "--format", "{{.Status}}").stdout
    dockerd("unpause", name)
    dockerd("update", "--memory", "128m", "--memory-swap", "256m", name)
    assert "sleep 60" in dockerd("top", name).stdout
    dockerd("stop", "-t", "0", name)
    dockerd("start", name)
    dockerd("rm", "-f", name)


@pytest.mark.peer
def test_dockerd_sets_up_a_network_through_its_hook(host: Host, dockerd: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    third = int(host.prefix[-2:], 16)
    dockerd("network", "create", "--subnet", f"10.213.{third}.0/24", "net")
    try:
        out = dockerd("run", "--rm", "--runtime", "tare", "--network", "net", "bb", "ip", "-4", "addr").stdout
        assert f"10.213.{third}.2" in out
    finally:
        dockerd("network", "rm", "net")
