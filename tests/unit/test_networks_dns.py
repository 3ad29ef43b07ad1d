"""DNS messages, the tables of names, and the checks on new networks."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import Forbidden, InvalidArgument, NotFound
from tare.networks.creation import NewNetwork, check_request
from tare.networks.dns import forward, wire
from tare.networks.dns.forward import Cache
from tare.networks.dns.zones import Zones
from tare.networks.gateway import gateways
from tare.networks.model import Connection, Subnet
from tare.networks.names import document

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64


def question(name: str, kind: int = wire.A, *, extra: bytes = b"", extras: int = 0) -> bytes:
    return wire.HEADER.pack(7, wire.RECURSION_DESIRED, 1, 0, 0, extras) + wire.pack_name(name) + struct.pack("!HH", kind, wire.IN) + extra


def addresses(answer: bytes) -> list[bytes]:
    """The data of an answer's records."""
    found = []
    for section, kind, offset, _, start in wire._records(answer):
        if section == 0 and kind != wire.OPT:
            found.append(answer[start : start + int.from_bytes(answer[offset + 4 : offset + 6], "big")])
    return found


def place(network: str, name: str, *addresses: str, internal: bool = False, zone: bool = True, aliases: tuple[str, ...] = ()) -> dict:
    return {
        "id": network,
        "name": f"{network}net",
        "internal": internal,
        "zone": zone,
        "names": [name, *aliases],
        "addresses": list(addresses),
    }


def container(container_id: str, name: str, *places: dict, links: dict | None = None, upstream: list | None = None) -> dict:
    return {"id": container_id, "name": name, "networks": list(places), "links": links or {}, "upstream": upstream, "ndots": False}


@pytest.fixture
def zones() -> Zones:
    zones = Zones()
    zones.put(container(ONE, "web", place("a", "web", "10.0.0.2", "fd00::2", aliases=("svc",)), links={"lk": "db"}))
    zones.put(container(TWO, "db", place("a", "db", "10.0.0.3", aliases=("svc", "db")), place("b", "db", "10.1.0.3")))
    zones.put(container(THREE, "far", place("b", "far", "10.1.0.4", internal=True)))
    return zones


def ask(zones: Zones, asker: str, name: str, kind: int = wire.A) -> list[bytes] | None:
    answer = zones.answer(asker, wire.parse_query(question(name, kind)), 512)
    return None if answer is None else addresses(answer)


def test_a_container_sees_the_names_of_its_networks(zones: Zones) -> None:
    assert ask(zones, ONE, "db") == [bytes([10, 0, 0, 3])] == ask(zones, ONE, "DB") == ask(zones, ONE, "db.anet")
    assert ask(zones, THREE, "db") == [bytes([10, 1, 0, 3])]
    assert ask(zones, ONE, "far") is None and ask(zones, ONE, "db.bnet") is None and ask(zones, "unknown", "db") is None
    assert ask(zones, ONE, "lk") == ask(zones, ONE, "db") and ask(zones, TWO, "lk") is None


def test_a_name_without_such_an_address_is_not_denied(zones: Zones) -> None:
    assert ask(zones, ONE, "web", wire.AAAA) == [bytes.fromhex("fd00" + "00" * 13 + "02")]
    assert ask(zones, ONE, "db", wire.AAAA) == [] == ask(zones, ONE, "db", 15)


def test_several_containers_of_one_alias_take_turns(zones: Zones) -> None:
    first = {tuple(ask(zones, TWO, "svc") or ()) for _ in range(100)}
    assert len(first) == 2 and all(sorted(order) == [bytes([10, 0, 0, 2]), bytes([10, 0, 0, 3])] for order in first)


def test_addresses_have_names(zones: Zones) -> None:
    assert ask(zones, ONE, "3.0.0.10.in-addr.arpa", wire.PTR) == [wire.pack_name("db.anet")]
    assert ask(zones, ONE, ".".join(reversed("fd00" + "0" * 27 + "2")) + ".ip6.arpa", wire.PTR) == [wire.pack_name("web.anet")]
    assert ask(zones, ONE, "4.0.1.10.in-addr.arpa", wire.PTR) is None and ask(zones, ONE, "x.in-addr.arpa", wire.PTR) is None


def test_what_is_forgotten_is_gone(zones: Zones) -> None:
    zones.forget(TWO)
    assert ask(zones, ONE, "db") is None and ask(zones, ONE, "svc") == [bytes([10, 0, 0, 2])]
    assert ask(zones, ONE, "3.0.0.10.in-addr.arpa", wire.PTR) is None
    zones.keep_only({THREE})
    assert ONE not in zones and THREE in zones


def test_internal_networks_have_no_upstream(zones: Zones) -> None:
    assert zones.upstream(THREE) == () and zones.upstream(ONE) is None and zones.upstream("unknown") == ()


def test_long_answers_by_datagram_are_a_hint() -> None:
    query = wire.parse_query(question("many"))
    answer = wire.answer(query, [bytes(4)] * 100, size=query.udp_size)
    assert wire.is_truncated(answer) and len(answer) < 100
    extended = wire.parse_query(question("many", extra=b"\0" + struct.pack("!HHIH", wire.OPT, 4096, 0, 0), extras=1))
    assert extended.udp_size == wire.MAX_UDP_SIZE
    assert len(addresses(wire.answer(extended, [bytes(4)] * 70, size=extended.udp_size))) == 70


@given(st.binary(max_size=80))
def test_any_bytes_are_a_query_or_are_refused(data: bytes) -> None:
    try:
        wire.parse_query(data)
    except (wire.Malformed, struct.error):
        assert len(wire.format_error(data)) in (0, 12)
    try:
        wire.lifetime(data + bytes(12))
    except (wire.Malformed, struct.error):
        pass


