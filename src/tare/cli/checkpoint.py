"""``checkpoint create``, ``ls`` and ``rm``: the state of a running container on disk, where criu exists."""

from __future__ import annotations

import sys

from tare.cli.connection import quote
from tare.cli.flags import Command
from tare.cli.lifecycle import path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.context import Context
    from tare.cli.flags import Options


def _create(context: Context, options: Options) -> int:
    container, name = options.operands
    body = {"CheckpointID": name, "CheckpointDir": options.text("checkpoint-dir"), "Exit": not options.on("leave-running")}
    context.client.call("POST", path(container, "checkpoints"), body=body)
    sys.stdout.write(name + "\n")
    return 0


def _ls(context: Context, options: Options) -> int:
    from tare.cli.tables import write_rows

    found = context.client.call("GET", path(options.operands[0], "checkpoints"), {"dir": options.text("checkpoint-dir")}) or ()
    write_rows(({"Name": entry["Name"]} for entry in found), "", {"Name": "CHECKPOINT NAME"}, "Name")
    return 0


def _rm(context: Context, options: Options) -> int:
    container, name = options.operands
    context.client.call("DELETE", f"{path(container, 'checkpoints')}/{quote(name, slash=False)}", {"dir": options.text("checkpoint-dir")})
    return 0


_DIRECTORY = ("checkpoint-dir", "", "string", "Use a custom checkpoint storage directory")
CREATE = Command(
    "checkpoint create", "checkpoint create [OPTIONS] CONTAINER CHECKPOINT", "Create a checkpoint from a running container", _create,
    (_DIRECTORY, ("leave-running", "", "bool", "Leave the container running after checkpoint")), least=2, most=2,
)  # fmt: skip
LS = Command(
    "checkpoint ls", "checkpoint ls [OPTIONS] CONTAINER", "List checkpoints for a container", _ls, (_DIRECTORY,), least=1, most=1,
    aliases=("checkpoint ls", "checkpoint list"),
)  # fmt: skip
RM = Command(
    "checkpoint rm", "checkpoint rm [OPTIONS] CONTAINER CHECKPOINT", "Remove a checkpoint", _rm, (_DIRECTORY,), least=2, most=2,
    aliases=("checkpoint rm", "checkpoint remove"),
)  # fmt: skip
