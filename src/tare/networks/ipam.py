"""Which addresses a network hands out, and which subnet a network gets: pure arithmetic, no kernel, no disk.

An address is taken as the next free one *after the last taken*, wrapping at the end, as dockerd does: an address that was just
given back rests as long as possible, so that a client's stale ARP or connection-tracking entry does not find a stranger there.

Invariants of ``Pool``: the network and broadcast address, the gateway and what was reserved are never handed out by themselves; an
address is held at most once; ``allocate`` then ``release`` leaves the set of free addresses as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from tare.errors import Forbidden, InvalidArgument, ResourceExhausted

Address = IPv4Address | IPv6Address
Range = IPv4Network | IPv6Network

DEFAULT_POOLS: tuple[tuple[str, int], ...] = (*((f"172.{second}.0.0/16", 16) for second in range(17, 32)), ("192.168.0.0/16", 20))
"""Docker's default local address pools, in its order: (range, prefix length of the subnets that are cut from it)."""


def default_subnets(pools: Sequence[tuple[str, int]] = DEFAULT_POOLS) -> Iterator[IPv4Network]:
    """The IPv4 subnets of address pools, in order."""
    for base, size in pools:
        if ":" not in base:
            yield from IPv4Network(base).subnets(new_prefix=size)


def default_subnets6(pools: Sequence[tuple[str, int]], seed: str) -> Iterator[IPv6Network]:
    """The IPv6 subnets of address pools; where there are none, those of a unique local prefix (RFC 4193) that ``seed`` decides."""
    configured = [(base, size) for base, size in pools if ":" in base]
    if not configured:
        site = b"\xfd" + hashlib.sha256(seed.encode()).digest()[:5] + bytes(10)
        configured = [(f"{IPv6Address(site)}/48", 64)]
    for base, size in configured:
        yield from IPv6Network(base).subnets(new_prefix=size)


def choose_subnet(taken: Iterable[Range], candidates: Iterable[Range] | None = None) -> Range:
    """The first candidate (default: Docker's pools) that overlaps nothing taken."""
    known = list(taken)
    for candidate in default_subnets() if candidates is None else candidates:
        if not any(overlap(candidate, other) for other in known):
            return candidate
    raise ResourceExhausted("all predefined address pools have been fully subnetted")


def overlap(one: Range, other: Range) -> bool:
    """Whether two ranges of any family share addresses."""
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.overlaps(other)
    return isinstance(other, IPv6Network) and one.overlaps(other)


def inside(one: Range, other: Range) -> bool:
    """Whether ``one`` lies wholly in ``other``."""
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.subnet_of(other)
    return isinstance(other, IPv6Network) and one.subnet_of(other)


def mac_for(address: Address) -> str:
    """The locally administered hardware address that Docker derives from an IPv4 address; from an IPv6 one, of its last four bytes."""
    return "02:42:" + ":".join(f"{byte:02x}" for byte in address.packed[-4:])


class Pool:
    """The addresses of one subnet. ``label`` names the network in errors, as dockerd does: ``bridge (ID)``."""

    def __init__(
        self,
        subnet: Range,
        *,
        label: str,
        ip_range: Range | None = None,
        reserved: Iterable[Address] = (),
    ) -> None:
        if ip_range is not None and not inside(ip_range, subnet):
            raise InvalidArgument(f"invalid ip-range {ip_range}: it is not inside the subnet {subnet}")
        self.subnet = subnet
        self.label = label
        self._make = IPv4Address if isinstance(subnet, IPv4Network) else IPv6Address
        dynamic = subnet if ip_range is None else ip_range
        self._first, self._last = int(dynamic.network_address), int(dynamic.broadcast_address)
        self._edges: set[int] = set()
        if subnet.prefixlen < subnet.max_prefixlen - 1:
            self._edges = {int(subnet.network_address)}
            if isinstance(subnet, IPv4Network):
                self._edges.add(int(subnet.broadcast_address))
        self._reserved = {int(address) for address in reserved}
        self._used: set[int] = set()
        self._cursor = self._first

    def __contains__(self, address: Address) -> bool:
        return address.version == self.subnet.version and int(address) in self._used

    def __len__(self) -> int:
        """How many addresses are handed out."""
        return len(self._used)

    def allocate(self, wanted: Address | None = None) -> Address:
        """Hand out the next free address, or ``wanted`` if it is free (it may lie outside the ip-range, not outside the subnet)."""
        if wanted is not None:
            return self._take_exact(wanted)
        number = self._next_free()
        if number is None:
            family = f"IPv{self.subnet.version}"
            raise ResourceExhausted(f"no available {family} addresses on this network's address pools: {self.label}")
        self._used.add(number)
        self._cursor = number + 1 if number < self._last else self._first
        return self._make(number)

    def adopt(self, address: Address) -> None:
        """Take an address that a container has already (after a restart); the next one is sought behind it."""
        self._take_exact(address)
        if self._first <= int(address) < self._last:
            self._cursor = max(self._cursor, int(address) + 1)

    def _next_free(self) -> int | None:
        span = self._last - self._first + 1
        unavailable = len(self._used) + len(self._reserved) + len(self._edges)
        for step in range(min(span, unavailable + 1)):
            number = self._first + (self._cursor - self._first + step) % span
            if number not in self._used and number not in self._reserved and number not in self._edges:
                return number
        return None

    def _take_exact(self, wanted: Address) -> Address:
        if wanted not in self.subnet:
            raise InvalidArgument(f"no configured subnet contains IP address {wanted}: the network has {self.subnet}")
        if int(wanted) in self._used or int(wanted) in self._reserved or int(wanted) in self._edges:
            raise Forbidden(f"Address already in use: {wanted} in network {self.label}")
        self._used.add(int(wanted))
        return wanted

    def release(self, address: Address) -> None:
        """Give an address back. Giving back a free one does nothing."""
        self._used.discard(int(address))
