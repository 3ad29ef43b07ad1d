"""A repository in a registry, as the distribution spec's client sees it: manifests and blobs, verified or refused.

``Repository`` knows where its reference may be served from (mirrors first) and asks each place in turn; ``Host`` is one
such place: it finds the scheme that works, answers the challenge, and keeps the token. Transient failures (5xx, a broken
connection, 429 with a short Retry-After) are retried with back-off here for documents; a blob's stream is resumed by its
reader (``fetch``), which knows how far it got.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlencode, urlsplit

import aiohttp
import msgspec

from tare.distribution.answers import BODY_LIMIT, Answer, is_html, translate
from tare.distribution.auth import Challenge, Credentials, parse_challenges
from tare.distribution.endpoints import Endpoint, RegistryPolicy
from tare.distribution.transport import Transport, Unreachable, explain
from tare.errors import Corrupt, NotFound, ResourceExhausted, TareError, Unauthorized, Unavailable
from tare.oci import media_types
from tare.oci.digest import Digest
from tare.oci.image import MANIFEST_LIMIT, Descriptor
from tare.oci.reference import Reference

ATTEMPTS = 4
BACKOFF = 0.3
"""Seconds before the first retry; doubles each time."""
PATIENCE = 20.0
"""The longest Retry-After that we sit out."""
TOKEN_LIMIT = 256 << 10

_T = TypeVar("_T")


class Transient(Unavailable):
    """The registry failed in a way that may pass."""


class RateLimited(ResourceExhausted):
    """429; ``wait`` is what Retry-After asked for, in seconds."""

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Fetched:
    """A document as it came: its bytes, their digest and the media type of the transport."""

    raw: bytes
    digest: Digest
    media_type: str


@dataclass(frozen=True)
class BlobStream:
    """An open download: ``chunks`` yields the blob's bytes from ``offset`` on."""

    offset: int
    chunks: AsyncIterator[bytes]


def backoff(attempt: int) -> float:
    """Seconds to wait before retry number ``attempt`` (from 0), spread so that clients do not return in step."""
    return min(BACKOFF * 2.0**attempt, 15.0) * (0.75 + random.random() / 2)


async def retrying(operation: Callable[[], Awaitable[_T]]) -> _T:
    """Run ``operation``, again if it fails transiently; the last failure goes to the caller."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return await operation()
        except RateLimited as error:
            if not 0 <= error.wait <= PATIENCE:
                raise
            await asyncio.sleep(max(error.wait, backoff(attempt)))
        except Transient:
            await asyncio.sleep(backoff(attempt))
    return await operation()


class Repository:
    """One repository, wherever it is served from. Make it for one pull: it holds that user's tokens."""

    def __init__(self, transport: Transport, policy: RegistryPolicy, reference: Reference, credentials: Credentials) -> None:
        self.reference = reference
        self._hosts = [
            Host(transport, endpoint, reference, credentials if endpoint.takes_credentials else Credentials())
            for endpoint in policy.endpoints(reference.domain)
        ]

    async def resolve(self, tag: str) -> Digest | None:
        """The digest that a tag names now, without fetching it; ``None`` if the registry does not say."""
        return await self._first(lambda host: host.resolve(tag))

    async def manifest(self, target: str) -> Fetched:
        """Fetch a manifest or index by tag or digest; what was asked for by digest is verified."""
        return await self._first(lambda host: host.manifest(target))

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int = 0) -> AsyncIterator[BlobStream]:
        """Open a blob for reading from ``offset`` (the stream may start earlier if the server cannot)."""
        error: TareError | None = None
        for host in self._hosts:
            try:
                response, start = await host.open_blob(descriptor, offset)
            except (NotFound, Unavailable, Unauthorized, ResourceExhausted) as failure:
                error = failure
                continue
            try:
                yield BlobStream(start, _chunks(response))
            finally:
                response.close()
            return
        raise error or NotFound(f"no registry serves {self.reference.familiar_name}")

    async def _first(self, ask: Callable[[Host], Awaitable[_T]]) -> _T:
        for host in self._hosts[:-1]:
            try:
                return await ask(host)
            except TareError:
                continue  # a mirror that fails in any way is passed over; the registry itself has the last word
        return await retrying(lambda: ask(self._hosts[-1]))


