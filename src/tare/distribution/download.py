"""One file from anywhere on the web: the source of ``import URL``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tare.distribution.bodies import chunks_of
from tare.errors import InvalidArgument, Upstream

if TYPE_CHECKING:
    from tare.distribution.registry import Registry


def address(text: str) -> str:
    """The URL that a user means; without a scheme it is ``http``, as with docker."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InvalidArgument(f'Get "{url}": invalid URL: {error}') from None
    if parts.scheme not in ("http", "https"):
        raise InvalidArgument(f'Get "{url}": unsupported protocol scheme "{parts.scheme}"')
    if not parts.netloc:
        raise InvalidArgument(f'Get "{url}": http: no Host in request URL')
    return url


async def download(registry: Registry, url: str) -> AsyncIterator[bytes]:
    """The file in chunks. Raises ``Upstream`` when it cannot be had."""
    transport = await registry.transport()
    async with transport.request("GET", url) as response:
        if response.status >= 400:
            raise Upstream(f"Got HTTP status code >= 400: {response.status} {response.reason}")
        async for chunk in chunks_of(response):
            yield chunk
