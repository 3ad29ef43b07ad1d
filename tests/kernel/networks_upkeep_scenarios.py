"""Scenarios of networking, upkeep: conflicts, restarts, options, rules of others. Run as those of networks_scenarios.py."""

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
    attach,
    build_outside,
    cid,
    iptables,
    link_names,
    nft,
    refused,
)

from tare.errors import Conflict, Forbidden, InvalidArgument, NotFound
from tare.linux.netlink import Route
from tare.networks.creation import NewNetwork
from tare.networks.model import Endpoint, Subnet
from tare.networks.ports import PortBinding

TCP = socket.SOCK_STREAM
UDP = socket.SOCK_DGRAM


async def conflicts(root: Path) -> None:
    """Texts of refusals, and that they leave nothing."""
    build_outside()
    engine = Engine(root)
    networks = engine.networks
    await networks.start()
    await networks.connect(cid(1), "one", bindings=[PortBinding(80, "tcp", "", 8080, 8080)])
    foreign = Server(None, 9090)
    before = nft("list ruleset")

    async def failure(kind: type[Exception], *bindings: PortBinding, **options: str) -> str:
        try:
            await networks.connect(cid(2), "two", bindings=bindings, **options)
        except kind as error:
            assert len(networks.connections()) == 1 and networks._places.held_ports == 1
            assert nft("list ruleset") == before
            return str(error)
        raise AssertionError("no error")

    text = await failure(Conflict, PortBinding(1), PortBinding(80, "tcp", "", 8080, 8080))
    assert text.startswith("driver failed programming external connectivity on endpoint two (")
    assert text.endswith("): Bind for 0.0.0.0:8080 failed: port is already allocated"), text
    assert "Bind for 127.0.0.1:8080 failed" in await failure(Conflict, PortBinding(80, "tcp", "127.0.0.1", 8080, 8080))
    text = await failure(Conflict, PortBinding(80, "tcp", "", 9090, 9090))
    own = networks.get("bridge").network.subnets[0].gateway.rsplit(".", 1)[0]
    assert f"): failed to bind host port for 0.0.0.0:9090:{own}." in text and text.endswith(":80/tcp: address already in use"), text
    text = await failure(Conflict, PortBinding(80, "tcp", "203.0.113.7", 80, 80))
    assert text.endswith(":80/tcp: cannot assign requested address"), text
    assert await failure(NotFound, network="nowhere") == "network nowhere not found"
    assert "user defined networks only" in await failure(InvalidArgument, endpoint=Endpoint(ip="172.17.0.9"))
    assert "endpoint with name one already exists" in await failure_of_twin(networks)
    # a taken port in a range is passed over; the held port cannot be had by others
    third = await networks.connect(cid(3), "three", bindings=[PortBinding(80, "tcp", "", 9089 + 1, 9091)])
    assert third.ports[0].host_port == 9091
    for options in (0, 1):
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, options)
            assert refused(lambda s=thief: (s.bind(("0.0.0.0", 9091)), s.listen()))
    foreign.close()
    await networks.disconnect(cid(1))
    await networks.disconnect(cid(3))
    await networks.disconnect("unknown")
    again = await networks.connect(cid(2), "two", bindings=[PortBinding(80, "tcp", "", 8080, 8080)])
    assert again.ports[0].host_port == 8080
    await networks.disconnect(cid(2))
    await engine.close()
    assert nft("list ruleset") == ""


async def failure_of_twin(networks: object) -> str:
    try:
        await networks.connect(cid(1), "one")
    except Forbidden as error:
        return str(error)
    raise AssertionError("no error")


