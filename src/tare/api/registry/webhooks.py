"""Events for others, in the envelope of docker-registry's notifications.

    STATE/events.sqlite     events(id, hook, made, body): what has not been delivered yet
    STATE/events.lock       held by the process that delivers from there

An event is written down before anybody is told, in the order in which things happened, and removed when the receiver answered 2xx: each is
delivered at least once, also over restarts and kills. A receiver that fails is asked again with growing pauses, the later events waiting
behind the first; what it refuses (4xx) several times, or could not be given in ``keep`` seconds, is dropped and counted, and so are the
oldest where more than ``queue`` wait. Without a state directory the queue is in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib
import json
import logging
import os
import random
import socket
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tare.api.metrics import escaped, head
from tare.api.registry.exchange import Exchange, now
from tare.api.registry.rights import matches
from tare.distribution.endpoints import RegistryPolicy
from tare.errors import InvalidArgument, TareError
from tare.oci.digest import Digest
from tare.registry.errors import RegistryError
from tare.registry.storage import Storage

if TYPE_CHECKING:
    from tare.api.registry.settings import Webhook
    from tare.distribution.transport import Transport

log = logging.getLogger("tare.registry")

MEDIA_TYPE = "application/vnd.docker.distribution.events.v1+json"
LONGEST_PAUSE = 300.0
REFUSALS = 3
"""How often an event may be refused with 4xx."""
_PASSING = frozenset((408, 425, 429))
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY AUTOINCREMENT, hook TEXT NOT NULL, made REAL NOT NULL, body TEXT NOT NULL)"
)


class Outbox:
    """Events that wait, by hook. Short calls; use on the event loop."""

    def __init__(self, directory: Path | None) -> None:
        self._lock = -1
        try:
            if directory is not None:
                directory.mkdir(0o700, parents=True, exist_ok=True)
                self._lock = os.open(directory / "events.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._database = sqlite3.connect(directory / "events.sqlite" if directory else ":memory:", isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.executescript(_SCHEMA)
        except BlockingIOError:
            os.close(self._lock)
            raise InvalidArgument(f"another process delivers events from {directory}: give each one a --state of its own") from None
        except (OSError, sqlite3.Error) as error:
            raise InvalidArgument(f"cannot keep undelivered events in {directory}: {error}") from None
        rows = self._database.execute("SELECT hook, count(*) FROM events GROUP BY hook")
        self.waiting: Counter[str] = Counter(dict(rows))

    def close(self) -> None:
        """What waits stays."""
        self._database.close()
        if self._lock >= 0:
            os.close(self._lock)

    def put(self, hook: str, body: str, limit: int) -> int:
        """Add one; returns how many old ones had to go."""
        self._database.execute("INSERT INTO events (hook, made, body) VALUES (?, ?, ?)", (hook, time.time(), body))
        self.waiting[hook] += 1
        surplus = self.waiting[hook] - limit
        if surplus > 0:
            oldest = "SELECT id FROM events WHERE hook = ? ORDER BY id LIMIT ?"
            self._database.execute(f"DELETE FROM events WHERE id IN ({oldest})", (hook, surplus))
            self.waiting[hook] = limit
        return max(0, surplus)

    def first(self, hook: str) -> tuple[int, float, str] | None:
        """Id, time and body of the oldest."""
        found: tuple[int, float, str] | None = self._database.execute(
            "SELECT id, made, body FROM events WHERE hook = ? ORDER BY id LIMIT 1", (hook,)
        ).fetchone()
        return found

    def remove(self, hook: str, number: int) -> None:
        """Nothing happens when it has gone already."""
        if self._database.execute("DELETE FROM events WHERE id = ?", (number,)).rowcount:
            self.waiting[hook] -= 1


class Webhooks:
    """Observer of exchanges; ``run`` delivers until it is cancelled."""

    def __init__(self, hooks: Sequence[Webhook], storage: Storage, state: Path | None) -> None:
        self._hooks = {f"{position}:{hook.name or hook.url}": hook for position, hook in enumerate(hooks)}
        self._storage = storage
        self._outbox = Outbox(state)
        self._news = {name: asyncio.Event() for name in self._hooks}
        self._instance = str(uuid.uuid4())
        self._transport: Transport | None = None
        self._looking: set[asyncio.Task[None]] = set()
        self.address = ""
        """Of this registry, for the events' source."""
        self.counts: Counter[tuple[str, str]] = Counter()
        """By hook and result: ``delivered``, ``failed`` (it is tried again), ``dropped``."""

    # Observing

    def __call__(self, exchange: Exchange) -> None:
        action = exchange.action
        if not action:
            return
        wanted = [name for name, hook in self._hooks.items() if action in hook.actions and matches(hook.repositories, exchange.repository)]
        if not wanted:
            return
        event = self._event(exchange, action)
        if exchange.kind == "manifest" or action == "delete":
            self._add(wanted, event)
        elif self._storage.local:
            self._measure(event)
            self._add(wanted, event)
        else:
            task = asyncio.create_task(self._measure_first(wanted, event))
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)

    def _event(self, exchange: Exchange, action: str) -> dict[str, Any]:
        request = exchange.request
        is_manifest = exchange.kind == "manifest"
        target: dict[str, Any] = {"repository": exchange.repository, "digest": exchange.digest}
        host = request.headers.get("host", "")
        kind = "manifests" if is_manifest else "blobs"
        if exchange.digest:
            target["url"] = f"http{'s' if request.secure else ''}://{host}/v2/{exchange.repository}/{kind}/{exchange.digest}"
        if action != "delete":
            target["mediaType"] = "application/octet-stream"
            if is_manifest:
                given = request.headers.get("content-type", "") if action == "push" else ""
                target["mediaType"] = given or (exchange.response.content_type if exchange.response else "")
                size = request.head.content_length if action == "push" else len(exchange.response.body) if exchange.response else 0
                target["size"] = target["length"] = size or 0
        if exchange.reference and ":" not in exchange.reference:
            target["tag"] = exchange.reference
        if action == "mount" and request.query.get("from"):
            target["fromRepository"] = request.query["from"]
        return {
            "id": str(uuid.uuid4()),
            "timestamp": now(),
            "action": action,
            "target": target,
            "request": {
                "id": request.id,
                "addr": request.peer.address,
                "host": host,
                "method": request.method,
                "useragent": request.headers.get("user-agent", "")[:300],
            },
            "actor": {"name": exchange.caller.name} if exchange.caller.name else {},
            "source": {"addr": self.address or socket.gethostname(), "instanceID": self._instance},
        }

    def _measure(self, event: dict[str, Any]) -> None:
        target = event["target"]
        with contextlib.suppress(TareError, RegistryError, OSError):
            target["size"] = target["length"] = self._storage.size(target["repository"], Digest.parse(target["digest"]))

    async def _measure_first(self, wanted: Sequence[str], event: dict[str, Any]) -> None:
        try:
            await asyncio.to_thread(self._measure, event)
        finally:
            self._add(wanted, event)

    def _add(self, wanted: Sequence[str], event: dict[str, Any]) -> None:
        body = json.dumps({"events": [event]}, separators=(",", ":"))
        for name in wanted:
            try:
                lost = self._outbox.put(name, body, self._hooks[name].queue)
            except sqlite3.Error as error:
                log.error("an event for %s is lost: %s", name, error)
                lost = 1
            self.counts[name, "dropped"] += lost
            self._news[name].set()

    # Delivering

    async def run(self) -> None:
        """All hooks, each in its own order."""
        async with asyncio.TaskGroup() as group:
            for name in self._hooks:
                group.create_task(self._serve(name))

    async def close(self) -> None:
        """After ``run`` was cancelled; what waits is delivered after the next start."""
        if self._looking:
            await asyncio.wait(self._looking)
        if self._transport is not None:
            await self._transport.close()
        self._outbox.close()

    async def _serve(self, name: str) -> None:
        hook, failures, refusals = self._hooks[name], 0, 0
        while True:
            self._news[name].clear()
            found = self._outbox.first(name)
            if found is None:
                await self._news[name].wait()
                continue
            number, made, body = found
            reason, final = await self._post(hook, body)
            refusals = refusals + 1 if final else 0
            if not reason:
                self.counts[name, "delivered"] += 1
            elif refusals >= REFUSALS or time.time() - made > hook.keep:
                self.counts[name, "dropped"] += 1
                log.error("an event for %s is dropped: %s", name, reason)
            else:
                self.counts[name, "failed"] += 1
                log.warning("an event for %s waits: %s", name, reason)
                await asyncio.sleep(min(hook.backoff * 2.0**failures, LONGEST_PAUSE) * (0.75 + random.random() / 2))
                failures = min(failures + 1, 16)
                continue
            failures = refusals = 0
            self._outbox.remove(name, number)

    async def _post(self, hook: Webhook, body: str) -> tuple[str, bool]:
        """Why it was not taken (nothing: it was), and whether the receiver does not want it."""
        transport = await self._connected()
        headers = {"Content-Type": MEDIA_TYPE, **hook.headers}
        try:
            async with asyncio.timeout(hook.timeout):
                response = await transport.send("POST", hook.url, headers, body.encode())
                status = response.status
                response.release()
        except TimeoutError:
            return f"no answer within {hook.timeout:g} seconds", False
        except TareError as error:
            return str(error), False
        if 200 <= status < 300:
            return "", False
        return f"the receiver answered {status}", 400 <= status < 500 and status not in _PASSING

    async def _connected(self) -> Transport:
        if self._transport is None:
            await asyncio.to_thread(importlib.import_module, "tare.distribution.transport")
            from tare.distribution.transport import Transport

            self._transport = self._transport or Transport(RegistryPolicy(), "tare-registry/0.1")
        return self._transport

    def lines(self) -> Iterator[str]:
        """For the metrics."""
        yield from head("tare_registry_events_total", "counter", "Events for webhooks, by what became of them")
        for (name, result), number in sorted(self.counts.items()):
            yield f'tare_registry_events_total{{hook="{escaped(name)}",result="{result}"}} {number}'
        yield from head("tare_registry_events_waiting", "gauge", "Events that wait for their receivers")
        for name in self._hooks:
            yield f'tare_registry_events_waiting{{hook="{escaped(name)}"}} {self._outbox.waiting[name]}'
