"""A registry's content in an S3-compatible bucket (``objects.Objects``), shared by any number of processes.

    PREFIX/repositories/…           documents, see ``storage``
    PREFIX/blobs/ALG/HEX/SIZE-RANDOM                a *version* of the blob: {"data": base64} or {"upload", "segments": [name, …]}
    PREFIX/blobs/ALG/HEX/SIZE-RANDOM!MARK           (empty) a collection has hidden this version
    PREFIX/blobs/ALG/HEX/SIZE-RANDOM!MARK!          (empty) and has condemned it
    PREFIX/uploads/UUID             {"owner", "digest"} of an upload under way
    PREFIX/segments/UUID/OFFSET-LENGTH-RANDOM       its bytes

A blob stays in the segments that it was uploaded in: nothing is copied when an upload becomes a blob, an upload's state is the list of its
segments, known to every process and after every restart, and no provider's multipart rules matter (parts of 5 MiB at least, 10,000 of them
at most, unreadable until complete). What is assumed of the bucket: a read or a list behind a write sees it, as S3 promises since 2020. No
lock, no conditional write: two writers of one upload leave overlapping segments, which everybody refuses.

**Hiding and destroying.** A version is written once and goes once; its name is never used again, so that nobody's late deletion can hit
what somebody else has pushed meanwhile. It is visible while no mark lies beside it. Who misses it deletes the marks that it sees, then
looks again; a collection that wants to destroy writes that it condemns, then looks whether its mark is still there, and if not it takes
the sentence back. So either the collection sees that somebody was there, or that somebody sees the sentence and pushes a new version; a
condemned version is nobody's hope. Killed half-way, the next collection goes on; what even that does not reach, ``tidy`` removes.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tare.errors import InvalidArgument
from tare.oci.digest import Digest
from tare.registry.objects import Busy, Unavailable

SEGMENT = 4 << 20
INLINE = 64 << 10
"""Blobs up to this size (configs, manifests) lie in their document."""
_PIECE = 1 << 20
_CONNECTIONS = 40
_DOCUMENTS = 4096
"""Versions' documents that are remembered."""
_PATIENCE = (0.02, 0.05, 0.1, 0.2)
"""Seconds between looks at a condemned version."""


class Segment(NamedTuple):
    """One object of an upload."""

    offset: int
    length: int
    name: str


class _Version(NamedTuple):
    """What lies below a digest about one version."""

    name: str
    marks: list[str]
    condemned: bool

    @property
    def size(self) -> int:
        return int(self.name.partition("-")[0], 16)

    @property
    def visible(self) -> bool:
        return not self.marks and not self.condemned


class _BucketWriter:
    """Collects a segment's worth of bytes and sends it."""

    def __init__(self, bucket: BucketObjects, upload: str) -> None:
        self._bucket = bucket
        self._upload = upload
        self._held = bytearray()
        self._closed = False
        self._stored = self.offset = sum(segment.length for segment in bucket.segments(upload))
        self._published = bucket.became(upload)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._published:
            raise Busy
        self._held += data
        self.offset += len(data)
        if len(self._held) >= SEGMENT:
            self._flush()

    def _flush(self) -> None:
        held, self._held = self._held, bytearray()
        self.offset = self._stored
        name = f"{self._stored:014x}-{len(held):x}-{secrets.token_hex(4)}"
        self._bucket.store(f"segments/{self._upload}/{name}", held)
        self._stored += len(held)
        self.offset = self._stored

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._held:
                self._flush()
        finally:
            self._bucket.writing.discard(self._upload)


