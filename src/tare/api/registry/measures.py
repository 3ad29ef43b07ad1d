"""What a registry tells of itself: Prometheus metrics and health, at an address of their own (``[metrics] listen``).

GET /metrics    text format 0.0.4
GET /healthz    200, or 503 when the storage does not answer or the process is about to end (also at the clients' address)
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator

from tare.api.metrics import CONTENT_TYPE, Histogram, head, process_lines
from tare.api.registry.exchange import Exchange
from tare.http.message import Request, Response
from tare.registry.storage import Storage

HEALTH_SECONDS = 2.0
"""How long an answer about the storage is believed."""
PATIENCE = 5.0
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
"""Whatever else a client makes up must not make series."""
Source = Callable[[], Iterator[str]]


class Measures:
    """Counts requests as they end; everything else is looked up when somebody asks."""

    def __init__(self) -> None:
        self._started = time.time()
        self._requests: dict[tuple[str, str, int], Histogram] = {}
        self._objects: dict[tuple[str, str], int] = {}
        self._sent = self._received = 0
        self.sources: list[Source] = []
        """Give further lines."""

    def __call__(self, exchange: Exchange) -> None:
        request = exchange.request
        key = (request.method if request.method in _METHODS else "other", exchange.kind or "other", exchange.status)
        histogram = self._requests.get(key)
        if histogram is None:
            histogram = self._requests[key] = Histogram()
        histogram.observe(exchange.seconds)
        self._sent += request.length if exchange.response is None else len(exchange.response.body)
        self._received += request.head.content_length or 0
        action = exchange.action
        if action:
            counted = (action, "manifest" if exchange.kind == "manifest" else "blob")
            self._objects[counted] = self._objects.get(counted, 0) + 1

    def text(self) -> str:
        """The whole exposition."""
        lines = [*self._http()]
        for source in self.sources:
            lines += source()
        return "\n".join((*lines, *process_lines(self._started))) + "\n"

    def _http(self) -> Iterator[str]:
        name = "tare_registry_http_request_seconds"
        yield from head(name, "histogram", "The number of seconds that requests took")
        for (method, route, status), histogram in sorted(self._requests.items()):
            yield from histogram.lines(name, f'method="{method}",route="{route}",status="{status}"')
        name = "tare_registry_objects_total"
        yield from head(name, "counter", "Manifests and blobs pulled, pushed, mounted and deleted")
        for (action, kind), number in sorted(self._objects.items()):
            yield f'{name}{{action="{action}",object="{kind}"}} {number}'
        for name, text, value in (
            ("tare_registry_http_sent_bytes_total", "Bytes of answers, as announced", self._sent),
            ("tare_registry_http_received_bytes_total", "Bytes of requests that announced their length", self._received),
        ):
            yield from head(name, "counter", text)
            yield f"{name} {value}"


def sample(name: str, kind: str, text: str, value: float) -> Iterator[str]:
    """A metric with one value."""
    yield from head(name, kind, text)
    yield f"{name} {value}"


class Health:
    """Whether the registry can do its work."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._checking = asyncio.Lock()
        self._until = 0.0
        self._trouble = ""
        self.ending = False

    async def answer(self) -> Response:
        """200 or 503, with words."""
        if self.ending:
            return _words(503, "ending", "the registry is shutting down")
        async with self._checking:
            if time.monotonic() >= self._until:
                self._trouble = await self._look()
                self._until = time.monotonic() + HEALTH_SECONDS
        return _words(503, "failing", self._trouble) if self._trouble else _words(200, "ok", "")

    async def _look(self) -> str:
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.to_thread(self._storage.objects.modified, "repositories/_health")
        except TimeoutError:
            return f"the storage does not answer within {PATIENCE:.0f} seconds"
        except Exception as error:
            return f"storage: {error}"
        return ""


def _words(status: int, state: str, reason: str) -> Response:
    document = {"status": state, **({"reason": reason} if reason else {})}
    return Response(status, json.dumps(document).encode() + b"\n", headers=(("Cache-Control", "no-store"),))


class OperationsApi:
    """The handler of the metrics address."""

    def __init__(self, measures: Measures, health: Health) -> None:
        self._measures = measures
        self._health = health

    async def __call__(self, request: Request) -> Response:
        if request.method in ("GET", "HEAD"):
            if request.path == "/metrics":
                return Response(200, self._measures.text().encode(), CONTENT_TYPE)
            if request.path == "/healthz":
                return await self._health.answer()
        return Response(404, b"404 page not found\n", "text/plain; charset=utf-8")
