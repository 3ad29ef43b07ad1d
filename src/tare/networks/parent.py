"""Networks whose links hang on a link of the host instead of a bridge of ours: macvlan and ipvlan.

The parent is the user's (``-o parent=eth0``), a VLAN on it that is made when it is not there (``-o parent=eth0.7``), or, without one, an
empty bridge of ours named after the network, on which containers reach each other and nothing else.
"""

from __future__ import annotations

import errno
import os
import re

from tare.errors import InvalidArgument, Unsupported
from tare.linux.netlink import IPVLAN_MODES, MACVLAN_MODES, Link, Route
from tare.networks.model import Network

PARENT_OPTION = "parent"
DRIVERS = ("macvlan", "ipvlan")
_MODES = {"macvlan": ("bridge", MACVLAN_MODES), "ipvlan": ("l2", IPVLAN_MODES)}


def mode_of(network: Network) -> str:
    """The mode of a network's links (``macvlan_mode``, ``ipvlan_mode``). Raises InvalidArgument."""
    default, known = _MODES[network.driver]
    mode = network.options.get(f"{network.driver}_mode", default)
    if mode not in known:
        raise InvalidArgument(
            f"requested {network.driver} mode '{mode}' is not valid, '{default}' mode is the {network.driver} driver default"
        )
    return mode


_VLAN = re.compile(r"(.+)\.([0-9]{1,4})")


def own_parent(network_id: str) -> str:
    """The name of the link that stands in for a parent."""
    return f"dm-{network_id[:12]}"


def is_missing(network: Network) -> bool:
    """Whether the parent is not there, so that it is ours if it can be made. Blocking."""
    with Route() as route:
        return route.link(network.parent) is None


def check(network: Network) -> None:
    """Refuse a network that this kernel cannot have. Blocking: makes a link and deletes it."""
    mode = mode_of(network)
    with Route() as route:
        bring_up(route, network)
        link = route.link(network.parent)
        assert link is not None
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            trial = f"try{network.id[:10]}"
            route.add_sub_link(network.driver, trial, link.index, mode, ns_fd=here)
            made = route.link(trial)
            if made is not None:
                route.delete_link(made.index)
        except OSError as error:
            take_down(route, network)
            if error.errno in (errno.EOPNOTSUPP, errno.ENODEV):
                raise Unsupported(f"{network.driver} is not supported by this kernel (module {network.driver} is missing)") from None
            raise InvalidArgument(f"cannot make {network.driver} links on {network.parent}: {error.strerror}") from None
        finally:
            os.close(here)


def bring_up(route: Route, network: Network) -> None:
    """See to it that the parent exists and is up."""
    link = route.link(network.parent)
    if link is None and network.parent == own_parent(network.id):
        route.add_bridge(network.parent, mtu=network.mtu)
        link = route.link(network.parent)
    if link is None and (match := _VLAN.fullmatch(network.parent)) and (base := route.link(match[1])) is not None:
        link = _made_vlan(route, network.parent, base, int(match[2]))
    if link is None:
        raise InvalidArgument(f"-o parent interface was not found on the host: {network.parent}")
    if not link.up:
        route.set_link(link.index, up=True)


def _made_vlan(route: Route, name: str, base: Link, number: int) -> Link | None:
    if not 1 <= number <= 4094:
        raise InvalidArgument(f"vlan id must be between 1-4094, received: {number}")
    try:
        route.add_vlan(name, base.index, number)
    except OSError as error:
        raise Unsupported(f"failed to create {name} vlan link: {os.strerror(error.errno or 0).lower()}") from None
    return route.link(name)


def take_down(route: Route, network: Network) -> None:
    """Remove the parent if it is ours."""
    link = route.link(network.parent)
    ours = network.parent == own_parent(network.id) or (network.own_bridge and link is not None and link.kind == "vlan")
    if link is not None and ours:
        route.delete_link(link.index)
