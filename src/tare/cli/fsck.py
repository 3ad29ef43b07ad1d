"""``system fsck``: check the stores, through the daemon or, with ``--data-root``, on a root that no daemon uses.

Exit codes are fsck(8)'s: 0 nothing wrong, 1 problems found and repaired, 4 problems left.
"""

from __future__ import annotations

import sys

from tare.cli.failures import CliError
from tare.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options

CLEAN, REPAIRED, LEFT = 0, 1, 4


def maintenance(*arguments: str) -> dict[str, Any]:
    """Run an offline task (``tare.maintenance``) and return its document. Raises CliError with its reason."""
    import json
    import subprocess

    done = subprocess.run([sys.executable, "-m", "tare.maintenance", *arguments], stdout=subprocess.PIPE, check=False)
    try:
        document: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise CliError(f"the offline tool ended with code {done.returncode} and no answer") from None
    if "message" in document:
        raise CliError(str(document["message"]))
    return document


def _text(findings: dict[str, Any]) -> str:
    lines = []
    for problem in findings["problems"]:
        repair = f" [{problem['repair']}]" if problem["repair"] else ""
        lines.append(f"{problem['kind']} {problem['name']}: {problem['text']}{repair}")
    lines.extend(f"note: {note}" for note in findings["notes"])
    counts = ", ".join(f"{findings[kind]} {kind}" for kind in ("blobs", "layers", "images", "containers"))
    count = len(findings["problems"])
    lines.append(f"{counts} checked: " + (f"{count} problem{'s' * (count != 1)}" if count else "clean"))
    return "\n".join(lines) + "\n"


def _fsck(context: Context, options: Options) -> int:
    repair, root = options.on("repair"), options.text("data-root")
    if root:
        findings = maintenance("fsck", "--data-root", root, *(["--repair"] if repair else []))
    else:
        findings = context.client.call("POST", "/system/fsck", {"repair": "1" if repair else None})
    if options.text("format") == "json":
        from tare.cli.templatefunctions import to_json

        sys.stdout.write(to_json(findings) + "\n")
    else:
        sys.stdout.write(_text(findings))
    if not findings["problems"]:
        return CLEAN
    return LEFT if any(not problem["repair"] for problem in findings["problems"]) else REPAIRED


FSCK = Command(
    "system fsck",
    "system fsck [OPTIONS]",
    "Check blobs, layers, images and containers on the disk, and repair what can be",
    _fsck,
    (
        ("data-root", "", "string", "Check this data root, which no daemon uses, instead of the daemon's"),
        ("format", "", "string", "'json' for one JSON document"),
        ("repair", "", "bool", "Repair: write damaged layers again from their blobs, remove what cannot be used"),
    ),
    most=0,
    examples=("tare system fsck", "tare system fsck --repair --data-root /var/lib/tare"),
)
