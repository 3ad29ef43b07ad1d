"""``start``: several in the background, or one with its streams attached."""

from __future__ import annotations

import sys

from tare.cli.attachment import ExitStatus, attach, check_terminal, default_detach_keys, follow_size, forward_signals
from tare.cli.context import warn
from tare.cli.failures import CliError, Unreachable
from tare.cli.flags import Command
from tare.cli.lifecycle import path
from tare.cli.terminal import Handlers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.context import Context
    from tare.cli.flags import Options


def _start(context: Context, options: Options) -> int:
    if options.on("attach") or options.on("interactive"):
        if len(options.operands) > 1:
            raise CliError("you cannot start and attach multiple containers at once")
        return _attached(context, options)
    if options.text("checkpoint") and len(options.operands) > 1:
        raise CliError("you cannot restore multiple containers at once")
    client = context.client
    failed = []
    for name in options.operands:
        try:
            client.call("POST", path(name, "start"), _restoring(options))
            sys.stdout.write(name + "\n")
            sys.stdout.flush()
        except Unreachable:
            raise
        except CliError as error:
            warn(str(error))
            failed.append(name)
    if failed:
        raise CliError(f"Error: failed to start containers: {', '.join(failed)}")
    return 0


def _restoring(options: Options) -> dict[str, str | None]:
    """The query by which the daemon restores a checkpoint, if it is to."""
    return {name: options.text(name) or None for name in ("checkpoint", "checkpoint-dir")}


def _attached(context: Context, options: Options) -> int:
    client = context.client
    container = client.call("GET", path(options.operands[0], "json"))
    identifier, config = str(container["Id"]), container["Config"]
    tty, removed = bool(config.get("Tty")), bool(container["HostConfig"].get("AutoRemove"))
    stdin = options.on("interactive") and bool(config.get("OpenStdin"))
    check_terminal(stdin=stdin, tty=tty)
    keys = default_detach_keys(options.text("detach-keys")) if tty else options.text("detach-keys")
    query = {"stream": True, "stdin": stdin or None, "stdout": True, "stderr": True}
    with Handlers() as handlers:
        if not tty:
            forward_signals(handlers, client, identifier)
        attachment = attach(client, identifier, query, tty=tty, detach_keys=keys)
        status = ExitStatus(client, identifier, removed=removed)

        def begin() -> None:
            client.call("POST", path(identifier, "start"), _restoring(options))
            if tty:
                follow_size(handlers, client, path(identifier, "resize"))

        if not attachment.serve(begin):
            status.cancel()
            return 0
        return status.get()


START = Command(
    "start",
    "start [OPTIONS] CONTAINER [CONTAINER...]",
    "Start one or more stopped containers",
    _start,
    (
        ("attach", "a", "bool", "Attach STDOUT/STDERR and forward signals"),
        ("checkpoint", "", "string", "Restore from this checkpoint"),
        ("checkpoint-dir", "", "string", "Use a custom checkpoint storage directory"),
        ("detach-keys", "", "string", "Override the key sequence for detaching a container"),
        ("interactive", "i", "bool", "Attach container's STDIN"),
    ),
    least=1,
    aliases=("container start", "start"),
)
