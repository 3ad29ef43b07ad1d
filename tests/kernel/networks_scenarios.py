"""Scenarios of networking, traffic and names; see networks_world.py. Each is run in a process and a network namespace of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from networks_world import (
    HOST,
    HOST6,
    OUTSIDE,
    OUTSIDE6,
    Engine,
    Namespace,
    Server,
    ask_tcp,
    ask_udp,
    attach,
    build_outside,
    cid,
    link_names,
    nft,
    refused,
)

from tare.errors import Forbidden, InvalidArgument, Unsupported
from tare.linux.netlink import Route
from tare.networks.creation import NewNetwork
from tare.networks.dns import wire
from tare.networks.firewall import LINK_LOCAL6
from tare.networks.model import Dns, Endpoint, Subnet
from tare.networks.ports import PortBinding
from tare.runtime import name_service

TCP = socket.SOCK_STREAM
UDP = socket.SOCK_DGRAM


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
    published = [(port.key, port.host_port) for port in connection.ports]
    assert published[:2] == [("80/tcp", 8080), ("53/udp", 5353)] and 32768 <= published[2][1] <= 60999, published

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


async def sub_links(root: Path) -> None:
    """macvlan and ipvlan on a link of the host's and on VLANs of it, as far as the kernel has them: else refusals that leave nothing."""
    outside = build_outside()
    engine = Engine(root)
    await engine.networks.start()
    before = link_names()
    made = 0
    for number, (driver, parent) in enumerate([("macvlan", "eth0"), ("macvlan", "eth0.7"), ("ipvlan", "eth0"), ("ipvlan", "eth0.8")]):
        subnet = f"10.88.{number}.0/24"
        try:
            network = await engine.networks.create(
                NewNetwork("sub", driver=driver, subnets=[Subnet(subnet, "")], options={"parent": parent})
            )
        except Unsupported as error:
            assert "is not supported by this kernel" in str(error) or "vlan link: operation not supported" in str(error), error
            assert link_names() == before
            continue
        made += 1
        connection = await engine.networks.connect(cid(1), "web", network="sub")
        inside = Namespace()
        with Route() as route:
            index = route.link(parent).index
            route.add_sub_link(connection.kind, connection.host_link, index, connection.mode, ns_fd=inside.fd, mac=connection.mac)
        inside.run(lambda connection=connection: _give(connection.host_link, connection.cidr))
        outside.run(lambda parent=parent, subnet=subnet: _neighbour(parent, subnet.replace("0/24", "9/24")))
        server = Server(outside, 80, host=subnet.replace("0/24", "9"))
        assert await asyncio.to_thread(ask_tcp, inside, subnet.replace("0/24", "9"), 80) == connection.address
        server.close()
        await engine.networks.disconnect(cid(1))
        os.close(inside.fd)
        await engine.networks.remove(network.id)
        assert link_names() == before, (driver, parent)
    assert made or not Path("/sys/module/macvlan").exists()
    for parent, text in (("eth0.5000", "vlan id must be between 1-4094"), ("none.7", "was not found on the host: none.7")):
        try:
            await engine.networks.create(NewNetwork("sub", driver="macvlan", options={"parent": parent}))
            raise AssertionError("accepted")
        except InvalidArgument as error:
            assert text in str(error)
    await engine.close()


def _give(name: str, cidr: str) -> None:
    with Route() as route:
        index = route.link(name).index
        route.add_address(index, cidr)
        route.set_link(index, up=True)


def _neighbour(name: str, cidr: str) -> None:
    with Route() as route:
        base, _, vlan = name.partition(".")
        if vlan:
            route.add_vlan(name, route.link(base).index, int(vlan))
    _give(name, cidr)


