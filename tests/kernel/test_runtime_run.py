"""Running containers through ``RuntimeDriver``: what they see, may do, and how they end."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tare.containers.task import Stdio
from tare.errors import Conflict, InvalidArgument, StartFailed

sys.path.insert(0, str(Path(__file__).parent))
from runtime_world import World, bind

pytestmark = pytest.mark.root
CREATE = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: error during container init: "
)


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$; sleep 9", 137), ("kill -TERM $$; sleep 9", 143)])
async def test_exit_codes(world: World, script: str, code: int) -> None:
    # Process 1 ignores signals without a handler, so a child of it gets them.
    exit, _ = await world.run(["sh", "-c", f"sh -c '{script}'; exit $?" if "kill" in script else script])
    assert exit.code == code
    assert exit.finished_at > 1_600_000_000_000_000_000


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["foo"], 127, 'exec: "foo": executable file not found in $PATH'),
        (["/foo"], 127, 'exec: "/foo": stat /foo: no such file or directory'),
        (["/etc/passwd"], 126, 'exec: "/etc/passwd": permission denied'),
        (["/etc"], 126, 'exec: "/etc": is a directory'),
        (["./x/y"], 127, 'exec: "./x/y": stat ./x/y: no such file or directory'),
    ],
)
async def test_start_failures(world: World, args: list[str], code: int, text: str) -> None:
    with pytest.raises(StartFailed) as caught:
        await world.start(world.launch(args))
    assert str(caught.value) == CREATE + text + ": unknown"
    assert caught.value.exit_code == code


async def test_exec_format_error_is_told_by_the_container(world: World, busybox: Path, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    exit, output = await world.run(["/script"], mounts=[bind(script, "/script")])
    assert (exit.code, output) == (255, "exec /script: no such file or directory\n")


async def test_own_world(world: World) -> None:
    output = await world.sh("echo $$ $(hostname) $(ls /sys/class/net) $HOME; ps | grep -c sleep; cat /proc/self/cgroup | head -1; ls -A /")
    lines = output.splitlines()
    assert lines[0] == "1 box lo /root"
    assert lines[2].endswith(":/")
    assert "bin" in lines


async def test_capabilities_and_descriptors(world: World) -> None:
    output = await world.sh("grep -E '^(Cap|NoNewPrivs|SigIgn|SigBlk)' /proc/self/status; ls -l /proc/$$/fd; cat /proc/self/oom_score_adj")
    values = dict(line.split(":\t") for line in output.splitlines() if ":\t" in line)
    assert int(values["CapInh"], 16) == int(values["CapAmb"], 16) == 0
    assert int(values["CapEff"], 16) == int(values["CapBnd"], 16) == int(values["CapPrm"], 16) == 0xA80425FB
    assert int(values["SigIgn"], 16) == int(values["SigBlk"], 16) == 0
    assert [line.split(" -> ")[0].split()[-1] for line in output.splitlines() if " -> " in line] == ["0", "1", "2"]


async def test_capabilities_of_a_user(world: World) -> None:
    output = await world.sh("id; grep -E '^Cap' /proc/self/status; touch /etc/x 2>&1; echo $HOME; echo ok >/dev/stdout", user="bob") + ""
    assert "uid=1000(bob) gid=1001(bobs) groups=10(wheel)" in output
    assert "CapEff:\t0000000000000000" in output
    assert "CapInh:\t0000000000000000" in output
    assert "Permission denied" in output
    assert output.endswith("/home/bob\nok\n")


@pytest.mark.parametrize(
    ("user", "groups", "expected"),
    [
        ("", (), "0 0 10"),
        ("bob", (), "1000 1001 10"),
        ("1000", (), "1000 1001 10"),
        ("4321", (), "4321 0 0"),
        ("bob:staff", (), "1000 50 50"),
        ("7:8", (), "7 8 8"),
        ("bob", ("staff", "77"), "1000 1001 10 50 77"),
    ],
)
async def test_users(world: World, user: str, groups: tuple[str, ...], expected: str) -> None:
    output = await world.sh("echo $(id -u) $(id -g) $(grep Groups /proc/self/status | cut -f2)", user=user, additional_groups=groups)
    uid, gid, *rest = output.split()
    wanted_uid, wanted_gid, *wanted = expected.split()
    assert (uid, gid) == (wanted_uid, wanted_gid)
    assert set(rest) | {gid} == set(wanted) | {wanted_gid}


@pytest.mark.parametrize(
    ("user", "groups", "text"),
    [
        ("eve", (), "unable to find user eve: no matching entries in passwd file"),
        ("bob:nope", (), "unable to find group nope: no matching entries in group file"),
        ("bob", ("nope",), "unable to find group nope: no matching entries in group file"),
        ("2147483648", (), "uids and gids must be in range 0-2147483647"),
        ("-1", (), "uids and gids must be in range 0-2147483647"),
    ],
)
async def test_unknown_users(world: World, user: str, groups: tuple[str, ...], text: str) -> None:
    with pytest.raises(StartFailed) as caught:
        await world.start(world.launch(["true"], user=user, additional_groups=groups))
    assert str(caught.value) == text


async def test_masked_and_read_only_paths(world: World) -> None:
    output = await world.sh(
        "wc -c </proc/timer_list; wc -c </proc/keys; ls /sys/firmware | wc -l; "
        "echo 1 >/proc/sys/kernel/pid_max; echo 1 >/proc/irq/default_smp_affinity; "
        "touch /sys/x; touch /sys/fs/cgroup/x; cd /sys/fs/cgroup; [ -d memory ] && cd memory; "
        "for f in memory.max memory.limit_in_bytes; do [ -e $f ] && echo 0 >$f; done; true",
    )
    assert output.splitlines()[:3] == ["0", "0", "0"]
    assert output.count("Read-only file system") == 5


async def test_read_only_root(world: World, tmp_path: Path) -> None:
    output = await world.sh("touch /x; touch /dev/x && echo dev; touch /dev/shm/x && echo shm", readonly=True)
    assert output.splitlines() == ["touch: /x: Read-only file system", "dev", "shm"]


async def test_binds(world: World, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("hello\n")
    mounts = [
        bind(source, "/made/by/us"),
        bind(source, "/readonly", "ro"),
        bind(source / "file", "/etc/hosts", "rro", "rprivate"),
    ]
    script = "cat /made/by/us/file /etc/hosts; echo x >/made/by/us/new; touch /readonly/y; echo z >/etc/hosts; true"
    output = await world.sh(script, mounts=mounts)
    assert output.startswith("hello\nhello\n")
    assert output.count("Read-only file system") == 2
    assert sorted(path.name for path in source.iterdir()) == ["file", "new"]


async def test_bind_of_a_directory_on_a_file(world: World, tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="Are you trying to mount a directory onto a file"):
        await world.start(world.launch(["true"], mounts=[bind(tmp_path, "/etc/passwd")]))


async def test_many_layers(world: World, tmp_path: Path, busybox: Path) -> None:
    from dataclasses import replace

    from tare.containers.task import OverlayRoot

    layers = []
    for number in range(100):
        layer = tmp_path / f"layers-with-a-long-name-{number:03}" / ("d" * 200 if number % 2 else "d")
        (layer / "many").mkdir(parents=True)
        (layer / "many" / str(number)).touch()
        layers.append(layer)
    launch = world.launch(["sh", "-c", "ls /many | wc -l"])
    assert isinstance(launch.rootfs, OverlayRoot)
    task = await world.start(replace(launch, rootfs=replace(launch.rootfs, lower=(*layers, busybox))))
    assert (await task.wait()).code == 0
    assert world.output(launch) == "100\n"


async def test_working_directory_is_made(world: World) -> None:
    assert await world.sh("pwd; stat -c '%u %a' .", process={"cwd": "/new/place"}, user="bob") == "/new/place\n0 755\n"


async def test_sysctls_limits_and_warnings(world: World) -> None:
    limits = [{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    fields = {"linux": {"sysctl": {"net.ipv4.ip_forward": "1", "kernel.msgmax": "65000"}}, "process": {"rlimits": limits}}
    output = await world.sh("ulimit -n; ulimit -Hn; cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax", **fields)
    assert output.split() == ["99", "200", "1", "65000"]


@pytest.mark.parametrize(
    "sysctl", [{"kernel.panic": "1"}, {"net/../kernel.panic": "1"}, {"net.ipv4.ip_forward": "1\n2"}, {"vm.swappiness": "1"}]
)
async def test_bad_sysctls(world: World, sysctl: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="sysctl"):
        await world.start(world.launch(["true"], linux={"sysctl": sysctl}))


async def test_memory_limit_kills(world: World) -> None:
    resources = {"memory": {"limit": 32 << 20, "swap": 32 << 20}}
    exit, _ = await world.run(["sh", "-c", "x=a; while true; do x=$x$x; done"], linux={"resources": resources})
    assert exit.code == 137
    assert exit.oom_killed


async def test_pids_limit(world: World) -> None:
    _, output = await world.run(["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done"], linux={"resources": {"pids": {"limit": 4}}})
    assert "can't fork" in output


async def test_hostile_links_in_the_root(world: World, tmp_path: Path, busybox: Path) -> None:
    """/dev, /proc and /sys as links: refused; device and console names as links: never followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("dev", "proc", "sys"):
        layer = tmp_path / f"hostile-{name}"
        layer.mkdir()
        (layer / name).symlink_to(outside)
        launch = world.launch(["true"])
        with pytest.raises(StartFailed, match="ordinary directory"):
            await world.driver.start(_with_layer(launch, layer))
    assert list(outside.iterdir()) == []


