"""What a network and a container's place in it are: plain data, as kept in metadata and as handed to callers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tare.errors import InvalidArgument
from tare.networks.ports import PublishedPort

DEFAULT_NETWORK = "bridge"
PREDEFINED = ("bridge", "host", "none")


@dataclass(frozen=True)
class Subnet:
    """One address range of a network: CIDR, the gateway (the bridge's own address) and the part that is handed out."""

    subnet: str
    gateway: str
    ip_range: str = ""


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
    """Whether we made the bridge link, and so may remove it."""
    mtu: int = 1500
    internal: bool = False
    attachable: bool = False
    ipam_driver: str = "default"
    ipam_options: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    scope: str = "local"

    @property
    def predefined(self) -> bool:
        return self.name in PREDEFINED


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

    @property
    def cidr(self) -> str:
        """Address with prefix length, or empty."""
        return f"{self.address}/{self.prefix_length}" if self.address else ""

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
