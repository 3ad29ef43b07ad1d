"""Blobs and their uploads (OCI distribution specification, "Pulling blobs", "Pushing blobs", "Mounting a blob", "Deleting blobs").

Bytes of uploads are read, hashed and written by threads; blobs that are files are sent by the kernel.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from tare.api.registry.names import REPOSITORY
from tare.http.message import Request, Response
from tare.oci.digest import Digest
from tare.registry.errors import RegistryError
from tare.registry.quotas import Quotas
from tare.registry.storage import Appender, Storage
from tare.registry.threads import to_its_end

TRANSFERS, DISTANT_TRANSFERS = 6, 16
"""Threads for the bytes of uploads and of blobs that are no files: more than a few only help where they wait for others."""
VERSION = (("Docker-Distribution-API-Version", "registry/2.0"),)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?(\d{1,18})-(\d{1,18})(?:/(?:\d+|\*))?", re.ASCII)

P = ParamSpec("P")
T = TypeVar("T")


class Blobs:
    """Handlers ``KIND_METHOD`` for the face's routes."""

    def __init__(self, storage: Storage, quotas: Quotas, *, deletion: bool, readable: Callable[[Request, str], bool]) -> None:
        """``readable``: whether what a repository has may be shown to whoever asks."""
        self._storage = storage
        self._readable = readable
        self._quotas = quotas
        self._deletion = deletion
        self._transfers = ThreadPoolExecutor(TRANSFERS if storage.local else DISTANT_TRANSFERS, "transfer")
        self._short = ThreadPoolExecutor(DISTANT_TRANSFERS, "storage")

    def close(self) -> None:
        """End the threads."""
        for pool in (self._transfers, self._short):
            pool.shutdown(wait=False, cancel_futures=True)

    async def ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call something short of the storage: at once where it lies on this machine, else in a thread."""
        return function(*args, **kwargs) if self._storage.local else await self.run(function, *args, **kwargs)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call in a thread, to its end even when the request is cancelled."""
        return await to_its_end(self._short, function, *args, **kwargs)

    # Reading

    async def blob_head(self, request: Request, part: dict[str, str]) -> Response | None:
        """Also the question of a client that is about to push."""
        digest = Digest.parse(part["digest"])
        await self.ask(self._storage.renew, part["name"], digest)
        return await self.blob_get(request, part)

    async def blob_get(self, request: Request, part: dict[str, str]) -> Response | None:
        """Whole, or the range that is asked for."""
        digest = Digest.parse(part["digest"])
        size = await self.ask(self._storage.size, part["name"], digest)
        headers = blob_headers(digest)
        if f'"{digest}"' in request.headers.get("if-none-match", ""):
            return Response(304, headers=headers)
        start, end = wanted_range(request, digest, size)
        status = 200
        if (start, end) != (0, size):
            status = 206
            headers.append(("Content-Range", f"bytes {start}-{end - 1}/{size}"))
        if request.method == "HEAD":
            await request.stream(status, "application/octet-stream", headers, length=end - start)
            return None
        file = await self.ask(self._storage.file, digest)
        if file is None:
            await self._relay(request, status, headers, digest, start, end)
            return None
        with file:
            stream = await request.stream(status, "application/octet-stream", headers, length=end - start)
            if end > start:
                await stream.write_file(file, start, end - start)
        return None

    async def _relay(self, request: Request, status: int, headers: list[tuple[str, str]], digest: Digest, start: int, end: int) -> None:
        """Send a blob that has to be fetched piece by piece; the head goes out with the first, while an error can still be told."""
        pieces = self._storage.read(digest, start, end)
        loop = asyncio.get_running_loop()
        try:
            data = await loop.run_in_executor(self._transfers, _next, pieces)
            stream = await request.stream(status, "application/octet-stream", headers, length=end - start)
            while data:
                following = loop.run_in_executor(self._transfers, _next, pieces)
                try:
                    await stream.write(data)
                finally:
                    await asyncio.wait([following])
                data = following.result()
        finally:
            getattr(pieces, "close", lambda: None)()

    async def blob_delete(self, request: Request, part: dict[str, str]) -> Response | None:
        """Take the blob from its repository."""
        self.deletable()
        await self.ask(self._storage.delete_blob, part["name"], Digest.parse(part["digest"]))
        self._quotas.changed(part["name"])
        return Response(202, headers=VERSION)

    def deletable(self) -> None:
        """``UNSUPPORTED`` when deletion is switched off."""
        if not self._deletion:
            raise RegistryError("UNSUPPORTED", "deletion is switched off in this registry")

    # Uploads

    async def uploads_post(self, request: Request, part: dict[str, str]) -> Response | None:
        """Begin an upload, or do all of it at once (``digest``), or mount (``mount``, ``from``)."""
        name = part["name"]
        mount = request.query.get("mount")
        if mount:
            digest = Digest.parse(mount)
            if await self.run(self._mount, request, name, digest):
                return created(f"/v2/{name}/blobs/{digest}", digest)
        wanted = request.query.get("digest")
        digest_wanted = Digest.parse(wanted) if wanted is not None else None
        await self._admit(request, name)
        upload = await self.run(self._storage.start_upload, name)
        if digest_wanted is None:
            return self._upload_state(202, name, upload, 0)
        try:
            return await self._complete(request, name, upload, digest_wanted)
        except BaseException:
            await self.run(self._storage.cancel_upload, name, upload)
            raise

    def _mount(self, request: Request, name: str, digest: Digest) -> bool:
        source = request.query.get("from", "")
        try:
            if source:
                if not REPOSITORY.fullmatch(source) or not self._readable(request, source):
                    return False
                size = self._storage.size(source, digest)
            else:
                holder = next((found for found in self._storage.holders(digest) if self._readable(request, found)), None)
                if holder is None:
                    return False
                size = self._storage.size(holder, digest)
        except RegistryError:
            return False
        self._quotas.check(name, size)
        try:
            self._storage.link_blob(name, digest)
        except RegistryError:
            return False
        self._quotas.changed(name)
        return True

    async def _admit(self, request: Request, name: str) -> None:
        """Refuse early what would not fit: nobody likes to hear it after a gigabyte."""
        length = request.head.content_length or 0
        if length and self._quotas.any:
            await self.run(self._quotas.check, name, length)

    async def upload_patch(self, request: Request, part: dict[str, str]) -> Response | None:
        """The next bytes: a chunk (``Content-Range``) or a stream."""
        name, upload = part["name"], part["upload"]
        await self._admit(request, name)
        offset = await self._receive(request, name, upload, "sha256")
        return self._upload_state(202, name, upload, offset)

    async def upload_put(self, request: Request, part: dict[str, str]) -> Response | None:
        """The last bytes, if any, and the digest of all."""
        name, upload = part["name"], part["upload"]
        await self.ask(self._storage.offset, name, upload)
        wanted = request.query.get("digest")
        if not wanted:
            raise RegistryError("DIGEST_INVALID", "digest is missing: the request that completes an upload names it in its query")
        return await self._complete(request, name, upload, Digest.parse(wanted))

    async def upload_get(self, request: Request, part: dict[str, str]) -> Response | None:
        """How far it is."""
        offset = await self.ask(self._storage.offset, part["name"], part["upload"])
        return self._upload_state(204, part["name"], part["upload"], offset)

    async def upload_delete(self, request: Request, part: dict[str, str]) -> Response | None:
        """Cancel."""
        await self.run(self._storage.cancel_upload, part["name"], part["upload"])
        return Response(204, headers=VERSION)

    async def _complete(self, request: Request, name: str, upload: str, digest: Digest) -> Response:
        size = await self._receive(request, name, upload, digest.algorithm)
        if self._quotas.any:
            await self.run(self._quotas.check, name, size, digest)
        await self.run(self._storage.finish_upload, name, upload, digest)
        self._quotas.changed(name)
        return created(f"/v2/{name}/blobs/{digest}", digest)

    async def _receive(self, request: Request, name: str, upload: str, algorithm: str) -> int:
        """Append the body; returns the upload's offset. What came of a body that broke off stays: its client may go on from there."""
        appender = await self.ask(self._storage.append, name, upload, algorithm)
        try:
            end = self._check_chunk(request, name, upload, appender)
            await request.receive(await self._sink(name, appender), self._transfers)
            if end is not None and appender.offset != end:
                raise RegistryError("SIZE_INVALID", f"the chunk was to end at {end - 1}, the upload has {appender.offset} bytes now")
        finally:
            await self.ask(appender.close)
        return appender.offset

    async def _sink(self, name: str, appender: Appender) -> Callable[[bytes | memoryview], None]:
        """Takes bytes as long as the quota has room: an upload that never ends must not get round it."""
        room = await self.run(self._quotas.room, name) if self._quotas.any else None
        if room is None:
            return appender.write

        def write(data: bytes | memoryview) -> None:
            wanted = appender.offset + len(data)
            if wanted > room:
                self._quotas.check(name, wanted)
            appender.write(data)

        return write

    def _check_chunk(self, request: Request, name: str, upload: str, appender: Appender) -> int | None:
        """The offset that the upload is to have afterwards, if the request says."""
        given = request.headers.get("content-range", "")
        if not given:
            return None
        offset = appender.offset
        headers = tuple(self._place(name, upload, offset))
        match = _CONTENT_RANGE.fullmatch(given)
        if match is None or int(match[2]) < int(match[1]):
            raise RegistryError("BLOB_UPLOAD_INVALID", f"malformed Content-Range {given[:100]!r}", status=416, headers=headers)
        if int(match[1]) != offset:
            why = f"the upload has {offset} bytes, the chunk begins at {match[1]}"
            raise RegistryError("BLOB_UPLOAD_INVALID", why, status=416, headers=headers)
        length = request.head.content_length
        if length is not None and length != int(match[2]) - int(match[1]) + 1:
            raise RegistryError("SIZE_INVALID", "Content-Range and Content-Length differ")
        return int(match[2]) + 1

    def _place(self, name: str, upload: str, offset: int) -> list[tuple[str, str]]:
        return [
            *VERSION,
            ("Location", f"/v2/{name}/blobs/uploads/{upload}"),
            ("Range", f"0-{max(offset - 1, 0)}"),
            ("Docker-Upload-UUID", upload),
        ]

    def _upload_state(self, status: int, name: str, upload: str, offset: int) -> Response:
        return Response(status, headers=self._place(name, upload, offset))


