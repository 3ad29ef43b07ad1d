"""``stop``, ``restart``, ``kill``, ``rm`` and ``wait``: one call per container, one line per success, all of them tried."""

from __future__ import annotations

import sys

from tare.cli.connection import quote
from tare.cli.context import warn
from tare.cli.failures import CliError, Unreachable
from tare.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tare.cli.context import Context
    from tare.cli.flags import Options


def each(names: list[str], action: Callable[[str], str]) -> int:
    """Print what ``action`` gives for each name, if anything; report failures as they come. 1 when there was one."""
    code = 0
    for name in names:
        try:
            done = action(name)
            if done:
                sys.stdout.write(done + "\n")
                sys.stdout.flush()
        except Unreachable:
            raise
        except CliError as error:
            code = 1
            warn(str(error))
    return code


def path(container: str, verb: str = "") -> str:
    """The API's path of a container; a name cannot leave it."""
    bare = container.removeprefix("/")
    if not bare.strip():
        raise CliError("invalid container name or ID: value is empty")
    return f"/containers/{quote(bare, slash=False)}" + (f"/{verb}" if verb else "")


def _stopping(verb: str) -> Callable[[Context, Options], int]:
    def run(context: Context, options: Options) -> int:
        client = context.client
        query = {"signal": options.text("signal"), "t": options.number("timeout") if "timeout" in options.given else None}

        def one(name: str) -> str:
            client.call("POST", path(name, verb), query)
            return name

        return each(options.operands, one)

    return run


def _kill(context: Context, options: Options) -> int:
    client = context.client

    def one(name: str) -> str:
        client.call("POST", path(name, "kill"), {"signal": options.text("signal")})
        return name

    return each(options.operands, one)


def _rm(context: Context, options: Options) -> int:
    client = context.client
    query = {"v": options.on("volumes") or None, "link": options.on("link") or None, "force": options.on("force") or None}

    def one(name: str) -> str:
        # A link is named /web/alias: here the slash is part of the name.
        target = f"/containers/{quote(name.removeprefix('/'))}" if options.on("link") else path(name)
        try:
            client.call("DELETE", target, query)
        except CliError as error:
            if options.on("force") and getattr(error, "status", 0) == 404:
                warn(str(error))
                return ""
            raise
        return name

    return each(options.operands, one)


def _wait(context: Context, options: Options) -> int:
    client = context.client

    def one(name: str) -> str:
        answer = client.call("POST", path(name, "wait"))
        failure = (answer.get("Error") or {}).get("Message")
        if failure:
            raise CliError(str(failure))
        return str(answer.get("StatusCode", 0))

    return each(options.operands, one)


_STOP_FLAGS = (
    ("signal", "s", "string", "Signal to send to the container"),
    ("timeout", "t", "int", "Seconds to wait before killing the container"),
)
STOP = Command(
    "stop", "stop [OPTIONS] CONTAINER [CONTAINER...]", "Stop one or more running containers", _stopping("stop"), _STOP_FLAGS,
    least=1, aliases=("container stop", "stop"), examples=("tare stop -t 2 web          kill after two seconds",),
)  # fmt: skip
RESTART = Command(
    "restart", "restart [OPTIONS] CONTAINER [CONTAINER...]", "Restart one or more containers", _stopping("restart"), _STOP_FLAGS,
    least=1, aliases=("container restart", "restart"),
)  # fmt: skip
KILL = Command(
    "kill", "kill [OPTIONS] CONTAINER [CONTAINER...]", "Kill one or more running containers", _kill,
    (("signal", "s", "string", "Signal to send to the container"),),
    least=1, aliases=("container kill", "kill"), examples=("tare kill -s HUP web        any signal, by name or number",),
)  # fmt: skip
RM = Command(
    "rm",
    "rm [OPTIONS] CONTAINER [CONTAINER...]",
    "Remove one or more containers",
    _rm,
    (
        ("force", "f", "bool", "Force the removal of a running container (uses SIGKILL)"),
        ("link", "l", "bool", "Remove the specified link"),
        ("volumes", "v", "bool", "Remove anonymous volumes associated with the container"),
    ),
    least=1,
    aliases=("container rm", "container remove", "rm"),
    examples=("tare rm -f web              also when it runs", "tare rm $(tare ps -aq)      everything that has ended"),
)
WAIT = Command(
    "wait", "wait CONTAINER [CONTAINER...]", "Block until one or more containers stop, then print their exit codes", _wait,
    least=1, aliases=("container wait", "wait"),
)  # fmt: skip
