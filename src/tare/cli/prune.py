"""``container prune``, ``image prune`` and ``system prune``: ask, remove what nobody uses, tell what that gave."""

from __future__ import annotations

import sys

from tare.cli import humanize
from tare.cli.failures import CliError, DaemonError
from tare.cli.flags import Command
from tare.cli.tables import filters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from tare.cli.connection import Client
    from tare.cli.context import Context
    from tare.cli.flags import Options


def confirm(warning: str, options: Options) -> None:
    """Go on only when the user, or ``--force``, says so; otherwise the command ends here, which is no error."""
    if options.on("force"):
        return
    sys.stdout.write(f"{warning}\nAre you sure you want to continue? [y/N] ")
    sys.stdout.flush()
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise CliError("", 0)


def configured_filters() -> list[str]:
    """``pruneFilters`` of the configuration: they hold for every prune."""
    from tare.cli.hosts import settings

    given = settings().get("pruneFilters")
    return [str(entry) for entry in given] if isinstance(given, list) else []


def _all_filters(options: Options) -> list[str]:
    given = options.items("filter")
    named = {entry.partition("=")[::2] for entry in given}
    extra = []
    for entry in configured_filters():
        name, _, value = entry.partition("=")
        opposite = {"label": "label!", "label!": "label"}.get(name)
        if opposite is None or (opposite, value) not in named:
            extra.append(entry)
    return [*given, *extra]


def reclaimed(amount: float) -> str:
    return f"Total reclaimed space: {humanize.size(amount)}\n"


def _lines(title: str, names: Sequence[str]) -> str:
    return f"{title}:\n" + "".join(f"{name}\n" for name in names) + "\n" if names else ""


def prune_containers(client: Client, given: Sequence[str]) -> tuple[str, int]:
    """Text about what was removed, and bytes."""
    answer = client.call("POST", "/containers/prune", {"filters": filters(given)}) or {}
    return _lines("Deleted Containers", answer.get("ContainersDeleted") or ()), int(answer.get("SpaceReclaimed") or 0)


def prune_images(client: Client, given: Sequence[str], *, everything: bool, compressed: bool = False) -> tuple[str, int]:
    """Text about what was removed, and bytes; with ``compressed`` the images that stay lose the form in which they came."""
    query = {"filters": filters([*given, f"dangling={str(not everything).lower()}"]), "compressed": compressed or None}
    answer = client.call("POST", "/images/prune", query) or {}
    lines = [_deleted(entry) for entry in answer.get("ImagesDeleted") or ()]
    return _lines("Deleted Images", lines), int(answer.get("SpaceReclaimed") or 0)


def _deleted(entry: dict[str, Any]) -> str:
    return f"untagged: {entry['Untagged']}" if entry.get("Untagged") else f"deleted: {entry.get('Deleted', '')}"


def prune_networks(client: Client, given: Sequence[str]) -> str:
    answer = client.call("POST", "/networks/prune", {"filters": filters(given)}) or {}
    return _lines("Deleted Networks", answer.get("NetworksDeleted") or ())


def prune_volumes(client: Client, given: Sequence[str]) -> tuple[str, int]:
    answer = client.call("POST", "/volumes/prune", {"filters": filters(given)}) or {}
    return _lines("Deleted Volumes", answer.get("VolumesDeleted") or ()), int(answer.get("SpaceReclaimed") or 0)


def _prune_build_cache(client: Client, given: Sequence[str], *, everything: bool) -> tuple[str, int]:
    """Nothing where the daemon has no builder."""
    usable = [entry for entry in given if not entry.startswith("label")]
    try:
        answer = client.call("POST", "/build/prune", {"all": everything or None, "filters": filters(usable)}) or {}
    except DaemonError as error:
        if error.status in (404, 501):
            return "", 0
        raise
    return _lines("Deleted build cache objects", answer.get("CachesDeleted") or ()), int(answer.get("SpaceReclaimed") or 0)


def _container_prune(context: Context, options: Options) -> int:
    given = _all_filters(options)
    confirm("WARNING! This will remove all stopped containers.", options)
    text, space = prune_containers(context.client, given)
    sys.stdout.write(text + reclaimed(space))
    return 0


