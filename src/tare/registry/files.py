"""A registry's content in a directory (``objects.Objects``).

    ROOT/blobs/ALG/HEX                      every blob once, whatever repositories have it; manifests are blobs, too
    ROOT/hidden/ALG/HEX                     blobs that a collection is about to remove
    ROOT/uploads/UUID/{data,owner}          an upload under way: its offset is the size of ``data``
    ROOT/repositories/…                     documents, see ``storage``
    ROOT/repositories/NAME/_oci/            the repository as an OCI image layout, for other tools to read:
        oci-layout, index.json, blobs       blobs is a link to ROOT/blobs
    ROOT/temporary/UUID                     documents being written
    ROOT/collecting                         locked by the one collection that hides and destroys

A document is written to the side, synced and renamed. A blob gets its name by a hard link of the finished, synced upload, so that the
upload can publish again should a collection have taken the name away meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tare.oci.digest import Digest
from tare.registry.objects import Busy
from tare.store.durability import make_directory, start_writeback, sync_directory, write_all

_PIECE = 1 << 20
_WRITEBACK = 32 << 20
"""Bytes after which the kernel is asked to begin writing, so that the final sync finds little to do."""


class _FileWriter:
    """Appends to an upload's file, which is locked meanwhile. A file that is a blob already never changes again."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise Busy from None
        # What was a file of an upload when it was opened may be a blob's only, now that it is locked.
        self._published = os.fstat(self._file).st_nlink != 1 or not path.exists()
        self.offset = self._asked = os.lseek(self._file, 0, os.SEEK_END)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._published:
            raise Busy
        try:
            write_all(self._file, data)
        except OSError:
            os.ftruncate(self._file, self.offset)
            os.lseek(self._file, self.offset, os.SEEK_SET)
            raise
        self.offset += len(data)
        if self.offset - self._asked >= _WRITEBACK:
            start_writeback(self._file, self._asked, self.offset - self._asked)
            self._asked = self.offset

    def close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


