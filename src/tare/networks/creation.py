"""What is asked of a new network, checked before anything is made; the texts are dockerd's. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

from tare.errors import Forbidden, InvalidArgument, NotFound, Unsupported
from tare.networks import options as driver_options
from tare.networks import parent, vxlan
from tare.networks.bandwidth import parse_bandwidth
from tare.networks.ipam import Range, inside
from tare.networks.model import PREDEFINED, Network, Subnet

NETWORK_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
LINK_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,14}")
"""What a bridge may be called: the name stands in packet rules and paths, so not all that the kernel would take."""


@dataclass(frozen=True)
class NewNetwork:
    """A request for a network. ``subnets`` may leave out gateway, or be empty: the first free default pool is taken."""

    name: str
    driver: str = "bridge"
    subnets: Sequence[Subnet] = ()
    ipv4: bool = True
    ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    scope: str = "local"
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    ipam_driver: str = "default"
    ipam_options: Mapping[str, str] | None = None
    config_only: bool = False
    """A network that nobody can use: a configuration for others."""
    config_from: str = ""
    """The configuration network whose settings are taken over."""


def check_request(wanted: NewNetwork) -> None:
    """Refuse what can be refused without knowing the machine."""
    if not NETWORK_NAME.fullmatch(wanted.name):
        raise InvalidArgument(f"invalid network name: {wanted.name!r}")
    if wanted.name in PREDEFINED:
        raise Forbidden(f"operation is not permitted on predefined {wanted.name} network")
    if wanted.driver in ("host", "null"):
        raise Forbidden(f"only one instance of {wanted.driver!r} network is allowed".replace("'", '"'))
    if wanted.scope not in ("", "local") or wanted.driver == "overlay":
        raise Unsupported("This node is not a swarm manager. Networks of more than this machine are not offered.")
    if wanted.driver not in ("bridge", *parent.DRIVERS):
        raise NotFound(f'could not find plugin {wanted.driver} in v1 plugin registry: plugin "{wanted.driver}" not found')
    if wanted.ipam_driver not in ("", "default"):
        raise InvalidArgument(f"invalid ipam driver {wanted.ipam_driver!r}: only default is offered")
    problems = [problem for subnet in wanted.subnets if (problem := _problem(subnet))]
    if problems:
        raise InvalidArgument("invalid network config:\n" + "\n".join(problems))
    if not wanted.ipv6 and any(subnet.ipv6 for subnet in wanted.subnets):
        raise InvalidArgument("invalid network config:\nIPv6 subnets need an IPv6 network: create it with --ipv6")
    if not wanted.ipv4 and any(subnet.subnet and not subnet.ipv6 for subnet in wanted.subnets):
        raise InvalidArgument("invalid network config:\nIPv4 subnets need an IPv4 network: create it without --ipv4=false")
    if not (wanted.ipv4 or wanted.ipv6):
        raise InvalidArgument("IPv4 or IPv6 must be enabled")


def configured(wanted: NewNetwork, source: Network) -> NewNetwork:
    """A request that takes its settings from a configuration network."""
    if not source.config_only:
        raise Forbidden(f'"{source.name}" is not a configuration network')
    if wanted.config_only:
        raise Forbidden("a configuration network cannot depend on another configuration network")
    own = wanted.subnets or wanted.options or wanted.ipam_options or wanted.ipam_driver not in ("", "default")
    if own or wanted.ipv6 or not wanted.ipv4:
        raise Forbidden("user supplied configurations are not supported if the network depends on a configuration network")
    return replace(
        wanted,
        subnets=source.subnets,
        ipv4=source.ipv4,
        ipv6=source.ipv6,
        options=source.options,
        labels={**source.labels, **wanted.labels},
        ipam_options=source.ipam_options,
        config_from=source.name,
    )


def check_network(network: Network) -> None:
    """Refuse options that cannot be."""
    if network.driver == "bridge":
        if not LINK_NAME.fullmatch(network.bridge):
            raise InvalidArgument(f"invalid bridge name {network.bridge!r}: 1 to 15 letters, digits, '-', '_' and '.'")
        driver_options.bridge_options(network.options)
        vxlan.check(network)
    else:
        parent.mode_of(network)
    parse_bandwidth(network.options.get(driver_options.BANDWIDTH, ""))


def mtu(options: Mapping[str, str], default: int) -> int:
    """The MTU of a network with these options."""
    return driver_options.mtu(options, default - vxlan.OVERHEAD if vxlan.PEER in options else default)


def _problem(wanted: Subnet) -> str:
    """What is wrong with a subnet, or nothing."""
    if not wanted.subnet:
        given = wanted.ip_range or wanted.gateway or next(iter(wanted.auxiliary.values()), "")
        return f"no matching subnet for {given}" if given else ""
    subnet, problem = _range("subnet", wanted.subnet)
    if subnet is None:
        return problem
    if subnet.prefixlen > subnet.max_prefixlen - 2:
        return f"invalid subnet {subnet}: too small"
    if wanted.ip_range:
        ip_range, problem = _range("ip-range", wanted.ip_range)
        if ip_range is None:
            return problem
        if ip_range.version == subnet.version and ip_range.prefixlen < subnet.prefixlen:
            return f"invalid ip-range {ip_range}: CIDR block is bigger than its parent subnet {subnet}"
        if not inside(ip_range, subnet):
            return f"invalid ip-range {ip_range}: parent subnet {subnet} doesn't contain ip-range"
    places = [("gateway", wanted.gateway), *(("auxiliary address", address) for address in wanted.auxiliary.values())]
    return next((problem for what, address in places if address and (problem := _misplaced(what, address, subnet))), "")


def _range(what: str, text: str) -> tuple[Range | None, str]:
    try:
        found = ip_network(text, strict=False)
    except ValueError:
        return None, f"invalid {what} {text}: invalid CIDR block notation"
    if "/" not in text:
        return None, f"invalid {what} {text}: invalid CIDR block notation"
    address = text.partition("/")[0]
    return (found, "") if ip_address(address) == found.network_address else (None, f"invalid {what} {text}: it should be {found}")


def _misplaced(what: str, text: str, subnet: Range) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        return f"invalid {what} {text}: invalid address"
    if address.version != subnet.version:
        return f"invalid {what} {text}: parent subnet is an IPv{subnet.version} block"
    return "" if address in subnet else f"invalid {what} {text}: parent subnet {subnet} doesn't contain this address"
