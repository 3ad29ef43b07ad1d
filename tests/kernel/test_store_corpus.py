"""Odd and hostile layers, one stack after another: what a container sees of them is what it sees with docker and, where that follows the
specification, with umoci."""

from __future__ import annotations

import http.client
import io
import json
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "suites"))

from layer_driver import CAPABILITY, file, other, pack, store

from dockerd_world import DOCKERD, dockerd
from image_builder import build_image, write_layout
from tare.errors import TareError
from tare.oci.digest import Digest
from tare.store.layers.choice import DRIVERS
from tare.store.snapshots import Snapshots
from tare.store.tar.entry import Kind

pytestmark = [pytest.mark.root, pytest.mark.peer]

D, L, S = Kind.DIRECTORY, Kind.LINK, Kind.SYMLINK
BASE = pack(
    other("d", D, mode=0o711), file("d/a", b"a"), file("d/b", b"b", mode=0o4755), other("d/sub", D), file("d/sub/x", b"x"),
    file("f", b"f"), other("dir", D), file("dir/in", b"in"), other("lib", S, "usr/lib"), other("usr", D), other("usr/lib", D),
    file("usr/lib/one", b"1"), other("h1", L, "f", mode=0o644), other("hidden", D), file("hidden/deep/er", b"deep"),
)  # fmt: skip
CORPUS: dict[str, tuple[bytes, ...]] = {
    "whiteouts": (BASE, pack(file(".wh.f"), file("d/.wh.a"), file(".wh.dir"), file(".wh.nothing"), file("hidden/deep/.wh.er"))),
    "whiteout and new of the same name": (BASE, pack(file(".wh.f"), file("f", b"new"), file("dir/x", b"x"), file(".wh.dir"))),
    "opaque first": (BASE, pack(other("d", D), file("d/.wh..wh..opq"), file("d/new", b"n"))),
    "opaque last": (BASE, pack(other("d", D), file("d/new", b"n"), file("d/.wh..wh..opq"))),
    "opaque, then whiteout": (BASE, pack(other("d", D), file("d/.wh..wh..opq")), pack(file("d/later", b"l"), file("d/.wh.later"))),
    "file becomes directory": (BASE, pack(other("f", D), file("f/x", b"x")), pack(file("f/y", b"y"))),
    "directory becomes file": (BASE, pack(file("d", b"now a file")), pack(other("f", D))),
    "directory becomes link": (BASE, pack(other("d", S, "usr")), pack(file("after", b"1"))),
    "link becomes directory": (BASE, pack(other("lib", D), file("lib/two", b"2"))),
    "removed and made again": (BASE, pack(file(".wh.d")), pack(other("d", D), file("d/fresh", b"1"))),
    "repeated names": (pack(file("x", b"1"), file("x", b"2"), other("y", D), file("y/a"), other("y", D, mode=0o700), file("x", b"3")),),
    "hard links": (
        BASE,
        pack(file("n", b"n"), *(other(name, L, to, mode=0o644) for name, to in (("n2", "n"), ("n3", "./n2"), ("deep/n4", "/n")))),
    ),
    "hard link with attributes": (pack(file("n", b"n"), other("m", L, "n", mode=0o4711, uid=5, gid=6)),),
    "implied parents": (
        pack(other("t", D, mode=0o1777), other("u", D, mode=0o700, uid=4, gid=5), other("t/s", D, mode=0o750)),
        pack(file("t/s/new", b"1"), file("u/.wh.none"), file("w/x", b"2")),
        pack(file("u/more", b"3"), file("w/y", b"4")),
    ),
    "implicit parents": (pack(file("a/b/c/d", b"1"), other("a/b", D, mode=0o700)),),
    "dots and slashes": (pack(file("./x/./y", b"1"), file("x//z", b"2"), other("./x/w/", D), file("/abs/p", b"3")),),
    "devices": (
        pack(other("null", Kind.CHARACTER, mode=0o666, major=1, minor=3), other("p", Kind.FIFO), other("b", Kind.BLOCK, major=7, minor=1)),
    ),
    "odd names": (
        pack(file(b"\xff\xfe", b"1"), file("new\nline", b"2"), file(" ", b"3"), file("n" * 255, b"4"), file("back\\slash"), file("...")),
    ),
    "long paths": (pack(file("/".join(["p" * 99] * 12), b"long"), other("lnk", S, "t" * 3000)),),
    "owners and bits": (pack(file("s", b"1", mode=0o6755, uid=1234567, gid=7654321), other("t", D, mode=0o1777), file("none", mode=0)),),
    "capabilities": (pack(file("cap", b"1", xattrs={b"security.capability": CAPABILITY}), file("u", xattrs={b"user.x": b"y"})),),
    "hundred layers": tuple(
        pack(file(f"f{n % 10}", b"%d" % n), file(f"d/{n}"), *([file(f"d/.wh.{n - 1}")] if n % 3 else [])) for n in range(100)
    ),
}  # fmt: skip