async def sctp(root: Path) -> None:
    """A published SCTP port (an INIT by hand: the kernel need not have the protocol)."""
    outside = build_outside()
    engine = Engine(root)
    await engine.networks.start()
    connection = await engine.networks.connect(cid(1), "web", bindings=[PortBinding(80, "sctp", "", 8080, 8080)])
    assert [(port.key, port.host_port) for port in connection.ports] == [("80/sctp", 8080)]
    web = attach(connection)
    chunk = bytes.fromhex("01000014 00000001 00010000 0001 0001 00000001")
    with raw(web) as receiver, raw(outside) as sender:
        sender.sendto(sctp_packet(5000, 8080, chunk), (HOST, 0))
        data, peer = receiver.recvfrom(4096)
    payload = data[(data[0] & 15) * 4 :]
    assert peer[0] == OUTSIDE and payload[:4] == struct.pack("!HH", 5000, 80) and payload == sctp_packet(5000, 80, chunk)
    await engine.networks.disconnect(cid(1))
    await engine.close()


def raw(where: Namespace) -> socket.socket:
    made = where.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP))
    made.settimeout(3)
    return made


def sctp_packet(source: int, target: int, chunk: bytes) -> bytes:
    """RFC 9260: ports, verification tag, CRC-32C, one chunk."""
    head = struct.pack("!HHI", source, target, 0)
    crc = 0xFFFFFFFF
    for byte in head + bytes(4) + chunk:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return head + struct.pack("<I", crc ^ 0xFFFFFFFF) + chunk


async def over_two_machines(root: Path) -> None:
    """A network with a VXLAN peer: containers reach the other machine's, with their own addresses; a deleted link is made again."""
    outside = build_outside()
    there = "10.99.0.200"

    def other_machine() -> None:
        with Route() as route:
            route.add_vxlan("vx0", 42, HOST, 4789, local=OUTSIDE)
            index = route.link("vx0").index
            route.add_address(index, f"{there}/24")
            route.set_link(index, up=True)

    outside.run(other_machine)
    engine = Engine(root)
    await engine.networks.start()
    options = {"tare.vxlan.peer": OUTSIDE, "tare.vxlan.id": "42"}
    wide = await engine.networks.create(NewNetwork("wide", subnets=[Subnet("10.99.0.0/24", "", "10.99.0.0/25")], options=options))
    connection = await engine.networks.connect(cid(1), "web", network="wide")
    assert connection.mtu == 1450
    web = attach(connection)
    servers = [Server(web, 80), Server(outside, 80, host=there)]

    def both_ways() -> None:
        assert ask_tcp(web, there, 80) == connection.address
        assert ask_tcp(outside, connection.address, 80) == there

    await asyncio.to_thread(both_ways)
    link = f"vx-{wide.id[:12]}"
    for name in (link, wide.bridge):
        with Route() as route:
            route.delete_link(route.link(name).index)
        for _ in range(100):
            if {link, wide.bridge} <= link_names():
                break
            await asyncio.sleep(0.05)
    with Route() as route:
        route.set_link(route.link(connection.host_link).index, master=route.link(wide.bridge).index)
    await asyncio.to_thread(both_ways)
    await engine.networks.disconnect(cid(1))
    await engine.networks.remove("wide")
    for bad, text in (({"tare.vxlan.id": "1"}, "need a peer"), ({**options, "tare.vxlan.id": "0"}, "1 to 16777215")):
        try:
            await engine.networks.create(NewNetwork("bad", options=bad))
            raise AssertionError("accepted")
        except InvalidArgument as error:
            assert text in str(error)
    await engine.close()
    assert not {link, wide.bridge} & link_names()
    del servers


async def hairpin(root: Path) -> None:
    """A container reaches itself through its published port, with and without br_netfilter."""
    build_outside()
    engine = Engine(root)
    await engine.networks.start()
    connection = await engine.networks.connect(cid(1), "web", bindings=[PortBinding(80, "tcp", "", 8080, 8080)])
    web = attach(connection)
    engine.networks.attached(cid(1), os.getpid())
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


