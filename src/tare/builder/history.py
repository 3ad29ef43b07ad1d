"""What was built: a record of each build, and its log, for ``tare builder history``.

    metadata, table ``builds``, id ``history:ID``     the record, written when the build begins and when it ends
    data_root/builder/history/ID.jsonl                what the build said, one message a line, written when it ends

A build that has no end in its record while it does not run was cut off by the death of its daemon, and is shown so. The log of a build is
cut at a limit; its steps and its end are always in it. Only the latest builds are kept. Values of build arguments and secrets are no part
of a record.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tare.builder.request import BuildRequest, Built, Message, Note, Say, Text, Trace
from tare.config import BuilderConfig
from tare.distribution.progress import Progress
from tare.errors import NotFound
from tare.store.durability import make_directory

if TYPE_CHECKING:
    from tare.store.metadata import Metadata

_PREFIX = "history:"
_KEPT = 100
"""Builds."""
_LOG_LIMIT = 1 << 20
RUNNING, COMPLETED, ERROR, CANCELED, LOST = "Running", "Completed", "Error", "Canceled", "Lost"


class BuildRecord(msgspec.Struct, omit_defaults=True):
    """One build. Times in seconds since the epoch."""

    id: str
    name: str = ""
    """What the client called the context."""
    dockerfile: str = ""
    target: str = ""
    platforms: list[str] = []
    tags: list[str] = []
    started: float = 0.0
    completed: float = 0.0
    status: str = RUNNING
    error: str = ""
    image: str = ""
    steps: int = 0
    cached: int = 0


class History:
    """The builds of one engine. Event loop only."""

    def __init__(self, metadata: Metadata, directory: Path, config: BuilderConfig) -> None:
        self._config = config
        self._records = metadata.builds
        self._directory = directory
        self._running: dict[str, Recording] = {}
        decoder = msgspec.json.Decoder(BuildRecord)
        found = [decoder.decode(document) for id, _, document in self._records.all() if id.startswith(_PREFIX)]
        self._known = {record.id: record for record in sorted(found, key=lambda record: record.started)}
        make_directory(directory)

    def all(self) -> list[BuildRecord]:
        """The latest first."""
        return [self._as_it_is(record) for record in reversed(self._known.values())]

    def get(self, name: str) -> BuildRecord:
        """By id or the beginning of one; "" and ``latest`` mean the last. ``NotFound``."""
        if name in ("", "latest", "^0"):
            found = list(self._known)[-1:]
        else:
            found = [name] if name in self._known else [id for id in self._known if id.startswith(name)]
        if len(found) != 1:
            raise NotFound(f"no build {name!r} in the history" if not found else f"several builds begin with {name!r}")
        return self._as_it_is(self._known[found[0]])

    def _as_it_is(self, record: BuildRecord) -> BuildRecord:
        recording = self._running.get(record.id)
        if recording is not None:
            return recording.now()
        return msgspec.structs.replace(record, status=LOST) if record.status == RUNNING else record

    def log(self, id: str) -> Iterator[bytes]:
        """The messages of a build as JSON, one a line."""
        recording = self._running.get(id)
        if recording is not None:
            yield from list(recording.lines)
            return
        with suppress(FileNotFoundError), (self._directory / f"{id}.jsonl").open("rb") as file:
            yield from file

    def remove(self, id: str) -> None:
        """Forget a build that is over."""
        if id in self._running:
            raise NotFound(f"build {id} is running: only what is over can be removed")
        self._known.pop(id, None)
        self._records.delete(_PREFIX + id)
        (self._directory / f"{id}.jsonl").unlink(missing_ok=True)

    @asynccontextmanager
    async def recording(self, request: BuildRequest, say: Say) -> AsyncIterator[Recording]:
        """A build that is in the history from now on; say its messages through what this gives."""
        record = BuildRecord(
            secrets.token_hex(12),
            request.source,
            request.dockerfile,
            request.target,
            list(request.platforms) or ([request.platform] if request.platform else []),
            [tag.familiar() for tag in request.tags],
            time.time(),
        )
        recording = self._running[record.id] = Recording(record, say)
        self._put(record)
        status, text = CANCELED, ""
        try:
            yield recording
            status = COMPLETED
        except Exception as error:
            status, text = ERROR, str(error)
            raise
        finally:
            del self._running[record.id]
            ended = msgspec.structs.replace(recording.now(), completed=time.time(), status=status, error=text)
            if status != COMPLETED:
                ended.image = ""
            self._write(record.id, recording.lines)
            self._put(ended)
            self._forget_old()

    def _forget_old(self) -> None:
        limit = time.time() - self._config.history_age if self._config.history_age else 0.0
        surplus = set(list(self._known)[: -(self._config.history_entries or _KEPT)])
        for id, record in list(self._known.items()):
            if id not in self._running and (id in surplus or record.started < limit):
                self.remove(id)

    def _put(self, record: BuildRecord) -> None:
        self._known[record.id] = record
        self._records.put(_PREFIX + record.id, None, msgspec.json.encode(record))

    def _write(self, id: str, lines: list[bytes]) -> None:
        path = self._directory / f"{id}.jsonl"
        scratch = path.with_suffix(".new")
        with suppress(OSError):  # a full disk must not fail a build that is done
            scratch.write_bytes(b"".join(lines))
            os.replace(scratch, path)


class Recording:
    """One build under way: what it says goes on to its client, and is kept."""

    def __init__(self, record: BuildRecord, say: Say) -> None:
        self._record = record
        self._say = say
        self.lines: list[bytes] = []
        self._size = 0
        self._image = ""
        self._steps = self._cached = 0
        self._over: set[str] = set()

    def now(self) -> BuildRecord:
        return msgspec.structs.replace(self._record, image=self._image, steps=self._steps, cached=self._cached)

    async def say(self, message: Message) -> None:
        if isinstance(message, Trace):
            self._keep({"trace": message.document}, always="vertexes" in message.document)
            for vertex in message.document.get("vertexes", ()):
                self._count(vertex)
        elif isinstance(message, Text):
            self._keep({"stream": message.text})
            self._steps += message.text.startswith("Step ")
            self._cached += message.text == " ---> Using cache\n"
        elif isinstance(message, Progress):
            self._keep(message.document())
        elif isinstance(message, Built):
            self._image = message.id
        elif isinstance(message, Note) and message.kind == "metadata":
            self._image = self._image or str(message.value.get("containerimage.config.digest") or "")
        await self._say(message)

    def _count(self, vertex: dict[str, Any]) -> None:
        if vertex.get("completed") and vertex["digest"] not in self._over:
            self._over.add(vertex["digest"])
            self._steps += 1
            self._cached += bool(vertex.get("cached"))

    def _keep(self, document: dict[str, Any], *, always: bool = False) -> None:
        if self._size < _LOG_LIMIT or always:
            line = msgspec.json.encode(document) + b"\n"
            self._size += len(line)
            self.lines.append(line)
