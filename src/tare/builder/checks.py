"""``build --check``: what BuildKit's checks would say of a Dockerfile. Pure but for two questions, which the caller answers.

The parser finds some already (empty continuation lines, the old form of ENV); the rest is looked for here, on the instructions and on the
text that they come from. ``# check=skip=RULE,…;error=true;experimental=RULE`` in the file, or the build argument
``BUILDKIT_DOCKERFILE_CHECK``, say which count, and whether they end the build.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tare.builder import instructions as ins
from tare.builder.checkrules import RULES
from tare.builder.errors import DockerfileError
from tare.builder.expand import expand, names_used
from tare.builder.ignore import Patterns
from tare.builder.stages import PREDEFINED, platform_arguments
from tare.errors import InvalidArgument
from tare.oci.platform import Platform
from tare.oci.reference import Reference

ARGUMENT = "BUILDKIT_DOCKERFILE_CHECK"
_SECRET = re.compile(r"(?i)(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)")
_PUBLIC = re.compile(r"(?i)(?:_|^)(?:public)(?:_|$)")
_RESERVED = ("context", "scratch")
_ONCE = (ins.Cmd, ins.Entrypoint, ins.Healthcheck)
_KNOWN = frozenset({"BUILDKIT_INLINE_CACHE", "BUILDKIT_SYNTAX", "SOURCE_DATE_EPOCH", "BUILDKIT_CONTEXT_KEEP_GIT_DIR", ARGUMENT})
_DOCUMENT = re.compile(r"<<-?[^<\s]+")
BaseEnv = Callable[[str], "Sequence[str] | None"]
"""The environment of a base image by its name; None when it is not known."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found."""

    rule: str
    detail: str
    line: int
    end: int


@dataclass(frozen=True)
class Settings:
    """Which checks count."""

    skip: frozenset[str] = frozenset()
    skip_all: bool = False
    experimental: frozenset[str] = frozenset()
    error: bool = False

    @classmethod
    def parse(cls, text: str) -> Settings:
        """The value of the ``check`` directive. ``InvalidArgument`` when it is malformed."""
        values: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in text.split(";"))):
            name, equals, value = part.partition("=")
            if not equals:
                raise InvalidArgument(f"invalid check option {part!r}: skip=…, error=true or experimental=… is expected")
            values[name.strip()] = value.strip()
        unknown = sorted(set(values) - {"skip", "error", "experimental"})
        if unknown:
            raise InvalidArgument(f"invalid check option {unknown[0]!r}: skip, error or experimental is expected")
        if values.get("error", "false").lower() not in ("true", "false", "1", "0"):
            raise InvalidArgument(f"failed to parse check option {values['error']!r}: true or false is expected")
        skip, experimental = (frozenset(filter(None, map(str.strip, values.get(name, "").split(",")))) for name in ("skip", "experimental"))
        return cls(skip, "all" in skip, experimental, values.get("error", "false").lower() in ("true", "1"))

    def counts(self, name: str) -> bool:
        rule = RULES[name]
        if rule.experimental:
            return bool({"all", name} & self.experimental)
        return not self.skip_all and name not in self.skip


def settings_of(dockerfile: ins.Dockerfile, build_args: Mapping[str, str]) -> Settings:
    """The build argument wins over the directive."""
    return Settings.parse(build_args.get(ARGUMENT, "") or dockerfile.directives.get("check", ""))


def check(
    dockerfile: ins.Dockerfile,
    text: str,
    build_args: Mapping[str, str],
    base_env: BaseEnv = lambda name: None,
    ignored: Patterns | None = None,
) -> list[Finding]:
    """All findings that count, in the order of the lines."""
    work = _Checks(dockerfile, text.splitlines(), build_args, base_env, ignored)
    settings = settings_of(dockerfile, build_args)
    found = [finding for finding in work.run() if settings.counts(finding.rule)]
    return sorted(found, key=lambda finding: (finding.line, finding.end))


