"""Address pools and the choice of subnets."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import Forbidden, InvalidArgument, ResourceExhausted
from tare.networks.ipam import Pool, choose_subnet, default_subnets, mac_for


def make_pool(subnet: str = "172.17.0.0/16", **options: object) -> Pool:
    network = IPv4Network(subnet)
    return Pool(network, label="bridge (id)", reserved=(network.network_address + 1,), **options)


def test_next_free_after_the_last() -> None:
    pool = make_pool("10.0.0.0/29")
    taken = [str(pool.allocate()) for _ in range(3)]
    assert taken == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    pool.release(IPv4Address("10.0.0.4"))
    pool.release(IPv4Address("10.0.0.2"))
    assert [str(pool.allocate()) for _ in range(4)] == ["10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.4"]
    with pytest.raises(ResourceExhausted, match=r"^no available IPv4 addresses on this network's address pools: bridge \(id\)$"):
        pool.allocate()


def test_wanted_addresses() -> None:
    pool = make_pool("10.0.0.0/24", ip_range=IPv4Network("10.0.0.128/25"))
    assert str(pool.allocate()) == "10.0.0.128"
    assert str(pool.allocate(IPv4Address("10.0.0.7"))) == "10.0.0.7"
    for address in ("10.0.0.7", "10.0.0.1", "10.0.0.0", "10.0.0.255"):
        with pytest.raises(Forbidden, match="Address already in use"):
            pool.allocate(IPv4Address(address))
    with pytest.raises(InvalidArgument):
        pool.allocate(IPv4Address("10.0.1.1"))
    with pytest.raises(InvalidArgument):
        make_pool("10.0.0.0/24", ip_range=IPv4Network("10.1.0.0/25"))


def test_adopted_addresses_are_passed_over() -> None:
    pool = make_pool()
    pool.adopt(IPv4Address("172.17.0.5"))
    assert IPv4Address("172.17.0.5") in pool
    assert str(pool.allocate()) == "172.17.0.6"


@given(prefix=st.integers(26, 30), steps=st.lists(st.one_of(st.none(), st.integers(0, 63)), max_size=200))
def test_pool_invariants(prefix: int, steps: list[int | None]) -> None:
    """None allocates, a number releases the address of that index: never twice the same, never a reserved one, full means full."""
    subnet = IPv4Network(f"10.0.0.0/{prefix}")
    pool = make_pool(str(subnet))
    usable = set(subnet.hosts()) - {subnet.network_address + 1}
    held: set[IPv4Address] = set()
    for step in steps:
        if step is None and len(held) == len(usable):
            with pytest.raises(ResourceExhausted):
                pool.allocate()
        elif step is None:
            address = pool.allocate()
            assert address in usable and address not in held
            held.add(address)
        else:
            pool.release(subnet.network_address + step)
            held.discard(subnet.network_address + step)
        assert len(pool) == len(held)


def test_subnets() -> None:
    pools = list(default_subnets())
    assert str(pools[0]) == "172.17.0.0/16" and str(pools[14]) == "172.31.0.0/16" and str(pools[15]) == "192.168.0.0/20"
    assert len(pools) == 31
    assert str(choose_subnet([])) == "172.17.0.0/16"
    assert str(choose_subnet([IPv4Network("172.17.5.5/32"), IPv4Network("172.16.0.0/14")])) == "172.20.0.0/16"
    with pytest.raises(ResourceExhausted, match="fully subnetted"):
        choose_subnet([IPv4Network("172.16.0.0/12"), IPv4Network("192.168.0.0/16")])


@given(st.lists(st.sampled_from(list(default_subnets())), max_size=30))
def test_choice_overlaps_nothing(taken: list[IPv4Network]) -> None:
    chosen = choose_subnet(taken)
    assert not any(chosen.overlaps(network) for network in taken)


def test_mac() -> None:
    assert mac_for(IPv4Address("172.17.0.2")) == "02:42:ac:11:00:02"
