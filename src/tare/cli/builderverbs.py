"""``builder df``, ``builder prune`` and ``builder history``: the build cache, and what was built."""

from __future__ import annotations

import sys

from tare.cli import humanize
from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.tables import filters, rows_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.connection import Client
    from tare.cli.context import Context
    from tare.cli.flags import Options

_DF = {"ID": "ID", "Reclaimable": "RECLAIMABLE", "Size": "SIZE", "LastUsedSince": "LAST ACCESSED", "Description": "DESCRIPTION"}
_HISTORY = {
    "ID": "BUILD ID", "Name": "NAME", "Status": "STATUS", "CreatedAt": "CREATED AT", "Duration": "DURATION", "Steps": "STEPS",
    "CachedSteps": "CACHED", "Image": "IMAGE", "Error": "ERROR", "Tags": "TAGS",
}  # fmt: skip
_HISTORY_VERBS = ("ls", "inspect", "logs", "rm")


def _df(context: Context, options: Options) -> int:
    usage = context.client.call("GET", "/system/df", {"type": "build-cache"}) or {}
    entries = [entry for entry in usage.get("BuildCache") or () if _chosen(entry, options.items("filter"))]
    rows = [_cache_row(entry) for entry in sorted(entries, key=lambda entry: str(entry["LastUsedAt"]), reverse=True)]
    shown = "ID Reclaimable Size LastUsedSince" + (" Description" if options.on("verbose") else "")
    layout = options.text("format")
    sys.stdout.write(rows_text(rows, layout, _DF, shown))
    if layout in ("", "table"):
        shared = sum(entry["Size"] for entry in entries if entry["Shared"])
        own = sum(entry["Size"] for entry in entries if not entry["Shared"])
        free = sum(entry["Size"] for entry in entries if not entry["Shared"] and not entry["InUse"])
        for name, amount in (("Shared:", shared), ("Private:", own), ("Reclaimable:", free), ("Total:", shared + own)):
            sys.stdout.write(f"{name:<14}{humanize.size(amount)}\n")
    return 0


def _cache_row(entry: dict[str, Any]) -> dict[Any, Any]:
    used = humanize.ago(humanize.parse_time(entry["LastUsedAt"])).removesuffix(" ago") + " ago"
    return {
        "ID": entry["ID"],
        "Reclaimable": str(not entry["InUse"]).lower(),
        "Size": humanize.size(entry["Size"]) + ("*" if entry["Shared"] else ""),
        "LastUsedSince": used,
        "Description": entry["Description"],
        "Type": entry["Type"],
        "Shared": str(bool(entry["Shared"])).lower(),
        "UsageCount": str(entry["UsageCount"]),
    }


def _chosen(entry: dict[str, Any], texts: list[str]) -> bool:
    for text in texts:
        name, _, value = text.partition("=")
        fields = {
            "id": str(entry["ID"]).startswith(value),
            "type": entry["Type"] == value,
            "description": value in str(entry["Description"]),
            "shared": bool(entry["Shared"]) == (value in ("", "1", "true")),
            "private": bool(entry["Shared"]) != (value in ("", "1", "true")),
            "inuse": bool(entry["InUse"]) == (value in ("", "1", "true")),
        }
        if name not in fields:
            raise CliError(f"invalid filter {name!r}: {', '.join(fields)} are offered")
        if not fields[name]:
            return False
    return True


def _prune(context: Context, options: Options) -> int:
    from tare.cli.prune import confirm, reclaimed

    everything = options.on("all")
    confirm(f"WARNING! This will remove all {'' if everything else 'dangling '}build cache.", options)
    query = {
        "all": "1" if everything else None,
        "filters": filters(options.items("filter")),
        "keep-storage": options.number("keep-storage") or None,
        "reserved-space": options.number("reserved-space") or None,
        "max-used-space": options.number("max-used-space") or None,
        "min-free-space": options.number("min-free-space") or None,
    }
    answer = context.client.call("POST", "/build/prune", query) or {}
    gone = answer.get("CachesDeleted") or ()
    if gone:
        sys.stdout.write("Deleted build cache objects:\n" + "".join(f"{id}\n" for id in gone) + "\n")
    sys.stdout.write(reclaimed(int(answer.get("SpaceReclaimed") or 0)))
    return 0


