"""Users and groups from hostile or ordinary files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tare.runtime.users import FILE_LIMIT, UnknownUser, read_lines, resolve

PASSWD = ["root:x:0:0:root:/root:/bin/sh", "broken", "big:x:4294967296:0::/:", "bob:x:1000:1001:Bob:/home/bob:/bin/sh", "nohome:x:7:7"]
GROUP = ["root:x:0:", "bobs:x:1001:", "wheel:x:10:root,bob", "huge:x:99999999999:bob", "staff:x:50:"]


@pytest.mark.parametrize(
    ("user", "extra", "uid", "gid", "groups", "home"),
    [
        ("", (), 0, 0, (10,), "/root"),
        ("bob", (), 1000, 1001, (10,), "/home/bob"),
        ("1000", (), 1000, 1001, (10,), "/home/bob"),
        ("bob:staff", (), 1000, 50, (), "/home/bob"),
        ("bob:77", ("wheel", "5"), 1000, 77, (10, 5), "/home/bob"),
        ("12345", (), 12345, 0, (), "/"),
        ("nohome", (), 7, 7, (), "/"),
        (":staff", (), 0, 50, (), "/root"),
    ],
)
def test_resolve(user: str, extra: tuple[str, ...], uid: int, gid: int, groups: tuple[int, ...], home: str) -> None:
    assert resolve(user, extra, PASSWD, GROUP) == (uid, gid, tuple(dict.fromkeys((gid, *groups))), home)


@pytest.mark.parametrize("user", ["eve", "big", "4294967296", "2147483648", "-1", "bob:nope", "bob:-5", "9" * 400])
def test_refused(user: str) -> None:
    with pytest.raises(UnknownUser):
        resolve(user, (), PASSWD, GROUP)


def test_no_files_at_all() -> None:
    assert resolve("", (), [], []) == (0, 0, (0,), "/")
    assert resolve("5:6", (), [], []) == (5, 6, (6,), "/")


def test_hostile_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "real").write_text("a\n\n# comment\nb\n")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "large").write_bytes(b"x" * (FILE_LIMIT + 1))
    (tmp_path / "long").write_bytes(b"y" * 100_000 + b"\nshort\n\xff\n")
    assert read_lines(str(tmp_path / "real")) == ["a", "b"]
    for name in ("fifo", "link", "large", "missing", "."):
        assert read_lines(str(tmp_path / name)) == []
    assert read_lines(str(tmp_path / "long")) == ["short", "\udcff"]