def _next(pieces: Iterator[bytes]) -> bytes:
    return next(pieces, b"")


def created(location: str, digest: Digest, *more: tuple[str, str]) -> Response:
    """201 with where it is."""
    return Response(201, headers=(*VERSION, ("Location", location), ("Docker-Content-Digest", digest), *more))


def blob_headers(digest: Digest) -> list[tuple[str, str]]:
    """Of an answer that carries a blob."""
    return [
        *VERSION,
        ("Docker-Content-Digest", digest),
        ("ETag", f'"{digest}"'),
        ("Accept-Ranges", "bytes"),
        ("Cache-Control", "max-age=31536000"),
    ]


def wanted_range(request: Request, digest: Digest, size: int) -> tuple[int, int]:
    """The first byte, and the one behind the last, that a request asks for (RFC 9110 §14; several ranges are answered as none)."""
    text = request.headers.get("range", "")
    match = _RANGE.fullmatch(text.replace(" ", ""))
    if match is None or not (match[1] or match[2]) or request.method != "GET":
        return 0, size
    if request.headers.get("if-range", f'"{digest}"') != f'"{digest}"':
        return 0, size
    if match[1]:
        start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    else:
        start, end = max(0, size - int(match[2])), size
    if start >= size or end <= start:
        headers = (("Content-Range", f"bytes */{size}"),)
        raise RegistryError("SIZE_INVALID", f"the blob has {size} bytes", status=416, headers=headers)
    return start, end
