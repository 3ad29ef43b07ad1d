"""``POST /system/fsck``, Tare's own: check the stores while the engine runs, and repair them with ``repair=1``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from tare.api.docker.params import boolean, json_response
from tare.http.message import Request, Response

if TYPE_CHECKING:
    from tare.engine import Engine


class CheckHandlers:
    """The handler over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def fsck(self, request: Request) -> Response:
        findings = await self._engine.images.check(self._engine.config.data_root, boolean(request, "repair"))
        return json_response(asdict(findings))
