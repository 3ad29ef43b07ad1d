"""The netlink wire format without a kernel."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.linux import netlink_message as nl
from tare.linux.netlink import Route, _route_from


@given(st.lists(st.tuples(st.integers(1, 60), st.binary(max_size=40)), max_size=8))
def test_attributes_come_back(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(nl.attribute(kind, value) for kind, value in pairs)
    assert len(data) % 4 == 0
    assert nl.attributes(data) == dict(pairs)
    assert nl.attributes(nl.attributes(nl.nested(7, data))[7]) == dict(pairs)


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_messages_come_back(payloads: list[bytes]) -> None:
    datagram = b""
    for number, payload in enumerate(payloads):
        one = nl.message(16, 5, number, payload)
        datagram += one + bytes(nl.align(len(one)) - len(one))
    assert [(m.type, m.flags, m.sequence, m.payload) for m in nl.messages(datagram)] == [
        (16, 5, number, payload) for number, payload in enumerate(payloads)
    ]


@given(st.binary(max_size=200))
def test_garbage_raises_nothing_but_value_error(data: bytes) -> None:
    for read in (lambda: list(nl.messages(data)), lambda: nl.attributes(data)):
        try:
            read()
        except ValueError:
            pass


def refusal(number: int, flags: int, tail: bytes) -> nl.Message:
    return nl.Message(nl.NLMSG_ERROR, flags, 1, struct.pack("=i", -number) + tail)


def test_acknowledgements() -> None:
    request = nl.message(16, 5, 1, b"12345678")
    words = nl.attribute_text(nl.NLMSGERR_ATTR_MSG, "Device is busy")
    assert nl.acknowledgement(refusal(0, 0, request[:16])) == (0, "")
    assert nl.acknowledgement(refusal(16, 0, request)) == (16, "")
    assert nl.acknowledgement(refusal(16, nl.NLM_F_ACK_TLVS, request + words)) == (16, "Device is busy")
    assert nl.acknowledgement(refusal(16, nl.NLM_F_ACK_TLVS | nl.NLM_F_CAPPED, request[:16] + words)) == (16, "Device is busy")


def test_default_route_with_several_next_hops_shows_the_first() -> None:
    header = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0)
    hops = b""
    for index, last in ((4, 1), (5, 2)):
        gateway = nl.attribute(5, bytes((10, 0, 0, last)))
        hops += struct.pack("=HBBi", 8 + len(gateway), 0, 0, index) + gateway
    route = _route_from(nl.Message(24, 0, 1, header + nl.attribute(9, hops)))
    assert (route.default, route.gateway, route.index) == (True, "10.0.0.1", 4)


@pytest.mark.parametrize("name", ["", "x" * 16, "a b", "a/b", "ä" * 8])
def test_bad_names_never_reach_the_kernel(name: str) -> None:
    with Route() as route, pytest.raises(OSError, match="not an interface name"):
        route.link(name)
