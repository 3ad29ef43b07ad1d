"""What needs a registry: ``/auth``, ``/distribution``, pull (``/images/create``) and push.

Credentials come with the request (``X-Registry-Auth``) and are forgotten with it; as with dockerd, a header that cannot be
read counts as none.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import msgspec

from tare.api.docker.params import boolean, json_body, json_response
from tare.api.docker.platforms import platform_parameter
from tare.api.docker.progress import ProgressFeed, follow
from tare.distribution.auth import Credentials, decode_all
from tare.distribution.compress import Compression
from tare.distribution.indexes import publish_index
from tare.errors import InvalidArgument
from tare.http.message import Request, Response
from tare.images.service import Extent
from tare.oci.image import PlatformEntry
from tare.oci.reference import Reference
from tare.wire import system as wire

if TYPE_CHECKING:
    from tare.engine import Engine

log = logging.getLogger("tare.api")


class RegistryHandlers:
    """Handlers of the endpoints that talk to registries."""

    def __init__(self, engine: Engine) -> None:
        self._images = engine.images

    async def auth(self, request: Request) -> Response:
        """Prove credentials at their registry. dockerd answers 500 for a refused password, 401 when a token server refuses it."""
        given = await json_body(request, wire.AuthConfig, optional=True)
        token = await self._images.registry.login(
            Credentials(given.username, given.password, given.identitytoken, given.registrytoken, given.serveraddress)
        )
        return json_response({"IdentityToken": token, "Status": "Login Succeeded"})

    async def distribution(self, request: Request) -> Response:
        """Descriptor and platforms of an image in its registry."""
        reference = Reference.parse(request.params["name"])
        found = await self._images.registry.inspect(reference, _credentials(request))
        platforms = [_platform(platform) for platform in found.platforms]
        descriptor = {"mediaType": found.media_type, "digest": str(found.digest), "size": found.size}
        return json_response({"Descriptor": descriptor, "Platforms": platforms})

    async def manifest(self, request: Request) -> Response:
        """Our own: a manifest or index as it is in its registry."""
        reference = Reference.parse(request.params["name"])
        raw, media_type = await self._images.registry.manifest(reference, _credentials(request))
        return Response(200, raw, media_type)

    async def publish(self, request: Request) -> Response:
        """Our own: publish an index of images that are in registries already (``tare manifest push``)."""
        target = Reference.parse(request.params["name"])
        given = await json_body(request, wire.IndexToPublish)
        credentials = decode_all(request.headers.get("x-registry-config", ""))
        sources = [Reference.parse(source) for source in given.sources]
        digest = await publish_index(self._images.registry, target, given.index.encode(), given.media_type, sources, credentials)
        return json_response({"Digest": str(digest)}, 201)

    async def pull(self, request: Request) -> None:
        query = request.query
        name, tag, platform = query["fromImage"], query.get("tag", ""), query.get("platform") or None
        reference = Reference.parse(f"{name}@{tag}" if ":" in tag else f"{name}:{tag}" if tag else name)
        extent = Extent(boolean(request, "all-platforms"), boolean(request, "referrers"))  # our own
        credentials = _credentials(request)
        await request.read()
        feed = ProgressFeed()
        if reference.is_name_only:
            every = asyncio.create_task(self._images.pull_all(reference, platform, credentials, feed.report, extent))
            await follow(request, every, feed)
        else:
            one = asyncio.create_task(self._images.pull(reference, platform, credentials, feed.report, extent))
            await follow(request, one, feed)

    async def push(self, request: Request) -> None:
        """``platform`` as in API 1.46; ``compression`` (``zstd``, ``gzip:9``) is our own."""
        credentials = _credentials(request)
        await request.read()
        feed = ProgressFeed()
        name, tag = request.params["name"], request.query.get("tag", "")
        platform = platform_parameter(request)
        packing = request.query.get("compression", "")
        compression = Compression.parse(packing) if packing else None
        work = asyncio.create_task(self._images.publisher.push(name, tag, credentials, feed.report, platform, compression))
        await follow(request, work, feed)


def _credentials(request: Request) -> Credentials | None:
    try:
        return Credentials.decode(request.headers.get("x-registry-auth", "")) or None
    except InvalidArgument as error:
        log.warning("request %s: %s: going on without credentials", request.id, error)
        return None


def _platform(platform: PlatformEntry) -> dict[str, object]:
    found: dict[str, object] = msgspec.to_builtins(platform)
    return {name: value for name, value in found.items() if value or name in ("architecture", "os")}
