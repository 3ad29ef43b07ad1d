"""One build: its stages as tasks, each started when those that it needs are done, independent ones at the same time.

What is shared by the stages of one build, and what they ask of the engine, is here; what a stage does is ``stagebuild``. A failure or a
cancellation ends all stages; each cleans up its own step, so when ``run`` has returned nothing of the build is left but cached layers.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from tare.builder import calls, checks, copying
from tare.builder.checkrules import RULES
from tare.builder.instructions import Arg as _Arg
from tare.builder.namedcontexts import LAYOUT, NamedContexts
from tare.builder.narration import Voice, narrate
from tare.builder.request import BuildRequest, Say, Text
from tare.builder.stagebuild import StageBuild
from tare.builder.stages import SCRATCH, BuildGraph, Stage
from tare.builder.stopping import Stop
from tare.distribution.progress import Progress
from tare.errors import InvalidArgument, NotFound
from tare.images.committing import store_layer
from tare.oci.digest import Digest
from tare.oci.image import ContainerConfig, ImageConfig, RootFS, encode
from tare.oci.platform import Platform, host
from tare.oci.reference import Reference

if TYPE_CHECKING:
    from tare.builder.cache import CacheRecord
    from tare.builder.cachedocument import Used
    from tare.builder.cacheimport import Imports
    from tare.builder.service import Builder
    from tare.builder.trees import FileTree
    from tare.images.garbage import Pins
    from tare.images.image import Image

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """What a stage, through those that it builds on, has from its base image: that image's id, and how many layers and history lines."""

    image: str = ""
    layers: int = 0
    history: int = 0


