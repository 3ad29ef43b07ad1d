"""The host's end of a container's network: links between it and the host, made once its network namespace exists."""

from __future__ import annotations

import errno
import os

from tare.linux import namespaces
from tare.linux.netlink import ISOLATED, Route
from tare.runtime import name_service
from tare.runtime.plan import LinkPlan


def make_links(links: tuple[LinkPlan, ...], name_server: str, container_id: str, pid: int) -> None:
    """Make the links into the network namespace of ``pid``, and have the name server answer there. OSError names what is missing."""
    ns_fd = namespaces.open_namespace(f"/proc/{pid}/ns/net")
    try:
        with Route() as route:
            for link in links:
                _make(route, link, ns_fd)
        if name_server:
            name_service.serve(name_server, container_id, ns_fd, pid)
    finally:
        os.close(ns_fd)


def serve_names(name_server: str, container_id: str, pid: int) -> None:
    """Have the name server answer in the network namespace of ``pid`` for as long as that lives."""
    ns_fd = namespaces.open_namespace(f"/proc/{pid}/ns/net")
    try:
        name_service.serve(name_server, container_id, ns_fd, pid)
    finally:
        os.close(ns_fd)


def _make(route: Route, link: LinkPlan, ns_fd: int) -> None:
    master = 0
    if link.bridge:
        bridge = route.link(link.bridge)
        if bridge is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), link.bridge)
        master = bridge.index
    if link.kind != "veth":
        route.add_sub_link(link.kind, link.host_name, master, link.mode, ns_fd=ns_fd, mac=link.mac, mtu=link.mtu)
        return
    route.add_veth(link.host_name, link.name, peer_ns_fd=ns_fd, master_index=master, peer_mac=link.mac, mtu=link.mtu, up=True)
    if link.mode == ISOLATED:
        route.isolate(link.host_name)
