"""Where a network goes on this machine: which bridge name, which subnet, which gateway.

The flags ``--bridge``, ``--bip`` and ``--fixed-cidr`` decide; else what was chosen before, when it is still free; else the first free
choice. Choosing happens under a lock of the whole machine (``bridge.choosing``) that the caller holds until the bridge has its address:
from then on every other daemon sees the subnet as taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

from tare.config import EngineConfig
from tare.errors import Conflict, Forbidden, InvalidArgument
from tare.linux.netlink import Route
from tare.networks import bridge as kernel
from tare.networks import options
from tare.networks.creation import NewNetwork
from tare.networks.files import parse_resolver, uses_stub_resolver
from tare.networks.ipam import DEFAULT_POOLS, Range, choose_subnet, default_subnets, default_subnets6, inside, overlap
from tare.networks.model import GATEWAY_KEYS, Network, Subnet

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


def place_default_bridge(config: EngineConfig, record: Network, others: Sequence[Network]) -> tuple[Network, kernel.Claim]:
    """Name, ownership and subnet of the default bridge, and the claim on its name. Call it under ``bridge.choosing``. Blocking."""
    owner = str(config.data_root.resolve())
    with Route() as route:
        claim = _claim(route, config, owner, record.bridge)
        try:
            link = route.link(claim.name)
            # A bridge that was there before us, by the user's wish, is used as it is and never removed.
            own = record.own_bridge if record.bridge == claim.name else True
            if config.bridge and link is not None and claim.previous_owner != owner:
                own = False
            subnets = [_default_subnet(route, config, record, others, claim.name, foreign=not own, version=4)]
            if config.ipv6:
                subnets.append(_default_subnet(route, config, record, others, claim.name, foreign=not own, version=6))
        except BaseException:
            claim.decline()
            raise
    placed = replace(
        record,
        bridge=claim.name,
        own_bridge=own,
        subnets=tuple(subnets),
        mtu=config.mtu,
        ipv6=config.ipv6,
        options=default_options(config, claim.name),
    )
    return placed, claim


def default_options(config: EngineConfig, bridge: str) -> dict[str, str]:
    """The default bridge's options, which dockerd shows though nobody gave them."""
    return {
        options.DEFAULT_BRIDGE: "true",
        options.ICC: str(config.icc).lower(),
        options.MASQUERADE: str(config.ip_masq).lower(),
        options.HOST_IP: config.ip,
        options.BRIDGE_NAME: bridge,
        options.MTU: str(config.mtu),
    }


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


def _default_subnet(
    route: Route, config: EngineConfig, record: Network, others: Sequence[Network], bridge: str, *, foreign: bool, version: int
) -> Subnet:
    """The default bridge's subnet of one family."""
    existing = kernel.address_of(route, bridge, version) if foreign else ""
    given = (config.bip6 if version == 6 else config.bip) or existing
    part = config.fixed_cidr_v6 if version == 6 else config.fixed_cidr
    gateway = config.default_gateway_v6 if version == 6 else config.default_gateway
    if given:
        chosen = _of_interface(given, part)
    elif part:
        whole = ip_network(part, strict=False)
        _check_free(whole, others)
        chosen = _with_gateway(whole, Subnet(str(whole), "", str(whole)))
    else:
        chosen = _free_subnet(route, config, record, others, bridge, version)
    if not gateway:
        return chosen
    if ip_address(gateway) not in ip_network(chosen.subnet):
        raise InvalidArgument(f"default gateway {gateway} is not in the default bridge's subnet {chosen.subnet} (--default-gateway)")
    return replace(chosen, auxiliary={GATEWAY_KEYS[version]: gateway})


def _of_interface(text: str, part: str | None) -> Subnet:
    try:
        interface = ip_interface(text)
    except ValueError:
        raise InvalidArgument(f"invalid bridge address {text}: want an address with prefix length (--bip)") from None
    network = interface.network
    if interface.ip == network.network_address or network.prefixlen > network.max_prefixlen - 2:
        raise InvalidArgument(f"invalid bridge address {text}: not a host address of a network (--bip)")
    if part and not inside(ip_network(part, strict=False), network):
        raise InvalidArgument(f"invalid range {part}: it is not inside the default bridge's subnet {network} (--fixed-cidr)")
    return Subnet(str(network), str(interface.ip), str(ip_network(part, strict=False)) if part else "")


def _free_subnet(route: Route, config: EngineConfig, record: Network, others: Sequence[Network], bridge: str, version: int) -> Subnet:
    """What was chosen before when it is free, else the first that is."""
    taken = _taken(route, others, bridge)
    pools = config.default_address_pools or DEFAULT_POOLS
    candidates: Iterable[Range] = default_subnets6(pools, str(config.data_root.resolve())) if version == 6 else default_subnets(pools)
    for subnet in record.subnets:
        before = ip_network(subnet.subnet)
        if before.version == version and not any(overlap(before, network) for network in taken):
            return Subnet(str(before), str(before.network_address + 1))
    return _with_gateway(choose_subnet(taken, candidates))


def place_subnets(route: Route, config: EngineConfig, wanted: NewNetwork, others: Sequence[Network], bridge: str) -> tuple[Subnet, ...]:
    """The subnets of a user-defined network: the wanted ones, if they are free of other networks, and the first free pool of each family
    that is to be there and has none."""
    placed: list[Subnet] = []
    for entry in wanted.subnets:
        if entry.subnet:
            _check_free(ip_network(entry.subnet), others)
            placed.append(_with_gateway(ip_network(entry.subnet), entry))
    pools = config.default_address_pools or DEFAULT_POOLS
    if wanted.ipv4 and not any(not subnet.ipv6 for subnet in placed):
        placed.insert(0, _with_gateway(choose_subnet(_taken(route, others, bridge), default_subnets(pools)), given=False))
    if wanted.ipv6 and not any(subnet.ipv6 for subnet in placed):
        candidates = default_subnets6(pools, str(config.data_root.resolve()))
        placed.append(_with_gateway(choose_subnet(_taken(route, others, bridge), candidates), given=False))
    return tuple(placed)


def _check_free(subnet: Range, others: Sequence[Network]) -> None:
    for other in others:
        if not other.config_only and any(overlap(subnet, ip_network(known.subnet)) for known in other.subnets):
            raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")


def _with_gateway(subnet: Range, wanted: Subnet | None = None, *, given: bool = True) -> Subnet:
    """A subnet with its gateway: the wanted one, else the first address that may be it."""
    if wanted is not None and wanted.gateway:
        return replace(wanted, subnet=str(subnet), given=given)
    taken = set(wanted.auxiliary.values()) if wanted is not None else set()
    first = subnet.network_address + 1
    while str(first) in taken:
        first += 1
    if wanted is None:
        return Subnet(str(subnet), str(first), given=given)
    return replace(wanted, subnet=str(subnet), gateway=str(first), given=given)


def _taken(route: Route, others: Sequence[Network], bridge: str) -> list[Range]:
    nameservers = parse_resolver(host_resolv_conf()).nameservers
    ours = [ip_network(known.subnet) for other in others for known in other.subnets if not other.config_only]
    return [*kernel.taken_networks(route, nameservers, bridge), *ours]
