"""The content store: blobs named by their digest, visible only once verified.

On disk, under the data root:

    blobs/sha256/HEX         a verified blob, read-only; the OCI image layout's shape, so other tools can read it
    ingest/sha256-HEX        a blob on its way: the bytes received so far, from offset 0, nothing else

Invariants:
- A file below ``blobs`` has the digest that its name says. It got there by rename, after its bytes were hashed, counted and fsynced.
- A partial file is only ever appended to. Its hash state is not stored: ``ingest`` reads the partial again (a gigabyte a second).
  What counts is what is on disk; a daemon killed at any instant costs nothing, a disk that lost its last writes a second try.
- One ingest per digest at a time in this process; the data root is locked against other processes by the engine.

Synchronous; every method may be called from any thread, one ``Ingest`` from one thread at a time.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tare.errors import Conflict, Corrupt, InvalidArgument, NotFound, ResourceExhausted, TareError
from tare.oci.digest import LENGTHS, Digest
from tare.store.durability import make_directory, start_writeback, sync_directory, write_all

_CHUNK = 1 << 20
_FLUSH_EVERY = 16 << 20


def _translate(error: OSError, doing: str, root: Path) -> TareError | OSError:
    """A full disk or quota as an error for users; anything else as it is."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(f"no space left on device while {doing}: free some space under {root}")
    return error


