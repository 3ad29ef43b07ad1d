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
    """Print the tree: a line per image, below it one per further name and one per platform. U in the last column means in use."""
    used = {str(container.get("ImageID")) for container in client.call("GET", "/containers/json", {"all": True}) or ()}
    lines = [_HEAD]
    for image in images:
        names = [tag for tag in image.get("RepoTags") or () if tag != "<none>:<none>"] or ["<untagged>"]
        manifests = [each for each in image.get("Manifests") or () if each.get("Kind") == "image" and each.get("Available")]
        in_use = image["Id"] in used or any(each["ImageData"].get("Containers") for each in manifests)
        total = sum(each["ImageData"]["Size"]["Unpacked"] for each in manifests) or image.get("Size") or 0
        content = sum(each["Size"]["Content"] for each in manifests)
        lines.append(_line(names[0], image["Id"], total + content, content, in_use=in_use))
        below = [f"{name}\t\t\t\t" for name in names[1:]] + [_platform(each) for each in manifests]
        lines.extend(f"{'└─' if index == len(below) - 1 else '├─'} {text}" for index, text in enumerate(below))
    sys.stdout.write("".join(line.rstrip() + "\n" for line in align(lines)) + "\nU: in use by a container\n")


def _platform(manifest: dict[str, Any]) -> str:
    platform, data = manifest["ImageData"]["Platform"], manifest["ImageData"]
    name = "/".join(part for part in (platform.get("os"), platform.get("architecture"), platform.get("variant")) if part)
    content = manifest["Size"]["Content"]
    return _line(name, manifest["ID"], data["Size"]["Unpacked"] + content, content, in_use=bool(data.get("Containers")))


def _line(name: str, identifier: str, total: int, content: int, *, in_use: bool) -> str:
    sizes = f"{humanize.size3(total)}\t{humanize.size3(content)}"
    return f"{name}\t{humanize.short_id(identifier)}\t{sizes}\t{'U' if in_use else ''}"
