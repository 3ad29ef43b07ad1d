"""``system df``: what images, containers and volumes take of the disk; with ``-v`` each one, and whose every byte of the data root is."""

from __future__ import annotations

import sys

from tare.cli import humanize
from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.tables import rows_text, templated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options

_SUMMARY = {"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}
_VOLUME = {"Name": "VOLUME NAME", "Links": "LINKS", "Size": "SIZE"}
_CACHE = {
    "ID": "CACHE ID", "CacheType": "CACHE TYPE", "Size": "SIZE", "CreatedSince": "CREATED", "LastUsedSince": "LAST USED",
    "UsageCount": "USAGE", "Shared": "SHARED",
}  # fmt: skip
_ENTRY = {"Kind": "KIND", "Name": "NAME", "Size": "SIZE", "UsedBy": "USED BY"}
_RUNNING = ("running", "paused", "restarting")


def _share(part: int, whole: int) -> str:
    text = humanize.size(part)
    return f"{text} ({part * 100 // whole}%)" if whole > 0 else text


def _summary(kind: str, total: int, active: int, size: int, reclaimable: str) -> dict[str, Any]:
    return {"Active": str(active), "Reclaimable": reclaimable, "Size": humanize.size(size), "TotalCount": str(total), "Type": kind}


def summaries(usage: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per kind of object."""
    images = usage.get("Images") or []
    layers = int(usage.get("LayersSize") or 0)
    unknown = (-1, None)
    needed = sum(
        image["Size"] - image["SharedSize"]
        for image in images
        if image.get("Containers") and image.get("SharedSize") not in unknown and image.get("Size") not in unknown
    )
    containers = usage.get("Containers") or []
    running = [container for container in containers if container.get("State") in _RUNNING]
    written = sum(container.get("SizeRw") or 0 for container in containers)
    idle = written - sum(container.get("SizeRw") or 0 for container in running)
    volumes = [volume.get("UsageData") or {} for volume in usage.get("Volumes") or ()]
    known = [volume for volume in volumes if volume.get("Size", -1) != -1]
    stored = sum(volume["Size"] for volume in known)
    unused = sum(volume["Size"] for volume in known if not volume.get("RefCount"))
    caches = usage.get("BuildCache") or []
    own = [cache for cache in caches if not cache.get("Shared")]
    cached, free = sum(cache["Size"] for cache in own), sum(cache["Size"] for cache in own if not cache.get("InUse"))
    return [
        _summary("Images", len(images), sum(bool(image.get("Containers")) for image in images), layers, _share(layers - needed, layers)),
        _summary("Containers", len(containers), len(running), written, _share(idle, written)),
        _summary("Local Volumes", len(volumes), sum(volume.get("RefCount", 0) > 0 for volume in volumes), stored, _share(unused, stored)),
        _summary("Build Cache", len(caches), sum(bool(cache.get("InUse")) for cache in caches), cached, humanize.size(free)),
    ]


def details(usage: dict[str, Any], *, full: bool) -> dict[str, list[dict[Any, Any]]]:
    """The rows of each object; an image has one, with its first name, and a container's size is what it wrote."""
    from tare.cli import images, ps

    return {
        "Images": [{**next(images.rows([image], full=full, digests=False)), "Digest": ""} for image in usage.get("Images") or ()],
        "Containers": [ps.row({**container, "SizeRootFs": 0}, full=full) for container in usage.get("Containers") or ()],
        "Volumes": [_volume(volume) for volume in usage.get("Volumes") or ()],
        "BuildCache": [_cache(cache) for cache in usage.get("BuildCache") or ()],
        "DataRoot": [_entry(entry, full=full) for entry in (usage.get("DataRoot") or {}).get("Entries") or ()],
    }


def _volume(volume: dict[str, Any]) -> dict[Any, Any]:
    data = volume.get("UsageData")
    labels = volume.get("Labels") or {}
    return {
        "Availability": "N/A",
        "Driver": volume.get("Driver", ""),
        "Group": "N/A",
        "Labels": ",".join(f"{name}={value}" for name, value in labels.items()),
        "Links": str(data["RefCount"]) if data else "N/A",
        "Mountpoint": volume.get("Mountpoint", ""),
        "Name": volume["Name"],
        "Scope": volume.get("Scope", ""),
        "Size": humanize.size(data["Size"]) if data and data.get("Size", -1) != -1 else "N/A",
        "Status": "N/A",
    }


def _cache(cache: dict[str, Any]) -> dict[Any, Any]:
    def since(field: str) -> str:
        moment = cache.get(field)
        return humanize.ago(humanize.parse_time(moment)).removesuffix(" ago") + " ago" if moment else ""

    return {
        "ID": humanize.shorten(cache["ID"], 12),
        "Parent": cache.get("Parent", ""),
        "CacheType": cache.get("Type", ""),
        "Description": cache.get("Description", ""),
        "InUse": str(bool(cache.get("InUse"))).lower(),
        "Shared": str(bool(cache.get("Shared"))).lower(),
        "Size": humanize.size(cache["Size"]),
        "CreatedSince": since("CreatedAt"),
        "LastUsedSince": since("LastUsedAt"),
        "UsageCount": str(cache.get("UsageCount", 0)),
    }


def _entry(entry: dict[str, Any], *, full: bool) -> dict[Any, Any]:
    name = str(entry["Name"])
    if not full and (name.startswith("sha256:") or entry["Kind"] in ("container", "snapshot")):
        name = humanize.short_id(name)
    return {"Kind": entry["Kind"], "Name": name, "Size": humanize.size(entry["Size"]), "UsedBy": ", ".join(entry["UsedBy"])}


def _verbose_text(usage: dict[str, Any]) -> str:
    from tare.cli import images, ps

    rows = details(usage, full=False)
    build = humanize.size(sum(cache["Size"] for cache in usage.get("BuildCache") or () if not cache.get("Shared")))
    text = (
        "Images space usage:\n\n"
        + rows_text(rows["Images"], "table", images.HEADERS, "Repository Tag ID CreatedSince Size SharedSize UniqueSize Containers")
        + "\nContainers space usage:\n\n"
        + rows_text(rows["Containers"], "table", ps.HEADERS, "ID Image Command LocalVolumes Size RunningFor Status Names")
        + "\nLocal Volumes space usage:\n\n"
        + rows_text(rows["Volumes"], "table", _VOLUME, "Name Links Size")
        + f"\nBuild cache usage: {build}\n\n"
        + rows_text(rows["BuildCache"], "table", _CACHE, "ID CacheType Size CreatedSince LastUsedSince UsageCount Shared")
    )
    root = usage.get("DataRoot")
    if root:
        text += f"\nData root {root['Path']}: {humanize.size(root['Size'])}\n\n"
        text += rows_text(rows["DataRoot"], "table", _ENTRY, "Kind Name Size UsedBy")
    return text


def _df(context: Context, options: Options) -> int:
    verbose, layout = options.on("verbose"), options.text("format")
    usage = context.client.call("GET", "/system/df", {"data-root": "1" if verbose else None})
    if not isinstance(usage, dict):
        raise CliError("the daemon's answer about disk usage is no JSON object")
    if not verbose:
        sys.stdout.write(rows_text(summaries(usage), layout, _SUMMARY, "Type TotalCount Active Size Reclaimable"))
    elif layout in ("", "table"):
        sys.stdout.write(_verbose_text(usage))
    else:
        text = "{{json .}}" if layout == "json" else layout
        sys.stdout.write("".join(line + "\n" for line in templated(text, [details(usage, full=True)], None)))
    return 0


DF = Command(
    "system df",
    "system df [OPTIONS]",
    "Show disk usage",
    _df,
    (
        ("format", "", "string", "Format output: 'table', 'table TEMPLATE', 'json' or a Go template"),
        ("verbose", "v", "bool", "Show detailed information on space usage, and whose every byte of the data root is"),
    ),
    most=0,
    examples=("tare system df", "tare system df -v"),
)
