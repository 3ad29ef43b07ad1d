"""What a network and a container's place in it are: plain data, as kept in metadata and as handed to callers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tare.errors import InvalidArgument
from tare.networks.ports import PublishedPort

DEFAULT_NETWORK = "bridge"
PREDEFINED = ("bridge", "host", "none")
GATEWAY_KEYS = {4: "DefaultGatewayIPv4", 6: "DefaultGatewayIPv6"}
"""Auxiliary addresses of these names are the containers' default gateways instead of the bridge's own, as with dockerd."""


@dataclass(frozen=True)
class Subnet:
    """One address range of a network, IPv4 or IPv6: CIDR, the gateway (the bridge's own address), the part that is handed out, and
    addresses that are not (by name)."""

    subnet: str
    gateway: str
    ip_range: str = ""
    auxiliary: Mapping[str, str] = field(default_factory=dict)
    given: bool = True
    """Whether the user chose the subnet: only then may a container ask for an address in it."""

    @property
    def ipv6(self) -> bool:
        return ":" in self.subnet


@dataclass(frozen=True)
class Network:
    """The record of a network. ``created`` in nanoseconds since the epoch."""

    id: str
    name: str
    driver: str
    created: int
    subnets: tuple[Subnet, ...] = ()
    bridge: str = ""
    """Name of the bridge link; empty for ``host`` and ``none``."""
    own_bridge: bool = True
    """Whether we made the bridge link, or the parent, and so may remove it."""
    mtu: int = 1500
    internal: bool = False
    attachable: bool = False
    ipam_driver: str = "default"
    ipam_options: Mapping[str, str] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    scope: str = "local"
    ipv4: bool = True
    ipv6: bool = False
    parent: str = ""
    """The host's link below a macvlan or ipvlan network."""
    config_only: bool = False
    """Whether it is but a configuration for other networks; nothing of it is in the kernel."""
    config_from: str = ""
    """The name of the configuration network that it was made after."""

    @property
    def predefined(self) -> bool:
        return self.name in PREDEFINED


@dataclass(frozen=True)
class Dns:
    """How a container resolves names beyond its networks': ``--dns``, ``--dns-search``, ``--dns-option``."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Endpoint:
    """What a container asks of its place in one network."""

    aliases: tuple[str, ...] = ()
    hostname: str = ""
    ip: str = ""
    ip6: str = ""
    mac: str = ""
    links: tuple[str, ...] = ()
    """``CONTAINER:ALIAS``: further names, for this container only."""
    gw_priority: int = 0
    """The network of the highest priority gives the default route."""
    link_local: tuple[str, ...] = ()
    """Further addresses of the link."""
    driver_options: Mapping[str, str] = field(default_factory=dict)
    dns: Dns = Dns()


@dataclass(frozen=True)
class Connection:
    """A container's place in one network.

    The fields from ``host_link`` to ``mtu`` are what ``containers.task.VethLink`` wants; they are empty on ``host`` and ``none``,
    which have no link.
    """

    container_id: str
    container_name: str
    network_id: str
    network_name: str
    endpoint_id: str
    sandbox_id: str
    host_link: str = ""
    """Name of the veth's end on the host."""
    bridge: str = ""
    interface: str = "eth0"
    mac: str = ""
    address: str = ""
    prefix_length: int = 0
    gateway: str = ""
    mtu: int = 1500
    ports: tuple[PublishedPort, ...] = ()
    exposed: tuple[str, ...] = ()
    """Exposed ports, published or not, as ``80/tcp``."""
    aliases: tuple[str, ...] = ()
    address6: str = ""
    prefix_length6: int = 0
    gateway6: str = ""
    kind: str = "veth"
    mode: str = ""
    hostname: str = ""
    links: tuple[str, ...] = ()
    gw_priority: int = 0
    dns: Dns = Dns()
    bandwidth: str = ""
    link_local: tuple[str, ...] = ()
    internal: bool = False
    """Whether the network leads nowhere."""
    named: bool = False
    """Whether the network has names (every user-defined one)."""

    @property
    def cidr(self) -> str:
        """Address with prefix length, or empty."""
        return f"{self.address}/{self.prefix_length}" if self.address else ""

    @property
    def cidr6(self) -> str:
        """IPv6 address with prefix length, or empty."""
        return f"{self.address6}/{self.prefix_length6}" if self.address6 else ""

    @property
    def cidrs(self) -> tuple[str, ...]:
        """All addresses with their prefix lengths."""
        further = (f"{address}/{64 if ':' in address else 16}" for address in self.link_local)
        return (*filter(None, (self.cidr, self.cidr6)), *further)

    @property
    def dns_names(self) -> tuple[str, ...]:
        """What the container is called in this network, each name once: its name, aliases, short id, hostname."""
        names = (self.container_name, *self.aliases, self.container_id[:12], self.hostname)
        return tuple(dict.fromkeys(filter(None, names)))

    def port_map(self) -> dict[str, tuple[PublishedPort, ...] | None]:
        """Docker's ``NetworkSettings.Ports`` as domain objects: exposed but unpublished ports map to None."""
        found: dict[str, tuple[PublishedPort, ...] | None] = dict.fromkeys(self.exposed)
        for port in self.ports:
            found[port.key] = (*(found.get(port.key) or ()), port)
        return found


@dataclass(frozen=True)
class NetworkView:
    """A network with the containers connected to it: what ``docker network inspect`` shows."""

    network: Network
    connections: Sequence[Connection] = ()


@dataclass(frozen=True)
class NetworkMode:
    """A parsed ``HostConfig.NetworkMode``. ``name``: the network's name (kind ``network``) or the other container's id or name."""

    kind: Literal["network", "host", "none", "container"]
    name: str = ""

    @property
    def private(self) -> bool:
        """Whether the container gets a network namespace of its own."""
        return self.kind in ("network", "none")


def parse_mode(text: str) -> NetworkMode:
    """``""``, ``default``, ``bridge``, ``host``, ``none``, ``container:ID`` or the name of a network (not looked up here)."""
    kind, colon, rest = text.partition(":")
    if kind == "container" and colon:
        if not rest:
            raise InvalidArgument("invalid network mode: invalid container format container:<name|id>")
        return NetworkMode("container", rest)
    match text:
        case "host":
            return NetworkMode("host", "host")
        case "none":
            return NetworkMode("none", "none")
        case "" | "default":
            return NetworkMode("network", DEFAULT_NETWORK)
        case _:
            return NetworkMode("network", text)
