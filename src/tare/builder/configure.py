"""Instructions that only change the image's config: what they make of it, and the line they leave in the history. Pure.

The lines are those of Docker's classic builder (``/bin/sh -c #(nop)  ENV A=b``), which every tool that reads histories knows.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from tare.builder import instructions as ins
from tare.builder.expand import Lookup, expand, expand_words
from tare.containers.signals import parse_signal
from tare.errors import InvalidArgument
from tare.images.changes import SHELL
from tare.oci.image import ContainerConfig, Healthcheck

_PROTOCOLS = ("tcp", "udp", "sctp")
_UNITS = (("h", 3600 * 10**9), ("m", 60 * 10**9), ("s", 10**9))


@dataclass(frozen=True, slots=True)
class Words:
    """How the words of an instruction are expanded at its place."""

    lookup: Lookup
    escape: str

    def one(self, word: str) -> str:
        try:
            return expand(word, self.lookup, self.escape)
        except InvalidArgument as error:
            raise _about(word, error) from None

    def many(self, text: str) -> list[str]:
        try:
            return expand_words(text, self.lookup, self.escape)
        except InvalidArgument as error:
            raise _about(text, error) from None


def _about(word: str, error: InvalidArgument) -> InvalidArgument:
    return InvalidArgument(f"failed to process {msgspec.json.encode(word).decode()}: {error}")


@dataclass(frozen=True, slots=True)
class Change:
    """The config after an instruction, and how the history tells it."""

    config: ContainerConfig
    comment: str
    author: str | None = None


def shell_of(config: ContainerConfig) -> list[str]:
    """What the shell form is run with."""
    return list(config.shell or SHELL)


def nop(config: ContainerConfig, comment: str, *, space: bool = True) -> str:
    """The history's line for what ran nothing. Docker writes two spaces for config changes and one for files."""
    return " ".join([*shell_of(config), "#(nop)" + ("  " if space else " ") + comment])


def change(instruction: ins.Instruction, config: ContainerConfig, words: Words, *, own_command: bool) -> Change:
    """Apply one instruction. ``own_command``: the stage has given a CMD before (an ENTRYPOINT drops an inherited one)."""
    handler = _HANDLERS.get(type(instruction))
    if handler is None:
        raise InvalidArgument(f"unknown instruction: {instruction.keyword}")
    if isinstance(instruction, ins.Entrypoint):
        return _entrypoint(instruction, config, own_command)
    return handler(instruction, config, words)


def quoted(texts: Sequence[str] | None) -> str:
    """Go's ``%q`` of a list: what Docker writes into histories."""
    return "[" + " ".join(quote(text) for text in texts or ()) + "]"


def quote(text: str) -> str:
    """Go's ``%q`` of a string."""
    shown = ""
    for char in text:
        if char in '"\\':
            shown += "\\" + char
        elif char in _ESCAPES:
            shown += _ESCAPES[char]
        elif char.isprintable():
            shown += char
        elif ord(char) < 0x80:
            shown += f"\\x{ord(char):02x}"
        else:
            shown += f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
    return f'"{shown}"'


_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def command(given: ins.Command, config: ContainerConfig) -> list[str]:
    """A CMD's or ENTRYPOINT's argument vector."""
    return [*shell_of(config), *given.words] if given.shell else list(given.words)


def set_env(env: Sequence[str] | None, name: str, value: str) -> list[str]:
    """The environment with one variable set, in its old place if it had one."""
    result = list(env or ())
    for index, entry in enumerate(result):
        if entry.partition("=")[0] == name:
            result[index] = f"{name}={value}"
            return result
    return [*result, f"{name}={value}"]


def ports(specification: str) -> list[str]:
    """``8000-8002/tcp`` as Docker's port keys."""
    container = specification.rpartition(":")[2]
    numbers, _, protocol = container.partition("/")
    protocol = (protocol or "tcp").lower()
    if protocol not in _PROTOCOLS:
        raise InvalidArgument(f'invalid port: "{specification}": invalid proto: {protocol}')
    first, dash, last = numbers.partition("-")
    if not _is_port(first) or (dash and not _is_port(last)):
        raise InvalidArgument(f'invalid port: "{specification}": invalid containerPort: {numbers}')
    if dash and int(last) < int(first):
        raise InvalidArgument(f'invalid port: "{specification}": invalid range specified for port: {numbers}')
    return [f"{number}/{protocol}" for number in range(int(first), int(last or first) + 1)]


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < int(text) < 65536


def _env(instruction: ins.Env, config: ContainerConfig, words: Words) -> Change:
    env, shown = list(config.env or ()), []
    for raw_name, raw_value in instruction.pairs:
        name, value = words.one(raw_name), words.one(raw_value)
        if not name:
            raise InvalidArgument("ENV names can not be blank")
        env = set_env(env, name, value)
        shown.append(f"{name}={value}")
    return Change(_with(config, env=env), "ENV " + " ".join(shown))


