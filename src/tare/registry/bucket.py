"""A registry's content in an S3-compatible bucket (``objects.Objects``), shared by any number of processes.

    PREFIX/repositories/…           documents, see ``storage``
    PREFIX/blobs/ALG/HEX            {"size", "data": base64} or {"size", "upload", "segments": [name, …]}
    PREFIX/hidden/ALG/HEX           the same of a blob that a collection is about to remove; with "destroyed" while it does
    PREFIX/uploads/UUID             {"owner", "digest"} of an upload under way
    PREFIX/segments/UUID/OFFSET-LENGTH-RANDOM       its bytes

A blob stays in the segments that it was uploaded in: nothing is copied when an upload becomes a blob, an upload's state is the list of its
segments, known to every process and after every restart, and no provider's multipart rules matter (parts of 5 MiB at least, 10,000 of them
at most, unreadable until complete). What is assumed of the bucket: a read or a list behind a write sees it, as S3 promises since 2020. No
lock, no conditional write: two writers of one upload leave overlapping segments, which everybody refuses; hiding, bringing back and
destroying first write what they are about to do, then look what others have done.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Iterator
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


class Segment(NamedTuple):
    """One object of an upload."""

    offset: int
    length: int
    name: str


class _BucketWriter:
    """Collects a segment's worth of bytes and sends it."""

    def __init__(self, bucket: BucketObjects, upload: str) -> None:
        self._bucket = bucket
        self._upload = upload
        self._held = bytearray()
        self._closed = False
        self._stored = self.offset = sum(segment.length for segment in bucket.segments(upload))

    def write(self, data: bytes | bytearray | memoryview) -> None:
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

    def _document(self, digest: Digest, top: str = "blobs") -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.get(_key(top, digest)))
        except FileNotFoundError:
            return None
        return found

    def size(self, digest: Digest) -> int | None:
        document = self._document(digest)
        return int(document["size"]) if document else None

    def file(self, digest: Digest) -> BinaryIO | None:
        """A bucket has no files."""
        return None

    def read(self, digest: Digest, start: int, end: int) -> Iterator[bytes]:
        document = self._document(digest)
        if document is None:
            raise FileNotFoundError(f"{digest} is not in the bucket")
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
        if self.size(digest) is not None:
            return
        document: dict[str, Any] = {"size": len(data)}
        if len(data) <= INLINE:
            document["data"] = base64.b64encode(data).decode()
        else:
            document["upload"] = f"direct-{secrets.token_hex(16)}"
            document["segments"] = [f"{0:014x}-{len(data):x}-{secrets.token_hex(4)}"]
            self.store(f"segments/{document['upload']}/{document['segments'][0]}", data)
        self._write(_key("blobs", digest), document)

    def _write(self, key: str, document: dict[str, Any]) -> None:
        self.store(key, json.dumps(document, separators=(",", ":")).encode())

    def hide(self, digest: Digest) -> None:
        document = self._document(digest)
        if document is not None:
            self._write(_key("hidden", digest), document)
            self.remove(_key("blobs", digest))

    def unhide(self, digest: Digest) -> bool:
        document = self._document(digest, "hidden")
        if document is None or "destroyed" in document:
            return False
        self._write(_key("blobs", digest), document)
        now = self._document(digest, "hidden")
        # None: somebody else brought it back, or it was destroyed from the first segment to the hidden document since we looked.
        lost = "destroyed" in now if now is not None else not self._has_bytes(document)
        self.remove(_key("blobs" if lost else "hidden", digest))
        return not lost

    def _has_bytes(self, document: dict[str, Any]) -> bool:
        return "data" in document or all(
            self.modified(f"segments/{document['upload']}/{name}") is not None for name in document["segments"][:1]
        )

    def destroy(self, digest: Digest) -> int:
        document = self._document(digest, "hidden")
        if document is None:
            return 0
        self._write(_key("hidden", digest), document | {"destroyed": True})
        now = self._document(digest)
        kept = now is not None and now.get("upload") == document.get("upload")
        if not kept and "segments" in document:
            self._remove_segments(document["upload"], document["segments"])
        self.remove(_key("hidden", digest))
        return 0 if kept else int(document["size"])

    def _remove_segments(self, upload: str, names: list[str]) -> None:
        for name in names:
            self._call("delete_object", f"segments/{upload}/{name}")

    def blobs(self) -> Iterator[Digest]:
        yield from self._digests("blobs")

    def hidden(self) -> Iterator[Digest]:
        yield from self._digests("hidden")

    def _digests(self, top: str) -> Iterator[Digest]:
        for key, _ in self._keys(top):
            yield Digest.parse(key.replace("/", ":", 1))

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

    def publish(self, upload: str, digest: Digest) -> None:
        owner = self._upload(upload)
        if self.size(digest) is not None or owner is None:
            return
        segments = self.segments(upload)
        size = sum(segment.length for segment in segments)
        if size <= INLINE:
            data = b"".join(self.read_upload(upload))
            self._write(_key("blobs", digest), {"size": size, "data": base64.b64encode(data).decode()})
            return
        # First the upload says what it became: who finds it after a kill knows whether its segments are a blob's.
        self._write(f"uploads/{upload}", owner | {"digest": digest})
        self._write(_key("blobs", digest), {"size": size, "upload": upload, "segments": [segment.name for segment in segments]})

    def drop(self, upload: str) -> None:
        found = self._upload(upload)
        if found is None:
            return
        adopted = False
        if found["digest"]:
            digest = Digest.parse(found["digest"])
            documents = (self._document(digest), self._document(digest, "hidden"), self._document(digest))
            adopted = any(document is not None and document.get("upload") == upload for document in documents)
        if not adopted:
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
            for top in ("blobs", "hidden", "blobs"):  # twice: a blob may be brought back meanwhile
                for digest in self._digests(top):
                    document = self._document(digest, top)
                    if document is not None:
                        left.discard(document.get("upload", ""))
        for upload in left:
            self._remove_segments(upload, self.names(f"segments/{upload}"))

    def layout(self, name: str, entries: list[dict[str, object]]) -> None:
        """Other tools do not read buckets."""


def _key(top: str, digest: Digest) -> str:
    return f"{top}/{digest.replace(':', '/', 1)}"


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
