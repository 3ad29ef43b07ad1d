"""Commit, cp, export and save with every storage driver: what a container did to its image's files comes out the same."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest

from conftest import new_daemon
from engine_world import Daemon
from tare.store.layers.choice import DRIVERS

pytestmark = [pytest.mark.root, pytest.mark.peer]

BELOW = (
    "mkdir -p /opaque/sub /kept /gone; echo old >/opaque/sub/f; echo old >/opaque/g;"
    "echo k >/kept/file; ln /kept/file /kept/hard; ln -s file /kept/l"
)
CHANGES = (
    "rm -r /opaque; mkdir /opaque; echo new >/opaque/n; rm -r /gone; echo more >>/kept/file; chmod 700 /kept; rm /kept/l;"
    "mkdir /kept/l; mknod /dev-null c 1 3; mkfifo /pipe; echo x >/ex; ln /ex /why; chown 33:29 /ex; chmod 4711 /ex;"
    "touch -d @1000000000 /ex; rm /etc/group"
)


@pytest.fixture(params=sorted(DRIVERS), scope="module")
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    daemon = new_daemon("--storage-driver", request.param)
    try:
        daemon.start()
        daemon.load_busybox()
        yield daemon
        daemon.remove_all()
    finally:
        daemon.stop()


def tree(tar: bytes) -> dict[str, tuple[object, ...]]:
    """Every object with what matters about it; the engine's own mount points left out."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            content = archive.extractfile(member).read() if member.isreg() else b""  # type: ignore[union-attr]
            found[member.name] = (member.type, member.mode, member.uid, member.gid, member.linkname, content, member.devminor)
    for name in ("etc", "etc/hosts", "etc/hostname", "etc/resolv.conf", ".dockerenv", "dev", "proc", "sys"):
        found.pop(name, None)
    return found


def test_a_commit_holds_exactly_what_the_container_did(daemon: Daemon) -> None:
    for step, (image, script) in enumerate((("busybox", BELOW), ("below:1", CHANGES))):
        daemon.docker("run", "--name", f"step{step}", "--network", "none", image, "sh", "-ec", script)
        daemon.docker("commit", f"step{step}", ("below:1", "above:1")[step])
    daemon.docker("create", "--name", "fresh", "--network", "none", "above:1", "true")
    changed = tree(daemon.docker("export", "step1", text=False).stdout)
    assert tree(daemon.docker("export", "fresh", text=False).stdout) == changed
    assert "opaque/sub" not in changed and "gone" not in changed and "etc/group" not in changed
    assert changed["ex"][:4] == (tarfile.REGTYPE, 0o4711, 33, 29)
    assert changed["why"][4] == "ex" and changed["kept/l"][0] == tarfile.DIRTYPE
    shown = daemon.docker(
        "run", "--rm", "--network", "none", "above:1", "sh", "-c", "ls /opaque; cat /kept/file; stat -c '%h %Y' /ex"
    ).stdout
    assert shown.split() == ["n", "k", "more", "2", "1000000000"]
    copied = tree(daemon.docker("cp", "fresh:/kept", "-", text=False).stdout)
    assert copied == {name: value for name, value in changed.items() if name == "kept" or name.startswith("kept/")}


def test_saved_it_loads_again(daemon: Daemon) -> None:
    archive = daemon.docker("save", "above:1", text=False).stdout
    before = daemon.docker("image", "inspect", "-f", "{{.Id}}", "above:1").stdout
    daemon.docker("rm", "fresh", "step0", "step1")
    daemon.docker("rmi", "above:1", "below:1")
    daemon.docker("load", input=archive, text=False)
    assert daemon.docker("image", "inspect", "-f", "{{.Id}}", "above:1").stdout == before
    assert daemon.docker("run", "--rm", "--network", "none", "above:1", "cat", "/opaque/n").stdout == "new\n"


def test_copies_go_in_whether_it_runs_or_not(daemon: Daemon) -> None:
    for state, command in (("created", "create"), ("running", "run -d")):
        daemon.docker(*command.split(), "--name", state, "--network", "none", "-v", "/vol", "busybox", "top")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name in ("tmp/in", "vol/in"):
                tar.addfile(tarfile.TarInfo(name))
        daemon.docker("cp", "-", f"{state}:/", input=buffer.getvalue(), text=False)
    daemon.docker("start", "created")
    for state in ("created", "running"):
        assert daemon.docker("exec", state, "ls", "/tmp/in", "/vol/in").stdout.split() == ["/tmp/in", "/vol/in"]
    daemon.remove_all()
