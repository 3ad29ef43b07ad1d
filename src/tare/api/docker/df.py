"""``GET /system/df``: what images, containers and volumes take of the disk; and, Tare's own, whose every byte of the data root is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tare.api.docker.buildcache import cache_view
from tare.api.docker.image_views import summary
from tare.api.docker.params import boolean, json_response
from tare.api.docker.versions import ApiVersion
from tare.api.docker.volumes import volume_view
from tare.errors import InvalidArgument
from tare.http.message import Request, Response
from tare.images.usage import images_usage
from tare.oci.digest import Digest
from tare.store.accounting import Entry, account

if TYPE_CHECKING:
    from tare.api.docker.containers import ContainerHandlers
    from tare.engine import Engine

_TYPES = ("container", "image", "volume", "build-cache")
_SELECTION: ApiVersion = (1, 42)
"""From this version on ``type`` selects, and the sum of the build cache is left to the client."""


class UsageHandlers:
    """The handler over one engine."""

    def __init__(self, engine: Engine, containers: ContainerHandlers) -> None:
        self._engine = engine
        self._containers = containers

    async def usage(self, request: Request, version: ApiVersion) -> Response:
        selects = version >= _SELECTION
        types = request.query.all("type") if selects else []
        for unknown in types:
            if unknown not in _TYPES:
                raise InvalidArgument(f"unknown object type: {unknown}")
        wanted = set(types or _TYPES)
        answer: dict[str, Any] = {"LayersSize": 0, "Images": None, "Containers": None, "Volumes": None, "BuildCache": None}
        if "image" in wanted:
            answer |= await self._images(version)
        if "container" in wanted:
            answer["Containers"] = await self._containers.summaries(version)
        if "volume" in wanted:
            answer["Volumes"] = await self._volumes()
        if "build-cache" in wanted:
            answer["BuildCache"] = [cache_view(entry) for entry in await asyncio.to_thread(self._engine.builder.usage)]
        if not selects:
            answer["BuilderSize"] = sum(entry["Size"] for entry in answer["BuildCache"] or ())
        if boolean(request, "data-root"):
            answer["DataRoot"] = await self._data_root()
        return json_response(answer)

    async def _images(self, version: ApiVersion) -> dict[str, Any]:
        engine = self._engine
        images = engine.images.list()
        layers = engine.layers
        usage = await asyncio.to_thread(images_usage, images, lambda diff_id: layers.size(diff_id) if layers.has(diff_id) else 0)
        parents = {image.parent for image in images}
        shown = []
        for image in images:
            if not image.tags and image.id in parents:
                continue
            view = summary(image, version)
            view.shared_size = usage.shared[image.id]
            view.containers = len(engine.images.users_of(image.id))
            shown.append(view)
        return {"LayersSize": usage.layers, "Images": shown}

    async def _volumes(self) -> list[dict[str, Any]]:
        volumes = self._engine.volumes
        usage = await volumes.usage()
        return [
            volume_view(volume, str(volumes.mountpoint(volume.name)), usage[volume.name])
            for volume in volumes.list()
            if volume.name in usage
        ]

    async def _data_root(self) -> dict[str, Any]:
        root = self._engine.config.data_root
        entries = await asyncio.to_thread(account, root)
        owners = self._owners()
        return {
            "Path": str(root),
            "Size": sum(entry.size for entry in entries),
            "Entries": [
                {"Kind": entry.kind, "Name": entry.name, "Size": entry.size, "UsedBy": sorted(_used_by(entry, owners))} for entry in entries
            ],
        }

    def _owners(self) -> dict[str, set[str]]:
        """What needs a blob or layer (by digest), a snapshot or container directory (by id), a volume (by name)."""
        engine = self._engine
        owners: dict[str, set[str]] = {}

        def own(names: Iterable[str], owner: str) -> None:
            for name in names:
                owners.setdefault(name, set()).add(owner)

        for image in engine.images.list():
            own(engine.images.needs(image.id), f"image {image.tags[0] if image.tags else Digest.parse(image.id).short}")
        for container in engine.containers.all():
            record = container.record
            owner = f"container {record.name}"
            own((record.id, *record.diff_ids), owner)
            own((point.name for point in record.mounts if point.type == "volume"), owner)
        return owners


def _used_by(entry: Entry, owners: dict[str, set[str]]) -> Iterable[str]:
    return owners.get(entry.name, ()) if entry.kind in ("blob", "layer", "snapshot", "container", "volume") else ()
