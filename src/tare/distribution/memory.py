"""What all transfers of one engine have learnt of registries: which scheme works, what they ask for, the tokens they gave.

Bounded; the oldest goes first. Tokens are kept by user, so that nobody is let in with what somebody else was given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic

from tare.distribution.auth import Challenge, Credentials
from tare.distribution.endpoints import Endpoint

REMEMBER = 300.0
"""Seconds for which scheme and challenges of an endpoint are believed."""
SHORTEST_TOKEN = 60.0
"""Seconds that a token lives when its server does not say (distribution's token spec)."""
MARGIN = 10.0
"""A token is not used in its last seconds: it has to outlive the request that carries it."""
LIMIT = 256


@dataclass(frozen=True)
class Known:
    """What the version check of an endpoint brought to light."""

    base: str
    challenges: tuple[Challenge, ...]
    until: float


TokenKey = tuple[str, str, str, Credentials]
"""Realm, service, scope, user."""


class Memory:
    """What all transfers of one engine have learnt of registries. Bounded; the oldest goes first."""

    def __init__(self) -> None:
        self._hosts: OrderedDict[Endpoint, Known] = OrderedDict()
        self._tokens: OrderedDict[TokenKey, tuple[str, float]] = OrderedDict()

    def host(self, endpoint: Endpoint) -> Known | None:
        known = self._hosts.get(endpoint)
        return known if known is not None and monotonic() < known.until else None

    def learn(self, endpoint: Endpoint, base: str, challenges: Iterable[Challenge]) -> None:
        self._hosts[endpoint] = Known(base, tuple(challenges), monotonic() + REMEMBER)
        if len(self._hosts) > LIMIT:
            self._hosts.popitem(last=False)

    def forget(self, endpoint: Endpoint) -> None:
        self._hosts.pop(endpoint, None)

    def token(self, key: TokenKey) -> str:
        """A token that is still good, or nothing."""
        token, until = self._tokens.get(key, ("", 0.0))
        return token if monotonic() < until else ""

    def keep(self, key: TokenKey, token: str, lifetime: float) -> None:
        self._tokens[key] = (token, monotonic() + max(lifetime, SHORTEST_TOKEN) - MARGIN)
        if len(self._tokens) > LIMIT:
            self._tokens.popitem(last=False)

    def drop(self, token: str) -> None:
        """A registry refused this token."""
        for key in [key for key, (known, _) in self._tokens.items() if known == token]:
            del self._tokens[key]
