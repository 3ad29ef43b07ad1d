"""The contract of every layer driver: what a stack of layers must look like, whatever the driver makes of their tars.

Subclass ``LayerDriverContract`` with a ``driver_name``; it needs root. Peers are GNU tar (what a tar means) and the kernel's overlayfs
(what whiteouts mean). Layers are built with Python's tarfile, GNU tar, or our own encoder where both refuse to be as hostile as needed.
"""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.errors import Conflict, Corrupt, InvalidArgument, NotFound
from tare.linux.mount import overlay
from tare.oci.digest import Digest
from tare.store.layers.choice import DRIVERS
from tare.store.layers.driver import Layer, LayerDriver
from tare.store.tar import writer
from tare.store.tar.entry import Entry, Kind, Limits

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""security.capability: cap_net_bind_service+ep (version 2)."""


def file(name: str | bytes, body: bytes = b"", **fields: object) -> tuple[Entry, bytes]:
    entry = Entry(os.fsencode(name), Kind.FILE, size=len(body))
    for key, value in fields.items():
        setattr(entry, key, value)
    return entry, body


def other(name: str | bytes, kind: Kind, link: str = "", **fields: object) -> tuple[Entry, bytes]:
    entry = Entry(os.fsencode(name), kind, 0o755, linkname=os.fsencode(link))
    for key, value in fields.items():
        setattr(entry, key, value)
    return entry, b""


def pack(*entries: tuple[Entry, bytes]) -> bytes:
    return b"".join(writer.header(entry) + body + writer.padding(len(body)) for entry, body in entries) + writer.END


def store(driver: LayerDriver, tar: bytes, chunk: int = 1 << 20) -> Layer:
    with driver.writer() as layer:
        for start in range(0, len(tar), chunk):
            layer.write(tar[start : start + chunk])
        stored = layer.commit(Digest.of(tar))
    assert b"".join(driver.tar(stored.diff_id)) == tar
    return stored


def fingerprint(root: Path) -> dict[bytes, tuple[object, ...]]:
    """All that can be seen of a tree: types, owners, modes, times, links, content and attributes; hard links by their groups."""
    seen: dict[bytes, tuple[object, ...]] = {}
    groups: dict[int, bytes] = {}
    top = os.fsencode(root)
    for directory, names, files in os.walk(top):
        for name in sorted([*names, *files]) + ([b""] if directory == top else []):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            content: object = None
            if kind == stat.S_IFREG:
                content = Path(os.fsdecode(path)).read_bytes()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                content = status.st_rdev
            keys = sorted(os.listxattr(path, follow_symlinks=False))
            attributes = tuple((key, os.getxattr(path, key, follow_symlinks=False)) for key in keys)
            relative = path[len(top) :].strip(b"/")
            first = relative if kind == stat.S_IFDIR else groups.setdefault(status.st_ino, relative)
            links = status.st_nlink if kind != stat.S_IFDIR else 0
            time = status.st_mtime_ns if relative else 0
            seen[relative] = (status.st_mode, status.st_uid, status.st_gid, time, links, first, content, attributes)
    return seen


def rich_tree(root: Path) -> None:
    """A directory with everything that a layer may hold."""
    root.mkdir()
    for size in (0, 1, 511, 512, 513, 4096, 70000):
        (root / f"size{size}").write_bytes(os.urandom(size))
    (root / "empty").mkdir(mode=0o700)
    (root / "dir/deep/er").mkdir(parents=True)
    (root / "dir/deep/er/file").write_text("x")
    (root / "setuid").write_text("s")
    os.chown(root / "setuid", 12345, 54321)
    (root / "setuid").chmod(0o6755)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    os.link(root / "size513", root / "dir/hard")
    os.link(root / "size513", root / "zhard")
    (root / "link").symlink_to("dir/deep")
    (root / "dangling").symlink_to("/nowhere/" + "x" * 180)
    os.lchown(root / "link", 7, 8)
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(root / "block", 0o600 | stat.S_IFBLK, os.makedev(259, 70000))
    for name in (b"\xff\xfe", b"new\nline", b" space", b"!first", b"-dash", b"..three", b"\xc3\xbc", b"n" * 255, b"back\\slash"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(name)
    long = root / ("l" * 120) / ("m" * 120)
    long.mkdir(parents=True)
    (long / ("f" * 200)).write_text("long")
    os.setxattr(root / "size1", "user.note", b"value\0with nul")
    os.setxattr(root / "size1", "user.empty", b"")
    os.setxattr(root / "dir", "user.dir", b"d" * 1000)
    os.setxattr(root / "size4096", "security.capability", CAPABILITY)
    os.setxattr(root / "size4096", "trusted.thing", b"t")
    for index in range(300):
        (root / "dir" / f"many{index}").touch()
    os.utime(root / "size512", ns=(0, 1_500_000_000_123_456_789))
    os.utime(root / "size511", ns=(0, 0))
    os.utime(root / "size0", ns=(0, 8_000_000_000_000_000_000))


class LayerDriverContract:
    driver_name = ""
    rich_form = "directory"
    """The form that a layer without peculiarities takes."""

    @pytest.fixture
    def driver(self, tmp_path: Path) -> Iterator[LayerDriver]:
        made = self.make(tmp_path)
        try:
            yield made
        finally:
            self.reopen(tmp_path, made).close()
            assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()

    def make(self, tmp_path: Path, **options: object) -> LayerDriver:
        kind = DRIVERS[self.driver_name]
        kind.probe(tmp_path / "data", tmp_path / "exec")
        return kind(tmp_path / "data", tmp_path / "exec", **options)  # type: ignore[arg-type]

    def reopen(self, tmp_path: Path, driver: LayerDriver) -> LayerDriver:
        """A driver on the same directories, as after a crash of the daemon."""
        return type(driver)(tmp_path / "data", tmp_path / "exec")

    def nothing_left(self, tmp_path: Path) -> None:
        root = tmp_path / "data/layers" / self.driver_name
        assert os.listdir(root / "tmp") == []
        assert os.listdir(root / "sha256") == []

    def view(self, driver: LayerDriver, *tars: bytes) -> Path:
        """The directory that shows the last of some layers."""
        return driver.acquire([store(driver, tar).diff_id for tar in tars])[-1]

    @pytest.mark.parametrize("dialect", ["gnu", "pax", "posix-small-chunks"])
    def test_looks_as_after_gnu_tar(self, driver: LayerDriver, tmp_path: Path, dialect: str) -> None:
        source, tar, reference = tmp_path / "source", tmp_path / "layer.tar", tmp_path / "reference"
        rich_tree(source)
        extra = [] if dialect == "gnu" else ["--xattrs", "--xattrs-include=*"]
        form = "gnu" if dialect == "gnu" else "pax"
        subprocess.run(["tar", "-C", source, f"--format={form}", *extra, "-cf", tar, "."], check=True)
        reference.mkdir()
        subprocess.run(["tar", "-C", reference, "--xattrs", "--xattrs-include=*", "-xpf", tar], check=True)
        layer = store(driver, tar.read_bytes(), 777 if dialect == "posix-small-chunks" else 1 << 18)
        assert layer.form == self.rich_form
        assert layer.tar_size == tar.stat().st_size
        shown = driver.acquire([layer.diff_id])[0]
        assert fingerprint(shown) == fingerprint(reference)
        subprocess.run(["diff", "-r", "--no-dereference", "-x", "null", "-x", "block", "-x", "fifo", reference, shown], check=True)

    def test_whiteouts_and_opaque_directories(self, driver: LayerDriver, tmp_path: Path) -> None:
        below = pack(
            other("d", Kind.DIRECTORY), file("d/old", b"1"), file("gone", b"2"),
            other("o", Kind.DIRECTORY), file("o/hidden", b"3"), file("keep", b"4"),
        )  # fmt: skip
        above = pack(file(".wh.gone"), file("d/.wh.old"), file("o/.wh..wh..opq"), file("o/new", b"5"), file(".wh..wh.plnk/1", b"aufs"))
        layers = [store(driver, tar).diff_id for tar in (below, above)]
        upper, work = tmp_path / "upper", tmp_path / "work"
        upper.mkdir()
        work.mkdir()
        lower = [str(path) for path in driver.acquire(layers)[::-1]]
        merged = overlay(lower, str(upper), str(work))
        try:
            root = Path(f"/proc/self/fd/{merged}")
            assert sorted(os.listdir(root)) == ["d", "keep", "o"]
            assert os.listdir(root / "d") == []
            assert os.listdir(root / "o") == ["new"]
            (root / "d/old").write_text("again")
        finally:
            os.close(merged)

    def test_whiteout_hides_only_layers_below(self, driver: LayerDriver) -> None:
        shown = self.view(
            driver,
            pack(
                file("a", b"1"), file(".wh.a"), file(".wh.b"), file("b", b"2"),
                file("d/x", b"3"), file(".wh.d"), file(".wh.e"), file("e/y"),
            ),
        )  # fmt: skip
        assert (shown / "a").read_bytes() == b"1"
        assert (shown / "b").read_bytes() == b"2"
        for name in ("d", "e"):
            assert (shown / name).is_dir()
            if driver.overlaid:
                assert os.getxattr(shown / name, "trusted.overlay.opaque") == b"y"

    def test_digest_mismatch_leaves_nothing(self, driver: LayerDriver, tmp_path: Path) -> None:
        wrong = Digest.of(b"something else")
        with driver.writer() as layer:
            layer.write(pack(file("a", b"1")))
            with pytest.raises(Corrupt, match=f"expected {wrong}, got sha256:"):
                layer.commit(wrong)
        self.nothing_left(tmp_path)

    @pytest.mark.parametrize("cut", [100, 600, 1024 + 100, 1024 + 512 + 7])
    def test_truncated_layer_leaves_nothing(self, driver: LayerDriver, tmp_path: Path, cut: int) -> None:
        tar = pack(file("a", b"x" * 500), file("b", b"y" * 2000))[:cut]
        with driver.writer() as layer:
            layer.write(tar)
            with pytest.raises(Corrupt, match="truncated"):
                layer.commit()
        self.nothing_left(tmp_path)

    def test_abort_leaves_nothing(self, driver: LayerDriver, tmp_path: Path) -> None:
        layer = driver.writer()
        layer.write(pack(file("a", b"1")))
        layer.abort()
        layer.abort()
        self.nothing_left(tmp_path)

    def test_garbage_is_refused(self, driver: LayerDriver, tmp_path: Path) -> None:
        with driver.writer() as layer, pytest.raises(Corrupt, match="invalid tar header at byte 0"):
            layer.write(b"\x1f\x8b" + os.urandom(4000))
        self.nothing_left(tmp_path)

    def test_tar_without_end_or_padding(self, driver: LayerDriver) -> None:
        tar = (writer.header(file("a", b"12345")[0]) + b"12345").ljust(1024, b"\0")
        tar += writer.header(file("b", b"tail" * 10)[0]) + b"tail" * 10
        assert len(tar) % 512
        shown = self.view(driver, tar)
        assert (shown / "b").read_bytes() == b"tail" * 10

    def test_last_of_a_name_wins(self, driver: LayerDriver) -> None:
        shown = self.view(
            driver,
            pack(
                file("f", b"old"), other("kept", Kind.LINK, "f"), file("f", b"new"),
                file("d/inside", b"1"), file("d", b"now a file"),
                file("e", b"file"), other("e", Kind.DIRECTORY), file("e/inside", b"2"),
                other("m", Kind.DIRECTORY, mode=0o700), file("m/x", b"3"), other("m", Kind.DIRECTORY, mode=0o755),
            ),
        )  # fmt: skip
        assert (shown / "f").read_bytes() == b"new"
        assert (shown / "kept").read_bytes() == b"old"
        assert (shown / "f").stat().st_nlink == (shown / "kept").stat().st_nlink == 1
        assert (shown / "d").read_bytes() == b"now a file"
        assert (shown / "e/inside").read_bytes() == b"2"
        assert (shown / "m/x").read_bytes() == b"3"
        assert stat.S_IMODE((shown / "m").stat().st_mode) == 0o755

    def test_listings_are_whole(self, driver: LayerDriver) -> None:
        """Also by the C library, which leaves out entries whose inode number is 0."""
        shown = self.view(driver, pack(other("d", Kind.DIRECTORY), file("d/f", b"1"), other("d/e", Kind.DIRECTORY), file("d/e/g")))
        for path, names in ((shown, ["d"]), (shown / "d", ["e", "f"]), (shown / "d/e", ["g"])):
            listed = subprocess.run(["ls", "-a", path], check=True, capture_output=True, text=True).stdout.split()
            assert sorted(listed) == [".", "..", *names]

    def test_missing_parents_belong_to_root(self, driver: LayerDriver) -> None:
        shown = self.view(driver, pack(file("a/b/c", b"1", uid=5)))
        for path in ("a", "a/b"):
            status = (shown / path).stat()
            assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o755, 0, 0)

    @pytest.mark.parametrize(
        "entry",
        [file("../out"), file("a/../../out"), other("l", Kind.LINK, "../../etc/passwd"), other("x/../../..", Kind.DIRECTORY)],
    )
    def test_names_outside_are_refused(self, driver: LayerDriver, tmp_path: Path, entry: tuple[Entry, bytes]) -> None:
        with driver.writer() as layer, pytest.raises(Corrupt, match="outside of the layer"):
            layer.write(pack(entry))
        self.nothing_left(tmp_path)

    def test_links_are_followed_inside_the_root_only(self, driver: LayerDriver, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        shown = self.view(
            driver,
            pack(
                other("lib", Kind.SYMLINK, "usr/lib"), file("lib/one", b"1"),
                other("abs", Kind.SYMLINK, str(outside)), file("abs/two", b"2"),
                other("up", Kind.SYMLINK, "../../../../../../" + str(outside)), file("up/three", b"3"),
                other("d/l", Kind.SYMLINK, ".."), file("d/l/four", b"4"),
                file("/etc/absolute", b"5"), file("./x/../dotted", b"6"),
            ),
        )  # fmt: skip
        assert os.listdir(outside) == []
        assert (shown / "usr/lib/one").read_bytes() == b"1"
        inside = shown / str(outside).lstrip("/")
        assert sorted(os.listdir(inside)) == ["three", "two"]
        assert (shown / "four").read_bytes() == b"4"
        assert (shown / "etc/absolute").read_bytes() == b"5"
        assert (shown / "dotted").read_bytes() == b"6"

    def test_link_loops_and_files_as_parents_are_refused(self, driver: LayerDriver, tmp_path: Path) -> None:
        for tar, text in (
            (pack(other("a", Kind.SYMLINK, "b"), other("b", Kind.SYMLINK, "a"), file("a/x")), "too many symbolic links"),
            (pack(file("f", b"1"), file("f/x", b"2")), "not a directory"),
            (pack(file("x/y"), other("l", Kind.LINK, "x")), "hard link to the directory"),
            (pack(file(".", b"1")), "would replace the layer's root"),
            (pack(file(".wh..")), "names no file"),
        ):
            with driver.writer() as layer, pytest.raises(Corrupt, match=text):
                layer.write(tar)
        self.nothing_left(tmp_path)

    def test_hard_link_into_a_layer_below(self, driver: LayerDriver, tmp_path: Path) -> None:
        base = store(driver, pack(file("d/target", b"body", mode=0o750, uid=9, mtime_ns=5_000_000_000))).diff_id
        layer = store(driver, pack(other("one", Kind.LINK, "d/target"), other("two", Kind.LINK, "/d/target"), file("own", b"2")))
        assert layer.form == "pending"
        shown = driver.acquire([base, layer.diff_id])[-1]
        status = (shown / "one").stat()
        assert (shown / "one").read_bytes() == b"body"
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime, status.st_nlink) == (0o750, 9, 5, 2)
        assert (shown / "own").read_bytes() == b"2"
        assert driver.acquire([base, layer.diff_id])[-1] == shown
        with pytest.raises(Corrupt, match="'d/target', which neither this layer nor those below it hold"):
            driver.acquire([layer.diff_id])
        driver.release([base, layer.diff_id])
        driver.release([base, layer.diff_id])
        driver.remove(layer.diff_id)
        assert os.listdir(tmp_path / "data/layers" / self.driver_name / "tmp") == []

    @pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
    def test_sparse_files(self, driver: LayerDriver, tmp_path: Path, form: str) -> None:
        source = tmp_path / "source"
        source.mkdir()
        with open(source / "sparse", "wb") as sparse:
            for index in range(30):
                sparse.seek(index * 200_000)
                sparse.write(b"data%d" % index)
            sparse.truncate(7_000_001)
        (source / "zafter").write_text("after")
        for path in (source / "sparse", source / "zafter", source):
            os.utime(path, (1_700_000_000, 1_700_000_000))
        options = ["--format=gnu"] if form == "gnu" else ["--format=pax", f"--sparse-version={form}"]
        subprocess.run(["tar", "-C", source, *options, "-S", "-cf", tmp_path / "layer.tar", "."], check=True)
        tar = (tmp_path / "layer.tar").read_bytes()
        assert len(tar) < 1 << 20
        layer = store(driver, tar, 1000)
        assert layer.form == ("directory" if driver.overlaid else "tar")
        shown = driver.acquire([layer.diff_id])[0]
        assert fingerprint(shown) == fingerprint(source)
        assert (shown / "sparse").stat().st_blocks * 512 < 1 << 20

    def test_the_tar_comes_back_and_a_changed_file_is_noticed(self, driver: LayerDriver) -> None:
        kept = {b"user.kept": b"1"}
        tar = pack(file("a", b"old" * 300), other("l", Kind.LINK, "a"), file("a", b"new" * 300000, xattrs=kept), file("b", b"z")) + b"end"
        layer = store(driver, tar)
        assert driver.has_tar(layer.diff_id)
        files = driver.path(layer.diff_id) / "fs"
        if layer.form == "directory":
            (files / "b").write_bytes(b"y")
            with pytest.raises(Corrupt, match="not what they were"):
                list(driver.tar(layer.diff_id))
            (files / "b").unlink()
            with pytest.raises(Corrupt, match="damaged on disk"):
                list(driver.tar(layer.diff_id))
        else:
            os.truncate(driver.path(layer.diff_id) / "layer.tar", 1000)
            with pytest.raises(Corrupt, match="cut off"):
                list(driver.tar(layer.diff_id))
        missing = Digest.of(b"missing")
        assert not driver.has_tar(missing)
        with pytest.raises(NotFound, match="pull its image again"):
            list(driver.tar(missing))

    def test_empty_and_repeated_layers(self, driver: LayerDriver) -> None:
        empty = store(driver, writer.END).diff_id
        one = store(driver, pack(file("a", b"1"))).diff_id
        two = store(driver, pack(file("b", b"1"))).diff_id
        assert len(driver.acquire([])) == 1
        assert len(driver.acquire([empty])) == 1
        stack = driver.acquire([one, empty, two, empty, one])
        if driver.overlaid:
            assert [os.listdir(path) for path in stack] == [["b"], ["a"]]
        else:
            assert [sorted(os.listdir(path)) for path in stack] == [["a", "b"]]

    def test_overlay_attributes_in_a_tar_are_dropped(self, driver: LayerDriver) -> None:
        attributes = {b"trusted.overlay.redirect": b"/etc", b"user.overlay.opaque": b"y", b"bogus": b"1", b"user.fine": b"2"}
        layer = store(driver, pack(other("d", Kind.DIRECTORY, xattrs=attributes)))
        assert layer.dropped == ("bogus", "trusted.overlay.redirect", "user.overlay.opaque")
        shown = driver.acquire([layer.diff_id])[0]
        assert os.listxattr(shown / "d") == ["user.fine"]

    def test_extreme_values(self, driver: LayerDriver) -> None:
        shown = self.view(
            driver,
            pack(
                file("far", mtime_ns=10**27), file("before", mtime_ns=-(10**18)), file("nobody", uid=0xFFFFFFFE, gid=0xFFFFFFFE),
                file("x", xattrs={b"user.%d" % index: b"v" * 100 for index in range(20)}),
            ),
        )  # fmt: skip
        assert (shown / "far").stat().st_mtime > 2**33
        assert (shown / "nobody").stat().st_uid == 0xFFFFFFFE
        assert len(os.listxattr(shown / "x")) == 20
        with driver.writer() as layer, pytest.raises(InvalidArgument, match="65536 bytes of extended attributes"):
            layer.write(pack(file("x", xattrs={b"user.%d" % index: bytes(60000) for index in range(2)})))

    def test_private_directories_under_a_lax_umask(self, tmp_path: Path) -> None:
        old = os.umask(0)
        try:
            driver = self.make(tmp_path)
            store(driver, pack(file("a", b"1")))
        finally:
            os.umask(old)
        for path in ("data", "data/layers", "exec", "exec/layers"):
            assert stat.S_IMODE((tmp_path / path).stat().st_mode) & 0o066 == 0, path
        assert stat.S_IMODE((tmp_path / "data/layers" / self.driver_name).stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "exec/layers" / self.driver_name).stat().st_mode) == 0o700

    def test_limits(self, driver: LayerDriver, tmp_path: Path) -> None:
        limits = Limits(entries=5, path=300, depth=10, extension=2000, metadata=3000, total=20000)
        small = type(driver)(tmp_path / "data", tmp_path / "exec", limits)
        for tar, text in (
            (pack(*(file(f"f{index}") for index in range(6))), "limit of 5 entries"),
            (pack(file("/".join("d" * 12))), "deeper than 10"),
            (pack(file("p" * 256)), "longer than 255 bytes"),
            (pack(file("p/" * 155 + "q")), "longer than 300 bytes"),
            (pack(file("x", xattrs={b"user.a": bytes(2100)})), "over the limit of 2000"),
            (pack(*(file("n" * 90 + str(index), xattrs={b"user.a": bytes(1000)}) for index in range(4))), "3000 bytes of names"),
            (pack(file("x", bytes(30000))), "limit of 20000 bytes"),
        ):
            with small.writer() as layer, pytest.raises((Corrupt, InvalidArgument), match=text):
                layer.write(tar)
        self.nothing_left(tmp_path)

    def test_a_restart_finds_layers_and_mounts(self, driver: LayerDriver, tmp_path: Path) -> None:
        layer = store(driver, pack(file("a", b"1")))
        driver.writer().write(b"")
        shown = driver.acquire([layer.diff_id])
        again = self.reopen(tmp_path, driver)
        assert list(again.walk()) == [layer.diff_id]
        assert again.get(layer.diff_id) == layer
        assert os.listdir(tmp_path / "data/layers" / self.driver_name / "tmp") == []
        assert again.acquire([layer.diff_id]) == shown
        assert (shown[0] / "a").read_bytes() == b"1"
        again.release([layer.diff_id])
        again.unmount_idle()
        assert again.acquire([layer.diff_id]) == shown
        assert (shown[0] / "a").read_bytes() == b"1"

    def test_layers_in_use_stay(self, driver: LayerDriver, tmp_path: Path) -> None:
        layer = store(driver, pack(file("a", b"1")))
        driver.acquire([layer.diff_id])
        driver.acquire([layer.diff_id])
        driver.release([layer.diff_id])
        with pytest.raises(Conflict, match=r"layer sha256:.* is in use"):
            driver.remove(layer.diff_id)
        driver.unmount_idle()
        assert driver.acquire([layer.diff_id])[0].joinpath("a").read_bytes() == b"1"
        driver.release([layer.diff_id])
        driver.release([layer.diff_id])
        assert driver.remove(layer.diff_id) == layer.tar_size
        assert not driver.has(layer.diff_id)
        assert driver.remove(layer.diff_id) == 0
        with pytest.raises(NotFound, match="pull its image again"):
            driver.acquire([layer.diff_id])
        self.nothing_left(tmp_path)

    def test_the_same_layer_twice_at_once(self, driver: LayerDriver, tmp_path: Path) -> None:
        tar = pack(*(file(f"d{index % 7}/f{index}", b"x" * index) for index in range(300)))
        results: list[Layer] = []
        threads = [threading.Thread(target=lambda: results.append(store(driver, tar, 5000))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        assert len(set(results)) == 1
        assert len(os.listdir(driver.acquire([results[0].diff_id])[0])) == 7
        assert os.listdir(tmp_path / "data/layers" / self.driver_name / "tmp") == []

    def test_python_tarfile_dialects(self, driver: LayerDriver) -> None:
        for dialect in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w", format=dialect) as archive:
                info = tarfile.TarInfo("/".join(["directory" * 5] * 3) + "/file")
                info.size, info.mtime = 3, 1_600_000_000
                archive.addfile(info, io.BytesIO(b"abc"))
            shown = self.view(driver, buffer.getvalue())
            assert shown.joinpath(info.name).read_bytes() == b"abc"
