"""From instructions to a graph of stages: which there are, what each builds on, and which a target needs.

A stage depends on the stage that its FROM names, on those that its COPY --from name, and on those that its RUN --mount from= name.
Only earlier stages can be named, so there is no cycle; what is no earlier stage's name or number is an image or a named context.
"""

from __future__ import annotations

import json
import os
import platform as machine
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from tare.builder import instructions as ins
from tare.builder.errors import DockerfileError
from tare.builder.expand import expand
from tare.errors import InvalidArgument

SCRATCH = "scratch"
PREDEFINED = frozenset(
    name for base in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY") for name in (base, base.lower())
)
"""Build arguments that need no ARG, and stay out of history and cache."""
_EARLIER = "a stage can only take from those before it"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@dataclass(frozen=True, slots=True)
class Stage:
    """One FROM and what follows it."""

    index: int
    name: str
    base: str
    """An image's reference, ``scratch``, or "" when it builds on another stage."""
    base_stage: int | None
    platform: str
    from_: ins.From
    instructions: tuple[ins.Instruction, ...]
    depends_on: frozenset[int]
    """Indexes of the stages that must be built before."""


@dataclass(frozen=True, slots=True)
class BuildGraph:
    """The stages that a build needs, in the file's order, the target last of all."""

    dockerfile: ins.Dockerfile
    stages: tuple[Stage, ...]
    target: Stage
    global_args: dict[str, str]
    """ARGs before the first FROM with their values: a stage sees one only when it declares it."""
    platform_args: dict[str, str]
    """TARGETPLATFORM and its like: likewise."""
    named: dict[str, int] = field(default_factory=dict)
    """Index of a stage by its name in lower case."""
    every: tuple[Stage, ...] = ()
    """All stages by index: the ONBUILD of a base image may ask for one that the file itself does not need."""

    def stage_of(self, reference: str, before: int) -> int | None:
        """The index of the stage that ``--from=reference`` means in stage ``before``; None when it is an image or a context."""
        return _find(reference, before, self.named)


def plan(dockerfile: ins.Dockerfile, build_args: Mapping[str, str] | None = None, target: str = "", platform: str = "") -> BuildGraph:
    """The graph for a target (a stage's name or number; the last stage by default). ``DockerfileError`` says what does not fit."""
    given = dict(build_args or {})
    platforms = platform_arguments(platform)
    platforms["TARGETSTAGE"] = target or _last_name(dockerfile) or "default"
    platforms |= {name: value for name, value in given.items() if name in platforms}
    args: dict[str, str] = {}
    stages: list[Stage] = []
    named: dict[str, int] = {}
    later = {each.name for each in dockerfile.instructions if isinstance(each, ins.From) and each.name}
    body: list[ins.Instruction] = []
    opened: ins.From | None = None
    problems: dict[int, DockerfileError] = {}
    """What is wrong with a stage only if it is needed."""
    for instruction in (*dockerfile.instructions, None):
        if opened is None and isinstance(instruction, ins.Arg):
            _global_args(dockerfile, instruction, given, platforms, args)
            continue
        if not isinstance(instruction, ins.From) and instruction is not None:
            body.append(instruction)
            continue
        if opened is not None:
            stage = _stage(dockerfile, opened, body, len(stages), named, later, {**platforms, **args}, platform, problems)
            stages.append(stage)
            if stage.name:
                named[stage.name] = stage.index
        opened, body = instruction, []
    chosen = _target(dockerfile, stages, target)
    needed = _needed(stages, chosen)
    if problem := next((problems[index] for index in sorted(needed & set(problems))), None):
        raise problem
    kept = tuple(stage for stage in stages if stage.index in needed)
    names = {stage.name: stage.index for stage in stages if stage.name}
    return BuildGraph(dockerfile, kept, stages[chosen], args, platforms, names, tuple(stages))


def platform_arguments(target: str) -> dict[str, str]:
    """The predefined platform arguments, for the target platform ``os/arch[/variant]`` (this machine's when empty)."""
    build = f"linux/{_ARCHITECTURES.get(machine.machine(), machine.machine())}"
    values: dict[str, str] = {}
    for prefix, text in (("BUILD", build), ("TARGET", target or build)):
        system, _, rest = text.partition("/")
        architecture, _, variant = rest.partition("/")
        values |= {
            f"{prefix}PLATFORM": text,
            f"{prefix}OS": system,
            f"{prefix}OSVERSION": "",
            f"{prefix}ARCH": architecture,
            f"{prefix}VARIANT": variant,
        }
    return values


