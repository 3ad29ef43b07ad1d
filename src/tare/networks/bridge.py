"""The kernel's side of a bridge network: the link, its address, its switches; and which daemon may call a bridge its own.

Several daemons may live on one machine. Each claims its bridges by name in a directory that all share:

    /run/tare-bridges/          flock held while a daemon chooses a name and a subnet
        NETNS-NAME              flock held by the living owner of bridge NAME in network namespace NETNS (inode number);
                                its content names the owner: the data root

A claim whose lock is free but whose bridge exists belongs to a daemon that died. It is only taken by its own successor (same data
root), or when no container hangs on it.

Blocking: a few netlink messages (well under a millisecond each, but 20 ms for the deletion of a link). Call it from a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

from tare.linux.netlink import Link, Route
from tare.networks.firewall import LINK_LOCAL6
from tare.networks.ipam import Range

CLAIMS = Path("/run/tare-bridges")
NAME_PREFIX = "tare"
NAME_LIMIT = 256
SYSCTL = Path("/proc/sys/net")
LINK_SCOPE = 253


def _namespace() -> int:
    return os.stat("/proc/self/ns/net").st_ino


@contextmanager
def choosing(directory: Path = CLAIMS) -> Iterator[None]:
    """Only one daemon of the machine at a time chooses names and subnets."""
    descriptor = -1
    try:
        while True:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(descriptor), os.stat(directory)):
                    break
            except FileNotFoundError:
                pass  # The last daemon tidied up between our steps.
            if descriptor >= 0:
                os.close(descriptor)
                descriptor = -1
        yield
    finally:
        try:
            directory.rmdir()  # Works when no claim is left.
        except OSError:
            pass
        if descriptor >= 0:
            os.close(descriptor)


class Claim:
    """A bridge name held by this daemon until ``release``, or until it dies."""

    def __init__(self, name: str, descriptor: int, path: Path, previous_owner: str) -> None:
        self.name = name
        self.previous_owner = previous_owner
        """The data root of the last holder; empty when there was none."""
        self._descriptor = descriptor
        self._path = path

    @classmethod
    def take(cls, name: str, owner: str, directory: Path = CLAIMS) -> Claim | None:
        """Claim a name, or None when a living daemon has it. Call it under ``choosing``."""
        path = directory / f"{_namespace()}-{name}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        previous = os.pread(descriptor, 4096, 0).decode(errors="replace")
        claim = cls(name, descriptor, path, previous)
        claim._write(owner)
        return claim

    def _write(self, owner: str) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, owner.encode(), 0)

    def decline(self) -> None:
        """Give the name back as it was found."""
        if self._descriptor >= 0:
            self._write(self.previous_owner)
            self.release(forget=not self.previous_owner)

    def release(self, *, forget: bool) -> None:
        """Let the name go. ``forget``: the bridge is gone too, so nothing of the claim need stay. Call it under ``choosing``."""
        if self._descriptor < 0:
            return
        if forget:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


def claim_bridge(route: Route, owner: str, remembered: str, directory: Path = CLAIMS) -> Claim:
    """The bridge name for a daemon: the one it had, else the first of tare0, tare1, ... that nobody uses."""
    names = [f"{NAME_PREFIX}{number}" for number in range(NAME_LIMIT)]
    if remembered:
        names = [remembered, *(name for name in names if name != remembered)]
    for name in names:
        claim = Claim.take(name, owner, directory)
        if claim is None:
            continue
        link = route.link(name)
        if link is None or claim.previous_owner == owner or (name == remembered and not claim.previous_owner):
            if link is None or link.kind == "bridge":
                return claim
        elif claim.previous_owner and link.kind == "bridge" and not ports(route, link):
            route.delete_link(link.index)
            return claim
        claim.decline()
    raise OSError(errno.EEXIST, f"all bridge names {names[0]} to {names[-1]} are in use", NAME_PREFIX)


def ports(route: Route, bridge: Link) -> int:
    """How many links hang on a bridge."""
    return sum(link.master == bridge.index for link in route.links())


def taken_networks(route: Route, nameservers: tuple[str, ...], except_link: str = "") -> list[Range]:
    """Every network that a new subnet must not cover: addresses and routes of this machine, and its name servers."""
    own = route.link(except_link) if except_link else None
    ignored = own.index if own is not None else -1
    found = [ip_network(address.cidr, strict=False) for address in route.addresses() if address.index != ignored]
    found += [ip_network(entry.destination, strict=False) for entry in route.routes() if not entry.default and entry.index != ignored]
    for server in nameservers:
        try:
            found.append(ip_network(server.partition("%")[0]))
        except ValueError:
            continue
    # A route that covers (nearly) everything, as VPN clients set, says nothing about where the free space is.
    return [network for network in found if network.prefixlen > 1]


def bring_up(route: Route, name: str, addresses: Sequence[str], mtu: int, *, mac: str, exclusive: bool = True) -> list[str]:
    """Create or repair a bridge with these addresses (CIDR), up and with its switches set. Returns warnings.

    ``exclusive``: the bridge is ours, and loses addresses that an earlier configuration gave it.
    """
    link = route.link(name)
    index = route.add_bridge(name, mac=mac, mtu=mtu) if link is None else link.index
    warnings = []
    # Without IPv6 in the network a link-local address would only offer the host's services to containers.
    ipv6 = any(":" in address for address in addresses)
    if not _set(f"ipv6/conf/{name}/disable_ipv6", "0" if ipv6 else "1") and ipv6:
        raise OSError(errno.EAFNOSUPPORT, "the kernel has no IPv6, or it is disabled (net.ipv6.conf.all.disable_ipv6)", name)
    if not _set(f"ipv4/conf/{name}/route_localnet", "1"):
        warnings.append(f"cannot set route_localnet of {name}: published ports do not answer on 127.0.0.1")
    present = route.addresses(index)
    for other in present if exclusive else ():
        if other.cidr not in addresses and other.scope != LINK_SCOPE:
            route.delete_address(index, other.cidr)
    for cidr in (*addresses, *([f"{LINK_LOCAL6}/64"] if ipv6 else [])):
        if cidr not in (address.cidr for address in present):
            route.add_address(index, cidr, replace=True)
    route.set_link(index, up=True, mtu=mtu if link is not None and link.mtu != mtu else 0)
    if not _set("ipv4/ip_forward", "1"):
        warnings.append("IPv4 forwarding is disabled and cannot be enabled: containers reach only this machine (net.ipv4.ip_forward)")
    if ipv6 and not _set("ipv6/conf/all/forwarding", "1"):
        warnings.append("IPv6 forwarding is disabled and cannot be enabled (net.ipv6.conf.all.forwarding)")
    return warnings


def address_of(route: Route, name: str, version: int) -> str:
    """The first address of a family that a link has beyond itself, as CIDR; or empty."""
    link = route.link(name)
    if link is None:
        return ""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    return next((a.cidr for a in route.addresses(link.index) if a.family == family and a.scope != LINK_SCOPE), "")


def take_down(route: Route, name: str) -> None:
    """Delete a bridge link if it exists."""
    link = route.link(name)
    if link is not None and link.kind == "bridge":
        route.delete_link(link.index)


def filters_bridged() -> bool:
    """Whether the kernel shows bridged frames to the IP rules (br_netfilter, as Docker and Kubernetes switch it on)."""
    try:
        return (SYSCTL / "bridge/bridge-nf-call-iptables").read_text().strip() == "1"
    except OSError:
        return False


def allow_hairpin(host_links: Iterable[str]) -> None:
    """Let containers reach themselves through their published ports also where bridged frames are filtered: the redirected frame then
    stays inside the bridge, which by default never sends one back through the port it came from. Links that are gone are skipped."""
    with Route() as route:
        for name in host_links:
            link = route.link(name)
            if link is not None and link.master:
                route.set_hairpin(link.index, True)


def _set(name: str, value: str) -> bool:
    """Set a switch below net/; True when it has the value afterwards."""
    path = SYSCTL / name
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except OSError:
        return False
    return True
