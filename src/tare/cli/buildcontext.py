"""The files of a build on their way to the daemon.

A directory is walked once; what ``.dockerignore`` leaves out is not looked into. A small one is sent as a tar. Of a big one the daemon
first gets the *listing* and says what it lacks (``tare.builder.keptcontexts``), so that an unchanged file is neither read nor sent again.

The tar has whole seconds and the owners of the files, as docker's; the same files give the same bytes.
"""

from __future__ import annotations

import os
import stat
import sys
import time

from tare.cli.failures import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    Item = tuple[str, int, int, int, int, int, str, str, str]
    """Kind (as tar has it), mode, uid, gid, size, mtime, name, link, the rest of what stat says; names as Latin-1."""

KEEP, LOOK, LEAVE = "keep", "look", "leave"
"""What becomes of a name: it goes along; only what lies below it may; neither does."""
_PIECE = 1 << 18
_MANY, _MUCH = 400, 8 << 20
"""From so many files or bytes on the daemon is asked what it has."""
_FRESH_NS = 1_000_000_000
"""A file that was changed so shortly before the walk may change again without a trace in its times."""
_FORMATS = {
    stat.S_IFREG: "0",
    stat.S_IFLNK: "2",
    stat.S_IFCHR: "3",
    stat.S_IFBLK: "4",
    stat.S_IFDIR: "5",
    stat.S_IFIFO: "6",
}
_MAGIC = b"ustar\x0000" + bytes(64)
_DEVICE = b"%07o\0%07o\0"
_NO_DEVICE = _DEVICE % (0, 0)
_OCTAL_SIZE, _OCTAL_ID = 8**11, 8**7


