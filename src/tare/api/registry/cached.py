"""Requests for repositories that are another registry's (``registry.upstream``): what is asked for is brought in, then served as any other;
a blob is sent while it comes in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tare.api.registry.blobs import blob_headers, wanted_range
from tare.http.message import ClientDisconnected, Request, Response
from tare.oci.digest import Digest
from tare.registry.download import Download
from tare.registry.errors import RegistryError
from tare.registry.upstream import Place, PullThrough

Handler = Callable[[Request, dict[str, str]], Awaitable[Response | None]]


async def serve_cached(
    through: PullThrough, request: Request, kind: str, part: dict[str, str], place: Place, handler: Handler
) -> Response | None:
    """Answer for a manifest or blob; ``part`` names the repository as it is called here, ``handler`` serves what the storage has."""
    if request.method not in ("GET", "HEAD"):
        if request.method == "DELETE" and kind != "upload":
            return await handler(request, part)  # what is cached may be thrown away
        raise RegistryError("UNSUPPORTED", f"{place.name} is a cache of {place.reference.name}: push there")
    if kind == "manifest":
        await through.manifest(place, part["reference"])
    elif kind == "blob":
        digest = Digest.parse(part["digest"])
        if not await through.has(place, digest):
            await _blob(through, request, place, digest)
            return None
    elif kind == "upload":
        raise RegistryError("BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
    return await handler(request, part)


async def _blob(through: PullThrough, request: Request, place: Place, digest: Digest) -> None:
    if request.method == "HEAD":
        size = await through.size(place, digest)
        await request.stream(200, "application/octet-stream", blob_headers(digest), length=size)
        return
    download = await through.download(place, digest)
    try:
        await _send(request, download, digest)
    finally:
        download.release()


async def _send(request: Request, download: Download, digest: Digest) -> None:
    start, end = wanted_range(request, digest, download.size)
    status, headers = 200, blob_headers(digest)
    if (start, end) != (0, download.size):
        status = 206
        headers.append(("Content-Range", f"bytes {start}-{end - 1}/{download.size}"))
    stream = await request.stream(status, "application/octet-stream", headers, length=end - start)
    position = start
    while position < end:
        try:
            limit = min(end, await download.available(position))
        except Exception as error:  # the head has gone out: a cut connection is what can still be said
            raise ClientDisconnected(f"the upstream's blob broke off: {error}") from None
        await stream.write_file(download.file, position, limit - position)
        position = limit
