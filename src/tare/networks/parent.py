"""Networks whose links hang on a link of the host instead of a bridge of ours: macvlan and ipvlan.

The parent is the user's (``-o parent=eth0``), or, without one, an empty bridge of ours named after the network, on which containers reach
each other and nothing else.
"""

from __future__ import annotations

import errno
import os

from tare.errors import InvalidArgument, Unsupported
from tare.linux.netlink import IPVLAN_MODES, MACVLAN_MODES, Route
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


def own_parent(network_id: str) -> str:
    """The name of the link that stands in for a parent."""
    return f"dm-{network_id[:12]}"


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
    if link is None:
        raise InvalidArgument(f"-o parent interface was not found on the host: {network.parent}")
    if not link.up:
        route.set_link(link.index, up=True)


def take_down(route: Route, network: Network) -> None:
    """Remove the parent if it is ours."""
    link = route.link(network.parent) if network.parent == own_parent(network.id) else None
    if link is not None:
        route.delete_link(link.index)
