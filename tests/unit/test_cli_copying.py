"""``tare cp`` without a daemon: what lands where, and archives that want out."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from tare.cli.copying import Side, _split, arrange
from tare.cli.failures import CliError
from tare.cli.localtar import Reader, pack, unpack


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("c:/x", ("c", "/x")),
        ("c:", ("c", "")),
        ("/a:b", ("", "/a:b")),
        ("./a:b", ("", "./a:b")),
        ("plain", ("", "plain")),
        ("-", ("", "-")),
        ("c:x:y", ("c", "x:y")),
    ],
)
def test_which_side_is_the_container(argument: str, expected: tuple[str, str]) -> None:
    assert _split(argument) == expected


def side(path: str, kind: str = "") -> Side:
    return Side(path, bool(kind), kind == "directory", "")


@pytest.mark.parametrize(
    ("source", "target", "directory", "names"),
    [
        (side("/s/f", "file"), side("/t", "directory"), "/t", {"f": "f"}),
        (side("/s/d", "directory"), side("/t/", "directory"), "/t/", {"d/x": "d/x"}),
        (side("/s/f", "file"), side("/t/g", "file"), "/t", {"f": "g"}),
        (side("/s/d", "directory"), side("/t/new"), "/t", {"d/x": "new/x", "d": "new"}),
        (side("/s/d/.", "directory"), side("/t/new"), "/t", {"./x": "new/x"}),
        (side("/", "directory"), side("/t/new"), "/t", {"/etc/x": "new/etc/x"}),
        (side("/s/f", "file"), side("new"), ".", {"f": "new"}),
    ],
)
def test_what_lands_where(source: Side, target: Side, directory: str, names: dict[str, str]) -> None:
    place, rename = arrange(source, target)
    assert place == directory
    assert {name: rename(name) for name in names} == names


@pytest.mark.parametrize(
    ("source", "target", "text"),
    [
        (side("/s/d", "directory"), side("/t/f", "file"), "cannot copy directory"),
        (side("/s/f", "file"), side("/t/new/"), "no such directory"),
    ],
)
def test_what_is_refused(source: Side, target: Side, text: str) -> None:
    with pytest.raises(CliError, match=text):
        arrange(source, target)


def archive(*entries: tuple[str, bytes, str]) -> Reader:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, link in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"x"))
    return Reader([buffer.getvalue()])


REG, DIR, SYM, LNK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    "entries",
    [
        [("../evil", REG, "")],
        [("out", SYM, ".."), ("out/evil", REG, "")],
        [("out", SYM, "/"), ("out/evil", REG, "")],
        [("link", SYM, "../../evil")],
        [("hard", LNK, "../victim")],
        [("f", REG, ""), ("f/evil", REG, "")],
    ],
)
def test_an_archive_from_a_container_cannot_leave_its_place(tmp_path: Path, entries: list[tuple[str, bytes, str]]) -> None:
    (tmp_path / "victim").write_text("safe")
    (tmp_path / "here").mkdir()
    with pytest.raises((CliError, OSError)):
        unpack(archive(*entries), str(tmp_path / "here"), lambda name: name)
    assert (tmp_path / "victim").read_text() == "safe"
    assert not (tmp_path / "evil").exists() and not Path("/evil").exists()


def test_kinds_do_not_replace_each_other(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_text("")
    with pytest.raises(CliError, match="cannot overwrite directory"):
        unpack(archive(("d", REG, "")), str(tmp_path), lambda name: name)
    with pytest.raises(CliError, match="cannot overwrite non-directory"):
        unpack(archive(("f", DIR, "")), str(tmp_path), lambda name: name)


def test_packed_and_unpacked_it_is_the_same(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    target.mkdir()
    (source / ("n" * 150)).write_text("long name")
    (source / "a").write_bytes(os.urandom(300_000))
    os.link(source / "a", source / "sub/hard")
    (source / "sub/link").symlink_to("../a")
    (source / "a").chmod(0o751)
    os.utime(source / "a", ns=(0, 1_234_567_890_123_456_789))
    os.mkfifo(source / "pipe")
    os.utime(source / "sub", (5, 5))
    unpack(Reader(pack(str(tmp_path), "source", "copy")), str(target), lambda name: name)
    copy = target / "copy"
    assert sorted(p.name for p in copy.rglob("*")) == sorted(p.name for p in source.rglob("*"))
    assert (copy / "a").read_bytes() == (source / "a").read_bytes() and (copy / "a").stat().st_mode == (source / "a").stat().st_mode
    assert (copy / "a").stat().st_nlink == 2 and os.readlink(copy / "sub/link") == "../a"
    assert (copy / "sub").stat().st_mtime == 5 and abs((copy / "a").stat().st_mtime - 1_234_567_890.123) < 1
