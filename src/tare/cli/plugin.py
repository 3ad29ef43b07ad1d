"""``plugin ls`` and ``plugin inspect``. What Tare's daemon plugs in is built in, so there is nothing to install or to switch."""

from __future__ import annotations

import sys

from tare.cli.connection import quote
from tare.cli.flags import Command
from tare.cli.humanize import short_id, shorten
from tare.cli.tables import filters, write_rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options

_HEADERS = {"ID": "ID", "Name": "NAME", "Description": "DESCRIPTION", "Enabled": "ENABLED", "PluginReference": "PLUGIN REFERENCE"}


def _row(plugin: dict[str, Any], *, full: bool) -> dict[Any, Any]:
    identifier, description = str(plugin.get("Id") or ""), str((plugin.get("Config") or {}).get("Description") or "")
    return {
        "Description": description if full else shorten(description.replace("\n", " "), 45),
        "Enabled": bool(plugin.get("Enabled")),
        "ID": identifier if full else short_id(identifier),
        "Name": str(plugin.get("Name") or ""),
        "PluginReference": str(plugin.get("PluginReference") or ""),
    }


def _ls(context: Context, options: Options) -> int:
    plugins = context.client.call("GET", "/plugins", {"filters": filters(options.items("filter"))}) or ()
    rows = [_row(plugin, full=options.on("no-trunc")) for plugin in plugins]
    layout = options.text("format")
    if options.on("quiet") and layout in ("", "table"):
        sys.stdout.write("".join(f"{row['ID']}\n" for row in rows))
    else:
        write_rows(rows, layout, _HEADERS, "ID Name Description Enabled")
    return 0


def _inspect(context: Context, options: Options) -> int:
    from tare.cli.inspection import show

    client = context.client
    return show(options.operands, options.text("format"), lambda name: client.call("GET", f"/plugins/{quote(name)}/json"))


LS = Command(
    "plugin ls",
    "plugin ls [OPTIONS]",
    "List plugins",
    _ls,
    (
        ("filter", "f", "filter", 'Provide filter values (e.g. "enabled=true")'),
        ("format", "", "string", "Format output: 'table', 'table TEMPLATE' (with headers), 'json' or a Go template: '{{.Name}}'"),
        ("no-trunc", "", "bool", "Don't truncate output"),
        ("quiet", "q", "bool", "Only display plugin IDs"),
    ),
    most=0,
    aliases=("plugin ls", "plugin list"),
)
INSPECT = Command(
    "plugin inspect", "plugin inspect [OPTIONS] PLUGIN [PLUGIN...]", "Display detailed information on one or more plugins", _inspect,
    (("format", "f", "string", "Format output: 'json' or a Go template, such as '{{.Enabled}}'"),), least=1,
)  # fmt: skip
