"""``/images``: pull, import, list, look at, tag and remove images."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from tare.api.docker.params import boolean, json_response, read_filters
from tare.api.docker.progress import ProgressFeed, follow
from tare.api.docker.registries import RegistryHandlers
from tare.api.docker.streams import JsonStream
from tare.api.docker.versions import ApiVersion
from tare.errors import InvalidArgument, Unsupported
from tare.http.message import Request, Response
from tare.oci.image import PlatformEntry
from tare.oci.platform import Platform
from tare.wire.images import HistoryEntry, ImageInspect, ImageSummary

if TYPE_CHECKING:
    from tare.engine import Engine
    from tare.images.image import Image

NEVER = "0001-01-01T00:00:00Z"


class ImageHandlers:
    """Handlers of the image endpoints over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._images = engine.images
        self._registries = RegistryHandlers(engine)

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
        if query["fromSrc"] != "-":
            raise Unsupported("importing from a URL is not offered: fetch it yourself and pipe it into 'import -'")
        image = await self._images.import_(
            request.chunks(),
            query.get("repo", ""),
            query.get("tag", ""),
            query.all("changes"),
            query.get("message", ""),
            query.get("platform") or None,
        )
        stream = await JsonStream.open(request)
        await stream.send({"status": image.id})

    # -- looking

    async def list(self, request: Request, version: ApiVersion) -> Response:
        filters = read_filters(request)
        if version < (1, 41) and request.query.get("filter"):
            filters.setdefault("reference", []).append(request.query["filter"])
        images = self._images.list(filters)
        if not boolean(request, "all"):
            parents = {image.parent for image in self._images.list()} if images else set()
            images = [image for image in images if image.tags or image.id not in parents]
        return json_response([summary(image, version) for image in images])

    async def inspect(self, request: Request, version: ApiVersion) -> Response:
        image = self._images.get(request.params["name"])
        if (platform := _platform(request)) is not None:
            self._images.check_platform(image, platform, request.params["name"])
        return json_response(_inspect(image, self._engine.layers.name, version))

    async def history(self, request: Request) -> Response:
        return json_response(
            [
                HistoryEntry(
                    id=item.id,
                    created=int(item.created),
                    created_by=item.created_by,
                    tags=[*item.tags] or None,
                    size=item.size,
                    comment=item.comment,
                )
                for item in self._images.history(request.params["name"])
            ]
        )

    # -- names and removal

    async def tag(self, request: Request) -> Response:
        self._images.tag(request.params["name"], request.query.get("repo", ""), request.query.get("tag", ""))
        return Response(201)

    async def delete(self, request: Request) -> Response:
        for text in request.query.all("platforms"):
            self._images.check_platform(self._images.get(request.params["name"]), _read_platform(text), request.params["name"])
        removals = await self._images.delete(request.params["name"], boolean(request, "force"), not boolean(request, "noprune"))
        return json_response([{removal.kind: str(removal.name)} for removal in removals])

    async def prune(self, request: Request) -> Response:
        filters = read_filters(request).check(("dangling", "label", "label!", "until"))
        if "label!" in filters:
            raise Unsupported("the filter 'label!' is not offered for images")
        dangling = filters.flag("dangling", True)
        filters.pop("dangling", None)
        removals, freed = await self._images.prune(dangling, filters)
        return json_response({"ImagesDeleted": [{r.kind: str(r.name)} for r in removals] or None, "SpaceReclaimed": freed})

    # -- what this release does not offer

    async def search(self, request: Request) -> Response:
        raise Unsupported("searching registries (search) is not part of this release")

    # -- archives

    async def load(self, request: Request) -> None:
        platform = _platform(request)
        archive = await self._images.loader.receive(request.chunks())
        try:
            feed = ProgressFeed()
            work = self._images.loader.load(archive, platform, boolean(request, "quiet"), feed.report)
            await follow(request, asyncio.create_task(work), feed)
        finally:
            archive.close()

    async def save(self, request: Request) -> None:
        names = [request.params["name"]] if "name" in request.params else request.query.all("names")
        if not names:
            raise InvalidArgument("no images were named")
        images = self._images.saved(names)
        if (platform := _platform(request)) is not None:
            for saved in images:
                self._images.check_platform(saved.image, platform, saved.image.id)
        async with contextlib.aclosing(self._images.saver.stream(images)) as chunks:
            head = await anext(chunks)
            stream = await request.stream(200, "application/x-tar")
            await stream.write(head)
            async for chunk in chunks:
                await stream.write(chunk)


def _platform(request: Request) -> Platform | None:
    """The ``platform`` parameter of load, save and inspect."""
    text = request.query.get("platform", "")
    return _read_platform(text) if text else None


def _read_platform(text: str) -> Platform:
    """A platform as a JSON object (API 1.48), or as text."""
    if not text.startswith("{"):
        return Platform.parse(text)
    try:
        return msgspec.json.decode(text, type=PlatformEntry).platform()
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidArgument(f"invalid platform: {error}") from None


def _tags(image: Image, version: ApiVersion) -> tuple[list[str], list[str]]:
    """Tags and digests; before 1.43 an image without names was shown as ``<none>``."""
    tags, digests = [*image.tags], [*image.repo_digests]
    if version < (1, 43):
        if not tags and not digests:
            digests = ["<none>@<none>"]
        tags = tags or ["<none>:<none>"]
    return tags, digests


def summary(image: Image, version: ApiVersion) -> ImageSummary:
    """One image as the list shows it."""
    tags, digests = _tags(image, version)
    summary = ImageSummary(
        id=image.id,
        parent_id=image.parent,
        repo_tags=tags,
        repo_digests=digests,
        created=int(image.created_at),
        size=image.size,
        labels=image.labels or None,
    )
    if version < (1, 44):
        summary.virtual_size = image.size
    return summary


def _inspect(image: Image, driver: str, version: ApiVersion) -> ImageInspect:
    config = image.config
    answer = ImageInspect(
        id=image.id,
        repo_tags=[*image.tags],
        repo_digests=[*image.repo_digests],
        parent=image.parent,
        comment=config.comment or next((step.comment for step in reversed(config.history or ()) if step.comment), ""),
        created=image.created,
        docker_version=config.docker_version or "",
        author=config.author or "",
        config=_container_config(image),
        architecture=image.architecture,
        os=image.os,
        size=image.size,
        graph_driver={"Data": None, "Name": driver},
        root_fs={"Type": "layers", "Layers": [str(diff_id) for diff_id in image.diff_ids]},
        metadata={"LastTagTime": _time(image.tagged)},
    )
    if image.variant:
        answer.variant = image.variant
    if config.os_version:
        answer.os_version = config.os_version
    if version < (1, 44):
        answer.virtual_size = image.size
    if version < (1, 45):
        answer.container = ""
    return answer


def _container_config(image: Image) -> dict[str, Any]:
    """The container part with the fields that clients index without asking."""
    empty: dict[str, Any] = {"User": "", "WorkingDir": ""} | dict.fromkeys(("Env", "Cmd", "Volumes", "Entrypoint", "OnBuild", "Labels"))
    return empty | image.container_config()


def _time(seconds: float) -> str:
    if not seconds:
        return NEVER
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
