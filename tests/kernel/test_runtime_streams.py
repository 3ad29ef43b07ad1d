"""Standard streams, logs, attachments, execs, and what survives a killed keeper or daemon."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from tare.containers.task import ExecLaunch, Exit, Stdio
from tare.errors import Conflict, StartFailed

sys.path.insert(0, str(Path(__file__).parent))
from runtime_world import World, alive, frames, pair, process, read_all

pytestmark = pytest.mark.root


def keeper_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("PPid:\t")[1].split()[0])


def send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


async def test_fifty_megabytes_through_cat(world: World) -> None:
    data = os.urandom(1 << 20) * 50
    ours, attachment = pair(stdin=True, prefix=data[:1000])
    launch = world.launch(["cat"], stdio=Stdio(open_stdin=True, stdin_once=True), attachments=[attachment])
    launch.log.path.touch()
    task = await world.start(launch)
    ours.setblocking(True)
    _, back = await asyncio.gather(asyncio.to_thread(send_all, ours, data[1000:]), asyncio.to_thread(read_all, ours))
    assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
    assert (await asyncio.wait_for(task.wait(), 10)).code == 0
    ours.close()


async def test_frames_and_half_close(world: World) -> None:
    ours, attachment = pair(stdin=True, multiplexed=True)
    stdio = Stdio(open_stdin=True, stdin_once=True)
    launch = world.launch(["sh", "-c", "read x; sleep 0.1; echo out $x; echo err >&2"], stdio=stdio, attachments=[attachment])
    await world.start(launch)
    send_all(ours, b"line\n")
    got = frames(await asyncio.to_thread(read_all, ours))
    assert (1, b"out line\n") in got
    assert (2, b"err\n") in got
    ours.close()


async def test_end_of_input_without_stdin_once_does_not_reach_the_container(world: World) -> None:
    ours, attachment = pair(stdin=True)
    task = await world.start(world.launch(["cat"], stdio=Stdio(open_stdin=True), attachments=[attachment]))
    send_all(ours, b"one\n")
    assert await asyncio.to_thread(ours.recv, 100) == b"one\n"
    second, attachment = pair(stdin=True)
    await task.attach(attachment)
    second.sendall(b"two\n")
    assert await asyncio.to_thread(second.recv, 100) == b"two\n"
    assert await asyncio.to_thread(ours.recv, 100) == b"two\n"
    await task.kill(9)
    ours.close()
    second.close()


async def test_clients_that_leave_or_stall_do_not_matter_after_the_end(world: World) -> None:
    gone, first = pair()
    stalled, second = pair()
    gone.close()
    script = f"i=0; while [ $i -lt 2000 ]; do echo {'0123456789' * 4}; i=$((i+1)); done"
    launch = world.launch(["sh", "-c", script], attachments=[first, second])
    task = await world.start(launch)
    assert (await asyncio.wait_for(task.wait(), 20)).code == 0
    assert world.output(launch).count("\n") == 2000
    assert len(await asyncio.to_thread(read_all, stalled)) == 2000 * 41
    stalled.close()


async def test_a_slow_client_gets_all_after_the_end(world: World) -> None:
    """Its input ended long ago: that is no reason to keep from it what waits to be sent."""
    writing, first = pair()
    silent, second = pair()
    writing.shutdown(socket.SHUT_WR)
    script = "dd if=/dev/zero bs=1000 count=400 2>/dev/null; exit 3"
    task = await world.start(world.launch(["sh", "-c", script], attachments=[first, second]))
    assert (await asyncio.wait_for(task.wait(), 10)).code == 3
    await asyncio.sleep(0.3)
    for client in (writing, silent):
        assert len(await asyncio.to_thread(read_all, client)) == 400_000
        client.close()


async def test_back_pressure_while_a_client_lives(world: World) -> None:
    slow, attachment = pair()
    launch = world.launch(["dd", "if=/dev/zero", "bs=65536", "count=200"], attachments=[attachment])
    task = await world.start(launch)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(task.wait(), 0.4)
    slow.close()
    assert (await asyncio.wait_for(task.wait(), 20)).code == 0


async def test_corked_attachment_joins_the_log_without_gap(world: World) -> None:
    launch = world.launch(["sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; printf tail; sleep 0.4"])
    task = await world.start(launch)
    await asyncio.sleep(0.02)
    ours, attachment = pair(corked=True)
    number, position = await task.attach(attachment)
    assert launch.log.path.stat().st_ino == position.inode
    backlog = launch.log.path.read_bytes()[: position.size]
    await asyncio.sleep(0.05)
    await task.uncork(number)
    live = await asyncio.to_thread(read_all, ours)
    text = "".join(json.loads(line)["log"] for line in backlog.splitlines()) + live.decode()
    assert text == "".join(f"{n}\n" for n in range(3000)) + "tail"
    ours.close()


async def test_detach_keys(world: World) -> None:
    ours, attachment = pair(stdin=True, detach_keys=b"\x10\x11")
    task = await world.start(world.launch(["cat"], stdio=Stdio(tty=True, open_stdin=True), attachments=[attachment]))
    ours.sendall(b"a\x10b\x10\x10\x11never seen")
    data = await asyncio.to_thread(read_all, ours)
    assert b"never" not in data
    await task.kill(0)
    ours.close()


async def test_terminal_session(world: World) -> None:
    ours, attachment = pair(stdin=True)
    task = await world.start(world.launch(["sh"], stdio=Stdio(tty=True, open_stdin=True, stdin_once=True), attachments=[attachment]))
    await task.resize(44, 99)
    ours.sendall(b"stty size; exit 5\n")
    data = await asyncio.to_thread(read_all, ours)
    assert b"44 99" in data
    assert (await task.wait()).code == 5
    ours.close()


async def test_devices_while_their_rules_are_being_written(world: World) -> None:
    """cgroup v1 takes one rule at a time, after the one that denies everything; nodes and terminal are made meanwhile."""
    rules = [{"allow": False, "access": "rwm"}]
    blocks = [(major, minor) for major in range(200, 230) for minor in range(100)]
    rules += [{"allow": True, "type": "b", "major": major, "minor": minor, "access": "r"} for major, minor in blocks]
    rules += [{"allow": True, "type": "c", "access": "m"}]
    rules += [{"allow": True, "type": "c", "major": major, "access": "rwm"} for major in (1, 5, 136)]
    world.extra.append(driver := world.new_driver(spares=0))
    ours, attachment = pair()
    nodes = [{"path": f"/dev/null{number}", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666} for number in range(1000)]
    linux = {"devices": nodes, "resources": {"devices": rules}}
    launch = world.launch(["sh", "-c", "tty; ls /dev | grep -c null"], stdio=Stdio(tty=True), attachments=[attachment], linux=linux)
    task = await driver.start(launch)
    assert await asyncio.to_thread(read_all, ours) == b"/dev/pts/0\r\n1001\r\n"
    assert (await task.wait()).code == 0
    await task.release()
    ours.close()


async def test_rotation(world: World) -> None:
    launch = world.launch(["seq", "1", "20000"], log={"max_size": 100_000, "max_file": 3})
    task = await world.start(launch)
    await task.wait()
    files = sorted(launch.log.path.parent.glob("log*"))
    assert [path.name for path in files] == ["log", "log.1", "log.2"]
    assert all(path.stat().st_size <= 100_200 for path in files)
    lines = [json.loads(line)["log"] for path in (files[2], files[1], files[0]) for line in path.read_text().splitlines()]
    last = int(lines[-1])
    assert last == 20000
    assert [int(line) for line in lines] == list(range(last - len(lines) + 1, last + 1))


async def test_exec(world: World) -> None:
    task = await world.start(world.launch(["sleep", "100"], process={"oomScoreAdj": 100}))
    ours, attachment = pair(multiplexed=True)
    script = "echo $$ $(id -u); hostname; grep CapInh /proc/self/status; cat /proc/self/cgroup | head -1; exit 7"
    launch = ExecLaunch("e1", process(["sh", "-c", script]), Stdio(), user="bob", attachments=[attachment])
    running = await task.exec(launch)
    output = b"".join(data for _, data in frames(await asyncio.to_thread(read_all, ours))).decode()
    assert await running.wait() == await task.find_exec("e1")
    assert (await running.wait()).code == 7
    lines = output.splitlines()
    assert lines[0].split()[1] == "1000"
    assert int(lines[0].split()[0]) > 1
    assert lines[1] == "box"
    assert lines[2] == "CapInh:\t0000000000000000"
    assert lines[3].endswith(":/")
    ours.close()


async def test_exec_failures(world: World) -> None:
    task = await world.start(world.launch(["sleep", "100"]))
    with pytest.raises(StartFailed) as caught:
        await task.exec(ExecLaunch("e", process(["foo"]), Stdio()))
    assert str(caught.value) == (
        'OCI runtime exec failed: exec failed: unable to start container process: exec: "foo": executable file not found in $PATH: unknown'
    )
    assert caught.value.exit_code == 127
    with pytest.raises(StartFailed, match=r"^unable to find user eve"):
        await task.exec(ExecLaunch("e", process(["true"]), Stdio(), user="eve"))
    assert await task.find_exec("e") is None


async def test_exec_with_terminal_and_input(world: World) -> None:
    task = await world.start(world.launch(["sleep", "100"]))
    ours, attachment = pair(stdin=True)
    stdio = Stdio(tty=True, open_stdin=True, console_size=(20, 30))
    running = await task.exec(ExecLaunch("tty", process(["sh"]), stdio, attachments=[attachment]))
    ours.sendall(b"stty size; tty; exit 3\n")
    data = await asyncio.to_thread(read_all, ours)
    assert b"20 30" in data
    assert (await running.wait()).code == 3
    second, attachment = pair(stdin=True)
    running = await task.exec(ExecLaunch("in", process(["cat"]), Stdio(open_stdin=True), attachments=[attachment]))
    send_all(second, b"through exec")
    assert await asyncio.to_thread(read_all, second) == b"through exec"
    assert (await running.wait()).code == 0
    ours.close()
    second.close()


async def test_exec_privileged_and_background_child(world: World) -> None:
    task = await world.start(world.launch(["sleep", "100"]))
    ours, attachment = pair()
    script = "grep CapEff /proc/self/status; sleep 50 &"
    running = await task.exec(ExecLaunch("p", process(["sh", "-c", script]), Stdio(), privileged=True, attachments=[attachment]))
    line = await asyncio.to_thread(ours.recv, 100)
    assert int(line.split()[1], 16) > 1 << 39
    assert (await asyncio.wait_for(running.wait(), 10)).code == 0
    ours.close()


async def test_exec_ends_with_the_container_and_is_remembered(world: World) -> None:
    task = await world.start(world.launch(["sleep", "100"]))
    done = await task.exec(ExecLaunch("done", process(["sh", "-c", "exit 9"]), Stdio()))
    await done.wait()
    running = await task.exec(ExecLaunch("running", process(["sleep", "100"]), Stdio()))
    await running.kill(0)
    await task.kill(9)
    assert (await task.wait()).code == 137
    assert (await asyncio.wait_for(running.wait(), 5)).code == 137
    found = await task.find_exec("done")
    assert isinstance(found, Exit)
    assert found.code == 9


async def test_killed_keeper_takes_only_its_container(world: World) -> None:
    first = await world.start(world.launch(["sleep", "100"]))
    second = await world.start(world.launch(["sleep", "100"]))
    os.kill(keeper_of(first.pid), signal.SIGKILL)
    exit = await asyncio.wait_for(first.wait(), 10)
    assert exit.code == 137
    assert "keeper" in exit.error
    await asyncio.sleep(0.05)
    assert not alive(first.pid)
    await second.kill(0)


async def test_new_daemon_takes_over(world: World) -> None:
    launch = world.launch(["sh", "-c", "read x; echo got $x; exit 6"], stdio=Stdio(open_stdin=True))
    task = await world.start(launch)
    done = await task.exec(ExecLaunch("before", process(["sh", "-c", "exit 2"]), Stdio()))
    await done.wait()
    assert world.driver._launcher is not None
    world.driver._launcher.process.kill()
    world.abandon(task)
    other = world.new_driver()
    world.extra.append(other)
    again = await other.recover(task.id, launch.run_dir)
    assert again is not None
    assert (again.pid, again.started_at) == (task.pid, task.started_at)
    assert isinstance(await again.find_exec("before"), Exit)
    ours, attachment = pair(stdin=True)
    await again.attach(attachment)
    ours.sendall(b"it\n")
    assert await asyncio.to_thread(read_all, ours) == b"got it\n"
    assert (await asyncio.wait_for(again.wait(), 5)).code == 6
    third = await other.recover(task.id, launch.run_dir)
    assert third is not None
    assert (await third.wait()).code == 6
    await again.release()
    assert await other.recover(task.id, launch.run_dir) is None
    ours.close()


async def test_recover_after_everything_was_killed(world: World) -> None:
    launch = world.launch(["sleep", "100"])
    task = await world.start(launch)
    world.abandon(task)
    os.kill(keeper_of(task.pid), signal.SIGKILL)
    again = await world.driver.recover(task.id, launch.run_dir)
    assert again is not None
    assert (await again.wait()).code == 137
    assert (await again.wait()).error
    with pytest.raises(Conflict):
        await again.kill(0)
    await again.release()
    assert await world.driver.recover("never-known", launch.run_dir) is None


async def test_launcher_is_restarted(world: World) -> None:
    assert world.driver._launcher is not None
    world.driver._launcher.process.kill()
    world.driver._launcher.process.wait()
    assert await world.sh("echo again") == "again\n"


async def test_forty_at_once(world: World) -> None:
    results = await asyncio.gather(*(world.run(["sh", "-c", f"exit {n}"]) for n in range(40)))
    assert [exit.code for exit, _ in results] == list(range(40))


async def test_inherited_streams_and_hold(world: World) -> None:
    """What an OCI runtime's create and start need: the caller's own descriptors, and an init that waits for the order to go."""

    from tare.containers.keeper_client import KeeperClient
    from tare.runtime import lowering, messages
    from tare.runtime.plan import LogPlan, StdioPlan

    launch = world.launch(["sh", "-c", "echo out; echo err >&2; exit 8"])
    root = lowering.DirectoryRootPlan(str(world.root))
    around = lowering.Surroundings(
        str(launch.run_dir), root, StdioPlan(inherit=True), LogPlan(), cgroup=f"{world.parent}/held", user=None, hold=True
    )
    plan = lowering.lower("held", launch.config, around)
    document = plan.to_json()
    request = {"id": "held", "keeper": document["keeper"], "attachments": []}
    request |= {name: messages.encode_value(document[name]) for name in ("steps", "exec_defaults")}
    events: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    client = KeeperClient(ours, events.put_nowait, lambda: None)
    null = os.open("/dev/null", os.O_RDONLY)
    await world.driver._launch(b"C" + messages.encode(request), [theirs.fileno(), null, write, write])
    for fd in (null, write):
        os.close(fd)
    theirs.close()
    held = await asyncio.wait_for(events.get(), 10)
    assert held["event"] == "held"
    assert Path(f"/proc/{held['pid']}/root/bin/busybox").exists()
    assert (await client.request("status"))["state"] == "held"
    await client.request("go")
    assert (await asyncio.wait_for(events.get(), 10))["event"] == "started"
    exited = await asyncio.wait_for(events.get(), 10)
    assert (exited["event"], exited["code"]) == ("exit", 8)
    assert (await asyncio.wait_for(events.get(), 10))["event"] == "removed"
    assert sorted(os.read(read, 100).splitlines()) == [b"err", b"out"]
    os.close(read)
    client.close()
    for name in ("exit.json", "task.json"):
        (launch.run_dir / name).unlink()
