"""Changes to an image's config in Dockerfile words, as ``docker import --change`` and ``docker commit --change`` take them.

    CMD ENTRYPOINT ENV EXPOSE LABEL ONBUILD STOPSIGNAL USER VOLUME WORKDIR

``CMD`` and ``ENTRYPOINT`` take a JSON list or words for the shell; the others take words, quoted as in a shell. Pure.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tare.errors import InvalidArgument
from tare.oci.image import ContainerConfig

SHELL = ("/bin/sh", "-c")


def apply_changes(config: ContainerConfig, changes: Sequence[str]) -> ContainerConfig:
    """``config`` with every change applied in order. Raises ``InvalidArgument`` naming the change.

    As in a Dockerfile, an ENTRYPOINT drops a CMD that was not given beside it.
    """
    own_command = False
    for change in changes:
        for line in change.splitlines():
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            word, _, rest = line.strip().partition(" ")
            config = _apply(config, word, rest.strip())
            own_command = own_command or word.upper() == "CMD"
            if word.upper() == "ENTRYPOINT" and not own_command:
                config = msgspec.structs.replace(config, cmd=None)
    return config


def _apply(config: ContainerConfig, word: str, rest: str) -> ContainerConfig:
    instruction = _INSTRUCTIONS.get(word.upper())
    if instruction is None:
        raise InvalidArgument(f"{word} is not a valid change command")
    if not rest and word.upper() not in ("CMD", "ENTRYPOINT"):
        raise InvalidArgument(f"{word.upper()} requires at least one argument")
    return msgspec.structs.replace(config, **instruction(config, rest))


def _command(config: ContainerConfig, rest: str) -> list[str]:
    if rest.startswith("["):
        try:
            return msgspec.json.decode(rest, type=list[str])
        except msgspec.MsgspecError:
            pass  # Docker too takes what is no JSON list as words for the shell
    return [*(config.shell or SHELL), rest] if rest else []


def _words(rest: str) -> list[str]:
    try:
        return shlex.split(rest)
    except ValueError as error:
        raise InvalidArgument(f"invalid change {rest!r}: {error}") from None


def _list(rest: str) -> list[str]:
    if rest.startswith("["):
        try:
            return msgspec.json.decode(rest, type=list[str])
        except msgspec.MsgspecError:
            pass
    return _words(rest)


def _pairs(name: str, rest: str) -> dict[str, str]:
    words = _words(rest)
    if "=" not in words[0]:
        key, _, value = rest.partition(" ")
        if not value:
            raise InvalidArgument(f"{name} must have two arguments")
        return {key: value.strip()}
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidArgument(f"invalid {name} change: {word!r} is not key=value")
        pairs[key] = value
    return pairs


def _env(config: ContainerConfig, rest: str) -> dict[str, Any]:
    pairs = _pairs("ENV", rest)
    kept = [entry for entry in config.env or [] if entry.partition("=")[0] not in pairs]
    return {"env": kept + [f"{key}={value}" for key, value in pairs.items()]}


def _expose(config: ContainerConfig, rest: str) -> dict[str, Any]:
    ports = dict(config.exposed_ports or {})
    for word in _words(rest):
        number, _, protocol = word.partition("/")
        protocol = protocol.lower() or "tcp"
        if not number.isdigit() or not 0 < int(number) < 65536 or protocol not in ("tcp", "udp", "sctp"):
            raise InvalidArgument(f"invalid containerPort: {word}")
        ports[f"{int(number)}/{protocol}"] = {}
    return {"exposed_ports": ports}


def _workdir(config: ContainerConfig, rest: str) -> dict[str, Any]:
    return {"working_dir": posixpath.normpath(posixpath.join("/", config.working_dir, rest))}


_INSTRUCTIONS: dict[str, Callable[[ContainerConfig, str], dict[str, Any]]] = {
    "CMD": lambda config, rest: {"cmd": _command(config, rest)},
    "ENTRYPOINT": lambda config, rest: {"entrypoint": _command(config, rest)},
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": lambda config, rest: {"labels": {**(config.labels or {}), **_pairs("LABEL", rest)}},
    "ONBUILD": lambda config, rest: {"on_build": [*(config.on_build or []), rest]},
    "STOPSIGNAL": lambda config, rest: {"stop_signal": rest},
    "USER": lambda config, rest: {"user": rest},
    "VOLUME": lambda config, rest: {"volumes": {**(config.volumes or {}), **{path: {} for path in _list(rest)}}},
    "WORKDIR": _workdir,
}
