"""Keepers at rest (``runtime.holder``): the worker has gone, and everything still works."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tare.containers.driver import RuntimeTask
from tare.containers.task import ExecLaunch, Exit, Stdio
from tare.runtime import control, messages

sys.path.insert(0, str(Path(__file__).parent))
from runtime_world import World, alive, pair, process, read_all

pytestmark = pytest.mark.root


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def keeper_of(world: World, task: RuntimeTask) -> int:
    return int(json.loads((world.base / task.id / "run/task.json").read_text())["keeper"])


async def rest(world: World, task: RuntimeTask) -> int:
    """Wait until the keeper rests: its only child is the container's init. Returns its pid."""
    keeper = keeper_of(world, task)
    for _ in range(400):
        if children(keeper) == [task.pid]:
            return keeper
        await asyncio.sleep(0.05)
    raise TimeoutError("the keeper does not rest")


async def end(task: RuntimeTask) -> Exit:
    return await asyncio.wait_for(task.wait(), 20)


async def test_exit_code_after_a_rest(world: World) -> None:
    task = await world.start(world.launch(["sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"]))
    keeper = await rest(world, task)
    await task.kill(signal.SIGTERM)
    assert (await end(task)).code == 7
    await task.release()
    world.tasks.remove(task)
    for _ in range(100):
        if not alive(keeper):
            break
        await asyncio.sleep(0.02)
    assert not alive(keeper)


async def test_end_without_being_asked(world: World) -> None:
    """Nobody talks to the keeper: the init's end itself wakes it."""
    launch = world.launch(["sh", "-c", "printf incomplete; sleep 2; echo ' line'; exit 3"])
    task = await world.start(launch)
    await rest(world, task)
    assert (await end(task)).code == 3
    assert world.output(launch) == "incomplete line\n"


async def test_killed_by_a_signal(world: World) -> None:
    task = await world.start(world.launch(["sleep", "100"]))
    await rest(world, task)
    os.kill(task.pid, signal.SIGKILL)
    assert (await end(task)).code == 137


async def test_an_exec_after_a_rest_is_in_the_containers_pid_namespace(world: World) -> None:
    task = await world.start(world.launch(["sleep", "100"]))
    await rest(world, task)
    done = await task.exec(ExecLaunch("inside", process(["sh", "-c", "test -e /proc/self/status && test $$ -lt 50"]), Stdio()))
    assert (await asyncio.wait_for(done.wait(), 20)).code == 0


async def test_many_rests(world: World) -> None:
    """Execs, attachments, input and pauses between rests; what was so before is so after."""
    launch = world.launch(["sh", "-c", "while read line; do echo got $line; done; exit 9"], stdio=Stdio(open_stdin=True, stdin_once=True))
    task = await world.start(launch)
    descriptors = []
    for turn in range(2):
        keeper = await rest(world, task)
        descriptors.append(len(os.listdir(f"/proc/{keeper}/fd")))
        done = await task.exec(ExecLaunch(f"exec{turn}", process(["sh", "-c", f"exit {turn}"]), Stdio()))
        assert (await asyncio.wait_for(done.wait(), 20)).code == turn
        assert isinstance(found := await task.find_exec(f"exec{turn}"), Exit)
        assert found.code == turn
        await task.pause()
        await task.resume()
    assert len(set(descriptors)) == 1, descriptors
    await rest(world, task)
    ours, attachment = pair(stdin=True)
    await task.attach(attachment)
    ours.sendall(b"this\n")
    ours.shutdown(1)
    assert await asyncio.to_thread(read_all, ours) == b"got this\n"
    ours.close()
    assert (await end(task)).code == 9
    assert world.output(launch) == "got this\n"


async def test_one_exit_is_told(world: World) -> None:
    """Also when the last client goes in the very moment: it had ended its input long before."""
    launch = world.launch(["sh", "-c", "while read line; do :; done; exit 6"], stdio=Stdio(open_stdin=True, stdin_once=True))
    task = await world.start(launch)
    with control.connect(str(launch.run_dir)) as listener:
        listener.settimeout(20)
        ours, attachment = pair(stdin=True)
        await task.attach(attachment)
        ours.shutdown(1)
        assert await asyncio.to_thread(read_all, ours) == b""
        ours.close()
        assert (await end(task)).code == 6
        told = []
        while (message := messages.receive(listener)[0]) is not None:
            told.append(message.get("event"))
    assert told == ["exit", "removed"]


async def test_terminal_after_a_rest(world: World) -> None:
    task = await world.start(world.launch(["sh"], stdio=Stdio(tty=True, open_stdin=True)))
    await rest(world, task)
    await task.resize(33, 77)
    ours, attachment = pair(stdin=True)
    await task.attach(attachment)
    ours.sendall(b"stty size; exit 4\n")
    assert b"33 77" in await asyncio.to_thread(read_all, ours)
    ours.close()
    assert (await end(task)).code == 4


async def test_killed_at_rest(world: World) -> None:
    task = await world.start(world.launch(["sleep", "100"]))
    os.kill(await rest(world, task), signal.SIGKILL)
    exit = await end(task)
    assert (exit.code, "keeper" in exit.error) == (137, True)
    await asyncio.sleep(0.05)
    assert not alive(task.pid)


async def test_worker_and_holder_live_and_die_together(world: World) -> None:
    task = await world.start(world.launch(["sleep", "100"]))
    keeper = keeper_of(world, task)
    (worker,) = children(keeper)
    os.kill(keeper, signal.SIGKILL)
    assert (await end(task)).code == 137
    assert not alive(worker)


async def test_take_over_of_a_resting_keeper(world: World) -> None:
    launch = world.launch(["sh", "-c", "sleep 2.5; echo late; exit 6"])
    task = await world.start(launch)
    await rest(world, task)
    world.abandon(task)
    other = world.new_driver()
    world.extra.append(other)
    again = await other.recover(task.id, launch.run_dir)
    assert isinstance(again, RuntimeTask)
    world.tasks.append(again)
    assert (again.pid, again.started_at) == (task.pid, task.started_at)
    await rest(world, again)
    assert (await end(again)).code == 6
    assert world.output(launch) == "late\n"
