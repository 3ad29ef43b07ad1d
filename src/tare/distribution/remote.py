"""A repository in a registry, as the distribution spec's client sees it: manifests and blobs, verified or refused.

``Repository`` knows where its reference may be served from (mirrors first) and asks each place in turn; ``Host`` is one
such place, which ``Access`` opens for it. Transient failures (5xx, a broken
connection, 429 with a short Retry-After) are retried with back-off here for documents (``retry``); a blob's stream is resumed by its
reader (``transfer``), which knows how far it got.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from tare.distribution.access import Access
from tare.distribution.answers import Answer, is_html, translate
from tare.distribution.auth import Challenge, Credentials
from tare.distribution.bodies import chunks_of, read_limited
from tare.distribution.endpoints import Endpoint, RegistryPolicy
from tare.distribution.retry import refusal, retrying
from tare.distribution.transport import Transient, Transport, Unreachable
from tare.errors import Corrupt, NotFound, ResourceExhausted, TareError, Unauthorized, Unavailable, Upstream
from tare.oci import media_types
from tare.oci.digest import Digest
from tare.oci.image import MANIFEST_LIMIT, Descriptor, Index, parse_manifest
from tare.oci.reference import Reference

TAGS_PAGE = 1000
TAGS_LIMIT = 100_000
REFERRERS_PAGES = 16

_T = TypeVar("_T")


@dataclass(frozen=True)
class Fetched:
    """A document as it came: its bytes, their digest and the media type of the transport."""

    raw: bytes
    digest: Digest
    media_type: str


@dataclass(frozen=True)
class BlobStream:
    """An open download: ``chunks`` yields the blob's bytes from ``offset`` up to ``end``."""

    offset: int
    end: int
    chunks: AsyncIterator[bytes]


class Repository:
    """One repository, wherever it is served from. Make it for one pull: it holds that user's tokens."""

    def __init__(
        self,
        transport: Transport,
        policy: RegistryPolicy,
        reference: Reference,
        credentials: Credentials,
        explain: Callable[[Answer, Reference], TareError] = translate,
    ) -> None:
        self.reference = reference
        self._given_up: set[Host] = set()
        self._hosts = [
            Host(transport, endpoint, reference, credentials if endpoint.takes_credentials else Credentials(), explain)
            for endpoint in policy.endpoints(reference.domain, reference.path)
        ]

    async def resolve(self, tag: str) -> Digest | None:
        """The digest that a tag names now, without fetching it; ``None`` if the registry does not say."""
        return await self._first(lambda host: host.resolve(tag), by_digest=False)

    async def manifest(self, target: str) -> Fetched:
        """Fetch a manifest or index by tag or digest; what was asked for by digest is verified."""
        return await self._first(lambda host: host.manifest(target), by_digest=":" in target)

    async def tags(self) -> list[str]:
        """All tags of the repository, in the registry's order."""
        return await self._first(lambda host: host.tags(), by_digest=False)

    async def blob_size(self, digest: Digest) -> int:
        """The size of a blob that no manifest at hand names."""
        return await self._first(lambda host: host.blob_size(digest), by_digest=True)

    async def referrers(self, digest: Digest) -> list[Descriptor]:
        """The manifests that name ``digest`` as their subject. Mirrors are not asked: one that keeps none would say there are none."""
        return await retrying(lambda: self._hosts[-1].referrers(digest))

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int = 0, end: int | None = None) -> AsyncIterator[BlobStream]:
        """Open a blob for reading from ``offset`` up to ``end`` (a server that knows no ranges sends all of it)."""
        error: TareError | None = None
        for host in self._serving(by_digest=True):
            try:
                response, start = await host.open_blob(descriptor, offset, end)
            except (NotFound, Unavailable, Unauthorized, ResourceExhausted) as failure:
                self._note(host, failure)
                error = failure
                continue
            try:
                yield BlobStream(start, descriptor.size if response.status != 206 or end is None else end, chunks_of(response))
            finally:
                response.close()
            return
        raise error or NotFound(f"no registry serves {self.reference.familiar_name}")

    def _serving(self, *, by_digest: bool) -> list[Host]:
        """The places for this kind of request; the registry itself is always the last."""
        skipped = "tag-only" if by_digest else "digest-only"
        mirrors = [host for host in self._hosts[:-1] if host.endpoint.pull_from != skipped and host not in self._given_up]
        return mirrors + self._hosts[-1:]

    def _note(self, host: Host, failure: TareError) -> None:
        """A mirror that cannot be reached is not tried again for every layer: each try may cost a timeout."""
        if isinstance(failure, Unreachable):
            self._given_up.add(host)

    async def _first(self, ask: Callable[[Host], Awaitable[_T]], *, by_digest: bool) -> _T:
        *mirrors, registry = self._serving(by_digest=by_digest)
        for host in mirrors:
            try:
                return await ask(host)
            except TareError as failure:
                self._note(host, failure)
                continue  # a mirror that fails in any way is passed over; the registry itself has the last word
        return await retrying(lambda: ask(registry))


