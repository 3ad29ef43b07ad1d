"""An endpoint as one user sees it: the scheme that works, the challenge that it poses, the answer that lets this user in.

    unknown ──connect──► base URL and challenges known ──authorize──► an Authorization value to send
                               ▲                                            │
                               └──────── 401: the token ran out ◄───────────┘

What was learnt is kept in ``Memory`` for some minutes, so that a second pull costs no version check and no token: scheme and challenges by
endpoint, tokens by realm, service, scope and *user*. A remembered token that is refused is forgotten and fetched anew; a remembered scheme
that does not answer any more is forgotten too.

Rules (CVE-2020-15157 and its like) are those of ``auth``: credentials go to the registry's own host and to the realm that it names.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

import aiohttp
import msgspec

from tare.distribution.answers import translate_login
from tare.distribution.auth import Challenge, Credentials, parse_challenges
from tare.distribution.bodies import read_limited
from tare.distribution.endpoints import Endpoint
from tare.distribution.retry import refusal, retrying
from tare.distribution.transport import Transport, Unreachable
from tare.errors import MissingCredentials, TareError, Unauthorized, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN_LIMIT = 256 << 10
CLIENT_ID = "tare"


class Access:
    """One endpoint for one user. ``scope`` makes the rights to ask for out of a challenge's own."""

    def __init__(self, transport: Transport, endpoint: Endpoint, credentials: Credentials, scope: Callable[[Challenge], str]) -> None:
        self._transport = transport
        self._memory = transport.memory
        self._endpoint = endpoint
        self._credentials = credentials
        self._scope = scope
        self._lock = asyncio.Lock()
        self._challenges: list[Challenge] = []
        self.base = ""
        """``scheme://host/prefix``, known after ``connect``."""
        self.authorization = f"Bearer {credentials.registry_token}" if credentials.registry_token else ""

    def headers(self) -> dict[str, str]:
        return {"Authorization": self.authorization} if self.authorization else {}

    def verify(self, url: str) -> bool:
        """Whether the certificate behind ``url`` must be valid: only the endpoint's own host may be trusted without."""
        return self._endpoint.verify or urlsplit(url).netloc != self._endpoint.host

    async def connect(self) -> None:
        """Find the scheme that works, with the API version check that doubles as the first challenge."""
        async with self._lock:
            if self.base:
                return
            known = self._memory.host(self._endpoint)
            if known is not None:
                self.base, self._challenges = known.base, list(known.challenges)
                return
            error: TareError | None = None
            for scheme in self._endpoint.schemes:
                base = f"{scheme}://{self._endpoint.host}{self._endpoint.prefix}"
                try:
                    response = await self._transport.open("GET", f"{base}/v2/", self.headers(), verify=self._endpoint.verify)
                except Unreachable as failure:
                    error = failure
                    continue
                self._challenges = _challenges(response) if response.status == 401 else []
                response.release()
                self.base = base
                if response.status in (200, 401):
                    self._memory.learn(self._endpoint, base, self._challenges)
                return
            raise error or Upstream(f"{self._endpoint.host} cannot be reached")

    def lost(self) -> None:
        """The endpoint does not answer as it did: whoever comes next looks anew."""
        self._memory.forget(self._endpoint)

    async def ready(self, method: str, url: str) -> None:
        """Answer the challenge of the version check before it costs a refused request."""
        if self._challenges and not self.authorization:
            await self.authorize(method, url, "")

    async def refused(self, method: str, url: str, used: str, response: aiohttp.ClientResponse) -> None:
        """A 401 came although ``used`` was sent: renew it. Closes the response."""
        self._challenges = _challenges(response) or self._challenges
        response.close()
        self._memory.drop(used.removeprefix("Bearer "))
        await self.authorize(method, url, used)

    async def authorize(self, method: str, url: str, used: str) -> None:
        """Answer the latest challenge. ``used`` is the authorisation that was just refused."""
        async with self._lock:
            if self.authorization != used:
                return  # somebody else has just renewed it
            schemes = {challenge.scheme: challenge for challenge in self._challenges}
            if "bearer" in schemes:
                try:
                    self.authorization = "Bearer " + await self._token(schemes["bearer"], self._scope(schemes["bearer"]))
                except Unauthorized as error:
                    raise Unauthorized(f'{method.capitalize()} "{url}": {error}') from None
            elif "basic" in schemes and self._credentials.username:
                self.authorization = self._credentials.basic()
            elif "basic" in schemes:
                raise MissingCredentials(f'{method.capitalize()} "{url}": no basic auth credentials')
            else:
                raise Unauthorized(f'{method.capitalize()} "{url}": unauthorized: no supported authentication scheme offered')

    async def login(self) -> str:
        """Prove that the credentials are good; returns the identity token that the registry gives in their place, if it does."""
        await self.connect()
        url = f"{self.base}/v2/"
        schemes = {challenge.scheme: challenge for challenge in self._challenges}
        identity = ""
        if "bearer" in schemes:
            realm, query, verify = self._token_request(schemes["bearer"], "")
            try:
                answer = await retrying(lambda: self._fetch_token(realm, {**query, "offline_token": "true"}, verify))
            except Unauthorized as error:
                raise Unauthorized(f'Get "{url}": {error}') from None
            self.authorization, identity = f"Bearer {answer.value}", answer.refresh_token or ""
        elif schemes:
            await self.authorize("GET", url, "")
        response = await self._transport.open("GET", url, self.headers(), verify=self._endpoint.verify)
        response.release()
        if response.status != 200:
            raise Upstream(f"login attempt to {url} failed with status: {response.status} {response.reason}")
        return identity

    async def _token(self, challenge: Challenge, scope: str) -> str:
        realm, query, verify = self._token_request(challenge, scope)
        key = (realm, query.get("service", ""), scope, self._credentials)
        if known := self._memory.token(key):
            return known
        answer = await retrying(lambda: self._fetch_token(realm, query, verify))
        self._memory.keep(key, answer.value, answer.expires_in or 0)
        return answer.value

    def _token_request(self, challenge: Challenge, scope: str) -> tuple[str, dict[str, str], bool]:
        """Where a token is to be had, with which parameters, and whether the certificate there must be valid."""
        realm = challenge.parameters.get("realm", "")
        parts = urlsplit(realm)
        plain = self.base.startswith("http:")
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
            raise Unauthorized(f"{self._endpoint.host}: invalid token realm {realm!r}")
        if parts.scheme == "http" and not plain and self._endpoint.verify:
            raise Unauthorized(f"{self._endpoint.host}: refused token realm {realm}: it is not reached through TLS")
        query = {"scope": scope} if scope else {}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        same_host = parts.hostname == urlsplit(self.base).hostname
        return realm, query, self._endpoint.verify or not same_host

    async def _fetch_token(self, realm: str, query: dict[str, str], verify: bool) -> TokenAnswer:
        headers, form, method, url = {}, None, "GET", realm
        if self._credentials.identity_token:
            method = "POST"
            grant = {"grant_type": "refresh_token", "refresh_token": self._credentials.identity_token}
            form = {**{name: value for name, value in query.items() if name != "offline_token"}, **grant, "client_id": CLIENT_ID}
        else:
            if self._credentials.username:
                headers["Authorization"] = self._credentials.basic()
                query = {**query, "account": self._credentials.username}
            if "offline_token" in query:
                query = {**query, "client_id": CLIENT_ID}
            # As a query each scope is a parameter of its own, in a form they stay one (distribution's token and OAuth2 specs).
            pairs = [(name, part) for name, value in query.items() for part in (value.split() if name == "scope" else [value])]
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(pairs)}" if pairs else realm
        async with self._transport.request(method, url, headers, form=form, verify=verify) as response:
            if response.status != 200:
                raise await refusal(method, realm, response, translate_login)
            raw = await read_limited(response, TOKEN_LIMIT)
        try:
            found = msgspec.json.decode(raw, type=TokenAnswer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Unauthorized(f"{realm}: malformed token answer: {error}") from None
        if not found.value or not found.value.isascii() or not found.value.isprintable():
            raise Unauthorized(f"{realm}: authorization server did not include a token in the response")
        return found


class TokenAnswer(msgspec.Struct):
    """What a token server says (distribution's token and OAuth2 specs)."""

    token: str | None = None
    access_token: str | None = None
    refresh_token: str | None = None
    expires_in: float | None = None

    @property
    def value(self) -> str:
        return self.token or self.access_token or ""


def _challenges(response: aiohttp.ClientResponse) -> list[Challenge]:
    return parse_challenges(response.headers.getall("WWW-Authenticate", []))