def _history(context: Context, options: Options) -> int:
    verb, *names = options.operands or ["ls"]
    if verb not in _HISTORY_VERBS:
        raise CliError(f"unknown command {verb!r}: {', '.join(_HISTORY_VERBS)} are offered", 125)
    client = context.client
    if verb == "ls":
        sys.stdout.write(_listed(client, options))
    elif verb == "rm":
        _remove(client, names, everything=options.on("all"))
    elif verb == "inspect":
        from tare.cli.documents import pretty

        found = [client.call("GET", f"/tare/history/{name}") for name in names or ["latest"]]
        sys.stdout.write(pretty(found, "    ") + "\n")
    else:
        _replay(client, names[0] if names else "latest", options.text("progress"))
    return 0


def _listed(client: Client, options: Options) -> str:
    rows = []
    for record in client.call("GET", "/tare/history") or ():
        begun = humanize.parse_time(record["StartedAt"])
        ended = humanize.parse_time(record["CompletedAt"]) if record["CompletedAt"] else None
        rows.append(
            {
                "ID": record["Id"][:12],
                "Name": record["Name"] or "-",
                "Status": record["Status"],
                "CreatedAt": humanize.ago(begun).removesuffix(" ago") + " ago",
                "Duration": f"{ended - begun:.1f}s" if ended else "",
                "Steps": str(record["Steps"]),
                "CachedSteps": str(record["CachedSteps"]),
                "Image": humanize.short_id(record["Image"]),
                "Error": record["Error"],
                "Tags": ",".join(record["Tags"]),
            }
        )
    if options.on("quiet"):
        return "".join(f"{row['ID']}\n" for row in rows)
    return rows_text(rows, options.text("format"), _HISTORY, "ID Name Tags Status CreatedAt Duration Steps CachedSteps")


def _remove(client: Client, names: list[str], *, everything: bool) -> None:
    if everything:
        names = [record["Id"] for record in client.call("GET", "/tare/history") or () if record["Status"] != "Running"]
    elif not names:
        raise CliError("builder history rm needs a build, or --all", 125)
    for name in names:
        client.call("DELETE", f"/tare/history/{name}")
        sys.stdout.write(f"{name}\n")


def _replay(client: Client, name: str, progress: str) -> None:
    """Show a build's log as it was shown."""
    from tare.cli.buildshow import Plain, Raw

    display = Raw() if progress == "rawjson" else Plain()
    for document in client.stream("GET", f"/tare/history/{name}/log").lines():
        if "trace" in document:
            display.show(document["trace"])
        elif "stream" in document:
            sys.stdout.write(str(document["stream"]))
    display.close()


_FORMAT = ("format", "", "string", "Format output: 'table', 'table TEMPLATE', 'json' or a Go template")
PRUNE = Command(
    "builder prune", "builder prune [OPTIONS]", "Remove build cache", _prune,
    (
        ("all", "a", "bool", "Remove all unused build cache, not just dangling ones"),
        ("filter", "", "filter", 'Provide filter values (e.g. "until=24h")'),
        ("force", "f", "bool", "Do not prompt for confirmation"),
        ("keep-storage", "", "bytes", "Amount of disk space to keep for cache"),
        ("max-used-space", "", "bytes", "Maximum amount of disk space allowed to keep for cache"),
        ("min-free-space", "", "bytes", "Target amount of free disk space after pruning"),
        ("reserved-space", "", "bytes", "Amount of disk space always allowed to keep for cache"),
    ),
    most=0, examples=("tare builder prune --filter until=48h", "tare builder prune -a --keep-storage 10GB"),
)  # fmt: skip
DF = Command(
    "builder df", "builder df [OPTIONS]", "Show the build cache", _df,
    (
        ("filter", "", "list", 'Provide filter values (e.g. "type=exec.cachemount")'),
        _FORMAT,
        ("verbose", "v", "bool", "Show what each entry was made by"),
    ),
    most=0, examples=("tare builder df -v",),
)  # fmt: skip
HISTORY = Command(
    "builder history", "builder history [ls | inspect | logs | rm] [BUILD...]", "Show earlier builds, and what they said", _history,
    (
        ("all", "", "bool", "With rm: all builds that are over"),
        _FORMAT,
        ("progress", "", "string", 'With logs: "plain" or "rawjson"', "plain"),
        ("quiet", "q", "bool", "With ls: ids alone"),
    ),
    examples=("tare builder history", "tare builder history logs      what the last build said", "tare builder history rm --all"),
)  # fmt: skip
