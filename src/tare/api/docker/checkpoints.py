"""``/containers/{id}/checkpoints``: see ``tare.containers.checkpoints``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tare.api.docker.params import json_body, json_response
from tare.http.message import Request, Response
from tare.wire.container import CheckpointCreateRequest

if TYPE_CHECKING:
    from tare.containers.container import Container
    from tare.engine import Engine


class CheckpointHandlers:
    def __init__(self, engine: Engine) -> None:
        self._containers = engine.containers

    def _get(self, request: Request) -> Container:
        return self._containers.get(request.params["id"])

    async def create(self, request: Request) -> Response:
        body = await json_body(request, CheckpointCreateRequest)
        container = self._get(request)
        await self._containers.checkpoints.create(container, body.checkpoint_id, body.checkpoint_dir, leave_running=not body.exit)
        return Response(201)

    async def list(self, request: Request) -> Response:
        names = self._containers.checkpoints.names(self._get(request), request.query.get("dir", ""))
        return json_response([{"Name": name} for name in names])

    async def remove(self, request: Request) -> Response:
        await self._containers.checkpoints.remove(self._get(request), request.params["checkpoint"], request.query.get("dir", ""))
        return Response(204)
