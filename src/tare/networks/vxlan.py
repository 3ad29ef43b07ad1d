"""A bridge network over two machines: a VXLAN link to one named peer is one more port of the bridge.

    tare network create --subnet 10.9.0.0/24 --ip-range 10.9.0.0/25 -o tare.vxlan.peer=192.0.2.7 -o tare.vxlan.id=42 wide

Both machines create the network with the same subnet and id and disjoint ranges, each naming the other as peer. Point to point, without a
control plane: nothing is discovered, and nothing is encrypted. ``tare.vxlan.port`` (4789) chooses the UDP port, ``tare.vxlan.local`` the
source address.
"""

from __future__ import annotations

from ipaddress import ip_address

from tare.errors import InvalidArgument
from tare.linux.netlink import Route
from tare.networks.model import Network

PEER, ID, PORT, LOCAL = "tare.vxlan.peer", "tare.vxlan.id", "tare.vxlan.port", "tare.vxlan.local"
OVERHEAD = 50
_DEFAULT_PORT = 4789


def name_of(network: Network) -> str:
    return f"vx-{network.id[:12]}"


def links(network: Network) -> tuple[str, ...]:
    """The link to the peer, if the network has one."""
    return (name_of(network),) if PEER in network.options else ()


def check(network: Network) -> None:
    """Refuse options that make no sense."""
    options = network.options
    if PEER not in options:
        if any(name in options for name in (ID, PORT, LOCAL)):
            raise InvalidArgument(f"VXLAN options need a peer: -o {PEER}=ADDRESS")
        return
    for name in (PEER, LOCAL):
        try:
            ip_address(options.get(name, "127.0.0.1"))
        except ValueError:
            raise InvalidArgument(f"invalid address {options[name]!r} for the network option {name}") from None
    for name, limit in ((ID, (1 << 24) - 1), (PORT, 65535)):
        text = options.get(name, "1")
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= limit):
            raise InvalidArgument(f"invalid value {text!r} for the network option {name}: 1 to {limit}")
    if ID not in options:
        raise InvalidArgument(f"a VXLAN network needs -o {ID}=NUMBER, the same on both machines")


def bring_up(route: Route, network: Network) -> None:
    """Create or repair the link to the peer, if the network has one."""
    options = network.options
    bridge = route.link(network.bridge)
    if PEER not in options or bridge is None:
        return
    name = name_of(network)
    link = route.link(name)
    if link is None:
        port = int(options.get(PORT, _DEFAULT_PORT))
        route.add_vxlan(name, int(options[ID]), options[PEER], port, local=options.get(LOCAL, ""), mtu=network.mtu)
        link = route.link(name)
        assert link is not None
    route.set_link(link.index, up=True, master=bridge.index)


def take_down(route: Route, network: Network) -> None:
    """Remove the link to the peer."""
    link = route.link(name_of(network)) if PEER in network.options else None
    if link is not None:
        route.delete_link(link.index)
