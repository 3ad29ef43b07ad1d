"""Followers share one inotify instance, and do without one where there is none to be had."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from tare.containers.logwatch import Follower, LogWatches
from tare.linux import inotify


def instances() -> int:
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum("inotify" in os.readlink(link) for link in links if link.is_symlink())


def test_many_followers_of_two_directories(tmp_path: Path) -> None:
    async def main() -> None:
        before = instances()
        watches, ended = LogWatches(), asyncio.Event()
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        ones = [Follower(watches, tmp_path / "a", ended.wait()) for _ in range(200)]
        other = Follower(watches, tmp_path / "b", ended.wait())
        assert instances() == before + 1
        waiting = [asyncio.create_task(each.wait(None)) for each in (*ones, other)]
        await asyncio.sleep(0.05)
        (tmp_path / "a" / "log").write_text("x")
        await asyncio.wait_for(asyncio.gather(*waiting[:-1]), 5)
        assert not waiting[-1].done(), "nothing happened in its directory"
        for each in ones:
            each.close()
        (tmp_path / "b" / "log").write_text("x")
        await asyncio.wait_for(waiting[-1], 5)
        ended.set()
        await asyncio.wait_for(other.wait(None), 5)
        assert other.ended
        other.close()
        assert instances() == before

    asyncio.run(main())


def test_without_an_instance_followers_look_for_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise OSError(errno.EMFILE, "too many", "inotify_init1")

    async def main() -> None:
        ended = asyncio.Event()
        follower = Follower(LogWatches(), tmp_path, ended.wait())
        await asyncio.wait_for(follower.wait(None), 5)
        await asyncio.wait_for(follower.wait(1_000_000), 0.2)
        follower.close()

    monkeypatch.setattr(inotify, "instance", none)
    asyncio.run(main())


def test_a_directory_that_goes_wakes_its_followers(tmp_path: Path) -> None:
    async def main() -> None:
        directory = tmp_path / "gone"
        directory.mkdir()
        follower = Follower(LogWatches(), directory, asyncio.Event().wait())
        waiting = asyncio.create_task(follower.wait(None))
        await asyncio.sleep(0.02)
        directory.rmdir()
        await asyncio.wait_for(waiting, 5)
        follower.close()

    asyncio.run(main())