async def test_hostile_mount_targets(world: World, tmp_path: Path) -> None:
    """A link in the image is resolved inside the image, also a dangling one with dots, and never makes anything on the host."""
    layer = tmp_path / "hostile"
    layer.mkdir()
    (layer / "data").symlink_to("../../../../../../made-by-tare-test/x")
    (layer / "inproc").symlink_to("/proc/self")
    source = tmp_path / "source"
    source.mkdir()
    launch = _with_layer(world.launch(["ls", "-d", "/made-by-tare-test/x"], mounts=[bind(source, "/data")]), layer)
    task = await world.start(launch)
    assert (await task.wait()).code == 0
    assert not os.path.exists("/made-by-tare-test")
    with pytest.raises(StartFailed, match="inside /proc"):
        await world.driver.start(_with_layer(world.launch(["true"], mounts=[bind(source, "/inproc/attr")]), layer))


def _with_layer(launch, layer):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(launch, rootfs=replace(launch.rootfs, lower=(layer, *launch.rootfs.lower)))


async def test_hostile_account_files(world: World, tmp_path: Path) -> None:
    layer = tmp_path / "hostile"
    (layer / "etc").mkdir(parents=True)
    os.mkfifo(layer / "etc/passwd")
    (layer / "etc/group").symlink_to("/etc/passwd")
    with pytest.raises(StartFailed, match="unable to find user bob"):
        await asyncio.wait_for(world.driver.start(_with_layer(world.launch(["true"], user="bob"), layer)), 10)
    task = await world.start(_with_layer(world.launch(["true"], user="5"), layer))
    assert (await task.wait()).code == 0


