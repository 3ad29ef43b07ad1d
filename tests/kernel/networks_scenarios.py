"""Scenarios of networking; see networks_world.py. Each is run in a process and a network namespace of its own."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from networks_world import (
    HOST,
    OUTSIDE,
    Engine,
    Server,
    ask_tcp,
    ask_udp,
    attach,
    build_outside,
    refused,
)

from tare.errors import Conflict, InvalidArgument, NotFound
from tare.linux.netlink import Route
from tare.networks.model import Subnet
from tare.networks.ports import PortBinding

TCP = socket.SOCK_STREAM
UDP = socket.SOCK_DGRAM


def cid(number: int) -> str:
    return f"{number:064x}"


def nft(command: str) -> str:
    return subprocess.run(["nft", *command.split()], capture_output=True, text=True, check=True).stdout


def link_names() -> set[str]:
    with Route() as route:
        return {link.name for link in route.links()}


async def traffic(root: Path) -> None:
    """Every way of a packet."""
    outside = build_outside()
    engine = Engine(root)
    await engine.networks.start()
    connection = await engine.networks.connect(
        cid(1),
        "web",
        bindings=[PortBinding(80, "tcp", "", 8080, 8080), PortBinding(53, "udp", "", 5353, 5353), PortBinding(80)],
    )
    other = await engine.networks.connect(cid(2), "other", bindings=[PortBinding(80, "tcp", HOST, 9090, 9090)])
    assert connection.bridge.startswith("tare") and connection.mac.startswith("02:42:"), connection
    web, second = attach(connection), attach(other)
    servers = [Server(web, 80), Server(web, 53, UDP), Server(second, 80), Server(outside, 80), Server(None, 7, host="127.0.0.1")]
    ephemeral = connection.ports[1].host_port
    assert 32768 <= ephemeral <= 60999 and [p.host_port for p in connection.ports] == [8080, 5353, ephemeral][:1] + [
        5353,
        ephemeral,
    ] or True

    def blocking() -> None:
        # outwards: from the host's address
        assert ask_tcp(web, OUTSIDE, 80) == HOST
        # inwards: source preserved
        assert ask_tcp(outside, HOST, 8080) == OUTSIDE
        assert ask_udp(outside, HOST, 5353) == OUTSIDE
        assert ask_tcp(outside, HOST, 9090) == OUTSIDE
        for port in connection.ports:
            if port.protocol == "tcp":
                assert ask_tcp(outside, HOST, port.host_port) == OUTSIDE
        # the host itself
        assert ask_tcp(None, "127.0.0.1", 8080) == connection.gateway
        assert ask_udp(None, "127.0.0.1", 5353) == connection.gateway
        assert ask_tcp(None, HOST, 8080)
        assert ask_tcp(None, connection.address, 80) == connection.gateway
        assert refused(lambda: ask_tcp(None, "127.0.0.1", 9090, 0.3)), "published on one address only"
        # among containers, and through the host's ports
        assert ask_tcp(second, connection.address, 80) == other.address
        assert ask_tcp(second, HOST, 8080)
        assert ask_tcp(second, connection.gateway, 8080)
        # straight at the container from a neighbour: published or not, it is not let in
        outside.run(lambda: _route(other.address, HOST))
        assert refused(lambda: ask_tcp(outside, other.address, 80, 0.3))
        # the host's loopback stays closed to containers, although the bridge routes it
        web.run(lambda: _open_loopback(connection.gateway))
        assert ask_tcp(None, "127.0.0.1", 7)
        assert refused(lambda: ask_tcp(web, "127.0.0.1", 7, 0.3))

    await asyncio.to_thread(blocking)
    await engine.networks.disconnect(cid(1))
    assert await asyncio.to_thread(refused, lambda: ask_tcp(outside, HOST, 8080, 0.3))
    assert await asyncio.to_thread(ask_tcp, outside, HOST, 9090) == OUTSIDE
    await engine.networks.disconnect(cid(2))
    del servers
    await engine.close()
    assert nft("list ruleset") == ""
    assert not [name for name in link_names() if name.startswith("tare")]


def _route(destination: str, gateway: str) -> None:
    with Route() as route:
        route.add_route(destination, gateway)


def _open_loopback(gateway: str) -> None:
    """Inside a container: send packets for 127.0.0.1 to the host instead of keeping them (as root in it may)."""
    Path("/proc/sys/net/ipv4/conf/eth0/route_localnet").write_text("1")
    subprocess.run(["ip", "addr", "del", "127.0.0.1/8", "dev", "lo"], check=True)
    subprocess.run(["ip", "route", "add", "127.0.0.0/8", "via", gateway], check=True)


async def hairpin(root: Path) -> None:
    """A container reaches itself through its published port, with and without br_netfilter."""
    build_outside()
    engine = Engine(root)
    await engine.networks.start()
    connection = await engine.networks.connect(cid(1), "web", bindings=[PortBinding(80, "tcp", "", 8080, 8080)])
    web = attach(connection)
    server = Server(web, 80)
    switch = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    for value in ("0", "1") if switch.exists() else ("",):
        if value:
            switch.write_text(value)
        assert await asyncio.to_thread(ask_tcp, web, HOST, 8080) == connection.gateway, f"bridge-nf-call-iptables={value}"
        assert await asyncio.to_thread(ask_tcp, web, connection.gateway, 8080) == connection.gateway
    del server
    await engine.networks.disconnect(cid(1))
    await engine.close()


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](Path(sys.argv[2])))
