"""Copying into a tree that a hostile container owns: where paths lead, what is replaced, what is refused."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tare.containers.untar import Rules, unpack
from tare.containers.view import View
from tare.errors import InvalidArgument
from tare.linux.constants import AT_FDCWD, MOUNT_ATTR_RDONLY
from tare.linux.mount import open_tree, set_attributes
from tare.store.tartree import tar_object

pytestmark = pytest.mark.root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "d/sub").mkdir(parents=True)
    (root / "d/file").write_text("inside")
    (root / "etc").mkdir()
    (tmp_path / "secret").write_text("outside")
    (root / "up").symlink_to("../../../../../..")
    (root / "abs").symlink_to(str(tmp_path))
    (root / "loop").symlink_to("loop")
    (root / "to_d").symlink_to("/d")
    return root


@pytest.fixture
def view(root: Path) -> Iterator[View]:
    with View(os.open(root, os.O_PATH | os.O_DIRECTORY)) as view:
        yield view


def archive(*entries: tuple[str, bytes, str | bytes], **fields: object) -> list[bytes]:
    """A tar of (name, type, content or link target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = kind, 0o640, 1_600_000_000
            for key, value in fields.items():
                setattr(info, key, value)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                tar.addfile(info)
    return [buffer.getvalue()]


def put(view: View, path: str, chunks: list[bytes], rules: Rules | None = None) -> None:
    with view.resolve(path.encode()) as target:
        unpack(chunks, view, target, rules or Rules())


REG, DIR, SYM, LNK, FIFO = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        ("/", "/"),
        ("/d/../d/./file", "/d/file"),
        ("/../../d", "/d"),
        ("to_d/file", "/d/file"),
        ("/up/d", "/d"),
        ("/to_d/", "/d"),
        ("/up", "/"),
    ],
)
def test_paths_stay_inside(view: View, path: str, canonical: str) -> None:
    with view.resolve(path.encode()) as place:
        assert place.path.decode() == canonical


@pytest.mark.parametrize("path", ["/abs/secret", "/loop", "/loop/x", "/d/file/", "/d/file/x", "/nothing/x", "/up/secret"])
def test_paths_that_lead_nowhere(view: View, path: str) -> None:
    with pytest.raises(OSError):
        view.resolve(path.encode())


def test_a_link_at_the_end_is_followed_only_when_asked(view: View) -> None:
    with view.resolve(b"/to_d", follow=False) as place:
        assert stat.S_ISLNK(place.status.st_mode)
    with view.resolve(b"/to_d/", follow=False) as place:
        assert place.path == b"/d"


def test_an_archive_is_unpacked_with_all_that_it_says(view: View, root: Path) -> None:
    put(
        view,
        "/to_d",
        archive(
            ("new/deep/f", REG, b"data"), ("new/link", SYM, "/etc/passwd"), ("new/hard", LNK, "new/deep/f"), ("p", FIFO, ""), uid=7, gid=8
        ),
    )
    made = root / "d/new/deep/f"
    status = made.stat()
    assert made.read_bytes() == b"data"
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), status.st_mtime) == (7, 8, 0o640, 1_600_000_000)
    assert (root / "d/new").stat().st_uid == 0, "a parent that the archive did not have is root's"
    assert os.readlink(root / "d/new/link") == "/etc/passwd"
    assert (root / "d/new/hard").samefile(made)
    assert stat.S_ISFIFO((root / "d/p").lstat().st_mode)


def test_everything_may_belong_to_one_owner(view: View, root: Path) -> None:
    put(view, "/d", archive(("x", REG, b""), ("l", SYM, "x"), ("e", DIR, "")), Rules(owner=(33, 44)))
    for name in ("x", "l", "e"):
        assert ((root / "d" / name).lstat().st_uid, (root / "d" / name).lstat().st_gid) == (33, 44)


@pytest.mark.parametrize(
    "entries",
    [
        [("../evil", REG, b"x")],
        [("a/../../evil", REG, b"x")],
        [("h", LNK, "../../secret")],
    ],
)
def test_an_archive_cannot_name_what_lies_outside(view: View, root: Path, entries: list[tuple[str, bytes, str | bytes]]) -> None:
    with pytest.raises(InvalidArgument, match=r"outside|invalid hardlink"):
        put(view, "/d", archive(*entries))
    assert not (root / "evil").exists() and not (root.parent / "evil").exists()


