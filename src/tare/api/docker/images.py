"""``/images``: pull, import, list, look at, tag and remove images."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from tare.api.docker.image_views import history_entry, hit_filter, inspection, summary
from tare.api.docker.manifest_views import ManifestViews
from tare.api.docker.params import boolean, integer, json_response, read_filters
from tare.api.docker.platforms import platform_parameter, read_platform
from tare.api.docker.progress import ProgressFeed, follow
from tare.api.docker.registries import RegistryHandlers
from tare.api.docker.streams import JsonStream
from tare.api.docker.versions import ApiVersion
from tare.distribution.auth import Credentials
from tare.distribution.progress import Progress
from tare.errors import InvalidArgument, TareError
from tare.http.message import Request, Response
from tare.images.retention import OWN
from tare.images.usage import images_usage

if TYPE_CHECKING:
    from tare.engine import Engine


class ImageHandlers:
    """Handlers of the image endpoints over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._images = engine.images
        self._registries = RegistryHandlers(engine)
        self._manifests = ManifestViews(engine)

    # -- pull and import

    async def create(self, request: Request) -> None:
        query = request.query
        if query.get("fromImage"):
            await self._registries.pull(request)
        elif query.get("fromSrc"):
            await self._import(request)
        else:
            raise InvalidArgument("one of fromImage (to pull) and fromSrc (to import) must be given")

    async def _import(self, request: Request) -> None:
        query = request.query
        location = query["fromSrc"]
        feed = ProgressFeed()
        source = request.chunks()
        if location != "-":
            from tare.distribution.download import address, download  # the HTTP client takes 0.15 s to load

            await request.read()
            location = address(location)
            source = download(self._images.registry, location)
            feed.report(Progress(f"Downloading from {location}"))

        async def work() -> None:
            image = await self._images.import_(
                source,
                query.get("repo", ""),
                query.get("tag", ""),
                query.all("changes"),
                query.get("message", ""),
                query.get("platform") or None,
                location,
            )
            feed.report(Progress(image.id))

        await follow(request, asyncio.create_task(work()), feed)

    # -- looking

    async def list(self, request: Request, version: ApiVersion) -> Response:
        filters = read_filters(request)
        if version < (1, 41) and request.query.get("filter"):
            filters.setdefault("reference", []).append(request.query["filter"])
        images = self._images.list(filters)
        if not boolean(request, "all"):
            images = [image for image in images if not image.held]
        every = self._images.list() if images else []
        if not boolean(request, "all"):
            parents = {image.parent for image in every}
            images = [image for image in images if image.tags or image.id not in parents]
        shared: dict[str, int] = {}
        if version >= (1, 42) and boolean(request, "shared-size"):
            layers = self._engine.layers
            usage = await asyncio.to_thread(images_usage, every, lambda diff_id: layers.size(diff_id) if layers.has(diff_id) else 0)
            shared = usage.shared
        answer = []
        for image in images:
            line = summary(image, version)
            line.shared_size = shared.get(image.id, -1)
            if version >= (1, 47) and boolean(request, "manifests"):
                line.manifests = self._manifests.of(image)
            answer.append(line)
        return json_response(answer)

    async def inspect(self, request: Request, version: ApiVersion) -> Response:
        name, platform = request.params["name"], platform_parameter(request)
        manifests = version >= (1, 48) and boolean(request, "manifests")
        if platform is not None and manifests:
            raise InvalidArgument("conflicting options: manifests and platform options cannot both be set")
        image = self._images.get(name, platform)
        answer = inspection(image, self._engine.layers.name, version)
        if manifests:
            answer.manifests = self._manifests.of(image)
            answer.descriptor = self._manifests.descriptor(image)
        return json_response(answer)

    async def history(self, request: Request) -> Response:
        return json_response([history_entry(item) for item in self._images.history(request.params["name"], platform_parameter(request))])

    # -- names and removal

    async def tag(self, request: Request) -> Response:
        self._images.tag(request.params["name"], request.query.get("repo", ""), request.query.get("tag", ""))
        return Response(201)

    async def delete(self, request: Request) -> Response:
        platforms = [read_platform(text) for text in request.query.all("platforms")]
        removals = await self._images.delete(request.params["name"], boolean(request, "force"), not boolean(request, "noprune"), platforms)
        return json_response([{removal.kind: str(removal.name)} for removal in removals])

    async def prune(self, request: Request) -> Response:
        filters = read_filters(request).check(("dangling", "label", "label!", "until", *OWN))
        dangling = filters.flag("dangling", True)
        filters.pop("dangling", None)
        removals, freed = await self._images.prune(dangling, filters, compressed=boolean(request, "compressed"))  # the latter is our own
        return json_response({"ImagesDeleted": [{r.kind: str(r.name)} for r in removals] or None, "SpaceReclaimed": freed})

    async def search(self, request: Request) -> Response:
        term, limit = request.query.get("term", ""), integer(request, "limit", 0)
        filters = read_filters(request).check(("is-automated", "is-official", "stars"))
        if not term:
            raise InvalidArgument("search term cannot be empty: give it as 'term'")
        await self._images.registry.transport()
        from tare.distribution.search import search

        credentials = Credentials.decode(request.headers.get("x-registry-auth", "")) or Credentials()
        hits = await search(self._images.registry, term, limit, credentials)
        wanted = hit_filter(filters)
        return json_response([hit for hit in hits if wanted(hit)])

    # -- archives

    async def load(self, request: Request) -> None:
        platform = platform_parameter(request)
        try:
            archive = await self._images.loader.receive(request.chunks())
        except TareError as error:  # dockerd has begun its answer by now
            await (await JsonStream.open(request, end=b"\r\n")).fail(error, request.id)
            return
        try:
            feed = ProgressFeed()
            work = self._images.loader.load(archive, platform, boolean(request, "quiet"), feed.report)
            await follow(request, asyncio.create_task(work), feed, statuses=False)
        finally:
            archive.close()

    async def save(self, request: Request) -> None:
        names = [request.params["name"]] if "name" in request.params else request.query.all("names")
        if not names:
            raise InvalidArgument("no images were named")
        images = self._images.saved(names, platform_parameter(request))
        async with contextlib.aclosing(self._images.saver.stream(images)) as chunks:
            head = await anext(chunks)
            stream = await request.stream(200, "application/x-tar")
            await stream.write(head)
            async for chunk in chunks:
                await stream.write(chunk)
