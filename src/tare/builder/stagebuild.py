"""One stage at work: its instructions, one after the other, from its base's config to its own.

Each step is *found* in the cache or *made*: its key covers the state that it starts from and all that it reads (``cache.py``). The state
is an image config, layers and history included; nothing is recorded as an image until the build is over.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import msgspec

from tare.builder import configure, copying
from tare.builder import instructions as ins
from tare.builder.cache import CacheRecord, digest_of, key_of
from tare.builder.configure import Words
from tare.builder.copysteps import copy_step, owner
from tare.builder.errors import DockerfileError
from tare.builder.parser import parse_trigger
from tare.builder.request import Built
from tare.builder.runsteps import run_step
from tare.builder.stages import PREDEFINED, SCRATCH, Stage
from tare.builder.trees import DirectoryTree, FileTree
from tare.containers.spec import DEFAULT_PATH
from tare.errors import InvalidArgument
from tare.images.committing import Step, child_config, store_layer
from tare.oci.digest import Digest
from tare.oci.image import ContainerConfig, ImageConfig, encode

if TYPE_CHECKING:
    from tare.builder.narration import Voice
    from tare.builder.solver import Build
    from tare.builder.trace import Vertex
    from tare.store.layers.driver import Layer

Made = tuple["Layer | None", str]
"""What making a step gives: its layer, and the note for its history line."""


def _owner(root: FileTree, user: str) -> tuple[int, int] | None:
    """Who owns what WORKDIR makes: the stage's user. One whom the image does not know is root here; a RUN will refuse him."""
    try:
        return owner(root, user) if user else None
    except InvalidArgument:
        return None


