"""Links, addresses and routes through rtnetlink: one small client for the daemon and for a container's init.

Why our own: a general netlink library costs 125 ms of import and a process per foreign namespace; the engine needs a
dozen messages. ``Route`` is usable in a freshly forked child: no import, no name service, no thread, one file
descriptor.

Invariants:
- A socket belongs to the network namespace in which it was opened, whatever its owner enters later. So the daemon's
  ``Route`` keeps working on the host, and an init opens its own after ``unshare(CLONE_NEWNET)``.
- One request is in flight at a time: each method sends one message and reads up to its acknowledgement (or the dump's
  end). An object is not to be shared between threads.
- A veth pair is made complete by ONE message: both names, addresses, MTUs, the peer's namespace, the host end's
  bridge and state. Either all of it exists afterwards or nothing.
- The kernel's refusal becomes ``OSError`` with its errno, its own explanation where it gives one, and the object's
  name as ``filename``.

Links are not deleted on the hot path (the kernel waits about 20 ms for it): a veth dies with its namespace.

Followed: rtnetlink(7), linux/rtnetlink.h, linux/if_link.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

from tare.linux import netlink_message as nl
from tare.linux.netlink_message import Message

NETLINK_ROUTE = 0
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26

IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_RUNNING = 0x40

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_PROTINFO = 12
IFLA_LINKINFO = 18
IFLA_NET_NS_FD = 28
IFLA_EXT_MASK = 29
RTEXT_FILTER_SKIP_STATS = 8
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_BRPORT_MODE = 4
IFLA_BRPORT_ISOLATED = 33
IFLA_BR_STP_STATE = 5
IFLA_BR_VLAN_FILTERING = 7
VETH_INFO_PEER = 1
IFLA_VXLAN_ID = 1
IFLA_VXLAN_GROUP = 2
IFLA_VXLAN_LOCAL = 4
IFLA_VXLAN_PORT = 15
IFLA_VXLAN_GROUP6 = 16
IFLA_VXLAN_LOCAL6 = 17
IFLA_VLAN_ID = 1
IFLA_MACVLAN_MODE = 1
IFLA_IPVLAN_MODE = 1
MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}

IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_LABEL = 3
IFA_BROADCAST = 4
IFA_FLAGS = 8
IFA_F_NODAD = 0x02

RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_PRIORITY = 6
RTA_PREFSRC = 7
RTA_MULTIPATH = 9
RTA_TABLE = 15
RT_TABLE_UNSPEC = 0
RT_TABLE_MAIN = 254
RTPROT_BOOT = 3
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RT_SCOPE_HOST = 254
RTN_UNICAST = 1
RTNH_F_ONLINK = 4

IFNAMSIZ = 16
ISOLATED = "isolated"
"""The mode of a veth whose bridge port is isolated."""
DUMP_ATTEMPTS = 5

_IFINFO = struct.Struct("=BxHiII")  # family, device type, index, flags, change mask
_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst and src length, tos, table, protocol, scope, type, flags
_NEXTHOP = struct.Struct("=HBBi")  # length, flags, hops, index

_BUFFER = 1 << 16


class Link(NamedTuple):
    """A network interface. ``master`` is the index of the bridge (or bond) it belongs to, 0 for none."""

    index: int  # type: ignore[assignment]  # not the method of tuples
    name: str
    mac: str
    flags: int
    mtu: int
    master: int
    kind: str
    """``bridge``, ``veth``, ... as the kernel names it; empty for hardware and loopback."""

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def loopback(self) -> bool:
        return bool(self.flags & IFF_LOOPBACK)


class Address(NamedTuple):
    """An address of a link; ``family`` is ``AF_INET`` or ``AF_INET6``."""

    index: int  # type: ignore[assignment]  # not the method of tuples
    family: int
    address: str
    prefix: int
    scope: int
    flags: int

    @property
    def cidr(self) -> str:
        return f"{self.address}/{self.prefix}"


class RouteEntry(NamedTuple):
    """A unicast, local or other route. ``destination`` is ``default`` or a network with prefix length."""

    family: int
    destination: str
    gateway: str
    index: int  # type: ignore[assignment]  # not the method of tuples
    source: str
    table: int
    protocol: int
    scope: int
    type: int
    priority: int

    @property
    def default(self) -> bool:
        return self.destination == "default"


def _mac_bytes(mac: str) -> bytes:
    try:
        value = bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        value = b""
    if len(value) != 6:
        raise OSError(errno.EINVAL, "not an Ethernet address", mac)
    return value


def _name_attribute(name: str) -> bytes:
    if not 0 < len(name.encode()) < IFNAMSIZ or "/" in name or any(c.isspace() for c in name):
        raise OSError(errno.EINVAL, "not an interface name (1 to 15 bytes, no space, no slash)", name)
    return nl.attribute_text(IFLA_IFNAME, name)


def _packed(address: str) -> tuple[int, bytes]:
    """Family and network bytes of a numeric address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return family, socket.inet_pton(family, address)
    except OSError:
        raise OSError(errno.EINVAL, "not an IP address", address) from None


