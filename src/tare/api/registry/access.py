"""Who asks, and what may they do: passwords, tokens and rights together.

    no Authorization     nobody: what ``anonymous`` and rules for everybody give
    Basic                a user of the password file
    Bearer               what the token says, and no more than the rules give to its subject

Nobody writes without a name unless the registry was told so: an open registry (no passwords, no tokens, no rules) writes only for those who
call it by a loopback name (a web page that was made to look like one cannot), or for everybody with ``anonymous-push``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from tare.api.registry.passwords import Passwords
from tare.api.registry.rights import ALL, NONE, Rights
from tare.errors import InvalidArgument
from tare.http.message import Request
from tare.registry.errors import RegistryError

if TYPE_CHECKING:
    from tare.api.registry.settings import Settings
    from tare.api.registry.tokens import ForeignTokens, OwnTokens, Scopes

_BASIC = (("WWW-Authenticate", 'Basic realm="Tare registry"'),)
_WRITING = frozenset(("push", "delete"))


class Caller(NamedTuple):
    """Whoever sent a request. ``scopes`` is None without a token."""

    name: str
    scopes: Scopes | None = None


NOBODY = Caller("")


def is_loopback(host: str) -> bool:
    """Whether ``host[:port]`` can only be this machine: ``localhost`` or a loopback address, not a name that merely begins like one."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Access:
    """The rules of one registry. ``resolve`` gives the name that a repository's rights go by."""

    def __init__(self, settings: Settings, resolve: Callable[[str], str] = str) -> None:
        """``InvalidArgument`` when something that it needs cannot be used."""
        given = settings.access
        self._settings = settings
        self._resolve = resolve
        self.passwords = Passwords(given.htpasswd) if given.htpasswd else None
        foreign = settings.token.foreign
        closed = bool(given.htpasswd or foreign or given.rule)
        anonymous = {right for right, on in (("pull", given.anonymous_pull or not closed),) if on}
        if given.anonymous_push or not closed:
            anonymous.update(("push", "delete"))
        self.rights = Rights(given.rule, given.groups, anonymous=frozenset(anonymous))
        self.read_only = given.read_only
        self.is_open = not closed
        self._guarded = self.is_open and not given.anonymous_push
        self.own: OwnTokens | None = None
        self.foreign: ForeignTokens | None = None
        if foreign is not None:
            from tare.api.registry.tokens import ForeignTokens

            self.foreign = ForeignTokens(foreign)
        elif self._wants_tokens():
            from tare.api.registry.tokens import OwnTokens

            self.own = OwnTokens(settings.token, self._key_directory())
        self._verifier = self.own or self.foreign

    def _wants_tokens(self) -> bool:
        """Docker sends its credentials only where the registry asked for some at the start, and cannot do without then, but for tokens."""
        enabled = self._settings.token.enabled
        if enabled is None:
            return self.passwords is not None and self.rights.for_nobody
        if enabled and self.passwords is None:
            raise InvalidArgument("a token service needs users: give --htpasswd FILE (access.htpasswd)")
        return enabled

    def _key_directory(self) -> Path:
        directory, state = self._settings.token.keys, self._settings.state_directory
        if directory is not None:
            return directory
        if state is None:
            raise InvalidArgument("the token service's keys need a place: give token.keys or --state DIRECTORY")
        return state / "keys"

    def reload(self) -> None:
        """Read files again that have changed. ``InvalidArgument``."""
        if self.passwords is not None:
            self.passwords.reload()
        if self.foreign is not None:
            self.foreign.reload()

    # Who

    async def identify(self, request: Request) -> Caller:
        """``UNAUTHORIZED`` for credentials that are wrong: nobody is taken for somebody less by mistake."""
        authorization = request.headers.get("authorization", "")
        if not authorization or self.is_open:
            return NOBODY
        scheme, _, value = authorization.partition(" ")
        try:
            if scheme.lower() == "bearer" and self._verifier is not None:
                claims = self._verifier.verify(value.strip())
                return Caller(claims.subject, claims.scopes)
            if scheme.lower() == "basic" and self.passwords is not None:
                return Caller(await self.passwords.verify_basic(value, request.peer.address))
        except RegistryError as error:
            if error.code == "UNAUTHORIZED":
                error.headers = self.challenge(request, error="invalid_token" if scheme.lower() == "bearer" else "")
            raise
        raise RegistryError("UNAUTHORIZED", "malformed credentials", headers=self.challenge(request))

    def challenge(self, request: Request, scope: str = "", error: str = "") -> tuple[tuple[str, str], ...]:
        """The header that says how to be let in."""
        if self._verifier is None:
            return _BASIC
        realm = self.foreign.realm if self.foreign else f"{self.base(request)}/token"
        parts = [f'realm="{realm}"', f'service="{self._verifier.service}"']
        parts += [f'{name}="{value}"' for name, value in (("scope", scope), ("error", error)) if value]
        return (("WWW-Authenticate", f"Bearer {','.join(parts)}"),)

    def base(self, request: Request) -> str:
        """``scheme://host`` as the client sees this registry."""
        if self._settings.url:
            return self._settings.url.rstrip("/")
        host = request.headers.get("host", "")
        if not host or any(character in host for character in '"\\/@?# ') or not host.isprintable():
            raise RegistryError("DENIED", "the request names no host", status=400)
        return f"{'https' if request.secure else 'http'}://{host}"

    # What

    def may(self, caller: Caller, right: str, name: str, known_as: str = "") -> bool:
        """Whether ``caller`` has a right on a repository; ``known_as`` is the name that its rights go by, if another one."""
        if caller.scopes is not None:
            allowed = caller.scopes.get(f"repository:{name}", NONE)
            if right not in allowed and "*" not in allowed:
                return False
            if self.foreign is not None and self.rights.uniform:
                return True
        return right in self.rights.of(caller.name, known_as or name)

    def require(self, request: Request, caller: Caller, right: str, name: str, known_as: str = "") -> None:
        """``UNAUTHORIZED`` for who might be let in with other credentials, else ``DENIED``."""
        if right in _WRITING:
            self._guard(request)
        if self.may(caller, right, name, known_as):
            return
        wanted = "pull,push" if right == "push" else right
        scope = f"repository:{name}:{wanted}"
        if caller is NOBODY:
            raise RegistryError("UNAUTHORIZED", "authentication required", headers=self.challenge(request, scope))
        allowed = ALL if caller.scopes is None else caller.scopes.get(f"repository:{name}", NONE)
        if right not in allowed and "*" not in allowed:
            message = "the token does not allow this"
            raise RegistryError("UNAUTHORIZED", message, headers=self.challenge(request, scope, "insufficient_scope"))
        raise RegistryError("DENIED", "requested access to the resource is denied")

    def _guard(self, request: Request) -> None:
        if self.read_only:
            raise RegistryError("DENIED", "this registry is read-only")
        if self._guarded and not is_loopback(host := request.headers.get("host", "")) and request.peer.address != "@":
            reason = f"nobody writes at {host[:100] or 'an unnamed host'} without a password: this registry is open on loopback only"
            raise RegistryError("DENIED", reason)

    def enter(self, request: Request, caller: Caller) -> None:
        """The version check: the first challenge for clients that have not said who they are."""
        if caller is NOBODY and not self.is_open and (self._verifier is not None or not self.rights.for_nobody):
            raise RegistryError("UNAUTHORIZED", "authentication required", headers=self.challenge(request))

    def readable(self, request: Request, caller: Caller, names: list[str]) -> list[str]:
        """Those of ``names`` that the catalog may show. ``UNAUTHORIZED`` when it is not for nobody."""
        scopes = caller.scopes
        if scopes is not None and "*" not in scopes.get("registry:catalog", NONE):
            raise RegistryError(
                "UNAUTHORIZED",
                "the token does not allow this",
                headers=self.challenge(request, "registry:catalog:*", "insufficient_scope"),
            )
        if caller is NOBODY and not self.rights.for_nobody:
            raise RegistryError("UNAUTHORIZED", "authentication required", headers=self.challenge(request, "registry:catalog:*"))
        if scopes is not None and self.foreign is not None and self.rights.uniform:
            return names
        return [name for name in names if "pull" in self.rights.of(caller.name, name)]

    def grant(self, user: str, wanted: Scopes) -> dict[str, frozenset[str]]:
        """What of ``wanted`` a token for ``user`` may say."""
        granted = {}
        for scope, actions in wanted.items():
            kind, _, name = scope.partition(":")
            allowed: frozenset[str] = NONE
            if kind == "repository":
                allowed = self.rights.of(user, self._resolve(name))
            elif scope == "registry:catalog" and (user or self.rights.for_nobody):
                allowed = frozenset("*")
            found = allowed if "*" in actions else actions & allowed
            if found:
                granted[scope] = found
        return granted
