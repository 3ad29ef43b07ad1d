"""Driver options of networks, and the daemon's flags about its default bridge."""

from __future__ import annotations

from pathlib import Path

import pytest

from tare.daemon_options import UsageError, load
from tare.errors import Forbidden, InvalidArgument, TareError
from tare.networks.creation import NewNetwork, check_network, check_request, configured
from tare.networks.firewall import table_name
from tare.networks.model import Network, Subnet
from tare.networks.options import BridgeOptions, bridge_options, mtu

BRIDGE = "com.docker.network.bridge."


def test_options_are_read_as_go_reads_them() -> None:
    assert bridge_options({}) == BridgeOptions() and bridge_options({"any.other": "x"}) == BridgeOptions()
    told = bridge_options(
        {
            f"{BRIDGE}enable_icc": "F",
            f"{BRIDGE}enable_ip_masquerade": "0",
            f"{BRIDGE}inhibit_ipv4": "True",
            f"{BRIDGE}host_binding_ipv4": "127.0.0.1",
            f"{BRIDGE}gateway_mode_ipv4": "nat",
            "com.docker.network.container_iface_prefix": "lan",
            "com.docker.network.host_ipv4": "192.0.2.1",
        }
    )
    assert told == BridgeOptions(False, False, "127.0.0.1", False, "lan", "192.0.2.1")
    assert bridge_options({f"{BRIDGE}host_binding_ipv4": "0.0.0.0"}).host_ip == ""
    assert mtu({}, 1400) == 1400 and mtu({"com.docker.network.driver.mtu": "9000"}, 1500) == 9000


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (f"{BRIDGE}enable_icc", "maybe", f'failed to parse {BRIDGE}enable_icc value: maybe (strconv.ParseBool: parsing "maybe": invalid'),
        (f"{BRIDGE}host_binding_ipv4", "bad", f"failed to parse {BRIDGE}host_binding_ipv4 value: bad"),
        (f"{BRIDGE}host_binding_ipv4", "::1", "not an IPv4 address"),
        (f"{BRIDGE}gateway_mode_ipv6", "routed", "gateway_mode_ipv6=routed is not offered"),
        (f"{BRIDGE}trusted_host_interfaces", "eth1", "trusted_host_interfaces is not offered"),
        ("com.docker.network.container_iface_prefix", "a/b", "invalid value 'a/b'"),
        ("com.docker.network.host_ipv6", "192.0.2.1", "not an IPv6 address"),
    ],
)
def test_values_that_cannot_be(name: str, value: str, text: str) -> None:
    with pytest.raises(TareError) as caught:
        bridge_options({name: value})
    assert text in str(caught.value)


@pytest.mark.parametrize("value", ["abc", "12", "70000", "-1"])
def test_mtus_that_cannot_be(value: str) -> None:
    with pytest.raises(InvalidArgument, match=r"failed to parse com\.docker\.network\.driver\.mtu value"):
        mtu({"com.docker.network.driver.mtu": value}, 1500)


def test_a_configuration_network_lends_its_settings() -> None:
    subnets = (Subnet("10.0.0.0/24", "10.0.0.9"),)
    source = Network("id", "cfg", "null", 1, subnets, options={"parent": "eth0"}, labels={"a": "1", "b": "2"}, config_only=True)
    made = configured(NewNetwork("n", driver="macvlan", labels={"b": "3"}, config_from="c"), source)
    assert (made.subnets, made.options, made.labels) == (subnets, {"parent": "eth0"}, {"a": "1", "b": "3"}) and made.config_from == "cfg"
    with pytest.raises(Forbidden, match="user supplied configurations are not supported"):
        configured(NewNetwork("n", ipv6=True), source)
    with pytest.raises(Forbidden, match="not a configuration network"):
        configured(NewNetwork("n"), Network("id", "plain", "bridge", 1))


@pytest.mark.parametrize("name", ['a"b', "a;b", "a b", "a/b", "", "x" * 16, "a{b}", "a\nb", "..", "-a", "$x"])
def test_names_of_bridges_stay_names(name: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid bridge name"):
        check_network(Network("i" * 64, "n", "bridge", 1, bridge=name))


def test_every_bridge_has_a_table_of_its_own() -> None:
    names = ["br-a", "br_a", "br.a", "bra", "br-a_"]
    assert len({table_name(name) for name in names}) == len(names) and table_name("br-a") == "tare_br_a"


def test_a_network_has_a_family() -> None:
    check_request(NewNetwork("n", ipv4=False, ipv6=True))
    with pytest.raises(InvalidArgument, match="IPv4 or IPv6 must be enabled"):
        check_request(NewNetwork("n", ipv4=False))
    with pytest.raises(InvalidArgument, match="IPv4 subnets need an IPv4 network"):
        check_request(NewNetwork("n", ipv4=False, ipv6=True, subnets=[Subnet("10.0.0.0/24", "")]))


def test_flags_of_the_default_bridge(tmp_path: Path) -> None:
    flags = "--ipv6 --bip 10.9.0.1/24 --fixed-cidr 10.9.0.128/25 --fixed-cidr-v6 fd00:9::/64 --icc=false --ip-masq=false --ip 127.0.0.1"
    config = load([*flags.split(), "--default-network-opt", "bridge=a.b=c=d", "--host-gateway-ip", "10.1.1.1"]).config
    assert (config.ipv6, config.icc, config.ip_masq, config.ip) == (True, False, False, "127.0.0.1")
    assert config.default_network_opts == {"bridge": {"a.b": "c=d"}} and config.host_gateway_ips == ("10.1.1.1",)
    file = tmp_path / "daemon.json"
    file.write_text('{"ipv6": true, "default-network-opts": {"bridge": {"a": "b"}}, "host-gateway-ip": "10.1.1.2"}')
    config = load(["--config-file", str(file)]).config
    assert config.ipv6 and config.default_network_opts == {"bridge": {"a": "b"}} and config.host_gateway_ips == ("10.1.1.2",)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--fixed-cidr-v6 fd00::/64", "--fixed-cidr-v6 needs IPv6"),
        ("--ipv6 --fixed-cidr-v6 10.0.0.0/8", "invalid --fixed-cidr-v6 10.0.0.0/8"),
        ("--ipv6 --bip6 fd00::1", "invalid --bip6 fd00::1"),
        ("--fixed-cidr 10.0.0.0", "invalid --fixed-cidr 10.0.0.0"),
        ("--ip ::1", "invalid --ip ::1: not an IPv4 address"),
        ("--default-gateway x", "invalid --default-gateway x: not an IPv4 address"),
        ("--host-gateway-ip x", "invalid --host-gateway-ip x"),
        ("--default-network-opt bridge=x", "expected DRIVER=OPTION=VALUE"),
        ("--ipv6 -b br0 --bip6 fd00::1/64", "you specified -b & --bip6, mutually exclusive options"),
    ],
)
def test_flags_that_cannot_be(flags: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(flags.split())
    assert text in str(caught.value)