def test_links_in_the_archive_lead_nowhere_outside(view: View, root: Path) -> None:
    put(view, "/d", archive(("out", SYM, str(root.parent)), ("out/secret", REG, b"in the root's own tree")))
    put(view, "/d", archive(("climb", SYM, "../../../../.."), ("climb/etc/passwd", REG, b"mine")))
    assert (root.parent / "secret").read_text() == "outside"
    assert (root / "etc/passwd").read_bytes() == b"mine", "followed as in the container: inside of its root"


def test_an_entry_replaces_a_link_and_not_what_it_points_to(view: View, root: Path) -> None:
    (root / "d/l").symlink_to("/d/file")
    put(view, "/d", archive(("l", REG, b"new")))
    assert not (root / "d/l").is_symlink() and (root / "d/file").read_text() == "inside"


def test_kinds_are_kept_when_asked(view: View, root: Path) -> None:
    with pytest.raises(InvalidArgument, match='cannot overwrite directory "/d/sub" with non-directory "/d"'):
        put(view, "/d", archive(("sub", REG, b"")), Rules(keep_kinds=True))
    with pytest.raises(InvalidArgument, match='cannot overwrite non-directory "/d/file" with directory "/d"'):
        put(view, "/d", archive(("file", DIR, "")), Rules(keep_kinds=True))
    put(view, "/d", archive(("sub", REG, b""), ("file", DIR, "")))
    assert (root / "d/sub").is_file() and (root / "d/file").is_dir()


def test_sparse_files_and_modes(view: View, root: Path) -> None:
    put(view, "/d", archive(("suid", REG, b"x"), mode=0o4755))
    assert stat.S_IMODE((root / "d/suid").stat().st_mode) == 0o4755


def test_mounts_of_the_table_are_entered_written_and_shown(view: View, root: Path, tmp_path: Path) -> None:
    volume, single = tmp_path / "volume", tmp_path / "single"
    volume.mkdir()
    single.write_text("one file")
    (root / "etc/hosts").write_text("")
    view.attach("/to_d/sub", open_tree(AT_FDCWD, str(volume), recursive=True))
    view.attach("/etc/hosts", open_tree(AT_FDCWD, str(single), recursive=True))
    put(view, "/", archive(("d/sub/v", REG, b"in the volume")))
    assert (volume / "v").read_bytes() == b"in the volume" and not any((root / "d/sub").iterdir())
    with pytest.raises(OSError, match="busy"):
        put(view, "/etc", archive(("hosts", REG, b"")))
    with view.resolve(b"/d", follow=False) as place:
        shown = b"".join(tar_object(place.parent, place.name, b"d", view.mounts))
    with tarfile.open(fileobj=io.BytesIO(shown)) as tar:
        assert sorted(tar.getnames()) == ["d", "d/file", "d/sub", "d/sub/v"]
    with view.resolve(b"/etc/hosts") as place:
        shown = b"".join(tar_object(place.parent, place.name, b"hosts", view.mounts))
    with tarfile.open(fileobj=io.BytesIO(shown)) as tar:
        file = tar.extractfile("hosts")
        assert file is not None and file.read() == b"one file"


def test_a_read_only_mount_is_not_written(view: View, root: Path, tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir()
    mount = open_tree(AT_FDCWD, str(tmp_path / "ro"), recursive=True)
    set_attributes(mount, add=MOUNT_ATTR_RDONLY, recursive=True)
    view.attach("/d/sub", mount)
    with pytest.raises(OSError, match=r"[Rr]ead-only"):
        put(view, "/", archive(("d/sub/x", REG, b"")))
    assert not any((tmp_path / "ro").iterdir())


def test_a_directory_that_is_swapped_for_a_link_never_leads_out(root: Path, view: View, tmp_path: Path) -> None:
    """CVE-2018-15664: the container swaps a directory for a link to the host's root while the archive is unpacked."""
    victim = tmp_path / "victim"
    victim.mkdir()
    stop = threading.Event()

    def swap() -> None:
        (root / "d/link").symlink_to(str(victim))
        while not stop.is_set():
            for old, new in (("x", "aside"), ("link", "x"), ("x", "link"), ("aside", "x")):
                with suppress(OSError):
                    os.rename(root / "d" / old, root / "d" / new)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(int(os.environ.get("TARE_SWAP_ROUNDS", "150"))):
            with suppress(OSError):
                put(view, "/d", archive(("x/pwned", REG, b"x")))
    finally:
        stop.set()
        swapper.join()
    assert not any(victim.iterdir())
