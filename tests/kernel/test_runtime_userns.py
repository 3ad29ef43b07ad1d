"""Containers with a user namespace: through the keeper as through ``tare-runtime``, whose output is compared with runc's."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tare.containers.driver import RuntimeTask
from tare.containers.task import ExecLaunch, Launch, Stdio

sys.path.insert(0, str(Path(__file__).parent))
from runtime_world import World, alive, make_busybox_root, pair, process, read_all

pytestmark = pytest.mark.root

FIRST, SIZE = 200000, 65536
MAPS = [{"containerID": 0, "hostID": FIRST, "size": SIZE}]
LINUX: dict[str, Any] = {
    "namespaces": [{"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc", "cgroup", "user")],
    "uidMappings": MAPS,
    "gidMappings": MAPS,
}


@pytest.fixture(scope="module")
def busybox() -> Iterator[Path]:
    with open_directory() as base:
        make_busybox_root(base / "root")
        subprocess.run(["chown", "-R", f"{FIRST}:{FIRST}", base / "root"], check=True)
        yield base / "root"


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that others reach: the container's root is nobody on the host and has to get at its files."""
    with tempfile.TemporaryDirectory(prefix="tare-test-") as name:
        os.chmod(name, 0o711)
        yield Path(name)


@pytest.fixture
async def world(busybox: Path) -> AsyncIterator[World]:
    with open_directory() as base:
        world = World(base, busybox)
        try:
            yield world
        finally:
            await world.close()


def launch(world: World, args: list[str], **fields: Any) -> Launch:
    made = world.launch(args, linux=dict(LINUX), **fields)
    for name in ("upper", "work"):
        os.chown(world.base / made.id / name, FIRST, FIRST)
    return made


async def rest(task: RuntimeTask, world: World) -> None:
    """Wait until the keeper rests: the init is then the holder's only child."""
    keeper = json.loads((world.base / task.id / "run/task.json").read_text())["keeper"]
    for _ in range(400):
        if Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split() == [str(task.pid)]:
            return
        await asyncio.sleep(0.05)
    raise TimeoutError("the keeper does not rest")


async def test_root_inside_is_nobody_outside(world: World) -> None:
    script = "id -u; cat /proc/self/uid_map; echo $$; touch /made; stat -c %u /made; echo x >/dev/null && echo ok"
    made = launch(world, ["sh", "-c", script])
    task = await world.start(made)
    assert (await asyncio.wait_for(task.wait(), 20)).code == 0
    output = world.output(made).split()
    assert output[:6] == ["0", "0", str(FIRST), str(SIZE), "1", "0"]
    assert output[-1] == "ok"
    assert (world.base / made.id / "upper/made").stat().st_uid == FIRST


async def test_life_with_execs_and_a_rest(world: World) -> None:
    task = await world.start(launch(world, ["sleep", "100"], user="bob"))
    assert Path(f"/proc/{task.pid}").stat().st_uid == FIRST + 1000
    assert "NSpid:" in (status := Path(f"/proc/{task.pid}/status").read_text())
    assert status.split("NSpid:")[1].split("\n")[0].split()[-1] == "1"

    async def run(script: str) -> bytes:
        ours, client = pair()
        child = await task.exec(ExecLaunch(f"e{script}", process(["sh", "-c", script]), Stdio(), user="0", attachments=[client]))
        output = await asyncio.to_thread(read_all, ours)
        assert (await child.wait()).code == 0
        ours.close()
        return output

    seen = "id -u; for i in user pid; do readlink /proc/self/ns/$i; done; cat /proc/self/uid_map"
    first = await run(seen)
    assert first.split()[0] == b"0"
    assert os.readlink(f"/proc/{task.pid}/ns/user").encode() in first
    await rest(task, world)
    assert await run(seen) == first
    await task.pause()
    await task.resume()
    await task.kill(9)
    assert (await asyncio.wait_for(task.wait(), 20)).code == 137


async def test_terminal(world: World) -> None:
    made = launch(
        world, ["sh", "-c", "tty; stty size; test -c /dev/console && echo console"], stdio=Stdio(tty=True, console_size=(33, 101))
    )
    task = await world.start(made)
    assert (await asyncio.wait_for(task.wait(), 20)).code == 0
    assert world.output(made).replace("\r", "").splitlines() == ["/dev/pts/0", "33 101", "console"]


