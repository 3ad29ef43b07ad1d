"""What a registry does by itself from time to time: collection, retention, verification.

    STATE/schedule.json     {"gc": 1764460800.0, …}     when each was done last, so that a restart neither forgets nor repeats

Processes that share one storage may do the same work at the same time; that is safe, and only costs them time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tare.api.metrics import head
from tare.api.registry.measures import sample
from tare.api.registry.rights import matches
from tare.registry.storage import Storage
from tare.registry.upkeep import Retention, collect, retain, scrub

if TYPE_CHECKING:
    from tare.api.registry import settings

log = logging.getLogger("tare.registry")

FIRST = 600.0
"""Seconds after the start before which nothing is done: a registry that is restarted again and again should serve, not tidy."""
AGAIN = 60.0
"""Seconds between two looks at the clock."""


class Schedule:
    """``run`` goes on until it is cancelled."""

    def __init__(
        self,
        storage: Storage,
        given: settings.Schedule,
        retention: Sequence[settings.Retention],
        state: Path | None,
        more: Mapping[str, tuple[float, Callable[[], object]]],
    ) -> None:
        """``more``: further work by name: seconds between two times, and a function for a thread."""
        self._storage = storage
        self._grace = float(given.grace)
        self._retention = retention
        self._file = state / "schedule.json" if state else None
        self._work: dict[str, tuple[float, Callable[[], object]]] = {
            "retention": (float(given.retention) if retention else 0.0, self._retain),
            **more,
            "gc": (float(given.gc), self._collect),
            "scrub": (float(given.scrub), self._scrub),
        }
        self._last = self._read()
        self._shortest = min([AGAIN, *(seconds for seconds, _ in self._work.values() if seconds)])
        self._first = time.time() + (FIRST if self._shortest == AGAIN else self._shortest)
        self._blobs = self._bytes = self._tags = self._failures = 0
        self.corrupt: list[str] = []
        """Digests that the last verification found to be wrong."""

    def _read(self) -> dict[str, float]:
        try:
            found = json.loads(self._file.read_bytes()) if self._file else {}
            return {name: float(found[name]) for name in found if name in self._work}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def due(self, now: float) -> list[str]:
        """Names of what is to be done."""
        if now < self._first:
            return []
        return [name for name, (seconds, _) in self._work.items() if seconds and now - self._last.get(name, 0.0) >= seconds]

    async def run(self) -> None:
        """Do what is due, one thing after another."""
        while True:
            await asyncio.sleep(self._shortest)
            for name in self.due(time.time()):
                await self.do(name)

    async def do(self, name: str) -> None:
        """Do one thing now."""
        started = time.monotonic()
        try:
            result = await asyncio.to_thread(self._work[name][1])
            log.info("%s: %s in %.1f s", name, result, time.monotonic() - started)
        except Exception:  # whatever it was: serving goes on, and the next time may be better
            self._failures += 1
            log.exception("%s failed", name)
        self._last[name] = time.time()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._write)

    def _write(self) -> None:
        if self._file is not None:
            self._file.parent.mkdir(0o700, parents=True, exist_ok=True)
            temporary = self._file.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(self._last))
            temporary.replace(self._file)

    def _collect(self) -> str:
        blobs, size = collect(self._storage, self._grace)
        self._blobs, self._bytes = self._blobs + blobs, self._bytes + size
        return f"{blobs} blobs ({size} bytes) removed"

    def _retain(self) -> str:
        removed = 0
        for name in self._storage.repositories():
            rule = next((rule for rule in self._retention if matches(rule.repositories, name)), None)
            if rule is not None:
                removed += len(retain(self._storage, name, Retention(rule.newest, rule.age, rule.untagged)))
        self._tags += removed
        return f"{removed} tags and manifests removed"

    def _scrub(self) -> str:
        self.corrupt = [str(digest) for digest in scrub(self._storage)]
        for digest in self.corrupt:
            log.error("blob %s does not have the digest that names it", digest)
        return f"{len(self.corrupt)} corrupt blobs"

    def lines(self) -> Iterator[str]:
        """For the metrics."""
        name = "tare_registry_last_run_timestamp_seconds"
        yield from head(name, "gauge", "When scheduled work was done last")
        for work, moment in sorted(self._last.items()):
            yield f'{name}{{work="{work}"}} {moment:.0f}'
        yield from sample("tare_registry_schedule_failures_total", "counter", "Scheduled work that failed", self._failures)
        yield from sample("tare_registry_collected_blobs_total", "counter", "Blobs that collections removed", self._blobs)
        yield from sample("tare_registry_collected_bytes_total", "counter", "Their bytes", self._bytes)
        yield from sample("tare_registry_retired_total", "counter", "Tags and manifests that no retention rule kept", self._tags)
        yield from sample("tare_registry_corrupt_blobs", "gauge", "Blobs that the last verification found to be wrong", len(self.corrupt))