class Build:
    """One build under way."""

    def __init__(self, builder: Builder, request: BuildRequest, graph: BuildGraph, context: FileTree, pins: Pins, imports: Imports) -> None:
        self._builder = builder
        self.request = request
        self.graph = graph
        self.context = context
        self.pins = pins
        self.images = builder.images
        self.layers = builder.layers
        self.snapshots = builder.snapshots
        self.cache = builder.cache
        self.runner = builder.runner
        self.running = builder.running
        self.scratch = builder.scratch
        self.consumed: set[str] = set()
        """Names of build arguments that some ARG declared."""
        self.arguments: dict[int, dict[str, str | None]] = {}
        """The declared build arguments of finished stages, by index: a stage on top of one has them too."""
        self.stop = Stop()
        """Ends what worker threads do when the build is cancelled or fails."""
        self.failed_at: tuple[int, int] | None = None
        """First and last line of the instruction that failed first."""
        self.now_ns = time.time_ns() if request.epoch_ns is None else request.epoch_ns
        meta = sum(isinstance(each, _Arg) for each in _before_from(graph))
        self.total_steps = meta + sum(1 + len(stage.instructions) for stage in graph.stages) + len(request.labels)
        self._origins: dict[int, Origin] = {}
        self._results: dict[int, asyncio.Task[ImageConfig]] = {}
        self._context_layers: asyncio.Task[tuple[Digest, ...]] | None = None
        self._bases: dict[tuple[str, str], asyncio.Task[Image]] = {}
        self.contexts = NamedContexts(self)
        self.imports = imports
        self.mounts: dict[str, str] = {}
        """Cache mounts that were used, by key, with their descriptions."""
        self._used: list[tuple[int, Used]] = []

    # -- the whole ----------------------------------------------------------------------------------------------------------------------

    async def run(self, say: Say) -> ImageConfig:
        """Build the target; its config, whose layers are in the store and pinned."""
        number = 1
        for argument in _before_from(self.graph):
            if not self.request.trace:
                await say(Text(f"Step {number}/{self.total_steps} : {argument.text}"))
                await say(Text("\n"))
            number += 1
            self.consumed.update(name for name, _ in argument.pairs)
        voices: list[Voice] = []
        try:
            for stage in self.graph.stages:
                voice = Voice(say, traced=self.request.trace)
                voices.append(voice)
                work = StageBuild(self, stage, voice, number)
                self._results[stage.index] = asyncio.create_task(self._stage(work), name=f"stage {stage.index}")
                number += 1 + len(stage.instructions)
            telling = asyncio.create_task(narrate(voices, list(self._results.values())))
            try:
                await self._all_done()
                await telling
            finally:
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)
            return self._results[self.graph.target.index].result()
        finally:
            await self._end()

    async def _all_done(self) -> None:
        """Wait for all stages; the first failure, in the file's order, ends the others."""
        tasks = list(self._results.values())
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                await task
        await asyncio.gather(*tasks)

    async def _end(self) -> None:
        tasks: list[asyncio.Task[Any]] = [*self._results.values(), *self._bases.values(), *self.contexts.tasks()]
        if self._context_layers is not None:
            tasks.append(self._context_layers)
        for task in tasks:
            task.cancel()
        await asyncio.shield(asyncio.gather(*tasks, return_exceptions=True))

    async def _stage(self, work: StageBuild) -> ImageConfig:
        for index in sorted(work.stage.depends_on):
            await self._finished(index, work.voice)
        return await work.run()

    async def _finished(self, index: int, voice: Voice) -> ImageConfig:
        """A stage's result. One that only a trigger (ONBUILD) of a base image asks for begins now, and speaks through the asker."""
        if index not in self._results:
            stage = self.graph.every[index]
            work = StageBuild(self, stage, voice.aside(), self.total_steps + 1)
            self.total_steps += 1 + len(stage.instructions)
            self._results[index] = asyncio.create_task(self._stage(work), name=f"stage {index}")
        return await asyncio.shield(self._results[index])

    # -- what stages ask ----------------------------------------------------------------------------------------------------------------

    def now_text(self) -> str:
        """The time for the history."""
        epoch = self.request.epoch
        moment = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(epoch, UTC)
        return moment.isoformat().replace("+00:00", "Z")

    @staticmethod
    def short_id(config: ImageConfig) -> str:
        """The id that an image of this state would have, as Docker shows it."""
        return Digest.of(encode(config)).hex[:12]

    @staticmethod
    def fake_id() -> str:
        """An id for the container that Docker's builder would have made for a step."""
        return secrets.token_hex(6)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run blocking work; a cancellation asks it to stop and waits for its end, so that nothing of it goes on unseen."""
        return await in_thread(work, self.stop.stop)

    @staticmethod
    async def finally_(work: Awaitable[None]) -> None:
        """Tidy up, whoever cancels."""
        await _to_the_end(asyncio.ensure_future(work))

    @asynccontextmanager
    async def exclusively(self, key: str) -> AsyncIterator[None]:
        """One at a time makes what ``key`` stands for; who comes later finds it in the cache."""
        async with self._builder.making(key):
            yield

    async def base(self, stage: Stage, voice: Voice) -> ImageConfig:
        """The config that a stage starts from."""
        self._origins[stage.index] = Origin()
        if stage.base_stage is not None:
            self._origins[stage.index] = self._origins[stage.base_stage]
            return self._results[stage.base_stage].result()
        if stage.base == SCRATCH:
            platform = Platform.parse(stage.platform) if stage.platform else host()
            return ImageConfig(
                platform.architecture, platform.os, RootFS([]), platform.variant or None, config=ContainerConfig(), history=[]
            )
        if self.contexts.image(stage.base) is None:
            return await self.contexts.base(stage.base, stage.platform)
        image = await self.image(stage.base, stage.platform, voice)
        await self._check_platform(stage, image, voice)
        self._origins[stage.index] = Origin(image.id, len(image.diff_ids), len(image.config.history or ()))
        history = image.config.history or []
        config = msgspec.structs.replace(image.config, docker_version=None, comment=None, inline_cache=None, history=history)
        return msgspec.structs.replace(config, config=image.config.container, rootfs=RootFS(list(image.diff_ids)))

    async def _check_platform(self, stage: Stage, image: Image, voice: Voice) -> None:
        expected = Platform.parse(stage.platform) if stage.platform else host()
        dockerfile, given = self.graph.dockerfile, self.request.build_args
        finding = checks.base_platform(dockerfile, given, stage.from_, stage.base, image.platform(), expected)
        if finding is None:
            return
        if checks.settings_of(dockerfile, given).error:
            raise checks.violation([finding], dockerfile)
        await voice.warn(calls.short(finding), RULES[finding.rule].url)

    def note_step(self, stage: int, keys: Sequence[str], record: CacheRecord) -> None:
        """A step of ``stage`` was found or made."""
        self._used.append((stage, (tuple(keys), record)))

    def used_steps(self, *, whole: bool) -> list[Used]:
        """Steps for others: those of all stages, or only those of the target and of the stages that it is built on."""
        below: int | None = self.graph.target.index
        wanted = {stage.index for stage in self.graph.stages} if whole else set()
        bases = {stage.index: stage.base_stage for stage in self.graph.stages}
        while below is not None:
            wanted.add(below)
            below = bases.get(below)
        return [used for stage, used in self._used if stage in wanted]

    @property
    def origin(self) -> Origin:
        """What the target has from its base image. After ``run``."""
        return self._origins[self.graph.target.index]

    def used_images(self) -> list[tuple[str, Image]]:
        """The images that the build has taken something from, by name. After ``run``."""
        return [
            (name, task.result())
            for (name, _), task in self._bases.items()
            if task.done() and not task.cancelled() and not task.exception()
        ]

    async def image(self, name: str, platform: str, voice: Voice) -> Image:
        """A base image: the one that is here, or pulled."""
        name = self.contexts.image(name) or name
        key = (name, platform)
        if key not in self._bases:
            self._bases[key] = asyncio.create_task(self._image(name, platform, voice))
        return await asyncio.shield(self._bases[key])

    async def _image(self, name: str, platform: str, voice: Voice) -> Image:
        if name.startswith(LAYOUT):
            return await self.contexts.layout(name.removeprefix(LAYOUT), platform)
        found = self._local(name, platform)
        if found is None or self.request.pull:
            try:
                reference = Reference.parse(name).with_default_tag()
            except InvalidArgument as error:
                raise InvalidArgument(f"failed to parse stage name {name!r}: {error}") from None
            found = await self._pull(reference, platform, voice)
        self.pins.hold(*[Digest.parse(digest) for digest in self.images.needs(found.id)])
        return found

    def _local(self, name: str, platform: str) -> Image | None:
        try:
            return self.images.get(name, platform)
        except NotFound:
            return None

    async def _pull(self, reference: Reference, platform: str, voice: Voice) -> Image:
        messages: asyncio.Queue[Progress | None] = asyncio.Queue()
        pull = asyncio.create_task(self.images.pull(reference, platform or None, self.request.credentials(reference), messages.put_nowait))
        pull.add_done_callback(lambda _: messages.put_nowait(None))
        held: list[Progress] = []
        try:
            while (message := await messages.get()) is not None:
                held.append(message)
                if message.status.startswith("Pulling from"):
                    continue  # told when something came of it
                for each in held:
                    await voice.say(each)
                held.clear()
            return await pull
        finally:
            pull.cancel()
            await asyncio.gather(pull, return_exceptions=True)

    async def layers_of(self, reference: str, stage: Stage, voice: Voice) -> tuple[Digest, ...]:
        """The layers of the stage or image that ``--from`` names."""
        if self.contexts.image(reference) is None:
            return (await self.contexts.layer(reference),)
        index = self.graph.stage_of(reference, stage.index)
        if index is not None and self.contexts.find(reference) is None:
            return tuple((await self._finished(index, voice)).diff_ids)
        if reference.lower() == SCRATCH:
            return ()
        return (await self.image(reference, stage.platform, voice)).diff_ids

    async def context_layers(self) -> tuple[Digest, ...]:
        """The whole context as a layer, for binds."""
        if self._context_layers is None:
            self._context_layers = asyncio.create_task(self._store_context())
        return await asyncio.shield(self._context_layers)

    async def _store_context(self) -> tuple[Digest, ...]:
        items = [copying.Item(self.context, self.context.root, b"", True)]
        placement = copying.Placement(b"/", now_ns=self.now_ns)

        def store() -> tuple[Digest, ...]:
            return (store_layer(self.layers, copying.layer(self.context, items, placement), self.pins.hold).diff_id,)

        return await self.in_thread(store)


async def in_thread(work: Callable[[], T], hurry: Callable[[], None] = lambda: None) -> T:
    """Run blocking work in a thread, to its end: a cancellation waits for it, and ``hurry`` makes it soon."""
    return await _to_the_end(asyncio.ensure_future(asyncio.to_thread(work)), hurry)


async def _to_the_end(task: asyncio.Future[T], hurry: Callable[[], None] = lambda: None) -> T:
    """Await; a cancellation is passed on only when the work is over, which ``hurry`` makes soon."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        hurry()
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()  # nobody asks for it any more
        raise


def _before_from(graph: BuildGraph) -> list[_Arg]:
    """The ARGs before the first FROM."""
    found = []
    for instruction in graph.dockerfile.instructions:
        if not isinstance(instruction, _Arg):
            break
        found.append(instruction)
    return found
