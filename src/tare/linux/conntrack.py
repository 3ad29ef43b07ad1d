"""Connection tracking, as far as the engine needs it: forget the flows of a UDP port or of an address.

A UDP "connection" is what the kernel remembers of two addresses that spoke. When a published port moves to another container, or begins to
be published, a peer that keeps sending from one port would go on to be treated as before, for as long as it sends.

Followed: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator

from tare.linux import netlink_message as nl

NETLINK_NETFILTER = 12
_SUBSYSTEM = 1 << 8
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_TUPLE_ORIGINAL, _TUPLE_REPLY = 1, 2
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_IP_SOURCE: dict[int, int] = {socket.AF_INET: 1, socket.AF_INET6: 3}
_PROTOCOL_NUMBER, _DESTINATION_PORT = 1, 3
_FAMILY = struct.Struct("!BBH")
_BUFFER = 1 << 17


def forget_udp(ports: frozenset[int], addresses: frozenset[str]) -> int:
    """Delete every UDP flow to one of these ports, or answered from one of these addresses. Returns how many there were; a kernel
    without the interface has none."""
    packed = {socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address) for address in addresses}

    def wanted(original: dict[int, bytes], reply: dict[int, bytes], family: int) -> bool:
        protocol = nl.attributes(original.get(_TUPLE_PROTOCOL, b""))
        if protocol.get(_PROTOCOL_NUMBER) != bytes([socket.IPPROTO_UDP]):
            return False
        port = int.from_bytes(protocol.get(_DESTINATION_PORT, b""), "big")
        source = nl.attributes(reply.get(_TUPLE_IP, b"")).get(_IP_SOURCE[family], b"")
        return port in ports or source in packed

    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as sock:
            sock.bind((0, 0))
            return sum(_forget(sock, family, wanted) for family in (socket.AF_INET, socket.AF_INET6))
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP):
            return 0
        raise


Filter = Callable[[dict[int, bytes], dict[int, bytes], int], bool]


def _forget(sock: socket.socket, family: int, wanted: Filter) -> int:
    header = _FAMILY.pack(family, 0, 0)
    sock.send(nl.message(_GET, nl.NLM_F_REQUEST | nl.NLM_F_DUMP, 1, header))
    doomed = []
    for message in _answers(sock, 1):
        found = nl.attributes(message.payload, _FAMILY.size)
        original = found.get(_TUPLE_ORIGINAL, b"")
        if wanted(nl.attributes(original), nl.attributes(found.get(_TUPLE_REPLY, b"")), family):
            doomed.append(original)
    for original in doomed:
        sock.send(nl.message(_DELETE, nl.NLM_F_REQUEST | nl.NLM_F_ACK, 2, header + nl.nested(_TUPLE_ORIGINAL, original)))
        for _ in _answers(sock, 2):
            pass
    return len(doomed)


def _answers(sock: socket.socket, sequence: int) -> Iterator[nl.Message]:
    """The messages up to the end of a dump or the acknowledgement. A flow that is gone already is no error."""
    while True:
        for message in nl.messages(sock.recv(_BUFFER)):
            if message.sequence != sequence:
                continue
            if message.type == nl.NLMSG_DONE:
                return
            if message.type == nl.NLMSG_ERROR:
                number = nl.acknowledgement(message)[0]
                if number not in (0, errno.ENOENT):
                    raise OSError(number, os.strerror(number), "connection tracking")
                return
            yield message
