"""``attach``: be the terminal of a container that already runs."""

from __future__ import annotations

from tare.cli.attachment import ExitStatus, attach, check_terminal, default_detach_keys, follow_size, forward_signals
from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.lifecycle import path
from tare.cli.terminal import Handlers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.context import Context
    from tare.cli.flags import Options


def _attach(context: Context, options: Options) -> int:
    client = context.client
    container = client.call("GET", path(options.operands[0], "json"))
    state, config, identifier = container["State"], container["Config"], str(container["Id"])
    if not state.get("Running"):
        raise CliError("You cannot attach to a stopped container, start it first")
    if state.get("Paused"):
        raise CliError("You cannot attach to a paused container, unpause it first")
    if state.get("Restarting"):
        raise CliError("You cannot attach to a restarting container, wait until it is running")
    tty = bool(config.get("Tty"))
    stdin = bool(config.get("OpenStdin")) and not options.on("no-stdin")
    check_terminal(stdin=stdin, tty=tty)
    keys = default_detach_keys(options.text("detach-keys")) if tty else options.text("detach-keys")
    query = {"stream": True, "stdin": stdin or None, "stdout": True, "stderr": True}
    with Handlers() as handlers:
        if options.on("sig-proxy") and not tty:
            forward_signals(handlers, client, identifier)
        # The wait comes first: the container may end while we attach.
        status = ExitStatus(client, identifier, removed=bool(container["HostConfig"].get("AutoRemove")))
        attachment = attach(client, identifier, query, tty=tty, detach_keys=keys)

        def begin() -> None:
            if tty:
                follow_size(handlers, client, path(identifier, "resize"))

        if not attachment.serve(begin):
            status.cancel()
            return 0
        return status.get()


ATTACH = Command(
    "attach",
    "attach [OPTIONS] CONTAINER",
    "Attach local standard input, output, and error streams to a running container",
    _attach,
    (
        ("detach-keys", "", "string", "Override the key sequence for detaching a container"),
        ("no-stdin", "", "bool", "Do not attach STDIN"),
        ("sig-proxy", "", "bool", "Proxy all received signals to the process", True),
    ),
    least=1,
    most=1,
    aliases=("container attach", "attach"),
    examples=("tare attach web             leave again with ctrl-p ctrl-q",),
)
