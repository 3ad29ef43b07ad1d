"""The build cache keeps itself small: dockerd's ``builder.gc``, with BuildKit's rules.

Rules are tried in order. Each names entries (by type, by the time since they were used last, by filters) and says how much may stay; only
when the cache is larger than that, the least recently used ones go. The default ones:

    1  contexts and cache mounts that nobody used for two days go, once there is more than 512 MB (or a seventh of what may stay) of cache
    2  what nobody used for sixty days goes, once there is more than may stay
    3  anything goes, once there is more than may stay

What may stay is up to 80 % of the disk while a fifth of it is free, and 10 % of it in any case. A build in flight loses nothing: its layers
are pinned, its cache mounts busy. What images use frees no space, so it stays, and a rule with ``all`` takes no more than one without.

The collector works a minute after a build has ended, and at the start of the engine; never beside itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tare.config import BuilderConfig, CacheRule

if TYPE_CHECKING:
    from tare.builder.service import Builder, CacheEntry

_log = logging.getLogger(__name__)
PAUSE = 60.0
"""Seconds from the end of a build to a collection."""
FILTERS = ("description", "id", "inuse", "label", "label!", "parent", "private", "shared", "type", "until", "unused-for")
_DAY = 86400.0
_GB = 10**9
_LITTLE = 512 * 10**6
_TEMPORARY = 0.138
"""Part of what may stay that is for what is made again easily."""
_PLAIN = 60 * _DAY
"""Steps that made no layer take no space worth a rule."""
_TRUE = ("", "1", "true")


def wanted(filters: Mapping[str, Sequence[str]], before: Sequence[float] = ()) -> Callable[[CacheEntry], bool]:
    """Whether an entry is meant by ``filters`` and was used last before all of these times."""

    def meant(entry: CacheEntry) -> bool:
        return (
            all(entry.used <= limit for limit in before)
            and all(entry.id.startswith(text) for text in filters.get("id", ()))
            and all(entry.type in _types(text) for text in filters.get("type", ()))
            and all(text in entry.description for text in filters.get("description", ()))
            and all(entry.in_use == (text.lower() in _TRUE) for text in filters.get("inuse", ()))
            and all(entry.shared == (text.lower() in _TRUE) for text in filters.get("shared", ()))
            and all(entry.shared != (text.lower() in _TRUE) for text in filters.get("private", ()))
            and not filters.get("parent")
        )

    return meant


def _types(text: str) -> list[str]:
    """``A`` or, as BuildKit writes several, ``A,type=B,type==C``."""
    return [part.removeprefix("type").lstrip("=") if part.startswith("type=") else part for part in text.split(",")]


def rules_of(config: BuilderConfig, disk: int) -> tuple[CacheRule, ...]:
    """The rules for a disk of so many bytes (0: nobody knows)."""
    if config.rules:
        return config.rules
    reserved, most, free = config.reserved, config.most, config.free
    if not (reserved or most or free):
        reserved, most, free = (_part(disk, percent) for percent in (10, 80, 20)) if disk else (2 * _GB, 0, 0)
    room = CacheRule(reserved=reserved, most=most, free=free)
    temporary = ("type", "source.local,type=exec.cachemount")
    return (
        CacheRule(filters=(temporary,), unused_for=2 * _DAY, most=max(_LITTLE, round(reserved * _TEMPORARY))),
        replace(room, unused_for=60 * _DAY),
        room,
    )


def _part(disk: int, percent: int) -> int:
    return (disk * percent // 100 // (1 << 30) + 1) * _GB


class Collector:
    """Collects for one builder."""

    def __init__(self, builder: Builder, config: BuilderConfig) -> None:
        self._builder = builder
        self._config = config
        self._waiting: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    def build_ended(self) -> None:
        """Collect in a while; builds until then count as one."""
        if self._config.collect and (self._waiting is None or self._waiting.done()):
            self._waiting = asyncio.create_task(self._later(), name="collect build cache")

    async def _later(self) -> None:
        await asyncio.sleep(PAUSE)
        await self.collect()

    async def collect(self) -> None:
        """Apply the rules now."""
        if not self._config.collect:
            return
        from tare.builder.service import Room

        async with self._lock:
            try:
                state = os.statvfs(self._builder.data)
                for rule in rules_of(self._config, state.f_blocks * state.f_frsize):
                    before = [time.time() - rule.unused_for] if rule.unused_for else []
                    filters: dict[str, list[str]] = {}
                    for name, value in rule.filters:
                        filters.setdefault(name, []).append(value)
                    meant = wanted(filters, before)
                    gone, freed = await self._builder.prune(meant, everything=False, room=Room(rule.reserved, rule.most, rule.free))
                    if gone:
                        _log.info("build cache: %d entries collected, %d bytes became free", len(gone), freed)
                forgotten = time.time() - _PLAIN
                self._builder.cache.drop(lambda record: not record.diff_id and record.used < forgotten)
            except OSError as error:
                _log.warning("build cache: cannot be collected: %s", error)

    async def close(self) -> None:
        """Leave what is left to the next start."""
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)
