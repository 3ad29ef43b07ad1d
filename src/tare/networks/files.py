"""The three files that tell a container who and where it is: /etc/hosts, /etc/hostname, /etc/resolv.conf. Pure text to text.

/etc/hosts has Docker's layout, since programs and tests read it: loopback lines, extra hosts, then one line per address of the
container (``address TAB names``). /etc/resolv.conf is the host's with what a container cannot reach taken out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from tare.errors import InvalidArgument

FALLBACK_NAMESERVERS = ("8.8.8.8", "8.8.4.4")
STUB_RESOLVER = "127.0.0.53"
HOST_GATEWAY = "host-gateway"

_LOOPBACK_LINES = (
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::", "ip6-localnet"),
    ("ff00::", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
)


@dataclass(frozen=True)
class NetworkFiles:
    """The contents of the three files."""

    hosts: str
    hostname: str
    resolv_conf: str


@dataclass(frozen=True)
class Resolver:
    """What a resolv.conf says: servers, search domains, options."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def parse_extra_host(entry: str, host_gateways: Sequence[str] = ()) -> list[tuple[str, str]]:
    """``name:address`` or ``name=address`` as address and name. ``host-gateway`` stands for the host as the container sees it, by each of
    its addresses."""
    cut = min((entry.find(mark) for mark in ":=" if mark in entry), default=-1)
    name, address = entry[:cut], entry[cut + 1 :].strip("[]")
    if cut < 1 or not address or any(c.isspace() for c in entry):
        raise InvalidArgument(f"bad format for add-host: {entry!r} (name:address)")
    if address == HOST_GATEWAY:
        if not host_gateways:
            raise InvalidArgument(f"unable to derive the IP value for {HOST_GATEWAY} in {entry!r}: there is no bridge network")
        return [(gateway, name) for gateway in host_gateways]
    try:
        ip_address(address)
    except ValueError:
        raise InvalidArgument(f"invalid IP address in add-host: {address!r}") from None
    return [(address, name)]


def hosts(
    hostname: str,
    domainname: str = "",
    addresses: Sequence[str] = (),
    extra_hosts: Sequence[str] = (),
    host_gateways: Sequence[str] = (),
) -> str:
    """/etc/hosts of a container with these addresses."""
    names = f"{hostname}.{domainname} {hostname}" if domainname else hostname
    lines = [
        *_LOOPBACK_LINES,
        *(line for entry in extra_hosts for line in parse_extra_host(entry, host_gateways)),
        *((address, names) for address in addresses),
    ]
    return "".join(f"{address}\t{name}\n" for address, name in lines)


def hosts_of_host(host_text: str, extra_hosts: Sequence[str] = (), host_gateways: Sequence[str] = ()) -> str:
    """/etc/hosts of a container on the host's network: the host's own, and the extra hosts."""
    text = host_text if not host_text or host_text.endswith("\n") else host_text + "\n"
    extra = (line for entry in extra_hosts for line in parse_extra_host(entry, host_gateways))
    return text + "".join(f"{address}\t{name}\n" for address, name in extra)


def hostname(name: str) -> str:
    """/etc/hostname."""
    return f"{name}\n"


def parse_resolver(text: str) -> Resolver:
    """Read a resolv.conf (resolv.conf(5)): the last ``search`` or ``domain`` line wins, options add up."""
    nameservers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        match words:
            case ["nameserver", address, *_]:
                nameservers.append(address)
            case ["search" | "domain", *domains]:
                search = tuple(domains)
            case ["options", *more]:
                options.extend(more)
    return Resolver(tuple(nameservers), search, tuple(options))


def uses_stub_resolver(text: str) -> bool:
    """Whether the host resolves only through systemd-resolved's stub, so that the real servers stand in its own file."""
    servers = parse_resolver(text).nameservers
    return bool(servers) and all(server == STUB_RESOLVER for server in servers)


def resolv_conf(
    host_text: str,
    *,
    dns: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    ipv6: bool = False,
) -> str:
    """/etc/resolv.conf of a container with a network of its own.

    From the host's come, unless overridden, the servers that the container can reach (not the host's loopback; IPv6 only with an
    IPv6 network), the search domains and the options. With no server left Google's public ones stand in, as with Docker.
    ``search`` of ``.`` alone means none.
    """
    host = parse_resolver(host_text)
    for server in dns:
        _checked_server(server)
    notes = [f"# overridden: {name}" for name, given in (("dns", dns), ("search", search), ("options", options)) if given]
    nameservers = tuple(dns) or tuple(server for server in host.nameservers if _reachable(server, ipv6))
    if not nameservers:
        nameservers = FALLBACK_NAMESERVERS
        notes.append("# the host has no name server that is reachable from here: public ones stand in")
    domains = tuple(search) or host.search
    domains = tuple(domain for domain in domains if domain != ".")
    chosen_options = tuple(options) or host.options
    return resolv_conf_text(("# Written by Tare from the host's resolver configuration.", *notes), nameservers, domains, chosen_options)


def resolv_conf_text(notes: Sequence[str], nameservers: Sequence[str], search: Sequence[str], options: Sequence[str]) -> str:
    """A resolv.conf(5) with these contents."""
    lines = [*notes, *(f"nameserver {server}" for server in nameservers)]
    if search:
        lines.append("search " + " ".join(search))
    if options:
        lines.append("options " + " ".join(options))
    return "\n".join(lines) + "\n"


def resolv_conf_of_host(host_text: str, *, dns: Sequence[str] = (), search: Sequence[str] = (), options: Sequence[str] = ()) -> str:
    """/etc/resolv.conf on the host's network: the host's own bytes, loopback servers included, unless something is overridden."""
    if not (dns or search or options):
        return host_text
    host = parse_resolver(host_text)
    return resolv_conf("", dns=dns or host.nameservers, search=search or host.search, options=options or host.options)


def _parsed(server: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(server.partition("%")[0])
    except ValueError:
        return None


def _checked_server(server: str) -> None:
    if _parsed(server) is None:
        raise InvalidArgument(f"{server} is not an ip address (--dns)")


def _reachable(server: str, ipv6: bool) -> bool:
    address = _parsed(server)
    if address is None or address.is_loopback:
        return False
    return ipv6 or address.version == 4
