"""The builder of one engine: Dockerfile in, image out.

    context (a tar) ──► ``context``: one spooled file, a tree in memory
    Dockerfile ──► ``parser`` ──► ``stages``: a graph ──► ``solver``: stages as tasks ──► ``stagebuild``: steps, found or made
    last state ──► ``exporting``: image record and names, push, archives ──► events

Nothing of a build is visible before it is complete, but for the cache. Layers are pinned from the moment they exist until the image's
record names them; cached ones are roots of the collector (``cache``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tare.builder import attestation, cacheexport, calls, checks, exporting, parser, stages
from tare.builder import instructions as ins
from tare.builder.cache import Cache, CacheRecord
from tare.builder.cacheexport import CacheExporter
from tare.builder.cacheimport import Imports
from tare.builder.checkrules import RULES
from tare.builder.checks import Finding
from tare.builder.collection import Collector
from tare.builder.errors import DockerfileError
from tare.builder.exporting import Exporter
from tare.builder.history import History
from tare.builder.ignore import Patterns
from tare.builder.keptcontexts import KeptContexts
from tare.builder.publication import Result
from tare.builder.request import BuildRequest, Note, Say, Text, Trace
from tare.builder.running import Runner
from tare.builder.sessions import Session, Sessions
from tare.builder.solver import Build, in_thread
from tare.builder.squash import squash
from tare.builder.stages import PREDEFINED
from tare.builder.trees import FileTree, TarTree
from tare.errors import InvalidArgument, TareError
from tare.oci.image import encode
from tare.store.durability import make_directory, remove_tree

if TYPE_CHECKING:
    from tare.config import EngineConfig
    from tare.containers.service import Containers
    from tare.containers.task import TaskDriver
    from tare.images.service import Images
    from tare.store.layers.driver import LayerDriver
    from tare.store.metadata import Metadata
    from tare.store.snapshots import Snapshots

_log = logging.getLogger(__name__)
_DOCKERFILE_LIMIT = 16 << 20
_EXCERPT = 2
"""Lines of a Dockerfile that are shown before and after the one that failed."""


@dataclass(frozen=True)
class CacheEntry:
    """One line of ``builder df``. Times in seconds since the epoch."""

    id: str
    type: str
    description: str
    in_use: bool
    shared: bool
    size: int
    made: float
    used: float
    count: int


@dataclass(frozen=True)
class Room:
    """How much of the cache a prune leaves, in bytes, as BuildKit reckons it; all 0: nothing."""

    reserved: int = 0
    """So much may stay in any case."""
    most: int = 0
    """No more than this stays."""
    free: int = 0
    """So much of the disk shall be free afterwards."""

    def keep(self, total: int, place: Path) -> int:
        """Of ``total`` bytes so many may stay on the file system of ``place``; 0: none."""
        keep = self.most
        if self.free:
            state = os.statvfs(place)
            missing = self.free - state.f_bavail * state.f_frsize
            if missing > 0:
                keep = max(1, min(keep or total, total - missing))
            elif not keep:
                keep = max(1, total)
        return max(keep, self.reserved)


class Builder:
    """Builds of one engine."""

    def __init__(
        self,
        config: EngineConfig,
        metadata: Metadata,
        images: Images,
        layers: LayerDriver,
        snapshots: Snapshots,
        containers: Containers,
        driver: TaskDriver,
        parallel: int,
    ) -> None:
        self.images = images
        self.layers = layers
        self.snapshots = snapshots
        self.cache = Cache(metadata)
        self.runner = Runner(config, containers.launcher, driver, snapshots, metadata)
        self.running = asyncio.Semaphore(parallel)
        """How many commands run at the same time, over all builds."""
        self.scratch = config.data_root / "builder" / "tmp"
        self.sessions = Sessions(self.scratch)
        self.contexts = KeptContexts(self.scratch)
        self.data = config.data_root / "builder"
        self._making: dict[str, tuple[asyncio.Lock, int]] = {}
        make_directory(self.data)
        make_directory(self.scratch)
        self.history = History(metadata, self.data / "history", config.builder)
        self.collector = Collector(self, config.builder)
        self._refused = config.builder.refused
        images.keep(self.cache.layers)

    async def recover(self) -> None:
        """Remove what builds of a killed daemon left. Before containers are recovered: they sweep what they do not know."""
        await self.runner.recover()
        await asyncio.to_thread(self._clear_scratch)

    def _clear_scratch(self) -> None:
        for path in self.scratch.iterdir():
            remove_tree(path)

    # -- building -----------------------------------------------------------------------------------------------------------------------

    async def build(self, request: BuildRequest, context: TarTree, say: Say, session: Session | None = None) -> str:
        """Build, and give the result to its outputs; returns the image's id. A cancellation ends the build cleanly."""
        attestation.check(request.attestations)
        exporting.check(request)
        cacheexport.check(request.cache_to)
        text = self._dockerfile(request, context)
        _hide_ignored(context, request.dockerfile)
        if request.call:
            return await self._build(request, text, context, say, session)
        if refused := sorted(name for name in request.allow if name.partition("=")[0] in self._refused):
            raise InvalidArgument(f"granting entitlement {refused[0]} is not allowed by the daemon's configuration (builder.entitlements)")
        async with self.history.recording(request, say) as recording:
            try:
                return await self._build(request, text, context, recording.say, session)
            finally:
                self.collector.build_ended()

    async def _build(self, request: BuildRequest, text: bytes, context: TarTree, say: Say, session: Session | None) -> str:
        builds: list[Build] = []
        try:
            if request.call:
                await say(Note("call", self._called(request, text, context)))
                return ""
            dockerfile = parser.parse(text, request.dockerfile)
            await self._checked(request, dockerfile, text, context, say)
            async with self.images.pins() as pins:
                imports = Imports(request, self.images, self.layers, pins, in_thread)
                await imports.load(say)
                for one in _per_platform(request):
                    graph = stages.plan(dockerfile, one.build_args, one.target, one.platform)
                    builds.append(Build(self, one, graph, context, pins, imports))
                results = await _side_by_side([self._result(build, text, say) for build in builds])
                exporter = Exporter(self.images, self.images.content, self.snapshots, request, pins, say, session)
                await self._warn_unused(request, builds, say)
                image = await exporter.export(results)
                await CacheExporter(self.images, request, pins, say, session).export(builds)
                return image
        except TareError as error:
            await say(Note("failure", _place(error, text, request.dockerfile, builds)))
            raise

    def _called(self, request: BuildRequest, text: bytes, context: TarTree) -> dict[str, Any]:
        """The answer to ``--call``."""
        shown = text.decode("utf-8", "replace")
        if request.call == "check":
            return self._lint(request, text, context)
        dockerfile = parser.parse(text, request.dockerfile)
        if request.call == "targets":
            return calls.targets(dockerfile, shown)
        if request.call == "outline":
            graph = stages.plan(dockerfile, request.build_args, request.target, request.platform)
            return calls.outline(graph, shown, request.build_args)
        raise InvalidArgument(f"unknown call {request.call!r}: check, outline or targets is expected")

    def _lint(self, request: BuildRequest, text: bytes, context: TarTree) -> dict[str, Any]:
        findings: list[Finding] = []
        try:
            dockerfile = parser.parse(text, request.dockerfile)
            findings = self._findings(request, dockerfile, text, context)
            stages.plan(dockerfile, request.build_args, request.target, request.platform)
            if findings and checks.settings_of(dockerfile, request.build_args).error:
                raise checks.violation(findings, dockerfile)
        except InvalidArgument as error:
            return calls.lint(findings, text, request.dockerfile, error)
        return calls.lint(findings, text, request.dockerfile, None)

    def _findings(self, request: BuildRequest, dockerfile: ins.Dockerfile, text: bytes, context: TarTree) -> list[Finding]:
        def base_env(name: str) -> Sequence[str] | None:
            try:
                return self.images.get(name).config.container.env or ()
            except TareError:
                return None

        names = (f"{request.dockerfile}.dockerignore", ".dockerignore")
        found = next((found for name in names if (found := context.find(name.encode("utf-8", "surrogateescape"))) is not None), None)
        patterns = Patterns(b"".join(context.read(found)).decode("utf-8", "replace")) if found is not None else None
        return checks.check(dockerfile, text.decode("utf-8", "replace"), request.build_args, base_env, patterns)

    async def _checked(self, request: BuildRequest, dockerfile: ins.Dockerfile, text: bytes, context: TarTree, say: Say) -> None:
        """Tell of what the checks find; an error when the Dockerfile wants it to be one."""
        settings = checks.settings_of(dockerfile, request.build_args)
        if not (request.trace or settings.error):
            return
        findings = self._findings(request, dockerfile, text, context)
        if findings and settings.error:
            raise checks.violation(findings, dockerfile)
        warnings = [{"level": 1, "short": calls.short(each), "url": RULES[each.rule].url} for each in findings]
        if warnings:
            await say(Trace({"warnings": warnings}))

    async def _result(self, build: Build, text: bytes, say: Say) -> Result:
        """Build for one platform."""
        begun = time.time()
        config = await build.run(say)
        if not config.diff_ids and not config.history:
            raise InvalidArgument("No image was generated. Is your Dockerfile empty?")
        if build.request.squash:
            config = await squash(build, config, build.origin)
        if any(wanted.type == "inline" for wanted in build.request.cache_to):
            config = cacheexport.inline(build, config)
        return Result(build.request.platform, config, encode(config), await attestation.attest(build, config, text, begun))

    async def _warn_unused(self, request: BuildRequest, builds: Sequence[Build], say: Say) -> None:
        consumed = {name for build in builds for name in build.consumed}
        unused = sorted(name for name in request.build_args if name not in consumed and name not in PREDEFINED)
        if unused and not request.trace:
            await say(Text(f"[Warning] One or more build-args [{' '.join(unused)}] were not consumed\n"))

    def _dockerfile(self, request: BuildRequest, context: FileTree) -> bytes:
        if request.dockerfile_text is not None:
            return request.dockerfile_text
        name = request.dockerfile
        found = context.find(name.encode("utf-8", "surrogateescape"))
        if found is None and name == "Dockerfile":
            found = context.find(b"dockerfile")
        if found is None or found.is_directory:
            raise InvalidArgument(f"Cannot locate specified Dockerfile: {name}")
        if found.size > _DOCKERFILE_LIMIT:
            raise InvalidArgument(f"the Dockerfile ({name}) is larger than {_DOCKERFILE_LIMIT >> 20} MiB")
        if not found.size:
            raise InvalidArgument(f"the Dockerfile ({name}) cannot be empty")
        return b"".join(context.read(found))

    @asynccontextmanager
    async def making(self, key: str) -> AsyncIterator[None]:
        """The lock of one step's key, shared by all builds."""
        lock, users = self._making.get(key) or (asyncio.Lock(), 0)
        self._making[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._making[key]
            if users == 1:
                del self._making[key]
            else:
                self._making[key] = lock, users - 1

    # -- the cache ----------------------------------------------------------------------------------------------------------------------

    def usage(self) -> list[CacheEntry]:
        """All of the cache, least recently used first. Sizes of cache mounts are walked: in a worker thread if there may be many."""
        shared, places = self._image_layers(), self.runner.places

        def entry(key: str, type: str, record: CacheRecord, size: int, busy: bool) -> CacheEntry:
            return CacheEntry(key, type, record.description, busy, record.diff_id in shared, size, record.made, record.used, record.count)

        entries = [entry(key[:25], "regular", record, record.size, False) for key, record in self.cache.steps() if record.diff_id]
        for key, record in self.cache.mounts():
            entries.append(entry(key, "exec.cachemount", record, places.cache_size(key), places.cache_busy(key)))
        for kept in self.contexts.all():
            record = CacheRecord("", description=f"context {kept.name}", made=kept.made, used=kept.used, count=kept.count)
            entries.append(entry(kept.id, "source.local", record, kept.spool.end, False))
        return sorted(entries, key=lambda entry: entry.used)

    def _image_layers(self) -> set[str]:
        return {str(diff_id) for image in self.images.list() for diff_id in image.diff_ids}

    async def prune(self, wanted: Callable[[CacheEntry], bool], *, everything: bool, room: Room) -> tuple[list[str], int]:
        """Forget cached steps and cache mounts; the ids of what went and the bytes that became free.

        Without ``everything`` what images use too stays. ``room`` says how much of the most recently used may stay.
        """
        entries = await asyncio.to_thread(self.usage)
        total = sum(entry.size for entry in entries if not entry.shared)
        keep = room.keep(total, self.data)
        gone: list[CacheEntry] = []
        for entry in entries:
            if keep and total <= keep:
                break
            if entry.in_use or not wanted(entry) or (entry.shared and not everything):
                continue
            gone.append(entry)
            total -= 0 if entry.shared else entry.size
        steps = {entry.id for entry in gone if entry.type == "regular"}
        doomed = [record for key, record in self.cache.steps() if key[:25] in steps]
        identities = {id(record) for record in doomed}
        plain = everything and not keep
        self.cache.drop(lambda record: id(record) in identities or (plain and not record.diff_id and wanted(_plain_entry(record))))
        freed = 0
        for entry in gone:
            if entry.type == "exec.cachemount" and not self.runner.places.cache_busy(entry.id):
                freed += await asyncio.to_thread(self.runner.places.discard_cache, entry.id)
                self.cache.drop_mounts([entry.id])
            elif entry.type == "source.local":
                freed += self.contexts.drop(entry.id)
        layers = [record.diff_id for record in doomed]
        collected = await self.images.collect_layers(layers)
        return [entry.id for entry in gone], freed + collected.bytes


def _plain_entry(record: CacheRecord) -> CacheEntry:
    """A step that made no layer, for a rule."""
    return CacheEntry("", "regular", record.description, False, False, 0, record.made, record.used, record.count)


async def _side_by_side(works: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of all; the first failure ends the others, and is told when they have ended."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _per_platform(request: BuildRequest) -> list[BuildRequest]:
    return [replace(request, platform=platform) for platform in request.platforms or (request.platform,)]


def _place(error: TareError, text: bytes, name: str, builds: Sequence[Build]) -> dict[str, Any]:
    """Where in the Dockerfile a build failed: lines from ``First`` on, of which ``Line`` to ``End`` are to blame."""
    first = next((build.failed_at for build in builds if build.failed_at), None)
    line, end = (
        (error.line, error.line + error.source.count("\n")) if isinstance(error, DockerfileError) and error.line else first or (0, 0)
    )
    lines = text.decode("utf-8", "replace").splitlines()
    top, bottom = max(1, line - _EXCERPT), min(len(lines), end + _EXCERPT)
    place: dict[str, Any] = {"Dockerfile": name, "Line": line, "End": end, "First": top, "Lines": lines[top - 1 : bottom] if line else []}
    if isinstance(error, DockerfileError) and error.hint:
        place["Hint"] = error.hint
    return place


def _hide_ignored(context: TarTree, dockerfile: str) -> None:
    """Clients send the Dockerfile and .dockerignore in any case: the engine leaves them out when .dockerignore says so."""
    own = f"{dockerfile}.dockerignore"
    found = context.find(own.encode("utf-8", "surrogateescape")) or context.find(b".dockerignore")
    if found is None or found.is_directory or found.size > _DOCKERFILE_LIMIT:
        return
    patterns = Patterns(b"".join(context.read(found)).decode("utf-8", "replace"))
    for name in (".dockerignore", own, dockerfile):
        if patterns.excluded(name):
            context.hide(name.encode("utf-8", "surrogateescape"))
