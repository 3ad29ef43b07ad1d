"""``tare checkpoint``: write a container's processes to disk, list and remove what was written. ``start --checkpoint`` brings them back."""

from __future__ import annotations

import sys

from tare.cli.connection import quote
from tare.cli.flags import Command
from tare.cli.lifecycle import path
from tare.cli.tables import write_rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.context import Context
    from tare.cli.flags import Options

_DIRECTORY = ("checkpoint-dir", "", "string", "Use a custom checkpoint storage directory (on the daemon's machine)")


def _create(context: Context, options: Options) -> int:
    container, name = options.operands
    body = {"CheckpointID": name, "CheckpointDir": options.text("checkpoint-dir"), "Exit": not options.on("leave-running")}
    context.client.call("POST", path(container, "checkpoints"), None, body)
    sys.stdout.write(name + "\n")
    return 0


def _list(context: Context, options: Options) -> int:
    query = {"dir": options.text("checkpoint-dir") or None}
    rows = context.client.call("GET", path(options.operands[0], "checkpoints"), query) or []
    write_rows(rows, "table", {"Name": "CHECKPOINT NAME"}, "Name")
    return 0


def _remove(context: Context, options: Options) -> int:
    container, name = options.operands
    query = {"dir": options.text("checkpoint-dir") or None}
    context.client.call("DELETE", path(container, f"checkpoints/{quote(name, slash=False)}"), query)
    return 0


CREATE = Command(
    "checkpoint create", "checkpoint create [OPTIONS] CONTAINER CHECKPOINT", "Create a checkpoint from a running container", _create,
    (_DIRECTORY, ("leave-running", "", "bool", "Leave the container running after checkpoint")), least=2, most=2,
)  # fmt: skip
LS = Command(
    "checkpoint ls", "checkpoint ls [OPTIONS] CONTAINER", "List checkpoints for a container", _list,
    (_DIRECTORY,), least=1, most=1, aliases=("checkpoint ls", "checkpoint list"),
)  # fmt: skip
RM = Command(
    "checkpoint rm", "checkpoint rm [OPTIONS] CONTAINER CHECKPOINT", "Remove a checkpoint", _remove,
    (_DIRECTORY,), least=2, most=2, aliases=("checkpoint rm", "checkpoint remove"),
)  # fmt: skip