async def restore(root: Path) -> None:
    """A killed daemon, flushed rules, a deleted bridge: running containers keep their network, the others are freed."""
    outside = build_outside()
    engine = Engine(root)
    await engine.networks.start()
    running = await engine.networks.connect(cid(1), "web", bindings=[PortBinding(80, "tcp", "", 8080, 8080)])
    dead = await engine.networks.connect(cid(2), "dead", bindings=[PortBinding(80, "tcp", "", 8081, 8081)])
    ids = [view.network.id for view in engine.networks.list()]
    web = attach(running)
    server = Server(web, 80)
    assert await asyncio.to_thread(ask_tcp, outside, HOST, 8080) == OUTSIDE
    with outside.socket() as established:
        established.connect((HOST, 8080))
        engine.die()
        assert await asyncio.to_thread(ask_tcp, outside, HOST, 8080) == OUTSIDE, "without the daemon"

        engine = Engine(root)
        await engine.networks.start()
        assert len(engine.networks.connections()) == 2
        await engine.networks.restore({cid(1): 0})
        assert established.recv(100).decode() == OUTSIDE
    assert [view.network.id for view in engine.networks.list()] == ids
    assert engine.networks.connections() == [running]
    assert engine.networks.connections(cid(1))[0].bridge == running.bridge
    assert await asyncio.to_thread(ask_tcp, outside, HOST, 8080) == OUTSIDE
    with socket.socket() as thief:
        assert refused(lambda: thief.bind(("0.0.0.0", 8080)))
        thief.bind(("0.0.0.0", 8081))

    # flushed by hand: the next connect or repair puts everything back
    nft("flush ruleset")
    assert await asyncio.to_thread(refused, lambda: ask_tcp(outside, HOST, 8080, 0.3))
    third = await engine.networks.connect(cid(3), "three", bindings=[PortBinding(80, "tcp", "", 8083, 8083)])
    assert third.address not in (running.address, dead.address), "an address just given back rests"
    assert await asyncio.to_thread(ask_tcp, outside, HOST, 8080) == OUTSIDE
    nft("flush ruleset")
    await engine.networks.disconnect(cid(3))
    assert await asyncio.to_thread(ask_tcp, outside, HOST, 8080) == OUTSIDE
    nft("flush ruleset")
    await engine.networks.repair()
    assert await asyncio.to_thread(ask_tcp, outside, HOST, 8080) == OUTSIDE

    # clean stop with a running container: its network stays
    await engine.close()
    assert await asyncio.to_thread(ask_tcp, outside, HOST, 8080) == OUTSIDE

    # a reboot: nothing of the kernel's state is left, nothing runs
    nft("flush ruleset")
    with Route() as route:
        route.delete_link(route.link(running.bridge).index)
    engine = Engine(root)
    await engine.networks.start()
    await engine.networks.restore({})
    assert engine.networks.connections() == [] and running.bridge in link_names()
    again = await engine.networks.connect(cid(4), "four")
    assert again.bridge == running.bridge and again.gateway == running.gateway
    await engine.networks.disconnect(cid(4))
    await engine.close()
    assert nft("list ruleset") == "" and running.bridge not in link_names()
    del server


async def daemons(root: Path) -> None:
    """Two daemons on one machine take different bridges and subnets, and each finds its own again."""
    build_outside()
    root.mkdir()
    first, second = Engine(root / "a"), Engine(root / "b")
    await first.networks.start()
    await second.networks.start()
    one = await first.networks.connect(cid(1), "one")
    two = await second.networks.connect(cid(1), "one")
    assert (one.bridge, two.bridge) == ("tare0", "tare1")
    assert one.gateway == "172.17.0.1" and two.gateway == "172.18.0.1"
    assert one.address == "172.17.0.2" and one.mac == "02:42:ac:11:00:02"
    first.die()
    port = attach(one)
    third = Engine(root / "c")
    await third.networks.start()
    assert third.networks.get("bridge").network.bridge == "tare2", "a dead daemon's bridge with containers is not taken"
    first = Engine(root / "a")
    await first.networks.start()
    assert first.networks.get("bridge").network.bridge == "tare0"
    for engine in (first, second, third):
        await engine.networks.restore({})
        await engine.close()
    del port
    assert nft("list ruleset") == "" and not [name for name in link_names() if name.startswith("tare")]


