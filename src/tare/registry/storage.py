"""What a registry has: repositories with their blobs, manifests, tags and referrers, over ``objects.Objects``.

    repositories/NAME/_repository           (empty) it has, or had, a manifest
    repositories/NAME/_blobs/ALG/HEX        (empty) the repository has this blob
    repositories/NAME/_manifests/ALG/HEX    {"mediaType", "size", "subject"}
    repositories/NAME/_tags/TAG             the digest
    repositories/NAME/_referrers/ALG/HEX/ALG-HEX    the referrer's descriptor

Invariants. A link (in _blobs, _manifests, _tags) is made after what it names is durable, and removed before; so whatever a kill leaves is
at worst a blob or an upload that nobody names, which the collection (``upkeep``) removes. Whoever makes a link looks once more whether the
blob is still there (``_hold``): with the collection's half of the bargain neither needs a lock, and any number of processes can share one
place. Names in keys come from validated names, tags and digests only; a repository's name cannot begin with an underscore, so that
repositories nest. All methods block; callers run the long ones in threads.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, TypeVar

from tare.oci.digest import Digest, Hasher, new_hasher
from tare.registry.errors import RegistryError
from tare.registry.objects import Busy, Objects, Unavailable, UploadWriter

T = TypeVar("T")

_HASHERS = 1024
"""Uploads whose hash so far is remembered; of others it is computed from their bytes."""
_TRIES = 3
_RENEW_SECONDS = 6 * 3600.0


class Manifest(NamedTuple):
    """A stored manifest."""

    digest: Digest
    media_type: str
    size: int


class Checkpoint(NamedTuple):
    """A hash over the first ``offset`` bytes of an upload."""

    offset: int
    algorithm: str
    hasher: Hasher


class Appender:
    """One request's bytes for an upload: written and hashed. ``with storage.append(…) as upload: upload.write(data)``."""

    def __init__(self, writer: UploadWriter, checkpoint: Checkpoint | None, keep: Callable[[Checkpoint], None], algorithm: str) -> None:
        self._writer = writer
        self._keep = keep
        if checkpoint is not None and checkpoint.offset == writer.offset:
            self._algorithm, self._hasher = checkpoint.algorithm, checkpoint.hasher
        elif writer.offset == 0:
            self._algorithm, self._hasher = algorithm, new_hasher(algorithm)
        else:
            self._algorithm = ""

    @property
    def offset(self) -> int:
        """Where the next byte goes."""
        return self._writer.offset

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take ``data``; ``OSError`` or ``Unavailable`` when it cannot be stored: what was not yet a part of the upload is lost then."""
        try:
            self._writer.write(data)
        except BaseException:
            self._algorithm = ""
            raise
        if self._algorithm:
            self._hasher.update(data)

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Make what was written a part of the upload."""
        self._writer.close()
        if self._algorithm:
            self._keep(Checkpoint(self._writer.offset, self._algorithm, self._hasher))


