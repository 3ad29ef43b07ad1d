"""Prometheus metrics of the engine, in the text format 0.0.4 and under the names that dockerd uses where it has the same thing.

Nothing is sampled in the background: requests are counted as they end, everything else is looked up when somebody asks.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tare.http.message import Request, Response

if TYPE_CHECKING:
    from tare.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds; as Prometheus's own but for two small ones in front."""

_CONTAINER_ACTIONS = {
    ("POST", "/containers/create"): "create",
    ("POST", "/containers/{id}/start"): "start",
    ("DELETE", "/containers/{id}"): "delete",
    ("GET", "/containers/{id}/changes"): "changes",
    ("POST", "/commit"): "commit",
}


@dataclass(slots=True)
class Histogram:
    """Counts of observations up to each bucket's bound."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, labels: str) -> Iterator[str]:
        below = 0
        for bound, number in zip((*map(str, BUCKETS), "+Inf"), self.buckets, strict=True):
            below += number
            yield f'{name}_bucket{{{labels},le="{bound}"}} {below}'
        yield f"{name}_sum{{{labels}}} {self.total:.6f}"
        yield f"{name}_count{{{labels}}} {below}"


class Metrics:
    """What was measured since the daemon started, and how to show it."""

    def __init__(self, version: str, architecture: str) -> None:
        self._version = version
        self._architecture = architecture
        self._started = time.time()
        self._requests: dict[tuple[str, str, int], Histogram] = {}

    def request(self, method: str, pattern: str, status: int, seconds: float) -> None:
        """Count one request that was answered; ``pattern`` is its route's, so that there are as many series as routes."""
        key = (method, pattern, status)
        histogram = self._requests.get(key)
        if histogram is None:
            histogram = self._requests[key] = Histogram()
        histogram.observe(seconds)

    def text(self, engine: Engine) -> str:
        """The whole exposition."""
        return "\n".join((*self._engine(engine), *self._http(), *process_lines(self._started))) + "\n"

    def _engine(self, engine: Engine) -> Iterator[str]:
        states = [container.record.state.status for container in engine.containers.all()]
        running, paused = states.count("running"), states.count("paused")
        uname = os.uname()
        info = (
            f'architecture="{self._architecture}",graphdriver="{engine.layers.name}",kernel="{escaped(uname.release)}",os_type="linux",'
            f'version="{self._version}"'
        )
        yield from head("engine_daemon_engine_info", "gauge", "The information related to the engine and the OS it is running on")
        yield f"engine_daemon_engine_info{{{info}}} 1"
        yield from head("engine_daemon_engine_cpus_cpus", "gauge", "The number of cpus that the host system of the engine has")
        yield f"engine_daemon_engine_cpus_cpus {os.cpu_count() or 1}"
        yield from head("engine_daemon_engine_memory_bytes", "gauge", "The number of bytes of memory that the host system has")
        yield f"engine_daemon_engine_memory_bytes {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')}"
        name = "engine_daemon_container_states_containers"
        yield from head(name, "gauge", "The count of containers in various states")
        for state, number in (("paused", paused), ("running", running), ("stopped", len(states) - running - paused)):
            yield f'{name}{{state="{state}"}} {number}'
        yield from head("engine_daemon_events_total", "counter", "The number of events logged")
        yield f"engine_daemon_events_total {engine.events.published}"
        yield from head("engine_daemon_events_subscribers_total", "gauge", "The number of current subscribers to events")
        yield f"engine_daemon_events_subscribers_total {engine.events.subscriber_count}"

    def _http(self) -> Iterator[str]:
        actions: dict[str, Histogram] = {}
        name = "engine_daemon_http_request_seconds"
        yield from head(name, "histogram", "The number of seconds that requests took, but for those that stream")
        for (method, pattern, status), histogram in sorted(self._requests.items()):
            yield from histogram.lines(name, f'method="{method}",path="{escaped(pattern)}",status="{status}"')
            action = _CONTAINER_ACTIONS.get((method, pattern))
            if action is not None and status < 400:
                actions[action] = _sum(actions.get(action), histogram)
        name = "engine_daemon_container_actions_seconds"
        yield from head(name, "histogram", "The number of seconds it takes to process each container action")
        for action in sorted(_CONTAINER_ACTIONS.values()):
            yield from actions.get(action, Histogram()).lines(name, f'action="{action}"')


class MetricsApi:
    """The handler of the metrics address: ``GET /metrics`` and nothing else."""

    def __init__(self, metrics: Metrics, engine: Engine) -> None:
        self._metrics = metrics
        self._engine = engine

    async def __call__(self, request: Request) -> Response:
        if request.path != "/metrics" or request.method not in ("GET", "HEAD"):
            return Response(404, b"404 page not found\n", "text/plain; charset=utf-8")
        return Response(200, self._metrics.text(self._engine).encode(), CONTENT_TYPE)


def head(name: str, kind: str, text: str) -> tuple[str, str]:
    """The two lines in front of a metric's values."""
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _sum(one: Histogram | None, other: Histogram) -> Histogram:
    if one is None:
        return other
    return Histogram([a + b for a, b in zip(one.buckets, other.buckets, strict=True)], one.total + other.total)


def escaped(value: str) -> str:
    """A label's value."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def process_lines(started: float) -> Iterator[str]:
    """What Prometheus's client libraries tell of the process itself; ``started`` is in seconds since 1970."""
    times = os.times()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    for name, kind, text, value in (
        ("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds", f"{times.user + times.system:.2f}"),
        ("process_open_fds", "gauge", "Number of open file descriptors", len(os.listdir("/proc/self/fd"))),
        ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes", resident),
        ("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds", f"{started:.2f}"),
    ):
        yield from head(name, kind, text)
        yield f"{name} {value}"
