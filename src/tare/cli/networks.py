"""``tare network``: docker's verbs."""

from __future__ import annotations

import sys

from tare.cli.connection import quote
from tare.cli.context import warn
from tare.cli.failures import CliError, Unreachable
from tare.cli.flags import Command
from tare.cli.humanize import go_time
from tare.cli.inspection import inspect
from tare.cli.networkspec import is_ip
from tare.cli.prune import configured_filters, confirm, prune_networks
from tare.cli.tables import filters, write_rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options

_HEADERS = {
    "CreatedAt": "CREATED AT", "Driver": "DRIVER", "ID": "NETWORK ID", "IPv4": "IPV4", "IPv6": "IPV6", "Internal": "INTERNAL",
    "Labels": "LABELS", "Name": "NAME", "Scope": "SCOPE",
}  # fmt: skip


def _pairs(entries: Sequence[str]) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in entries)


def _inside(address: str, subnet: str) -> bool:
    """Whether an address, or a range's first one, lies in a subnet: which of several a gateway or range belongs to."""
    from _socket import AF_INET, AF_INET6, inet_pton

    base, _, length = subnet.partition("/")
    address = address.partition("/")[0]
    if (":" in address) != (":" in base) or not is_ip(address) or not is_ip(base) or not length.isdecimal():
        return False
    family = AF_INET6 if ":" in base else AF_INET
    one, other = (int.from_bytes(inet_pton(family, text), "big") for text in (address, base))
    shift = (128 if ":" in base else 32) - int(length)
    return shift >= 0 and one >> shift == other >> shift


def _pools(options: Options) -> list[dict[str, Any]]:
    """``IPAM.Config``: ranges, gateways and reserved addresses put to the subnet that contains them."""
    subnets = options.items("subnet")
    if not subnets and (options.items("ip-range") or options.items("gateway")):
        raise CliError("every ip-range or gateway must have a corresponding subnet")
    pools: list[dict[str, Any]] = [{"Subnet": subnet} for subnet in subnets]

    def place(what: str, key: str, values: Sequence[str]) -> None:
        for value in values:
            found = next((pool for pool in pools if _inside(value, pool["Subnet"])), None)
            if found is None:
                raise CliError(f"no matching subnet for {what} {value}")
            if key in found:
                raise CliError(f"cannot configure multiple {what}s ({value}, {found[key]}) on the same subnet")
            found[key] = value

    place("range", "IPRange", options.items("ip-range"))
    place("gateway", "Gateway", options.items("gateway"))
    for name, address in _pairs(options.items("aux-address")).items():
        found = next((pool for pool in pools if _inside(address, pool["Subnet"])), None)
        if found is None:
            raise CliError(f"no matching subnet for aux-address {address}")
        found.setdefault("AuxiliaryAddresses", {})[name] = address
    return pools


def _create(context: Context, options: Options) -> int:
    body: dict[str, Any] = {
        "Name": options.operands[0],
        "Driver": options.text("driver"),
        "Scope": options.text("scope"),
        "IPAM": {
            "Driver": options.text("ipam-driver"),
            "Options": _pairs(options.items("ipam-opt")),
            "Config": _pools(options),
        },
        "Internal": options.on("internal"),
        "Attachable": options.on("attachable"),
        "Ingress": options.on("ingress"),
        "ConfigOnly": options.on("config-only"),
        "Options": _pairs(options.items("opt")),
        "Labels": _pairs(options.items("label")),
    }
    if options.text("bandwidth"):
        body["Options"]["tare.bandwidth"] = options.text("bandwidth")
    if options.text("config-from"):
        body["ConfigFrom"] = {"Network": options.text("config-from")}
    for flag, key in (("ipv4", "EnableIPv4"), ("ipv6", "EnableIPv6")):
        if flag in options.given:
            body[key] = options.on(flag)
    answer = context.client.call("POST", "/networks/create", None, body)
    if answer.get("Warning"):
        warn(f"WARNING: {answer['Warning']}")
    sys.stdout.write(answer["Id"] + "\n")
    return 0


def _list(context: Context, options: Options) -> int:
    networks = context.client.call("GET", "/networks", {"filters": filters(options.items("filter"))}) or []
    networks.sort(key=lambda network: str(network["Name"]))
    layout = options.text("format")
    full = options.on("no-trunc")

    def short(text: str) -> str:
        return text if full else text[:12]

    if options.on("quiet") and layout in ("", "table"):
        sys.stdout.write("".join(f"{short(network['Id'])}\n" for network in networks))
        return 0
    if not layout:
        from tare.cli.hosts import settings

        layout = str(settings().get("networksFormat", ""))
    rows = [
        {
            "ID": short(network["Id"]), "Name": network["Name"], "Driver": network["Driver"], "Scope": network["Scope"],
            "IPv4": _word(network.get("EnableIPv4", True)), "IPv6": _word(network["EnableIPv6"]), "Internal": _word(network["Internal"]),
            "Labels": ",".join(f"{key}={value}" for key, value in (network.get("Labels") or {}).items()),
            "CreatedAt": go_time(network["Created"]),
        }
        for network in networks
    ]  # fmt: skip
    write_rows(rows, layout, _HEADERS, "ID Name Driver Scope")
    return 0


def _word(value: object) -> str:
    return "true" if value else "false"


def _remove(context: Context, options: Options) -> int:
    code = 0
    for name in options.operands:
        try:
            context.client.call("DELETE", f"/networks/{quote(name, slash=False)}")
            sys.stdout.write(name + "\n")
        except Unreachable:
            raise
        except CliError as error:
            if options.on("force") and "not found" in str(error):
                continue
            warn(str(error))
            code = 1
    return code


