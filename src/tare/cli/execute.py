"""``exec``: one more process in a running container."""

from __future__ import annotations

from tare.cli.attachment import Attachment, check_terminal, default_detach_keys, follow_size
from tare.cli.createbody import environment
from tare.cli.createflags import CREATE_KINDS
from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.lifecycle import path
from tare.cli.streams import parse_detach_keys
from tare.cli.terminal import Handlers, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options


def body(options: Options) -> dict[str, Any]:
    """What ``POST /containers/ID/exec`` gets."""
    detach, tty = options.on("detach"), options.on("tty")
    document: dict[str, Any] = {
        "User": options.text("user"),
        "Privileged": options.on("privileged"),
        "Tty": tty,
        "AttachStdin": options.on("interactive") and not detach,
        "AttachStderr": not detach,
        "AttachStdout": not detach,
        "DetachKeys": options.text("detach-keys"),
        "Env": environment(options.items("env-file"), options.items("env")) or None,
        "WorkingDir": options.text("workdir"),
        "Cmd": options.operands[1:],
    }
    rows, columns = size() if tty and not detach else (0, 0)
    if rows and columns:
        document["ConsoleSize"] = [rows, columns]
    return document


def _exec(context: Context, options: Options) -> int:
    try:
        document = body(options)
    except CliError as error:
        raise CliError(str(error), 1) from None
    detach, tty, stdin = options.on("detach"), document["Tty"], document["AttachStdin"]
    if not detach:
        try:
            check_terminal(stdin=stdin, tty=tty)
        except CliError:
            context.client.call("GET", path(options.operands[0], "json"))  # a wrong name is told first
            raise
    keys = default_detach_keys(document["DetachKeys"]) if tty and not detach else document["DetachKeys"]
    if keys:
        parse_detach_keys(keys)
        document["DetachKeys"] = keys
    client = context.client
    identifier = client.call("POST", path(options.operands[0], "exec"), body=document)["Id"]
    start: dict[str, Any] = {"Detach": detach, "Tty": tty}
    if detach:
        client.call("POST", f"/exec/{identifier}/start", body=start)
        return 0
    if "ConsoleSize" in document:
        start["ConsoleSize"] = document["ConsoleSize"]
    with Handlers() as handlers:
        sock, left, _ = client.hijack(f"/exec/{identifier}/start", body=start)

        def begin() -> None:
            if tty:
                follow_size(handlers, client, f"/exec/{identifier}/resize")

        attached = Attachment(sock, left, tty=tty, stdin=stdin, detach_keys=keys).serve(begin)
    if not attached:
        return 0
    state = client.call("GET", f"/exec/{identifier}/json")
    code = state.get("ExitCode")
    return int(code) if code is not None else 0


EXEC = Command(
    "exec",
    "exec [OPTIONS] CONTAINER COMMAND [ARG...]",
    "Execute a command in a running container",
    _exec,
    (
        ("detach", "d", "bool", "Detached mode: run command in the background"),
        ("detach-keys", "", "string", "Override the key sequence for detaching a container"),
        ("env", "e", "env", "Set environment variables"),
        ("env-file", "", "list", "Read in a file of environment variables"),
        ("interactive", "i", "bool", "Keep STDIN open even if not attached"),
        ("privileged", "", "bool", "Give extended privileges to the command"),
        ("tty", "t", "bool", "Allocate a pseudo-TTY"),
        ("user", "u", "string", 'Username or UID (format: "<name|uid>[:<group|gid>]")'),
        ("workdir", "w", "string", "Working directory inside the container"),
    ),
    least=2,
    interspersed=False,
    aliases=("container exec", "exec"),
    examples=("tare exec -it web sh        a shell in a running container",),
    kinds=CREATE_KINDS,
)