def base_platform(
    dockerfile: ins.Dockerfile, build_args: Mapping[str, str], from_: ins.From, image: str, actual: Platform, expected: Platform
) -> Finding | None:
    """What can only be said when the base image is here: that it is for another machine."""
    rule = "InvalidBaseImagePlatform"
    if (actual.os, actual.architecture) == (expected.os, expected.architecture) or not settings_of(dockerfile, build_args).counts(rule):
        return None
    return Finding(rule, RULES[rule].format.format(image, actual, expected), from_.line, from_.end)


def violation(findings: Sequence[Finding], dockerfile: ins.Dockerfile) -> DockerfileError:
    """What ends a build whose checks are errors."""
    names = ", ".join(sorted({finding.rule for finding in findings}))
    return DockerfileError(f"lint violation found for rules: {names}", name=dockerfile.name)


@dataclass
class _Scope:
    """One stage as far as it was read."""

    env: set[str]
    """Variables that are set."""
    known: bool
    """Whether ``env`` is all there is: a base image that nobody has seen may set others."""
    workdir: bool = False
    shell: bool = False
    used: dict[type[ins.Instruction], ins.Instruction] = field(default_factory=dict)


class _Checks:
    def __init__(
        self, dockerfile: ins.Dockerfile, lines: list[str], build_args: Mapping[str, str], base_env: BaseEnv, ignored: Patterns | None
    ) -> None:
        self._dockerfile = dockerfile
        self._lines = lines
        self._args = build_args
        self._base_env = base_env
        self._ignored = ignored
        self._found: list[Finding] = []
        self._platforms = platform_arguments("")
        self._global: dict[str, str] = {}
        self._defaults: dict[str, str] = {}
        self._scopes: dict[str, _Scope] = {}

    def _report(self, rule: str, instruction: ins.Instruction, *values: str) -> None:
        self._found.append(Finding(rule, RULES[rule].format.format(*values), instruction.line, instruction.end))

    def run(self) -> list[Finding]:
        for warning in self._dockerfile.warnings:
            if warning.rule in ("NoEmptyContinuation", "LegacyKeyValueFormat"):
                self._found.append(Finding(warning.rule, warning.message, warning.line, warning.line))
        self._casing()
        scope: _Scope | None = None
        for instruction in self._dockerfile.instructions:
            self._description(instruction)
            if isinstance(instruction, ins.From):
                scope = self._from(instruction)
            elif scope is None and isinstance(instruction, ins.Arg):
                self._global_arg(instruction)
            elif scope is not None:
                self._instruction(instruction, scope)
        return self._found

    # -- the text -----------------------------------------------------------------------------------------------------------------------

    def _casing(self) -> None:
        words = [(each, each.text.split(None, 1)[0]) for each in self._dockerfile.instructions]
        upper, lower = sum(word.isupper() for _, word in words), sum(word.islower() for _, word in words)
        majority = "uppercase" if upper >= lower else "lowercase"
        for instruction, word in words:
            if not (word.isupper() if majority == "uppercase" else word.islower()):
                self._report("ConsistentInstructionCasing", instruction, word, majority)

    def _description(self, instruction: ins.Instruction) -> None:
        """A comment right above a stage or argument begins with its name."""
        names = [instruction.name] if isinstance(instruction, ins.From) and instruction.name else []
        if isinstance(instruction, ins.Arg):
            names = [name for name, _ in instruction.pairs]
        above = self._lines[instruction.line - 2].strip() if 1 < instruction.line <= len(self._lines) + 1 else ""
        if not names or not above.startswith("#") or re.match(r"#\s*(syntax|escape|check)\s*=", above):
            return
        comment = above.lstrip("#").strip()
        if comment and not any(comment.lower().startswith(f"{name.lower()} ") for name in names):
            self._report("InvalidDefinitionDescription", instruction, instruction.keyword, names[0])

    # -- before and in FROM -------------------------------------------------------------------------------------------------------------

    def _global_arg(self, instruction: ins.Arg) -> None:
        for name, default in instruction.pairs:
            self._secret(instruction, name)
            value = None if default is None else _expanded(default, {**self._platforms, **self._defaults})
            if value is not None:
                self._defaults[name] = value
            if name in self._args or value is not None:
                self._global[name] = self._args.get(name, value or "")
            else:
                self._global.setdefault(name, "")

    def _from(self, instruction: ins.From) -> _Scope:
        self._keyword_as(instruction)
        self._stage_name(instruction)
        self._platform(instruction)
        declared = {**self._platforms, **self._global}
        for word in (instruction.image, instruction.platform):
            for name in sorted(names_used(word, self._dockerfile.escape) - set(declared) - _KNOWN):
                self._report("UndefinedArgInFrom", instruction, name, _suggestion(name, declared))
        base = _expanded(instruction.image, declared)
        used = names_used(instruction.image, self._dockerfile.escape) & set(self._global)
        if used and not _is_name(_expanded(instruction.image, {**self._platforms, **self._defaults})):
            self._report("InvalidDefaultArgInFrom", instruction, instruction.image)
        scope = self._begun(base)
        if instruction.name:
            self._scopes[instruction.name] = scope
        self._scopes[str(sum(isinstance(each, ins.From) and each.line < instruction.line for each in self._dockerfile.instructions))] = (
            scope
        )
        return scope

    def _begun(self, base: str) -> _Scope:
        parent = self._scopes.get(base.lower())
        if parent is not None:
            return _Scope(set(parent.env), parent.known, parent.workdir, parent.shell)
        env = () if base == "scratch" else self._base_env(base)
        return _Scope({entry.partition("=")[0] for entry in env or ()} | {"PATH"}, env is not None)

    def _keyword_as(self, instruction: ins.From) -> None:
        words = instruction.text.split()
        found = next((word for word in words[2:] if word.lower() == "as"), "")
        if found and found.isupper() != words[0].isupper():
            self._report("FromAsCasing", instruction, found, words[0])

    def _stage_name(self, instruction: ins.From) -> None:
        if not instruction.name:
            return
        written = instruction.text.split()[-1]
        if written != written.lower():
            self._report("StageNameCasing", instruction, written)
        if instruction.name in self._scopes:
            self._report("DuplicateStageName", instruction, instruction.name)
        if instruction.name in _RESERVED:
            self._report("ReservedStageName", instruction, instruction.name)

    def _platform(self, instruction: ins.From) -> None:
        platform = instruction.platform
        if platform in ("$TARGETPLATFORM", "${TARGETPLATFORM}"):
            self._report("RedundantTargetPlatform", instruction, platform)
        elif platform and "$" not in platform:
            parts = platform.split("/")
            if not any(part and part in instruction.name for part in parts[1:] or parts):
                self._report("FromPlatformFlagConstDisallowed", instruction, platform)

    # -- in a stage ---------------------------------------------------------------------------------------------------------------------

    def _instruction(self, instruction: ins.Instruction, scope: _Scope) -> None:
        self._variables(instruction, scope)
        if isinstance(instruction, ins.Arg | ins.Env):
            for name, _ in instruction.pairs:
                self._secret(instruction, name)
            scope.env.update(name for name, _ in instruction.pairs)
        elif isinstance(instruction, ins.Workdir):
            self._workdir(instruction, scope)
        elif isinstance(instruction, ins.Maintainer):
            self._report("MaintainerDeprecated", instruction)
        elif isinstance(instruction, ins.Shell):
            scope.shell = True
        elif isinstance(instruction, ins.Expose):
            self._expose(instruction)
        elif isinstance(instruction, ins.Copy):
            self._copy(instruction, scope)
        if (
            isinstance(instruction, ins.Cmd | ins.Entrypoint)
            and instruction.command.shell
            and instruction.command.words
            and not scope.shell
        ):
            self._report("JSONArgsRecommended", instruction, instruction.keyword)
        if isinstance(instruction, _ONCE):
            before = scope.used.get(type(instruction))
            if before is not None:
                self._report("MultipleInstructionsDisallowed", before, instruction.keyword)
            scope.used[type(instruction)] = instruction

    def _secret(self, instruction: ins.Instruction, name: str) -> None:
        if _SECRET.search(name) and not _PUBLIC.search(name):
            self._report("SecretsUsedInArgOrEnv", instruction, instruction.keyword, name)

    def _workdir(self, instruction: ins.Workdir, scope: _Scope) -> None:
        if instruction.path.startswith(("/", "$")):
            scope.workdir = True
        elif not scope.workdir:
            self._report("WorkdirRelativePath", instruction, instruction.path)
            scope.workdir = True  # said once

    def _expose(self, instruction: ins.Expose) -> None:
        for port in instruction.ports:
            _, slash, protocol = port.partition("/")
            if slash and "$" not in protocol and protocol != protocol.lower():
                self._report("ExposeProtoCasing", instruction, port)
            if ":" in re.sub(r"\$\{[^}]*\}", "", port):
                self._report("ExposeInvalidFormat", instruction, port)

    def _copy(self, instruction: ins.Copy, scope: _Scope) -> None:
        if self._ignored is None or instruction.from_:
            return
        for source in instruction.sources:
            if "$" in source or "://" in source or source.startswith("git@"):
                continue
            path = source.strip("/").removeprefix("./")
            if path and path != "." and self._ignored.excluded(path):
                self._report("CopyIgnoredFile", instruction, instruction.keyword.capitalize(), source)

    def _variables(self, instruction: ins.Instruction, scope: _Scope) -> None:
        if not scope.known:
            return
        reported: set[str] = set()
        words = [(word, False) for word in _expandable(instruction)]
        if isinstance(instruction, ins.Copy):
            words += [(document.content, True) for document in instruction.heredocs if document.expand]
        own = {name for name, _ in instruction.pairs} if isinstance(instruction, ins.Arg) else set()
        """Those of one ARG are declared one after the other."""
        for word, document in words:
            for name in sorted(
                names_used(word, self._dockerfile.escape, document=document) - scope.env - own - reported - PREDEFINED - _KNOWN
            ):
                if re.search(rf"\$\{{{re.escape(name)}:?[-+?]", word):
                    continue  # it says itself what becomes of it when it is not set
                reported.add(name)
                self._report("UndefinedVar", instruction, name, _suggestion(name, scope.env, "$"))


