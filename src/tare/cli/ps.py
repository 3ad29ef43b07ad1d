"""``ps``: the list of containers."""

from __future__ import annotations

import sys

from tare.cli import humanize
from tare.cli.flags import Command
from tare.cli.tables import filters, write_rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options

HEADERS = {
    "ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT", "RunningFor": "CREATED", "Status": "STATUS",
    "State": "STATE", "Ports": "PORTS", "Names": "NAMES", "Size": "SIZE", "Labels": "LABELS", "Mounts": "MOUNTS",
    "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS", "Platform": "PLATFORM",
}  # fmt: skip
COLUMNS = "ID Image Command RunningFor Status Ports Names"


RAW = (
    "container_id: {{.ID}}\nimage: {{.Image}}\ncommand: {{.Command}}\ncreated_at: {{.CreatedAt}}\nstate: {{.State}}\nstatus: {{.Status}}\n"
    "names: {{.Names}}\nlabels: {{.Labels}}\nports: {{.Ports}}\n"
)


def row(container: dict[str, Any], *, full: bool) -> dict[Any, Any]:
    """The fields that a format can name."""
    from tare.cli.ports import display
    from tare.cli.templatefunctions import MISSING

    names = [name.removeprefix("/") for name in container.get("Names") or ()]
    if not full:
        names = [name for name in names if "/" not in name]
    labels = container.get("Labels") or {}
    command = str(container.get("Command") or "")
    mounts = container.get("Mounts") or ()
    return {
        MISSING: "*formatter.ContainerContext",
        "Command": _quoted(command if full else humanize.shorten(command, 20)),
        "CreatedAt": humanize.local_time(container.get("Created") or 0),
        "ID": container["Id"] if full else humanize.short_id(container["Id"]),
        "Image": _image(container, full=full),
        "Label": lambda name: labels.get(name, ""),
        "Labels": ",".join(f"{name}={value}" for name, value in labels.items()),
        "LocalVolumes": str(sum(mount.get("Driver") == "local" for mount in mounts)),
        "Mounts": ",".join(_mount(mount, full=full) for mount in mounts),
        "Names": ",".join(names),
        "Networks": ",".join((container.get("NetworkSettings") or {}).get("Networks") or {}),
        "Platform": (container.get("ImageManifestDescriptor") or {}).get("platform"),
        "Ports": display(container.get("Ports") or ()),
        "RunningFor": humanize.ago(container.get("Created") or 0),
        "Size": _size(container),
        "State": container.get("State", ""),
        "Status": container.get("Status", ""),
    }


def _quoted(text: str) -> str:
    from tare.cli.documents import encode

    return encode(text)


def _image(container: dict[str, Any], *, full: bool) -> str:
    image = str(container.get("Image") or "")
    if not image:
        return "<no image>"
    if full:
        return image
    identifier = str(container.get("ImageID") or "")
    if image == identifier or (len(image) >= 64 and identifier.endswith(image)):
        return humanize.short_id(identifier)
    name, at, _ = image.partition("@")
    return name if at else image


def _mount(mount: dict[str, Any], *, full: bool) -> str:
    name = str(mount.get("Name") or mount.get("Source") or "")
    return name if full else humanize.shorten(name, 15)


def _size(container: dict[str, Any]) -> str:
    text = humanize.size3(container.get("SizeRw") or 0)
    if (container.get("SizeRootFs") or 0) > 0:
        text += f" (virtual {humanize.size3(container['SizeRootFs'])})"
    return text


def _ps(context: Context, options: Options) -> int:
    last = 1 if options.on("latest") and options.number("last") == -1 else options.number("last")
    layout = options.text("format")
    # A row that is encoded as a whole has its size in it, too.
    sized = options.on("size") or ".Size" in layout or "json .}" in layout.replace(" }", "}")
    query = {
        "all": options.on("all") or options.on("latest") or last > 0 or None,
        "limit": last if last > 0 else None,
        "size": sized or None,
        "filters": filters(options.items("filter")),
    }
    containers = context.client.call("GET", "/containers/json", query) or []
    full = options.on("no-trunc")
    if options.on("quiet") and layout in ("", "table"):
        for container in containers:
            sys.stdout.write((container["Id"] if full else humanize.short_id(container["Id"])) + "\n")
        return 0
    if not layout and not options.on("quiet"):
        from tare.cli.hosts import settings

        layout = str(settings().get("psFormat", ""))
    if layout == "raw":
        layout = "container_id: {{.ID}}" if options.on("quiet") else RAW + "size: {{.Size}}\n" * options.on("size")
    columns = COLUMNS + " Size" if options.on("size") else COLUMNS
    write_rows((row(container, full=full) for container in containers), layout, HEADERS, columns)
    return 0


FORMAT_HELP = "Format output: 'table', 'table TEMPLATE' (with headers), 'json' (a document per line) or a Go template: '{{.ID}}'"
PS = Command(
    "ps",
    "ps [OPTIONS]",
    "List containers",
    _ps,
    (
        ("all", "a", "bool", "Show all containers (default shows just running)"),
        ("filter", "f", "filter", "Filter output based on conditions provided"),
        ("format", "", "string", FORMAT_HELP),
        ("last", "n", "int", "Show n last created containers (includes all states)", -1),
        ("latest", "l", "bool", "Show the latest created container (includes all states)"),
        ("no-trunc", "", "bool", "Don't truncate output"),
        ("quiet", "q", "bool", "Only display container IDs"),
        ("size", "s", "bool", "Display total file sizes"),
    ),
    most=0,
    aliases=("container ls", "container list", "container ps", "ps"),
    examples=(
        "tare ps -a                                              also those that have ended",
        "tare ps --filter status=exited --filter label=team=web",
        "tare ps --format 'table {{.Names}}\\t{{.Status}}'",
    ),
)
