"""The Docker Engine API: version prefix, routing, errors. Endpoints live in one module per family.

A path may start with ``/v1.24`` … ``/v1.51``; without a prefix the newest version is meant. Every answer carries the headers by which
Docker's clients negotiate the version. What the table does not name is answered ``page not found`` with 404, also where another method
would be right: dockerd has no 405.
"""

from __future__ import annotations

import logging
import posixpath
import re
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from tare.api.docker import errors, routes, versions
from tare.errors import TareError
from tare.http.message import ClientDisconnected, Request, RequestError, Response
from tare.http.parser import ProtocolError
from tare.http.routing import NoRoute

if TYPE_CHECKING:
    from tare.api.metrics import Metrics
    from tare.engine import Engine

log = logging.getLogger("tare.api")


_UNCLEAN = re.compile(r"//|/\.\.?(?:/|$)")


def _redirect(request: Request) -> Response:
    """Send a path with empty or dotted segments to its clean form, as dockerd does: clients ask for ``/containers//name/json``."""
    clean = posixpath.normpath("/" + request.path.lstrip("/")) + ("/" if request.path.endswith("/") else "")
    query = f"?{request.raw_query}" if request.raw_query else ""
    return Response(301, headers=(("Location", quote(clean) + query),))


def default_headers(*, experimental: bool = False) -> dict[str, str]:
    """Headers of every answer. ``experimental`` is how clients know that there are checkpoints."""
    return {
        "Api-Version": versions.text(versions.MAXIMUM),
        "Docker-Experimental": str(experimental).lower(),
        "Ostype": "linux",
        "Server": f"Tare/{versions.engine_version()} (linux)",
    }


def _fields(request: Request) -> dict[str, object]:
    """What identifies a request in the log."""
    return {"request": request.id, "method": request.method, "path": request.path}


class DockerApi:
    """The handler that the HTTP server calls for every request."""

    def __init__(self, engine: Engine, table: routes.Routes | None = None, metrics: Metrics | None = None) -> None:
        self._engine = engine
        self._router = routes.table(engine) if table is None else table
        self._metrics = metrics

    async def __call__(self, request: Request) -> Response | None:
        if self._metrics is None:
            return await self._answer(request)
        start = time.perf_counter()
        response = await self._answer(request)
        if response is not None:  # an answer that streams takes as long as its client likes
            self._measured(request, response.status, time.perf_counter() - start)
        return response

    def _measured(self, request: Request, status: int, seconds: float) -> None:
        assert self._metrics is not None
        self._metrics.request(request.method, request.route, status, seconds)
        limit = self._engine.config.slow_request
        slow = 0 < limit <= seconds * 1000
        if slow or log.isEnabledFor(logging.DEBUG):
            fields = {
                "request": request.id,
                "method": request.method,
                "path": request.path,
                "status": status,
                "ms": round(seconds * 1000, 1),
            }
            log.log(logging.WARNING if slow else logging.DEBUG, "slow request" if slow else "request", extra={"fields": fields})

    async def _answer(self, request: Request) -> Response | None:
        try:
            if _UNCLEAN.search(request.path):
                return _redirect(request)
            version, path = versions.split(request.path)
            route, request.params = self._router.find(request.method, path)
            request.route = route.pattern
            if route.max_body is not None:
                request.max_body = route.max_body
            return await route.handler(request, version)
        except (ClientDisconnected, ProtocolError):
            raise
        except Exception as error:
            if request.response_started:  # too late for a status: the connection is cut, which no client takes for success
                raise
            if isinstance(error, TareError | RequestError | NoRoute) and log.isEnabledFor(logging.DEBUG):
                log.debug("request refused: %s", error, extra={"fields": _fields(request)})
            return errors.response(error, request.id)
