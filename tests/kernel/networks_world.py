"""A small world for network tests, in one process that was started in a fresh network namespace (``unshare -n``):

    outside 198.51.100.2 ── veth ── host 198.51.100.1 (this process) ── bridge ── containers

Namespaces are made by threads (unshare(2) is per thread) and live as long as their descriptor. Run as
``unshare -n python networks_world.py SCENARIO DIRECTORY``; a scenario is a coroutine of ``networks_scenarios.py`` or
``networks_upkeep_scenarios.py``.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tare.config import EngineConfig
from tare.events import EventBus
from tare.linux import namespaces
from tare.linux.netlink import Route
from tare.networks.model import Connection
from tare.networks.service import Networks
from tare.store.metadata import Metadata

T = TypeVar("T")
HOST = "198.51.100.1"
OUTSIDE = "198.51.100.2"
HOST6 = "2001:db8::1"
OUTSIDE6 = "2001:db8::2"
PATIENCE = 10.0
"""Seconds for what is to succeed: on a busy machine the kernel takes its time until a new link carries."""


def cid(number: int) -> str:
    return f"{number:064x}"


def nft(command: str) -> str:
    return subprocess.run(["nft", *command.split()], capture_output=True, text=True, check=True).stdout


def iptables(command: str) -> str:
    return subprocess.run(["iptables", *command.split()], capture_output=True, text=True, check=True).stdout


def link_names() -> set[str]:
    with Route() as route:
        return {link.name for link in route.links()}


def in_thread(action: Callable[[], T]) -> T:
    """Run in a thread of its own (whose namespace may change) and return or raise what it did."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(action())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


class Namespace:
    """A network namespace with its loopback up."""

    def __init__(self, *, loopback: bool = True) -> None:
        self.fd = in_thread(lambda: self._create(loopback))

    @staticmethod
    def _create(loopback: bool) -> int:
        namespaces.unshare(["net"])
        with Route() as route:
            route.set_link(route.link("lo").index, up=loopback)
        return namespaces.open_namespace("/proc/thread-self/ns/net")

    def run(self, action: Callable[[], T]) -> T:
        """Run an action inside."""

        def inside() -> T:
            namespaces.join(self.fd, "net")
            return action()

        return in_thread(inside)

    def socket(self, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET) -> socket.socket:
        """A socket that belongs to this namespace, wherever it is used."""
        made = self.run(lambda: socket.socket(family, kind))
        made.settimeout(PATIENCE)
        return made


def build_outside() -> Namespace:
    """The world beyond the host: one neighbour on eth0, which knows no way to containers."""
    outside = Namespace()
    with Route() as route:
        route.set_link(route.link("lo").index, up=True)
        route.add_veth("eth0", "eth0", peer_ns_fd=outside.fd)
        index = route.link("eth0").index
        route.add_address(index, f"{HOST}/24")
        route.add_address(index, f"{HOST6}/64")

    def configure() -> None:
        with Route() as route:
            index = route.link("eth0").index
            route.add_address(index, f"{OUTSIDE}/24")
            route.add_address(index, f"{OUTSIDE6}/64")
            route.set_link(index, up=True)

    outside.run(configure)
    return outside


def attach(connection: Connection) -> Namespace:
    """What a task does with its connection: the veth pair, the address, the default route."""
    inside = Namespace()
    with Route() as route:
        route.add_veth(
            connection.host_link,
            connection.interface,
            peer_ns_fd=inside.fd,
            master_index=route.link(connection.bridge).index,
            peer_mac=connection.mac,
            mtu=connection.mtu,
        )

    def configure() -> None:
        with Route() as route:
            index = route.link(connection.interface).index
            for cidr in connection.cidrs:
                route.add_address(index, cidr)
            route.set_link(index, up=True)
            for gateway in filter(None, (connection.gateway, connection.gateway6)):
                route.add_route(None, gateway)

    inside.run(configure)
    return inside


class Server:
    """Answers each TCP connection or UDP datagram with ``address-of-the-client``."""

    def __init__(self, where: Namespace | None, port: int, kind: int = socket.SOCK_STREAM, host: str = "0.0.0.0") -> None:
        self._socket = _socket(where, host, kind)
        self._socket.settimeout(None)
        if kind == socket.SOCK_STREAM:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, port))
        if kind == socket.SOCK_STREAM:
            self._socket.listen(8)
        threading.Thread(target=self._serve, args=(kind,), daemon=True).start()

    def _serve(self, kind: int) -> None:
        while True:
            try:
                if kind == socket.SOCK_STREAM:
                    peer, address = self._socket.accept()
                    with peer:
                        peer.sendall(address[0].encode())
                else:
                    _data, address = self._socket.recvfrom(100)
                    self._socket.sendto(address[0].encode(), address)
            except OSError:
                return

    def close(self) -> None:
        if self._socket.type == socket.SOCK_STREAM:
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _socket(where: Namespace | None, host: str, kind: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return where.socket(kind, family) if where else socket.socket(family, kind)


def ask_tcp(where: Namespace | None, host: str, port: int, timeout: float = PATIENCE) -> str:
    """What a server says; raises ``OSError`` when it cannot be reached."""
    with _socket(where, host, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        client.connect((host, port))
        return client.recv(100).decode()


def ask_udp(where: Namespace | None, host: str, port: int, timeout: float = PATIENCE) -> str:
    with _socket(where, host, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout)
        client.connect((host, port))
        client.send(b"?")
        return client.recv(100).decode()


def refused(action: Callable[[], object]) -> bool:
    """Whether an exchange fails (refused, unreachable or without answer)."""
    try:
        action()
    except OSError:
        return True
    return False


class Engine:
    """A daemon's share of the world: the service over its own data root."""

    def __init__(self, root: Path, **options: object) -> None:
        root.mkdir(exist_ok=True)
        (root / "run").mkdir(exist_ok=True)
        self.config = EngineConfig(data_root=root, exec_root=root / "run", **options)
        self.metadata = Metadata(root / "metadata.db")
        self.events = EventBus()
        self.networks = Networks(self.config, self.metadata, self.events)

    async def close(self) -> None:
        await self.networks.close()
        self.metadata.close()

    def die(self) -> None:
        """What is left of a daemon after kill -9: its descriptors are gone, nothing was tidied up."""
        self.networks._rule_watch.stop()
        self.networks._link_watch.stop()
        self.networks._running.close()
        self.networks._places.close()
        self.networks._catalogue.close()
        self.metadata.close()