class Directory:
    """The files of one directory, as they were when it was walked."""

    def __init__(self, path: str, verdict: Callable[[str], str] | None = None) -> None:
        self._root = os.fsencode(path)
        self._verdict = verdict
        self._links: dict[tuple[int, int], str] = {}
        self._stale = time.time_ns() - _FRESH_NS
        self.items: list[Item] = []
        self.size = 0
        self._listing = b""
        self._walk(self._root, "")

    @property
    def big(self) -> bool:
        """Whether it is worth asking what the daemon has."""
        return len(self.items) >= _MANY or self.size >= _MUCH

    def _walk(self, directory: bytes, prefix: str) -> None:
        with os.scandir(directory) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        verdict, add, stale = self._verdict, self.items.append, self._stale
        for entry in entries:
            name = prefix + entry.name.decode("latin-1")
            said = KEEP if verdict is None else verdict(os.fsdecode(name.encode("latin-1")))
            if said == LEAVE:
                continue
            status = entry.stat(follow_symlinks=False)
            mode = status.st_mode
            kind = _FORMATS.get(mode & 0o170000)
            if kind is None or (said == LOOK and kind != "5"):
                continue  # a socket, or not wanted
            size, link = 0, ""
            if kind == "0":
                size = status.st_size
            elif kind == "2":
                link = os.readlink(entry.path).decode("latin-1")
            elif kind in "34":
                link = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            if status.st_nlink > 1 and kind != "5":
                first = self._links.setdefault((status.st_dev, status.st_ino), name)
                if first != name:
                    kind, size, link = "1", 0, first
            mtime, ctime = status.st_mtime_ns, status.st_ctime_ns
            rest = f"{mtime} {ctime} {status.st_ino}" if ctime < stale and mtime < stale else f"{mtime} {ctime} {status.st_ino} {stale}"
            if kind == "5":
                rest = ""
            if said == KEEP:
                self.size += size
                add((kind, mode & 0o7777, status.st_uid, status.st_gid, size, mtime // 1_000_000_000, name, link, rest))
            if kind == "5":
                self._walk(entry.path, name + "/")

    def listing(self) -> bytes:
        """All that the daemon needs to know what has changed."""
        if not self._listing:
            import json

            self._listing = json.dumps(self.items, separators=(",", ":"), check_circular=False).encode("ascii")
        return self._listing

    def contents(self, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """The contents of the items that are meant (numbers as first and count), one after the other."""
        waiting: list[bytes] = []
        size = 0
        for first, count in ranges:
            for item in self.items[first : first + count]:
                if item[0] != "0":
                    continue
                for chunk in self._read(item):
                    waiting.append(chunk)
                    size += len(chunk)
                    if size >= _PIECE:
                        yield b"".join(waiting)
                        waiting, size = [], 0
        yield b"".join(waiting)

    def tar(self) -> Iterator[bytes]:
        """All of it as a tar."""
        waiting: list[bytes] = []
        size = 0
        for item in self.items:
            waiting.append(_header(item))
            size += len(waiting[-1])
            if item[0] == "0" and item[4]:
                for chunk in self._read(item):
                    waiting.append(chunk)
                    size += len(chunk)
                    if size >= _PIECE:
                        yield b"".join(waiting)
                        waiting, size = [], 0
                waiting.append(bytes(-item[4] % 512))
        yield b"".join(waiting) + bytes(1024)

    def _read(self, item: Item) -> Iterator[bytes]:
        """The content, just as long as the listing says: what changes meanwhile is noticed the next time."""
        left = item[4]
        file = os.open(self._root + b"/" + item[6].encode("latin-1"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            while left:
                chunk = os.read(file, min(left, _PIECE)) or bytes(min(left, _PIECE))
                left -= len(chunk)
                yield chunk
        finally:
            os.close(file)


def _header(item: Item) -> bytes:
    kind, mode, uid, gid, size, mtime, text, link, _ = item
    name, target = text.encode("latin-1"), link.encode("latin-1")
    if kind == "5":
        name += b"/"
    device = _NO_DEVICE
    if kind in "34":
        major, _, minor = link.partition(":")
        device, target = _DEVICE % (int(major), int(minor)), b""
    if len(name) > 100 or len(target) > 100 or size >= _OCTAL_SIZE or max(uid, gid) >= _OCTAL_ID or not 0 <= mtime < _OCTAL_SIZE:
        return _extended(item)
    head = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(100, b"\0"), mode, uid, gid, size, mtime)
    tail = b"%s%s%s%s%s" % (kind.encode(), target.ljust(100, b"\0"), _MAGIC, device, bytes(167))
    return b"%s%06o\0 %s" % (head, sum(head) + sum(tail) + 256, tail)


def _extended(item: Item) -> bytes:
    """A header that ustar has no room for."""
    import tarfile

    kind, mode, uid, gid, size, mtime, text, link, _ = item
    name = os.fsdecode(text.encode("latin-1"))
    entry = tarfile.TarInfo(name + "/" if kind == "5" else name)
    entry.type, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime = kind.encode(), mode, uid, gid, size, mtime
    if kind in "34":
        major, _, minor = link.partition(":")
        entry.devmajor, entry.devminor = int(major), int(minor)
    else:
        entry.linkname = os.fsdecode(link.encode("latin-1"))
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def directory(path: str, dockerfile: str, elsewhere: str = "") -> Directory:
    """A context without what ``.dockerignore`` leaves out; the Dockerfile and that file always go along.

    ``elsewhere`` is the path of a Dockerfile outside.
    """
    dockerfile = _present(path, dockerfile)
    candidates = [f"{elsewhere}.dockerignore"] if elsewhere else [os.path.join(path, f"{dockerfile}.dockerignore")] if dockerfile else []
    ignore = next((name for name in (*candidates, os.path.join(path, ".dockerignore")) if os.path.isfile(name)), "")
    if not ignore:
        return Directory(path)
    with open(ignore, encoding="utf-8", errors="replace") as file:
        rules = file.read()
    return Directory(path, _verdict(rules, ignore, {dockerfile, os.path.relpath(ignore, path)}))


def _present(path: str, dockerfile: str) -> str:
    """The Dockerfile's name as it is written; docker takes ``dockerfile`` as well."""
    if not dockerfile or os.path.lexists(os.path.join(path, dockerfile)):
        return dockerfile
    if dockerfile != "Dockerfile" or not os.path.lexists(os.path.join(path, "dockerfile")):
        missing = os.path.join(path, dockerfile)
        raise CliError(
            f"unable to prepare context: unable to evaluate symlinks in Dockerfile path: lstat {missing}: no such file or directory"
        )
    return "dockerfile"


def _verdict(rules: str, where: str, always: set[str]) -> Callable[[str], str] | None:
    from tare.builder.ignore import Patterns
    from tare.errors import InvalidArgument

    try:
        patterns = Patterns(rules)
    except InvalidArgument as error:
        raise CliError(f"{where}: {error}") from None
    if not patterns:
        return None

    def verdict(name: str) -> str:
        if name in always or not patterns.excluded(name):
            return KEEP
        if patterns.can_skip(name) and not any(one.startswith(name + "/") for one in always):
            return LEAVE
        return LOOK

    return verdict


def standard_input(dockerfile: str) -> Iterator[bytes]:
    """An archive from standard input as it is, or a Dockerfile from there as an archive."""
    if os.isatty(0):
        raise CliError("a build from standard input needs an archive or a Dockerfile there: tare build - < Dockerfile")
    first = os.read(0, _PIECE)
    if _is_archive(first):
        yield first
        while piece := os.read(0, _PIECE):
            yield piece
        return
    text = first + sys.stdin.buffer.read()
    yield _header(("0", 0o644, 0, 0, len(text), 0, dockerfile.encode().decode("latin-1"), "", "")) + text + bytes(-len(text) % 512 + 1024)


def _is_archive(data: bytes) -> bool:
    return data[257:262] == b"ustar" or data.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def compressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same, as gzip."""
    import zlib

    packer = zlib.compressobj(1, wbits=31)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def identity(path: str, files: Directory) -> dict[str, Any]:
    """What the session is told of a big context: whose it is, and the state that it is in."""
    from hashlib import blake2b

    listing = files.listing()
    return {"Name": f"{os.uname().nodename}:{os.path.realpath(path)}", "State": blake2b(listing, digest_size=20).hexdigest()}
