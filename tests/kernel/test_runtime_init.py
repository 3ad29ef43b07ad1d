"""``--init`` without a program of the host's: process 1 forwards, reaps, ends as the program does, and is closed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tare.containers.driver import RuntimeTask
from tare.containers.task import ExecLaunch, Stdio
from tare.errors import StartFailed
from tare.runtime.lowering import BUILT_IN_INIT

sys.path.insert(0, str(Path(__file__).parent))
from runtime_world import World, alive, pair, process

pytestmark = pytest.mark.root

DENYING: dict[str, Any] = {
    "seccomp": {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["close_range"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    }
}
"""A filter of the program's that takes away something that process 1 would like to have."""
KINDS = pytest.mark.parametrize("linux", [{}, DENYING], ids=["", "filtered"])


async def start(world: World, args: list[str], **fields: Any) -> RuntimeTask:
    """Start with our init; returns when the program is process 1's child."""
    launch = world.launch(args, init=BUILT_IN_INIT, **fields)
    task = await world.start(launch)
    for _ in range(200):
        if "go" in world.output(launch):
            return task
        await asyncio.sleep(0.02)
    raise TimeoutError("the program says nothing")


def private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


@KINDS
async def test_signals_reach_the_program_and_its_end_is_the_containers(world: World, linux: dict[str, Any]) -> None:
    script = "trap 'echo hup' HUP; trap 'echo term; exit 5' TERM; echo go; while true; do sleep 0.05; done"
    task = await start(world, ["sh", "-c", script], linux=linux)
    await task.kill(signal.SIGHUP)
    await asyncio.sleep(0.3)
    await task.kill(signal.SIGTERM)
    assert (await asyncio.wait_for(task.wait(), 20)).code == 5
    lines = "".join((world.base / task.id / "log").read_text())
    assert lines.index("hup") < lines.index("term")
    for script, code in (("exit 300", 44), ("kill -SEGV $$", 139), ("kill -KILL $$", 137), ("kill -USR1 $$", 138)):
        exit, _ = await world.run(["sh", "-c", script], init=BUILT_IN_INIT, linux=linux)
        assert exit.code == code, script


@KINDS
async def test_a_program_without_handlers_stops(world: World, linux: dict[str, Any]) -> None:
    """What ``--init`` is for: as process 1 a program would ignore this signal."""
    task = await start(world, ["sh", "-c", "echo go; exec sleep 100"], linux=linux)
    await task.kill(signal.SIGTERM)
    assert (await asyncio.wait_for(task.wait(), 10)).code == 143


@KINDS
async def test_orphans_are_reaped_also_those_of_execs(world: World, linux: dict[str, Any]) -> None:
    script = "for i in 1 2 3 4 5; do (sleep 0.1 &); done; echo go; exec sleep 100"
    task = await start(world, ["sh", "-c", script], linux=linux)
    ours, client = pair()
    child = await task.exec(ExecLaunch("orphans", process(["sh", "-c", "(sleep 0.2 &)"]), Stdio(), attachments=[client]))
    await child.wait()
    ours.close()

    def others() -> list[str]:
        return Path(f"/proc/{task.pid}/task/{task.pid}/children").read_text().split()

    for _ in range(200):
        if len(others()) == 1:
            break
        await asyncio.sleep(0.02)
    assert len(others()) == 1


async def test_process_1_is_small(world: World) -> None:
    task = await start(world, ["sh", "-c", "echo go; exec sleep 100"])
    proc = Path(f"/proc/{task.pid}")
    assert private_kib(task.pid) < 4096
    assert sorted(os.listdir(proc / "fd")) == ["0", "1", "2"]
    assert (proc / "cmdline").read_bytes().split(b"\0")[:3] == [b"/sbin/docker-init", b"--", b"sh"]
    assert (proc / "comm").read_text() == "docker-init\n"


async def test_the_interpreter_as_process_1_is_closed(world: World) -> None:
    """CVE-2019-5736: what the container's root can reach of it."""
    script = (
        "for f in exe environ mem auxv; do head -c 1 /proc/1/$f >/dev/null 2>&1 && echo open $f; done; "
        "echo x >/proc/1/exe; for f in fd/0 cwd root; do readlink /proc/1/$f; done; ls /proc/1/fd; tr '\\0' ' ' </proc/1/cmdline"
    )
    exit, output = await world.run(["sh", "-c", script + "; true"], init=BUILT_IN_INIT)
    assert exit.code == 0
    lines = [line for line in output.splitlines() if "Permission denied" not in line]
    assert lines[:3] == ["0", "1", "2"]
    assert lines[3].startswith("/sbin/docker-init -- sh -c ")
    assert len(lines) == 4


@KINDS
async def test_the_programs_limits_hold_for_process_1(world: World, linux: dict[str, Any]) -> None:
    script = "grep -E '^(Uid|Gid|CapEff|CapBnd|NoNewPrivs)' /proc/1/status"
    output = await world.sh(script, init=BUILT_IN_INIT, user="bob", linux=linux, process={"noNewPrivileges": True})
    values = dict(line.split(":\t", 1) for line in output.splitlines())
    assert values["Uid"].split() == ["1000"] * 4
    assert values["Gid"].split() == ["1001"] * 4
    assert int(values["CapEff"], 16) == 0
    assert int(values["CapBnd"], 16) == 0xA80425FB
    assert values["NoNewPrivs"] == "1"


@KINDS
async def test_in_a_terminal_the_program_has_the_foreground(world: World, linux: dict[str, Any]) -> None:
    script = "set -- $(cat /proc/$$/stat); test $5 = $8 && echo foreground; exec cat"
    ours, client = pair(stdin=True)
    stdio = Stdio(tty=True, open_stdin=True, console_size=(24, 80))
    launch = world.launch(["sh", "-c", script], init=BUILT_IN_INIT, linux=linux, stdio=stdio, attachments=[client])
    task = await world.start(launch)
    ours.settimeout(20)
    seen = b""
    while b"foreground" not in seen:
        seen += await asyncio.to_thread(ours.recv, 4096)
    ours.sendall(b"\x03")  # the terminal interrupts the foreground group, not process 1
    assert (await asyncio.wait_for(task.wait(), 20)).code == 130
    ours.close()


@KINDS
async def test_in_the_hosts_process_namespace(world: World, linux: dict[str, Any]) -> None:
    namespaces = [{"type": kind} for kind in ("mount", "network", "uts", "ipc")]
    script = "(sleep 100 & echo $! >/tmp/orphan); echo go; exec sleep 100"
    task = await start(world, ["sh", "-c", script], linux=linux | {"namespaces": namespaces})
    orphan = int((world.base / task.id / "upper/tmp/orphan").read_text())
    assert f"PPid:\t{task.pid}\n" in Path(f"/proc/{orphan}/status").read_text()
    await task.kill(signal.SIGTERM)
    assert (await asyncio.wait_for(task.wait(), 20)).code == 143
    for _ in range(100):
        if not alive(orphan):
            break
        await asyncio.sleep(0.02)
    assert not alive(orphan)


@KINDS
async def test_what_cannot_be_executed_is_a_failed_start(world: World, linux: dict[str, Any]) -> None:
    for args, code in ((["nope"], 127), (["/etc/passwd"], 126)):
        with pytest.raises(StartFailed) as caught:
            await world.start(world.launch(args, init=BUILT_IN_INIT, linux=linux))
        assert caught.value.exit_code == code