def members(tar: bytes) -> dict[str, tuple[object, ...]]:
    """What a tar of a whole root holds; hard links as what they stand for."""
    seen: dict[str, tuple[object, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape", encoding="utf-8") as archive:
        for info in archive:
            name = info.name.removeprefix("./").rstrip("/")
            if name in ("", ".", "dev", "etc", "proc", "sys", ".dockerenv") or name.startswith(("dev/", "etc/", "proc/", "sys/")):
                continue
            if info.islnk():
                seen[name] = seen[info.linkname.removeprefix("./")]
                continue
            body = archive.extractfile(info) if info.isreg() else None
            device = (info.devmajor, info.devminor) if info.ischr() or info.isblk() else None
            capability = info.pax_headers.get("SCHILY.xattr.security.capability")
            content = body.read() if body is not None else info.linkname if info.issym() else device
            seen[name] = (stat.S_IMODE(info.mode) if not info.issym() else 0, info.type, info.uid, info.gid, content, capability)
    return seen


def ours(root: Path, driver: str, layers: Iterable[bytes]) -> dict[str, tuple[object, ...]]:
    made = DRIVERS[driver](root / driver, root / f"{driver}-run")
    try:
        snapshots = Snapshots(root / driver, made)
        snapshots.prepare("one", [store(made, layer).diff_id for layer in layers])
        return members(b"".join(snapshots.export("one")))
    finally:
        made.close()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("docker")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def theirs(docker: str, root: Path, layers: tuple[bytes, ...]) -> dict[str, tuple[object, ...]]:
    """The same stack in dockerd, exported."""

    def call(method: str, path: str, body: object = None) -> bytes:
        connection = _Connection(docker)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json" if not isinstance(body, bytes) else "application/x-tar"})
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        assert answer.status < 300, said
        return said

    image = build_image(*layers, compression="none", docker=True, config={"Cmd": ["x"]})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        manifest = [{"Config": "config.json", "RepoTags": ["corpus:1"], "Layers": [f"{n}.tar" for n in range(len(layers))]}]
        contents = {"manifest.json": json.dumps(manifest).encode(), "config.json": image.blobs[image.image_id]}
        for name, data in {**contents, **{f"{n}.tar": layer for n, layer in enumerate(layers)}}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    call("POST", "/images/load", archive.getvalue())
    container = json.loads(call("POST", "/containers/create", {"Image": "corpus:1"}))["Id"]
    try:
        exported = members(call("GET", f"/containers/{container}/export"))
        # Directories that the tar does not name: 0600 up to Docker 20.10, 0755 since.
        return {name: (0o755, *entry[1:]) if entry[:2] == (0o600, tarfile.DIRTYPE) else entry for name, entry in exported.items()}
    finally:
        call("DELETE", f"/containers/{container}?force=1")
        call("DELETE", "/images/corpus:1?force=1")


@pytest.fixture(scope="module")
def docker() -> Iterator[str]:
    if DOCKERD is None:
        pytest.skip("needs dockerd: apt-get install docker.io")
    with dockerd() as path:
        yield path


DOCKER_DIFFERS = {
    "whiteout and new of the same name": "a whiteout hides what its own layer has, against the specification",
    "opaque, then whiteout": "the same",
    "repeated names": "20.10 refuses",
}


@pytest.mark.parametrize("name", sorted(set(CORPUS) - set(DOCKER_DIFFERS)))
def test_as_with_docker(docker: str, tmp_path: Path, name: str) -> None:
    layers = CORPUS[name]
    expected = theirs(docker, tmp_path, layers)
    for driver in DRIVERS:
        assert ours(tmp_path, driver, layers) == expected, driver


UMOCI_DIFFERS = {"hard link with attributes", "link becomes directory", "devices", "capabilities", "odd names", "directory becomes link"}


@pytest.mark.skipif(shutil.which("umoci") is None, reason="needs umoci: apt-get install umoci")
@pytest.mark.parametrize("name", sorted(set(CORPUS) - UMOCI_DIFFERS))
def test_as_with_umoci(tmp_path: Path, name: str) -> None:
    layers = CORPUS[name]
    layout = write_layout(build_image(*layers, compression="none"), tmp_path / "layout")
    subprocess.run(["umoci", "raw", "unpack", "--image", f"{layout}:latest", tmp_path / "rootfs"], check=True, capture_output=True)
    tar = subprocess.run(["tar", "-C", tmp_path / "rootfs", "--format=pax", "-cf", "-", "."], check=True, capture_output=True).stdout
    assert ours(tmp_path, "erofs", layers) == members(tar)


@pytest.mark.parametrize("driver", sorted(DRIVERS))
def test_mutated_layers_give_clean_errors_only(tmp_path: Path, driver: str) -> None:
    """Whatever bytes come, a layer is stored or refused with an error of ours, and nothing is left of what was refused."""
    made = DRIVERS[driver](tmp_path / "data", tmp_path / "run")
    dice = random.Random(7)
    sources = [layer for layers in CORPUS.values() for layer in layers[:2] if len(layer) < 30000]
    stored: set[Digest] = set()
    rounds = int(os.environ.get("TARE_FUZZ_ROUNDS", "150"))
    for _ in range(rounds):
        data = bytearray(dice.choice(sources))
        for _ in range(dice.choice((1, 1, 2, 8))):
            at = dice.randrange(0, max(1, len(data) - 1024))
            data[at] = dice.choice((0, 1, 0x2F, 0x30, 0x37, 0x39, 0x7F, 0x80, 0xFF, dice.randrange(256)))
            if dice.random() < 0.5:  # make the header's checksum right again, so that the change gets through
                block = at // 512 * 512
                header = data[block : block + 148] + b" " * 8 + data[block + 156 : block + 512]
                data[block + 148 : block + 156] = b"%06o\0 " % sum(header)
        try:
            with made.writer() as writer:
                writer.write(bytes(data))
                stored.add(writer.commit().diff_id)
        except TareError:
            continue
    assert set(made.walk()) == stored
    assert os.listdir(tmp_path / "data/layers" / driver / "tmp") == []
    for diff_id in stored:
        try:
            made.show([diff_id])
        except TareError:
            continue
    made.close()