class Host:
    """One place that serves the repository."""

    def __init__(
        self,
        transport: Transport,
        endpoint: Endpoint,
        reference: Reference,
        credentials: Credentials,
        explain: Callable[[Answer, Reference], TareError] = translate,
    ) -> None:
        self._transport = transport
        self._explain = explain
        self.endpoint = endpoint
        self._reference = reference
        self._path = endpoint.path or reference.path
        self._access = Access(transport, endpoint, credentials, self._scope)

    async def resolve(self, tag: str) -> Digest | None:
        response = await self._ask("HEAD", f"manifests/{tag}", _ACCEPT)
        response.release()
        try:
            return Digest.parse(response.headers.get("Docker-Content-Digest", ""))
        except TareError:
            return None

    async def manifest(self, target: str) -> Fetched:
        response = await self._ask("GET", f"manifests/{target}", _ACCEPT)
        try:
            raw = await read_limited(response, MANIFEST_LIMIT)
        finally:
            response.close()
        answer = Answer("GET", str(response.url), response.status, headers=response.headers, body=raw[:512])
        if is_html(answer):
            raise Upstream(f'Get "{response.url}": the server answered with an HTML page: is it a registry?')
        expected = Digest.parse(target) if ":" in target else None
        digest = Digest.of(raw, expected.algorithm if expected else "sha256")
        if expected not in (None, digest):
            raise Corrupt(f"manifest verification failed for digest {expected}: the registry sent {digest}")
        return Fetched(raw, digest, media_types.bare(response.headers.get("Content-Type", "")))

    async def tags(self) -> list[str]:
        """All tags, page by page (distribution spec, "Listing Tags")."""
        found: list[str] = []
        path: str = f"tags/list?n={TAGS_PAGE}"
        while path:
            response = await self._ask("GET", path, {})
            try:
                raw = await read_limited(response, MANIFEST_LIMIT)
            finally:
                response.close()
            found += _tags(raw, str(response.url))
            if len(found) > TAGS_LIMIT:
                raise Corrupt(f'Get "{response.url}": more than {TAGS_LIMIT} tags')
            path = self._next_page(response, path)
        return list(dict.fromkeys(found))

    async def blob_size(self, digest: Digest) -> int:
        response = await self._ask("HEAD", f"blobs/{digest}", {})
        response.release()
        length = response.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Upstream(f'Head "{response.url}": the registry does not say how large the blob is')
        return int(length)

    def _next_page(self, response: aiohttp.ClientResponse, path: str) -> str:
        """The path of the next page out of a ``Link`` header; only its query counts, so that nobody is sent elsewhere."""
        link = response.links.get("next")
        query = urlsplit(str(link.get("url", ""))).query if link else ""
        following = f"tags/list?{query}" if query else ""
        return following if following != path else ""

    async def referrers(self, digest: Digest) -> list[Descriptor]:
        """What the referrers API lists; where there is none, the index under the tag that the spec sets in its place."""
        found: dict[Digest, Descriptor] = {}
        path = f"referrers/{digest}"
        for _ in range(REFERRERS_PAGES):
            response = await self._request("GET", path, _ACCEPT)
            if media_types.bare(response.headers.get("Content-Type", "")) != media_types.OCI_INDEX or response.status != 200:
                if response.status in (401, 403, 408, 429) or response.status >= 500:
                    raise await self._refusal("GET", str(response.url), response)
                response.close()
                return await self._tagged_referrers(digest)
            try:
                raw = await read_limited(response, MANIFEST_LIMIT)
            finally:
                response.close()
            found |= {entry.digest: entry for entry in _entries(raw)}
            link = response.links.get("next")
            query = urlsplit(str(link.get("url", ""))).query if link else ""
            if not query:
                break
            path = f"referrers/{digest}?{query}"
        return [*found.values()]

    async def _tagged_referrers(self, digest: Digest) -> list[Descriptor]:
        try:
            return _entries((await self.manifest(referrers_tag(digest))).raw)
        except NotFound:
            return []

    async def open_blob(self, descriptor: Descriptor, offset: int, end: int | None) -> tuple[aiohttp.ClientResponse, int]:
        """Ask for a blob; returns the answer and the offset at which its body starts."""
        headers = {"Range": f"bytes={offset}-{end - 1 if end else ''}"} if offset or end else {}
        response = await self._ask("GET", f"blobs/{descriptor.digest}", headers, foreign=descriptor.urls)
        try:
            start = _start(response, offset)
            length, last = response.content_length, descriptor.size if response.status != 206 or end is None else end
            if length is not None and start + length != last:
                kind = media_types.bare(response.headers.get("Content-Type", ""))
                hint = " (an HTML page)" if kind == "text/html" else ""
                raise Corrupt(
                    f"blob {descriptor.digest}: the manifest says {descriptor.size} bytes, "
                    f"the registry sends {start + length + descriptor.size - last}{hint}"
                )
        except BaseException:
            response.close()
            raise
        return response, start

    async def _ask(self, method: str, path: str, headers: Mapping[str, str], foreign: list[str] | None = None) -> aiohttp.ClientResponse:
        """One request below the repository; a refusal is raised as its domain error."""
        response = await self._request(method, path, headers)
        if response.status == 404 and foreign:
            response.close()
            response = await self._foreign(foreign, headers)
        if response.status in (200, 206):
            return response
        raise await self._refusal(method, str(response.url), response)

    async def _request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> aiohttp.ClientResponse:
        """One request below the repository, with authorisation, which is renewed once when it is refused. The status is the caller's."""
        await self._access.connect()
        url = f"{self._access.base}/v2/{self._path}/{path}"
        await self._access.ready(method, url)
        response, used = await self._authorized(method, url, headers or {}, body)
        if response.status == 401:
            await self._access.refused(method, url, used, response)
            response, used = await self._authorized(method, url, headers or {}, body)
        return response

    async def _authorized(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[aiohttp.ClientResponse, str]:
        used, sent = self._access.authorization, {**headers, **self._access.headers()}
        try:
            if body is None:
                return await self._transport.open(method, url, sent, verify=self.endpoint.verify), used
            return await self._transport.send(method, url, sent, body, verify=self.endpoint.verify), used
        except Unreachable as error:  # the host answered a moment ago
            self._access.lost()
            raise Transient(str(error)) from None

    async def _foreign(self, urls: list[str], headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Fetch from a descriptor's own addresses: without credentials and only with verified TLS."""
        error: TareError = NotFound("a foreign layer without an https address")
        for url in urls:
            if urlsplit(url).scheme != "https":
                continue
            try:
                return await self._transport.open("GET", url, headers, verify=self._access.verify(url))
            except Unavailable as failure:
                error = failure
        raise error

    async def _refusal(self, method: str, url: str, response: aiohttp.ClientResponse) -> TareError:
        return await refusal(method, url, response, self._translate)

    def _scope(self, challenge: Challenge) -> str:
        """The rights to ask for, several of them separated by spaces."""
        return challenge.parameters.get("scope") or f"repository:{self._path}:pull"

    def _translate(self, answer: Answer) -> TareError:
        """What a refusal means here."""
        return self._explain(answer, self._reference)


def referrers_tag(digest: Digest) -> str:
    """Where a registry without the referrers API has a manifest's referrers (distribution spec, "Referrers Tag Schema")."""
    return f"{digest.algorithm}-{digest.hex}"


def _entries(raw: bytes) -> list[Descriptor]:
    document = parse_manifest(raw)
    return document.manifests if isinstance(document, Index) else []


class _TagList(msgspec.Struct):
    tags: list[str] | None = None


def _tags(raw: bytes, url: str) -> list[str]:
    try:
        return msgspec.json.decode(raw, type=_TagList).tags or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f'Get "{url}": malformed list of tags: {error}') from None


_ACCEPT = {"Accept": ", ".join(media_types.ACCEPT_MANIFESTS)}


def _start(response: aiohttp.ClientResponse, offset: int) -> int:
    """Where the body starts: at ``offset`` if the server honoured the range, else at zero."""
    if response.status != 206:
        return 0
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    if unit != "bytes" or not first.isdigit() or int(first) != offset:
        raise Upstream(f'Get "{response.url}": asked for bytes from {offset}, the server sent {rest or "no range"}')
    return offset
