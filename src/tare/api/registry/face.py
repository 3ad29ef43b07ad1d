"""The OCI distribution specification 1.1 as HTTP handlers over ``registry.storage``. Docker's registry clients speak the same.

    GET  /v2/                               is it a registry
    *    /v2/NAME/manifests/REFERENCE       GET HEAD PUT DELETE
    *    /v2/NAME/blobs/DIGEST              GET (ranges) HEAD DELETE
    *    /v2/NAME/blobs/uploads/[ID]        POST (monolithic, mount) PATCH (streamed, chunked) PUT GET DELETE
    GET  /v2/NAME/tags/list, /v2/NAME/referrers/DIGEST, /v2/_catalog

Every answer to a client's fault is one of the specification's errors. Bytes of uploads are written and hashed by threads, a MiB at a time;
blobs are sent by the kernel.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlencode

from tare.api.registry import manifests
from tare.api.registry.access import Access
from tare.errors import InvalidArgument
from tare.http.message import Request, RequestError, Response
from tare.oci.digest import Digest
from tare.registry.errors import RegistryError
from tare.registry.storage import FileStorage

log = logging.getLogger("tare.registry")

NAME = r"[a-z0-9]+(?:(?:\.|__|_|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|__|_|-+)[a-z0-9]+)*)*"
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
NAME_LIMIT = 255
BATCH = 1 << 20
PAGE = 1000
_ROUTES = (
    (re.compile(r"/v2/(?P<name>.+)/manifests/(?P<reference>[^/]+)"), "manifest"),
    (re.compile(r"/v2/(?P<name>.+)/blobs/uploads/?"), "uploads"),
    (re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<upload>[^/]+)"), "upload"),
    (re.compile(r"/v2/(?P<name>.+)/blobs/(?P<digest>[^/]+)"), "blob"),
    (re.compile(r"/v2/(?P<name>.+)/tags/list"), "tags"),
    (re.compile(r"/v2/(?P<name>.+)/referrers/(?P<digest>[^/]+)"), "referrers"),
)
_VALID_NAME = re.compile(NAME)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d+)-(\d+)(?:/.*)?")
_VERSION = (("Docker-Distribution-API-Version", "registry/2.0"),)

Handler = Callable[[Request, dict[str, str]], Awaitable[Response | None]]


class RegistryFace:
    """``handle`` is the HTTP server's handler."""

    def __init__(self, storage: FileStorage, access: Access, *, deletion: bool = True) -> None:
        self.storage = storage
        self.access = access
        self.deletion = deletion
        self._busy: set[str] = set()
        """Uploads that some request is writing to."""

    async def handle(self, request: Request) -> Response | None:
        """Answer one request."""
        try:
            await self.access.check(request.headers.get("authorization", ""), write=request.method not in ("GET", "HEAD"))
            return await self._dispatch(request)
        except RegistryError as error:
            response = Response(error.status, error.body(), headers=(*_VERSION, *error.headers))
        except InvalidArgument as error:
            response = Response(400, RegistryError("DIGEST_INVALID", str(error)).body(), headers=_VERSION)
        except RequestError as error:
            code = "SIZE_INVALID" if error.status == 413 else "BLOB_UPLOAD_INVALID"
            response = Response(error.status, RegistryError(code, str(error)).body(), headers=_VERSION)
        log.info("%s %s: %d", request.method, request.path, response.status)
        return response

    async def _dispatch(self, request: Request) -> Response | None:
        path = request.path
        if path in ("/v2/", "/v2"):
            return self._only(request, ("GET", "HEAD")) or Response(200, b"{}", headers=_VERSION)
        if path == "/v2/_catalog":
            return self._only(request, ("GET",)) or self._listing(request, "repositories", self.storage.repositories(), {})
        if path == "/healthz":
            return Response(200, b"ok\n", "text/plain")
        for expression, kind in _ROUTES:
            match = expression.fullmatch(path)
            if match is None:
                continue
            name = match["name"]
            if not _VALID_NAME.fullmatch(name) or len(name) > NAME_LIMIT:
                raise RegistryError("NAME_INVALID", "invalid repository name", {"name": name[:NAME_LIMIT]})
            handler: Handler | None = getattr(self, f"_{kind}_{request.method.lower()}", None)
            if handler is None:
                allowed = tuple(
                    method for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") if hasattr(self, f"_{kind}_{method.lower()}")
                )
                return self._only(request, allowed)
            return await handler(request, match.groupdict())
        raise RegistryError("NAME_UNKNOWN", "no such page: this is a registry, its API lies under /v2/")

    def _only(self, request: Request, allowed: tuple[str, ...]) -> Response | None:
        if request.method in allowed:
            return None
        raise RegistryError("UNSUPPORTED", f"method {request.method} is not supported here", headers=(("Allow", ", ".join(allowed)),))

    # Blobs

    async def _blob_head(self, request: Request, part: dict[str, str]) -> Response | None:
        return await self._blob_get(request, part)

    async def _blob_get(self, request: Request, part: dict[str, str]) -> Response | None:
        digest = Digest.parse(part["digest"])
        size = self.storage.size(part["name"], digest)
        headers = [*_VERSION, ("Docker-Content-Digest", digest), ("ETag", f'"{digest}"'), ("Accept-Ranges", "bytes")]
        headers.append(("Cache-Control", "max-age=31536000"))
        if f'"{digest}"' in request.headers.get("if-none-match", ""):
            return Response(304, headers=headers)
        start, end = _wanted_range(request, size)
        status = 200
        if (start, end) != (0, size):
            status = 206
            headers.append(("Content-Range", f"bytes {start}-{end - 1}/{size}"))
        with self.storage.open(digest) as file:
            stream = await request.stream(status, "application/octet-stream", headers, length=end - start)
            if end > start:
                await stream.write_file(file, start, end - start)
        return None

    async def _blob_delete(self, request: Request, part: dict[str, str]) -> Response | None:
        self._deletable()
        self.storage.delete_blob(part["name"], Digest.parse(part["digest"]))
        return Response(202, headers=_VERSION)

    def _deletable(self) -> None:
        if not self.deletion:
            raise RegistryError("UNSUPPORTED", "deletion is switched off in this registry")

    # Uploads

    async def _uploads_post(self, request: Request, part: dict[str, str]) -> Response | None:
        name = part["name"]
        mount = request.query.get("mount")
        if mount:
            digest = Digest.parse(mount)
            source = request.query.get("from", "")
            if await asyncio.to_thread(self._mount, name, digest, source):
                return self._created(f"/v2/{name}/blobs/{digest}", digest)
        wanted = request.query.get("digest")
        if wanted is not None:
            Digest.parse(wanted)
        identifier = self.storage.start_upload(name)
        if wanted is None:
            return self._upload_state(202, name, identifier, 0)
        try:
            return await self._complete(request, name, identifier, wanted)
        except BaseException:
            self.storage.cancel_upload(name, identifier)
            raise

    def _mount(self, name: str, digest: Digest, source: str) -> bool:
        try:
            if source:
                if not _VALID_NAME.fullmatch(source):
                    return False
                self.storage.size(source, digest)
            elif next(self.storage.holders(digest), None) is None:
                return False
            self.storage.link_blob(name, digest)
        except RegistryError:
            return False
        return True

    async def _upload_patch(self, request: Request, part: dict[str, str]) -> Response | None:
        name, identifier = part["name"], part["upload"]
        with self._exclusive(name, identifier):
            offset = await self._receive(request, name, identifier)
        return self._upload_state(202, name, identifier, offset)

    async def _upload_put(self, request: Request, part: dict[str, str]) -> Response | None:
        name, identifier = part["name"], part["upload"]
        self.storage.offset(name, identifier)
        wanted = request.query.get("digest")
        if not wanted:
            raise RegistryError("DIGEST_INVALID", "digest is missing: the request that completes an upload names it in its query")
        with self._exclusive(name, identifier):
            return await self._complete(request, name, identifier, wanted)

    async def _upload_get(self, request: Request, part: dict[str, str]) -> Response | None:
        return self._upload_state(204, part["name"], part["upload"], self.storage.offset(part["name"], part["upload"]))

    async def _upload_delete(self, request: Request, part: dict[str, str]) -> Response | None:
        self.storage.cancel_upload(part["name"], part["upload"])
        return Response(204, headers=_VERSION)

    def _exclusive(self, name: str, identifier: str) -> _Exclusive:
        self.storage.offset(name, identifier)
        if identifier in self._busy:
            raise RegistryError("BLOB_UPLOAD_INVALID", "another request is writing to this upload", status=409)
        return _Exclusive(self._busy, identifier)

    async def _complete(self, request: Request, name: str, identifier: str, wanted: str) -> Response:
        digest = Digest.parse(wanted)
        await self._receive(request, name, identifier)
        await asyncio.to_thread(self.storage.finish_upload, name, identifier, digest)
        return self._created(f"/v2/{name}/blobs/{digest}", digest)

    async def _receive(self, request: Request, name: str, identifier: str) -> int:
        """Append the body; returns the upload's offset."""
        offset = self.storage.offset(name, identifier)
        given = request.headers.get("content-range", "")
        if given:
            match = _CONTENT_RANGE.fullmatch(given)
            if match is None or int(match[2]) < int(match[1]):
                raise RegistryError("BLOB_UPLOAD_INVALID", f"malformed Content-Range {given!r}")
            if int(match[1]) != offset:
                message = f"the upload has {offset} bytes, the chunk begins at {match[1]}"
                raise RegistryError("RANGE_INVALID", message, headers=tuple(self._place(name, identifier, offset)))
            length = request.head.content_length
            if length is not None and length != int(match[2]) - int(match[1]) + 1:
                raise RegistryError("SIZE_INVALID", "Content-Range and Content-Length differ")
        pieces: list[bytes] = []
        held = 0
        try:
            async for chunk in request.chunks():
                pieces.append(chunk)
                held += len(chunk)
                if held >= BATCH:
                    data, pieces, held = b"".join(pieces), [], 0
                    offset = await asyncio.to_thread(self.storage.append, name, identifier, offset, data)
        finally:
            if pieces:  # also of a client that broke off: it may go on from here
                offset = await asyncio.to_thread(self.storage.append, name, identifier, offset, b"".join(pieces))
        return offset

    def _place(self, name: str, identifier: str, offset: int) -> list[tuple[str, str]]:
        return [
            *_VERSION,
            ("Location", f"/v2/{name}/blobs/uploads/{identifier}"),
            ("Range", f"0-{max(offset - 1, 0)}"),
            ("Docker-Upload-UUID", identifier),
        ]

    def _upload_state(self, status: int, name: str, identifier: str, offset: int) -> Response:
        return Response(status, headers=self._place(name, identifier, offset))

    def _created(self, location: str, digest: Digest, *more: tuple[str, str]) -> Response:
        return Response(201, headers=(*_VERSION, ("Location", location), ("Docker-Content-Digest", digest), *more))

    # Manifests

    async def _manifest_head(self, request: Request, part: dict[str, str]) -> Response | None:
        return await self._manifest_get(request, part)

    async def _manifest_get(self, request: Request, part: dict[str, str]) -> Response | None:
        self._check_reference(part["reference"])
        found = self.storage.manifest(part["name"], part["reference"])
        headers = (*_VERSION, ("Docker-Content-Digest", found.digest), ("ETag", f'"{found.digest}"'))
        if f'"{found.digest}"' in request.headers.get("if-none-match", ""):
            return Response(304, headers=headers)
        with self.storage.open(found.digest) as file:
            return Response(200, file.read(), found.media_type, headers)

    async def _manifest_put(self, request: Request, part: dict[str, str]) -> Response | None:
        name, reference = part["name"], part["reference"]
        self._check_reference(reference)
        data = await request.read(manifests.MANIFEST_LIMIT)
        checked = manifests.check(data, reference, request.headers.get("content-type", ""))
        missing = [digest for digest in checked.blobs if not self._has(name, digest)]
        missing += [digest for digest in checked.manifests if not self._has_manifest(name, digest)]
        if missing:
            raise RegistryError("MANIFEST_BLOB_UNKNOWN", "manifest references what this repository does not have", {"digests": missing})
        tag = "" if ":" in reference else reference
        await asyncio.to_thread(self.storage.put_manifest, name, data, checked.digest, checked.media_type, checked.subject, tag)
        more = [("OCI-Subject", str(checked.subject["digest"]))] if checked.subject else []
        return self._created(f"/v2/{name}/manifests/{checked.digest}", checked.digest, *more)

    def _has(self, name: str, digest: Digest) -> bool:
        try:
            self.storage.size(name, digest)
        except RegistryError:
            return False
        return True

    def _has_manifest(self, name: str, digest: Digest) -> bool:
        try:
            self.storage.manifest(name, digest)
        except RegistryError:
            return False
        return True

    async def _manifest_delete(self, request: Request, part: dict[str, str]) -> Response | None:
        self._deletable()
        reference = part["reference"]
        self._check_reference(reference)
        if ":" in reference:
            await asyncio.to_thread(self.storage.delete_manifest, part["name"], Digest.parse(reference))
        else:
            await asyncio.to_thread(self.storage.delete_tag, part["name"], reference)
        return Response(202, headers=_VERSION)

    @staticmethod
    def _check_reference(reference: str) -> None:
        if ":" in reference:
            Digest.parse(reference)
        elif not TAG.fullmatch(reference):
            raise RegistryError("TAG_INVALID", "invalid tag", {"tag": reference[:200]})

    # Lists

    async def _tags_get(self, request: Request, part: dict[str, str]) -> Response | None:
        if not self.storage.has_repository(part["name"]):
            raise RegistryError("NAME_UNKNOWN", "repository name not known to registry", {"name": part["name"]})
        return self._listing(request, "tags", self.storage.tags(part["name"]), {"name": part["name"]})

    async def _referrers_get(self, request: Request, part: dict[str, str]) -> Response | None:
        found = self.storage.referrers(part["name"], Digest.parse(part["digest"]))
        headers = list(_VERSION)
        wanted = request.query.get("artifactType")
        if wanted:
            found = [descriptor for descriptor in found if descriptor.get("artifactType") == wanted]
            headers.append(("OCI-Filters-Applied", "artifactType"))
        document = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": found}
        return Response(200, json.dumps(document, separators=(",", ":")).encode(), manifests.OCI_INDEX, headers)

    def _listing(self, request: Request, key: str, names: list[str], more: dict[str, Any]) -> Response:
        """One page of a sorted list: at most ``n`` names behind ``last``."""
        text = request.query.get("n", "")
        if text and not text.isdecimal():
            raise RegistryError("BLOB_UPLOAD_INVALID", f"n is no number: {text}")
        count = min(int(text), PAGE) if text else PAGE if key == "repositories" else len(names)
        last = request.query.get("last", "")
        rest = [name for name in names if name > last] if last else names
        page = rest[:count]
        headers = list(_VERSION)
        if len(rest) > len(page) and page:
            query = urlencode({"n": count, "last": page[-1]})
            headers.append(("Link", f'<{quote(request.path)}?{query}>; rel="next"'))
        return Response(200, json.dumps({**more, key: page}, separators=(",", ":")).encode(), headers=headers)


class _Exclusive:
    """One writer at a time for each upload."""

    def __init__(self, busy: set[str], identifier: str) -> None:
        self._busy = busy
        self._identifier = identifier

    def __enter__(self) -> None:
        self._busy.add(self._identifier)

    def __exit__(self, *_: object) -> None:
        self._busy.discard(self._identifier)


def _wanted_range(request: Request, size: int) -> tuple[int, int]:
    """The first byte, and the one behind the last, that a request asks for (RFC 9110 §14; several ranges are answered as none)."""
    text = request.headers.get("range", "")
    match = _RANGE.fullmatch(text.replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return 0, size
    if match[1]:
        start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
    else:
        start, end = max(0, size - int(match[2])), size
    if start >= size or end <= start:
        raise RegistryError("RANGE_INVALID", f"the blob has {size} bytes", headers=(("Content-Range", f"bytes */{size}"),))
    return start, end
