"""HTTP towards registries: one session, no cookies, no netrc, no hidden decompression, redirects under our own rules.

This is the only module that imports aiohttp (0.15 s and several megabytes); it is loaded with the first pull.

Rules for redirects: credentials stay with the host that they were meant for; TLS is never left for plain HTTP; whether a
certificate may be bad is decided for each host anew. Failures to reach a host become ``Unreachable`` with the words of
Go's HTTP client, which Docker's users know: ``Get "https://host/v2/": dial tcp host:443: connect: connection refused``.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp import hdrs
from yarl import URL

from tare.distribution import certificates
from tare.distribution.certificates import Certificates
from tare.distribution.endpoints import RegistryPolicy
from tare.distribution.memory import Memory
from tare.distribution.proxies import proxy_for
from tare.errors import Upstream

REDIRECT_LIMIT = 5
READ_BUFFER = 1 << 20
CONNECT_TIMEOUT = 30.0
STALL_TIMEOUT = 60.0
"""Seconds without a single byte after which a transfer counts as broken."""

SLOW_ANSWER = 300.0
"""Seconds that a registry may take to answer an upload: it hashes and stores gigabytes first."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Unreachable(Upstream):
    """No answer came: the host was not reached, or the connection broke."""


class Transient(Upstream):
    """The registry failed in a way that may pass."""


class PlainHttp(Unreachable):
    """TLS was tried and the peer does not speak it."""


class Transport:
    """A pool of connections for all registries. Use on one event loop; ``close`` when done."""

    def __init__(self, policy: RegistryPolicy, user_agent: str, certificate_directories: Sequence[Path] = certificates.DIRECTORIES) -> None:
        self.policy = policy
        self.memory = Memory()
        self._certificates = Certificates(certificate_directories)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=READ_BUFFER,
            max_line_size=32 << 10,
            max_field_size=64 << 10,
            headers={hdrs.USER_AGENT: user_agent, hdrs.ACCEPT_ENCODING: "identity"},
        )

    async def close(self) -> None:
        await self._session.close()

    async def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        form: Mapping[str, str] | None = None,
        verify: bool = True,
    ) -> aiohttp.ClientResponse:
        """Send one request and follow redirects; returns the answer, unread: ``close`` it. Raises ``Unreachable``."""
        sent = dict(headers or {})
        for _ in range(REDIRECT_LIMIT + 1):
            response = await self._send(method, url, sent, form, verify)
            location = response.headers.get(hdrs.LOCATION)
            if response.status not in _REDIRECTS or not location:
                return response
            response.release()
            target = _redirect(method, url, location)
            if _origin(target) != _origin(url):
                sent.pop(hdrs.AUTHORIZATION, None)
                form = None
                verify = not self.policy.is_insecure(urlsplit(target).netloc)
            url = target
        raise Upstream(f'{_verb(method)} "{url}": stopped after {REDIRECT_LIMIT} redirects')

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | AsyncIterator[bytes], *, verify: bool = True
    ) -> aiohttp.ClientResponse:
        """Send one request with a body. Redirects are the caller's: a streamed body cannot be sent twice."""
        return await self._send(method, url, headers, body, verify, SLOW_ANSWER)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        form: Mapping[str, str] | None = None,
        verify: bool = True,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """``open`` for the time of a context."""
        response = await self.open(method, url, headers, form=form, verify=verify)
        try:
            yield response
        finally:
            response.close()

    async def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Mapping[str, str] | bytes | AsyncIterator[bytes] | None,
        verify: bool,
        stall: float | None = None,
    ) -> aiohttp.ClientResponse:
        scheme, host = urlsplit(url).scheme, urlsplit(url).netloc
        try:
            return await self._session.request(
                method,
                URL(url, encoded=True),
                headers=headers,
                data=body,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=CONNECT_TIMEOUT, sock_read=stall or STALL_TIMEOUT),
                ssl=self._certificates.context(host, verify) if scheme == "https" else True,
                proxy=proxy_for(scheme, host),
            )
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise explain(error, method, url) from None


def explain(error: BaseException, method: str, url: str) -> Unreachable:
    """The error of a request that got no complete answer, in the words of Go's HTTP client."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as wrong:  # a server may have sent us there
        return Unreachable(f'{_verb(method)} "{url}": invalid URL: {wrong}')
    name = parts.hostname or ""
    address = f"{'127.0.0.1' if name == 'localhost' else name}:{port}"
    kind: type[Unreachable] = Unreachable
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        reason = f"dial tcp: lookup {name}: no such host"
    elif isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = f"tls: failed to verify certificate: x509: {error.certificate_error}"
    elif isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        reason, kind = "http: server gave HTTP response to HTTPS client", PlainHttp
        if not any(sign in str(error).upper() for sign in ("WRONG_VERSION", "RECORD_LAYER", "HTTP_REQUEST", "PACKET")):
            reason = f"tls: {error}"
    elif isinstance(error, aiohttp.ClientProxyConnectionError):
        reason = f"proxyconnect tcp: dial tcp {error.host}:{error.port}: connect: {_words(error.os_error)}"
    elif isinstance(error, aiohttp.ClientHttpProxyError):
        reason = error.message or f"proxy answered {error.status}"
    elif isinstance(error, aiohttp.ClientConnectorError):
        reason = f"dial tcp {address}: connect: {_words(error.os_error)}"
    elif isinstance(error, (aiohttp.ServerTimeoutError, TimeoutError)):
        reason = f"timed out: no data for {STALL_TIMEOUT:.0f} seconds"
    elif isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError)):
        reason = "unexpected EOF"
    elif isinstance(error, OSError):
        reason = f"read tcp {address}: {_words(error)}"
    else:
        reason = str(error) or type(error).__name__
    return kind(f'{_verb(method)} "{url}": {reason}')


def _words(error: OSError) -> str:
    if error.errno in errno.errorcode:
        return os.strerror(error.errno or 0).lower()
    return str(error) or type(error).__name__


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def _redirect(method: str, url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
        scheme, _ = parts.scheme, parts.port
    except ValueError as wrong:
        raise Upstream(f'{_verb(method)} "{url}": refused redirect to {location}: {wrong}') from None
    if scheme not in ("http", "https") or (scheme == "http" and urlsplit(url).scheme == "https"):
        raise Upstream(f'{_verb(method)} "{url}": refused redirect to {target}')
    return target


def _verb(method: str) -> str:
    return method.capitalize()
