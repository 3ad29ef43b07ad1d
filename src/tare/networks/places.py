"""The places of containers in networks: addresses, host ports, redirects and records of their connections.

Invariants: a connection that is here is on record and, if it has a link, known to its network (``AttachedNetwork.connections``); its
addresses are taken and its host ports held. A failed ``take`` leaves nothing. Not thread-safe: the service's lock keeps one caller at a
time. Nothing here blocks for longer than a few map elements, one SQLite row and a few binds.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address

from tare.errors import InvalidArgument, ResourceExhausted, TareError
from tare.linux.conntrack import forget_udp
from tare.networks.attached import AttachedNetwork
from tare.networks.catalogue import Catalogue
from tare.networks.gateway import gateways
from tare.networks.ipam import Address, mac_for
from tare.networks.model import Connection, Endpoint, Network
from tare.networks.ports import HostPorts, PortBinding, PublishedPort
from tare.networks.records import NetworkRecords

log = logging.getLogger(__name__)


class Places:
    """Connections by container and network, in the order in which they were made."""

    def __init__(self, catalogue: Catalogue, records: NetworkRecords) -> None:
        self._catalogue = catalogue
        self._records = records
        self._places: dict[str, dict[str, Connection]] = {}
        self._ports = HostPorts()

    def close(self) -> None:
        """Let go of host ports; what is published stays published."""
        self._ports.close()

    @property
    def held_ports(self) -> int:
        """How many host ports are held."""
        return len(self._ports)

    def containers(self) -> list[str]:
        """The ids of all containers with a place."""
        return list(self._places)

    def of(self, container_id: str) -> list[Connection]:
        """The connections of one container."""
        return list(self._places.get(container_id, {}).values())

    def all(self) -> list[Connection]:
        """All connections."""
        return [connection for places in self._places.values() for connection in places.values()]

    def find(self, container_id: str, network_id: str) -> Connection | None:
        """A container's connection with a network, if it has one."""
        return self._places.get(container_id, {}).get(network_id)

    def sandbox_of(self, container_id: str) -> str:
        """The id of a container's network namespace, a new one if it has none."""
        present = self.of(container_id)
        return present[0].sandbox_id if present else secrets.token_hex(32)

    # Making

    def take(
        self,
        connection: Connection,
        bindings: Sequence[PortBinding],
        endpoint: Endpoint,
        announce: Callable[[Connection], None],
    ) -> Connection:
        """Give a container its place in a network with links: addresses, ports, redirects. ``announce`` is called before it is final."""
        attached = self._catalogue.require(self._catalogue.networks[connection.network_id])
        network = attached.network
        held: tuple[PublishedPort, ...] = ()
        taken: list[Address] = []
        try:
            for ipv6, wanted in ((False, endpoint.ip), (True, endpoint.ip6)):
                found = attached.allocate(_wanted_address(network, wanted, ipv6), ipv6=ipv6)
                if found is None:
                    continue
                address, length, gateway = found
                taken.append(address)
                gateway = "" if network.internal else gateway
                if ipv6:
                    connection = replace(connection, address6=str(address), prefix_length6=length, gateway6=gateway)
                else:
                    connection = replace(connection, address=str(address), prefix_length=length, gateway=gateway)
            held = self._hold(bindings, connection, attached)
            connection = replace(
                connection,
                host_link=f"veth{secrets.token_hex(4)[:7]}",
                bridge=network.bridge or network.parent,
                kind="veth" if network.driver == "bridge" else network.driver,
                mode=attached.link_mode,
                interface=self._interface(connection.container_id, attached.interface_prefix),
                mac="" if network.driver == "ipvlan" else endpoint.mac or mac_for(taken[0]),
                mtu=network.mtu,
                ports=held,
            )
            self.keep(connection)
            attached.publish(connection)
            self._forget_flows(connection)
            announce(connection)
        except BaseException:
            self._drop(connection)
            self._ports.release(held)
            for address in taken:
                attached.release(str(address))
            raise
        return connection

    def keep(self, connection: Connection) -> None:
        """Record a connection, new or changed, and put it where it is looked for."""
        self._records.put_connection(connection)
        self._places.setdefault(connection.container_id, {})[connection.network_id] = connection
        attached = self._catalogue.attached.get(connection.network_id)
        if attached is not None:
            attached.connections[connection.container_id] = connection

    def adopt(self, connection: Connection) -> None:
        """Take a recorded connection over after a restart of the daemon."""
        attached = self._catalogue.attached.get(connection.network_id)
        adopted = attached.adopt(connection) if attached is not None else None
        if adopted is not None:
            self._places.setdefault(adopted.container_id, {})[adopted.network_id] = adopted
            if adopted != connection:
                log.warning(
                    "network %s of container %s has changed: what it has no more is dropped", adopted.network_name, adopted.container_id
                )
                self._records.put_connection(adopted)
            for port in self._ports.hold_again(adopted.ports):
                self._catalogue.warn(f"another program listens on published port {port.host_ip}:{port.host_port}/{port.protocol}")
        elif connection.network_id in self._catalogue.networks and not connection.host_link:
            self._places.setdefault(connection.container_id, {})[connection.network_id] = connection
        else:
            log.warning("network of container %s is gone or has another subnet: forgotten", connection.container_id)
            self._records.delete_connection(connection)

    def move_ports(self, left: Connection) -> None:
        """Publish what a network that was left had published on the one that gives the default route now."""
        candidates = [c for c in self.of(left.container_id) if c.kind == "veth" and c.host_link]
        chosen = next((c for c in candidates if c.endpoint_id in gateways(candidates)), None)
        if chosen is None:
            return
        bindings = [PortBinding(p.container_port, p.protocol, p.host_ip, p.host_port, p.host_port) for p in left.ports]
        bindings = [binding for binding in bindings if (chosen.address6 if ":" in binding.host_ip else chosen.address)]
        moved = replace(chosen, ports=self._ports.hold(bindings, chosen.address, chosen.address6))
        self.keep(moved)
        self._catalogue.attached[chosen.network_id].publish(moved)

    def _hold(self, bindings: Sequence[PortBinding], connection: Connection, attached: AttachedNetwork) -> tuple[PublishedPort, ...]:
        """Hold the host ports of a connection; dockerd's text around what went wrong."""
        if not attached.publishes:
            return ()
        try:
            return self._ports.hold(bindings, connection.address, connection.address6, attached.host_ip)
        except TareError as error:
            raise type(error)(
                f"driver failed programming external connectivity on endpoint {connection.container_name} "
                f"({connection.endpoint_id}): {error}"
            ) from None

    def _interface(self, container_id: str, prefix: str) -> str:
        """The first free interface name of a container."""
        used = {connection.interface for connection in self.of(container_id) if connection.host_link}
        return next(name for number in range(len(used) + 1) if (name := f"{prefix}{number}") not in used)

    def _forget_flows(self, connection: Connection) -> None:
        """Flows to published UDP ports begin anew: their peers may be sending all the time, to where the port led before."""
        ports = frozenset(port.host_port for port in connection.ports if port.protocol == "udp")
        if ports:
            try:
                forget_udp(ports, frozenset(filter(None, (connection.address, connection.address6))))
            except OSError as error:
                log.warning("old UDP flows of container %s stay: %s", connection.container_name, error.strerror or error)

    # Leaving

    def _drop(self, connection: Connection) -> None:
        """Forget a connection that failed while it was made."""
        attached = self._catalogue.attached.get(connection.network_id)
        if attached is not None and attached.connections.pop(connection.container_id, None) is not None:
            self._records.delete_connection(connection)
        self._forget(connection)

    def leave(self, connection: Connection) -> None:
        """Take a container out of a network."""
        attached = self._catalogue.attached.get(connection.network_id)
        if attached is not None and attached.connections.pop(connection.container_id, None) is not None:
            try:
                attached.unpublish(connection)
            except OSError as error:
                self._catalogue.warn(f"cannot take back published ports of {connection.container_name}: {error.strerror or error}")
            self._ports.release(connection.ports)
            self._forget_flows(connection)
            for address in (connection.address, connection.address6):
                attached.release(address)
        self._forget(connection)
        try:
            self._records.delete_connection(connection)
        except ResourceExhausted as error:
            log.error("container %s: its leaving of a network is not on record: %s", connection.container_id, error)

    def _forget(self, connection: Connection) -> None:
        places = self._places.get(connection.container_id, {})
        places.pop(connection.network_id, None)
        if not places:
            self._places.pop(connection.container_id, None)


def _wanted_address(network: Network, text: str, ipv6: bool) -> Address | None:
    if not text:
        return None
    if network.predefined:
        raise InvalidArgument(
            "invalid config for network bridge: invalid endpoint settings:\n"
            "user specified IP address is supported on user defined networks only"
        )
    version = 6 if ipv6 else 4
    try:
        address = ip_address(text)
    except ValueError:
        address = None
    if address is None or address.version != version:
        raise InvalidArgument(
            f"invalid config for network {network.name}: invalid endpoint settings:\ninvalid IPv{version} address: {text}"
        )
    return address
