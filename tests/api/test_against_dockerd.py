"""The same raw calls to dockerd 20.10 and to tared: statuses, error texts, and the keys, types and values of every answer must agree.

20.10 speaks API 1.41; where today's API says otherwise, or an answer may differ for another reason, the tables below say why. Ids, times
and paths below the engines' own directories are made equal first (``_plain``); texts are compared without regard to case, since the
error texts of 20.10 began with capitals that today's do not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import pytest

from docker_calls import FAMILIES, Answer, Recorder
from docker_calls_edge import EDGE_FAMILIES
from docker_calls_more import MORE_FAMILIES
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
    "remove bad bool": "500 in 20.10 where the API says 409",
    "exec *": "500 for bad bodies in 20.10",
    "image tag bad*": "500 for bad references in 20.10",
    "image tag nothing": "500 for bad references in 20.10",
    "pull nothing": "20.10 tries to import from an empty URL",
    "pull refused": "503 says that the registry cannot be reached",
    "network create*": "500 for bad values in 20.10; names are checked since 25.0",
    "network connect host": "403 as the API says",
    "network disconnect other": "404 as the API says",
    "plugin POST /plugins/x/enable": "500 for bad parameters in 20.10",
    "create without image": "a container without an image has nothing to run",
    "create trailing": "today's decoder reads to the end",
    "stop negative": "500 for bad parameters in 20.10",
    "kill negative": "500 for bad parameters in 20.10",
    "resize *": "20.10 looks at the container first",
    "top quotes": "500 for bad parameters in 20.10",
    "grpc no upgrade": "500 for bad parameters in 20.10",
    "put *": "500 in 20.10 for what cannot be put there",
    "archive * /bin/sh/x *": "500 in 20.10 for a path through a file",
    "archive * /etc/passwd/ *": "likewise",
    "prune two untils": "500 for bad filters in 20.10",
    "prune bad until": "likewise",
    "auth list": "500 for bodies it cannot read in 20.10",
    "search *": "500 for bad parameters in 20.10, which also searches for nothing",
    "distribution id": "500 for bad references in 20.10",
    "commit bad *": "500 for bad references in 20.10",
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
    "*.execDuration": "new since 25.0",
    "volume create anonymous: .Labels": "anonymous volumes are labelled since 25.0",
    "start *: inspect: .State.Error": "today's texts say which of containerd's steps failed too",
    "*.CanRemove": "unused",
    ".NetworksDeleted": "20.10 accepted the bad name above",
}
"""Paths in documents (patterns; with "LABEL: " before them for one call) whose presence or type may differ."""


TEXTS = {
    "create bad *": "today's validation names the type and the place",
    "create wrong content type": "today's words",
    "create no type": "today's words",
    "create cpuset bad": "20.10 says twice what is wrong",
    "create restart *": "today's validation names the choices",
    "create bind relative": "20.10 says that it was creating",
    "create mount type": "20.10 has a prefix that today's validation has not",
    "create port": "quotes of today",
    "create host port": "quotes of today",
    "create runtime": "today's words",
    "create name *": "the name that was asked for is in it",
    "too *": "other bounds",
    "start *": "today's texts say which of containerd's steps failed too",
    "remove running": "today's words",
    "paused: remove": "today's words",
    "*resize *": "today's words: a number that is none is named",
    "update *policy": "today's validation names the choices",
    "exec start again": "today's words",
    "exec no body": "today's decoder says what it was doing",
    "exec bad json": "likewise",
    "exec cmd string": "likewise",
    "* no body": "likewise",
    "image inspect *": "20.10 says it twice",
    "* bad": "today's references name the offending repository",
    "pull bad *": "likewise",
    "network create predefined": "20.10 ends with a blank",
    "network delete used": "today's words",
    "archive *": "20.10 forgets a blank",
    "auth empty": "today's decoder takes no body for no credentials",
    "attach bad keys": "the reason why",
    "put junk *": "20.10 names a process of its own; where in the archive the fault is",
    "distribution bad name": "today's references name the offending repository",
    "save *unknown": "today's words name the tag too",
    "push bad name": "20.10 wants credentials first",
    "commit bad repo": "today's references name the offending repository",
}
"""Error texts (patterns of labels) that differ, with the reason; 20.10's are compared without capitals."""

