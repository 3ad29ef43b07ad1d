"""A repository in a registry as somebody who pushes sees it (distribution spec, "Push").

    HEAD blobs/D ─► 200: it is there
    POST blobs/uploads/?mount=D&from=R ─► 201: taken over from another repository of the registry
                                       └► 202 Location: not possible, upload instead
    PUT Location?digest=D  (the whole blob)    ─► 201
    PUT manifests/TAG                          ─► 201

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
from tare.distribution.remote import Host
from tare.distribution.retry import retrying
from tare.distribution.transport import SLOW_ANSWER, Transient, Transport, Unreachable
from tare.errors import TareError, Unauthorized, Unavailable, Upstream
from tare.oci.digest import Digest
from tare.oci.reference import Reference

Body = Callable[[], AsyncIterator[bytes]]
"""Opens a blob for reading from its beginning; called again for every attempt."""


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
        """Send a blob whole."""

        async def attempt() -> None:
            response = await self._request("POST", "blobs/uploads/")
            location = response.headers.get("Location")
            if response.status != 202 or not location:
                raise await self._refusal("POST", str(response.url), response)
            response.release()
            await self._send_blob(self._target(str(response.url), location, digest), size, body)

        await retrying(attempt)

    async def put_manifest(self, target: str, raw: bytes, media_type: str) -> None:
        """Store a manifest under a tag or its digest."""

        async def attempt() -> None:
            response = await self._request("PUT", f"manifests/{target}", {"Content-Type": media_type}, raw)
            if response.status not in (200, 201, 202):
                raise await self._refusal("PUT", str(response.url), response)
            response.release()

        await retrying(attempt)

    async def _send_blob(self, url: str, size: int, body: Body) -> None:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        for last in (False, True):
            own = urlsplit(url).netloc == self.endpoint.host
            used = self._access.authorization
            response = await self._put(url, headers | (self._access.headers() if own else {}), body)
            if response.status == 401 and own and not last:
                # The token ran out while earlier blobs were on their way.
                await self._access.refused("PUT", url, used, response)
                continue
            if response.status not in (200, 201, 204):
                raise await self._refusal("PUT", url, response)
            response.release()
            return

    async def _put(self, url: str, headers: dict[str, str], body: Body) -> aiohttp.ClientResponse:
        """One request with a streamed body, given up when the registry takes nothing for a long time."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SLOW_ANSWER) as deadline:

                async def watched() -> AsyncIterator[bytes]:
                    async for chunk in body():
                        deadline.reschedule(loop.time() + SLOW_ANSWER)
                        yield chunk

                return await self._transport.send("PUT", url, headers, watched(), verify=self._access.verify(url))
        except TimeoutError:
            raise Transient(f'Put "{url}": timed out: the registry took no data for {SLOW_ANSWER:.0f} seconds') from None
        except Unreachable as error:
            raise Transient(str(error)) from None

    async def _cancel(self, url: str) -> None:
        """Give up an upload that was opened in vain; a registry that does not care is left alone."""
        if urlsplit(url).netloc != self.endpoint.host:
            return
        try:
            (await self._transport.open("DELETE", url, self._access.headers(), verify=self.endpoint.verify)).release()
        except Unavailable:
            pass

    def _target(self, asked: str, location: str, digest: Digest) -> str:
        url = urljoin(asked, location)
        here, there = urlsplit(asked), urlsplit(url)
        if there.scheme not in ("http", "https") or "@" in there.netloc:
            raise Upstream(f'Post "{asked}": refused upload location {location!r}')
        if here.scheme == "https" and there.scheme == "http":
            if here.netloc != there.netloc:
                raise Upstream(f'Post "{asked}": refused upload location {url}: it is not reached through TLS')
            url = "https" + url[4:]  # a registry behind a TLS proxy that does not know of it
        return f"{url}{'&' if there.query else '?'}{urlencode({'digest': digest})}"

    def _scope(self, challenge: Challenge) -> str:
        scopes = [*challenge.parameters.get("scope", "").split(), f"repository:{self._path}:pull,push"]
        scopes += [f"repository:{source}:pull" for source in self._sources]
        return " ".join(dict.fromkeys(scopes))

    def _translate(self, answer: Answer) -> TareError:
        return translate_push(answer)