def _prune(context: Context, options: Options) -> int:
    confirm("WARNING! This will remove all custom networks not used by at least one container.", options)
    sys.stdout.write(prune_networks(context.client, [*options.items("filter"), *configured_filters()]))
    return 0


def _connect(context: Context, options: Options) -> int:
    network, container = options.operands
    settings: dict[str, Any] = {
        "Aliases": options.items("alias") or None,
        "Links": [link if ":" in link else f"{link}:{link}" for link in options.items("link")] or None,
        "DriverOpts": _pairs(options.items("driver-opt")) or None,
    }
    ipam = {
        "IPv4Address": options.text("ip"),
        "IPv6Address": options.text("ip6"),
        "LinkLocalIPs": options.items("link-local-ip") or None,
    }
    if any(ipam.values()):
        settings["IPAMConfig"] = {key: value for key, value in ipam.items() if value}
    if "gw-priority" in options.given:
        settings["GwPriority"] = options.number("gw-priority")
    body = {"Container": container, "EndpointConfig": settings}
    context.client.call("POST", f"/networks/{quote(network, slash=False)}/connect", None, body)
    return 0


def _disconnect(context: Context, options: Options) -> int:
    network, container = options.operands
    body = {"Container": container, "Force": options.on("force")}
    context.client.call("POST", f"/networks/{quote(network, slash=False)}/disconnect", None, body)
    return 0


CREATE = Command(
    "network create", "network create [OPTIONS] NETWORK", "Create a network", _create,
    (
        ("attachable", "", "bool", "Enable manual container attachment"),
        ("aux-address", "", "list", "Auxiliary IPv4 or IPv6 addresses used by Network driver"),
        ("bandwidth", "", "string", "Limit of each container: RATE or RECEIVE/SEND, such as 10mbit"),
        ("config-from", "", "string", "The network from which to copy the configuration"),
        ("config-only", "", "bool", "Create a configuration only network"),
        ("driver", "d", "string", "Driver to manage the Network (default \"bridge\")"),
        ("gateway", "", "list", "IPv4 or IPv6 Gateway for the master subnet"),
        ("ingress", "", "bool", "Create swarm routing-mesh network"),
        ("internal", "", "bool", "Restrict external access to the network"),
        ("ip-range", "", "list", "Allocate container ip from a sub-range"),
        ("ipam-driver", "", "string", "IP Address Management Driver (default \"default\")"),
        ("ipam-opt", "", "list", "Set IPAM driver specific options"),
        ("ipv4", "", "bool", "Enable or disable IPv4 address assignment"),
        ("ipv6", "", "bool", "Enable or disable IPv6 address assignment"),
        ("label", "", "list", "Set metadata on a network"),
        ("opt", "o", "list", "Set driver specific options"),
        ("scope", "", "string", "Control the network's scope"),
        ("subnet", "", "list", "Subnet in CIDR format that represents a network segment"),
    ),
    least=1, most=1, examples=("tare network create --subnet 10.9.0.0/24 --gateway 10.9.0.254 back", "tare network create --ipv6 front"),
)  # fmt: skip
LS = Command(
    "network ls", "network ls [OPTIONS]", "List networks", _list,
    (
        ("filter", "f", "filter", 'Provide filter values (e.g. "driver=bridge")'),
        ("format", "", "string", "Format output: 'table', 'table TEMPLATE', 'json' or a Go template"),
        ("no-trunc", "", "bool", "Do not truncate the output"),
        ("quiet", "q", "bool", "Only display network IDs"),
    ),
    most=0, aliases=("network ls", "network list"),
)  # fmt: skip
INSPECT = Command(
    "network inspect", "network inspect [OPTIONS] NETWORK [NETWORK...]", "Display detailed information on one or more networks",
    lambda context, options: inspect(context, options, "network"),
    (
        ("format", "f", "string", "Format output: 'json' or a Go template, such as '{{.Driver}}'"),
        ("verbose", "v", "bool", "Verbose output for diagnostics"),
    ),
    least=1,
)  # fmt: skip
RM = Command(
    "network rm", "network rm NETWORK [NETWORK...]", "Remove one or more networks", _remove,
    (("force", "f", "bool", "Do not error if the network does not exist"),), least=1, aliases=("network rm", "network remove"),
)  # fmt: skip
PRUNE = Command(
    "network prune", "network prune [OPTIONS]", "Remove all unused networks", _prune,
    (
        ("filter", "", "filter", 'Provide filter values (e.g. "until=<timestamp>")'),
        ("force", "f", "bool", "Do not prompt for confirmation"),
    ),
    most=0,
)  # fmt: skip
CONNECT = Command(
    "network connect", "network connect [OPTIONS] NETWORK CONTAINER", "Connect a container to a network", _connect,
    (
        ("alias", "", "list", "Add network-scoped alias for the container"),
        ("driver-opt", "", "list", "Driver options for the network"),
        ("gw-priority", "", "int", "Highest gw-priority provides the default gateway. Accepts positive and negative values"),
        ("ip", "", "string", 'IPv4 address (e.g., "172.30.100.104")'),
        ("ip6", "", "string", 'IPv6 address (e.g., "2001:db8::33")'),
        ("link", "", "list", "Add link to another container"),
        ("link-local-ip", "", "list", "Add a link-local address for the container"),
    ),
    least=2, most=2,
)  # fmt: skip
DISCONNECT = Command(
    "network disconnect", "network disconnect [OPTIONS] NETWORK CONTAINER", "Disconnect a container from a network", _disconnect,
    (("force", "f", "bool", "Force the container to disconnect from a network"),), least=2, most=2,
)  # fmt: skip
