"""Tars of local files, and local files from tars, for ``cp``.

An archive that comes out of a container is hostile. Each entry is made as *one component relative to an open directory*: directories on the
way are opened with ``O_NOFOLLOW``, files are created anew, modes and times are set on descriptors. So no link, wherever it came from, is
ever followed, and nothing outside of the destination can be named. Owners are not taken over, as by docker.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile

from tare.cli.failures import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import IO

_CHUNK = 1 << 18
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def pack(directory: str, base: str, name: str) -> Iterator[bytes]:
    """A tar of ``base`` (``.`` for all) in ``directory``, called ``name`` in it."""
    yield from _pack(os.path.join(directory, base) if base != "." else directory, name, {})
    yield bytes(1024)


def _pack(path: str, name: str, links: dict[tuple[int, int], str]) -> Iterator[bytes]:
    status = os.lstat(path)
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return  # a socket
    entry = tarfile.TarInfo(name + "/" if kind == tarfile.DIRTYPE else name)
    entry.type, entry.mode, entry.uid, entry.gid = kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    entry.mtime = status.st_mtime_ns // 1_000_000_000
    entry.pax_headers = {"mtime": f"{entry.mtime}.{status.st_mtime_ns % 1_000_000_000:09d}"}
    if kind == tarfile.SYMTYPE:
        entry.linkname = os.readlink(path)
    elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        entry.devmajor, entry.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    if kind != tarfile.DIRTYPE and status.st_nlink > 1:
        first = links.setdefault((status.st_dev, status.st_ino), name)
        if first != name:
            entry.type, entry.linkname = tarfile.LNKTYPE, first
    if entry.type == tarfile.REGTYPE:
        yield from _pack_file(path, entry)
        return
    yield _header(entry)
    if kind == tarfile.DIRTYPE:
        for child in sorted(os.listdir(path)):
            yield from _pack(os.path.join(path, child), f"{name.rstrip('/')}/{child}", links)


def _pack_file(path: str, entry: tarfile.TarInfo) -> Iterator[bytes]:
    with open(path, "rb") as file:
        entry.size = os.fstat(file.fileno()).st_size
        yield _header(entry)
        left = entry.size
        while left:
            chunk = file.read(min(left, _CHUNK)) or bytes(min(left, _CHUNK))  # it shrank meanwhile
            left -= len(chunk)
            yield chunk
    if entry.size % 512:
        yield bytes(-entry.size % 512)


def _header(entry: tarfile.TarInfo) -> bytes:
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


class Reader:
    """Pieces as the file that ``tarfile`` wants to read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""
        self.taken = 0

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self.taken += len(piece)
            self._rest += piece
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def drain(self) -> None:
        """Read to the end, so that the daemon is not cut off."""
        for piece in self._pieces:
            self.taken += len(piece)


def unpack(reader: Reader, directory: str, rename: Callable[[str], str]) -> None:
    """Make the archive's files below ``directory``, their names changed by ``rename``. Raises CliError for what docker refuses."""
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        unpacker = _Unpacker(top, directory, rename)
        with tarfile.open(fileobj=reader, mode="r|", errorlevel=2) as archive:  # type: ignore[call-overload]
            for entry in archive:
                unpacker.add(entry, archive)
        reader.drain()
        unpacker.finish()
    except tarfile.TarError as error:
        raise CliError(f"the archive is damaged: {error}") from None
    finally:
        os.close(top)


class _Unpacker:
    def __init__(self, top: int, directory: str, rename: Callable[[str], str]) -> None:
        self._top = top
        self._directory = directory
        self._rename = rename
        self._times: list[tuple[list[str], float]] = []

    def _parts(self, name: str) -> list[str]:
        parts: list[str] = []
        for part in name.split("/"):
            if part == "..":
                if not parts:
                    raise CliError(f'"{name}" is outside of "{self._directory}"')
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        return parts

    def _open(self, parts: list[str]) -> int:
        """The directory at ``parts``, made where it is missing."""
        current = os.dup(self._top)
        for part in parts:
            try:
                inner = os.open(part, _DIRECTORY, dir_fd=current)
            except FileNotFoundError:
                os.mkdir(part, 0o755, dir_fd=current)
                inner = os.open(part, _DIRECTORY, dir_fd=current)
            finally:
                os.close(current)
            current = inner
        return current

    def add(self, entry: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        parts = self._parts(self._rename(entry.name))
        if not parts:
            return
        parent = self._open(parts[:-1])
        try:
            name = parts[-1]
            if self._make_way(parent, name, entry, "/".join([self._directory.rstrip("/"), *parts])):
                self._make(parent, parts, entry, archive)
            if entry.isdir():
                self._times.append((parts, float(entry.mtime)))
                _set_mode(parent, name, entry.mode)
        finally:
            os.close(parent)

    def _make_way(self, parent: int, name: str, entry: tarfile.TarInfo, path: str) -> bool:
        """Remove what is in the way; returns whether something is still to be made."""
        try:
            there = stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode)
        except FileNotFoundError:
            return True
        if there and not entry.isdir():
            raise CliError(f'cannot overwrite directory "{path}" with non-directory "{self._directory}"')
        if entry.isdir() and not there:
            raise CliError(f'cannot overwrite non-directory "{path}" with directory "{self._directory}"')
        if not there:
            os.unlink(name, dir_fd=parent)
        return not there

    def _check_link(self, parts: list[str], target: str) -> None:
        """Nobody's copy shall contain a link that leads out of it (an absolute one counts from the copy's root, as by docker)."""
        try:
            self._parts("/".join([*parts[:-1], target]))
        except CliError:
            path = "/".join([self._directory.rstrip("/"), *parts])
            raise CliError(f'invalid symlink "{path}" -> "{target}"') from None

    def _make(self, parent: int, parts: list[str], entry: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        name = parts[-1]
        if entry.isdir():
            os.mkdir(name, 0o700, dir_fd=parent)
        elif entry.isreg():
            source = archive.extractfile(entry)
            assert source is not None
            _make_file(parent, name, entry, source)
        elif entry.issym():
            self._check_link(parts, entry.linkname)
            os.symlink(entry.linkname, name, dir_fd=parent)
            os.utime(name, (entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)
        elif entry.islnk():
            target = self._parts(self._rename(entry.linkname))
            other = self._open(target[:-1])
            try:
                os.link(target[-1], name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(other)
        else:
            kind = stat.S_IFIFO if entry.isfifo() else stat.S_IFCHR if entry.ischr() else stat.S_IFBLK
            os.mknod(name, kind | entry.mode & 0o777, os.makedev(entry.devmajor, entry.devminor), dir_fd=parent)

    def finish(self) -> None:
        """Times of directories, now that nothing is put into them any more."""
        for parts, time in reversed(self._times):
            directory = self._open(parts)
            try:
                os.utime(directory, (time, time))
            finally:
                os.close(directory)


def _make_file(parent: int, name: str, entry: tarfile.TarInfo, source: IO[bytes]) -> None:
    file = os.open(name, _NEW, 0o600, dir_fd=parent)
    with open(file, "wb", buffering=0) as target:
        shutil.copyfileobj(source, target, _CHUNK)
        os.fchmod(file, entry.mode & 0o7777)
        os.utime(file, (entry.mtime, entry.mtime))


def _set_mode(parent: int, name: str, mode: int) -> None:
    directory = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        os.fchmod(directory, mode & 0o7777)
    finally:
        os.close(directory)