VALUES = {
    "*.HostConfig.Cap*": "capabilities are shown with CAP_ since 28",
    "*.Aliases": "a container that was never started shows its short id too since 25.0",
    "*.Gateway": "which pool is free",
    "*.IPPrefixLen": "likewise",
    ".ExitCode": "of an exec: a program that is not there is 127 since 23.0",
    "logs http 1.0: .head*": "HTTP/1.1 and the end of the connection are announced to an HTTP/1.0 client, the type of logs since 1.42",
    "*.Driver": "layers are kept in another way",
    "*.GraphDriver.Name": "likewise",
    "*MaskedPaths*": "today's list is longer",
    "*NetworkMode": '"default" is shown as the network it stands for since 26.0',
    "*.RestartPolicy.Name": 'an unset policy is shown as "no" today',
    "*Path": "20.10 shows the files' paths only once they exist",
    "*.SandboxKey": "the namespace's name; gone after the container's end",
    "*.SandboxID": "likewise",
    "*.NetworkID": "likewise",
    "*.IPAddress": "which address is free",
    "*.Created": "seconds of the clock",
    "*.time": "likewise",
    "*.timeNano": "likewise",
    ".Containers*": "containers of other tests on the shared daemon",
    ".Images": "likewise",
    ".NFd": "the process's own",
    ".NGoroutines": "likewise",
    ".ID": "the engine's",
    ".ServerVersion": "the engine's",
    ".*Commit*": "the engine's parts",
    ".*Runtime": "likewise",
    ".InitBinary": "likewise",
    ".Plugins.*": "log and network drivers: fewer, each of them shown",
    ".RegistryConfig.InsecureRegistryCIDRs": "::1 counts as local too since 28",
    ".LiveRestoreEnabled": "containers always outlive our daemon",
    ".SecurityOptions*": "seccomp's profile is called builtin since 23.0",
    ".DockerRootDir": "where the tests put it",
    ".*Version": "the engine's",
    ".Platform.Name": "likewise",
    ".BuildTime": "likewise",
    "*Pid": "processes of this machine",
    ".cpu_stats*": "measurements",
    ".precpu_stats*": "measurements",
    ".networks*": "measurements",
    ".*read": "when it was measured",
    ".Processes*": "processes of this machine",
    "commit*: inspect: .Container": "gone since 1.45",
    "load junk: .error*": "20.10 names a process of its own; where in the archive the fault is",
}
"""Paths in documents (patterns) whose values may differ."""

_UNEQUAL = re.compile(
    r"\b(?:[0-9a-f]{64}|[0-9a-f]{12})\b|\d{4}-\d\d-\d\dT[0-9:.]+Z|/tmp/[^ \"]*?/(?=data/|run/)|02(?::[0-9a-f]{2}){5}|172\.1[78]\.0\.\d+"
    r"|Up (?:\d+ seconds?|Less than a second)"
)


def _plain(text: str) -> str:
    """``text`` without what two engines cannot have in common: ids, times, addresses, their own directories."""
    return _UNEQUAL.sub("@", text)


@pytest.fixture(scope="module")
def answers() -> Iterator[Any]:
    """Both recordings, family by family."""
    if not DOCKERD.exists():
        pytest.skip("needs dockerd: apt-get install docker.io")
    with dockerd() as socket:
        yield Recorder(socket)


def _differences(label: str, path: str, theirs: Any, ours: Any) -> Iterator[str]:
    """Where two documents differ. An empty list, map or null stand for each other: which one it is depends on what a client sent, and
    every client takes them alike."""
    if _listed(SHAPES, label, path):
        return
    if not theirs and not ours and not isinstance(theirs, (bool, int, str)) and not isinstance(ours, (bool, int, str)):
        return
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            inner = f"{path}.{key}"
            if key in theirs and key in ours:
                yield from _differences(label, inner, theirs[key], ours[key])
            elif not _listed(SHAPES, label, inner):
                yield f"{inner}: only {'dockerd' if key in theirs else 'tared'} has it"
    elif isinstance(theirs, list) and isinstance(ours, list):
        if len(theirs) != len(ours) and not _listed(VALUES, label, path):
            yield f"{path}: {len(theirs)} and {len(ours)} items"
        for index, (one, other) in enumerate(zip(theirs, ours, strict=False)):
            yield from _differences(label, f"{path}[{index}]", one, other)
    elif _kind(theirs) != _kind(ours):
        yield f"{path}: {theirs!r} and {ours!r}"
    elif not _listed(VALUES, label, path):
        one, other = (_plain(value) if isinstance(value, str) else value for value in (theirs, ours))
        if one != other:
            yield f"{path}: {one!r} and {other!r}"


def _listed(table: dict[str, str], label: str, path: str) -> bool:
    return any(fnmatchcase(path, pattern) or fnmatchcase(f"{label}: {path}", pattern) for pattern in table)


def _kind(value: Any) -> str:
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def _status_may_differ(label: str, theirs: Answer, ours: Answer) -> bool:
    return ours.status >= 400 and any(fnmatchcase(label, pattern) for pattern in STATUSES)


def _text_differs(label: str, theirs: Any, ours: Any) -> bool:
    if not isinstance(theirs, dict):  # 20.10 has plain text for attach and for versions that are too old
        theirs = {"message": str(theirs or "").strip()}
    return _plain(theirs["message"]).lower() != _plain(ours["message"]).lower() and not any(
        fnmatchcase(label, pattern) for pattern in TEXTS
    )


@pytest.mark.parametrize("family", FAMILIES + EDGE_FAMILIES + MORE_FAMILIES, ids=lambda family: str(family.__name__))
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
        elif mine.status >= 400 and mine.document is not None:
            assert set(mine.document) == {"message"} and mine.document["message"], label
            if _text_differs(label, theirs.document, mine.document):
                wrong.append(f"{label}: text {theirs.document} and {mine.document}")
        else:
            wrong += [f"{label}: {text}" for text in _differences(label, "", theirs.document, mine.document)]
    assert not wrong, "\n".join(wrong)
