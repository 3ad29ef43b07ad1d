"""rtnetlink against the kernel, in network namespaces of our own; iproute2 is the second opinion."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tare.linux.netlink import Route

pytestmark = pytest.mark.root

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class Namespace:
    """A named network namespace, its descriptor and a Route opened in it."""

    name: str
    fd: int
    route: Route

    def ip(self, *arguments: str) -> Any:
        command = ["ip", "-n", self.name, "-j", "-d", *arguments]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return json.loads(output or "[]")


def open_route(fd: int) -> Route:
    """A Route bound to another namespace: this thread visits it and comes back."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _setns(fd)
        try:
            return Route()
        finally:
            _setns(here)
    finally:
        os.close(here)


def _setns(fd: int) -> None:
    if LIBC.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def namespace() -> Iterator[Namespace]:
    name = f"tare-test-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
        try:
            with open_route(fd) as route:
                yield Namespace(name, fd, route)
        finally:
            os.close(fd)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def host() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


@pytest.fixture
def guest() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


def test_bridge(host: Namespace) -> None:
    index = host.route.add_bridge("br0", mac="02:42:0a:00:00:01", mtu=1400, up=True)
    (seen,) = host.ip("link", "show", "br0")
    assert seen["ifindex"] == index
    assert seen["address"] == "02:42:0a:00:00:01"
    assert seen["mtu"] == 1400
    assert "UP" in seen["flags"]
    assert seen["linkinfo"]["info_kind"] == "bridge"
    assert seen["linkinfo"]["info_data"]["stp_state"] == 0
    host.route.add_bridge("br1", stp=True)
    assert host.ip("link", "show", "br1")[0]["linkinfo"]["info_data"]["stp_state"] == 1


def test_veth_is_complete_after_one_message(host: Namespace, guest: Namespace) -> None:
    bridge = host.route.add_bridge("br0", up=True)
    host.route.add_veth(
        "vethabc",
        "eth0",
        peer_ns_fd=guest.fd,
        master_index=bridge,
        mac="02:42:0a:00:00:02",
        peer_mac="02:42:0a:00:00:03",
        mtu=1450,
    )
    (outer,) = host.ip("link", "show", "vethabc")
    assert (outer["master"], outer["mtu"], outer["address"]) == ("br0", 1450, "02:42:0a:00:00:02")
    assert "UP" in outer["flags"]
    (inner,) = guest.ip("link", "show", "eth0")
    assert (inner["mtu"], inner["address"], "UP" in inner["flags"]) == (1450, "02:42:0a:00:00:03", False)
    link = host.route.link("vethabc")
    assert link is not None
    assert (link.master, link.kind, link.up, link.mtu) == (bridge, "veth", True, 1450)


def test_traffic_crosses_bridge_and_default_route(host: Namespace, guest: Namespace) -> None:
    bridge = host.route.add_bridge("br0", up=True)
    host.route.add_address(bridge, "10.99.0.1/24")
    host.route.add_address(bridge, "fd99::1/64")
    host.route.add_veth("v0", "tmp0", peer_ns_fd=guest.fd, master_index=bridge)
    peer = guest.route.link("tmp0")
    assert peer is not None
    guest.route.set_link(peer.index, name="eth0")
    guest.route.set_link(1, up=True)
    guest.route.set_link(peer.index, up=True)
    guest.route.add_address(peer.index, "10.99.0.2/24")
    guest.route.add_address(peer.index, "fd99::2/64")
    guest.route.add_route(None, "10.99.0.1", peer.index)
    guest.route.add_route("default", "fd99::1", peer.index)
    defaults = {route.gateway for route in guest.route.routes() if route.default}
    assert defaults == {"10.99.0.1", "fd99::1"}
    # An address that only the default route reaches, for both families.
    host.route.add_address(bridge, "192.0.2.1/32")
    host.route.add_address(bridge, "2001:db8::1/128")
    for target in ("192.0.2.1", "2001:db8::1", "127.0.0.1"):
        _connect(guest, host, target)