def _expandable(instruction: ins.Instruction) -> Iterator[str]:
    """The words in which the builder expands variables."""
    if isinstance(instruction, ins.Copy):
        yield from (word for word in instruction.sources if not _DOCUMENT.fullmatch(word))
        yield from (instruction.destination, instruction.chown, instruction.chmod)
        yield from (instruction.checksum,) if isinstance(instruction, ins.Add) else ()
    elif isinstance(instruction, ins.Run):
        yield from (mount.text for mount in instruction.mounts)
    elif isinstance(instruction, ins.Env | ins.Label):
        yield from (word for pair in instruction.pairs for word in pair)
    elif isinstance(instruction, ins.Arg):
        yield from (default for _, default in instruction.pairs if default)
    elif isinstance(instruction, ins.Expose):
        yield from instruction.ports
    elif isinstance(instruction, ins.Volume):
        yield from instruction.paths
    elif isinstance(instruction, ins.Workdir):
        yield instruction.path
    elif isinstance(instruction, ins.User):
        yield instruction.user
    elif isinstance(instruction, ins.StopSignal):
        yield instruction.signal


def _expanded(word: str, values: Mapping[str, str]) -> str:
    try:
        return expand(word, values.get)
    except InvalidArgument:
        return ""


def _is_name(text: str) -> bool:
    try:
        Reference.parse(text)
    except InvalidArgument:
        return False
    return True


def _suggestion(name: str, known: Mapping[str, str] | set[str], sign: str = "") -> str:
    near = difflib.get_close_matches(name, sorted(known), 1, 0.7)
    return f" (did you mean {sign}{near[0]}?)" if near else ""
