"""One bridge network at work: its address pool, the containers on it, and its bridge and rules in the kernel.

Not thread-safe; the service's lock keeps one caller at a time. ``bring_up`` and ``take_down`` block for milliseconds and are run in a
thread; the rest is quick.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from tare.linux.netlink import Route
from tare.linux.nft import Nftables
from tare.networks import bridge as kernel
from tare.networks.firewall import Firewall, Redirect
from tare.networks.ipam import Pool
from tare.networks.model import Connection, Network

MASQUERADE_OPTION = "com.docker.network.bridge.enable_ip_masquerade"


class AttachedNetwork:
    """A bridge network with the containers connected to it."""

    def __init__(self, network: Network, nft: Nftables, claim: kernel.Claim | None = None) -> None:
        self.network = network
        self.claim = claim
        self.connections: dict[str, Connection] = {}
        self.failure = ""
        """Why the network cannot be used on this machine; empty when it can."""
        first = network.subnets[0]
        self.subnet = IPv4Network(first.subnet)
        self.gateway = IPv4Address(first.gateway)
        self.pool = Pool(
            self.subnet,
            label=f"{network.name} ({network.id})",
            ip_range=IPv4Network(first.ip_range) if first.ip_range else None,
            reserved=(self.gateway,),
        )
        self.firewall = Firewall(
            nft,
            network.bridge,
            str(self.subnet),
            internal=network.internal,
            masquerade=network.options.get(MASQUERADE_OPTION, "true").lower() not in ("false", "0"),
        )

    def adopt(self, connection: Connection) -> bool:
        """Take over a recorded connection; False when its address does not belong here or is taken."""
        address = IPv4Address(connection.address)
        if address not in self.subnet or address in self.pool:
            return False
        self.pool.adopt(address)
        self.connections[connection.container_id] = connection
        return True

    def publish(self, connection: Connection) -> None:
        """Put a connection's redirects into the kernel; all of the table when somebody flushed it."""
        if not self.firewall.publish(_redirects(connection)):
            self.firewall.apply(self.redirects())

    def unpublish(self, connection: Connection) -> None:
        """Take a connection's redirects out; when they are not as expected, put the whole table right."""
        if not self.firewall.unpublish(_redirects(connection)):
            self.firewall.apply(self.redirects())

    def redirects(self) -> list[Redirect]:
        """The redirects of all connections."""
        return [redirect for connection in self.connections.values() for redirect in _redirects(connection)]

    def bring_up_link(self) -> list[str]:
        """Create or repair the bridge alone. Blocking; returns warnings."""
        network = self.network
        with Route() as route:
            return kernel.bring_up(route, network.bridge, self.gateway, self.subnet.prefixlen, network.mtu, exclusive=network.own_bridge)

    def bring_up(self) -> list[str]:
        """Create or repair bridge and rules. Blocking; returns warnings."""
        warnings = self.bring_up_link()
        self.firewall.apply(self.redirects())
        warning = self.firewall.open_forward()
        return [*warnings, warning] if warning else warnings

    def take_down(self) -> None:
        """Remove rules, bridge (if it is ours) and claim. Blocking."""
        self.firewall.remove()
        with kernel.choosing():
            if self.network.own_bridge:
                with Route() as route:
                    kernel.take_down(route, self.network.bridge)
            if self.claim is not None:
                self.claim.release(forget=True)


def _redirects(connection: Connection) -> list[Redirect]:
    return [Redirect(port, connection.address) for port in connection.ports]
