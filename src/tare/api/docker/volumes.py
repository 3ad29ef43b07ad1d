"""``/volumes``: create, list, inspect, update, remove and prune volumes, and Tare's own export, import, clone and snapshot."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from tare.api.docker.absent import NOT_A_MANAGER
from tare.api.docker.container_views import rfc3339
from tare.api.docker.filter_parameter import Filters
from tare.api.docker.params import boolean, json_body, json_response, read_filters
from tare.api.docker.versions import ApiVersion
from tare.errors import InvalidArgument, Unavailable
from tare.http.message import Request, Response
from tare.volumes.model import Volume
from tare.volumes.transfer import clone, export, load

if TYPE_CHECKING:
    from tare.engine import Engine

PRUNE_ANONYMOUS: ApiVersion = (1, 42)
"""From this version on prune takes anonymous volumes only, unless the filter ``all`` says otherwise."""


class VolumeCreateRequest(msgspec.Struct, rename="pascal", kw_only=True):
    """Body of ``POST /volumes/create``."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    cluster_volume_spec: dict[str, Any] | None = None


class VolumeUpdateRequest(msgspec.Struct, rename="pascal", kw_only=True):
    """Body of ``PUT /volumes/{name}``: dockerd knows the specification of cluster volumes only, labels are ours."""

    spec: dict[str, Any] | None = None
    labels: dict[str, str] | None = None


def volume_view(volume: Volume, mountpoint: str, usage: tuple[int, int] | None = None) -> dict[str, Any]:
    """A volume as clients see it; ``usage`` is size and reference count."""
    view: dict[str, Any] = {
        "CreatedAt": rfc3339(volume.created // 10**9 * 10**9),
        "Driver": volume.driver,
        "Labels": volume.labels and dict(sorted(volume.labels.items())),
        "Mountpoint": mountpoint,
        "Name": volume.name,
        "Options": volume.options and dict(sorted(volume.options.items())),
        "Scope": "local",
    }
    if usage is not None:
        view["UsageData"] = {"Size": usage[0], "RefCount": usage[1]}
    return view


class VolumeCloneRequest(msgspec.Struct, rename="pascal", kw_only=True):
    """Body of ``POST /volumes/{name}/clone`` (Tare's own): without a name a snapshot is made."""

    name: str = ""
    labels: dict[str, str] | None = None


class VolumeHandlers:
    """Handlers of the volume endpoints over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._volumes = engine.volumes

    def _view(self, volume: Volume) -> dict[str, Any]:
        return volume_view(volume, str(self._volumes.mountpoint(volume.name)))

    async def create(self, request: Request) -> Response:
        body = await json_body(request, VolumeCreateRequest)
        if body.cluster_volume_spec is not None:
            raise Unavailable(NOT_A_MANAGER)
        volume = self._volumes.create(body.name, body.driver, body.labels, body.driver_opts)
        return json_response(self._view(volume), 201)

    async def list(self, request: Request) -> Response:
        wanted = self._predicate(read_filters(request).check(("dangling", "driver", "label", "name")))
        return json_response({"Volumes": [self._view(v) for v in self._volumes.list() if wanted(v)], "Warnings": None})

    async def inspect(self, request: Request) -> Response:
        return json_response(self._view(self._volumes.get(request.params["name"])))

    async def update(self, request: Request) -> Response:
        name = request.params["name"]
        self._volumes.get(name)
        body = await json_body(request, VolumeUpdateRequest)
        if body.labels is None:
            raise Unavailable("volume update only valid for cluster volumes, but swarm is unavailable")
        return json_response(self._view(self._volumes.relabel(name, body.labels)))

    async def remove(self, request: Request) -> Response:
        await self._volumes.remove_aside(request.params["name"], force=boolean(request, "force"))
        return Response(status=204)

    async def prune(self, request: Request, version: ApiVersion) -> Response:
        accepted = ("label", "label!", "all") if version >= PRUNE_ANONYMOUS else ("label", "label!")
        filters = read_filters(request).check(accepted)
        if len(filters.values_of("all")) > 1:
            raise InvalidArgument(f"invalid filter 'all=[{' '.join(filters.values_of('all'))}]'")
        everything = filters.flag("all", default=version < PRUNE_ANONYMOUS)
        filters.pop("all", None)
        removed, freed = await self._volumes.prune(self._predicate(filters), everything)
        return json_response({"VolumesDeleted": removed, "SpaceReclaimed": freed})

    async def export(self, request: Request) -> None:
        """``GET /volumes/{name}/export`` (Tare's own): the content as a tar."""
        pieces = export(self._volumes, self._volumes.get(request.params["name"]).name)
        async with contextlib.aclosing(pieces):
            first = await anext(pieces)
            stream = await request.stream(200, "application/x-tar")
            await stream.write(first)
            async for piece in pieces:
                await stream.write(piece)

    async def load(self, request: Request) -> Response:
        """``POST /volumes/{name}/import`` (Tare's own): a new volume of a tar."""
        labels = dict(text.partition("=")[::2] for text in request.query.all("label"))
        volume = await load(self._volumes, request.params["name"], request.chunks(), labels or None)
        return json_response(self._view(volume), 201)

    async def clone(self, request: Request) -> Response:
        """``POST /volumes/{name}/clone`` (Tare's own): a new volume with the same content."""
        body = await json_body(request, VolumeCloneRequest, optional=True)
        volume = await clone(self._volumes, request.params["name"], body.name, body.labels)
        return json_response(self._view(volume), 201)

    def _predicate(self, filters: Filters) -> Callable[[Volume], bool]:
        """All filters as one test; dangling is evaluated lazily, because it looks at every container."""
        dangling = filters.flag("dangling") if filters.values_of("dangling") else None
        names = [_name_test(text) for text in filters.values_of("name")]

        def wanted(volume: Volume) -> bool:
            return (
                filters.matches("driver", volume.driver)
                and filters.matches_labels(volume.labels)
                and (not names or any(test(volume.name) for test in names))
                and (dangling is None or dangling is not bool(self._volumes.users(volume.name)))
            )

        return wanted


def _name_test(text: str) -> Callable[[str], bool]:
    """A name filter is a regular expression that may match anywhere, or else plain text."""
    try:
        pattern = re.compile(text)
    except re.error:
        return lambda name: text in name
    return lambda name: text == name or pattern.search(name) is not None
