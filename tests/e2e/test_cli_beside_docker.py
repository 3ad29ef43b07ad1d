"""``tare`` beside docker's own command: a table of command lines against one daemon, answers compared byte by byte.

The lines are in ``tests/data/cli_scenes.txt``, by scenes. A scene is played by docker, everything is cleared away, then ``tare`` plays
it. What cannot be the same twice (IDs, dates, ages) is blanked in both, and ``docker`` reads ``tare``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import new_daemon
from engine_world import BIN, DOCKER, Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]

SCENES_FILE = Path(__file__).parent.parent / "data" / "cli_scenes.txt"


def scenes() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in SCENES_FILE.read_text().splitlines():
        if line.startswith("== "):
            lines = found.setdefault(line[3:], [])
        elif line and not line.startswith("#"):
            lines.append(line)
    return found


SCENES = scenes()
BLANKS = (
    (r"\b[0-9a-f]{64}\b", "ID64"),
    (r"\b[0-9a-f]{12}\b", "ID12"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?", "TIME"),
    (r"(About a minute|\d+ (seconds?|minutes?|hours?)|Less than a second) ago +", "AGO "),
    (r"(About a minute|\d+ (seconds?|minutes?|hours?)|Less than a second) ago", "AGO"),
    (r"Up (\d+ seconds?|Less than a second|About a minute) +", "UP "),
    (r"Up (\d+ seconds?|Less than a second|About a minute)", "UP"),
    (r"\b(CREATED|STATUS) +", "\\1 "),
    ("docker", "tare"),
    ("Docker", "Tare"),
)


def blank(text: str) -> str:
    for pattern, value in BLANKS:
        text = re.sub(pattern, value, text)
    return text


@pytest.fixture(scope="module")
def stage() -> Iterator[Daemon]:
    """A daemon that nobody else sees: scenes list and prune everything."""
    daemon = new_daemon()
    try:
        daemon.start()
        daemon.load_busybox()
        yield daemon
    finally:
        daemon.stop()


def play(command: str, daemon: Daemon, lines: list[str], directory: Path) -> list[tuple[int, str, str]]:
    """Every line's exit code, output and errors, from an empty directory and without what another scene left."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / "env").write_text("E1=one\n# comment\nHOME\nE2=two words\n")
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "LANG": "C.UTF-8"}
    results = []
    for line in lines:
        words, _, text = line.replace("@env@", str(directory / "env")).replace("@dir@", str(directory)).partition("<<<")
        done = subprocess.run(
            ["sh", "-c", f"{command} -H {daemon.host} {words}"], input=text, capture_output=True, text=True, timeout=60, env=environment
        )
        results.append((done.returncode, blank(done.stdout), blank(done.stderr)))
    daemon.remove_all()
    daemon.docker("volume", "prune", "-af")
    daemon.docker("network", "prune", "-f")
    return results


@pytest.mark.parametrize("scene", SCENES)
def test_scene(stage: Daemon, scene: str, tmp_path: Path) -> None:
    assert DOCKER is not None
    theirs = play(DOCKER, stage, SCENES[scene], tmp_path / "stage")
    ours = play(str(BIN / "tare"), stage, SCENES[scene], tmp_path / "stage")
    different = [
        f"{line}\n  docker: {them}\n  tare:   {us}" for line, them, us in zip(SCENES[scene], theirs, ours, strict=True) if them != us
    ]
    assert not different, "\n".join(different)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("run --rmm busybox", "Did you mean --rm?"),  # docker says only that it does not know the flag
        ("pss", "Did you mean 'ps'?"),
        ("container lst", "Did you mean 'ls'?"),
        ("run --rm --detach-keys bad -i busybox true", "invalid detach keys (bad)"),  # docker: unable to upgrade to tcp, received 400
        ("run --rm --use-api-socket busybox true", "--use-api-socket is not supported"),
        ("swarm init", "Tare runs containers on one machine"),
        ("trust inspect busybox", "Docker Content Trust"),
        ("plugin install x", "what Tare plugs in is built in"),
    ],
)
def test_said_differently_on_purpose(engine: Daemon, line: str, text: str) -> None:
    done = engine.tare(*line.split(), check=False)
    assert done.returncode != 0 and text in done.stderr