def test_pointers_only_lead_backwards() -> None:
    with pytest.raises(wire.Malformed):
        wire.read_name(b"\xc0\x00", 0)
    assert wire.read_name(b"\x01a\x00\x01b\xc0\x00", 3) == ("b.a", 7)


def test_answers_are_kept_for_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tare.networks.dns.forward.time.monotonic", lambda: now[0])
    cache = Cache()
    cache.put("a", wire.answer(wire.parse_query(question("x")), [bytes(4)], ttl=60))
    cache.put("none", wire.answer(wire.parse_query(question("x")), code=wire.NXDOMAIN))
    assert cache.get("none") is None, "a denial without a time is not kept"
    now[0] += 20
    (_, offsets) = wire.lifetime(cache.get("a"))
    assert int.from_bytes(cache.get("a")[offsets[0] : offsets[0] + 4], "big") == 40
    now[0] += 41
    assert cache.get("a") is None


def connection(name: str, gateway: str = "", priority: int = 0, **fields: object) -> Connection:
    return Connection(ONE, "web", name, name, f"ep-{name}", "", gateway=gateway, gw_priority=priority, **fields)


def test_the_hosts_servers_are_those_of_its_file_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(forward.time, "monotonic", lambda: now[0])
    path = tmp_path / "resolv.conf"
    servers = forward.HostServers(str(path))
    assert servers() == ()
    path.write_text("search x\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\n")
    assert servers() == (), "looked at once a second"
    now[0] = 2.0
    assert servers() == ("10.0.0.1", "fe80::1%eth0")
    path.with_name("new").write_text("nameserver 10.0.0.2\n")
    path.with_name("new").rename(path)
    now[0] = 4.0
    assert servers() == ("10.0.0.2",)


async def test_a_silent_server_costs_its_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as lively:
        silent.bind(("127.0.0.2", 0))
        port = silent.getsockname()[1]
        lively.bind(("127.0.0.3", port))
        lively.setblocking(False)
        monkeypatch.setattr(forward, "_PORT", port)
        monkeypatch.setattr(forward, "SECONDS_PER_SERVER", 0.3)
        loop = asyncio.get_running_loop()
        asked: list[str] = []

        def reply() -> None:
            message, peer = lively.recvfrom(4096)
            query = wire.parse_query(message)
            asked.append(query.name)
            lively.sendto(wire.answer(query, [bytes(4)]), peer)

        loop.add_reader(lively, reply)
        forwarder = forward.Forwarder()
        upstream = forward.Upstream(("127.0.0.2", "127.0.0.3"), "", socket.socket)
        spent = []
        for name in ("a.test", "b.test"):
            message = question(name)
            begin = loop.time()
            both = [forwarder.ask(wire.parse_query(message), message, upstream, False) for _ in range(2)]
            assert [wire.code_of(answer) for answer in await asyncio.gather(*both)] == [wire.NOERROR] * 2
            spent.append(loop.time() - begin)
        loop.remove_reader(lively)
    assert asked == ["a.test", "b.test"], "equal questions share one exchange"
    assert spent[0] >= 0.3 > spent[1], "the silent one is asked last from then on"


def test_the_default_route_is_the_highest_priority_then_the_first_name() -> None:
    one, two = connection("b", "10.0.0.1"), connection("a", "10.1.0.1")
    assert gateways([one, two]) == {"ep-a": ("10.1.0.1",)}
    assert gateways([connection("b", "10.0.0.1", 1), two]) == {"ep-b": ("10.0.0.1",)}
    six = connection("c", gateway6="fd00::1")
    assert gateways([one, six]) == {"ep-b": ("10.0.0.1",), "ep-c": ("fd00::1",)}
    assert gateways([connection("a", "10.0.0.1", internal=True)]) == {}


def test_the_document_says_each_name_once() -> None:
    told = document([connection("n", aliases=("web", "www"), hostname=ONE[:12], named=True, address="10.0.0.2", links=("db:d",))])
    assert told["networks"][0]["names"] == ["web", "www", ONE[:12]] and told["links"] == {"d": "db"} and told["upstream"] is None


@pytest.mark.parametrize(
    ("wanted", "error", "text"),
    [
        (NewNetwork("-x"), InvalidArgument, "invalid network name"),
        (NewNetwork("bridge"), Forbidden, "operation is not permitted on predefined bridge network"),
        (NewNetwork("x", driver="nope"), NotFound, 'plugin "nope" not found'),
        (NewNetwork("x", subnets=[Subnet("foo", "")]), InvalidArgument, "invalid subnet foo: invalid CIDR block notation"),
        (NewNetwork("x", subnets=[Subnet("10.1.2.3/16", "")]), InvalidArgument, "invalid subnet 10.1.2.3/16: it should be 10.1.0.0/16"),
        (NewNetwork("x", subnets=[Subnet("10.1.0.0/16", "10.2.0.1")]), InvalidArgument, "doesn't contain this address"),
        (NewNetwork("x", subnets=[Subnet("10.1.0.0/16", "", "10.0.0.0/8")]), InvalidArgument, "bigger than its parent subnet"),
        (NewNetwork("x", subnets=[Subnet("10.1.0.0/16", "", "", {"a": "1.1.1.1"})]), InvalidArgument, "invalid auxiliary address 1.1.1.1"),
        (NewNetwork("x", subnets=[Subnet("fd00::/64", "")]), InvalidArgument, "--ipv6"),
        (NewNetwork("x", subnets=[Subnet("10.1.0.0/31", "")]), InvalidArgument, "too small"),
    ],
)
def test_what_cannot_be_is_refused(wanted: NewNetwork, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text.replace("(", r"\(")):
        check_request(wanted)
