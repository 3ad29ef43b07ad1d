"""The json-file log: any bytes in any chunks give valid records that together are the output, at any rotation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.runtime.jsonlog import JsonLog, escape, has_long_line, rfc3339
from tare.runtime.logfile import LINE_LIMIT, LogFile, split_long

NASTY = st.text(alphabet=st.sampled_from('ab"\\<>&\t\r\n\x00\x1f\x7f\u00e9\u2028\u2029\ufffd\U0001f600')).map(str.encode)
CHUNKS = st.lists(st.one_of(st.binary(max_size=60), NASTY, st.just(b"x" * 5000), st.just(b"y\n" * 3000)), max_size=12)


def written(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def expected(data: bytes) -> str:
    """One replacement character for each invalid byte."""
    return re.sub("[\udc80-\udcff]", "\ufffd", data.decode("utf-8", "surrogateescape"))


@settings(max_examples=200, deadline=None)
@given(chunks=CHUNKS)
def test_records_are_the_output(tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    log = JsonLog(LogFile(str(path)))
    for chunk in chunks:
        log.write("stdout", chunk)
    log.close()
    records = written(path)
    assert "".join(record["log"] for record in records) == expected(b"".join(chunks))
    assert all(record["stream"] == "stdout" and record["time"].endswith("Z") for record in records)
    assert all("\n" not in record["log"][:-1] for record in records)
    assert all(len(record["log"].encode()) <= 3 * LINE_LIMIT + 1 for record in records)


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(st.text(alphabet='abc<\\"é', max_size=60), max_size=60), size=st.integers(50, 4000), files=st.integers(1, 4))
def test_rotation_keeps_whole_records_in_order(tmp_path_factory: pytest.TempPathFactory, lines: list[str], size: int, files: int) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    log = JsonLog(LogFile(str(path), size, files))
    text = "".join(line + "\n" for line in lines)
    log.write("stderr", text.encode(), 1)
    log.close()
    found = [path.with_name(f"log.{n}") for n in range(files + 2, 0, -1)]
    kept = [file for file in [*found, path] if file.exists()]
    assert len(kept) <= files
    joined = "".join(record["log"] for file in kept for record in written(file))
    assert text.endswith(joined)
    assert joined or not lines or files == 1


def test_exact_bytes(tmp_path: Path) -> None:
    log = JsonLog(LogFile(str(tmp_path / "log")), attributes={"b": "2", "a": "<1>"})
    log.write("stdout", b'one "<&>"\t\xff\n', 1_700_000_000_120_000_000)
    log.write("stderr", b"no newline", 1_700_000_000_000_000_000)
    assert log.pending("stderr") == b"no newline"
    log.flush(1_700_000_000_000_000_000)
    assert (tmp_path / "log").read_text() == (
        '{"log":"one \\"\\u003c\\u0026\\u003e\\"\\u0009\ufffd\\n","stream":"stdout",'
        '"attrs":{"a":"<1>","b":"2"},"time":"2023-11-14T22:13:20.12Z"}\n'
        '{"log":"no newline","stream":"stderr","attrs":{"a":"<1>","b":"2"},"time":"2023-11-14T22:13:20Z"}\n'
    )


def test_long_lines_become_partial_records(tmp_path: Path) -> None:
    log = JsonLog(LogFile(str(tmp_path / "log")))
    text = "é" * LINE_LIMIT + "\nshort\n"
    log.write("stdout", text.encode())
    log.close()
    lines = [record["log"] for record in written(tmp_path / "log")]
    assert "".join(lines) == text
    assert [line.endswith("\n") for line in lines] == [False, True, True]
    assert "\ufffd" not in "".join(lines)


def test_position_counts_whole_records(tmp_path: Path) -> None:
    log = JsonLog(LogFile(str(tmp_path / "log")))
    log.write("stdout", b"a\nb")
    inode, size = log.position()
    assert (inode, size) == ((tmp_path / "log").stat().st_ino, (tmp_path / "log").stat().st_size)
    again = JsonLog(LogFile(str(tmp_path / "log")))
    assert again.position() == (inode, size)


def test_full_disk_loses_output_but_not_the_container() -> None:
    log = JsonLog(LogFile("/dev/full"))
    log.write("stdout", b"lost\n")
    assert log.file.lost > 0
    log.close()


@given(st.binary(max_size=300))
def test_escape_is_json(data: bytes) -> None:
    assert json.loads(b'"' + escape(data).replace(b"\n", b"\\n") + b'"') == expected(data)


@given(st.lists(st.integers(0, 70), max_size=20))
def test_long_lines_are_never_missed(lengths: list[int]) -> None:
    text = b"".join(b"x" * length + b"\n" for length in lengths)
    if any(length > 32 for length in lengths):
        assert has_long_line(text, 32)


@given(st.text(max_size=200), st.integers(4, 50))
def test_split_keeps_characters_whole(text: str, limit: int) -> None:
    pieces = split_long(text.encode(), limit)
    assert b"".join(pieces) == text.encode()
    assert all(len(piece) <= limit for piece in pieces)
    assert [piece.decode() for piece in pieces]


@pytest.mark.parametrize(
    ("time", "text"), [(0, "1970-01-01T00:00:00Z"), (1, "1970-01-01T00:00:00.000000001Z"), (1_500_000_000, "1970-01-01T00:00:01.5Z")]
)
def test_time(time: int, text: str) -> None:
    assert rfc3339(time) == text