class Host:
    """One place that serves the repository."""

    def __init__(self, transport: Transport, endpoint: Endpoint, reference: Reference, credentials: Credentials) -> None:
        self._transport = transport
        self._endpoint = endpoint
        self._reference = reference
        self._credentials = credentials
        self._lock = asyncio.Lock()
        self._base = ""
        self._challenges: list[Challenge] = []
        self._authorization = f"Bearer {credentials.registry_token}" if credentials.registry_token else ""

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
            raw = await _read(response, MANIFEST_LIMIT)
        finally:
            response.close()
        answer = Answer("GET", str(response.url), response.status, headers=response.headers, body=raw[:512])
        if is_html(answer):
            raise Unavailable(f'Get "{response.url}": the server answered with an HTML page: is it a registry?')
        expected = Digest.parse(target) if ":" in target else None
        digest = Digest.of(raw, expected.algorithm if expected else "sha256")
        if expected not in (None, digest):
            raise Corrupt(f"manifest verification failed for digest {expected}: the registry sent {digest}")
        return Fetched(raw, digest, media_types.bare(response.headers.get("Content-Type", "")))

    async def open_blob(self, descriptor: Descriptor, offset: int) -> tuple[aiohttp.ClientResponse, int]:
        """Ask for a blob; returns the answer and the offset at which its body starts."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = await self._ask("GET", f"blobs/{descriptor.digest}", headers, foreign=descriptor.urls)
        try:
            start = _start(response, offset)
            length = response.content_length
            if length is not None and start + length != descriptor.size:
                kind = media_types.bare(response.headers.get("Content-Type", ""))
                hint = " (an HTML page)" if kind == "text/html" else ""
                raise Corrupt(
                    f"blob {descriptor.digest}: the manifest says {descriptor.size} bytes, the registry sends {start + length}{hint}"
                )
        except BaseException:
            response.close()
            raise
        return response, start

    async def _ask(self, method: str, path: str, headers: Mapping[str, str], foreign: list[str] | None = None) -> aiohttp.ClientResponse:
        """One request below the repository, with authorisation; a refusal is raised as its domain error."""
        await self._connect()
        url = f"{self._base}/v2/{self._reference.path}/{path}"
        try:
            response = await self._open(method, url, {**headers, **self._authorized()})
        except Unreachable as error:  # the host answered a moment ago
            raise Transient(str(error)) from None
        if response.status == 401:
            used = self._authorization
            self._challenged(response)
            response.close()
            await self._authorize(url, used)
            response = await self._open(method, url, {**headers, **self._authorized()})
        if response.status == 404 and foreign:
            response.close()
            response = await self._foreign(foreign, headers)
        if response.status in (200, 206):
            return response
        raise await self._refusal(method, url, response)

    async def _connect(self) -> None:
        """Find the scheme that works, with the API version check that doubles as the first challenge."""
        async with self._lock:
            if self._base:
                return
            error: Unavailable | None = None
            for scheme in self._endpoint.schemes:
                base = f"{scheme}://{self._endpoint.host}"
                try:
                    response = await self._open("GET", f"{base}/v2/", self._authorized())
                except Unreachable as failure:
                    error = failure
                    continue
                if response.status == 401:
                    self._challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
                response.release()
                self._base = base
                break
            else:
                raise error or Unavailable(f"{self._endpoint.host} cannot be reached")
        if self._challenges and not self._authorization:
            await self._authorize(f"{self._base}/v2/", "")

    def _challenged(self, response: aiohttp.ClientResponse) -> None:
        self._challenges = parse_challenges(response.headers.getall("WWW-Authenticate", [])) or self._challenges

    async def _authorize(self, url: str, used: str) -> None:
        """Answer the latest challenge. ``used`` is the authorisation that was just refused."""
        async with self._lock:
            if self._authorization != used:
                return  # somebody else has just renewed it
            schemes = {challenge.scheme: challenge for challenge in self._challenges}
            if "bearer" in schemes:
                self._authorization = "Bearer " + await self._token(schemes["bearer"])
            elif "basic" in schemes and self._credentials.username:
                self._authorization = self._credentials.basic()
            elif "basic" in schemes:
                raise Unauthorized(f'Get "{url}": no basic auth credentials')
            else:
                raise Unauthorized(f'Get "{url}": unauthorized: no supported authentication scheme offered')

    async def _token(self, challenge: Challenge) -> str:
        realm = challenge.parameters.get("realm", "")
        parts = urlsplit(realm)
        plain = self._base.startswith("http:")
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
            raise Unauthorized(f"{self._endpoint.host}: invalid token realm {realm!r}")
        if parts.scheme == "http" and not plain and self._endpoint.verify:
            raise Unauthorized(f"{self._endpoint.host}: refused token realm {realm}: it is not reached through TLS")
        query = {"scope": self._scope(challenge)}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        same_host = parts.hostname == urlsplit(self._base).hostname
        verify = self._endpoint.verify or not same_host
        return await retrying(lambda: self._fetch_token(realm, query, verify))

    def _scope(self, challenge: Challenge) -> str:
        """The rights to ask for, several of them separated by spaces."""
        return challenge.parameters.get("scope") or f"repository:{self._reference.path}:pull"

    async def _fetch_token(self, realm: str, query: dict[str, str], verify: bool) -> str:
        headers, form, method, url = {}, None, "GET", realm
        if self._credentials.identity_token:
            method = "POST"
            grant = {"grant_type": "refresh_token", "refresh_token": self._credentials.identity_token}
            form = {**query, **grant, "client_id": "tare"}
        else:
            if self._credentials.username:
                headers["Authorization"] = self._credentials.basic()
                query = {**query, "account": self._credentials.username}
            # As a query each scope is a parameter of its own, in a form they stay one (distribution's token and OAuth2 specs).
            pairs = [(name, part) for name, value in query.items() for part in (value.split() if name == "scope" else [value])]
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(pairs)}"
        async with self._transport.request(method, url, headers, form=form, verify=verify) as response:
            if response.status != 200:
                raise await self._refusal(method, realm, response)
            raw = await _read(response, TOKEN_LIMIT)
        try:
            found = msgspec.json.decode(raw, type=_Token)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Unauthorized(f"{realm}: malformed token answer: {error}") from None
        token = found.token or found.access_token or ""
        if not token or not token.isascii() or not token.isprintable():
            raise Unauthorized(f"{realm}: authorization server did not include a token in the response")
        return token

    async def _foreign(self, urls: list[str], headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Fetch from a descriptor's own addresses: without credentials and only with verified TLS."""
        error: TareError = NotFound("a foreign layer without an https address")
        for url in urls:
            if urlsplit(url).scheme != "https":
                continue
            try:
                return await self._open("GET", url, headers)
            except Unavailable as failure:
                error = failure
        raise error

    async def _open(self, method: str, url: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        own = urlsplit(url).netloc == self._endpoint.host
        return await self._transport.open(method, url, headers, verify=self._endpoint.verify or not own)

    async def _refusal(self, method: str, url: str, response: aiohttp.ClientResponse) -> TareError:
        try:
            body = await _read(response, BODY_LIMIT, cut=True)
        except Unavailable:
            body = b""
        finally:
            response.close()
        challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
        scope = any(challenge.parameters.get("error") == "insufficient_scope" for challenge in challenges)
        answer = Answer(method, url, response.status, response.reason or "", response.headers, body, scope)
        error = self._translate(answer)
        if isinstance(error, ResourceExhausted):
            wait = response.headers.get("Retry-After", "")
            return RateLimited(str(error), float(wait) if wait.isdigit() and len(wait) < 9 else -1.0)
        if response.status in (408, 500, 502, 503, 504):
            return Transient(str(error))
        return error

    def _translate(self, answer: Answer) -> TareError:
        """What a refusal means here."""
        return translate(answer, self._reference)

    def _authorized(self) -> dict[str, str]:
        return {"Authorization": self._authorization} if self._authorization else {}


class _Token(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None


_ACCEPT = {"Accept": ", ".join(media_types.ACCEPT_MANIFESTS)}


def _start(response: aiohttp.ClientResponse, offset: int) -> int:
    """Where the body starts: at ``offset`` if the server honoured the range, else at zero."""
    if response.status != 206:
        return 0
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    if unit != "bytes" or not first.isdigit() or int(first) != offset:
        raise Unavailable(f'Get "{response.url}": asked for bytes from {offset}, the server sent {rest or "no range"}')
    return offset


async def _read(response: aiohttp.ClientResponse, limit: int, cut: bool = False) -> bytes:
    data = bytearray()
    async for chunk in _chunks(response):
        data += chunk
        if len(data) > limit:
            if cut:
                break
            raise Corrupt(f'Get "{response.url}": answer is larger than {limit} bytes')
    return bytes(data[:limit])


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        while chunk := await response.content.readany():
            yield chunk
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise Transient(str(explain(error, response.method, str(response.url)))) from None
