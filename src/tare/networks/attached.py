"""One network at work: its address pools, the containers on it, and (a bridge) its link and rules in the kernel.

Not thread-safe; the service's lock keeps one caller at a time. ``bring_up`` and ``take_down`` block for milliseconds and are run in a
thread; the rest is quick.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from tare.errors import InvalidArgument, ResourceExhausted
from tare.linux.netlink import ISOLATED, Route
from tare.linux.nft import Nftables
from tare.networks import bridge as kernel
from tare.networks import options, parent, vxlan
from tare.networks.firewall import Firewall, Redirect, Rules
from tare.networks.ipam import Address, Pool, mac_for
from tare.networks.model import GATEWAY_KEYS, Connection, Network, Subnet


class AttachedNetwork:
    """A network that hands out addresses, with the containers connected to it."""

    def __init__(self, network: Network, nft: Nftables | None, claim: kernel.Claim | None = None) -> None:
        self.network = network
        self.claim = claim
        self.connections: dict[str, Connection] = {}
        self.failure = ""
        """Why the network cannot be used on this machine; empty when it can."""
        self.pools = [
            Pool(
                ip_network(subnet.subnet),
                label=f"{network.name} ({network.id})",
                ip_range=ip_network(subnet.ip_range) if subnet.ip_range else None,
                reserved=[ip_address(address) for address in (subnet.gateway, *subnet.auxiliary.values()) if address],
            )
            for subnet in network.subnets
        ]
        self.firewall: Firewall | None = None
        self.interface_prefix = network.options.get(options.INTERFACE_PREFIX) or "eth"
        self._options = options.BridgeOptions()
        if network.driver == "bridge":
            assert nft is not None
            self._options = options.bridge_options(network.options)
            self.firewall = Firewall(nft, network.bridge, [subnet.subnet for subnet in network.subnets], self._rules())

    def _rules(self) -> Rules:
        wanted = self._options
        return Rules(
            internal=self.network.internal,
            masquerade=wanted.masquerade,
            icc=wanted.icc,
            source=wanted.source,
            source6=wanted.source6,
            gateway6=next((subnet.gateway for subnet in self.network.subnets if subnet.ipv6), ""),
        )

    @property
    def publishes(self) -> bool:
        """Whether ports of its containers can be published."""
        return self.network.driver == "bridge" and not self.network.internal

    @property
    def host_ip(self) -> str:
        """The host address on which ports are published that name none; empty for all."""
        return self._options.host_ip

    @property
    def link_mode(self) -> str:
        """The mode of a container's link: that of a macvlan or ipvlan; ``isolated`` for a bridge whose containers must not talk."""
        if self.network.driver != "bridge":
            return parent.mode_of(self.network)
        return "" if self._options.icc else ISOLATED

    # Addresses

    def allocate(self, wanted: Address | None, *, ipv6: bool) -> tuple[Address, int, str] | None:
        """An address of one family with its prefix length and gateway; None when the network has none of that family."""
        version = 6 if ipv6 else 4
        candidates = [
            (pool, subnet) for pool, subnet in zip(self.pools, self.network.subnets, strict=True) if pool.subnet.version == version
        ]
        if wanted is not None:
            given = any(subnet.given for _, subnet in candidates)
            candidates = [(pool, subnet) for pool, subnet in candidates if wanted in pool.subnet]
            if not given or not candidates:
                self._refuse(wanted, given)
        for number, (pool, subnet) in enumerate(candidates):
            try:
                return pool.allocate(wanted), pool.subnet.prefixlen, _route(subnet, version)
            except ResourceExhausted:
                if number == len(candidates) - 1:
                    raise
        return None

    def _refuse(self, wanted: Address, given: bool) -> None:
        reason = "user specified IP address is supported only when connecting to networks with user configured subnets"
        if given:
            reason = f"no configured subnet or ip-range contain the IP address {wanted}"
        raise InvalidArgument(f"invalid config for network {self.network.name}: invalid endpoint settings:\n{reason}")

    def release(self, address: str) -> None:
        """Give an address back; an empty one is none."""
        for pool in self.pools if address else ():
            if ip_address(address) in pool:
                pool.release(ip_address(address))

    def adopt(self, connection: Connection) -> Connection | None:
        """Take over a recorded connection, without an address (and its ports) of a family that the network has no more; None when nothing
        of it belongs here, or an address is taken."""
        found: list[tuple[Pool, Address]] = []
        for ipv6, text in ((False, connection.address), (True, connection.address6)):
            if not text:
                continue
            pool = next((pool for pool in self.pools if ip_address(text) in pool.subnet), None)
            if pool is None:
                connection = _without(connection, ipv6)
            elif ip_address(text) in pool:
                return None
            else:
                found.append((pool, ip_address(text)))
        if not found:
            return None
        for pool, address in found:
            pool.adopt(address)
        self.connections[connection.container_id] = connection
        return connection

    # Published ports

    def publish(self, connection: Connection) -> None:
        """Put a connection's redirects into the kernel; all of the table when somebody flushed it."""
        if self.firewall is not None and not self.firewall.publish(_redirects(connection)):
            self.firewall.apply(self.redirects())

    def unpublish(self, connection: Connection) -> None:
        """Take a connection's redirects out; when they are not as expected, put the whole table right."""
        if self.firewall is not None and not self.firewall.unpublish(_redirects(connection)):
            self.firewall.apply(self.redirects())

    def redirects(self) -> list[Redirect]:
        """The redirects of all connections."""
        return [redirect for connection in self.connections.values() for redirect in _redirects(connection)]

    # The kernel

    def bring_up_link(self) -> list[str]:
        """Create or repair the bridge, or the parent link, alone. Blocking; returns warnings."""
        network = self.network
        with Route() as route:
            if network.driver != "bridge":
                parent.bring_up(route, network)
                return []
            subnets = [subnet for subnet in network.subnets if subnet.ipv6 or self._options.addressed]
            addresses = [f"{subnet.gateway}/{subnet.subnet.partition('/')[2]}" for subnet in subnets]
            mac = mac_for(ip_address(network.subnets[0].gateway))
            warnings = kernel.bring_up(route, network.bridge, addresses, network.mtu, mac=mac, exclusive=network.own_bridge)
            vxlan.bring_up(route, network)
            return warnings

    @property
    def links(self) -> frozenset[str]:
        """The names of the links that we made for it."""
        network = self.network
        if network.driver != "bridge":
            return frozenset({network.parent} & {parent.own_parent(network.id)})
        return frozenset({network.bridge, *vxlan.links(network)})

    def lost_link(self) -> bool:
        """Whether a link of its own is missing. Blocking."""
        with Route() as route:
            return any(route.link(name) is None for name in self.links)

    def bring_up(self) -> list[str]:
        """Create or repair link and rules. Blocking; returns warnings."""
        warnings = self.bring_up_link()
        if self.firewall is not None:
            self.firewall.apply(self.redirects())
            warning = self.firewall.open_forward()
            warnings += [warning] if warning else []
        return warnings

    def look(self) -> list[str]:
        """Put rules back that somebody took away. Blocking; returns warnings."""
        if self.firewall is None or self.failure:
            return []
        warnings = []
        if not self.firewall.intact():
            self.firewall.apply(self.redirects())
            warnings.append(f"packet rules of network {self.network.name} were removed by somebody: put back")
        warning = self.firewall.open_forward()
        return [*warnings, warning] if warning else warnings

    def take_down(self) -> None:
        """Remove rules, link (if it is ours) and claim. Blocking."""
        if self.firewall is None:
            with Route() as route:
                parent.take_down(route, self.network)
            return
        self.firewall.remove()
        with kernel.choosing():
            if self.network.own_bridge:
                with Route() as route:
                    vxlan.take_down(route, self.network)
                    kernel.take_down(route, self.network.bridge)
            if self.claim is not None:
                self.claim.release(forget=True)


def _route(subnet: Subnet, version: int) -> str:
    return subnet.auxiliary.get(GATEWAY_KEYS[version]) or subnet.gateway


def _without(connection: Connection, ipv6: bool) -> Connection:
    """A connection that has lost its addresses of one family."""
    ports = tuple(port for port in connection.ports if (":" in port.host_ip) != ipv6)
    if ipv6:
        return replace(connection, address6="", prefix_length6=0, gateway6="", ports=ports)
    return replace(connection, address="", prefix_length=0, gateway="", ports=ports)


def _redirects(connection: Connection) -> list[Redirect]:
    return [Redirect(port, connection.address6 if ":" in port.host_ip else connection.address) for port in connection.ports]
