"""How a build is shown: as lines, as a live picture, and what is told of a failure."""

from __future__ import annotations

import base64
import os
from typing import Any

import pytest

from tare.cli import buildshow
from tare.cli.buildshow import Live, Plain, Quiet, Raw, chosen, failure

BEGAN = "2030-01-01T00:00:00Z"


def vertex(number: int, name: str, **more: Any) -> dict[str, Any]:
    return {"vertexes": [{"digest": f"sha256:{number}", "name": name, "started": BEGAN, **more}]}


def log(number: int, text: str) -> dict[str, Any]:
    data = base64.b64encode(text.encode()).decode()
    return {"logs": [{"vertex": f"sha256:{number}", "stream": 1, "data": data, "timestamp": "2030-01-01T00:00:01.5Z"}]}


STORY = [
    vertex(1, "[1/2] FROM busybox"),
    {"statuses": [{"id": "abc", "vertex": "sha256:1", "started": BEGAN, "timestamp": BEGAN, "current": 5_000_000, "total": 10_000_000}]},
    vertex(2, "[a 1/1] RUN two"),
    log(2, "half a "),
    {"statuses": [{"id": "abc", "vertex": "sha256:1", "started": BEGAN, "completed": BEGAN, "current": 10_000_000, "total": 10_000_000}]},
    log(2, "line\n10%\r100%\n"),
    vertex(1, "[1/2] FROM busybox", completed="2030-01-01T00:00:02Z"),
    vertex(3, "[2/2] COPY f /", completed="2030-01-01T00:00:02Z", cached=True),
    log(2, "no end"),
    vertex(2, "[a 1/1] RUN two", completed="2030-01-01T00:00:04Z", error="exit code: 7"),
    vertex(4, "[b 1/1] RUN other", completed="2030-01-01T00:00:04Z", error="context canceled"),
]


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    display = Plain()
    for document in STORY:
        display.show(document)
    display.close()
    assert capsys.readouterr().err == (
        "#1 [1/2] FROM busybox\n#1 abc\n#1 ...\n\n#2 [a 1/1] RUN two\n#2 ...\n\n#1 [1/2] FROM busybox\n#1 abc 10MB done\n#1 ...\n\n"
        "#2 [a 1/1] RUN two\n#2 1.500 half a line\n#2 1.500 100%\n#2 ...\n\n#1 [1/2] FROM busybox\n#1 DONE 2.0s\n\n"
        "#3 [2/2] COPY f /\n#3 CACHED\n\n#2 [a 1/1] RUN two\n#2 4.000 no end\n#2 ERROR: exit code: 7\n\n"
        "#4 [b 1/1] RUN other\n#4 CANCELED\n\n"
    )
    place = {"Dockerfile": "Dockerfile", "Line": 2, "End": 2, "First": 1, "Lines": ["FROM busybox", "RUN two"], "Hint": "try three"}
    told = failure(display.board, place)
    assert told.startswith("------\n > [a 1/1] RUN two:\n1.500 half a line\n1.500 100%\n4.000 no end\n------\nDockerfile:2\n")
    assert "   1 |     FROM busybox\n   2 | >>> RUN two\n" in told and told.endswith("hint: try three\n")


def test_a_live_picture(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [buildshow.moment(BEGAN)]
    monkeypatch.setattr(buildshow.time, "time", lambda: now[0])
    monkeypatch.setattr(buildshow.os, "get_terminal_size", lambda fd: os.terminal_size((60, 20)))
    display = Live()
    frames = []
    for number, document in enumerate(STORY):
        now[0] += 0.5
        display.show(document)
        frames.append(capsys.readouterr().err)
        if number == 5:
            now[0] += 60
            display.tick()
            assert "63.0s" in capsys.readouterr().err  # time goes on without news
    assert "[+] Building 0.5s (0/1)" in frames[0] and "=> [1/2] FROM busybox" in frames[0]
    assert "=> => abc 5MB / 10MB" in frames[1]
    assert "=> => # half a line" in frames[5] and frames[5].startswith("\x1b[")
    assert "CACHED [2/2] COPY f /" in frames[7]
    display.close()
    last = capsys.readouterr().err
    assert "(4/4) FINISHED" in last and "ERROR [a 1/1] RUN two" in last and "CANCELED [b 1/1] RUN other" in last and "=> => #" not in last
    assert all(len(line.partition("\x1b[2K")[2].replace("\x1b[0m", "")) <= 60 + 9 for line in last.splitlines())


def test_which_display(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(buildshow.os, "isatty", lambda fd: True)
    monkeypatch.setenv("TERM", "xterm")
    kinds = {name: type(chosen(name, quiet=False)) for name in ("auto", "tty", "plain", "quiet", "rawjson")}
    assert kinds == {"auto": Live, "tty": Live, "plain": Plain, "quiet": Quiet, "rawjson": Raw}
    assert type(chosen("auto", quiet=True)) is Quiet
    monkeypatch.setenv("TERM", "dumb")
    assert type(chosen("auto", quiet=False)) is Plain
    Raw().show(STORY[0])
    assert capsys.readouterr().err.startswith('{"vertexes":[{"digest":"sha256:1"')
