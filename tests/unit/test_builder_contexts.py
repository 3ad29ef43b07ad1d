"""A build's files on their way: the command's tar and listing, and the contexts that the daemon keeps."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tare.builder.fingerprint import fingerprint
from tare.builder.keptcontexts import KeptContexts, ranges
from tare.builder.trees import TarTree
from tare.cli.buildcontext import Directory, directory, identity
from tare.errors import Corrupt, InvalidArgument, NotFound


def files(path: Path) -> Path:
    path.mkdir()
    (path / "Dockerfile").write_text("FROM scratch\n")
    (path / "deep" / ("d" * 120)).mkdir(parents=True)
    (path / "deep" / ("d" * 120) / ("f" * 130)).write_text("long")
    (path / os.fsdecode(b"odd\xff\xc3\xa4")).write_bytes(b"x" * 513)
    (path / "empty").write_bytes(b"")
    (path / "void").mkdir(mode=0o750)
    (path / "link").symlink_to("../" + "t" * 150)
    (path / "one").write_text("linked")
    os.link(path / "one", path / "two")
    os.mkfifo(path / "fifo", 0o640)
    os.chmod(path / "one", 0o4755)
    os.utime(path / "one", ns=(1, 1_700_000_000_987_654_321))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path / "socket"))
    return path


def test_the_tar_is_what_tarfile_reads(tmp_path: Path) -> None:
    context = files(tmp_path / "c")
    data = b"".join(Directory(str(context)).tar())
    assert data == b"".join(Directory(str(context)).tar())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        entries = {entry.name: entry for entry in tar}
        assert tar.extractfile(entries["deep/" + "d" * 120 + "/" + "f" * 130]).read() == b"long"  # type: ignore[union-attr]
        assert len(tar.extractfile(entries[os.fsdecode(b"odd\xff\xc3\xa4")]).read()) == 513  # type: ignore[union-attr]
    assert "socket" not in entries
    assert entries["void"].isdir() and entries["void"].mode == 0o750
    assert entries["link"].linkname == "../" + "t" * 150
    assert entries["two"].islnk() and entries["two"].linkname == "one"
    assert (entries["one"].mode, entries["one"].mtime) == (0o4755, 1_700_000_000)
    assert entries["fifo"].isfifo()


def test_what_is_ignored_is_not_looked_into(tmp_path: Path) -> None:
    context = tmp_path / "c"
    (context / "shut").mkdir(parents=True)
    (context / "part").mkdir()
    for name in ("Dockerfile", "kept", "part/kept", "part/gone", "shut/x"):
        (context / name).write_text(name)
    (context / ".dockerignore").write_text("shut\npart/*\n!part/kept\nDockerfile\n")
    found = [item[6] for item in directory(str(context), "Dockerfile").items]
    assert found == [".dockerignore", "Dockerfile", "kept", "part", "part/kept"]


async def _send(contents: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in contents:
        yield chunk


async def _bring(kept: KeptContexts, path: Path, name: str = "n") -> tuple[TarTree, list[str]]:
    """A whole round as the command and the API make it: the tree, and what was sent."""
    walked = Directory(str(path))
    state = identity(str(path), walked)["State"]
    same = kept.find(name, state)
    if same is not None:
        return same, []
    plan = await kept.plan(name, walked.listing())
    try:
        assert plan.state == state
        needed = json.loads(json.dumps(ranges(plan.needed)))
        tree = await kept.receive(plan, _send(list(walked.contents(needed))))
    finally:
        plan.close()
    return tree, [walked.items[number][6] for number in plan.needed]


def _old(path: Path) -> None:
    """Long enough ago for a change to show."""
    for each in [*path.rglob("*"), path]:
        os.utime(each, ns=(1, 1_600_000_000_000_000_000), follow_symlinks=False)


def content(tree: TarTree, name: bytes) -> bytes:
    found = tree.find(name)
    assert found is not None
    return b"".join(tree.read(found))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old at once."""
    monkeypatch.setattr("tare.cli.buildcontext._FRESH_NS", -(10**12))