def _packed_cidr(cidr: str) -> tuple[int, bytes, int]:
    """Family, network bytes and prefix length of ``address/prefix`` (a bare address is a host: /32 or /128)."""
    address, slash, digits = cidr.partition("/")
    family, packed = _packed(address)
    bits = len(packed) * 8
    prefix = int(digits) if digits.isascii() and digits.isdigit() else -1 if slash else bits
    if not 0 <= prefix <= bits:
        raise OSError(errno.EINVAL, "not an address with prefix length", cidr)
    return family, packed, prefix


def _mac_text(value: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in value)


def _link_from(answer: Message) -> Link:
    _family, _type, index, flags, _change = _IFINFO.unpack_from(answer.payload)
    found = nl.attributes(answer.payload, _IFINFO.size)
    info = nl.attributes(found.get(IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=nl.text(found.get(IFLA_IFNAME, b"")),
        mac=_mac_text(found.get(IFLA_ADDRESS, b"")),
        flags=flags,
        mtu=nl.u32(found.get(IFLA_MTU, b"")),
        master=nl.u32(found.get(IFLA_MASTER, b"")),
        kind=nl.text(info.get(IFLA_INFO_KIND, b"")),
    )


def _address_from(answer: Message) -> Address:
    family, prefix, flags, scope, index = _IFADDR.unpack_from(answer.payload)
    found = nl.attributes(answer.payload, _IFADDR.size)
    # On a point-to-point link IFA_ADDRESS is the other side; IFA_LOCAL is ours wherever it is given.
    value = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS, b"")
    flags = nl.u32(found[IFA_FLAGS]) if IFA_FLAGS in found else flags
    return Address(index, family, socket.inet_ntop(family, value), prefix, scope, flags)


def _route_from(answer: Message) -> RouteEntry:
    family, length, _src, _tos, table, protocol, scope, kind, _flags = _RTMSG.unpack_from(answer.payload)
    found = nl.attributes(answer.payload, _RTMSG.size)
    if RTA_MULTIPATH in found and len(found[RTA_MULTIPATH]) >= _NEXTHOP.size:
        # Several next hops: the first stands for the route.
        hop_length, _hop_flags, _hops, hop_index = _NEXTHOP.unpack_from(found[RTA_MULTIPATH])
        found = {**found, **nl.attributes(found[RTA_MULTIPATH][:hop_length], _NEXTHOP.size)}
        found[RTA_OIF] = struct.pack("=i", hop_index)

    def address(key: int) -> str:
        return socket.inet_ntop(family, found[key]) if key in found else ""

    network = address(RTA_DST) or ("0.0.0.0" if family == socket.AF_INET else "::")
    return RouteEntry(
        family=family,
        destination=f"{network}/{length}" if length or kind != RTN_UNICAST else "default",
        gateway=address(RTA_GATEWAY),
        index=nl.u32(found.get(RTA_OIF, b"")),
        source=address(RTA_PREFSRC),
        table=nl.u32(found[RTA_TABLE]) if RTA_TABLE in found else table,
        protocol=protocol,
        scope=scope,
        type=kind,
        priority=nl.u32(found.get(RTA_PRIORITY, b"")),
    )


