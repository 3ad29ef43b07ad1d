"""From a Dockerfile's bytes to typed instructions. Pure: no file is opened, nothing is expanded.

The grammar is that of Docker's own front end, error texts included, whatever ``# syntax=`` asks for: an image that would
parse the file is never pulled. Parsing and checking a file tells nothing about stages; see ``stages`` for that.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from typing import Any

from tare.builder import instructions as ins
from tare.builder.errors import DockerfileError
from tare.builder.flags import FLAGS, parse_device, parse_flags, parse_mount, split_flags
from tare.builder.source import Line, Source, raw_words
from tare.errors import InvalidArgument

_STAGE_NAME = re.compile(r"[a-z][a-z0-9._-]*")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000, "h": 3_600_000_000_000}
_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character, as a JSON escape: what Go puts in its place is not half a character."""
_HEREDOC_WORD = re.compile(r"\d*<<-?[^<\s]+")


def parse(data: bytes, name: str = "Dockerfile") -> ins.Dockerfile:
    """Parse a whole file. ``DockerfileError`` names file, line and remedy."""
    source = Source(data, name)
    parser = _Parser(source)
    found = tuple(parser.instruction(line) for line in source.logical_lines())
    if not found:
        raise DockerfileError("file with no instructions", name=name, hint="a Dockerfile begins with FROM")
    first = next((one for one in found if not isinstance(one, ins.Arg)), None)
    if not isinstance(first, ins.From):
        line = first.line if first is not None else found[-1].line
        raise source.fail("no build stage in current context", line, "only ARG may come before the first FROM")
    return ins.Dockerfile(name, source.directives, found, tuple(source.warnings))


def parse_trigger(text: str) -> ins.Instruction:
    """One instruction, as an image keeps it for ONBUILD."""
    source = Source(text.encode(), "ONBUILD")
    lines = source.logical_lines()
    if len(lines) != 1:
        raise DockerfileError(f"an ONBUILD trigger is one instruction, not {text!r}", name="ONBUILD")
    return _Parser(source).instruction(lines[0])