def test_only_changes_are_sent(tmp_path: Path, no_waiting: None) -> None:
    context = files(tmp_path / "c")

    async def run() -> None:
        kept = KeptContexts(tmp_path)
        first, sent = await _bring(kept, context)
        assert len(sent) == 4 and "empty" not in sent
        whole = fingerprint(first, first.root, owners=False)
        same, sent = await _bring(kept, context)
        assert sent == [] and fingerprint(same, same.root, owners=False) == whole
        same.hide(b"Dockerfile")
        assert same.find(b"Dockerfile") is None and fingerprint(same, same.root, owners=False) != whole
        (context / "Dockerfile").write_text("FROM busybox\n")
        (context / "empty").unlink()
        changed, sent = await _bring(kept, context)
        assert sent == ["Dockerfile"]
        assert content(changed, b"Dockerfile") == b"FROM busybox\n" and content(first, b"Dockerfile") == b"FROM scratch\n"
        assert changed.find(b"empty") is None and content(changed, b"two") == b"linked"
        found = changed.find(b"one")
        assert found is not None and found.digest  # taken over, not computed again
        fresh, _ = await _bring(KeptContexts(tmp_path), context, "other")
        assert fingerprint(changed, changed.root, owners=False) == fingerprint(fresh, fresh.root, owners=False)
        (entry,) = kept.all()
        assert entry.count == 3 and kept.drop(entry.id) == entry.spool.end and kept.all() == []
        assert content(changed, b"one") == b"linked"  # a build goes on with what it has
        for tree in (first, same, changed, fresh):
            tree.close()

    asyncio.run(run())


def test_threads_read_side_by_side(tmp_path: Path) -> None:
    context = tmp_path / "c"
    context.mkdir()
    for number in range(100):
        (context / f"f{number:02d}").write_bytes(b"%02d" % number * 20_000)

    async def run() -> None:
        kept = KeptContexts(tmp_path)
        tree, _ = await _bring(kept, context)

        def read(step: int) -> None:
            for number in range(0, 100 * step, step):
                assert content(tree, b"f%02d" % (number % 100)) == b"%02d" % (number % 100) * 20_000

        await asyncio.gather(*(asyncio.to_thread(read, step) for step in (1, 51, 67, 83)))
        tree.close()
        kept.close()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        asyncio.run(run())
    finally:
        sys.setswitchinterval(interval)


def test_builds_at_the_same_time_do_not_mix(tmp_path: Path, no_waiting: None) -> None:
    context = tmp_path / "c"
    context.mkdir()
    for number in range(50):
        (context / f"f{number}").write_text(f"{number}" * 1000)

    async def run() -> None:
        kept = KeptContexts(tmp_path)
        (await _bring(kept, context))[0].close()
        plans, walks = [], []
        for round in range(3):
            (context / f"f{round}").write_text(f"new{round}" * 500)
            walks.append(Directory(str(context)))
            plans.append(await kept.plan("n", walks[-1].listing()))
        trees = [
            await kept.receive(plan, _send(list(walk.contents(ranges(plan.needed)))))
            for plan, walk in sorted(zip(plans, walks, strict=True), key=lambda pair: len(pair[0].needed), reverse=True)
        ]
        newest = trees[0]
        for round in range(3):
            assert content(newest, f"f{round}".encode()) == f"new{round}".encode() * 500
        assert content(trees[2], b"f0") == b"new0" * 500 and content(trees[2], b"f2") == b"2" * 1000
        for each in (*plans, *trees):
            each.close()
        kept.close()

    asyncio.run(run())


def test_what_changed_a_moment_ago_is_sent_again(tmp_path: Path) -> None:
    context = tmp_path / "c"
    context.mkdir()
    (context / "f").write_text("a")

    async def run() -> None:
        kept = KeptContexts(tmp_path)
        for _ in range(2):
            tree, sent = await _bring(kept, context)
            tree.close()
            assert sent == ["f"]
        kept.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "items",
    [
        b"{}",
        b'[["0",420,0,0,1,0,"../out","","x"]]',
        b'[["9",420,0,0,1,0,"f","","x"]]',
        b'[["0",420,0,0,-1,0,"f","","x"]]',
        b'[["0",420,0,0,1,0,"f\\u0000","","x"]]',
        b'[["0",420,0,0,1,0,"\\u20ac","","x"]]',
        b'[["3",420,0,0,0,0,"f","1","x"]]',
        b'[["1",420,0,0,0,0,"f","nowhere","x"]]',
    ],
)
def test_hostile_listings(tmp_path: Path, items: bytes) -> None:
    async def run() -> None:
        kept = KeptContexts(tmp_path)
        plan = await kept.plan("n", items)
        try:
            await kept.receive(plan, _send([b"x" * sum(plan.items[number][4] for number in plan.needed)]))
        finally:
            plan.close()
            assert kept.all() == []

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises((InvalidArgument, Corrupt, NotFound)):
        asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("sent", [b"", b"a", b"abc"])
def test_contents_of_another_length(tmp_path: Path, sent: bytes) -> None:
    async def run() -> None:
        kept = KeptContexts(tmp_path)
        plan = await kept.plan("n", b'[["0",420,0,0,2,0,"f","","x"]]')
        with pytest.raises(Corrupt):
            await kept.receive(plan, _send([sent]))
        plan.close()
        assert kept.all() == []

    asyncio.run(run())
