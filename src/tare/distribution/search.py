"""Searching a registry: Docker Hub's old search, or whatever a registry offers in its place.

``/v1/search`` is Docker Hub's and that of the registries that copied it. A registry of the distribution spec has no search; most can list
their repositories (``/v2/_catalog``), and then a name that contains the term is a hit. A registry with neither says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import msgspec

from tare.distribution.access import Access
from tare.distribution.bodies import read_limited
from tare.distribution.endpoints import Endpoint
from tare.errors import InvalidArgument, Unsupported, Upstream
from tare.oci.reference import DEFAULT_DOMAIN

if TYPE_CHECKING:
    from tare.distribution.auth import Credentials
    from tare.distribution.registry import Registry

_INDEX = Endpoint("index.docker.io")
_ANSWER_LIMIT = 8 << 20
_CATALOG_PAGE = 1000
_CATALOG_PAGES = 20
DEFAULT_LIMIT = 25
_LIMIT = 100


class Hit(msgspec.Struct):
    """One repository that was found, in Docker's spelling."""

    name: str
    description: str = ""
    is_official: bool = False
    is_automated: bool = False
    star_count: int = 0


class _Answer(msgspec.Struct):
    results: list[Hit] | None = None


class _Catalog(msgspec.Struct):
    repositories: list[str] | None = None


def split_term(term: str) -> tuple[str, str]:
    """Registry and words: ``host.example:5000/web`` asks that host, everything else Docker Hub."""
    if term.startswith(("http://", "https://")):
        raise InvalidArgument(f"invalid repository name: repository name ({term}) should not have a scheme")
    domain, slash, rest = term.partition("/")
    if slash and (domain == "localhost" or "." in domain or ":" in domain):
        return domain, rest
    return DEFAULT_DOMAIN, term.removeprefix("library/")


async def search(registry: Registry, term: str, limit: int, credentials: Credentials) -> list[Hit]:
    """At most ``limit`` (0: 25) repositories that match. Raises ``Unsupported`` where there is no search."""
    count = limit or DEFAULT_LIMIT
    if not 1 <= count <= _LIMIT:
        raise InvalidArgument(f"limit {limit} is outside the range of [1, {_LIMIT}]")
    domain, words = split_term(term)
    transport = await registry.transport()
    if domain == DEFAULT_DOMAIN:
        rules = registry.policy.endpoints(domain)[-1]
        endpoint = _INDEX if rules.host == "registry-1.docker.io" else rules
    else:
        endpoint = registry.policy.endpoints(domain)[-1]
    asking = _Asking(Access(transport, endpoint, credentials, lambda challenge: "registry:catalog:*"), endpoint, registry)
    hits = await asking.index(words, count)
    if hits is None:
        hits = await asking.catalog(words, count)
    if hits is None:
        raise Unsupported(f"registry {domain} offers neither a search nor a catalog of its repositories")
    if domain != DEFAULT_DOMAIN:
        for hit in hits:
            hit.name = f"{domain}/{hit.name}"
    return hits[:count]


class _Asking:
    def __init__(self, access: Access, endpoint: Endpoint, registry: Registry) -> None:
        self._access = access
        self._endpoint = endpoint
        self._registry = registry

    async def index(self, words: str, count: int) -> list[Hit] | None:
        """Hits of ``/v1/search``; None when it is not there."""
        if self._endpoint is _INDEX:
            self._access.base = f"https://{_INDEX.host}"
        status, raw = await self._get(f"/v1/search?{urlencode({'q': words, 'n': count})}")
        if status != 200:
            if self._endpoint is _INDEX:
                raise Upstream(f"Unexpected status code {status}")
            return None
        try:
            return msgspec.json.decode(raw, type=_Answer).results or []
        except msgspec.MsgspecError:
            return None

    async def catalog(self, words: str, count: int) -> list[Hit] | None:
        """Repositories whose names contain the words, out of the list of all; None when there is no list."""
        found: list[Hit] = []
        last = ""
        for _ in range(_CATALOG_PAGES):
            status, raw = await self._get(f"/v2/_catalog?n={_CATALOG_PAGE}" + (f"&last={quote(last, safe='')}" if last else ""))
            if status != 200:
                return None
            try:
                names = msgspec.json.decode(raw, type=_Catalog).repositories or []
            except msgspec.MsgspecError:
                return None
            found += [Hit(name) for name in names if words in name]
            if len(names) < _CATALOG_PAGE or len(found) >= count:
                break
            last = names[-1]
        return found

    async def _get(self, path: str) -> tuple[int, bytes]:
        await self._access.connect()
        url = self._access.base + path
        transport = await self._registry.transport()
        await self._access.ready("GET", url)
        used = self._access.authorization
        async with transport.request("GET", url, self._access.headers(), verify=self._endpoint.verify) as response:
            if response.status != 401:
                return response.status, await read_limited(response, _ANSWER_LIMIT)
            await self._access.refused("GET", url, used, response)
        async with transport.request("GET", url, self._access.headers(), verify=self._endpoint.verify) as response:
            return response.status, await read_limited(response, _ANSWER_LIMIT)