class Route:
    """An open rtnetlink socket, bound to the network namespace in which it was opened. A context manager."""

    def __init__(self) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        try:
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise
        for option in (NETLINK_EXT_ACK, NETLINK_CAP_ACK):
            try:
                self._socket.setsockopt(SOL_NETLINK, option, 1)
            except OSError:  # Kernels before 4.12 and 4.3: plain errno, echoed requests.
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    # Links

    def add_bridge(
        self,
        name: str,
        *,
        mac: str = "",
        mtu: int = 0,
        stp: bool = False,
        vlan_filtering: bool = False,
        up: bool = False,
    ) -> int:
        """Create a bridge and return its index. Without ``mac`` the kernel picks one (and may change it with its
        ports)."""
        options = nl.attribute_u32(IFLA_BR_STP_STATE, int(stp))
        if vlan_filtering:  # Off is the kernel's default; one built without it refuses the attribute whatever its value.
            options += nl.attribute_u8(IFLA_BR_VLAN_FILTERING, 1)
        data = nl.nested(IFLA_INFO_DATA, options)
        payload = (
            _IFINFO.pack(0, 0, 0, IFF_UP if up else 0, IFF_UP if up else 0)
            + _name_attribute(name)
            + _shape(mac, mtu)
            + nl.nested(IFLA_LINKINFO, nl.attribute_text(IFLA_INFO_KIND, "bridge"), data)
        )
        self._request(RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL, payload, name)
        return self._index(name)

    def add_veth(
        self,
        name: str,
        peer_name: str,
        *,
        peer_ns_fd: int | None = None,
        master_index: int = 0,
        mac: str = "",
        peer_mac: str = "",
        mtu: int = 0,
        up: bool = True,
    ) -> None:
        """Create a veth pair: ``name`` here (a port of the bridge ``master_index``, up), its peer in ``peer_ns_fd``'s
        namespace.

        ``mtu`` goes to both ends (0: the kernel's default). No index is returned, so that one message does everything.
        The peer cannot come up in the same message (ENOTCONN: at that point it has no other end yet).
        """
        peer = _IFINFO.pack(0, 0, 0, 0, 0) + _name_attribute(peer_name) + _shape(peer_mac, mtu)
        if peer_ns_fd is not None:
            peer += nl.attribute_u32(IFLA_NET_NS_FD, peer_ns_fd)
        flags = IFF_UP if up else 0
        payload = _IFINFO.pack(0, 0, 0, flags, flags) + _name_attribute(name) + _shape(mac, mtu)
        if master_index:
            payload += nl.attribute_u32(IFLA_MASTER, master_index)
        data = nl.nested(IFLA_INFO_DATA, nl.attribute(VETH_INFO_PEER, peer))
        payload += nl.nested(IFLA_LINKINFO, nl.attribute_text(IFLA_INFO_KIND, "veth"), data)
        self._request(RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL, payload, name)

    def add_sub_link(self, kind: str, name: str, parent_index: int, mode: str, *, ns_fd: int, mac: str = "", mtu: int = 0) -> None:
        """Create a ``macvlan`` or ``ipvlan`` link on a parent, at once in the network namespace ``ns_fd``. The name must be free here too
        (older kernels look for it on this side)."""
        if kind == "macvlan":
            data = nl.attribute_u32(IFLA_MACVLAN_MODE, MACVLAN_MODES[mode])
        else:
            data = nl.attribute(IFLA_IPVLAN_MODE, struct.pack("=H", IPVLAN_MODES[mode]))
        payload = _IFINFO.pack(0, 0, 0, 0, 0) + _name_attribute(name) + _shape(mac, mtu)
        payload += nl.attribute_u32(IFLA_LINK, parent_index) + nl.attribute_u32(IFLA_NET_NS_FD, ns_fd)
        payload += nl.nested(IFLA_LINKINFO, nl.attribute_text(IFLA_INFO_KIND, kind), nl.nested(IFLA_INFO_DATA, data))
        self._request(RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL, payload, name)

    def add_vxlan(self, name: str, number: int, peer: str, port: int, *, local: str = "", mtu: int = 0) -> None:
        """Create a VXLAN link to one peer (RFC 7348): Ethernet frames in UDP."""
        family, packed = _packed(peer)
        data = nl.attribute_u32(IFLA_VXLAN_ID, number) + nl.attribute(IFLA_VXLAN_PORT, struct.pack("!H", port))
        data += nl.attribute(IFLA_VXLAN_GROUP if family == socket.AF_INET else IFLA_VXLAN_GROUP6, packed)
        if local:
            family, packed = _packed(local)
            data += nl.attribute(IFLA_VXLAN_LOCAL if family == socket.AF_INET else IFLA_VXLAN_LOCAL6, packed)
        payload = _IFINFO.pack(0, 0, 0, 0, 0) + _name_attribute(name) + _shape("", mtu)
        payload += nl.nested(IFLA_LINKINFO, nl.attribute_text(IFLA_INFO_KIND, "vxlan"), nl.nested(IFLA_INFO_DATA, data))
        self._request(RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL, payload, name)

    def add_vlan(self, name: str, base_index: int, number: int) -> None:
        """Create a VLAN (IEEE 802.1Q) on a link."""
        data = nl.nested(IFLA_INFO_DATA, nl.attribute(IFLA_VLAN_ID, struct.pack("=H", number)))
        payload = _IFINFO.pack(0, 0, 0, 0, 0) + _name_attribute(name) + nl.attribute_u32(IFLA_LINK, base_index)
        payload += nl.nested(IFLA_LINKINFO, nl.attribute_text(IFLA_INFO_KIND, "vlan"), data)
        self._request(RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL, payload, name)

    def set_link(
        self,
        index: int,
        *,
        up: bool | None = None,
        master: int | None = None,
        mtu: int = 0,
        name: str = "",
        mac: str = "",
        ns_fd: int | None = None,
    ) -> None:
        """Change a link; what is not given stays. ``master`` 0 takes the link out of its bridge; renaming needs a
        link that is down (kernels before 6.2). ``ns_fd`` moves it into another network namespace."""
        change = 0 if up is None else IFF_UP
        payload = _IFINFO.pack(0, 0, index, IFF_UP if up else 0, change)
        if name:
            payload += _name_attribute(name)
        payload += _shape(mac, mtu)
        if master is not None:
            payload += nl.attribute_u32(IFLA_MASTER, master)
        if ns_fd is not None:
            payload += nl.attribute_u32(IFLA_NET_NS_FD, ns_fd)
        self._request(RTM_NEWLINK, 0, payload, name or _named(index))

    def set_hairpin(self, index: int, on: bool) -> None:
        """Whether the bridge may send a frame back through the port (the link ``index``) that it came from."""
        payload = _IFINFO.pack(socket.AF_BRIDGE, 0, index, 0, 0)
        payload += nl.nested(IFLA_PROTINFO, nl.attribute_u8(IFLA_BRPORT_MODE, int(on)))
        self._request(RTM_SETLINK, 0, payload, _named(index))

    def isolate(self, name: str) -> None:
        """Let a port of a bridge talk with the bridge itself only, not with other isolated ports."""
        payload = _IFINFO.pack(socket.AF_BRIDGE, 0, self._index(name), 0, 0)
        payload += nl.nested(IFLA_PROTINFO, nl.attribute_u8(IFLA_BRPORT_ISOLATED, 1))
        self._request(RTM_SETLINK, 0, payload, name)

    def delete_link(self, index: int) -> None:
        """Delete a link (of a veth pair: both ends). Slow: the kernel waits until nobody uses it."""
        if index <= 0:  # 0 means "any" to some kernels.
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), _named(index))
        self._request(RTM_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0), _named(index))

    def links(self) -> list[Link]:
        """All links of the namespace."""
        request = _IFINFO.pack(0, 0, 0, 0, 0) + nl.attribute_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        return [_link_from(answer) for answer in self._dump(RTM_GETLINK, RTM_NEWLINK, request)]

    def link(self, name: str) -> Link | None:
        """The link with this name, or None."""
        payload = _IFINFO.pack(0, 0, 0, 0, 0) + _name_attribute(name)
        payload += nl.attribute_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        try:
            answers = self._request(RTM_GETLINK, 0, payload, name)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return next((_link_from(answer) for answer in answers if answer.type == RTM_NEWLINK), None)

    # Addresses

    def add_address(self, index: int, cidr: str, *, replace: bool = False) -> None:
        """Give a link an address with prefix length. IPv4 gets its broadcast address; IPv6 skips duplicate detection,
        so that it is usable at once (the engine hands out addresses and knows them to be unique)."""
        family, packed, prefix = _packed_cidr(cidr)
        flags = nl.NLM_F_CREATE | (nl.NLM_F_REPLACE if replace else nl.NLM_F_EXCL)
        payload = _IFADDR.pack(family, prefix, 0 if family == socket.AF_INET else IFA_F_NODAD, RT_SCOPE_UNIVERSE, index)
        payload += nl.attribute(IFA_LOCAL, packed) + nl.attribute(IFA_ADDRESS, packed)
        if family == socket.AF_INET and prefix < 31:
            host_bits = (1 << (32 - prefix)) - 1
            broadcast = int.from_bytes(packed, "big") | host_bits
            payload += nl.attribute(IFA_BROADCAST, broadcast.to_bytes(4, "big"))
        self._request(RTM_NEWADDR, flags, payload, cidr)

    def delete_address(self, index: int, cidr: str) -> None:
        """Take an address away from a link."""
        family, packed, prefix = _packed_cidr(cidr)
        payload = _IFADDR.pack(family, prefix, 0, 0, index) + nl.attribute(IFA_LOCAL, packed)
        self._request(RTM_DELADDR, 0, payload, cidr)

    def addresses(self, index: int = 0) -> list[Address]:
        """All addresses, or those of one link."""
        answers = self._dump(RTM_GETADDR, RTM_NEWADDR, _IFADDR.pack(0, 0, 0, 0, 0))
        known = (_address_from(answer) for answer in answers if answer.payload[0] in (socket.AF_INET, socket.AF_INET6))
        return [address for address in known if not index or address.index == index]

    # Routes

    def add_route(
        self,
        destination: str | None,
        gateway: str | None = None,
        index: int = 0,
        *,
        source: str = "",
        onlink: bool = False,
        replace: bool = False,
    ) -> None:
        """Add a route of the main table: ``destination`` is a network, or None for the default route (then a gateway
        is needed to know the family). Without a gateway the destination is reached directly on the link ``index``."""
        flags = nl.NLM_F_CREATE | (nl.NLM_F_REPLACE if replace else nl.NLM_F_EXCL)
        self._request(RTM_NEWROUTE, flags, *_route_request(destination, gateway, index, source, onlink))

    def delete_route(self, destination: str | None, gateway: str | None = None, index: int = 0) -> None:
        """Delete a route of the main table."""
        self._request(RTM_DELROUTE, 0, *_route_request(destination, gateway, index, "", False))

    def routes(self, table: int = RT_TABLE_MAIN) -> list[RouteEntry]:
        """The IPv4 and IPv6 routes of one table (0: of all tables)."""
        answers = self._dump(RTM_GETROUTE, RTM_NEWROUTE, _RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0))
        known = (_route_from(answer) for answer in answers if answer.payload[0] in (socket.AF_INET, socket.AF_INET6))
        return [route for route in known if not table or route.table == table]

    # Transport

    def _index(self, name: str) -> int:
        link = self.link(name)
        if link is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)
        return link.index

    def _send(self, kind: int, flags: int, payload: bytes) -> int:
        self._sequence += 1
        request = nl.message(kind, nl.NLM_F_REQUEST | flags, self._sequence, payload)
        self._socket.sendto(request, (0, 0))
        return self._sequence

    def _receive(self, sequence: int) -> Iterator[Message]:
        """Messages that answer request ``sequence``. Only the kernel (port 0) is listened to; leftovers of a request
        that was broken off are skipped."""
        while True:
            datagram, sender = self._socket.recvfrom(_BUFFER)
            if sender[0] == 0:
                yield from (answer for answer in nl.messages(datagram) if answer.sequence == sequence)

    def _request(self, kind: int, flags: int, payload: bytes, name: str) -> list[Message]:
        sequence = self._send(kind, flags | nl.NLM_F_ACK, payload)
        answers = []
        for answer in self._receive(sequence):
            if answer.type == nl.NLMSG_ERROR:
                _raise_for(answer, name)
                break
            answers.append(answer)
        return answers

    def _dump(self, kind: int, wanted: int, payload: bytes) -> list[Message]:
        """All objects of a kind. A dump that a concurrent change made inconsistent is read again."""
        for _attempt in range(DUMP_ATTEMPTS):
            sequence = self._send(kind, nl.NLM_F_DUMP, payload)
            answers: list[Message] = []
            interrupted = False
            for answer in self._receive(sequence):
                interrupted = interrupted or bool(answer.flags & nl.NLM_F_DUMP_INTR)
                if answer.type in (nl.NLMSG_DONE, nl.NLMSG_ERROR):
                    _raise_for(answer, "netlink dump")
                    break
                if answer.type == wanted:
                    answers.append(answer)
            if not interrupted:
                break
        return answers