def _label(instruction: ins.Label, config: ContainerConfig, words: Words) -> Change:
    labels, shown = dict(config.labels or {}), []
    for raw_name, raw_value in instruction.pairs:
        name, value = words.one(raw_name), words.one(raw_value)
        if not name:
            raise InvalidArgument("LABEL names can not be blank")
        labels[name] = value
        shown.append(f"{name}={value}")
    return Change(_with(config, labels=labels), "LABEL " + " ".join(shown))


def _cmd(instruction: ins.Cmd, config: ContainerConfig, words: Words) -> Change:
    vector = command(instruction.command, config)
    return Change(_with(config, cmd=vector), f"CMD {quoted(vector)}")


def _entrypoint(instruction: ins.Entrypoint, config: ContainerConfig, own_command: bool) -> Change:
    vector = command(instruction.command, config) if instruction.command.words else []
    changed = _with(config, entrypoint=vector or None)
    if not own_command:
        changed = _with(changed, cmd=None)
    return Change(changed, f"ENTRYPOINT {quoted(vector)}")


def _expose(instruction: ins.Expose, config: ContainerConfig, words: Words) -> Change:
    given = [word for text in instruction.ports for word in words.many(text)]
    exposed = dict(config.exposed_ports or {})
    for word in given:
        exposed |= {port: {} for port in ports(word)}
    return Change(_with(config, exposed_ports=exposed), "EXPOSE " + " ".join(given))


def _user(instruction: ins.User, config: ContainerConfig, words: Words) -> Change:
    user = words.one(instruction.user)
    return Change(_with(config, user=user), f"USER {user}")


def _volume(instruction: ins.Volume, config: ContainerConfig, words: Words) -> Change:
    given = [words.one(path).strip() for path in instruction.paths]
    if not all(given):
        raise InvalidArgument("VOLUME specified can not be an empty string")
    return Change(_with(config, volumes={**(config.volumes or {}), **{path: {} for path in given}}), f"VOLUME [{' '.join(given)}]")


def _stop_signal(instruction: ins.StopSignal, config: ContainerConfig, words: Words) -> Change:
    signal = words.one(instruction.signal)
    parse_signal(signal)
    return Change(_with(config, stop_signal=signal), f"STOPSIGNAL {signal}")


def _shell(instruction: ins.Shell, config: ContainerConfig, words: Words) -> Change:
    return Change(_with(config, shell=list(instruction.words)), f"SHELL [{' '.join(instruction.words)}]")


def _onbuild(instruction: ins.Onbuild, config: ContainerConfig, words: Words) -> Change:
    return Change(_with(config, on_build=[*(config.on_build or ()), instruction.trigger]), f"ONBUILD {instruction.trigger}")


def _maintainer(instruction: ins.Maintainer, config: ContainerConfig, words: Words) -> Change:
    return Change(config, f"MAINTAINER {instruction.name}", instruction.name)


def _healthcheck(instruction: ins.Healthcheck, config: ContainerConfig, words: Words) -> Change:
    if instruction.none or instruction.command is None:
        check = Healthcheck(test=["NONE"])
    else:
        given = instruction.command
        check = Healthcheck(
            test=["CMD-SHELL" if given.shell else "CMD", *given.words],
            interval=instruction.interval,
            timeout=instruction.timeout,
            start_period=instruction.start_period,
            start_interval=instruction.start_interval,
            retries=instruction.retries,
        )
    times = " ".join(f'"{duration(time)}"' for time in (check.interval, check.timeout, check.start_period))
    comment = f"HEALTHCHECK &{{{quoted(check.test)} {times} '\\x{check.retries:02x}'}}"
    return Change(_with(config, healthcheck=check), comment)


def duration(nanoseconds: int) -> str:
    """Go's way to write a duration: ``1m30s``, ``1.5s``, ``20ms``, ``0s``."""
    if not nanoseconds:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 1000), ("ms", 10**6)):
        if nanoseconds < size * 1000 and nanoseconds < 10**9:
            return f"{nanoseconds / size:.9f}".rstrip("0").rstrip(".") + unit
    shown, rest = "", nanoseconds
    for unit, size in _UNITS[:2]:
        if rest >= size or shown:
            shown += f"{rest // size}{unit}"
            rest %= size
    return shown + f"{rest / 10**9:.9f}".rstrip("0").rstrip(".") + "s"


def working_directory(instruction: ins.Workdir, config: ContainerConfig, words: Words) -> tuple[str, str]:
    """The absolute path that WORKDIR means, and how the history tells it: an absolute one as it was written."""
    path = words.one(instruction.path)
    clean = posixpath.normpath(posixpath.join("/", config.working_dir, path)).replace("//", "/")
    return clean, path if path.startswith("/") else clean


def _with(config: ContainerConfig, **fields: object) -> ContainerConfig:
    return msgspec.structs.replace(config, **fields)


_HANDLERS: dict[type[ins.Instruction], Callable[..., Change]] = {
    ins.Env: _env,
    ins.Label: _label,
    ins.Cmd: _cmd,
    ins.Entrypoint: _entrypoint,
    ins.Expose: _expose,
    ins.User: _user,
    ins.Volume: _volume,
    ins.StopSignal: _stop_signal,
    ins.Shell: _shell,
    ins.Onbuild: _onbuild,
    ins.Maintainer: _maintainer,
    ins.Healthcheck: _healthcheck,
}