class _Parser:
    """Makes one instruction of one logical line."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._escape = source.escape
        self._line = Line(0, 0, "", ())
        self._keyword = ""
        self._flags: dict[str, Any] = {}

    def instruction(self, line: Line) -> ins.Instruction:
        """``DockerfileError`` has the line and its source."""
        self._line = line
        try:
            return self._parse(line.text)
        except InvalidArgument as error:
            if isinstance(error, DockerfileError):
                raise
            raise self._source.fail(str(error), line.line, _hint(str(error), self._keyword), line.end) from None

    def _parse(self, text: str) -> ins.Instruction:
        keyword, _, rest = _partition(text)
        self._keyword = keyword.upper()
        make: Callable[[str], ins.Instruction] | None = getattr(self, f"_make_{self._keyword.lower()}", None)
        if make is None or not self._keyword.isalpha():
            near = difflib.get_close_matches(self._keyword, KEYWORDS, 1)
            raise InvalidArgument(f"unknown instruction: {keyword}" + (f" (did you mean {near[0]}?)" if near else ""))
        if self._keyword == "ONBUILD":
            return make(rest.strip())
        words, rest = split_flags(rest, self._escape)
        self._flags = parse_flags(self._keyword, words)
        return make(rest.strip())

    def _base(self) -> dict[str, Any]:
        return {"line": self._line.line, "end": self._line.end, "text": self._line.text}

    # One method for each instruction

    def _make_from(self, rest: str) -> ins.Instruction:
        words = rest.split()
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
            raise InvalidArgument("FROM requires either one or three arguments")
        name = words[2].lower() if len(words) == 3 else ""
        if name and not _STAGE_NAME.fullmatch(name):
            raise InvalidArgument(f'invalid name for build stage: "{words[2]}", name can\'t start with a number or contain symbols')
        return ins.From(**self._base(), image=words[0], platform=self._flags.get("platform", ""), name=name)

    def _make_run(self, rest: str) -> ins.Instruction:
        network, security = self._flags.get("network", "default"), self._flags.get("security", "sandbox")
        if network not in ("default", "none", "host"):
            raise InvalidArgument(f"unsupported network mode {network!r} (one of default, none, host)")
        if security not in ("sandbox", "insecure"):
            raise InvalidArgument(f"unsupported security mode {security!r} (one of sandbox, insecure)")
        mounts = tuple(parse_mount(text) for text in self._flags.get("mount", ()))
        command = self._command(rest)
        if not command.words or not any(command.words):
            raise InvalidArgument("RUN requires at least one argument")
        devices = tuple(parse_device(text) for text in self._flags.get("device", ()))
        return ins.Run(**self._base(), command=command, mounts=mounts, network=network, security=security, devices=devices)

    def _make_copy(self, rest: str) -> ins.Instruction:
        if "$" in self._flags.get("from", ""):
            raise InvalidArgument(
                "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround"
            )
        return ins.Copy(**self._base(), **self._copied(rest), from_=self._flags.get("from", ""), parents=self._flags.get("parents", False))

    def _make_add(self, rest: str) -> ins.Instruction:
        flags = self._flags
        copied = self._copied(rest)
        if flags.get("checksum") and len(copied["sources"]) + len(copied["heredocs"]) != 1:
            raise InvalidArgument("checksum can't be specified for multiple sources")
        return ins.Add(
            **self._base(),
            **copied,
            checksum=flags.get("checksum", ""),
            keep_git_dir=flags.get("keep-git-dir", False),
            unpack=flags.get("unpack"),
        )

    def _copied(self, rest: str) -> dict[str, Any]:
        words = self._list(rest)
        if not words:
            raise InvalidArgument(f"{self._keyword} requires at least two arguments")
        if len(words) == 1:
            raise InvalidArgument(
                f"{self._keyword} requires at least two arguments, but only one was provided. Destination could not be determined"
            )
        if self._line.heredocs and _HEREDOC_WORD.fullmatch(words[-1]):
            raise InvalidArgument(f"{self._keyword} cannot accept a heredoc as a destination")
        sources = words[:-1]
        if self._line.heredocs:
            sources = [word for word in sources if not _HEREDOC_WORD.fullmatch(word)]
        flags = self._flags
        return {
            "sources": tuple(sources),
            "destination": words[-1],
            "chown": flags.get("chown", ""),
            "chmod": flags.get("chmod", ""),
            "link": flags.get("link", False),
            "exclude": tuple(flags.get("exclude", ())),
            "heredocs": self._line.heredocs,
        }

    def _make_cmd(self, rest: str) -> ins.Instruction:
        return ins.Cmd(**self._base(), command=self._command(rest))

    def _make_entrypoint(self, rest: str) -> ins.Instruction:
        return ins.Entrypoint(**self._base(), command=self._command(rest))

    def _make_env(self, rest: str) -> ins.Instruction:
        return ins.Env(**self._base(), pairs=self._pairs(rest))

    def _make_label(self, rest: str) -> ins.Instruction:
        return ins.Label(**self._base(), pairs=self._pairs(rest))

    def _make_arg(self, rest: str) -> ins.Instruction:
        pairs: list[tuple[str, str | None]] = []
        for word in raw_words(rest, self._escape):
            name, equals, value = word.partition("=")
            if not name:
                raise InvalidArgument("ARG names can not be blank")
            pairs.append((name, value if equals else None))
        if not pairs:
            raise InvalidArgument("ARG requires at least one argument")
        return ins.Arg(**self._base(), pairs=tuple(pairs))

    def _make_expose(self, rest: str) -> ins.Instruction:
        return ins.Expose(**self._base(), ports=tuple(self._some(rest.split())))

    def _make_workdir(self, rest: str) -> ins.Instruction:
        return ins.Workdir(**self._base(), path=self._one(rest))

    def _make_user(self, rest: str) -> ins.Instruction:
        return ins.User(**self._base(), user=self._one(rest))

    def _make_stopsignal(self, rest: str) -> ins.Instruction:
        return ins.StopSignal(**self._base(), signal=self._one(rest))

    def _make_maintainer(self, rest: str) -> ins.Instruction:
        self._warn("MaintainerDeprecated", "Maintainer instruction is deprecated in favor of using label")
        return ins.Maintainer(**self._base(), name=self._one(rest))

    def _make_volume(self, rest: str) -> ins.Instruction:
        paths = self._some(self._list(rest))
        if not all(path.strip() for path in paths):
            raise InvalidArgument("VOLUME specified can not be an empty string")
        return ins.Volume(**self._base(), paths=tuple(paths))

    def _make_shell(self, rest: str) -> ins.Instruction:
        words = self._json(rest)
        if words is None:
            raise InvalidArgument("SHELL requires the arguments to be in JSON form")
        return ins.Shell(**self._base(), words=tuple(self._some(words)))

    def _make_healthcheck(self, rest: str) -> ins.Instruction:
        kind, _, arguments = _partition(rest)
        if not kind:
            raise InvalidArgument("HEALTHCHECK requires at least one argument")
        if kind.upper() == "NONE":
            if arguments.strip():
                raise InvalidArgument("HEALTHCHECK NONE takes no arguments")
            return ins.Healthcheck(**self._base(), none=True, command=None)
        if kind.upper() != "CMD":
            raise InvalidArgument(f'unknown type "{kind.upper()}" in HEALTHCHECK (try CMD)')
        command = self._command(arguments.strip())
        if not command.words or not any(command.words):
            raise InvalidArgument("missing command after HEALTHCHECK CMD")
        durations: dict[str, Any] = {name.replace("-", "_"): _duration(name, self._flags.get(name, "")) for name in _HEALTH_DURATIONS}
        retries = self._flags.get("retries", "") or "0"
        if not re.fullmatch(r"-?\d{1,9}", retries):
            raise InvalidArgument(f'invalid value "{retries}" for --retries: it must be a number')
        if int(retries) < 0:
            raise InvalidArgument(f"--retries cannot be negative ({retries})")
        return ins.Healthcheck(**self._base(), none=False, command=command, retries=int(retries), **durations)

    def _make_onbuild(self, rest: str) -> ins.Instruction:
        if not rest:
            raise InvalidArgument("ONBUILD requires at least one argument")
        keyword = rest.split(None, 1)[0].upper()
        if keyword == "ONBUILD":
            raise InvalidArgument("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
        if keyword in ("FROM", "MAINTAINER"):
            raise InvalidArgument(f"{keyword} isn't allowed as an ONBUILD trigger")
        outer = self._line
        inner = self._parse(rest)
        self._line = outer
        heredocs = "".join(f"\n{document.content}{document.name}" for document in outer.heredocs)
        return ins.Onbuild(**self._base(), trigger=rest + heredocs, instruction=inner)

    # Forms of arguments

    def _json(self, rest: str) -> list[str] | None:
        """The words of the JSON form, or None when it is not one."""
        if not rest.startswith("["):
            return None
        try:
            words = json.loads(rest)
        except (ValueError, RecursionError):
            words = None
        if isinstance(words, list) and not all(isinstance(word, str) for word in words):
            raise InvalidArgument("when using JSON array syntax, arrays must be comprised of strings only")
        if not isinstance(words, list):
            if rest.rstrip().endswith("]"):
                self._warn("JSONArgsRecommended", f"{self._keyword} looks like the JSON form but is none: it is taken as plain text")
            return None
        return [_SURROGATE.sub("\ufffd", word) for word in words]

    def _list(self, rest: str) -> list[str]:
        """The words of the JSON form, or else those between white space, whatever the quotes say."""
        words = self._json(rest)
        return rest.split() if words is None else words

    def _command(self, rest: str) -> ins.Command:
        words = self._json(rest)
        if words is not None:
            return ins.Command(False, tuple(words))
        return ins.Command(True, (rest,) if rest else (), self._line.heredocs)

    def _pairs(self, rest: str) -> ins.Pairs:
        words = raw_words(rest, self._escape)
        if not words:
            raise InvalidArgument(f"{self._keyword} requires at least one argument")
        if "=" not in words[0]:
            name, _, value = _partition(rest)
            if not value.strip():
                raise InvalidArgument(f"{self._keyword} must have two arguments")
            self._warn(
                "LegacyKeyValueFormat", f'"{self._keyword} key=value" should be used instead of legacy "{self._keyword} key value" format'
            )
            return ((name, value.strip()),)
        pairs = []
        for word in words:
            name, equals, value = word.partition("=")
            if not equals:
                raise InvalidArgument(f'Syntax error - can\'t find = in "{word}". Must be of the form: name=value')
            if not name:
                raise InvalidArgument(f"{self._keyword} names can not be blank")
            pairs.append((name, value))
        return tuple(pairs)

    def _one(self, rest: str) -> str:
        if not rest:
            raise InvalidArgument(f"{self._keyword} requires exactly one argument")
        return rest

    def _some(self, words: list[str]) -> list[str]:
        if not words:
            raise InvalidArgument(f"{self._keyword} requires at least one argument")
        return words

    def _warn(self, rule: str, message: str) -> None:
        self._source.warnings.append(ins.Warning(rule, message, self._line.line))


KEYWORDS = sorted(name[len("_make_") :].upper() for name in vars(_Parser) if name.startswith("_make_"))
_HEALTH_DURATIONS = ("interval", "timeout", "start-period", "start-interval")


def _partition(text: str) -> tuple[str, str, str]:
    """Split at the first run of white space."""
    match = re.search(r"\s+", text)
    return (text[: match.start()], match[0], text[match.end() :]) if match else (text, "", "")


def _duration(name: str, text: str) -> int:
    """Nanoseconds of a duration in Go's notation."""
    if text in ("", "0"):
        return 0
    total, at = 0.0, 0
    while at < len(text):
        match = _DURATION.match(text, at)
        if match is None:
            raise InvalidArgument(f'invalid value for --{name}: time: invalid duration "{text}"')
        total += float(match[1]) * _UNITS[match[2]]
        at = match.end()
    if 0 < total < 1_000_000:
        raise InvalidArgument(f'Interval "{name}" cannot be less than 1ms')
    return int(total)


_HINTS = (
    ("unknown instruction", "instructions are " + ", ".join(KEYWORDS)),
    ("can't find = in", 'write several values as NAME="a value" OTHER=value'),
    ("JSON form", 'for example SHELL ["/bin/bash", "-c"]'),
    ("FROM requires", "FROM IMAGE [AS NAME]"),
    ("Destination could not", "the last argument is where the others are copied to"),
    ("target is required", "for example --mount=type=cache,target=/root/.cache"),
    ("invalid name for build stage", "a name begins with a letter; letters, digits, dots, dashes and underscores follow"),
    ("missing a value on flag", "flags are written --name=value"),
    ("expecting boolean value", "a switch is written --name, --name=true or --name=false"),
    ("must have two arguments", "NAME=VALUE"),
    ("comprised of strings only", "every word stands in double quotes"),
    ("invalid duration", "for example 500ms, 30s or 1m30s"),
    ("invalid value for size", "for example 64m or 1g"),
)


def _hint(message: str, keyword: str) -> str:
    if "unknown flag" in message:
        known = FLAGS.get(keyword)
        return f"flags of {keyword} are {', '.join(f'--{name}' for name in known)}" if known else f"{keyword} takes no flags"
    return next((hint for part, hint in _HINTS if part in message), "")
