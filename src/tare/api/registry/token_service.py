"""The token service's HTTP face (distribution's token specification, and its OAuth2 variant).

    GET  /token?service=&scope=&account=&offline_token=true     Basic credentials, or none for what everybody may
    POST /token     grant_type=password|refresh_token, service, client_id, scope, access_type=offline
    GET  /token/jwks.json                                       public keys, for other registries that believe this service

A token says the part of what was asked for that the user's rights give: asking for more is no error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from tare.api.registry.access import Access, Caller
from tare.api.registry.exchange import Exchange
from tare.api.registry.tokens import OwnTokens, parse_scopes
from tare.http.message import Request, Response
from tare.registry.errors import RegistryError

FORM_LIMIT = 64 << 10
_NO_STORE = (("Cache-Control", "no-store"),)


class TokenService:
    """Answers below ``/token``."""

    def __init__(self, access: Access, tokens: OwnTokens) -> None:
        self._access = access
        self._tokens = tokens

    async def handle(self, exchange: Exchange) -> Response:
        """One request; ``RegistryError`` for what is refused."""
        request = exchange.request
        if request.path != "/token":
            self._only(request, "GET", "HEAD")
            return Response(200, json.dumps(self._tokens.public()).encode(), headers=(("Cache-Control", "max-age=60"),))
        self._only(request, "GET", "POST")
        return await (self._get(exchange) if request.method == "GET" else self._post(exchange))

    @staticmethod
    def _only(request: Request, *methods: str) -> None:
        if request.method not in methods:
            raise RegistryError("UNSUPPORTED", f"method {request.method} is not supported here", headers=(("Allow", ", ".join(methods)),))

    async def _get(self, exchange: Exchange) -> Response:
        request = exchange.request
        query = request.query
        self._check_service(query.get("service", ""))
        authorization = request.headers.get("authorization", "")
        user = await self._password(request, authorization) if authorization else ""
        if query.get("account") and user and query["account"] != user:
            raise RegistryError("UNAUTHORIZED", "the account is not the one whose credentials these are")
        exchange.caller = Caller(user)
        return self._answer(user, query.all("scope"), offline=query.get("offline_token") == "true")

    async def _password(self, request: Request, authorization: str) -> str:
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() != "basic" or self._access.passwords is None:
            raise RegistryError("UNAUTHORIZED", "the token service takes a user name and a password")
        return await self._access.passwords.verify_basic(value, request.peer.address)

    async def _post(self, exchange: Exchange) -> Response:
        request = exchange.request
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
            raise RegistryError("UNSUPPORTED", "a form (application/x-www-form-urlencoded) is wanted", status=415)
        try:
            pairs = parse_qsl((await request.read(FORM_LIMIT)).decode(), keep_blank_values=True, max_num_fields=64)
        except ValueError:
            raise RegistryError("UNSUPPORTED", "malformed form", status=400) from None
        form = dict(reversed(pairs))
        self._check_service(form.get("service", ""))
        grant = form.get("grant_type", "")
        if grant == "refresh_token":
            user = self._refreshed(form.get("refresh_token", ""))
        elif grant == "password" and self._access.passwords is not None:
            user = await self._access.passwords.verify(form.get("username", ""), form.get("password", ""), request.peer.address)
        else:
            raise RegistryError("UNSUPPORTED", f"grant_type is password or refresh_token, not {grant[:40]!r}", status=400)
        exchange.caller = Caller(user)
        offline = form.get("access_type") == "offline"
        scopes = [value for name, value in pairs if name == "scope"]
        return self._answer(user, scopes, offline=offline, refresh=form.get("refresh_token", "") if grant == "refresh_token" else "")

    def _check_service(self, service: str) -> None:
        if service and service != self._tokens.service:
            raise RegistryError("DENIED", f"this is the token service of {self._tokens.service!r}", status=400)

    def _refreshed(self, token: str) -> str:
        user, fingerprint = self._tokens.refreshed(token)
        passwords = self._access.passwords
        if passwords is None or not fingerprint or passwords.fingerprint(user) != fingerprint:
            raise RegistryError("UNAUTHORIZED", "the password has changed since: log in again")
        return user

    def _answer(self, user: str, scopes: Sequence[str], *, offline: bool, refresh: str = "") -> Response:
        if not user and not self._access.rights.for_nobody:
            raise RegistryError("UNAUTHORIZED", "authentication required", headers=(("WWW-Authenticate", 'Basic realm="Tare registry"'),))
        granted = self._access.grant(user, parse_scopes(scopes))
        token, issued = self._tokens.access(user, granted)
        answer = {
            "token": token,
            "access_token": token,
            "expires_in": self._tokens.lifetime,
            "issued_at": datetime.fromtimestamp(issued, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "scope": " ".join(f"{scope}:{','.join(sorted(actions))}" for scope, actions in granted.items()),
        }
        if user and offline and self._access.passwords is not None:
            answer["refresh_token"] = self._tokens.refresh(user, self._access.passwords.fingerprint(user))
        elif refresh:
            answer["refresh_token"] = refresh
        return Response(200, json.dumps(answer).encode(), headers=_NO_STORE)
