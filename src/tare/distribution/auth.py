"""Credentials and challenges: how a registry asks who we are (distribution spec's token flow, RFC 7235).

    GET /v2/...            ──► 401, WWW-Authenticate: Bearer realm="R",service="S",scope="repository:NAME:pull"
    GET R?service=S&scope= ──► {"token": ...}      with Basic credentials if the user gave any, else anonymous
    GET /v2/...  Authorization: Bearer ...

Rules (CVE-2020-15157 and its like): credentials belong to one registry host. They go to that host and to the realm that
this host itself names, never to a mirror, a redirect's target or a foreign URL. A realm of a registry that we reached
through verified TLS must use TLS too.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field

import msgspec

from tare.errors import InvalidArgument
from tare.oci.reference import DEFAULT_DOMAIN

HEADER_LIMIT = 256 << 10
_HUB_NAMES = frozenset({"", DEFAULT_DOMAIN, "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True)
class Credentials:
    """What a user gave for one registry; all empty means anonymous."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """A refresh token (``docker login`` with an identity provider); takes the password's place."""
    registry_token: str = field(default="", repr=False)
    """A ready Bearer token."""
    server_address: str = ""

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)

    @property
    def domain(self) -> str:
        """The domain of the references that these are for, out of the server address in any of its historical spellings."""
        host = self.server_address.partition("://")[2] or self.server_address
        host = host.partition("/")[0].lower()
        return DEFAULT_DOMAIN if host in _HUB_NAMES else host

    def basic(self) -> str:
        """The value of an ``Authorization`` header for the Basic scheme."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    @classmethod
    def decode(cls, header: str) -> Credentials:
        """Read an ``X-Registry-Auth`` header: base64url of a JSON object (Docker Engine API, "Authentication")."""
        if not header:
            return cls()
        if len(header) > HEADER_LIMIT:
            raise InvalidArgument("X-Registry-Auth is too long")
        try:
            raw = base64.urlsafe_b64decode(header + "=" * (-len(header) % 4))
            found = msgspec.json.decode(raw, type=_AuthConfig) if raw.strip() not in (b"", b"null") else _AuthConfig()
        except (ValueError, binascii.Error, msgspec.MsgspecError, RecursionError) as error:
            raise InvalidArgument(f"invalid X-Registry-Auth header: {error}") from None
        username, password = found.username, found.password
        if found.auth and not username:
            username, password = _split_auth(found.auth)
        return cls(username, password, found.identitytoken, found.registrytoken, found.serveraddress)


def decode_all(header: str) -> dict[str, Credentials]:
    """Read an ``X-Registry-Config`` header: credentials by server address, given back by the domain of the references they are for."""
    if not header:
        return {}
    if len(header) > HEADER_LIMIT:
        raise InvalidArgument("X-Registry-Config is too long")
    try:
        raw = base64.urlsafe_b64decode(header + "=" * (-len(header) % 4))
        entries = msgspec.json.decode(raw, type=dict[str, _AuthConfig]) if raw.strip() not in (b"", b"null") else {}
    except (ValueError, binascii.Error, msgspec.MsgspecError, RecursionError) as error:
        raise InvalidArgument(f"invalid X-Registry-Config header: {error}") from None
    found = {}
    for server, entry in entries.items():
        user, password = (entry.username, entry.password) if entry.username or not entry.auth else _split_auth(entry.auth)
        credentials = Credentials(user, password, entry.identitytoken, entry.registrytoken, entry.serveraddress or server)
        found[credentials.domain] = credentials
    return found


class _AuthConfig(msgspec.Struct):
    username: str = ""
    password: str = ""
    auth: str = ""
    identitytoken: str = ""
    registrytoken: str = ""
    serveraddress: str = ""


def _split_auth(text: str) -> tuple[str, str]:
    user, colon, password = base64.b64decode(text).decode().partition(":")
    if not colon:
        raise InvalidArgument("invalid X-Registry-Auth header: auth holds no password")
    return user, password.rstrip("\0")


@dataclass(frozen=True)
class Challenge:
    """One challenge of a ``WWW-Authenticate`` header; ``scheme`` and parameter names in lower case."""

    scheme: str
    parameters: dict[str, str]


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"\s*({_TOKEN})(?:\s+|$)")
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*(?:,|$)')


def parse_challenges(headers: list[str]) -> list[Challenge]:
    """The challenges of all ``WWW-Authenticate`` headers, in order. What cannot be read is left out."""
    found: list[Challenge] = []
    for header in headers:
        position = 0
        while position < len(header):
            scheme = _SCHEME.match(header, position)
            if scheme is None:
                break
            position = scheme.end()
            parameters: dict[str, str] = {}
            while match := _PARAMETER.match(header, position):
                quoted = match[2]
                parameters[match[1].lower()] = match[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                position = match.end()
            found.append(Challenge(scheme[1].lower(), parameters))
    return found