async def test_a_keeper_that_is_killed_leaves_nothing(world: World) -> None:
    task = await world.start(launch(world, ["sleep", "100"]))
    pid = task.pid
    os.kill(json.loads((world.base / task.id / "run/task.json").read_text())["keeper"], 9)
    assert (await asyncio.wait_for(task.wait(), 20)).code == 137
    assert not alive(pid)


async def test_a_joined_user_namespace(world: World) -> None:
    first = await world.start(launch(world, ["sleep", "100"]))
    fields = dict(LINUX)
    fields["namespaces"] = [{"type": "user", "path": f"/proc/{first.pid}/ns/user"}, *LINUX["namespaces"][:-1]]
    made = world.launch(["sh", "-c", "readlink /proc/self/ns/user; echo $$; mount -t proc proc /proc && echo mounted"], linux=fields)
    for name in ("upper", "work"):
        os.chown(world.base / made.id / name, FIRST, FIRST)
    task = await world.start(made)
    await asyncio.wait_for(task.wait(), 20)
    assert world.output(made).split()[:2] == [os.readlink(f"/proc/{first.pid}/ns/user"), "1"]


SCRIPT = """
id; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; ls -ln / | grep -v -e dev -e proc -e total; grep Cap /proc/self/status
touch /new && ls -n /new | cut -c1-20; ls /sys/fs/cgroup; echo $$; hostname; mount -t tmpfs x /tmp; echo $?
for f in /dev/null /dev/zero /dev/tty; do ls -ln $f | cut -c1-40; done; echo x >/proc/sys/kernel/hostname
cut -d' ' -f2,3 /proc/mounts | grep -v -e /dev/ -e cgroup | sort -u
"""


def test_a_bundle_looks_from_inside_as_with_runc(busybox: Path) -> None:
    runc = shutil.which("runc")
    if runc is None:
        pytest.skip("runc is not installed: apt-get install runc")
    with open_directory() as base:
        subprocess.run([runc, "spec"], cwd=base, check=True)
        config = json.loads((base / "config.json").read_bytes())
        config["process"] |= {"terminal": False, "args": ["sh", "-c", SCRIPT]}
        config["root"] = {"path": str(busybox), "readonly": False}
        config["linux"] |= {"uidMappings": MAPS, "gidMappings": MAPS}
        config["linux"]["namespaces"].append({"type": "user"})
        (base / "config.json").write_text(json.dumps(config))
        seen = []
        for program in (runc, str(Path(sys.executable).with_name("tare-runtime"))):
            command = [program, "--root", str(base / Path(program).name), "run", f"tare-test-{os.getpid()}"]
            done = subprocess.run(command, cwd=base, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
            seen.append((done.returncode, done.stdout, done.stderr))
            (busybox / "new").unlink(missing_ok=True)
        assert seen[0][0] == 0
        assert seen[1] == seen[0]


async def test_binds_with_translated_owners(world: World) -> None:
    """Root inside owns what root outside owns, in the mounts that say so; a mount's own maps count more than the container's."""
    shared = world.base / "shared"
    (shared / "in").mkdir(parents=True)
    (shared / "in/secret").write_text("s")
    os.chmod(shared / "in/secret", 0o600)
    os.chown(shared / "in/secret", 0, 0)
    own = [{"containerID": 0, "hostID": FIRST + 1000, "size": 1}]
    bind = {"type": "bind", "source": str(shared)}
    mounts = [
        {**bind, "destination": "/plain", "options": ["rbind"]},
        {**bind, "destination": "/whole", "options": ["rbind", "ridmap"]},
        {**bind, "destination": "/part", "subpath": "in", "options": ["rbind", "idmap", "ro"], "uidMappings": own, "gidMappings": own},
    ]
    script = (
        "cat /plain/in/secret 2>&1; cat /whole/in/secret; stat -c ' %u' /whole/in/secret /part/secret; touch /whole/new; touch /part/new"
    )
    made = launch(world, ["sh", "-c", script], mounts=mounts)
    task = await world.start(made)
    assert (await asyncio.wait_for(task.wait(), 20)).code == 1
    output = world.output(made)
    assert "can't open '/plain/in/secret': Permission denied" in output and "s 0\n 1000\n" in output and "Read-only file system" in output
    assert (shared / "new").stat().st_uid == 0
    bad = launch(world, ["true"], mounts=[{**bind, "destination": "/x", "options": ["idmap"], "source": "/proc"}])
    with pytest.raises(Exception, match="failed to set MOUNT_ATTR_IDMAP on /proc: invalid argument"):
        await world.start(bad)
