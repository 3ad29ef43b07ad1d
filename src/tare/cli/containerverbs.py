"""``pause``, ``unpause``, ``rename``, ``port`` and ``diff``."""

from __future__ import annotations

import sys

from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.lifecycle import each, path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tare.cli.context import Context
    from tare.cli.flags import Options

_CHANGES = ("C", "A", "D")


def _posting(verb: str) -> Callable[[Context, Options], int]:
    def run(context: Context, options: Options) -> int:
        client = context.client

        def one(name: str) -> str:
            client.call("POST", path(name, verb))
            return name

        return each(options.operands, one)

    return run


def _rename(context: Context, options: Options) -> int:
    old, new = (name.strip() for name in options.operands)
    if not old or not new:
        raise CliError("Error: Neither old nor new names may be empty")
    try:
        context.client.call("POST", path(old, "rename"), {"name": new})
    except CliError as error:
        raise CliError(f"{error}\nError: failed to rename container named {old}", error.code) from None
    return 0


def _port_key(text: str) -> tuple[int, str]:
    number, _, protocol = text.partition("/")
    return (int(number) if number.isdecimal() else 0), protocol


def _address(binding: dict[str, str]) -> str:
    host = binding.get("HostIp", "")
    return f"[{host}]:{binding.get('HostPort', '')}" if ":" in host else f"{host}:{binding.get('HostPort', '')}"


def _port(context: Context, options: Options) -> int:
    name, wanted = (*options.operands, "")[:2]
    container = context.client.call("GET", path(name, "json"))
    ports = (container.get("NetworkSettings") or {}).get("Ports") or {}
    if not wanted:
        for port in sorted(ports, key=_port_key):
            sys.stdout.write("".join(f"{port} -> {_address(binding)}\n" for binding in ports[port] or ()))
        return 0
    number, slash, protocol = wanted.partition("/")
    if not number.isdecimal() or not 0 < int(number) < 65536:
        problem = "value out of range" if number.isdecimal() else "invalid syntax"
        raise CliError(f'Error: invalid port ({number}): strconv.ParseUint: parsing "{number}": {problem}')
    key = f"{int(number)}/{protocol if slash else 'tcp'}"
    if not ports.get(key):
        raise CliError(f"Error: No public port '{wanted}' published for {name}")
    sys.stdout.write("".join(f"{_address(binding)}\n" for binding in ports[key]))
    return 0


def _diff(context: Context, options: Options) -> int:
    for change in context.client.call("GET", path(options.operands[0], "changes")) or ():
        sys.stdout.write(f"{_CHANGES[change['Kind']]} {change['Path']}\n")
    return 0


PAUSE = Command(
    "pause", "pause CONTAINER [CONTAINER...]", "Pause all processes within one or more containers", _posting("pause"),
    least=1, aliases=("container pause", "pause"),
)  # fmt: skip
UNPAUSE = Command(
    "unpause", "unpause CONTAINER [CONTAINER...]", "Unpause all processes within one or more containers", _posting("unpause"),
    least=1, aliases=("container unpause", "unpause"),
)  # fmt: skip
RENAME = Command(
    "rename", "rename CONTAINER NEW_NAME", "Rename a container", _rename, least=2, most=2, aliases=("container rename", "rename"),
)  # fmt: skip
PORT = Command(
    "port", "port CONTAINER [PRIVATE_PORT[/PROTO]]", "List port mappings or a specific mapping for the container", _port,
    least=1, most=2, aliases=("container port", "port"), examples=("tare port web 80/tcp         where port 80 is reached from outside",),
)  # fmt: skip
DIFF = Command(
    "diff", "diff CONTAINER", "Inspect changes to files or directories on a container's filesystem", _diff,
    least=1, most=1, aliases=("container diff", "diff"),
)  # fmt: skip
