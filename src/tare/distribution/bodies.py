"""Reading the bodies of registries' answers: bounded, and with broken connections named as what they are."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp

from tare.distribution.transport import Transient, explain
from tare.errors import Corrupt


async def read_limited(response: aiohttp.ClientResponse, limit: int, cut: bool = False) -> bytes:
    """The whole body. Over ``limit`` bytes it is refused as ``Corrupt``, or cut off there."""
    data = bytearray()
    async for chunk in chunks_of(response):
        data += chunk
        if len(data) > limit:
            if cut:
                break
            raise Corrupt(f'Get "{response.url}": answer is larger than {limit} bytes')
    return bytes(data[:limit])


async def chunks_of(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body as it comes; ``Transient`` when it breaks off."""
    try:
        while chunk := await response.content.readany():
            yield chunk
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise Transient(str(explain(error, response.method, str(response.url)))) from None