async def options(root: Path) -> None:
    """--bridge, --bip, --mtu; a foreign bridge is used as it is and never removed."""
    build_outside()
    root.mkdir()
    engine = Engine(root / "a", bip="10.9.0.1/24", mtu=1400)
    await engine.networks.start()
    connection = await engine.networks.connect(cid(1), "one")
    assert connection.cidr == "10.9.0.2/24" and connection.mtu == 1400
    with Route() as route:
        assert route.link(connection.bridge).mtu == 1400
    await engine.networks.disconnect(cid(1))
    await engine.close()
    flags = {"bip": "10.9.0.1/24", "fixed_cidr": "10.9.0.128/25", "default_gateway": "10.9.0.200", "icc": False, "ip": "127.0.0.1"}
    engine = Engine(root / "a", **flags, ip_masq=False)
    await engine.networks.start()
    connection = await engine.networks.connect(cid(1), "one", bindings=[PortBinding(80)])
    assert (connection.cidr, connection.gateway, connection.mode) == ("10.9.0.128/24", "10.9.0.200", "isolated"), connection
    assert connection.ports[0].host_ip == "127.0.0.1"
    assert 'oifname != "tare0" ip saddr' not in nft("list chain ip tare_tare0 nat_postrouting"), "not masqueraded"
    await engine.networks.disconnect(cid(1))
    await engine.close()
    engine = Engine(root / "a", ipv6=True, fixed_cidr_v6="fd00:9::/64")
    await engine.networks.start()
    connection = await engine.networks.connect(cid(1), "one")
    assert connection.cidr6 == "fd00:9::2/64" and connection.gateway6 == "fd00:9::1"
    await engine.networks.disconnect(cid(1))
    await engine.close()
    with Route() as route:
        index = route.add_bridge("br0", up=True)
        route.add_address(index, "10.8.0.1/29")
    for _ in range(2):
        engine = Engine(root / "b", bridge="br0")
        await engine.networks.start()
        view = engine.networks.get("bridge").network
        assert view.subnets[0].subnet == "10.8.0.0/29" and view.bridge == "br0", view
        taken = [(await engine.networks.connect(cid(n), f"c{n}")).address for n in range(5)]
        assert taken == [f"10.8.0.{n}" for n in range(2, 7)]
        try:
            await engine.networks.connect(cid(9), "c9")
        except Exception as error:
            wanted = f"no available IPv4 addresses on this network's address pools: bridge ({view.id})"
            assert str(error) == wanted, error
        await engine.networks.restore({})
        await engine.close()
        assert "br0" in link_names() and nft("list ruleset") == ""
    engine = Engine(root / "c", bridge="none")
    await engine.networks.start()
    assert [view.network.name for view in engine.networks.list()] == ["host", "none"]
    plain = await engine.networks.connect(cid(1), "one", network="none")
    assert not plain.host_link and engine.networks.get("none").connections == [plain]
    await engine.close()
    assert not [name for name in link_names() if name.startswith("tare")]


async def network_options(root: Path) -> None:
    """Driver options at work: another source address, other interface names, no address of the bridge, IPv6 alone, lent settings."""
    outside = build_outside()
    with Route() as route:
        route.add_address(route.link("eth0").index, "198.51.100.9/24")
    engine = Engine(root)
    await engine.networks.start()
    networks = engine.networks
    wanted = {"com.docker.network.host_ipv4": "198.51.100.9", "com.docker.network.container_iface_prefix": "lan"}
    await networks.create(NewNetwork("source", options=wanted))
    one = await networks.connect(cid(1), "one", network="source")
    first = attach(one)
    server = Server(outside, 80)
    assert one.interface == "lan0" and await asyncio.to_thread(ask_tcp, first, OUTSIDE, 80) == "198.51.100.9"
    bare = await networks.create(NewNetwork("bare", options={"com.docker.network.bridge.inhibit_ipv4": "true"}))
    with Route() as route:
        assert [a for a in route.addresses(route.link(bare.bridge).index) if a.family == socket.AF_INET] == []
    router = Subnet("10.55.0.0/24", "", "", {"DefaultGatewayIPv4": "10.55.0.7"})
    await networks.create(NewNetwork("routed", subnets=[router]))
    assert (await networks.connect(cid(2), "two", network="routed")).gateway == "10.55.0.7"
    # IPv6 alone
    await networks.create(NewNetwork("six", ipv4=False, ipv6=True))
    three = await networks.connect(cid(3), "three", network="six", bindings=[PortBinding(80, "tcp", "", 8080, 8080)])
    third = attach(three)
    servers = [Server(third, 80, host="::")]
    assert three.address == "" and [port.host_ip for port in three.ports] == ["::"]
    assert await asyncio.to_thread(ask_tcp, None, "::1", 8080)
    # settings lent by a configuration network
    await networks.create(NewNetwork("config", config_only=True, subnets=[Subnet("10.56.0.0/24", "10.56.0.9")], labels={"a": "b"}))
    lent = await networks.create(NewNetwork("lent", config_from="config"))
    assert lent.subnets[0].gateway == "10.56.0.9" and lent.labels == {"a": "b"} and lent.config_from == "config"
    for action, text in (
        (networks.connect(cid(4), "four", network="config"), "configuration-only"),
        (networks.remove("config"), "is in use"),
    ):
        try:
            await action
            raise AssertionError(f"accepted: {text}")
        except Forbidden as error:
            assert text in str(error)
    engine.die()
    engine = Engine(root)
    await engine.networks.start()
    await engine.networks.restore({cid(3): 0})
    assert engine.networks.connections() == [three] and await asyncio.to_thread(ask_tcp, None, "::1", 8080)
    await engine.networks.disconnect(cid(3))
    assert "config" not in [network.name for network in await engine.networks.prune()]
    await engine.networks.remove("config")
    await engine.close()
    assert nft("list ruleset") == "" and not [name for name in link_names() if name.startswith(("tare", "br-"))]
    del server, servers