async def test_after_the_exit(world: World) -> None:
    task = await world.start(world.launch(["true"]))
    await task.wait()
    with pytest.raises(Conflict):
        await task.kill(15)
    with pytest.raises(Conflict):
        await task.pause()
    await task.release()
    await task.release()


async def test_namespace_joined_by_path(world: World) -> None:
    first = await world.start(world.launch(["sleep", "100"]))
    namespaces = [{"type": kind} for kind in ("mount", "uts", "pid", "cgroup")]
    namespaces += [{"type": "network", "path": f"/proc/{first.pid}/ns/net"}, {"type": "ipc", "path": f"/proc/{first.pid}/ns/ipc"}]
    output = await world.sh("for i in net ipc; do readlink /proc/self/ns/$i; done", linux={"namespaces": namespaces})
    assert output.split() == [os.readlink(f"/proc/{first.pid}/ns/net"), os.readlink(f"/proc/{first.pid}/ns/ipc")]


async def test_host_namespaces(world: World) -> None:
    namespaces = [{"type": "mount"}]
    config = {"linux": {"namespaces": namespaces}, "hostname": ""}
    output = await world.sh("for i in net uts; do readlink /proc/self/ns/$i; done; sleep 100 & echo $$", **config)
    assert output.split()[:2] == [os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/uts")]
    assert int(output.split()[2]) > 1


async def test_docker_init(world: World) -> None:
    exit, output = await world.run(["sh", "-c", "tr '\\0' ' ' </proc/1/cmdline; exit 4"], init=Path("/bin/busybox"))
    assert exit.code == 127 or "docker-init" in output  # busybox is no init; that it was called by that name is the point


async def test_interpreter_cannot_be_written(world: World) -> None:
    """CVE-2019-5736, with all the rights one can have: keepers and inits run from a read-only clone of the interpreter."""
    task = await world.start(world.launch(["sleep", "100"]))
    for pid in (world.driver.launcher_pid, int(Path(f"/proc/{task.pid}/status").read_text().split("PPid:\t")[1].split()[0])):
        with pytest.raises(OSError, match="Read-only file system"):
            os.open(f"/proc/{pid}/exe", os.O_WRONLY | os.O_TRUNC)
        mapped = {line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "libpython" in line}
        assert len(mapped) <= 1


async def test_kill_and_liveness(world: World) -> None:
    task = await world.start(world.launch(["sleep", "100"]))
    await task.kill(0)
    await task.kill(9)
    assert (await task.wait()).code == 137


async def test_pause_and_update(world: World) -> None:
    task = await world.start(world.launch(["sh", "-c", "while true; do date +%N; sleep 0.01; done"], log={}))
    await task.pause()
    size = os.path.getsize(world.base / task.id / "log")
    await asyncio.sleep(0.1)
    assert os.path.getsize(world.base / task.id / "log") - size < 500
    await task.resume()
    await task.update({"memory": {"limit": 64 << 20}, "pids": {"limit": 50}})
    await task.kill(9)
    assert (await task.wait()).code == 137


async def test_terminal(world: World) -> None:
    output = await world.sh("tty; stty size; test -c /dev/console && echo console", stdio=Stdio(tty=True, console_size=(33, 101)))
    assert output.replace("\r", "").splitlines()[:3] == ["/dev/pts/0", "33 101", "console"]