class BucketObjects:
    """See the module's text."""

    local = False

    def __init__(self, url: str) -> None:
        """``s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME]``; credentials as for all programs of AWS (environment, files, roles).
        ``InvalidArgument`` when the library is missing or the bucket cannot be used."""
        parts = urlsplit(url)
        settings = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        unknown = sorted(set(settings) - {"endpoint", "region"})
        if parts.scheme != "s3" or not parts.hostname or unknown:
            raise InvalidArgument(f"{url}: expected s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME]")
        self.bucket = parts.netloc
        self._prefix = f"{parts.path.strip('/')}/".lstrip("/")
        self._client, self._errors, self._answers = _connect(settings.get("endpoint"), settings.get("region"))
        self.writing: set[str] = set()
        """Uploads that this process is writing to."""
        self._documents: dict[str, dict[str, Any]] = {}
        self._mark = secrets.token_hex(8)
        self._collecting = threading.Lock()
        try:
            self._call("head_bucket")
        except FileNotFoundError:
            raise InvalidArgument(f"{url}: there is no bucket {self.bucket}") from None
        except Unavailable as error:
            raise InvalidArgument(f"{url}: {error}") from None

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def _call(self, operation: str, key: str | None = None, **parameters: Any) -> dict[str, Any]:
        """``FileNotFoundError`` or ``Unavailable``."""
        if key is not None:
            parameters["Key"] = self._prefix + key
        try:
            found: dict[str, Any] = getattr(self._client, operation)(Bucket=self.bucket, **parameters)
        except self._answers as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status == 404 and error.response.get("Error", {}).get("Code") != "NoSuchBucket":
                raise FileNotFoundError(f"{key} is not in the bucket") from None
            raise Unavailable(f"the bucket answers: {error}") from None
        except self._errors as error:
            raise Unavailable(f"the bucket cannot be reached: {error}") from None
        return found

    # Documents

    def get(self, key: str) -> bytes:
        return self._body(self._call("get_object", key))

    def _body(self, answer: dict[str, Any]) -> bytes:
        try:
            with answer["Body"] as body:
                data: bytes = body.read()
        except self._errors as error:
            raise Unavailable(f"the bucket broke off: {error}") from None
        return data

    def store(self, key: str, data: bytes | bytearray) -> None:
        """``put`` without a copy."""
        self._call("put_object", key, Body=data)

    def put(self, key: str, data: bytes) -> None:
        self.store(key, data)

    def remove(self, key: str) -> bool:
        if self.modified(key) is None:
            return False
        self._call("delete_object", key)
        return True

    def names(self, folder: str) -> list[str]:
        found = []
        start = len(self._prefix) + len(folder) + 1
        for page in self._pages(f"{folder}/", "/"):
            found += [entry["Key"][start:] for entry in page.get("Contents", ()) if len(entry["Key"]) > start]
            found += [entry["Prefix"][start:].rstrip("/") for entry in page.get("CommonPrefixes", ())]
        return sorted(found)

    def _pages(self, prefix: str, delimiter: str = "") -> Iterator[dict[str, Any]]:
        more: dict[str, str] = {"Delimiter": delimiter} if delimiter else {}
        while True:
            page = self._call("list_objects_v2", Prefix=self._prefix + prefix, **more)
            yield page
            if not page.get("IsTruncated"):
                return
            more["ContinuationToken"] = page["NextContinuationToken"]

    def _keys(self, folder: str) -> Iterator[tuple[str, float]]:
        """Every key below a folder (without the folder), with its time."""
        start = len(self._prefix) + len(folder) + 1
        for page in self._pages(f"{folder}/"):
            for entry in page.get("Contents", ()):
                yield entry["Key"][start:], entry["LastModified"].timestamp()

    def modified(self, key: str) -> float | None:
        try:
            return float(self._call("head_object", key)["LastModified"].timestamp())
        except FileNotFoundError:
            return None

    # Blobs

    def _versions(self, digest: Digest) -> list[_Version]:
        """In one request: what lies below a digest says everything but the bytes."""
        return _versions(self.names(_key(digest)))

    def _visible(self, digest: Digest) -> _Version | None:
        return next((version for version in self._versions(digest) if version.visible), None)

    def _document(self, digest: Digest, version: str) -> dict[str, Any]:
        """``FileNotFoundError``."""
        key = f"{_key(digest)}/{version}"
        found = self._documents.get(key)
        if found is None:
            found = json.loads(self.get(key))
            self._documents[key] = found
            while len(self._documents) > _DOCUMENTS:
                self._documents.pop(next(iter(self._documents)), None)
        return found

    def size(self, digest: Digest) -> int | None:
        found = self._visible(digest)
        return found.size if found else None

    def file(self, digest: Digest) -> BinaryIO | None:
        """A bucket has no files."""
        return None

    def read(self, digest: Digest, start: int, end: int) -> Iterator[bytes]:
        version = self._visible(digest)
        if version is None:
            raise FileNotFoundError(f"{digest} is not in the bucket")
        document = self._document(digest, version.name)
        if "data" in document:
            yield base64.b64decode(document["data"])[start:end]
            return
        for segment in map(_segment, document["segments"]):
            first, last = max(start - segment.offset, 0), min(end - segment.offset, segment.length)
            if first < last:
                yield from self._pieces(f"segments/{document['upload']}/{segment.name}", first, last)

    def _pieces(self, key: str, first: int, last: int) -> Iterator[bytes]:
        answer = self._call("get_object", key, Range=f"bytes={first}-{last - 1}")
        left = last - first
        with answer["Body"] as body:
            while left:
                try:
                    data = body.read(min(_PIECE, left))
                except self._errors as error:
                    raise Unavailable(f"the bucket broke off: {error}") from None
                if not data:
                    raise Unavailable(f"the bucket sent too little of {key}")
                left -= len(data)
                yield data

    def put_blob(self, digest: Digest, data: bytes) -> None:
        if self.unhide(digest):
            return
        if len(data) <= INLINE:
            self._write_version(digest, len(data), {"data": base64.b64encode(data).decode()})
            return
        upload, segment = f"direct-{secrets.token_hex(16)}", f"{0:014x}-{len(data):x}-{secrets.token_hex(4)}"
        self.store(f"segments/{upload}/{segment}", data)
        self._write_version(digest, len(data), {"upload": upload, "segments": [segment]})

    def _write_version(self, digest: Digest, size: int, document: dict[str, Any]) -> None:
        self._write(f"{_key(digest)}/{size:x}-{secrets.token_hex(8)}", document)

    def _write(self, key: str, document: dict[str, Any]) -> None:
        self.store(key, json.dumps(document, separators=(",", ":")).encode())

    # Hiding, bringing back, destroying: see the module's text

    def collecting(self) -> AbstractContextManager[Any]:
        """Several processes may collect at the same time, a process once."""
        return self._collecting

    def hide(self, digest: Digest) -> None:
        for version in self._versions(digest):
            if self._mark not in version.marks:
                self.store(f"{_key(digest)}/{version.name}!{self._mark}", b"")

    def unhide(self, digest: Digest) -> bool:
        for delay in _PATIENCE:
            versions = self._versions(digest)
            if any(version.visible for version in versions):
                return True
            hidden = [version for version in versions if not version.condemned]
            for version in hidden:
                for mark in version.marks:
                    self._delete(f"{_key(digest)}/{version.name}!{mark}")
            if not versions:
                return False
            if not hidden:  # perhaps a collection is about to find that somebody needs it
                time.sleep(delay)
        return self._visible(digest) is not None

    def destroy(self, digest: Digest) -> int:
        size = 0
        for version in self._versions(digest):
            if self._mark not in version.marks:
                continue
            condemned = f"{_key(digest)}/{version.name}!{self._mark}!"
            self.store(condemned, b"")
            now = next((other for other in self._versions(digest) if other.name == version.name), None)
            if now is not None and self._mark in now.marks:
                self._destroy_version(digest, version.name)
                size += version.size
                for mark in now.marks:
                    self._delete(f"{_key(digest)}/{version.name}!{mark}")
            self._delete(condemned)
        return size

    def _destroy_version(self, digest: Digest, version: str) -> None:
        """The document first: as long as it is there its segments are."""
        try:
            document = self._document(digest, version)
        except FileNotFoundError:
            return
        self._delete(f"{_key(digest)}/{version}")
        # An upload that is not yet dropped may publish its segments again; what it has published before shows when it is gone.
        if "segments" in document and self._upload(document["upload"]) is None and not self._adopted(digest, document["upload"]):
            self._remove_segments(document["upload"], document["segments"])

    def _adopted(self, digest: Digest, upload: str) -> bool:
        for version in self._versions(digest):
            try:
                if self._document(digest, version.name).get("upload") == upload:
                    return True
            except FileNotFoundError:
                continue
        return False

    def _remove_segments(self, upload: str, names: list[str]) -> None:
        for name in names:
            self._delete(f"segments/{upload}/{name}")

    def _delete(self, key: str) -> None:
        self._call("delete_object", key)

    def blobs(self) -> Iterator[Digest]:
        for digest, names in self._digests():
            if any(version.visible for version in _versions(names)):
                yield digest

    def hidden(self) -> Iterator[Digest]:
        for digest, names in self._digests():
            if any("!" in name for name in names):
                yield digest

    def _digests(self) -> Iterator[tuple[Digest, list[str]]]:
        """Each with the names of what lies below it."""
        for key, entries in groupby(self._keys("blobs"), lambda entry: entry[0].rpartition("/")[0]):
            yield Digest.parse(key.replace("/", ":", 1)), [entry[0].rpartition("/")[2] for entry in entries]

    # Uploads

    def begin(self, upload: str, owner: str) -> None:
        self._write(f"uploads/{upload}", {"owner": owner, "digest": ""})

    def _upload(self, upload: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.get(f"uploads/{upload}"))
        except FileNotFoundError:
            return None
        return found

    def owner(self, upload: str) -> str | None:
        found = self._upload(upload)
        return str(found["owner"]) if found else None

    def segments(self, upload: str) -> list[Segment]:
        """In order and without holes; ``Busy`` when two wrote at the same time."""
        found = [_segment(name) for name in self.names(f"segments/{upload}")]
        offset = 0
        for segment in found:
            if segment.offset != offset:
                raise Busy
            offset += segment.length
        return found

    def upload_size(self, upload: str) -> int:
        return sum(segment.length for segment in self.segments(upload))

    def upload_writer(self, upload: str) -> _BucketWriter:
        if upload in self.writing:
            raise Busy
        self.writing.add(upload)
        try:
            return _BucketWriter(self, upload)
        except BaseException:
            self.writing.discard(upload)
            raise

    def read_upload(self, upload: str) -> Iterator[bytes]:
        for segment in self.segments(upload):
            yield from self._pieces(f"segments/{upload}/{segment.name}", 0, segment.length)

    def became(self, upload: str) -> bool:
        """Whether the upload's segments are, or were, a blob's. ``FileNotFoundError`` when there is no such upload."""
        return bool(json.loads(self.get(f"uploads/{upload}"))["digest"])

    def upload_file(self, upload: str) -> BinaryIO | None:
        return None

    def publish(self, upload: str, digest: Digest, size: int) -> None:
        owner = self._upload(upload)
        if self.unhide(digest) or owner is None:
            return
        segments = self.segments(upload)
        if sum(segment.length for segment in segments) != size:
            raise Busy
        if size <= INLINE:
            data = b"".join(self.read_upload(upload))
            self._write_version(digest, size, {"data": base64.b64encode(data).decode()})
            return
        # First the upload says what it became: who finds it after a kill knows whether its segments are a blob's.
        self._write(f"uploads/{upload}", owner | {"digest": digest})
        self._write_version(digest, size, {"upload": upload, "segments": [segment.name for segment in segments]})

    def drop(self, upload: str) -> None:
        found = self._upload(upload)
        if found is None:
            return
        if not found["digest"] or not self._adopted(Digest.parse(found["digest"]), upload):
            self._remove_segments(upload, self.names(f"segments/{upload}"))
        self.remove(f"uploads/{upload}")

    def uploads(self) -> Iterator[tuple[str, float]]:
        changed = self._last_changes()
        for upload, began in self._keys("uploads"):
            yield upload, max(began, changed.get(upload, 0.0))

    def _last_changes(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for key, changed in self._keys("segments"):
            upload = key.partition("/")[0]
            found[upload] = max(changed, found.get(upload, 0.0))
        return found

    def tidy(self, before: float) -> None:
        changes = self._last_changes()
        left = {upload for upload, changed in changes.items() if changed < before}
        left -= {upload for upload, _ in self._keys("uploads")}
        if left:
            for digest, names in self._digests():
                for version in _versions(names):
                    try:
                        left.discard(self._document(digest, version.name).get("upload", ""))
                    except FileNotFoundError:
                        continue
        for upload in left:
            self._remove_segments(upload, self.names(f"segments/{upload}"))
        self._tidy_marks(before)

    def _tidy_marks(self, before: float) -> None:
        """Of collections that were killed: no collection takes so long."""
        keys = {f"blobs/{key}": changed for key, changed in self._keys("blobs") if "!" in key}
        for key, changed in keys.items():
            version, _, mark = key.partition("!")
            if changed >= before or not mark.endswith("!"):
                continue
            if key[:-1] in keys:  # condemned, and nobody has come between: let it end
                algorithm, encoded, name = version.split("/")[1:]
                self._destroy_version(Digest.parse(f"{algorithm}:{encoded}"), name)
            self._delete(key)
        for key, changed in keys.items():
            if changed < before and self.modified(key.partition("!")[0]) is None:
                self._delete(key)

    def layout(self, name: str, entries: list[dict[str, object]]) -> None:
        """Other tools do not read buckets."""


def _key(digest: Digest) -> str:
    return f"blobs/{digest.replace(':', '/', 1)}"


def _versions(names: Iterable[str]) -> list[_Version]:
    found: dict[str, tuple[list[str], list[str]]] = {}
    for name in sorted(names):  # a version comes before its marks
        version, mark, rest = name.partition("!")
        if not mark:
            found[version] = ([], [])
        elif version in found:
            found[version][rest.endswith("!")].append(rest)
    return [_Version(name, marks, bool(condemned)) for name, (marks, condemned) in found.items()]


def _segment(name: str) -> Segment:
    offset, length, _ = name.split("-")
    return Segment(int(offset, 16), int(length, 16), name)


def _connect(endpoint: str | None, region: str | None) -> tuple[Any, tuple[type[Exception], ...], type[Any]]:
    """A client, the exceptions that mean trouble, and the one that is an answer."""
    try:
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from urllib3.exceptions import HTTPError
    except ImportError:
        raise InvalidArgument("a bucket needs the library botocore: install 'tare-engine[s3]'") from None
    # Checksums of newer SDKs' own are not understood by all that speak S3; digests verify the content anyway.
    settings = Config(
        max_pool_connections=_CONNECTIONS,
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 4},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if endpoint else {},
    )
    create: Callable[..., Any] = botocore.session.Session().create_client
    try:
        client = create("s3", endpoint_url=endpoint, region_name=region or ("us-east-1" if endpoint else None), config=settings)
    except (BotoCoreError, ValueError) as error:
        raise InvalidArgument(f"cannot use S3: {error}") from None
    return client, (BotoCoreError, HTTPClientError, HTTPError, OSError), ClientError
