"""Networks of this engine and the containers connected to them.

State lives in three places, in this order of authority:

    metadata     records of networks and connections: written before anything is announced
    memory       address pools and held host ports, rebuilt from the records at start
    kernel       bridge links and packet rules, rebuilt from the two above at any time (reboot, ``nft flush ruleset``, killed daemon)

Life of a connection:

    connect()  allocate address, hold host ports → record → redirects in the kernel → event → Connection
    (the task makes the veth pair from it; the pair dies with the task's network namespace)
    disconnect()  redirects out of the kernel → ports and address free → record gone → event

Invariants: ``connect`` and ``disconnect`` block the event loop only for map elements, one SQLite row and a few binds (under a
millisecond together); everything slower runs in a thread under one lock. A failed ``connect`` leaves nothing. After a crash
``start`` brings back every recorded connection with its redirects in one transaction, so that running containers do not notice;
``restore`` then drops those whose container is gone.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

from tare.config import EngineConfig
from tare.errors import Conflict, Forbidden, InvalidArgument, NotFound, ResourceExhausted, TareError, Unsupported
from tare.events import EventBus
from tare.linux.netlink import Route
from tare.linux.nft import Nftables
from tare.networks import bridge as kernel
from tare.networks import files
from tare.networks.attached import AttachedNetwork
from tare.networks.ipam import mac_for
from tare.networks.model import (
    DEFAULT_NETWORK,
    PREDEFINED,
    Connection,
    Network,
    NetworkMode,
    NetworkView,
    Subnet,
    parse_mode,
)
from tare.networks.placement import HOST_RESOLV_CONF, host_resolv_conf, place_default_bridge, place_subnet, read_text
from tare.networks.ports import HostPorts, PortBinding, PublishedPort
from tare.networks.records import NetworkRecords
from tare.store.metadata import Metadata

log = logging.getLogger(__name__)

HOST_HOSTS = Path("/etc/hosts")
NETWORK_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
BRIDGE_NAME_OPTION = "com.docker.network.bridge.name"
MTU_OPTION = "com.docker.network.driver.mtu"


class Networks:
    """The networks of one engine. All methods run on the engine's event loop."""

    def __init__(self, config: EngineConfig, metadata: Metadata, events: EventBus) -> None:
        self._config = config
        self._records = NetworkRecords(metadata)
        self._events = events
        self._lock = asyncio.Lock()
        self._networks: dict[str, Network] = {}
        self._attached: dict[str, AttachedNetwork] = {}
        self._plain: dict[tuple[str, str], Connection] = {}
        self._ports = HostPorts()
        self._nft: Nftables | None = None
        self._failure: TareError | None = None
        self._warnings: list[str] = []

    # Life

    async def start(self) -> None:
        """Load the records and bring the kernel into their state. A machine that cannot have bridges is a warning, not an error: what
        needs one fails then with the reason."""
        async with self._lock:
            self._networks = {network.id: network for network in self._records.networks()}
            self._ensure_predefined()
            connections = self._records.connections()
            if self._config.bridge == "none":
                self._drop_default_bridge()
            try:
                await asyncio.to_thread(self._open_kernel)
            except (OSError, ResourceExhausted) as error:
                reason = error.strerror or error if isinstance(error, OSError) else error
                self._failure = Unsupported(f"bridge networks are not available: {reason}")
                self._warn(str(self._failure))
            for connection in connections:
                self._adopt(connection)
            for attached in self._attached.values():
                await self._bring_up(attached)

    async def close(self) -> None:
        """Let go of host ports and claims. Containers that run keep their network; where none runs, bridge and rules go."""
        await self.remove_kernel_state()
        async with self._lock:
            self._ports.close()
            for attached in self._attached.values():
                if attached.claim is not None:
                    attached.claim.release(forget=False)
            self._attached.clear()
            if self._nft is not None:
                self._nft.close()
                self._nft = None

    async def remove_kernel_state(self) -> None:
        """Remove bridge, rules and claim of every network on which no container is. ``start`` makes them again."""
        async with self._lock:
            for network_id, attached in list(self._attached.items()):
                if not attached.connections:
                    await asyncio.to_thread(attached.take_down)
                    del self._attached[network_id]

    async def restore(self, active: Iterable[str]) -> None:
        """After a restart: keep the connections of these containers, free those of all others, put bridges and rules right."""
        keep = set(active)
        for connection in self.connections():
            if connection.container_id not in keep:
                await self.disconnect(connection.container_id, connection.network_id)
        await self.repair()

    async def repair(self) -> None:
        """Put bridges and rules back as they should be (after ``nft flush ruleset``, a firewall's restart, a deleted link). Harmless
        at any time."""
        async with self._lock:
            for attached in self._attached.values():
                await self._bring_up(attached)
        for container_id in {connection.container_id for connection in self.connections()}:
            self.attached(container_id)

    @property
    def warnings(self) -> Sequence[str]:
        """What does not work on this machine, and why; for ``docker info``."""
        return tuple(self._warnings)

    # Connections

    async def connect(
        self,
        container_id: str,
        name: str,
        *,
        network: str = DEFAULT_NETWORK,
        bindings: Sequence[PortBinding] = (),
        exposed: Iterable[str] = (),
        mac: str = "",
        ip: str = "",
        aliases: Sequence[str] = (),
    ) -> Connection:
        """Give a container its place in a network: addresses, published ports, and the name of the link that its task will make.

        Raises ``NotFound`` (network), ``Conflict`` (port or address in use), ``ResourceExhausted`` (no address), ``InvalidArgument``,
        ``Unsupported`` (this machine cannot have bridges). After an error nothing is left.
        """
        async with self._lock:
            record = self._resolve(network)
            if self._find(container_id, record.id) is not None:
                raise Conflict(f"endpoint with name {name} already exists in network {record.name}")
            connection = Connection(
                container_id=container_id,
                container_name=name,
                network_id=record.id,
                network_name=record.name,
                endpoint_id=secrets.token_hex(32),
                sandbox_id=self._sandbox_of(container_id),
                exposed=tuple(exposed),
                aliases=tuple(aliases),
            )
            if record.driver != "bridge":
                self._records.put_connection(connection)
                self._plain[container_id, record.id] = connection
            else:
                connection = self._connect_bridge(self._require(record), connection, bindings, mac, ip)
            self._announce("connect", connection)
            return connection

    def attached(self, container_id: str) -> None:
        """To be called when the task of a container has started: finishes what needs its link on the host to exist. Quick."""
        links = [c.host_link for c in self.connections(container_id) if c.ports and c.host_link]
        if links and kernel.filters_bridged():
            try:
                kernel.allow_hairpin(links)
            except OSError as error:
                self._warn(f"container {container_id[:12]} does not reach its own published ports: {error.strerror or error}")

    async def disconnect(self, container_id: str, network: str | None = None) -> None:
        """Take a container out of one network, or out of all. Unknown ones are no error."""
        async with self._lock:
            wanted = None if network is None else self._resolve(network).id
            for connection in self.connections(container_id):
                if wanted in (None, connection.network_id):
                    self._disconnect(connection)
                    self._announce("disconnect", connection)

    def connections(self, container_id: str | None = None) -> list[Connection]:
        """The connections of one container, or all."""
        found = [*self._plain.values(), *(c for a in self._attached.values() for c in a.connections.values())]
        return [c for c in found if container_id in (None, c.container_id)]

    # Networks

    def mode(self, text: str) -> NetworkMode:
        """Parse a network mode; a network's id or prefix becomes its name. Raises ``NotFound`` for an unknown network."""
        mode = parse_mode(text)
        return replace(mode, name=self._resolve(mode.name).name) if mode.kind == "network" else mode

    def get(self, reference: str) -> NetworkView:
        """A network by id, name or unambiguous id prefix."""
        return self._view(self._resolve(reference))

    def list(self) -> Sequence[NetworkView]:
        """All networks, oldest first."""
        return [self._view(network) for network in sorted(self._networks.values(), key=lambda n: n.created)]

    def files(
        self,
        mode: NetworkMode,
        *,
        hostname: str,
        domainname: str = "",
        connections: Sequence[Connection] = (),
        extra_hosts: Sequence[str] = (),
        dns: Sequence[str] = (),
        dns_search: Sequence[str] = (),
        dns_options: Sequence[str] = (),
    ) -> files.NetworkFiles:
        """/etc/hosts, /etc/hostname and /etc/resolv.conf of a container (not for ``container:ID``: it shares the other's)."""
        chosen = dns or self._config.dns
        search = dns_search or self._config.dns_search
        options = dns_options or self._config.dns_options
        host_text = host_resolv_conf()
        if mode.kind == "host":
            return files.NetworkFiles(
                files.hosts_of_host(read_text(HOST_HOSTS), extra_hosts, self.host_gateway or "127.0.0.1"),
                files.hostname(hostname),
                files.resolv_conf_of_host(read_text(HOST_RESOLV_CONF), dns=chosen, search=search, options=options),
            )
        addresses = [connection.address for connection in connections if connection.address]
        return files.NetworkFiles(
            files.hosts(hostname, domainname, addresses, extra_hosts, self.host_gateway),
            files.hostname(hostname),
            files.resolv_conf(host_text, dns=chosen, search=search, options=options),
        )

    @property
    def host_gateway(self) -> str:
        """The host's address on the default bridge (``--add-host name:host-gateway``), or empty."""
        default = next((n for n in self._networks.values() if n.name == DEFAULT_NETWORK), None)
        return default.subnets[0].gateway if default is not None and default.subnets else ""

    # User-defined networks

    async def create(
        self,
        name: str,
        *,
        driver: str = "bridge",
        subnets: Sequence[Subnet] = (),
        internal: bool = False,
        attachable: bool = False,
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Network:
        """Create a bridge network. ``subnets`` may leave out gateway, or be empty: the first free default pool is taken."""
        options = dict(options or {})
        async with self._lock:
            self._check_new(name, driver, subnets)
            network_id = secrets.token_hex(32)
            network = Network(
                id=network_id,
                name=name,
                driver=driver,
                created=time.time_ns(),
                bridge=options.get(BRIDGE_NAME_OPTION) or f"br-{network_id[:12]}",
                mtu=_number(options, MTU_OPTION, self._config.mtu),
                internal=internal,
                attachable=attachable,
                options=options,
                labels=dict(labels or {}),
            )
            attached = await asyncio.to_thread(self._place, network, subnets[0] if subnets else None)
            network = attached.network
            try:
                self._warn(*await asyncio.to_thread(attached.bring_up))
                self._records.put_network(network)
            except BaseException:
                await asyncio.to_thread(attached.take_down)
                raise
            self._networks[network.id] = network
            self._attached[network.id] = attached
            self._events.publish("network", "create", network.id, {"name": network.name, "type": network.driver})
            return network

    async def remove(self, reference: str) -> Network:
        """Remove a user-defined network that no container uses."""
        async with self._lock:
            network = self._resolve(reference)
            if network.predefined:
                raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
            users = [c for c in self.connections() if c.network_id == network.id]
            if users:
                named = ", ".join(f'name:"{c.container_name}" id:"{c.endpoint_id[:12]}"' for c in users)
                raise Forbidden(f"error while removing network: network {network.name} has active endpoints ({named})")
            await self._remove(network)
            return network

    async def prune(self, wanted: Callable[[Network], bool] = lambda network: True) -> Sequence[Network]:
        """Remove the user-defined networks without containers for which ``wanted`` holds."""
        async with self._lock:
            used = {connection.network_id for connection in self.connections()}
            unused = [n for n in self._networks.values() if not n.predefined and n.id not in used and wanted(n)]
            for network in unused:
                await self._remove(network)
            return unused

    # Inside: called with the lock held, or pure

    def _ensure_predefined(self) -> None:
        known = {network.name for network in self._networks.values()}
        for name, driver in (("bridge", "bridge"), ("host", "host"), ("none", "null")):
            if name not in known:
                network = Network(id=secrets.token_hex(32), name=name, driver=driver, created=time.time_ns())
                self._records.put_network(network)
                self._networks[network.id] = network

    def _drop_default_bridge(self) -> None:
        """``--bridge none``: the network does not exist in this run; its record (and id) stays for the next."""
        self._networks = {key: network for key, network in self._networks.items() if network.name != DEFAULT_NETWORK}

    def _open_kernel(self) -> None:
        """Open nftables and choose name and subnet of the default bridge. Blocking."""
        self._nft = self._nft or Nftables()
        for network in list(self._networks.values()):
            if network.driver == "bridge" and network.name != DEFAULT_NETWORK:
                self._attached[network.id] = AttachedNetwork(network, self._nft)
            elif network.driver == "bridge":
                others = [n for n in self._networks.values() if n.name != DEFAULT_NETWORK]
                with kernel.choosing():
                    network, claim = place_default_bridge(self._config, network, others)
                    self._networks[network.id] = network
                    attached = self._attached[network.id] = AttachedNetwork(network, self._nft, claim)
                    attached.bring_up_link()

    async def _bring_up(self, attached: AttachedNetwork) -> None:
        """Create or repair; a network that cannot be is a warning here, and an error where it is used."""
        self._records.put_network(attached.network)
        try:
            self._warn(*await asyncio.to_thread(attached.bring_up))
        except OSError as error:
            attached.failure = f"network {attached.network.name} is not available: {error.strerror or error}"
            self._warn(attached.failure)
        else:
            attached.failure = ""

    def _adopt(self, connection: Connection) -> None:
        """Take a recorded connection over after a restart of the daemon."""
        attached = self._attached.get(connection.network_id)
        if attached is not None and attached.adopt(connection):
            for port in self._ports.hold_again(connection.ports):
                self._warn(f"another program listens on published port {port.host_ip}:{port.host_port}/{port.protocol}")
        elif connection.network_id in self._networks and not connection.address:
            self._plain[connection.container_id, connection.network_id] = connection
        else:
            log.warning("network of container %s is gone or has another subnet: forgotten", connection.container_id)
            self._records.delete_connection(connection)

    def _connect_bridge(
        self,
        attached: AttachedNetwork,
        connection: Connection,
        bindings: Sequence[PortBinding],
        mac: str,
        ip: str,
    ) -> Connection:
        address = attached.pool.allocate(self._wanted_address(attached.network, ip))
        held: tuple[PublishedPort, ...] = ()
        try:
            try:
                held = self._ports.hold(bindings, str(address))
            except TareError as error:
                raise type(error)(
                    f"driver failed programming external connectivity on endpoint {connection.container_name} "
                    f"({connection.endpoint_id}): {error}"
                ) from None
            connection = replace(
                connection,
                host_link=f"veth{secrets.token_hex(4)[:7]}",
                bridge=attached.network.bridge,
                interface=f"eth{len(self.connections(connection.container_id))}",
                mac=mac or mac_for(address),
                address=str(address),
                prefix_length=attached.subnet.prefixlen,
                gateway="" if attached.network.internal else str(attached.gateway),
                mtu=attached.network.mtu,
                ports=held,
            )
            self._records.put_connection(connection)
            attached.connections[connection.container_id] = connection
            attached.publish(connection)
        except BaseException:
            if attached.connections.pop(connection.container_id, None) is not None:
                self._records.delete_connection(connection)
            self._ports.release(held)
            attached.pool.release(address)
            raise
        return connection

    def _disconnect(self, connection: Connection) -> None:
        attached = self._attached.get(connection.network_id)
        if attached is not None and attached.connections.pop(connection.container_id, None) is not None:
            try:
                attached.unpublish(connection)
            except OSError as error:
                self._warn(f"cannot take back published ports of {connection.container_name}: {error.strerror or error}")
            self._ports.release(connection.ports)
            attached.pool.release(IPv4Address(connection.address))
        self._plain.pop((connection.container_id, connection.network_id), None)
        try:
            self._records.delete_connection(connection)
        except ResourceExhausted as error:
            log.error("container %s: its leaving of a network is not on record: %s", connection.container_id, error)

    async def _remove(self, network: Network) -> None:
        attached = self._attached.pop(network.id, None)
        self._records.delete_network(network)
        del self._networks[network.id]
        if attached is not None:
            await asyncio.to_thread(attached.take_down)
        self._events.publish("network", "destroy", network.id, {"name": network.name, "type": network.driver})

    def _resolve(self, reference: str) -> Network:
        named = next((n for n in self._networks.values() if n.name == reference), None)
        found = self._networks.get(reference) or named
        if found is not None:
            return found
        prefixed = [n for n in self._networks.values() if reference and n.id.startswith(reference)]
        if len(prefixed) > 1:
            raise InvalidArgument(f"network {reference} is ambiguous ({len(prefixed)} matches found on name)")
        if not prefixed:
            raise NotFound(f"network {reference} not found")
        return prefixed[0]

    def _require(self, network: Network) -> AttachedNetwork:
        self._require_kernel()
        attached = self._attached[network.id]
        if attached.failure:
            raise Unsupported(attached.failure)
        return attached

    def _require_kernel(self) -> Nftables:
        if self._failure is not None:
            raise self._failure
        assert self._nft is not None, "start() comes first"
        return self._nft

    def _wanted_address(self, network: Network, ip: str) -> IPv4Address | None:
        if not ip:
            return None
        if network.predefined:
            raise InvalidArgument("user specified IP address is supported on user defined networks only")
        try:
            return IPv4Address(ip)
        except ValueError:
            raise InvalidArgument(f"invalid IPv4 address: {ip}") from None

    def _check_new(self, name: str, driver: str, subnets: Sequence[Subnet]) -> None:
        if not NETWORK_NAME.fullmatch(name):
            raise InvalidArgument(f"invalid network name: {name!r}")
        if name in PREDEFINED:
            raise Forbidden(f"operation is not permitted on predefined {name} network")
        if any(network.name == name for network in self._networks.values()):
            raise Conflict(f"network with name {name} already exists")
        if driver != "bridge":
            raise NotFound(f"could not find network driver {driver!r}: there is bridge")
        if len(subnets) > 1:
            raise Unsupported("a bridge network has one IPv4 subnet")

    def _place(self, network: Network, wanted: Subnet | None) -> AttachedNetwork:
        """Choose or check the subnet of a new network and make its bridge. Blocking."""
        nft = self._require_kernel()
        others = [n for n in self._networks.values() if n.id != network.id]
        with kernel.choosing(), Route() as route:
            if route.link(network.bridge) is not None:
                raise Conflict(f"cannot create network {network.id} ({network.bridge}): the link exists already")
            subnet = place_subnet(route, wanted, others, network.bridge)
            attached = AttachedNetwork(replace(network, subnets=(subnet,)), nft)
            attached.bring_up_link()
            return attached

    def _find(self, container_id: str, network_id: str) -> Connection | None:
        return next((c for c in self.connections(container_id) if c.network_id == network_id), None)

    def _sandbox_of(self, container_id: str) -> str:
        present = self.connections(container_id)
        return present[0].sandbox_id if present else secrets.token_hex(32)

    def _view(self, network: Network) -> NetworkView:
        return NetworkView(network, [c for c in self.connections() if c.network_id == network.id])

    def _announce(self, action: str, connection: Connection) -> None:
        network = self._networks[connection.network_id]
        attributes = {"container": connection.container_id, "name": network.name, "type": network.driver}
        self._events.publish("network", action, network.id, attributes)

    def _warn(self, *warnings: str) -> None:
        for warning in warnings:
            if warning not in self._warnings:
                self._warnings.append(warning)
                log.warning("%s", warning)


def _number(options: Mapping[str, str], name: str, default: int) -> int:
    """A driver option that is a positive number."""
    text = options.get(name, "")
    if text and not (text.isascii() and text.isdigit() and 68 <= int(text) <= 65535):
        raise InvalidArgument(f"invalid value {text!r} for the network option {name}")
    return int(text) if text else default