def _connect(guest: Namespace, host: Namespace, target: str) -> None:
    """A TCP connection from one namespace to a listener in the other (sockets stay in the namespace they were made in)."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    local = target.startswith("127.")
    with _socket_in(guest if local else host, family) as server, _socket_in(guest, family) as client:
        server.bind((target, 0))
        server.listen(1)
        client.settimeout(5)
        client.connect(server.getsockname()[:2])


def _socket_in(space: Namespace, family: int) -> socket.socket:
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _setns(space.fd)
        return socket.socket(family, socket.SOCK_STREAM)
    finally:
        _setns(here)
        os.close(here)


def test_dumps_agree_with_iproute2(host: Namespace) -> None:
    bridge = host.route.add_bridge("br0", up=True)
    for number in range(40):  # More than one datagram's worth.
        host.route.add_veth(f"v{number}", f"p{number}", master_index=bridge)
    host.route.set_link(1, up=True)
    host.route.add_address(bridge, "10.98.0.1/20")
    host.route.add_route("10.97.0.0/16", "10.98.0.9")
    host.route.add_route("10.96.0.0/16", None, bridge)
    ours = {(link.index, link.name, link.mac, link.mtu, link.up) for link in host.route.links()}
    theirs = {(s["ifindex"], s["ifname"], s["address"], s["mtu"], "UP" in s["flags"]) for s in host.ip("link")}
    assert ours == theirs
    assert {link.kind for link in host.route.links() if link.master == bridge} == {"veth"}
    ours_a = {(a.index, a.address, a.prefix) for a in host.route.addresses()}
    theirs_a = {(s["ifindex"], a["local"], a["prefixlen"]) for s in host.ip("address") for a in s["addr_info"]}
    assert ours_a == theirs_a
    assert [a.cidr for a in host.route.addresses(bridge) if a.family == socket.AF_INET] == ["10.98.0.1/20"]
    ours_r = {(r.destination, r.gateway, r.scope) for r in host.route.routes() if r.family == socket.AF_INET}
    assert ours_r == {("10.98.0.0/20", "", 253), ("10.97.0.0/16", "10.98.0.9", 0), ("10.96.0.0/16", "", 253)}
    assert {r["dst"] for r in host.ip("-4", "route")} == {destination for destination, _, _ in ours_r}


def test_broadcast_and_no_duplicate_detection(host: Namespace) -> None:
    bridge = host.route.add_bridge("br0", up=True)
    host.route.add_address(bridge, "10.98.5.1/20")
    host.route.add_address(bridge, "fd98::1/64")
    info = {a["local"]: a for a in host.ip("address", "show", "br0")[0]["addr_info"]}
    assert info["10.98.5.1"]["broadcast"] == "10.98.15.255"
    assert info["fd98::1"].get("nodad") is True
    host.route.delete_address(bridge, "fd98::1/64")
    assert "fd98::1" not in {a.address for a in host.route.addresses(bridge)}


def test_changes_of_a_link(host: Namespace, guest: Namespace) -> None:
    first, second = host.route.add_bridge("br0"), host.route.add_bridge("br1")
    host.route.add_veth("v0", "v1", master_index=first, up=False)
    link = host.route.link("v0")
    assert link is not None
    assert (link.up, link.master) == (False, first)
    host.route.set_link(link.index, master=second, mtu=1300, mac="02:00:00:00:00:07", name="other", up=True)
    link = host.route.link("other")
    assert link is not None
    assert (link.up, link.master, link.mtu, link.mac) == (True, second, 1300, "02:00:00:00:00:07")
    host.route.set_link(link.index, master=0, up=False)
    link = host.route.link("other")
    assert link is not None
    assert (link.up, link.master) == (False, 0)
    host.route.set_link(link.index, ns_fd=guest.fd)
    assert host.route.link("other") is None
    assert guest.route.link("other") is not None
    peer = host.route.link("v1")
    assert peer is not None
    host.route.delete_link(peer.index)
    assert guest.route.link("other") is None


def test_refusals_name_the_object(host: Namespace) -> None:
    host.route.add_bridge("br0")
    with pytest.raises(FileExistsError) as exists:
        host.route.add_bridge("br0")
    assert exists.value.filename == "br0"
    for call, number in (
        (lambda: host.route.delete_link(99999), errno.ENODEV),
        (lambda: host.route.delete_link(0), errno.ENODEV),
        (lambda: host.route.set_link(99999, up=True), errno.ENODEV),
        (lambda: host.route.add_bridge("a-name-that-is-too-long"), errno.EINVAL),
        (lambda: host.route.add_bridge("a/b"), errno.EINVAL),
        (lambda: host.route.add_bridge("br9", mac="zz"), errno.EINVAL),
        (lambda: host.route.add_address(1, "300.1.1.1/24"), errno.EINVAL),
        (lambda: host.route.add_address(1, "10.1.1.1/33"), errno.EINVAL),
        (lambda: host.route.add_address(99999, "10.1.1.1/24"), errno.ENODEV),
        (lambda: host.route.add_route(None, None, 1), errno.EINVAL),
        (lambda: host.route.add_route(None, "10.3.3.3"), errno.ENETUNREACH),
        (lambda: host.route.add_veth("v0", "v1", master_index=99999), errno.EINVAL),
    ):
        with pytest.raises(OSError) as refused:
            call()
        assert refused.value.errno == number, refused.value
        assert refused.value.filename
    assert host.route.link("v0") is None, "a refused veth left an end behind"
    assert host.route.link("missing") is None
    # The socket is still in step after all of this.
    assert host.route.link("br0") is not None


def test_the_kernels_explanation_is_kept(host: Namespace) -> None:
    with pytest.raises(OSError) as refused:
        host.route.add_route(None, "10.3.3.3")
    assert "(" in str(refused.value)


def test_works_in_a_forked_child_after_unshare() -> None:
    """As in the init: fork, unshare, configure; nothing may be imported on the way."""
    script = """
import os, sys, ctypes
from tare.linux.netlink import Route
libc = ctypes.CDLL(None, use_errno=True)
pid = os.fork()
if pid == 0:
    assert libc.unshare(0x40000000) == 0
    before = set(sys.modules)
    with Route() as route:
        route.set_link(1, up=True)
        route.add_veth("a", "b", mac="02:00:00:00:00:01")
        link = route.link("a")
        route.add_address(link.index, "10.1.0.1/24")
        route.add_route(None, "10.1.0.2", link.index)
    os._exit(0 if set(sys.modules) == before else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
