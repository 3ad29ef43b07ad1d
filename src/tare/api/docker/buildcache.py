"""The build cache (``POST /build/prune``, its part of ``GET /system/df``) and, Tare's own, the history of builds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tare.api.docker.filters import parse_until
from tare.api.docker.params import boolean, integer, json_response, read_filters
from tare.builder import collection
from tare.builder.history import BuildRecord
from tare.builder.service import CacheEntry, Room
from tare.http.message import Request, Response

if TYPE_CHECKING:
    from tare.engine import Engine


class BuildCacheHandlers:
    """Handlers over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._builder = engine.builder

    async def prune(self, request: Request) -> Response:
        filters = read_filters(request).check(collection.FILTERS)
        if filters.get("label"):  # `system prune --filter label=…` comes here as well; a cache record has no labels, so none matches
            return json_response({"CachesDeleted": None, "SpaceReclaimed": 0})
        reserved = integer(request, "reserved-space", 0) or integer(request, "keep-storage", 0)
        room = Room(reserved, integer(request, "max-used-space", 0), integer(request, "min-free-space", 0))
        ages = filters.get("until", []) + filters.get("unused-for", [])
        meant = collection.wanted(filters, [parse_until(age) / 1e9 for age in ages])
        gone, freed = await self._builder.prune(meant, everything=boolean(request, "all"), room=room)
        return json_response({"CachesDeleted": gone or None, "SpaceReclaimed": freed})

    async def history(self, request: Request) -> Response:
        return json_response([_view(record) for record in self._builder.history.all()])

    async def record(self, request: Request) -> Response:
        return json_response(_view(self._builder.history.get(request.params["id"])))

    async def log(self, request: Request) -> None:
        """What the build said, as it said it: one JSON document a line."""
        record = self._builder.history.get(request.params["id"])
        stream = await request.stream(200, "application/x-ndjson")
        for line in self._builder.history.log(record.id):
            await stream.write(line)

    async def forget(self, request: Request) -> Response:
        self._builder.history.remove(self._builder.history.get(request.params["id"]).id)
        return Response(204)


def cache_view(entry: CacheEntry) -> dict[str, Any]:
    """One entry of ``BuildCache``."""
    return {
        "ID": entry.id,
        "Parents": None,
        "Type": entry.type,
        "Description": entry.description,
        "InUse": entry.in_use,
        "Shared": entry.shared,
        "Size": entry.size,
        "CreatedAt": _time(entry.made),
        "LastUsedAt": _time(entry.used),
        "UsageCount": entry.count,
    }


def _view(record: BuildRecord) -> dict[str, Any]:
    return {
        "Id": record.id,
        "Name": record.name,
        "Dockerfile": record.dockerfile,
        "Target": record.target,
        "Platforms": record.platforms,
        "Tags": record.tags,
        "Status": record.status,
        "StartedAt": _time(record.started),
        "CompletedAt": _time(record.completed) if record.completed else "",
        "Steps": record.steps,
        "CachedSteps": record.cached,
        "Image": record.image,
        "Error": record.error,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