def _named(index: int) -> str:
    return f"interface {index}"


def _shape(mac: str, mtu: int) -> bytes:
    """Attributes for a link's hardware address and MTU, where given."""
    shape = nl.attribute(IFLA_ADDRESS, _mac_bytes(mac)) if mac else b""
    return shape + nl.attribute_u32(IFLA_MTU, mtu) if mtu else shape


def _raise_for(answer: Message, name: str) -> None:
    number, explanation = nl.acknowledgement(answer)
    if number:
        words = os.strerror(number)
        raise OSError(number, f"{words} ({explanation.rstrip('.')})" if explanation else words, name)


def _route_request(destination: str | None, gateway: str | None, index: int, source: str, onlink: bool) -> tuple[bytes, str]:
    """Payload and display name of a route message."""
    if destination in (None, "default"):
        if not gateway:
            raise OSError(errno.EINVAL, "a default route needs a gateway", "default")
        family, packed, length = _packed(gateway)[0], b"", 0
    else:
        assert destination is not None
        family, packed, length = _packed_cidr(destination)
    scope = RT_SCOPE_LINK if not gateway and family == socket.AF_INET else RT_SCOPE_UNIVERSE
    flags = RTNH_F_ONLINK if onlink else 0
    payload = _RTMSG.pack(family, length, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, flags)
    if length:
        payload += nl.attribute(RTA_DST, packed)
    if gateway:
        payload += nl.attribute(RTA_GATEWAY, _packed(gateway)[1])
    if source:
        payload += nl.attribute(RTA_PREFSRC, _packed(source)[1])
    if index:
        payload += nl.attribute_u32(RTA_OIF, index)
    return payload, f"{destination or 'default'} via {gateway}" if gateway else str(destination)
