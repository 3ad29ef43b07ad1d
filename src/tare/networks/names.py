"""What the name server is told of a container, and what its resolver configuration says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tare.networks.files import parse_resolver, resolv_conf_text
from tare.networks.model import Connection, Dns


def served(connections: Iterable[Connection]) -> bool:
    """Whether a container on these networks has the engine's name server: on every user-defined network, as with Docker."""
    return any(connection.named for connection in connections)


def document(connections: Sequence[Connection]) -> dict[str, Any]:
    """The name server's document of a container (``tare.networks.dns.zones``). Its networks in the order in which names are looked up."""
    ordered = sorted(connections, key=lambda c: (-c.gw_priority, c.network_name))
    first = connections[0]
    links = [link.partition(":") for connection in connections for link in connection.links]
    return {
        "id": first.container_id,
        "name": first.container_name,
        "networks": [
            {
                "id": connection.network_id,
                "name": connection.network_name,
                "internal": connection.internal,
                "names": list(connection.dns_names),
                "addresses": [address for address in (connection.address, connection.address6) if address],
                "zone": connection.named,
            }
            for connection in ordered
        ],
        "links": {(alias or name).lower(): name.lower() for name, _, alias in links},
        "upstream": list(first.dns.servers) or None,
        "ndots": any(option.startswith("ndots:") and option != "ndots:0" for option in first.dns.options),
    }


def resolver_configuration(host_text: str, dns: Dns, address: str) -> str:
    """/etc/resolv.conf of a container with the engine's name server: the host's domains and options unless its own are given. ``ndots:0``
    makes clients ask for a plain name as it is first, which is how containers are called."""
    host = parse_resolver(host_text)
    options = dns.options or host.options
    if not any(option.startswith("ndots:") for option in options):
        options = (*options, "ndots:0")
    external = ", ".join(dns.servers) if dns.servers else "the host's"
    notes = ("# Written by Tare. Names of containers are answered here, others asked of: " + external,)
    search = tuple(domain for domain in dns.search or host.search if domain != ".")
    return resolv_conf_text(notes, (address,), search, options)
