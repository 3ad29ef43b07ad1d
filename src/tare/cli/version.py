"""``version``."""

from __future__ import annotations

import sys

from tare import __version__
from tare.cli.connection import API_VERSION
from tare.cli.failures import CliError
from tare.cli.flags import Command

CLIENT_VERSION = __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options


def _client(version: str, context: str) -> dict[str, Any]:
    from os import uname

    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(uname().machine, uname().machine)
    return {
        "Version": CLIENT_VERSION,
        "ApiVersion": version,
        "DefaultAPIVersion": API_VERSION,
        "GitCommit": "",
        "GoVersion": f"python{sys.version.split()[0]}",
        "PythonVersion": sys.version.split()[0],
        "Os": "linux",
        "Arch": machine,
        "BuildTime": "",
        "Context": context,
    }


def _version(context: Context, options: Options) -> int:
    failure: CliError | None = None
    server = None
    version = API_VERSION
    layout = options.text("format")
    try:
        client = context.client
        server = client.call("GET", "/version")
        version = client.version
    except CliError as error:
        failure = error
    document = {"Client": _client(version, context.choice().context), "Server": server}
    if layout:
        try:
            _formatted(document, layout)
        except CliError as error:
            failure = failure or error
    else:
        sys.stdout.write(_text(document))
    if failure is not None:
        raise failure
    return 0


def _formatted(document: dict[str, Any], layout: str) -> None:
    if layout == "json":
        from tare.cli.documents import encode

        sys.stdout.write(encode(document) + "\n")
        return
    from tare.cli.tables import write_one
    from tare.cli.templatefunctions import MISSING

    document["Client"][MISSING] = "system.clientVersion"
    if document["Server"] is not None:
        document["Server"][MISSING] = "*types.Version"
    document["Client"]["APIVersion"] = document["Client"]["ApiVersion"]
    write_one(layout, {**document, MISSING: "system.versionInfo"}, "version")


def _text(document: dict[str, Any]) -> str:
    client, server = document["Client"], document["Server"]
    api = client["ApiVersion"]
    if api != client["DefaultAPIVersion"]:
        api += f" (downgraded from {client['DefaultAPIVersion']})"
    rows = [
        "Client:", f" Version:\t{client['Version']}", f" API version:\t{api}", f" Python version:\t{client['PythonVersion']}",
        f" OS/Arch:\t{client['Os']}/{client['Arch']}", f" Context:\t{client['Context']}",
    ]  # fmt: skip
    if server is not None:
        rows += ["", f"Server: {(server.get('Platform') or {}).get('Name', '')}".rstrip()]
        for component in server.get("Components") or [{"Name": "Engine", "Version": server.get("Version"), "Details": server}]:
            rows += _component(component)
    return "".join(_aligned(row) + "\n" for row in rows)


def _aligned(row: str) -> str:
    label, tab, value = row.partition("\t")
    return label.ljust(20) + value if tab else label


_ENGINE = (("GoVersion", "Go version"), ("GitCommit", "Git commit"), ("BuildTime", "Built"))


def _component(component: dict[str, Any]) -> list[str]:
    details = component.get("Details") or {}
    rows = [f" {component.get('Name', 'Engine')}:", f"  Version:\t{component.get('Version', '')}"]
    if component.get("Name", "Engine") != "Engine":
        return rows + [f"  {key}:\t{details[key]}" for key in sorted(details)]
    rows.append(f"  API version:\t{details.get('ApiVersion', '')} (minimum version {details.get('MinAPIVersion', '')})")
    rows += [f"  {label}:\t{details.get(key, '')}" for key, label in _ENGINE]
    rows.append(f"  OS/Arch:\t{details.get('Os', '')}/{details.get('Arch', '')}")
    return [*rows, f"  Experimental:\t{str(details.get('Experimental', 'false')).lower()}"]


VERSION = Command(
    "version",
    "version [OPTIONS]",
    "Show the version of client and daemon",
    _version,
    (("format", "f", "string", "Format output: 'json' or a Go template, such as '{{.Server.Version}}'"),),
    most=0,
)
