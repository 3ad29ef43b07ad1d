"""The same raw calls to dockerd 20.10 and to tared: statuses, and the keys and types of every answer, must agree.

Error texts are not compared: 20.10's differ from today's API in capitals and prefixes (tests/e2e looks at them). Where an answer may
differ, the tables below say why.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import pytest

from docker_calls import FAMILIES, Answer, Recorder
from dockerd_world import DOCKERD, dockerd
from engine_world import Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]

STATUSES = {
    "start with unknown network": "20.10 lets create pass; both answer 404 at start",
    "* bad json": "20.10 has 500 for bodies it cannot read; the API says 400 since 1.42",
    "create*": "likewise, for types and values; refusals at create where 20.10 refuses at start or never",
    "events bad *": "20.10 has 500 for bad parameters, or ignores them",
    "* bad since": "500 for bad parameters in 20.10",
    "* bad until": "500 for bad parameters in 20.10",
    "* bad timeout": "500 for bad parameters in 20.10",
    "* no body": "500 for bad bodies in 20.10",
    "wait bad condition": "20.10 takes any word",
    "list *": "500 for bad filters in 20.10",
    "networks type bad": "500 for bad filters in 20.10",
    "*unpause": "500 in 20.10 where the API says 409",
    "kill signal number": "500 for bad parameters in 20.10",
    "top bad args": "500 for bad parameters in 20.10",
    "remove bad bool": "links are not offered",
    "exec *": "500 for bad bodies in 20.10",
    "image tag bad*": "500 for bad references in 20.10",
    "image tag nothing": "500 for bad references in 20.10",
    "pull nothing": "20.10 tries to import from an empty URL",
    "pull refused": "503 says that the registry cannot be reached",
    "network create*": "500 for bad values in 20.10; names are checked since 25.0",
    "network connect host": "403 as the API says",
    "network disconnect other": "404 as the API says",
    "volume create bad option": "options come with issue D: 501 says so",
}
"""Calls (patterns of labels) whose statuses may differ where dockerd's is an error or where we refuse more."""

SHAPES = {
    ".Components": "another engine's parts",
    ".DriverStatus": "the storage driver's own words",
    ".SystemStatus": "gone since 1.41",
    ".Runtimes": "runtimes are named after the engine",
    ".BridgeNf*": "gone since 1.50",
    ".KernelMemory*": "gone since 1.42",
    ".CDISpecDirs": "new since 1.44",
    ".DefaultAddressPools": "ours come from the built-in pools and are shown",
    ".Warnings": "the machine's",
    "*.GraphDriver.Data": "the storage driver's own",
    ".HostConfig.KernelMemory*": "gone since 1.42",
    ".HostConfig.Runtime": "shown as soon as it is known",
    "*.DNSNames": "new since 1.44",
    "*.GwPriority": "new since 1.48",
    "*.EnableIPv4": "new since 1.48",
    "*SizeRw": "zero is left out by Go",
    ".Config.*": "image configs show only set fields since 1.50",
    ".ContainerConfig": "gone since 1.45",
    "*.Options.com.docker.network.*": "the driver's own",
    "*.IPAM.Config*": "a gateway is always shown",
    "*.Ports*": "the order of ports is free",
    "*.Mounts*": "the order of mounts is free",
    ".Error": "20.10 shows an absent error of wait as null",
    ".memory_stats*": "control groups of the machine",
    ".blkio_stats*": "control groups of the machine",
    ".Containers.*": "keys are ids",
    ".NetworksDeleted": "20.10 accepted the bad name above",
}
"""Paths in documents (patterns) whose presence or type may differ."""


@pytest.fixture(scope="module")
def answers() -> Iterator[Any]:
    """Both recordings, family by family."""
    if not DOCKERD.exists():
        pytest.skip("needs dockerd: apt-get install docker.io")
    with dockerd() as socket:
        yield Recorder(socket)


def _differences(path: str, theirs: Any, ours: Any) -> Iterator[str]:
    """Where two documents differ in keys or types. An empty list, map or null stand for each other: which one it is depends on what
    a client sent, and every client takes them alike."""
    if any(fnmatchcase(path, pattern) for pattern in SHAPES):
        return
    if not theirs and not ours and not isinstance(theirs, (bool, int, str)) and not isinstance(ours, (bool, int, str)):
        return
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            inner = f"{path}.{key}"
            if key in theirs and key in ours:
                yield from _differences(inner, theirs[key], ours[key])
            elif not any(fnmatchcase(inner, pattern) for pattern in SHAPES):
                yield f"{inner}: only {'dockerd' if key in theirs else 'tared'} has it"
    elif isinstance(theirs, list) and isinstance(ours, list):
        if theirs and ours:
            yield from _differences(f"{path}[0]", theirs[0], ours[0])
    elif _kind(theirs) != _kind(ours):
        yield f"{path}: {theirs!r} and {ours!r}"


def _kind(value: Any) -> str:
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def _status_may_differ(label: str, theirs: Answer, ours: Answer) -> bool:
    return ours.status >= 400 and any(fnmatchcase(label, pattern) for pattern in STATUSES)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: str(family.__name__))
def test_the_same_answers(answers: Recorder, engine: Daemon, family: Any) -> None:
    ours = Recorder(str(engine.socket))
    family(ours)
    family(answers)
    wrong: list[str] = []
    for label, mine in ours.answers.items():
        theirs = answers.answers[label]
        if mine.status != theirs.status:
            if not _status_may_differ(label, theirs, mine):
                wrong.append(f"{label}: status {theirs.status} {theirs.document} and {mine.status} {mine.document}")
        elif mine.status >= 400:
            assert set(mine.document) == {"message"} and mine.document["message"], label
        else:
            wrong += [f"{label}: {text}" for text in _differences("", theirs.document, mine.document)]
    assert not wrong, "\n".join(wrong)