def _last_name(dockerfile: ins.Dockerfile) -> str:
    return next((each.name for each in reversed(dockerfile.instructions) if isinstance(each, ins.From)), "")


def _global_args(
    dockerfile: ins.Dockerfile, instruction: ins.Arg, given: Mapping[str, str], platforms: Mapping[str, str], args: dict[str, str]
) -> None:
    for raw_name, default in instruction.pairs:
        name = _expanded(dockerfile, instruction, raw_name, args)
        if name in given:
            args[name] = given[name]
        elif default is not None:  # looked at only then: it may demand another
            args[name] = _expanded(dockerfile, instruction, default, {**platforms, **args})


def _stage(
    dockerfile: ins.Dockerfile,
    opened: ins.From,
    body: list[ins.Instruction],
    index: int,
    named: Mapping[str, int],
    every: Set[str],
    args: Mapping[str, str],
    platform: str,
    problems: dict[int, DockerfileError],
) -> Stage:
    base = _expanded(dockerfile, opened, opened.image, args)
    if not base:
        raise _error(dockerfile, opened, f"base name ({opened.image}) should not be blank", "give its ARG a default, or pass --build-arg")
    base_stage = named.get(base.lower())
    depends = set() if base_stage is None else {base_stage}
    for instruction in body:
        for reference in references(instruction):
            found = _find(reference, index, named)
            if found is not None:
                depends.add(found)
            elif isinstance(instruction, ins.Copy) and reference.isdecimal():
                message = f"invalid from flag value {reference}: invalid stage index {reference}"
                hint = "stages are counted from 0, and only earlier ones can be named"
                problems.setdefault(index, _error(dockerfile, instruction, message, hint))
            elif opened.name and reference.lower() == opened.name:
                raise _error(dockerfile, instruction, f"circular dependency detected on stage: {opened.name}", _EARLIER)
            elif reference.lower() in every:
                own = opened.name or str(index)
                message = f'cannot copy from stage "{reference}", it needs to be defined before current stage "{own}"'
                problems.setdefault(index, _error(dockerfile, instruction, message, _EARLIER))
    return Stage(
        index,
        opened.name,
        "" if base_stage is not None else SCRATCH if base.lower() == SCRATCH else base,
        base_stage,
        _expanded(dockerfile, opened, opened.platform, args) or platform,
        opened,
        tuple(body),
        frozenset(depends),
    )


def references(instruction: ins.Instruction) -> list[str]:
    """What an instruction takes files from: stages, images or named contexts."""
    if isinstance(instruction, ins.Onbuild):
        return []
    if isinstance(instruction, ins.Copy):
        return [instruction.from_] if instruction.from_ else []
    if isinstance(instruction, ins.Run):
        return [mount.from_ for mount in instruction.mounts if mount.from_]
    return []


def _find(reference: str, before: int, named: Mapping[str, int]) -> int | None:
    if reference.isdecimal():
        return int(reference) if int(reference) < before else None
    found = named.get(reference.lower())
    return found if found is not None and found < before else None


def _target(dockerfile: ins.Dockerfile, stages: list[Stage], target: str) -> int:
    if not target:
        return len(stages) - 1
    for stage in reversed(stages):
        if stage.name == target.lower():
            return stage.index
    if target.isdecimal() and int(target) < len(stages):
        return int(target)
    names = ", ".join(stage.name for stage in stages if stage.name) or "none"
    raise DockerfileError(f'target stage "{target}" could not be found', name=dockerfile.name, hint=f"named stages: {names}")


def _needed(stages: list[Stage], target: int) -> set[int]:
    needed: set[int] = set()
    waiting = [target]
    while waiting:
        index = waiting.pop()
        if index not in needed:
            needed.add(index)
            waiting.extend(stages[index].depends_on)
    return needed


def _expanded(dockerfile: ins.Dockerfile, instruction: ins.Instruction, word: str, values: Mapping[str, str]) -> str:
    try:
        return expand(word, values.get, dockerfile.escape)
    except InvalidArgument as error:
        raise _error(dockerfile, instruction, f"failed to process {json.dumps(word, ensure_ascii=False)}: {error}") from None


def _error(dockerfile: ins.Dockerfile, instruction: ins.Instruction, message: str, hint: str = "") -> DockerfileError:
    return DockerfileError(message, name=os.path.basename(dockerfile.name), line=instruction.line, source=instruction.text, hint=hint)
