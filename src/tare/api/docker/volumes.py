"""``/volumes``: create, list, inspect, remove and prune volumes."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import msgspec

from tare.api.docker.container_views import rfc3339
from tare.api.docker.filter_parameter import Filters
from tare.api.docker.params import boolean, json_body, json_response, read_filters
from tare.errors import InvalidArgument
from tare.http.message import Request, Response

if TYPE_CHECKING:
    from tare.engine import Engine
    from tare.volumes.service import Volume


class VolumeCreateRequest(msgspec.Struct, rename="pascal", kw_only=True):
    """Body of ``POST /volumes/create``."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    cluster_volume_spec: dict[str, Any] | None = None


class VolumeHandlers:
    """Handlers of the volume endpoints over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._volumes = engine.volumes

    def _view(self, volume: Volume) -> dict[str, Any]:
        return {
            "CreatedAt": rfc3339(volume.created // 10**9 * 10**9),
            "Driver": volume.driver,
            "Labels": volume.labels or None,
            "Mountpoint": str(self._volumes.mountpoint(volume.name)),
            "Name": volume.name,
            "Options": volume.options or None,
            "Scope": "local",
        }

    async def create(self, request: Request) -> Response:
        body = await json_body(request, VolumeCreateRequest)
        if body.cluster_volume_spec is not None:
            raise InvalidArgument("cluster volumes need a swarm, which this engine does not offer")
        volume = self._volumes.create(body.name, body.driver, body.labels, body.driver_opts)
        return json_response(self._view(volume), 201)

    async def list(self, request: Request) -> Response:
        wanted = self._filter(read_filters(request), ("dangling", "driver", "label", "name"))
        return json_response({"Volumes": [self._view(v) for v in self._volumes.list() if wanted(v)], "Warnings": None})

    async def inspect(self, request: Request) -> Response:
        return json_response(self._view(self._volumes.get(request.params["name"])))

    async def remove(self, request: Request) -> Response:
        self._volumes.remove(request.params["name"], force=boolean(request, "force"))
        return Response(status=204)

    async def prune(self, request: Request) -> Response:
        filters = read_filters(request)
        everything = filters.pop("all", ["false"])[0].lower() in ("1", "true")
        wanted = self._filter(filters, ("label", "label!"))
        removed, freed = [], 0
        for volume in self._volumes.list():
            if (everything or volume.anonymous) and wanted(volume) and not self._volumes.users(volume.name):
                freed += await asyncio.to_thread(_usage, str(self._volumes.mountpoint(volume.name)))
                self._volumes.remove(volume.name)
                removed.append(volume.name)
        return json_response({"VolumesDeleted": removed or None, "SpaceReclaimed": freed})

    def _filter(self, filters: Filters, accepted: tuple[str, ...]) -> Any:
        for key in filters:
            if key not in accepted:
                raise InvalidArgument(f"invalid filter '{key}'")

        def wanted(volume: Volume) -> bool:
            dangling = filters.get("dangling")
            if dangling and (not self._volumes.users(volume.name)) != (dangling[0].lower() in ("1", "true")):
                return False
            if (names := filters.get("name")) and not any(name in volume.name for name in names):
                return False
            if (drivers := filters.get("driver")) and volume.driver not in drivers:
                return False
            if not all(_labelled(volume, text) for text in filters.get("label", [])):
                return False
            return not any(_labelled(volume, text) for text in filters.get("label!", []))

        return wanted


def _labelled(volume: Volume, text: str) -> bool:
    key, equals, value = text.partition("=")
    return key in volume.labels and (not equals or volume.labels[key] == value)


def _usage(path: str) -> int:
    return sum(os.lstat(os.path.join(folder, name)).st_blocks * 512 for folder, _, names in os.walk(path) for name in names)