class Storage:
    """See the module's text."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.local = objects.local
        self._checkpoints: OrderedDict[str, Checkpoint] = OrderedDict()
        self._publishing = [threading.Lock() for _ in range(32)]
        """By digest: of several pushes of the same blob at the same time one has to reach the disk."""
        self._describing = [threading.Lock() for _ in range(32)]
        """By repository."""

    def close(self) -> None:
        self.objects.close()

    # Blobs

    def size(self, name: str, digest: Digest) -> int:
        """Size of a repository's blob. ``BLOB_UNKNOWN``."""
        if self._has_link(name, digest):
            found = self._blob_size(digest)
            if found is not None:
                return found
        raise _no_blob(digest)

    def _has_link(self, name: str, digest: Digest) -> bool:
        return any(self.objects.modified(_link(name, kind, digest)) is not None for kind in ("_blobs", "_manifests"))

    def has_blob(self, name: str, digest: Digest) -> bool:
        """Whether a repository has a blob (or a manifest) of that digest."""
        return self._has_link(name, digest) and self._blob_size(digest) is not None

    def _blob_size(self, digest: Digest) -> int | None:
        """Also of a blob that a collection, perhaps a killed one, has just hidden."""
        for _ in range(_TRIES):
            found = self.objects.size(digest)
            if found is not None or not self.objects.unhide(digest):
                return found
        return self.objects.size(digest)

    def file(self, digest: Digest) -> BinaryIO | None:
        """The blob as a file, where there is one. ``BLOB_UNKNOWN``."""
        for _ in range(_TRIES):
            try:
                return self.objects.file(digest)
            except FileNotFoundError:
                if self._blob_size(digest) is None:
                    break
        raise _no_blob(digest)

    def read(self, digest: Digest, start: int, end: int) -> Iterator[bytes]:
        """A part of the blob in pieces. ``FileNotFoundError`` when somebody has deleted it (not when a collection had it in hand)."""
        for left in reversed(range(_TRIES)):
            try:
                for data in self.objects.read(digest, start, end):
                    start += len(data)
                    yield data
                return
            except FileNotFoundError:
                if not left or self._blob_size(digest) is None:
                    raise

    def link_blob(self, name: str, digest: Digest) -> None:
        """Make a stored blob a repository's own. ``BLOB_UNKNOWN`` when it is not stored."""
        if self._blob_size(digest) is None or not self._hold(name, digest):
            raise _no_blob(digest)

    def _hold(self, name: str, digest: Digest, again: Callable[[], None] | None = None) -> bool:
        """Link a blob, and see to it that no collection has removed it meanwhile (``again`` stores it anew)."""
        key = _link(name, "_blobs", digest)
        if self.objects.modified(key) is None:
            self.objects.put(key, b"")
        if self._stays(digest, again):
            return True
        self.objects.remove(key)
        return False

    def _stays(self, digest: Digest, again: Callable[[], None] | None) -> bool:
        for _ in range(_TRIES):
            if self._blob_size(digest) is not None:
                return True
            if again is None:
                return False
            again()
        return False

    def delete_blob(self, name: str, digest: Digest) -> None:
        """Take a blob from a repository; its bytes go with the next collection. ``BLOB_UNKNOWN``."""
        if not self.objects.remove(_link(name, "_blobs", digest)):
            if self.objects.modified(_link(name, "_manifests", digest)) is not None:
                raise RegistryError("UNSUPPORTED", "this is a manifest: delete it at /manifests/")
            raise _no_blob(digest)

    def holders(self, digest: Digest) -> Iterator[str]:
        """Repositories that have a blob (for mounts without a source)."""
        if self._blob_size(digest) is None:
            return
        for name in self.repositories():
            if self.objects.modified(_link(name, "_blobs", digest)) is not None:
                yield name

    def renew(self, name: str, digest: Digest) -> None:
        """A client that asks for a blob before a push will not send it: what no manifest names yet must not be collected meanwhile."""
        key = _link(name, "_blobs", digest)
        linked = self.objects.modified(key)
        if linked is not None and time.time() - linked > _RENEW_SECONDS:
            self.objects.put(key, b"")

    def link_time(self, name: str, digest: Digest) -> float:
        """When a blob was last linked by a push (0 when it is not)."""
        return self.objects.modified(_link(name, "_blobs", digest)) or 0.0

    def blobs(self, name: str) -> list[Digest]:
        """Digests of a repository's blobs, without its manifests."""
        return self._links(name, "_blobs")

    def _links(self, name: str, kind: str) -> list[Digest]:
        top = f"repositories/{name}/{kind}"
        return [
            Digest.parse(f"{algorithm}:{entry}")
            for algorithm in self.objects.names(top)
            for entry in self.objects.names(f"{top}/{algorithm}")
        ]

    # Uploads

    def start_upload(self, name: str) -> str:
        """A new upload; returns its id."""
        upload = str(uuid.uuid4())
        self.objects.begin(upload, name)
        return upload

    def _check_upload(self, name: str, upload: str) -> None:
        try:
            if str(uuid.UUID(upload)) == upload and self.objects.owner(upload) == name:
                return
        except ValueError:
            pass
        raise _no_upload(upload)

    def offset(self, name: str, upload: str) -> int:
        """How many bytes an upload has. ``BLOB_UPLOAD_UNKNOWN``."""
        self._check_upload(name, upload)
        return _unless_busy(self.objects.upload_size, upload)

    def append(self, name: str, upload: str, algorithm: str = "sha256") -> Appender:
        """Write to an upload's end; ``algorithm`` is that of the digest to come. ``BLOB_UPLOAD_UNKNOWN``, ``BLOB_UPLOAD_INVALID``."""
        self._check_upload(name, upload)
        writer = _unless_busy(self.objects.upload_writer, upload)

        def keep(checkpoint: Checkpoint) -> None:
            self._checkpoints[upload] = checkpoint
            self._checkpoints.move_to_end(upload)
            if len(self._checkpoints) > _HASHERS:
                self._checkpoints.popitem(last=False)

        return Appender(writer, self._checkpoints.pop(upload, None), keep, algorithm)

    def finish_upload(self, name: str, upload: str, digest: Digest) -> None:
        """Verify, make durable, link. ``DIGEST_INVALID`` leaves the upload as it is."""
        self._check_upload(name, upload)
        writer = _unless_busy(self.objects.upload_writer, upload)  # nobody writes between the verification and the end
        try:
            size = writer.offset
            self._verify(upload, digest, size)
            with self._publishing[hash(digest) % len(self._publishing)]:
                self.objects.publish(upload, digest, size)
            if not self._hold(name, digest, lambda: self.objects.publish(upload, digest, size)):
                raise Unavailable("the blob was removed while it was pushed")
            self._forget(upload)
        finally:
            writer.close()

    def _verify(self, upload: str, digest: Digest, size: int) -> None:
        checkpoint = self._checkpoints.get(upload)
        if checkpoint and checkpoint.algorithm == digest.algorithm and checkpoint.offset == size:
            hasher = checkpoint.hasher
        else:
            hasher = digest.hasher()
            for data in self.objects.read_upload(upload):
                hasher.update(data)
        if not digest.matches(hasher):
            raise RegistryError("DIGEST_INVALID", "provided digest did not match uploaded content", {"digest": digest})

    def cancel_upload(self, name: str, upload: str) -> None:
        """``BLOB_UPLOAD_UNKNOWN``."""
        self._check_upload(name, upload)
        self._forget(upload)

    def _forget(self, upload: str) -> None:
        self._checkpoints.pop(upload, None)
        self.objects.drop(upload)

    # Manifests and tags

    def put_manifest(
        self, name: str, data: bytes, digest: Digest, media_type: str, subject: dict[str, Any] | None, tag: str, blobs: list[Digest]
    ) -> None:
        """Store a manifest, and tag it when ``tag`` is not empty. ``subject``: {"digest", "descriptor" of the referrer}. ``blobs`` are
        those that it names and that the repository must have: ``MANIFEST_BLOB_UNKNOWN``."""
        record = {"mediaType": media_type, "size": len(data), "subject": subject["digest"] if subject else ""}
        key = _link(name, "_manifests", digest)
        self.objects.put_blob(digest, data)
        is_new = self.objects.modified(key) is None
        if is_new and not self.has_repository(name):
            self.objects.put(_marker(name), b"")
        self.objects.put(key, json.dumps(record).encode())
        missing = [blob for blob in blobs if not (self._has_link(name, blob) and self._stays(blob, None)) and not self._hold(name, blob)]
        if missing or not self._stays(digest, lambda: self.objects.put_blob(digest, data)):
            if is_new:
                self.objects.remove(key)
            raise RegistryError("MANIFEST_BLOB_UNKNOWN", "a collection has removed what the manifest names", {"digests": missing})
        if subject is not None:
            self.objects.put(_referrer(name, subject["digest"], digest), json.dumps(subject["descriptor"]).encode())
        if tag:
            self.objects.put(f"repositories/{name}/_tags/{tag}", digest.encode())
        self.write_layout(name)

    def manifest(self, name: str, reference: str) -> Manifest:
        """By tag or digest. ``NAME_UNKNOWN`` or ``MANIFEST_UNKNOWN``."""
        digest = self._resolve(name, reference)
        record = self._record(name, digest)
        if record is None:
            raise self._unknown(name, reference)
        return Manifest(digest, record["mediaType"], record["size"])

    def has_manifest(self, name: str, digest: Digest) -> bool:
        """Whether a repository has a manifest."""
        return self.objects.modified(_link(name, "_manifests", digest)) is not None

    def _record(self, name: str, digest: Digest) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(self.objects.get(_link(name, "_manifests", digest)))
        except FileNotFoundError:
            return None
        return record

    def document(self, digest: Digest) -> bytes:
        """A manifest's bytes. ``MANIFEST_UNKNOWN`` when they have just been removed."""
        try:
            size = self._blob_size(digest)
            if size is None:
                raise FileNotFoundError
            return b"".join(self.read(digest, 0, size))
        except FileNotFoundError:
            raise RegistryError("MANIFEST_UNKNOWN", "manifest unknown", {"digest": digest}) from None

    def _resolve(self, name: str, reference: str) -> Digest:
        if ":" in reference:
            return Digest.parse(reference)
        found = self.tagged(name, reference)
        if found is None:
            raise self._unknown(name, reference)
        return found

    def tagged(self, name: str, tag: str) -> Digest | None:
        """What a tag names."""
        try:
            return Digest.parse(self.objects.get(f"repositories/{name}/_tags/{tag}").decode())
        except FileNotFoundError:
            return None

    def _unknown(self, name: str, reference: str) -> RegistryError:
        if not self.has_repository(name):
            return RegistryError("NAME_UNKNOWN", "repository name not known to registry", {"name": name})
        detail = {"digest": reference} if ":" in reference else {"tag": reference}
        return RegistryError("MANIFEST_UNKNOWN", "manifest unknown", detail)

    def delete_manifest(self, name: str, digest: Digest) -> None:
        """With the tags that name it. ``MANIFEST_UNKNOWN``."""
        record = self._record(name, digest)
        if record is None:
            raise self._unknown(name, digest)
        for tag in self.tags(name):
            if self.tagged(name, tag) == digest:
                self.objects.remove(f"repositories/{name}/_tags/{tag}")
        if record.get("subject"):
            self.objects.remove(_referrer(name, record["subject"], digest))
        self.objects.remove(_link(name, "_manifests", digest))
        self.write_layout(name)

    def delete_tag(self, name: str, tag: str) -> None:
        """``MANIFEST_UNKNOWN``."""
        if not self.objects.remove(f"repositories/{name}/_tags/{tag}"):
            raise self._unknown(name, tag)
        self.write_layout(name)

    def tags(self, name: str) -> list[str]:
        """All tags in order."""
        return self.objects.names(f"repositories/{name}/_tags")

    def tag_time(self, name: str, tag: str) -> float:
        """When a tag was last pushed (0 when it is not there)."""
        return self.objects.modified(f"repositories/{name}/_tags/{tag}") or 0.0

    def renew_tag(self, name: str, tag: str) -> None:
        """As if it had been pushed again."""
        digest = self.tagged(name, tag)
        if digest is not None:
            self.objects.put(f"repositories/{name}/_tags/{tag}", digest.encode())

    def renew_manifest(self, name: str, digest: Digest) -> None:
        """As if it had been pushed again."""
        record = self._record(name, digest)
        if record is not None:
            self.objects.put(_link(name, "_manifests", digest), json.dumps(record).encode())

    def manifests(self, name: str) -> list[Digest]:
        """Digests of all manifests of a repository."""
        return self._links(name, "_manifests")

    def manifest_time(self, name: str, digest: Digest) -> float:
        """When a manifest was last pushed (0 when it is not there)."""
        return self.objects.modified(_link(name, "_manifests", digest)) or 0.0

    def has_repository(self, name: str) -> bool:
        """Whether it has, or had, a manifest."""
        return self.objects.modified(_marker(name)) is not None

    def referrers(self, name: str, digest: Digest) -> list[dict[str, Any]]:
        """Descriptors of the manifests that name ``digest`` as their subject."""
        found = []
        folder = _referrers(name, digest)
        for entry in self.objects.names(folder):
            try:
                found.append(json.loads(self.objects.get(f"{folder}/{entry}")))
            except FileNotFoundError:  # deleted this moment
                continue
        return found

    def repositories(self) -> list[str]:
        """Names of all repositories that have (or had) a manifest or a blob, in order."""
        found: list[str] = []
        folders = [""]
        while folders:
            folder = folders.pop()
            names = self.objects.names(f"repositories/{folder}" if folder else "repositories")
            if "_repository" in names or "_blobs" in names:
                found.append(folder)
            folders += [f"{folder}/{name}" if folder else name for name in names if not name.startswith("_")]
        return sorted(found)

    def write_layout(self, name: str) -> None:
        """Show other tools the repository as an OCI layout: an entry for each tag, and one for each manifest without."""
        if self.local:
            with self._describing[hash(name) % len(self._describing)]:
                self.objects.layout(name, self._entries(name))

    def _entries(self, name: str) -> list[dict[str, object]]:
        tags: dict[str, list[str]] = {}
        for tag in self.tags(name):
            tags.setdefault(str(self.tagged(name, tag)), []).append(tag)
        entries: list[dict[str, object]] = []
        for digest in self.manifests(name):
            record = self._record(name, digest)
            if record is None:
                continue
            descriptor = {"mediaType": record["mediaType"], "digest": digest, "size": record["size"]}
            annotated = [descriptor | {"annotations": {"org.opencontainers.image.ref.name": tag}} for tag in tags.get(digest, ())]
            entries.extend(annotated or [descriptor])
        return entries


def _unless_busy(function: Callable[[str], T], upload: str) -> T:
    try:
        return function(upload)
    except Busy:
        raise busy() from None
    except FileNotFoundError:  # ended or cancelled this moment
        raise _no_upload(upload) from None


def busy() -> RegistryError:
    """For an upload that somebody else is writing to, or has completed."""
    return RegistryError("BLOB_UPLOAD_INVALID", "another request is writing to this upload, or has completed it", status=409)


def _no_upload(upload: str) -> RegistryError:
    return RegistryError("BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry", {"upload": upload})


def _link(name: str, kind: str, digest: Digest) -> str:
    return f"repositories/{name}/{kind}/{digest.replace(':', '/', 1)}"


def _marker(name: str) -> str:
    return f"repositories/{name}/_repository"


def _referrers(name: str, subject: str) -> str:
    return f"repositories/{name}/_referrers/{Digest.parse(subject).replace(':', '/', 1)}"


def _referrer(name: str, subject: str, digest: Digest) -> str:
    return f"{_referrers(name, subject)}/{digest.replace(':', '-', 1)}"


def _no_blob(digest: Digest) -> RegistryError:
    return RegistryError("BLOB_UNKNOWN", "blob unknown to registry", {"digest": digest})