def _retention(options: Options) -> list[str]:
    """``--keep-last`` and ``--unused-for`` as filters."""
    rules = [f"keep-last={options.number('keep-last')}"] if "keep-last" in options.given else []
    return rules + ([f"unused-for={options.text('unused-for')}"] if "unused-for" in options.given else [])


def _image_prune(context: Context, options: Options) -> int:
    rules, compressed = _retention(options), options.on("compressed")
    given, everything = [*_all_filters(options), *rules], options.on("all") or bool(rules)
    what = "all images without at least one container associated to them" if everything else "all dangling images"
    what += "".join(f", but {rule.replace('=', ' ')}" for rule in rules)
    what += ", and the compressed layers of all others" if compressed else ""
    confirm(f"WARNING! This will remove {what}.", options)
    text, space = prune_images(context.client, given, everything=everything, compressed=compressed)
    sys.stdout.write(text + reclaimed(space))
    return 0


def _warning(given: Sequence[str], *, everything: bool, volumes: bool) -> str:
    lines = ["all stopped containers", "all networks not used by at least one container"]
    if volumes:
        lines.append("all anonymous volumes not used by at least one container")
    lines.append("all images without at least one container associated to them" if everything else "all dangling images")
    lines.append("all build cache" if everything else "unused build cache")
    text = "WARNING! This will remove:\n" + "".join(f"  - {line}\n" for line in lines)
    if given:
        text += "\n  Items to be pruned will be filtered with:\n" + "".join(f"  - {entry}\n" for entry in given)
    return text


def _system_prune(context: Context, options: Options) -> int:
    given, everything, volumes = _all_filters(options), options.on("all"), options.on("volumes")
    if volumes and any(entry.startswith("until=") for entry in options.items("filter")):
        raise CliError('ERROR: The "until" filter is not supported with "--volumes"')
    confirm(_warning(given, everything=everything, volumes=volumes), options)
    client, total = context.client, 0
    text, space = prune_containers(client, given)
    sys.stdout.write(text)
    total += space
    sys.stdout.write(prune_networks(client, given))
    if volumes:
        text, space = prune_volumes(client, given)
        sys.stdout.write(text)
        total += space
    text, space = prune_images(client, given, everything=everything)
    sys.stdout.write(text)
    total += space
    text, space = _prune_build_cache(client, given, everything=everything)
    sys.stdout.write(text + reclaimed(total + space))
    return 0


_FILTER = ("filter", "", "filter", 'Provide filter values (e.g. "until=<timestamp>")')
_RETENTION = (
    ("keep-last", "", "int", "Keep the newest images of each repository; implies --all"),
    ("unused-for", "", "string", "Keep images that something was made of, or that got a name, within this time (720h); implies --all"),
)
_FORCE = ("force", "f", "bool", "Do not prompt for confirmation")
CONTAINER_PRUNE = Command(
    "container prune", "container prune [OPTIONS]", "Remove all stopped containers", _container_prune, (_FILTER, _FORCE), most=0,
    examples=("tare container prune --filter until=24h     those that ended a day ago or earlier",),
)  # fmt: skip
IMAGE_PRUNE = Command(
    "image prune", "image prune [OPTIONS]", "Remove unused images", _image_prune,
    (
        ("all", "a", "bool", "Remove all unused images, not just dangling ones"),
        ("compressed", "", "bool", "Remove the compressed layers of images that stay: they run, but are pushed and saved anew"),
        _FILTER, _FORCE, *_RETENTION,
    ),
    most=0, examples=("tare image prune --keep-last 3 --unused-for 720h      old versions that nothing was made of for a month",),
)  # fmt: skip
SYSTEM_PRUNE = Command(
    "system prune", "system prune [OPTIONS]", "Remove unused data", _system_prune,
    (
        ("all", "a", "bool", "Remove all unused images not just dangling ones"),
        ("filter", "", "filter", 'Provide filter values (e.g. "label=<key>=<value>")'),
        _FORCE, ("volumes", "", "bool", "Prune anonymous volumes"),
    ),
    most=0, examples=("tare system prune -a --volumes      everything that no container uses",),
)  # fmt: skip