class StageBuild:
    """One stage of one build."""

    def __init__(self, build: Build, stage: Stage, voice: Voice, first_step: int) -> None:
        self.build = build
        self.stage = stage
        self.voice = voice
        self._number = first_step
        self.state: ImageConfig
        self.args: dict[str, str | None] = {}
        """Declared build arguments with their values."""
        self._above_env: set[str] = set()
        """Of those, the ones that came after an ENV of the same name: the last one counts, for commands and in words."""
        self.fake_id = ""
        self._own_command = False
        self._in_triggers = False
        self._shown = 0
        """Steps of this stage that a traced build has told of."""

    # -- what steps ask -----------------------------------------------------------------------------------------------------------------

    @property
    def container(self) -> ContainerConfig:
        return self.state.container

    def lookup(self, name: str) -> str | None:
        """A variable of the stage: of ENV and ARG what came last."""
        if name in self._above_env:
            return self.args[name]
        for entry in self.container.env or ():
            key, _, value = entry.partition("=")
            if key == name:
                return value
        return self.args.get(name)

    @property
    def words(self) -> Words:
        return Words(self.lookup, self.build.graph.dockerfile.escape)

    def state_key(self) -> str:
        """All that a step's result can depend on from before it."""
        state = self.state
        return key_of(
            state.os,
            state.architecture,
            state.variant,
            [str(diff_id) for diff_id in state.diff_ids],
            msgspec.to_builtins(state.container),
            state.author,
            self.build.request.epoch,
        )

    @contextmanager
    def root(self) -> Iterator[DirectoryTree]:
        """The stage's root as it is now. For worker threads."""
        with self.build.snapshots.view(self.state.diff_ids) as view:
            tree = DirectoryTree(os.dup(view))
            try:
                yield tree
            finally:
                tree.close()

    # -- the stage ----------------------------------------------------------------------------------------------------------------------

    async def run(self) -> ImageConfig:
        """Build it."""
        async with self._told(self.stage.from_):
            self.state = await self.build.base(self.stage, self.voice)
        if self.stage.base_stage is not None:
            self.args |= self.build.arguments[self.stage.base_stage]
        if not any(entry.startswith("PATH=") for entry in self.container.env or ()):
            self._configured(configure.set_env(self.container.env, "PATH", DEFAULT_PATH))
        if not self.container.on_build:
            await self.voice.text(f" ---> {self._short()}\n" if self.stage.base != "scratch" else " ---> \n")
        await self._triggers()
        for instruction in self.stage.instructions:
            async with self._told(instruction):
                await self._step(instruction)
        if self.stage.index == self.build.graph.target.index and self.build.request.labels:
            await self._labels()
        self.build.arguments[self.stage.index] = self.args
        if self.state.diff_ids or self.state.history:
            await self.voice.say(Built(str(Digest.of(encode(self.state)))))
        return self.state

    def _configured(self, env: list[str]) -> None:
        self.state = msgspec.structs.replace(self.state, config=msgspec.structs.replace(self.container, env=env))

    @asynccontextmanager
    async def _told(self, instruction: ins.Instruction) -> AsyncIterator[None]:
        """One instruction is done in this block: tell of it, and of its failure."""
        await self._announce(instruction.text)
        vertex: Vertex | None = None
        if self.voice.traced and self._is_shown(instruction):
            self._shown += 1
            vertex = self.voice.begin_step(f"{id(self.build)} {self.stage.index} {self._shown}", self._vertex_name(instruction))
            await vertex.begin()
        try:
            yield
        except BaseException as error:
            if vertex is not None:
                await vertex.end(str(error) or "context canceled")
            if not isinstance(error, asyncio.CancelledError):
                self.build.failed_at = self.build.failed_at or (instruction.line, instruction.end)
            raise
        if vertex is not None:
            await vertex.end()
        self.voice.vertex = None

    def _is_shown(self, instruction: ins.Instruction) -> bool:
        """Whether BuildKit would tell of it: what makes no layer is no step there."""
        if isinstance(instruction, ins.From):
            return self.stage.base_stage is None and self.stage.base != SCRATCH
        return isinstance(instruction, ins.Run | ins.Copy | ins.Workdir)

    def _vertex_name(self, instruction: ins.Instruction) -> str:
        stage, graph = self.stage, self.build.graph
        total = sum(self._is_shown(each) for each in (stage.from_, *stage.instructions))
        label = stage.name or (f"stage-{stage.index}" if len(graph.stages) > 1 else "")
        platform = self.build.request.platform if len(self.build.request.platforms) > 1 else ""
        words = [word for word in (platform, label, f"{self._shown}/{total}") if word]
        text = f"FROM {stage.base}" if isinstance(instruction, ins.From) else instruction.text
        return f"[{' '.join(words)}] {text}"

    async def _announce(self, text: str) -> None:
        await self.voice.text(f"Step {self._number}/{self.build.total_steps} : {text}")
        await self.voice.text("\n")
        self._number += 1

    def _short(self) -> str:
        return self.build.short_id(self.state)

    async def _triggers(self) -> None:
        """ONBUILD instructions of the base image, once."""
        triggers = self.container.on_build or []
        if not triggers:
            return
        self.state = msgspec.structs.replace(self.state, config=msgspec.structs.replace(self.container, on_build=None))
        for text in (f"# Executing {len(triggers)} build trigger", *("s" for _ in triggers[1:2]), "\n"):
            await self.voice.text(text)
        self._in_triggers = True
        for text in triggers:
            await self._step(parse_trigger(text))
        self._in_triggers = False
        await self.voice.text(f" ---> {self._short()}\n")

    async def _step(self, instruction: ins.Instruction) -> None:
        try:
            if isinstance(instruction, ins.Run):
                await run_step(self, instruction)
            elif isinstance(instruction, ins.Copy):
                await copy_step(self, instruction)
            elif isinstance(instruction, ins.Workdir):
                await self._workdir(instruction)
            elif isinstance(instruction, ins.Arg):
                await self._arg(instruction)
            else:
                await self._note_override(instruction)
                change = configure.change(instruction, self.container, self.words, own_command=self._own_command)
                self._own_command = self._own_command or isinstance(instruction, ins.Cmd)
                if isinstance(instruction, ins.Env):
                    self._above_env.difference_update(self.words.one(name) for name, _ in instruction.pairs)
                await self.config_step(change.config, change.comment, change.author)
        except DockerfileError:
            raise
        except InvalidArgument as error:
            raise self.located(instruction, str(error)) from None

    async def _note_override(self, instruction: ins.Instruction) -> None:
        if isinstance(instruction, ins.Healthcheck) and self.container.healthcheck is not None:
            before = " ".join(self.container.healthcheck.test or ())
            await self.voice.text(f"Note: overriding previous HEALTHCHECK: [{before}]\n")

    def located(self, instruction: ins.Instruction, message: str) -> DockerfileError:
        """An error at an instruction, told without the prefix of syntax errors."""
        error = DockerfileError(message, name=self.build.graph.dockerfile.name, line=instruction.line, source=instruction.text)
        error.args = (message,)
        return error

    async def _labels(self) -> None:
        """The request's labels, as if they were instructions at the end."""
        for name, value in sorted(self.build.request.labels.items()):
            await self._announce(f"LABEL {name}={value}")
            labels = {**(self.container.labels or {}), name: value}
            await self.config_step(msgspec.structs.replace(self.container, labels=labels), f"LABEL {name}={value}")

    async def _arg(self, instruction: ins.Arg) -> None:
        shown = []
        for raw_name, raw_default in instruction.pairs:
            name = self.words.one(raw_name)
            default = None if raw_default is None else self._default(name, raw_default)
            shown.append(name if default is None else f"{name}={default}")
            value = self._argument(name, default)
            if value is not None:
                self._above_env.add(name)
            self.args[name] = self.args.get(name) if value is None else value
            self.build.consumed.add(name)
        await self.config_step(self.container, "ARG " + " ".join(shown))

    def _default(self, name: str, word: str) -> str:
        """The default with its variables expanded. It may demand some (``${A:?}``), but not where a value was given."""
        try:
            return self.words.one(word)
        except InvalidArgument:
            if name in self.build.request.build_args:
                return word
            raise

    def _argument(self, name: str, default: str | None) -> str | None:
        given = self.build.request.build_args
        if name in given:
            return given[name]
        if default is not None:
            return default
        graph = self.build.graph
        return graph.global_args.get(name, graph.platform_args.get(name))

    async def _workdir(self, instruction: ins.Workdir) -> None:
        path, told = configure.working_directory(instruction, self.container, self.words)
        keys = [key_of("workdir", self.state_key(), path)]
        request = self.build.request
        config = msgspec.structs.replace(self.container, working_dir=path)

        def make() -> Layer | None:
            with self.root() as root:
                user = self.container.user
                chunks = copying.directory(root, path, self.build.now_ns, request.epoch_ns, lambda: _owner(root, user))
                return None if chunks is None else store_layer(self.build.layers, chunks, self.build.pins.hold)

        async def made() -> Made:
            await self.pretend_run()
            return await self.build.in_thread(make), ""

        created_by = configure.nop(self.container, f"WORKDIR {told}", space=False)
        await self.layer_step(keys, lambda _: created_by, made, config, ran=True, line=created_by)

    # -- steps --------------------------------------------------------------------------------------------------------------------------

    async def config_step(self, config: ContainerConfig, comment: str, author: str | None = None) -> None:
        """A step that changes only the config."""
        created_by = configure.nop(config, comment)

        async def made() -> Made:
            await self.pretend_run()
            return None, ""

        if author is not None:
            self.state = msgspec.structs.replace(self.state, author=author)
        keys = [key_of("config", self.state_key(), created_by)]
        await self.layer_step(keys, lambda _: created_by, made, config, ran=True, line=created_by)

    async def output(self, data: bytes, error: bool) -> None:
        """What a command writes; its standard error in red, as Docker's builder shows it."""
        if self.voice.vertex is not None:
            await self.voice.vertex.log(data, 2 if error else 1)
            return
        text = data.decode("utf-8", "replace")
        await self.voice.text(f"\x1b[91m{text}\x1b[0m" if error else text)

    async def pretend_run(self) -> None:
        """Docker's builder makes a container for every step, and says so."""
        self.fake_id = self.build.fake_id()
        await self.voice.text(f" ---> Running in {self.fake_id}\n")

    async def layer_step(
        self,
        keys: Sequence[str],
        created_by: Callable[[str], str],
        make: Callable[[], Awaitable[Made]],
        config: ContainerConfig | None = None,
        *,
        ran: bool = False,
        line: str = "",
    ) -> None:
        """A step whose result is a layer, found by one of ``keys`` or made; ``created_by`` turns its note into the history line.

        ``line`` is that line when it says all about the step: then it may be found in another image's history as well.
        """
        build = self.build
        async with build.exclusively(keys[-1]):
            record = None if self.uncached() else await self._cached(keys, line)
            if record is not None:
                layer = self._layer(record)
                build.cache.used(keys, record)
                if self.voice.vertex is not None:
                    self.voice.vertex.cached = True
                await self.voice.text(" ---> Using cache\n")
            else:
                layer, note = await make()
                record = CacheRecord(
                    build.now_text(),
                    str(layer.diff_id) if layer is not None and layer.entries else "",
                    created_by(note),
                    layer.size if layer is not None else 0,
                    note=note,
                )
                build.cache.put(keys, record)
                if ran and build.request.remove:
                    await self.voice.text(f"Removing intermediate container {self.fake_id}\n")
        build.note_step(self.stage.index, keys, record)
        step = Step(record.created, created_by(record.note), self.state.author or "")
        self.state = child_config(self.state, layer, config if config is not None else self.container, step)
        if not self._in_triggers:
            await self.voice.text(f" ---> {self._short()}\n")

    def uncached(self) -> bool:
        """Whether the cache is not to be asked for this stage."""
        request = self.build.request
        return request.no_cache or bool({self.stage.name, str(self.stage.index)} & request.no_cache_filter)

    async def _cached(self, keys: Sequence[str], line: str) -> CacheRecord | None:
        """A record whose layer is there, and stays there: of the own cache, or of one that was imported."""
        record = self.build.cache.find(keys)
        digest = None if record is None else digest_of(record)
        if digest is not None:
            self.build.pins.hold(digest)
            if not self.build.layers.has(digest):
                record = None
        if record is None:
            record = await self.build.imports.find(keys, self.state, line)
            if record is not None:
                self.build.cache.put(keys, record)
        return record

    def _layer(self, record: CacheRecord) -> Layer | None:
        digest = digest_of(record)
        return None if digest is None else self.build.layers.get(digest)

    def run_environment(self) -> tuple[list[str], list[str]]:
        """What a RUN gets from build arguments: those that are declared and no later ENV overrides, sorted, and the predefined ones."""
        env = {entry.partition("=")[0] for entry in self.container.env or ()} - self._above_env
        declared = sorted(f"{name}={value}" for name, value in self.args.items() if value is not None and name not in env)
        given = self.build.request.build_args
        proxies = {each: given[name] for name in given if name in PREDEFINED for each in (name.lower(), name.upper())}
        proxies |= {name: given[name] for name in given if name in PREDEFINED}
        silent = sorted(f"{name}={value}" for name, value in proxies.items() if name not in self.args and name not in env)
        return declared, silent

    def own_environment(self) -> list[str]:
        """What a RUN gets from ENV."""
        return [entry for entry in self.container.env or () if entry.partition("=")[0] not in self._above_env]
