"""Where a network goes on this machine: which bridge name, which subnet, which gateway.

The flags ``--bridge`` and ``--bip`` decide; else what was chosen before, when it is still free; else the first free choice. Choosing
happens under a lock of the whole machine (``bridge.choosing``) that the caller holds until the bridge has its address: from then on
every other daemon sees the subnet as taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv4Network, NetmaskValueError
from pathlib import Path

from tare.config import EngineConfig
from tare.errors import Conflict, InvalidArgument
from tare.linux.netlink import Route
from tare.networks import bridge as kernel
from tare.networks.files import parse_resolver, uses_stub_resolver
from tare.networks.ipam import choose_subnet
from tare.networks.model import Network, Subnet

HOST_RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVED_RESOLV_CONF = Path("/run/systemd/resolve/resolv.conf")


def read_text(path: Path) -> str:
    """A host file's text; empty when it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def host_resolv_conf() -> str:
    """The host's resolver configuration with its real servers: systemd-resolved's own file where /etc names only the stub."""
    text = read_text(HOST_RESOLV_CONF)
    return read_text(RESOLVED_RESOLV_CONF) or text if uses_stub_resolver(text) else text


def parse_subnet(text: str) -> IPv4Network:
    """A subnet as CIDR."""
    try:
        return IPv4Network(text)
    except (AddressValueError, NetmaskValueError, ValueError):
        raise InvalidArgument(f"invalid subnet {text}: want an IPv4 network such as 10.5.0.0/16") from None


def place_default_bridge(config: EngineConfig, record: Network, others: Sequence[Network]) -> tuple[Network, kernel.Claim]:
    """Name, ownership and subnet of the default bridge, and the claim on its name. Call it under ``bridge.choosing``. Blocking."""
    owner = str(config.data_root.resolve())
    with Route() as route:
        claim = _claim(route, config, owner, record.bridge)
        try:
            existing = kernel.address_of(route, claim.name)
            link = route.link(claim.name)
            # A bridge that was there before us, by the user's wish, is used as it is and never removed.
            own = record.own_bridge if record.bridge == claim.name else True
            if config.bridge and link is not None and claim.previous_owner != owner:
                own = False
            subnet = _default_subnet(route, config, record, others, claim.name, "" if own else existing)
        except BaseException:
            claim.decline()
            raise
    return replace(record, bridge=claim.name, own_bridge=own, subnets=(subnet,), mtu=config.mtu), claim


def _claim(route: Route, config: EngineConfig, owner: str, remembered: str) -> kernel.Claim:
    if not config.bridge:
        return kernel.claim_bridge(route, owner, remembered)
    link = route.link(config.bridge)
    if link is not None and link.kind != "bridge":
        raise InvalidArgument(f"link {config.bridge} exists and is no bridge (--bridge)")
    claim = kernel.Claim.take(config.bridge, owner)
    if claim is None:
        raise Conflict(f"bridge {config.bridge} is in use by another daemon (--bridge)")
    return claim


def _default_subnet(route: Route, config: EngineConfig, record: Network, others: Sequence[Network], bridge: str, existing: str) -> Subnet:
    given = config.bip or existing
    if given:
        try:
            interface = IPv4Interface(given)
        except ValueError:
            raise InvalidArgument(f"invalid bridge address {given}: want an address with prefix length (--bip)") from None
        if interface.ip == interface.network.network_address or interface.network.prefixlen > 30:
            raise InvalidArgument(f"invalid bridge address {given}: not a host address of a network (--bip)")
        return Subnet(str(interface.network), str(interface.ip))
    taken = _taken(route, others, bridge)
    if record.subnets:
        before = IPv4Network(record.subnets[0].subnet)
        if not any(before.overlaps(network) for network in taken):
            return record.subnets[0]
    return _with_gateway(choose_subnet(taken))


def place_subnet(route: Route, wanted: Subnet | None, others: Sequence[Network], bridge: str) -> Subnet:
    """Subnet and gateway of a user-defined network: the wanted one if it is free of other networks, else the first free pool."""
    if wanted is None or not wanted.subnet:
        return _with_gateway(choose_subnet(_taken(route, others, bridge)))
    subnet = parse_subnet(wanted.subnet)
    for other in others:
        if any(subnet.overlaps(IPv4Network(known.subnet)) for known in other.subnets):
            raise Conflict(f"Pool overlaps with other one on this address space: {subnet} and network {other.name}")
    if subnet.prefixlen > 30:
        raise InvalidArgument(f"invalid subnet {subnet}: too small")
    placed = _with_gateway(subnet)
    if wanted.gateway:
        try:
            inside = IPv4Address(wanted.gateway) in subnet
        except ValueError:
            inside = False
        if not inside:
            raise InvalidArgument(f"no matching subnet for gateway {wanted.gateway}")
        placed = replace(placed, gateway=wanted.gateway)
    if wanted.ip_range:
        if not parse_subnet(wanted.ip_range).subnet_of(subnet):
            raise InvalidArgument(f"no matching subnet for range {wanted.ip_range}")
        placed = replace(placed, ip_range=wanted.ip_range)
    return placed


def _with_gateway(subnet: IPv4Network) -> Subnet:
    return Subnet(str(subnet), str(subnet.network_address + 1))


def _taken(route: Route, others: Sequence[Network], bridge: str) -> list[IPv4Network]:
    nameservers = parse_resolver(host_resolv_conf()).nameservers
    ours = [IPv4Network(known.subnet) for other in others for known in other.subnets]
    return [*kernel.taken_networks(route, nameservers, bridge), *ours]
