"""``top``: the processes of a container."""

from __future__ import annotations

import sys

from tare.cli.flags import Command
from tare.cli.lifecycle import path
from tare.cli.tables import align

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.context import Context
    from tare.cli.flags import Options


def _top(context: Context, options: Options) -> int:
    answer = context.client.call("GET", path(options.operands[0], "top"), {"ps_args": " ".join(options.operands[1:])})
    lines = ["\t".join(answer.get("Titles") or ())]
    lines.extend("\t".join(process) for process in answer.get("Processes") or ())
    for line in align(lines, least=20):
        sys.stdout.write(line + "\n")
    return 0


TOP = Command(
    "top", "top CONTAINER [ps OPTIONS]", "Display the running processes of a container", _top,
    least=1, interspersed=False, aliases=("container top", "top"), examples=("tare top web -eo pid,user,rss,args",),
)  # fmt: skip
