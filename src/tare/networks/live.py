"""A running container's links: plugged in, taken away, and put right from outside. Blocking; call it from a thread.

Work inside a container's network namespace is done by a thread that enters it and ends: a thread of a pool would take the namespace along
to its next task. A few netlink messages, no program of the container or the host.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

from tare.linux import namespaces
from tare.linux.netlink import ISOLATED, Route
from tare.networks.model import Connection

T = TypeVar("T")


def inside(namespace: int, action: Callable[[], T]) -> T:
    """Run an action in a network namespace (a descriptor) and return, or raise, what it does."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            namespaces.join(namespace, "net")
            outcome.append(action())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="tare-netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


class Namespace:
    """The network namespace of a running container, open. A context manager."""

    def __init__(self, pid: int) -> None:
        self.fd = namespaces.open_namespace(f"/proc/{pid}/ns/net")

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.fd)

    def plug(self, connection: Connection) -> None:
        """Make the link of a connection and give it its addresses. On failure nothing is left."""
        with Route() as route:
            bridge = route.link(connection.bridge)
            if bridge is None:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), connection.bridge)
            name, mtu = connection.interface, connection.mtu
            if connection.kind == "veth":
                route.add_veth(connection.host_link, name, peer_ns_fd=self.fd, master_index=bridge.index, peer_mac=connection.mac, mtu=mtu)
                if connection.mode == ISOLATED:
                    route.isolate(connection.host_link)
            else:
                made_as, mac = connection.host_link, connection.mac
                route.add_sub_link(connection.kind, made_as, bridge.index, connection.mode, ns_fd=self.fd, mac=mac, mtu=mtu)
        try:
            inside(self.fd, lambda: _configure(connection))
        except BaseException:
            self.unplug(connection)
            raise

    def unplug(self, connection: Connection) -> None:
        """Remove the link of a connection; one that is gone is no error."""
        for name in (connection.interface, connection.host_link):  # the latter when it never got its name
            inside(self.fd, partial(_delete, name))

    def route(self, connections: Iterable[Connection], gateways: Mapping[str, tuple[str, ...]]) -> None:
        """Make these the default routes, and no others of our links."""
        inside(self.fd, lambda: _route(list(connections), gateways))

    def repair(self, connections: Iterable[Connection], gateways: Mapping[str, tuple[str, ...]]) -> None:
        """Plug in again what somebody deleted, and put veths back on their bridges."""
        lost = []
        with Route() as route:
            for connection in connections:
                link = route.link(connection.host_link)
                bridge = route.link(connection.bridge)
                if bridge is None:
                    continue
                if connection.kind != "veth":
                    lost += [] if inside(self.fd, partial(_exists, connection.interface)) else [connection]
                elif link is None:
                    lost.append(connection)
                elif link.master != bridge.index:
                    route.set_link(link.index, master=bridge.index, up=True)
        for connection in lost:
            self.plug(connection)
        if lost:
            self.route(connections, gateways)


def _configure(connection: Connection) -> None:
    with Route() as route:
        link = route.link(connection.interface if connection.kind == "veth" else connection.host_link)
        if link is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), connection.interface)
        if connection.kind != "veth":
            route.set_link(link.index, name=connection.interface)
        for cidr in connection.cidrs:
            route.add_address(link.index, cidr)
        route.set_link(link.index, up=True)


def _exists(name: str) -> bool:
    with Route() as route:
        return route.link(name) is not None


def _delete(name: str) -> None:
    with Route() as route:
        link = route.link(name)
        if link is not None:
            route.delete_link(link.index)


def _route(connections: list[Connection], gateways: Mapping[str, tuple[str, ...]]) -> None:
    wanted = {gateway for chosen in gateways.values() for gateway in chosen}
    with Route() as route:
        ours = {link.index for c in connections if (link := route.link(c.interface)) is not None}
        for entry in route.routes():
            if entry.default and entry.index in ours and entry.gateway not in wanted:
                route.delete_route(None, entry.gateway, entry.index)
        for connection in connections:
            link = route.link(connection.interface)
            for gateway in gateways.get(connection.endpoint_id, ()):
                if link is not None:
                    route.add_route(None, gateway, link.index, replace=True)
