"""``images --tree``: images with what they occupy, and whether a container uses them."""

from __future__ import annotations

import sys

from tare.cli import humanize
from tare.cli.tables import align

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.connection import Client

_HEAD = "IMAGE\tID\tDISK USAGE\tCONTENT SIZE\tEXTRA"


def write(client: Client, images: list[dict[str, Any]]) -> None:
    """Print the tree: a line per image, one per further name below it. U in the last column means in use."""
    used = {str(container.get("ImageID")) for container in client.call("GET", "/containers/json", {"all": True}) or ()}
    lines = [_HEAD]
    for image in images:
        names = [tag for tag in image.get("RepoTags") or () if tag != "<none>:<none>"] or ["<untagged>"]
        extra = "U" if image["Id"] in used else ""
        sizes = f"{humanize.size3(image.get('Size') or 0)}\t{humanize.size3(0)}"
        lines.append(f"{names[0]}\t{humanize.short_id(image['Id'])}\t{sizes}\t{extra}")
        lines.extend(f"{'└─' if index == len(names) - 1 else '├─'} {name}\t\t\t\t" for index, name in enumerate(names) if index)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in align(lines)) + "\nU: in use by a container\n")