async def ipv6_traffic(root: Path) -> None:
    """The default bridge with IPv6: every way of a packet, ::1 included, which nobody but the host itself may use."""
    outside = build_outside()
    engine = Engine(root, ipv6=True)
    await engine.networks.start()
    bindings = [PortBinding(80, "tcp", "", 8080, 8080), PortBinding(53, "udp", "", 5353, 5353), PortBinding(80, "tcp", "::1", 8181, 8181)]
    connection = await engine.networks.connect(cid(1), "web", bindings=bindings)
    assert [port.host_ip for port in connection.ports] == ["0.0.0.0", "::", "0.0.0.0", "::", "::1"]
    web, second = attach(connection), attach(await engine.networks.connect(cid(2), "other"))
    engine.networks.attached(cid(1), os.getpid())
    servers = [Server(web, 80, host="::"), Server(web, 53, UDP, "::"), Server(outside, 80, host="::"), Server(None, 7, UDP, "::1")]

    def blocking() -> None:
        # the host itself
        assert ask_tcp(None, "::1", 8080) and ask_tcp(None, "::1", 8181) and ask_udp(None, "::1", 5353)
        assert ask_tcp(None, HOST6, 8080) and ask_tcp(None, "127.0.0.1", 8080) and ask_tcp(None, connection.address6, 80)
        # from elsewhere: source preserved; what is published on ::1 stays there
        assert ask_tcp(outside, HOST6, 8080) == OUTSIDE6 and ask_udp(outside, HOST6, 5353) == OUTSIDE6
        assert refused(lambda: ask_tcp(outside, HOST6, 8181, 0.3))
        # outwards, among containers, and through the host
        assert ask_tcp(web, OUTSIDE6, 80) == HOST6
        assert ask_tcp(second, connection.address6, 80) and ask_tcp(second, HOST6, 8080) and ask_tcp(web, HOST6, 8080)
        assert refused(lambda: ask_tcp(outside, connection.address6, 80, 0.3)), "only redirected packets are let in"
        # nobody takes the address that stands for the host's loopback
        second.run(lambda: _take_address(LINK_LOCAL6))
        with socket.socket(socket.AF_INET6, UDP) as victim:
            victim.bind(("::1", 0))
            victim.settimeout(0.3)
            _send_from(second, (LINK_LOCAL6, victim.getsockname()[1]), (connection.gateway6, 5353))
            assert refused(lambda: victim.recv(100)), "a container speaks to the host's loopback"
        assert refused(lambda: ask_udp(second, f"{LINK_LOCAL6}%eth0", 7, 0.3))
        assert ask_udp(None, "::1", 7) == "::1"

    await asyncio.to_thread(outside.run, lambda: _route(connection.address6, HOST6))

    switch = Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables")
    for value in ("0", "1") if switch.exists() else ("",):
        if value:
            switch.write_text(value)
        await asyncio.to_thread(blocking)
    assert await asyncio.to_thread(refused, lambda: ask_tcp(None, "::1", 8182, 0.3))
    engine.die()
    engine = Engine(root, ipv6=True)
    await engine.networks.start()
    await engine.networks.restore({cid(1): 0})
    assert await asyncio.to_thread(ask_tcp, None, "::1", 8181)
    await engine.networks.disconnect(cid(1))
    assert "8181" not in nft("list ruleset")
    stays = await engine.networks.connect(cid(3), "stays", bindings=[PortBinding(80, "tcp", "", 8282, 8282)])
    assert stays.address6 and len(stays.ports) == 2
    engine.die()
    engine = Engine(root, ipv6=False)
    await engine.networks.start()
    await engine.networks.restore({cid(3): 0})
    assert [subnet.ipv6 for subnet in engine.networks.get("bridge").network.subnets] == [False]
    (kept,) = engine.networks.connections()
    assert (kept.address, kept.address6, [port.host_ip for port in kept.ports]) == (stays.address, "", ["0.0.0.0"])
    assert "8282" in nft("list ruleset")
    await engine.networks.disconnect(cid(3))
    await engine.close()
    assert nft("list ruleset") == ""
    del servers