class Ingest:
    """One blob being received. ``offset`` bytes are on disk and hashed; ask the source for what follows.

    End it with ``commit``, ``suspend`` (keep the partial for a later ``ingest`` of the same digest) or ``abort``. As a context manager it
    suspends when left without a commit.
    """

    def __init__(self, path: Path, target: Path, digest: Digest, size: int | None, ended: Callable[[], None]) -> None:
        self.digest = digest
        self.size = size
        self.offset = 0
        self._path = path
        self._target = target
        self._ended = ended
        self._hasher = digest.hasher()
        self._flushed = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            self._resume()
        except BaseException:
            os.close(self._file)
            raise

    @property
    def path(self) -> Path:
        """The partial file: its first ``offset`` bytes may be read while the ingest goes on."""
        return self._path

    def _resume(self) -> None:
        while chunk := os.read(self._file, _CHUNK):
            self._hasher.update(chunk)
            self.offset += len(chunk)
        if self.size is not None and self.offset > self.size:
            self._restart()

    def _restart(self) -> None:
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self._hasher = self.digest.hasher()
        self.offset = self._flushed = 0

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append; raises ``Corrupt`` when the blob grows over its size, ``ResourceExhausted`` when the disk is full."""
        if self.size is not None and self.offset + len(chunk) > self.size:
            raise Corrupt(f"blob {self.digest} is longer than the {self.size} bytes that were announced")
        try:
            write_all(self._file, chunk)
        except OSError as error:
            os.ftruncate(self._file, self.offset)
            os.lseek(self._file, self.offset, os.SEEK_SET)
            raise _translate(error, f"writing blob {self.digest}", self._path.parent) from error
        self._hasher.update(chunk)
        self.offset += len(chunk)
        if self.offset - self._flushed >= _FLUSH_EVERY:
            start_writeback(self._file, self._flushed, self.offset - self._flushed)
            self._flushed = self.offset

    def restart(self) -> None:
        """Forget what was received: the source does not support resuming."""
        self._restart()

    def commit(self) -> Digest:
        """Verify and publish the blob. On a mismatch raises ``Corrupt`` and the partial is gone."""
        try:
            if self.size is not None and self.offset != self.size:
                raise Corrupt(f"blob {self.digest} ended after {self.offset} of {self.size} bytes")
            if not self.digest.matches(self._hasher):
                got = f"{self.digest.algorithm}:{self._hasher.hexdigest()}"
                raise Corrupt(f"blob does not match its digest: expected {self.digest}, got {got}")
            try:
                os.fchmod(self._file, 0o444)
                os.fsync(self._file)
                make_directory(self._target.parent)
                self._path.rename(self._target)
                sync_directory(self._target.parent)
            except OSError as error:
                raise _translate(error, f"writing blob {self.digest}", self._path.parent) from error
        except Corrupt:
            self.abort()
            raise
        except BaseException:
            self.suspend()
            raise
        self._close()
        return self.digest

    def suspend(self) -> None:
        """Stop here; a later ``ingest`` of this digest goes on at ``offset``. Idempotent."""
        self._close()

    def abort(self) -> None:
        """Give up and delete what was received. Idempotent."""
        if self._file >= 0:
            self._path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)
            self._ended()

    def __enter__(self) -> Ingest:
        return self

    def __exit__(self, *_: object) -> None:
        self.suspend()


class ContentStore:
    """Verified blobs under a data root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs"
        self._ingests = root / "ingest"
        for directory in (self._blobs, self._blobs / "sha256", self._ingests):
            make_directory(directory)
        self._lock = threading.Lock()
        self._active: set[Digest] = set()

    def path(self, digest: Digest) -> Path:
        """Where the blob lies, or would lie."""
        return self._blobs / digest.algorithm / digest.hex

    def has(self, digest: Digest) -> bool:
        return self.path(digest).exists()

    def size(self, digest: Digest) -> int:
        """Length in bytes; ``NotFound`` when there is no such blob."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not in the content store") from None

    def open(self, digest: Digest) -> BinaryIO:
        """The blob as a binary file; ``NotFound`` when there is no such blob."""
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not in the content store") from None

    def read(self, digest: Digest, limit: int = 16 << 20) -> bytes:
        """A small blob (manifest, config) whole, its digest checked again; ``InvalidArgument`` when it is over ``limit`` bytes."""
        with self.open(digest) as blob:
            data = blob.read(limit + 1)
        if len(data) > limit:
            raise InvalidArgument(f"blob {digest} is larger than the limit of {limit} bytes")
        if Digest.of(data, digest.algorithm) != digest:
            raise Corrupt(f"blob {digest} is damaged on disk ({self.path(digest)}): delete the file and pull the image again")
        return data

    def put(self, data: bytes, expected: Digest | None = None) -> Digest:
        """Store a small blob; raises ``Corrupt`` when ``expected`` is given and differs."""
        digest = Digest.of(data, expected.algorithm if expected else "sha256")
        if expected is not None and digest != expected:
            raise Corrupt(f"blob does not match its digest: expected {expected}, got {digest}")
        target = self.path(digest)
        if target.exists():
            os.utime(target)
            return digest
        make_directory(target.parent)
        temporary = self._ingests / f"put-{threading.get_ident()}-{time.monotonic_ns()}"
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            try:
                write_all(file, data)
                os.fsync(file)
            finally:
                os.close(file)
            temporary.rename(target)
            sync_directory(target.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _translate(error, f"writing blob {digest}", self._root) from error
        return digest

    def scratch(self) -> Path:
        """A fresh file name on the store's disk for bytes whose digest is not known yet; ``discard_scratch`` removes what a crash left."""
        return self._ingests / f"scratch-{secrets.token_hex(12)}"

    def adopt(self, file: Path, digest: Digest) -> None:
        """Publish a complete ``scratch`` file as the blob ``digest``; its writer has computed the digest from the very bytes it wrote."""
        target = self.path(digest)
        try:
            opened = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchmod(opened, 0o444)
                os.fsync(opened)
            finally:
                os.close(opened)
            make_directory(target.parent)
            file.rename(target)
            sync_directory(target.parent)
        except OSError as error:
            raise _translate(error, f"writing blob {digest}", self._root) from error

    def ingest(self, digest: Digest, size: int | None = None) -> Ingest:
        """Begin or go on receiving a blob. ``Conflict`` when this digest is being received already."""
        with self._lock:
            if digest in self._active:
                raise Conflict(f"blob {digest} is being received already")
            self._active.add(digest)
        try:
            partial = self._ingests / f"{digest.algorithm}-{digest.hex}"
            return Ingest(partial, self.path(digest), digest, size, lambda: self._finished(digest))
        except BaseException as error:
            self._finished(digest)
            if isinstance(error, OSError):
                raise _translate(error, f"receiving blob {digest}", self._root) from error
            raise

    def _finished(self, digest: Digest) -> None:
        with self._lock:
            self._active.discard(digest)

    def active(self) -> frozenset[Digest]:
        """Digests being received right now."""
        with self._lock:
            return frozenset(self._active)

    def delete(self, digest: Digest) -> int:
        """Delete a blob and return the bytes freed; 0 when there was none. Open files stay readable."""
        path = self.path(digest)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    def walk(self) -> Iterator[Digest]:
        """Every blob in the store."""
        for algorithm, length in LENGTHS.items():
            directory = self._blobs / algorithm
            if directory.is_dir():
                for name in os.listdir(directory):
                    if len(name) == length:
                        yield Digest.parse(f"{algorithm}:{name}")

    def discard_scratch(self) -> None:
        """Delete what a crash left of files whose digest was not known yet: nobody can go on with them. Before anybody writes."""
        for name in os.listdir(self._ingests):
            if name.startswith(("scratch-", "put-")):
                (self._ingests / name).unlink(missing_ok=True)

    def expire(self, older_than: float) -> int:
        """Delete partials that nobody has written to for ``older_than`` seconds; returns the bytes freed."""
        freed = 0
        before = time.time() - older_than
        busy = {f"{digest.algorithm}-{digest.hex}" for digest in self.active()}
        with os.scandir(self._ingests) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if entry.name not in busy and status.st_mtime <= before:
                    os.unlink(entry.path)
                    freed += status.st_size
        return freed
