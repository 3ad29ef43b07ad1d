"""Which addresses a network hands out, and which subnet a network gets: pure arithmetic, no kernel, no disk.

An address is taken as the next free one *after the last taken*, wrapping at the end, as dockerd does: an address that was just
given back rests as long as possible, so that a client's stale ARP or connection-tracking entry does not find a stranger there.

Invariants of ``Pool``: the network and broadcast address, the gateway and what was reserved are never handed out by themselves; an
address is held at most once; ``allocate`` then ``release`` leaves the set of free addresses as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from tare.errors import Conflict, InvalidArgument, ResourceExhausted


def default_subnets() -> Iterator[IPv4Network]:
    """Docker's default local address pools, in its order: 172.17-31.0.0/16, then 192.168.0.0/16 in steps of /20."""
    for second in range(17, 32):
        yield IPv4Network(f"172.{second}.0.0/16")
    yield from IPv4Network("192.168.0.0/16").subnets(new_prefix=20)


def choose_subnet(taken: Iterable[IPv4Network], candidates: Iterable[IPv4Network] | None = None) -> IPv4Network:
    """The first candidate (default: Docker's pools) that overlaps nothing taken."""
    known = list(taken)
    for candidate in default_subnets() if candidates is None else candidates:
        if not any(candidate.overlaps(other) for other in known):
            return candidate
    raise ResourceExhausted("all predefined address pools have been fully subnetted; give the subnet explicitly")


def mac_for(address: IPv4Address) -> str:
    """The locally administered hardware address that Docker derives from an IPv4 address."""
    return "02:42:" + ":".join(f"{byte:02x}" for byte in address.packed)


class Pool:
    """The addresses of one subnet. ``label`` names the network in errors, as dockerd does: ``bridge (ID)``."""

    def __init__(
        self,
        subnet: IPv4Network,
        *,
        label: str,
        ip_range: IPv4Network | None = None,
        reserved: Iterable[IPv4Address] = (),
    ) -> None:
        if ip_range is not None and not ip_range.subnet_of(subnet):
            raise InvalidArgument(f"invalid ip-range {ip_range}: it is not inside the subnet {subnet}")
        self.subnet = subnet
        self.label = label
        dynamic = subnet if ip_range is None else ip_range
        self._first, self._last = int(dynamic.network_address), int(dynamic.broadcast_address)
        if subnet.prefixlen < 31:
            self._first = max(self._first, int(subnet.network_address) + 1)
            self._last = min(self._last, int(subnet.broadcast_address) - 1)
        self._reserved = {int(address) for address in reserved}
        self._used: set[int] = set()
        self._cursor = self._first

    def __contains__(self, address: IPv4Address) -> bool:
        return int(address) in self._used

    def __len__(self) -> int:
        """How many addresses are handed out."""
        return len(self._used)

    def allocate(self, wanted: IPv4Address | None = None) -> IPv4Address:
        """Hand out the next free address, or ``wanted`` if it is free (it may lie outside the ip-range, not outside the subnet)."""
        if wanted is not None:
            return self._take_exact(wanted)
        number = self._next_free()
        if number is None:
            raise ResourceExhausted(f"no available IPv4 addresses on this network's address pools: {self.label}")
        self._used.add(number)
        self._cursor = number + 1 if number < self._last else self._first
        return IPv4Address(number)

    def adopt(self, address: IPv4Address) -> None:
        """Take an address that a container has already (after a restart); the next one is sought behind it."""
        self._take_exact(address)
        if self._first <= int(address) < self._last:
            self._cursor = max(self._cursor, int(address) + 1)

    def _next_free(self) -> int | None:
        span = self._last - self._first + 1
        for step in range(span):
            number = self._first + (self._cursor - self._first + step) % span
            if number not in self._used and number not in self._reserved:
                return number
        return None

    def _take_exact(self, wanted: IPv4Address) -> IPv4Address:
        if wanted not in self.subnet:
            raise InvalidArgument(f"no configured subnet contains IP address {wanted}: the network has {self.subnet}")
        edges = (self.subnet.network_address, self.subnet.broadcast_address) if self.subnet.prefixlen < 31 else ()
        if int(wanted) in self._used or int(wanted) in self._reserved or wanted in edges:
            raise Conflict(f"Address already in use: {wanted} in network {self.label}")
        self._used.add(int(wanted))
        return wanted

    def release(self, address: IPv4Address) -> None:
        """Give an address back. Giving back a free one does nothing."""
        self._used.discard(int(address))