async def rules_taken_away(root: Path) -> None:
    """Rules that somebody flushed, or a table that somebody emptied, are put back without being asked for."""
    build_outside()
    engine = Engine(root)
    await engine.networks.start()
    connection = await engine.networks.connect(cid(1), "web", bindings=[PortBinding(80, "tcp", "", 8080, 8080)])
    for command in (["flush", "ruleset"], ["flush", "table", "ip", f"tare_{connection.bridge}"]):
        await asyncio.to_thread(subprocess.run, ["nft", *command], check=True)
        for _ in range(100):
            text = nft("list ruleset")
            if "tcp . 8080 : " in text and "masquerade" in text:
                break
            await asyncio.sleep(0.05)
        assert "tcp . 8080 : " in text and "masquerade" in text, (command, text)
    await engine.networks.disconnect(cid(1))
    await engine.close()
    assert nft("list ruleset") == ""


async def dropping_host(root: Path) -> None:
    """A host whose FORWARD chain drops by policy (dockerd, ufw): we are let through; its own drop rules hold."""
    outside = build_outside()
    for command in ("-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER", "-A DOCKER-USER -p tcp --dport 81 -j DROP"):
        iptables(command)
    before = iptables("-S")
    engine = Engine(root)
    await engine.networks.start()
    bindings = [PortBinding(80, "tcp", "", 8080, 8080), PortBinding(81, "tcp", "", 8081, 8081)]
    web = attach(await engine.networks.connect(cid(1), "web", bindings=bindings))
    servers = [Server(web, 80), Server(web, 81), Server(outside, 80)]
    await engine.networks.repair()
    assert await asyncio.to_thread(ask_tcp, outside, HOST, 8080) == OUTSIDE
    assert await asyncio.to_thread(ask_tcp, web, OUTSIDE, 80) == HOST
    assert await asyncio.to_thread(refused, lambda: ask_tcp(outside, HOST, 8081, 0.3)), "the host's own drop rule holds"
    await engine.networks.disconnect(cid(1))
    await engine.close()
    assert iptables("-S") == before
    del servers


async def cost(root: Path) -> None:
    """Not a check but a measurement: connect and disconnect with a published port."""
    build_outside()
    engine = Engine(root)
    await engine.networks.start()
    spans: list[float] = []
    for number in range(200):
        begin = time.perf_counter()
        await engine.networks.connect(cid(number), "c", bindings=[PortBinding(80)])
        spans.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    for number in range(200):
        await engine.networks.disconnect(cid(number))
    print(f"connect {sorted(spans)[100] * 1e3:.2f} ms, worst {max(spans) * 1e3:.2f}; disconnect {(time.perf_counter() - begin) * 5:.2f} ms")
    begin = time.perf_counter()
    await engine.close()
    print(f"close {(time.perf_counter() - begin) * 1e3:.1f} ms")


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](Path(sys.argv[2])))
