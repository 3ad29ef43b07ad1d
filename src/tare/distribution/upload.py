"""A repository in a registry as somebody who pushes sees it (distribution spec, "Push").

    HEAD blobs/D ─► 200: it is there
    POST blobs/uploads/?mount=D&from=R ─► 201: taken over from another repository of the registry
                                       └► 202 Location: not possible, upload instead
    PUT Location?digest=D  (the whole blob)    ─► 201
    PUT manifests/TAG                          ─► 201

A large blob goes in chunks (PATCH ... PATCH, PUT): when the connection breaks, the registry is asked how far it got and the upload goes on
there. A registry that does not do chunks gets the blob whole, and one that finds it too large in one piece gets chunks.

Only the registry itself is written to, never a mirror. An upload's Location may be another host's: it gets no credentials.
This module loads aiohttp; import it when a push begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from urllib.parse import urlencode, urljoin, urlsplit

import aiohttp

from tare.distribution.answers import Answer, translate_push
from tare.distribution.auth import Challenge, Credentials
from tare.distribution.endpoints import RegistryPolicy
from tare.distribution.remote import Host, referrers_tag
from tare.distribution.retry import ATTEMPTS, RateLimited, pause, retrying
from tare.distribution.transport import SLOW_ANSWER, Transient, Transport, Unreachable
from tare.errors import TareError, Unauthorized, Unavailable, Upstream
from tare.oci import media_types
from tare.oci.digest import Digest
from tare.oci.image import Descriptor, Index, Manifest, encode
from tare.oci.reference import Reference

CHUNK = 64 << 20
"""Bytes of one chunk, and up to where a blob is sent in one piece."""

SMALLEST_CHUNK = 1 << 20

Body = Callable[[int, int], AsyncIterator[bytes]]
"""Opens a blob for reading from one offset up to another; called again for every attempt."""

_NO_CHUNKS = frozenset({404, 405, 501})


class _TooLarge(Exception):
    """The registry, or something before it, takes no body of this size."""


class Uploader(Host):
    """Writes to one repository. Make it for one push: it holds that user's token."""

    def __init__(
        self, transport: Transport, policy: RegistryPolicy, reference: Reference, credentials: Credentials, sources: Sequence[str] = ()
    ) -> None:
        super().__init__(transport, policy.endpoints(reference.domain, reference.path)[-1], reference, credentials)
        self._sources = sources
        """Repositories of the same registry that blobs may be mounted from."""

    async def connect(self) -> None:
        """See whether the registry is there."""
        await self._access.connect()

    async def has_blob(self, digest: Digest) -> bool:
        """Whether the repository has the blob."""
        return await retrying(lambda: self._has_blob(digest))

    async def _has_blob(self, digest: Digest) -> bool:
        response = await self._request("HEAD", f"blobs/{digest}")
        if response.status in (200, 404):
            response.release()
            return response.status == 200
        raise await self._refusal("HEAD", str(response.url), response)

    async def mount(self, digest: Digest, source: str) -> bool:
        """Take a blob over from another repository of this registry; ``False`` when the registry does not do it."""
        query = urlencode({"mount": digest, "from": source})
        try:
            response = await self._request("POST", f"blobs/uploads/?{query}")
        except Unauthorized:
            return False  # no right to the other repository: what we have here can still be uploaded
        response.release()
        if response.status == 202 and (location := response.headers.get("Location")):
            await self._cancel(urljoin(str(response.url), location))
        return response.status == 201

    async def upload(self, digest: Digest, size: int, body: Body) -> None:
        """Send a blob: whole, or in chunks when it is large."""
        if size > CHUNK and await self._in_chunks(digest, size, body, CHUNK):
            return
        try:
            await retrying(lambda: self._whole(digest, size, body))
        except _TooLarge:
            if not await self._in_chunks(digest, size, body, max(size // 8, SMALLEST_CHUNK)):
                raise Upstream(f"blob {digest}: the registry takes it neither whole nor in chunks") from None

    async def _whole(self, digest: Digest, size: int, body: Body) -> None:
        url = _with_digest(await self._begin(), digest)
        response = await self._send("PUT", url, size, {}, lambda: body(0, size))
        if response.status == 413:
            response.close()
            raise _TooLarge
        await self._expect(response, "PUT", url, 200, 201, 204)

    async def _in_chunks(self, digest: Digest, size: int, body: Body, chunk: int) -> bool:
        """Send a blob piece by piece; ``False`` when the registry does not do that."""
        url, offset, failed = await retrying(self._begin), 0, 0
        while offset < size:
            end = min(offset + chunk, size)
            try:
                response = await self._patch(url, offset, end, body)
                if offset == 0 and response.status in _NO_CHUNKS:
                    response.close()
                    return False
                if response.status == 416:  # the two sides differ on where they are
                    raise Transient(f'Patch "{url}": 416 Requested Range Not Satisfiable')
                await self._expect(response, "PATCH", url, 202, 201, 204)
                url, offset = self._went_on(url, response), end
                failed = 0
            except (Transient, RateLimited) as error:
                failed += 1
                wait = pause(error, failed - 1)
                if wait is None or failed >= ATTEMPTS:
                    raise
                await asyncio.sleep(wait)
                url, offset = await retrying(lambda: self._where(url, offset))  # noqa: B023 - awaited at once
        await retrying(lambda: self._finish(url, digest))
        return True

    async def _patch(self, url: str, offset: int, end: int, body: Body) -> aiohttp.ClientResponse:
        headers = {"Content-Range": f"{offset}-{end - 1}"}
        return await self._send("PATCH", url, end - offset, headers, lambda: body(offset, end))

    async def _begin(self) -> str:
        """Open an upload: the address to send to."""
        response = await self._request("POST", "blobs/uploads/")
        if response.status != 202 or not response.headers.get("Location"):
            raise await self._refusal("POST", str(response.url), response)
        response.release()
        return self._went_on(str(response.url), response)

    async def _where(self, url: str, offset: int) -> tuple[str, int]:
        """How far the registry got with an upload; one that it has forgotten begins anew."""
        response = await self._transport.open("GET", url, self._headers(url), verify=self._access.verify(url))
        response.release()
        if response.status == 404:
            return await self._begin(), 0
        if response.status not in (200, 202, 204):
            return url, offset
        first, dash, last = response.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if first != "0" or not dash or not last.isdigit():
            return await self._begin(), 0
        return self._went_on(url, response), int(last) + 1 if last != "0" else 0  # "0-0" is how nothing is written

    async def _finish(self, url: str, digest: Digest) -> None:
        target = _with_digest(url, digest)
        await self._expect(await self._send("PUT", target, 0, {}, None), "PUT", target, 201, 200, 204)

    async def _expect(self, response: aiohttp.ClientResponse, method: str, url: str, *statuses: int) -> None:
        if response.status not in statuses:
            raise await self._refusal(method, url, response)
        response.release()

    async def put_manifest(self, target: str, raw: bytes, media_type: str) -> bool:
        """Store a manifest under a tag or its digest. Does the registry say that it lists it with its subject?"""

        async def attempt() -> bool:
            response = await self._request("PUT", f"manifests/{target}", {"Content-Type": media_type}, raw)
            if response.status not in (200, 201, 202):
                raise await self._refusal("PUT", str(response.url), response)
            response.release()
            return bool(response.headers.get("OCI-Subject"))

        return await retrying(attempt)

    async def put_referrer(self, raw: bytes, document: Manifest | Index) -> None:
        """Store a manifest that has a subject. Where the registry does not list it, it goes into the index that stands in for its list."""
        digest = Digest.of(raw)
        if await self.put_manifest(str(digest), raw, document.media_type) or document.subject is None:
            return
        tag = referrers_tag(document.subject.digest)
        listed = await self._tagged_referrers(document.subject.digest)
        if any(entry.digest == digest for entry in listed):
            return
        kind = document.artifact_type or (document.config.media_type if isinstance(document, Manifest) else None)
        entry = Descriptor(document.media_type, digest, len(raw), artifact_type=kind, annotations=document.annotations)
        index = encode(Index(2, [*listed, entry], media_types.OCI_INDEX))
        await self.put_manifest(tag, index, media_types.OCI_INDEX)

    async def _send(
        self, method: str, url: str, size: int, headers: dict[str, str], body: Callable[[], AsyncIterator[bytes]] | None
    ) -> aiohttp.ClientResponse:
        """One request to an upload's address, again when the token ran out while earlier blobs were on their way."""
        headers = headers | {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        used = self._access.authorization
        response = await self._put(method, url, headers | self._headers(url), body)
        if response.status == 401 and self._own(url):
            await self._access.refused(method, url, used, response)
            response = await self._put(method, url, headers | self._headers(url), body)
        return response

    async def _put(
        self, method: str, url: str, headers: dict[str, str], body: Callable[[], AsyncIterator[bytes]] | None
    ) -> aiohttp.ClientResponse:
        """One request with a streamed body, given up when the registry takes nothing for a long time."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SLOW_ANSWER) as deadline:

                async def watched() -> AsyncIterator[bytes]:
                    assert body is not None
                    async for chunk in body():
                        deadline.reschedule(loop.time() + SLOW_ANSWER)
                        yield chunk

                sent = watched() if body else b""
                return await self._transport.send(method, url, headers, sent, verify=self._access.verify(url))
        except TimeoutError:
            verb = method.capitalize()
            raise Transient(f'{verb} "{url}": timed out: the registry took no data for {SLOW_ANSWER:.0f} seconds') from None
        except Unreachable as error:
            raise Transient(str(error)) from None

    def _own(self, url: str) -> bool:
        return urlsplit(url).netloc == self.endpoint.host

    def _headers(self, url: str) -> dict[str, str]:
        """Credentials, for the registry itself only."""
        return self._access.headers() if self._own(url) else {}

    async def _cancel(self, url: str) -> None:
        """Give up an upload that was opened in vain; a registry that does not care is left alone."""
        if urlsplit(url).netloc != self.endpoint.host:
            return
        try:
            (await self._transport.open("DELETE", url, self._access.headers(), verify=self.endpoint.verify)).release()
        except Unavailable:
            pass

    def _went_on(self, asked: str, response: aiohttp.ClientResponse) -> str:
        """Where an upload goes on, after the answer to ``asked``."""
        location = response.headers.get("Location")
        if not location:
            return asked
        url = urljoin(asked, location)
        here, there = urlsplit(asked), urlsplit(url)
        if there.scheme not in ("http", "https") or "@" in there.netloc:
            raise Upstream(f'{response.method.capitalize()} "{asked}": refused upload location {location!r}')
        if here.scheme == "https" and there.scheme == "http":
            if here.netloc != there.netloc:
                raise Upstream(f'{response.method.capitalize()} "{asked}": refused upload location {url}: it is not reached through TLS')
            url = "https" + url[4:]  # a registry behind a TLS proxy that does not know of it
        return url

    def _scope(self, challenge: Challenge) -> str:
        scopes = [*challenge.parameters.get("scope", "").split(), f"repository:{self._path}:pull,push"]
        scopes += [f"repository:{source}:pull" for source in self._sources]
        return " ".join(dict.fromkeys(scopes))

    def _translate(self, answer: Answer) -> TareError:
        return translate_push(answer)


def _with_digest(url: str, digest: Digest) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode({'digest': digest})}"