def _take_address(address: str) -> None:
    with Route() as route:
        link = route.link("eth0")
        if address not in [known.address for known in route.addresses(link.index)]:
            route.add_address(link.index, f"{address}/64")


def _send_from(where: Namespace, source: tuple[str, int], target: tuple[str, int]) -> None:
    with where.socket(UDP, socket.AF_INET6) as client:
        client.bind((*source, 0, where.run(lambda: socket.if_nametoindex("eth0"))))
        client.sendto(b"?", target)


async def user_networks(root: Path) -> None:
    """Networks of the user's own: subnet, static address, isolation from each other, removal, restart."""
    build_outside()
    engine = Engine(root)
    await engine.networks.start()
    front = await engine.networks.create(NewNetwork("front", subnets=[Subnet("10.77.0.0/24", "", "10.77.0.128/25")], labels={"a": "b"}))
    back = await engine.networks.create(NewNetwork("back", internal=True))
    try:
        await engine.networks.create(NewNetwork("more", subnets=[Subnet("10.77.0.0/16", "")]))
        raise AssertionError("overlap accepted")
    except Forbidden as error:
        assert "Pool overlaps with other one on this address space" in str(error)
    one = await engine.networks.connect(cid(1), "one", network="front", endpoint=Endpoint(ip="10.77.0.5"))
    two = await engine.networks.connect(cid(2), "two", network=front.id[:8])
    three = await engine.networks.connect(cid(3), "three", network="back")
    extra = await engine.networks.connect(cid(3), "three")
    assert (one.address, two.address, extra.interface) == ("10.77.0.5", "10.77.0.128", "eth1")
    assert extra.sandbox_id == three.sandbox_id and three.gateway == ""
    first, second, third = attach(one), attach(two), attach(extra)
    servers = [Server(where, 80) for where in (first, second, third)]

    def blocking() -> None:
        assert ask_tcp(first, two.address, 80) == one.address
        assert refused(lambda: ask_tcp(first, extra.address, 80, 0.3)), "networks are isolated"

    await asyncio.to_thread(blocking)
    try:
        await engine.networks.remove("front")
        raise AssertionError("removed in use")
    except Exception as error:
        assert "network front has active endpoints (name:" in str(error), error
    engine.die()
    engine = Engine(root)
    await engine.networks.start()
    await engine.networks.restore({cid(1): 0})
    assert engine.networks.get("front").connections == [one]
    assert [network.name for network in await engine.networks.prune()] == ["back"]
    await engine.networks.disconnect(cid(1), "front")
    await engine.networks.remove("front")
    await engine.close()
    assert nft("list ruleset") == "" and not link_names() & {front.bridge, back.bridge}
    del servers


