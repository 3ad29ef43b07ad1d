"""The files of a container's /etc, composed from its places in networks and the host's own files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tare.networks import files, names
from tare.networks.dns.server import ADDRESS
from tare.networks.model import Connection, Dns, NetworkMode
from tare.networks.placement import HOST_RESOLV_CONF, host_resolv_conf, read_text

HOST_HOSTS = Path("/etc/hosts")


def container_files(
    mode: NetworkMode,
    hostname: str,
    domainname: str,
    connections: Sequence[Connection],
    extra_hosts: Sequence[str],
    host_gateways: Sequence[str],
    dns: Dns,
) -> files.NetworkFiles:
    """hosts, hostname and resolv.conf of a container; with a user-defined network the latter names the engine's own server."""
    if mode.kind == "host":
        return files.NetworkFiles(
            files.hosts_of_host(read_text(HOST_HOSTS), extra_hosts, host_gateways or ("127.0.0.1",)),
            files.hostname(hostname),
            files.resolv_conf_of_host(read_text(HOST_RESOLV_CONF), dns=dns.servers, search=dns.search, options=dns.options),
        )
    addresses = [address for c in connections for address in (c.address, c.address6) if address]
    if names.served(connections):
        resolver = names.resolver_configuration(host_resolv_conf(), dns, ADDRESS)
    else:
        ipv6 = any(connection.address6 for connection in connections)
        resolver = files.resolv_conf(host_resolv_conf(), dns=dns.servers, search=dns.search, options=dns.options, ipv6=ipv6)
    return files.NetworkFiles(
        files.hosts(hostname, domainname, addresses, extra_hosts, host_gateways),
        files.hostname(hostname),
        resolver,
    )
