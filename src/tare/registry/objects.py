"""What a registry needs of the place where its content lies: the one interface of ``files`` (a directory) and ``bucket`` (S3).

Three kinds of things, all durable when the call returns, all or nothing for whoever looks at the same time:

- *documents*: small, replaced as a whole, found by key (``repositories/app/_tags/v1``) and listed by folder;
- *blobs*: written once, found by digest. A blob can be *hidden* (it is there for nobody) and brought back or destroyed: that is how the
  collection stays safe beside pushes of any number of processes without a lock between them, see ``upkeep``;
- *uploads*: bytes that grow; published as a blob in the end. An upload and its offset outlive the process that began it.

Several processes may use one place at the same time. All methods block; only where ``local`` is true are the short ones short enough for
an event loop. Trouble of the place itself is an ``OSError`` (``ENOSPC``) or ``Unavailable``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, Protocol

from tare.oci.digest import Digest


class Unavailable(Exception):
    """The place does not answer, or not as it should; the same may succeed later."""


class Busy(Exception):
    """Somebody else is writing to the upload, or it has become a blob."""


class UploadWriter(Protocol):
    """One request's bytes on their way into an upload. Not shared between threads at the same time."""

    offset: int
    """Where the next byte goes."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take ``data``. The memory is the caller's again afterwards. After a failure ``offset`` says what stays."""

    def close(self) -> None:
        """Make what was written a part of the upload and let others write. Idempotent."""


class Objects(Protocol):
    """See the module's text."""

    local: bool

    def close(self) -> None: ...

    # Documents

    def get(self, key: str) -> bytes:
        """``FileNotFoundError`` when there is none."""

    def put(self, key: str, data: bytes) -> None: ...

    def remove(self, key: str) -> bool:
        """Whether there was one."""

    def names(self, folder: str) -> list[str]:
        """Names of documents and folders right below ``folder``, sorted; empty when there is no such folder."""

    def modified(self, key: str) -> float | None:
        """Time of the last ``put`` (seconds since 1970), None when there is no such document."""

    # Blobs

    def size(self, digest: Digest) -> int | None:
        """None when it is not there."""

    def file(self, digest: Digest) -> BinaryIO | None:
        """A file that holds exactly the blob, where this place has such a thing. ``FileNotFoundError``."""

    def read(self, digest: Digest, start: int, end: int) -> Iterator[bytes]:
        """Bytes ``start`` up to and without ``end``, in pieces. ``FileNotFoundError``."""

    def put_blob(self, digest: Digest, data: bytes) -> None:
        """A small one, already verified. Nothing happens when it is there."""

    def collecting(self) -> AbstractContextManager[Any]:
        """Held by a collection while it hides and destroys."""

    def hide(self, digest: Digest) -> None: ...

    def unhide(self, digest: Digest) -> bool:
        """Bring it back if it is hidden; whether the blob is there now."""

    def destroy(self, digest: Digest) -> int:
        """Remove a blob that this collection has hidden; returns its size. Nothing happens (0) when somebody brought it back meanwhile."""

    def blobs(self) -> Iterator[Digest]:
        """All that are not hidden."""

    def hidden(self) -> Iterator[Digest]: ...

    # Uploads

    def begin(self, upload: str, owner: str) -> None: ...

    def owner(self, upload: str) -> str | None:
        """As given to ``begin``; None when there is no such upload."""

    def upload_size(self, upload: str) -> int:
        """``Busy`` when two are writing at the same time."""

    def upload_writer(self, upload: str) -> UploadWriter:
        """``Busy`` while another writer is open; ``FileNotFoundError``. Of an upload that became a blob only the bytes that are there can
        be used: ``write`` raises ``Busy``."""

    def read_upload(self, upload: str) -> Iterator[bytes]: ...

    def upload_file(self, upload: str) -> BinaryIO | None:
        """The growing bytes as a file, where this place has such a thing: what a writer's ``offset`` counts can be read from it."""

    def publish(self, upload: str, digest: Digest, size: int) -> None:
        """Make the upload's bytes, ``size`` of them, the blob unless that is there; the caller has the writer. The upload stays until
        ``drop``, and publishing again is possible. ``Busy`` when somebody else has written nevertheless."""

    def drop(self, upload: str) -> None:
        """Forget the upload; bytes that became a blob stay. Idempotent."""

    def uploads(self) -> Iterator[tuple[str, float]]:
        """All, with the time of the last change."""

    def tidy(self, before: float) -> None:
        """Remove what killed processes left before ``before`` (seconds since 1970) and nobody can name."""

    def layout(self, name: str, entries: list[dict[str, object]]) -> None:
        """A repository's manifests have changed: where other tools can read the place, show them ``entries`` (an index's)."""