async def names_before_the_loopback_is_up(root: Path) -> None:
    """A name server that is there before its container's loopback still answers from the address that was asked."""
    engine = Engine(root)
    await engine.networks.start()
    await engine.networks.create(NewNetwork("net"))
    web = await engine.networks.connect(cid(1), "web", network="net")
    inside = Namespace(loopback=False)
    await asyncio.to_thread(name_service.serve, str(engine.networks.name_server([web])), cid(1), inside.fd, os.getpid())

    def ask() -> bytes:
        message = wire.HEADER.pack(9, wire.RECURSION_DESIRED, 1, 0, 0, 0) + wire.pack_name("web") + bytes([0, 1, 0, 1])
        with inside.socket(socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.11", 53))
            sock.send(message)
            return sock.recv(4096)

    assert (await asyncio.to_thread(ask)).endswith(socket.inet_aton(web.address))
    await engine.networks.disconnect(cid(1))
    await engine.networks.remove("net")
    await engine.close()


async def upstream_names(root: Path) -> None:
    """Questions that no container is the answer to go to other servers: by datagram and stream, past a dead one, once per lifetime."""
    build_outside()
    engine = Engine(root)
    await engine.networks.start()
    net = await engine.networks.create(NewNetwork("net"))
    gateway = net.subnets[0].gateway
    asked: list[str] = []

    def reply(message: bytes) -> bytes:
        query = wire.parse_query(message)
        asked.append(query.name)
        code = wire.NXDOMAIN if query.name.startswith("no.") else wire.NOERROR
        return wire.answer(
            query, [bytes([192, 0, 2, 1])] * (100 if query.name == "big.test" else 1) if not code else (), code=code, size=512
        )

    class Datagrams(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, peer: object) -> None:
            self.transport.sendto(reply(data), peer)

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        query = wire.parse_query(message)
        full = wire.answer(query, [bytes([192, 0, 2, 1])] * 100)
        writer.write(len(full).to_bytes(2, "big") + full)
        writer.close()

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Datagrams, (gateway, 53))
    server = await asyncio.start_server(stream, gateway, 53)
    dns = Dns(servers=(OUTSIDE, gateway))  # nothing listens on the first
    web = await engine.networks.connect(cid(1), "web", network="net", endpoint=Endpoint(dns=dns))
    inside = attach(web)
    await asyncio.to_thread(name_service.serve, str(engine.networks.name_server([web])), cid(1), inside.fd, os.getpid())

    async def ask(name: str, kind: int = socket.SOCK_DGRAM) -> bytes:
        def blocking() -> bytes:
            message = wire.HEADER.pack(9, wire.RECURSION_DESIRED, 1, 0, 0, 0) + wire.pack_name(name) + bytes([0, 1, 0, 1])
            with inside.socket(kind) as sock:
                sock.settimeout(8)
                sock.connect(("127.0.0.11", 53))
                if kind == socket.SOCK_DGRAM:
                    sock.send(message)
                    return sock.recv(4096)
                sock.sendall(len(message).to_bytes(2, "big") + message)
                with sock.makefile("rb") as file:
                    return file.read(int.from_bytes(file.read(2), "big"))

        return await asyncio.to_thread(blocking)

    assert (await ask("example.test")).endswith(bytes([192, 0, 2, 1]))
    assert (await ask("EXAMPLE.test")).endswith(bytes([192, 0, 2, 1])) and asked == ["example.test"]
    assert wire.code_of(await ask("no.test")) == wire.NXDOMAIN
    assert wire.is_truncated(await ask("big.test")) and len(await ask("big.test", socket.SOCK_STREAM)) > 1600
    assert (await ask("web", socket.SOCK_STREAM)).endswith(socket.inet_aton(web.address))
    transport.close()
    server.close()
    assert wire.code_of(await ask("other.test")) == wire.SERVFAIL
    assert (await ask("example.test")).endswith(bytes([192, 0, 2, 1])), "what is known is still answered"
    await engine.networks.disconnect(cid(1))
    await engine.networks.remove("net")
    await engine.close()


async def udp_flows(root: Path) -> None:
    """A peer that never stops sending from one port reaches whoever has the published port now."""
    outside = build_outside()
    engine = Engine(root)
    await engine.networks.start()
    bindings = [PortBinding(7, "udp", "", 7007, 7007)]

    def receive(namespace: Namespace, sender: socket.socket, word: bytes) -> None:
        receiver = namespace.socket(socket.SOCK_DGRAM)
        receiver.bind(("0.0.0.0", 7))
        sender.sendto(word, (HOST, 7007))
        assert receiver.recv(100) == word
        receiver.close()

    sender = outside.socket(socket.SOCK_DGRAM)
    sender.sendto(b"nobody", (HOST, 7007))
    for number in (1, 2):
        connection = await engine.networks.connect(cid(number), "c", bindings=bindings)
        namespace = attach(connection)
        await asyncio.to_thread(receive, namespace, sender, f"to {number}".encode())
        if number == 1:
            first = namespace  # goes on living: the flow could still lead there
            await engine.networks.disconnect(cid(1))
    await engine.networks.disconnect(cid(2))
    sender.close()
    del first
    await engine.close()


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](Path(sys.argv[2])))
