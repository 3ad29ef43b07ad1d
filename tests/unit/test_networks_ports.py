"""Port specifications, network modes, rule texts, and the holding of host ports (on the loopback of this machine)."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import Conflict, InvalidArgument, TareError, Unsupported
from tare.linux.nft import refusal
from tare.networks.firewall import Redirect, ruleset
from tare.networks.model import Connection, NetworkMode, parse_mode
from tare.networks.ports import HostPorts, PortBinding, PublishedPort, parse_bindings, parse_port, publish_all

LOCAL = "127.0.0.1"


def test_bindings() -> None:
    found = parse_bindings(
        {
            "80/tcp": [{"HostIp": "", "HostPort": "8080"}, {"HostIp": "127.0.0.1", "HostPort": "8000-8010"}],
            "53/udp": [{"HostPort": ""}],
            "9": None,
        }
    )
    assert found == (
        PortBinding(9),
        PortBinding(53, "udp"),
        PortBinding(80, "tcp", "", 8080, 8080),
        PortBinding(80, "tcp", "127.0.0.1", 8000, 8010),
    )
    ranges = parse_bindings({"7000-7001/tcp": [{"HostPort": "8000-8001"}]})
    assert ranges == (PortBinding(7000, "tcp", "", 8000, 8000), PortBinding(7001, "tcp", "", 8001, 8001))


@pytest.mark.parametrize(
    "bindings",
    [
        {"x/tcp": []},
        {"0/tcp": []},
        {"70000/tcp": []},
        {"80/icmp": []},
        {"80/": []},
        {"80/tcp": [{"HostPort": "x"}]},
        {"80/tcp": [{"HostPort": "9-8"}]},
        {"80/tcp": [{"HostPort": "70000"}]},
        {"80/tcp": [{"HostIp": "example.org"}]},
        {"80-82/tcp": [{"HostPort": "80-81"}]},
        {"\u0663/tcp": []},
    ],
)
def test_bad_bindings(bindings: dict[str, list[dict[str, str]]]) -> None:
    with pytest.raises(InvalidArgument):
        parse_bindings({key: value or [{}] for key, value in bindings.items()})


def test_an_ipv6_host_address_needs_a_container_with_ipv6() -> None:
    bindings = parse_bindings({"80/tcp": [{"HostIp": "[::1]", "HostPort": "0"}]})
    ports = HostPorts()
    with pytest.raises(Unsupported, match="::1"):
        ports.hold(bindings, "10.0.0.2")
    (held,) = ports.hold(bindings, "10.0.0.2", "fd00::2")
    assert held.host_ip == "::1"
    ports.close()


def test_both_families_get_the_same_port() -> None:
    ports = HostPorts()
    first, second = ports.hold(parse_bindings({"80/tcp": [{}]}), "10.0.0.2", "fd00::2")
    assert (first.host_ip, second.host_ip) == ("0.0.0.0", "::") and first.host_port == second.host_port
    ports.close()


@given(st.text(max_size=12))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        ports, protocol = parse_port(text)
    except TareError:
        return
    assert 0 < ports[0] <= ports[-1] < 65536 and protocol in ("tcp", "udp", "sctp")


def test_publish_all_keeps_what_is_bound() -> None:
    bound = PortBinding(80, "tcp", "", 8080, 8080)
    assert publish_all(["80/tcp", "80/udp", "90-91"], [bound]) == (bound, PortBinding(80, "udp"), PortBinding(90), PortBinding(91))


def test_port_map() -> None:
    ports = (PublishedPort(80, "tcp", "0.0.0.0", 1), PublishedPort(80, "tcp", "127.0.0.1", 2))
    connection = Connection("c", "n", "i", "bridge", "e", "s", ports=ports, exposed=("443/tcp", "80/tcp"))
    assert connection.port_map() == {"443/tcp": None, "80/tcp": ports}


@pytest.fixture
def held() -> HostPorts:
    ports = HostPorts((51000, 51003))
    yield ports
    ports.close()


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(type=kind) as probe:
        probe.bind((LOCAL, 0))
        return int(probe.getsockname()[1])


def test_hold_all_or_none(held: HostPorts) -> None:
    port = free_port()
    [got] = held.hold([PortBinding(80, "tcp", LOCAL, port, port)], "10.0.0.2")
    assert got == PublishedPort(80, "tcp", LOCAL, port)
    other = free_port()
    with pytest.raises(Conflict, match=f"Bind for 0.0.0.0:{port} failed: port is already allocated"):
        held.hold([PortBinding(81, "tcp", LOCAL, other, other), PortBinding(80, "tcp", "", port, port)], "10.0.0.3")
    assert len(held) == 1
    # Another protocol is another port; another address too.
    held.hold([PortBinding(80, "udp", LOCAL, port, port), PortBinding(80, "tcp", "127.0.0.2", port, port)], "10.0.0.3")
    held.release([got])
    held.hold([PortBinding(80, "tcp", LOCAL, port, port)], "10.0.0.4")
    assert len(held) == 3


def test_foreign_listener(held: HostPorts) -> None:
    with socket.socket() as listener:
        listener.bind((LOCAL, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(Conflict) as refused:
            held.hold([PortBinding(80, "tcp", LOCAL, port, port)], "10.0.0.2")
        assert str(refused.value) == f"failed to bind host port for {LOCAL}:{port}:10.0.0.2:80/tcp: address already in use"
        assert held.hold_again([PublishedPort(80, "tcp", LOCAL, port)]), "taken by another, still counted as ours"
        assert len(held) == 1


def test_old_connections_do_not_block_a_port(held: HostPorts) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # As servers do.
        listener.bind((LOCAL, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection((LOCAL, port)) as client:
            peer, _ = listener.accept()
            peer.close()  # The server closes first: TIME_WAIT stays on its port.
            assert client.recv(1) == b""
    held.hold([PortBinding(80, "tcp", LOCAL, port, port)], "10.0.0.2")
    with socket.socket() as thief, pytest.raises(OSError):
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind((LOCAL, port))
        thief.listen()


def test_ephemeral_ports_rotate_and_run_out(held: HostPorts) -> None:
    got = held.hold([PortBinding(80, "tcp", "127.9.9.9")] * 3, "10.0.0.2")
    assert [port.host_port for port in got] == [51000, 51001, 51002]
    held.release(got[:1])
    assert held.hold([PortBinding(80, "tcp", "127.9.9.9")], "10.0.0.2")[0].host_port == 51003
    held.hold([PortBinding(80, "tcp", "127.9.9.9")], "10.0.0.2")
    with pytest.raises(TareError, match="are allocated"):
        held.hold([PortBinding(80, "tcp", "127.9.9.9")], "10.0.0.2")


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("", NetworkMode("network", "bridge")),
        ("default", NetworkMode("network", "bridge")),
        ("bridge", NetworkMode("network", "bridge")),
        ("host", NetworkMode("host", "host")),
        ("none", NetworkMode("none", "none")),
        ("container:abc", NetworkMode("container", "abc")),
        ("front", NetworkMode("network", "front")),
    ],
)
def test_modes(text: str, mode: NetworkMode) -> None:
    assert parse_mode(text) == mode


def test_mode_without_container() -> None:
    with pytest.raises(InvalidArgument):
        parse_mode("container:")


def test_rules_are_one_replacing_transaction() -> None:
    redirects = [
        Redirect(PublishedPort(80, "tcp", "0.0.0.0", 8080), "172.17.0.2"),
        Redirect(PublishedPort(53, "udp", "127.0.0.1", 53), "172.17.0.2"),
    ]
    text = ruleset("tare_tare0", "tare0", ["172.17.0.0/16"], redirects)
    assert text.startswith(
        "add table ip tare_tare0\ndelete table ip tare_tare0\nadd table ip6 tare_tare0\ndelete table ip6 tare_tare0\ntable ip tare_tare0 {"
    )
    assert "elements = { tcp . 8080 : 172.17.0.2 . 80 }" in text
    assert "elements = { 127.0.0.1 . udp . 53 : 172.17.0.2 . 53 }" in text


def test_refusals_carry_the_errno() -> None:
    error = refusal("Error: Could not process rule: No such file or directory\nadd element ...\n    ^^^\n")
    assert error.errno == 2
    assert refusal("Error: syntax error, unexpected x\n").errno == 22
    assert refusal("").errno == 22
