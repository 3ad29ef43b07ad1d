"""Commit, cp and export with docker's own command and with ours: the same words, the same effect."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_world import Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]

SETUP = (
    "mkdir -p /d/sub /e; echo one >/d/one; echo two >/d/sub/two; ln -s one /d/l1; ln -s /d /dl; ln -s nowhere /broken;"
    "ln -s /etc/passwd /abs; echo f >/f; ln /d/one /d/hard; rm /etc/not-executable; echo v >/vol/v"
)


@pytest.fixture(params=["docker", "tare"])
def client(request: pytest.FixtureRequest, engine: Daemon) -> Any:
    return getattr(engine, request.param)


@pytest.fixture(params=["running", "created"])
def container(request: pytest.FixtureRequest, engine: Daemon) -> Iterator[str]:
    """A container with files of its own and a volume, in each state."""
    if "copyworld:1" not in engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split():
        engine.docker("run", "--name", "setup", "--network", "none", "-v", "/vol", "busybox", "sh", "-c", SETUP)
        engine.docker("commit", "-c", "VOLUME /vol", "setup", "copyworld:1")
        engine.docker("rm", "-v", "setup")
    command = ["copyworld:1", "sh", "-c", "mkdir -p /vol; echo v >/vol/v; exec sleep 1000"]
    engine.docker("create", "--name", "copied", "--network", "none", "-t", *command)
    if request.param == "running":
        engine.docker("start", "copied")
        while engine.docker("exec", "copied", "cat", "/vol/v", check=False).returncode:
            pass
    yield "copied"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "dir/sub").mkdir(parents=True)
    (tmp_path / "file").write_text("file\n")
    (tmp_path / "dir/a").write_text("a\n")
    (tmp_path / "dir/sub/b").write_text("b\n")
    (tmp_path / "dir/link").symlink_to("a")
    os.chown(tmp_path / "file", 1000, 1001)
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "out/exists").mkdir(parents=True)
    (tmp_path / "out/f").write_text("old\n")
    return tmp_path


def names(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return [member.name for member in archive]


def below(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*"))


FROM = [
    ("/f", "out", ["exists", "f"]),
    ("/f", "out/new", ["exists", "f", "new"]),
    ("/f", "out/exists", ["exists", "exists/f", "f"]),
    ("/d/sub", "out/exists", ["exists", "exists/sub", "exists/sub/two", "f"]),
    ("/d/sub", "out/newd", ["exists", "f", "newd", "newd/two"]),
    ("/d/sub/.", "out/exists", ["exists", "exists/two", "f"]),
    ("/d/sub/.", "out/newd", ["exists", "f", "newd", "newd/two"]),
    ("/dl/sub", "out/newd", ["exists", "f", "newd", "newd/two"]),
    ("/dl", "out/l", ["exists", "f", "l"]),
    ("/f", "out/new/", "no such directory"),
    ("/d", "out/f", "cannot copy directory"),
    ("/d", "out/no/no", "invalid output path: directory"),
    ("/nope", "out", "Could not find the file /nope in container copied"),
]


@pytest.mark.parametrize(("source", "target", "expected"), FROM)
def test_from_a_container(client: Any, container: str, here: Path, source: str, target: str, expected: list[str] | str) -> None:
    if target.startswith("out/") and "no/no" not in target:
        target = str(here / target) if not target.endswith("/") else f"{here / target}/"
    else:
        target = str(here / target)
    result = client("cp", f"{container}:{source}", target, check=False)
    if isinstance(expected, str):
        assert result.returncode == 1 and expected in result.stderr
    else:
        assert (result.returncode, below(here / "out")) == (0, expected), result.stderr


TO = [
    ("file", "/", "/file", ["file"]),
    ("file", "/x", "/x", ["x"]),
    ("file", "/d/sub", "/d/sub", ["sub", "sub/file", "sub/two"]),
    ("file", "/dl/sub/", "/d/sub", ["sub", "sub/file", "sub/two"]),
    ("file", "/vol", "/vol/file", ["file"]),
    ("file", "/broken", "/nowhere", ["nowhere"]),
    ("dir", "/e", "/e", ["e", "e/dir", "e/dir/a", "e/dir/link", "e/dir/sub", "e/dir/sub/b"]),
    ("dir/.", "/e", "/e", ["e", "e/a", "e/link", "e/sub", "e/sub/b"]),
    ("dir", "/n", "/n", ["n", "n/a", "n/link", "n/sub", "n/sub/b"]),
    ("file", "/x/", "", "no such directory"),
    ("dir", "/f", "", "cannot copy directory"),
    ("file", "/no/no", "", "Could not find the file /no in container copied"),
    ("nope", "/", "", "no such file or directory"),
]


@pytest.mark.parametrize(("source", "target", "look", "expected"), TO)
def test_to_a_container(client: Any, container: str, here: Path, source: str, target: str, look: str, expected: list[str] | str) -> None:
    result = client("cp", f"{here}/{source}", f"{container}:{target}", check=False)
    if isinstance(expected, str):
        assert result.returncode == 1 and expected in result.stderr
        return
    assert result.returncode == 0, result.stderr
    found = client("cp", f"{container}:{look}", "-", text=False).stdout
    assert names(found) == expected
    if source == "file":
        with tarfile.open(fileobj=io.BytesIO(found)) as archive:
            member = next(each for each in archive if each.name == expected[-1] or each.name.endswith("file"))
            assert (member.uid, member.gid, member.mode & 0o777) == (1000, 1001, 0o640)


def test_streams_and_archive_mode(client: Any, engine: Daemon, here: Path) -> None:
    engine.docker("create", "--name", "user", "--network", "none", "-u", "www-data", "busybox", "true")
    client("cp", "-a", str(here / "file"), "user:/tmp/")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(here / "dir", "streamed")
    client("cp", "-", "user:/tmp", input=buffer.getvalue(), text=False)
    with tarfile.open(fileobj=io.BytesIO(client("cp", "user:/tmp", "-", text=False).stdout)) as archive:
        assert {"tmp/streamed/sub/b", "tmp/file"} <= set(archive.getnames())
        assert (archive.getmember("tmp/file").uid, archive.getmember("tmp/file").gid) == (33, 33)


def test_read_only_is_refused(client: Any, engine: Daemon, here: Path) -> None:
    volume = ["-v", f"{here}/dir:/bound:ro"]
    for state in ("create", "run"):
        engine.docker(
            state, *(["-d"] if state == "run" else []), "--name", state, "--read-only", "--network", "none", *volume, "busybox", "top"
        )
        assert "rootfs is marked read-only" in client("cp", str(here / "file"), f"{state}:/x", check=False).stderr
        assert "mounted volume is marked read-only" in client("cp", str(here / "file"), f"{state}:/bound/x", check=False).stderr
        assert names(client("cp", f"{state}:/bound/a", "-", text=False).stdout) == ["a"]
    assert below(here / "dir") == ["a", "link", "sub", "sub/b"]


def test_a_mounted_file_is_not_replaced(engine: Daemon, here: Path) -> None:
    engine.docker("run", "-d", "--name", "busy", "--network", "none", "busybox", "top")
    result = engine.docker("cp", str(here / "file"), "busy:/etc/hosts", check=False)
    assert "unlinkat /etc/hosts: device or resource busy" in result.stderr
    assert "localhost" in engine.docker("exec", "busy", "cat", "/etc/hosts").stdout


def test_pseudo_file_systems_look_empty(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "pseudo", "--network", "none", "busybox", "top")
    assert names(engine.docker("cp", "pseudo:/proc", "-", text=False).stdout) == ["proc"]
    assert "Could not find the file /proc/1/environ" in engine.docker("cp", "pseudo:/proc/1/environ", "-", check=False).stderr


def test_export_shows_the_root_without_mounts(client: Any, container: str, here: Path) -> None:
    target = here / "exported.tar"
    client("export", "-o", str(target), container)
    found = names(target.read_bytes())
    assert {"d/sub/two", "broken", "bin/busybox"} <= set(found)
    assert "etc/not-executable" not in found and "vol/v" not in found
    piped = client("export", container, text=False).stdout
    assert names(piped) == found


def test_commit_is_the_container_with_changes(client: Any, engine: Daemon) -> None:
    engine.docker("run", "--name", "source", "--network", "none", "-e", "KEPT=1", "busybox", "sh", "-c", "echo new >/new; rm /etc/group")
    changes = ["-c", "ENV ADDED=2", "-c", 'CMD ["cat","/new"]', "-c", "EXPOSE 80", "-c", "USER www-data"]
    image_id = client("commit", "-m", "a message", "-a", "me <me@example.com>", *changes, "source", "made:1").stdout.strip()
    try:
        assert engine.docker("run", "--rm", "--network", "none", "made:1").stdout == "new\n"
        listing = engine.docker("run", "--rm", "--network", "none", "made:1", "sh", "-c", "id -u; echo $KEPT$ADDED; ls /etc").stdout.split()
        assert listing[:2] == ["33", "12"] and "group" not in listing
        shown = engine.docker("image", "inspect", "-f", "{{.Id}} {{.Author}}|{{.Comment}}|{{json .Config.ExposedPorts}}", "made:1").stdout
        assert shown == f'{image_id} me <me@example.com>|a message|{{"80/tcp":{{}}}}\n'
        history = engine.docker("history", "--no-trunc", "--format", "{{.CreatedBy}}|{{.Size}}|{{.Comment}}", "made:1").stdout.splitlines()
        assert history[0] == "sh -c echo new >/new; rm /etc/group|4B|a message" and len(history) == 2
    finally:
        engine.docker("rmi", "made:1")


def test_commit_holds_a_running_container_still(engine: Daemon) -> None:
    engine.docker("run", "-d", "--name", "busy", "--network", "none", "busybox", "sh", "-c", "while :; do echo x >>/log; done")
    engine.tare("commit", "busy", "still:1")
    assert engine.docker("inspect", "-f", "{{.State.Status}}", "busy").stdout == "running\n"
    engine.docker("rmi", "still:1")


def test_commit_without_changes_adds_no_layer(engine: Daemon) -> None:
    engine.docker("create", "--name", "idle", "--network", "none", "busybox", "true")
    engine.docker("commit", "idle", "same:1")
    layers = [engine.docker("image", "inspect", "-f", "{{.RootFS.Layers}}", name).stdout for name in ("busybox", "same:1")]
    assert layers[0] == layers[1]
    conflict = engine.docker("rmi", "busybox", check=False)
    assert conflict.returncode == 1
    engine.docker("rmi", "same:1")


@pytest.mark.parametrize("arguments", [("cp", "a", "b"), ("cp", "x:/a", "y:/b"), ("commit", "nobody"), ("export", "nobody")])
def test_refusals_read_like_dockers(engine: Daemon, arguments: tuple[str, ...]) -> None:
    ours, theirs = engine.tare(*arguments, check=False), engine.docker(*arguments, check=False)
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)
