"""The log reader: tails, bounds, rotation under its feet, following."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.containers.logs import LogQuery, LogReader


def record(text: str, stream: str = "stdout", second: int = 0) -> str:
    return json.dumps({"log": text + "\n", "stream": stream, "time": f"2026-01-01T00:00:{second:02d}.5Z"}) + "\n"


async def texts(path: Path, query: LogQuery, files: int = 5) -> list[str]:
    return [line.data.decode().rstrip("\n") async for batch in LogReader(path, files).read(query) for line in batch]


async def test_rotated_files_come_first(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    Path(f"{log}.2").write_text(record("1"))
    Path(f"{log}.1").write_text(record("2"))
    log.write_text(record("3"))
    assert await texts(log, LogQuery()) == ["1", "2", "3"]
    assert await texts(log, LogQuery(tail=2)) == ["2", "3"]
    assert await texts(log, LogQuery(tail=0)) == []
    assert await texts(log, LogQuery(tail=9)) == ["1", "2", "3"]


async def test_bounds_and_streams(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("".join(record(str(n), "stderr" if n % 2 else "stdout", n) for n in range(6)))
    at = 1_767_225_600 * 10**9
    assert await texts(log, LogQuery(since=at + 2 * 10**9)) == ["2", "3", "4", "5"]
    assert await texts(log, LogQuery(until=at + 2 * 10**9)) == ["0", "1"]
    assert await texts(log, LogQuery(stderr=False)) == ["0", "2", "4"]


async def test_no_log_yet(tmp_path: Path) -> None:
    assert await texts(tmp_path / "none.log", LogQuery(tail=5)) == []


async def test_torn_records_are_skipped(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text(record("1") + '{"log": "to\n' + record("2"))
    assert await texts(log, LogQuery()) == ["1", "2"]


async def test_stops_at_a_position(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text(record("1") + record("2"))
    end = (log.stat().st_ino, len(record("1")))
    assert await texts(log, LogQuery(end=end)) == ["1"]


async def test_following_through_rotation(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text(record("0"))
    done = asyncio.Event()
    seen: list[str] = []

    async def follow() -> None:
        async for batch in LogReader(log, 3).read(LogQuery(follow=True), done.wait()):
            seen.extend(line.data.decode().rstrip("\n") for line in batch)

    reader = asyncio.create_task(follow())
    for number in range(1, 40):
        with log.open("a") as file:
            text = record(str(number))
            file.write(text[:10])
            file.flush()
            await asyncio.sleep(0)
            file.write(text[10:])
        if number % 7 == 0:
            for old in (1, 0):
                source = Path(f"{log}.{old}") if old else log
                if source.exists():
                    source.rename(f"{log}.{old + 1}")
            log.touch()
        await asyncio.sleep(0.005)
    done.set()
    await asyncio.wait_for(reader, 5)
    assert seen == [str(number) for number in range(40)]


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.text(max_size=30).map(lambda t: t.replace("\n", " ")), max_size=40), tail=st.integers(0, 50))
def test_tail_is_the_end_of_the_whole(tmp_path_factory: pytest.TempPathFactory, lines: list[str], tail: int) -> None:
    log = tmp_path_factory.mktemp("log") / "x.log"
    log.write_text("".join(json.dumps({"log": line + "\n", "stream": "stdout", "time": ""}) + "\n" for line in lines))

    async def read() -> list[str]:
        return [line.data.decode() async for batch in LogReader(log).read(LogQuery(tail=tail)) for line in batch]

    assert asyncio.run(read()) == [line + "\n" for line in lines[max(0, len(lines) - tail) :]]