class FileObjects:
    """See the module's text."""

    local = True

    def __init__(self, root: Path) -> None:
        """Open (or make) the directory."""
        self.root = root
        self._uploads = root / "uploads"
        self._temporary = root / "temporary"
        for name in ("blobs", "hidden", "repositories"):
            make_directory(root / name, 0o755)
        for directory in (self._uploads, self._temporary):
            make_directory(directory, 0o700)
        self._prefix = f"{root}/"

    def close(self) -> None:
        """Nothing is kept open."""

    # Documents

    def get(self, key: str) -> bytes:
        try:
            file = os.open(self._prefix + key, os.O_RDONLY | os.O_CLOEXEC)
        except NotADirectoryError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key) from None
        try:
            return os.read(file, os.fstat(file).st_size)
        finally:
            os.close(file)

    def put(self, key: str, data: bytes) -> None:
        self._place(self.root / key, data)

    def _place(self, path: Path, data: bytes, *, durable: bool = True) -> None:
        make_directory(path.parent, 0o755)
        temporary = self._temporary / str(uuid.uuid4())
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                os.fchmod(file, 0o644)
                write_all(file, data)
                if durable:
                    os.fsync(file)
            finally:
                os.close(file)
            temporary.rename(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_directory(path.parent)

    def remove(self, key: str) -> bool:
        try:
            os.unlink(self._prefix + key)
        except (FileNotFoundError, NotADirectoryError):
            return False
        sync_directory((self.root / key).parent)
        return True

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._prefix + folder) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def modified(self, key: str) -> float | None:
        try:
            return os.stat(self._prefix + key).st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None

    # Blobs

    def _blob(self, digest: Digest, top: str = "blobs") -> Path:
        return self.root / top / digest.algorithm / digest.hex

    def size(self, digest: Digest) -> int | None:
        try:
            return os.stat(f"{self._prefix}blobs/{digest.replace(':', '/')}").st_size
        except FileNotFoundError:
            return None

    def file(self, digest: Digest) -> BinaryIO | None:
        return open(f"{self._prefix}blobs/{digest.replace(':', '/')}", "rb", buffering=0)

    def read(self, digest: Digest, start: int, end: int) -> Iterator[bytes]:
        with self._blob(digest).open("rb", buffering=0) as file:
            file.seek(start)
            while start < end and (data := file.read(min(_PIECE, end - start))):
                start += len(data)
                yield data

    def put_blob(self, digest: Digest, data: bytes) -> None:
        if self.size(digest) is None:
            self._place(self._blob(digest), data)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Of two collections one could destroy what the other has just hidden and is about to bring back."""
        file = os.open(self.root / "collecting", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def hide(self, digest: Digest) -> None:
        target = self._blob(digest, "hidden")
        make_directory(target.parent, 0o755)
        try:
            self._blob(digest).rename(target)
        except FileNotFoundError:
            return
        sync_directory(target.parent)

    def unhide(self, digest: Digest) -> bool:
        try:
            self._blob(digest, "hidden").rename(self._blob(digest))
        except FileNotFoundError:
            return self.size(digest) is not None
        sync_directory(self._blob(digest).parent)
        return True

    def destroy(self, digest: Digest) -> int:
        path = self._blob(digest, "hidden")
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    def blobs(self) -> Iterator[Digest]:
        yield from self._digests("blobs")

    def hidden(self) -> Iterator[Digest]:
        yield from self._digests("hidden")

    def _digests(self, top: str) -> Iterator[Digest]:
        for algorithm in self.names(top):
            for entry in self.names(f"{top}/{algorithm}"):
                yield Digest.parse(f"{algorithm}:{entry}")

    # Uploads

    def begin(self, upload: str, owner: str) -> None:
        directory = self._uploads / upload
        directory.mkdir(0o700)
        (directory / "data").touch()
        self._place(directory / "owner", owner.encode())

    def owner(self, upload: str) -> str | None:
        try:
            return (self._uploads / upload / "owner").read_text()
        except FileNotFoundError:
            return None

    def upload_size(self, upload: str) -> int:
        return (self._uploads / upload / "data").stat().st_size

    def upload_writer(self, upload: str) -> _FileWriter:
        return _FileWriter(self._uploads / upload / "data")

    def read_upload(self, upload: str) -> Iterator[bytes]:
        with (self._uploads / upload / "data").open("rb", buffering=0) as file:
            while data := file.read(_PIECE):
                yield data

    def upload_file(self, upload: str) -> BinaryIO | None:
        return (self._uploads / upload / "data").open("rb", buffering=0)

    def publish(self, upload: str, digest: Digest, size: int) -> None:
        source, target = self._uploads / upload / "data", self._blob(digest)
        if self.size(digest) is not None:
            return
        make_directory(target.parent, 0o755)
        file = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(file).st_size != size:
                raise Busy
            os.fchmod(file, 0o644)
            os.fsync(file)
        finally:
            os.close(file)
        try:
            os.link(source, target)
        except FileExistsError:
            return
        sync_directory(target.parent)

    def drop(self, upload: str) -> None:
        directory = self._uploads / upload
        # Without its owner it is no upload any more, whatever a kill leaves of it.
        (directory / "owner").unlink(missing_ok=True)
        shutil.rmtree(directory, ignore_errors=True)

    def uploads(self) -> Iterator[tuple[str, float]]:
        for upload in self.names("uploads"):
            changed = self.modified(f"uploads/{upload}/data")
            if changed is not None and self.modified(f"uploads/{upload}/owner") is not None:
                yield upload, changed

    def tidy(self, before: float) -> None:
        for upload in self.names("uploads"):
            changed = self.modified(f"uploads/{upload}")
            if self.modified(f"uploads/{upload}/owner") is None and changed is not None and changed < before:
                self.drop(upload)
        for name in self.names("temporary"):
            changed = self.modified(f"temporary/{name}")
            if changed is not None and changed < min(before, time.time() - 3600):
                self.remove(f"temporary/{name}")

    def layout(self, name: str, entries: list[dict[str, object]]) -> None:
        directory = self.root / "repositories" / name / "_oci"
        if not (directory / "oci-layout").exists():
            make_directory(directory, 0o755)
            try:
                (directory / "blobs").symlink_to(os.path.relpath(self.root / "blobs", directory))
            except FileExistsError:
                pass
            self._place(directory / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
        self._place(directory / "index.json", json.dumps(index, indent=1).encode(), durable=False)
