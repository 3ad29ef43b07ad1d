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
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from tare.config import EngineConfig
from tare.errors import Conflict, Forbidden, InvalidArgument, NotFound, ResourceExhausted, TareError, Unsupported
from tare.events import EventBus
from tare.linux.conntrack import forget_udp
from tare.linux.netlink import Route
from tare.linux.nft import Nftables
from tare.networks import bandwidth, etc, files, parent
from tare.networks import bridge as kernel
from tare.networks.attached import HOST_IP_OPTION, AttachedNetwork
from tare.networks.creation import BANDWIDTH_OPTION, BRIDGE_NAME_OPTION, NewNetwork, check_network, check_request, mtu
from tare.networks.gateway import gateways
from tare.networks.ipam import Address, mac_for
from tare.networks.model import (
    DEFAULT_NETWORK,
    Connection,
    Dns,
    Endpoint,
    Network,
    NetworkMode,
    NetworkView,
    parse_mode,
)
from tare.networks.placement import place_default_bridge, place_subnets
from tare.networks.ports import HostPorts, PortBinding, PublishedPort
from tare.networks.records import NetworkRecords
from tare.networks.running import Running
from tare.networks.watch import Watch
from tare.store.metadata import Metadata

log = logging.getLogger(__name__)


class Networks:
    """The networks of one engine. All methods run on the engine's event loop."""

    def __init__(self, config: EngineConfig, metadata: Metadata, events: EventBus) -> None:
        self._config = config
        self._records = NetworkRecords(metadata)
        self._events = events
        self._lock = asyncio.Lock()
        self._networks: dict[str, Network] = {}
        self._attached: dict[str, AttachedNetwork] = {}
        self._places: dict[str, dict[str, Connection]] = {}
        """Connections by container and network, in the order in which they were made."""
        self._running = Running(config.exec_root, self._warn)
        self._watch = Watch(self._look_at_rules)
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
            try:
                self._watch.start()
            except OSError as error:
                self._warn(f"changes of packet rules by others are not noticed: {error.strerror or error}")

    async def close(self) -> None:
        """Let go of host ports and claims. Containers that run keep their network; where none runs, bridge and rules go."""
        await self._watch.close()
        await self.remove_kernel_state()
        async with self._lock:
            self._running.close()
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

    async def restore(self, active: Mapping[str, int]) -> None:
        """After a restart: keep the connections of these containers (with the pids of their inits), free those of all others, put bridges,
        rules and links right."""
        for container_id in {connection.container_id for connection in self.connections()} - active.keys():
            await self.disconnect(container_id)
        for container_id in self._places:
            self._running.tell(container_id, self.connections(container_id), start=False)
        await self._running.restore(active)
        await self.repair()

    async def repair(self) -> None:
        """Put bridges and rules back as they should be (after ``nft flush ruleset``, a firewall's restart, a deleted link). Harmless
        at any time."""
        async with self._lock:
            for attached in self._attached.values():
                await self._bring_up(attached)
        await self._running.repair(self.connections)

    async def _look_at_rules(self) -> None:
        """Somebody else has changed packet rules."""
        async with self._lock:
            for attached in self._attached.values():
                for warning in await asyncio.to_thread(attached.look):
                    log.warning("%s", warning)

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
        endpoint: Endpoint | None = None,
    ) -> Connection:
        """Give a container its place in a network: addresses, published ports, names, and the name of the link that its task will make.

        Raises ``NotFound`` (network), ``Conflict`` (port in use), ``Forbidden`` (address in use), ``ResourceExhausted`` (no address),
        ``InvalidArgument``, ``Unsupported`` (this machine cannot have bridges). After an error nothing is left.
        """
        endpoint = endpoint or Endpoint()
        async with self._lock:
            record = self._resolve(network)
            if record.id in self._places.get(container_id, {}):
                raise Forbidden(f"endpoint with name {name} already exists in network {record.name}")
            connection = Connection(
                container_id=container_id,
                container_name=name,
                network_id=record.id,
                network_name=record.name,
                endpoint_id=secrets.token_hex(32),
                sandbox_id=self._sandbox_of(container_id),
                exposed=tuple(exposed),
                aliases=endpoint.aliases,
                hostname=endpoint.hostname,
                links=endpoint.links,
                gw_priority=endpoint.gw_priority,
                dns=endpoint.dns,
                link_local=tuple(map(_link_local, endpoint.link_local)),
                internal=record.internal or record.driver == "null",
                named=not record.predefined,
                bandwidth=endpoint.driver_options.get(BANDWIDTH_OPTION, "") or record.options.get(BANDWIDTH_OPTION, ""),
            )
            bandwidth.parse_bandwidth(connection.bandwidth)
            if record.driver in ("host", "null"):
                self._records.put_connection(connection)
                self._places.setdefault(container_id, {})[record.id] = connection
            else:
                connection = self._connect_link(self._require(record), connection, bindings, endpoint)
            self._announce("connect", connection)
            return connection

    def attached(self, container_id: str, pid: int) -> None:
        """To be called when the task of a container has started: finishes what needs its link on the host to exist. Quick."""
        self._running.started(container_id, pid, self.connections(container_id))

    async def plug(self, connection: Connection) -> None:
        """Give a running container the link of a connection that was just made. On failure the connection is undone."""
        try:
            await self._running.plug(connection, self.connections(connection.container_id))
        except OSError as error:
            await self.disconnect(connection.container_id, connection.network_id)
            raise Unsupported(f"failed to set up container networking: {error.strerror or error}") from None

    async def unplug(self, container_id: str, network: str) -> None:
        """Take a running container's link out of a network, then its place."""
        network_id = self._resolve(network).id
        connection = self._places.get(container_id, {}).get(network_id)
        if connection is None:
            return
        await self._running.unplug(connection, [c for c in self.connections(container_id) if c.network_id != network_id])
        await self.disconnect(container_id, network_id)
        if connection.ports:
            self._move_ports(connection)

    def _move_ports(self, left: Connection) -> None:
        """Publish what a network that was left had published on the one that gives the default route now."""
        candidates = [c for c in self.connections(left.container_id) if c.kind == "veth" and c.host_link]
        chosen = next((c for c in candidates if c.endpoint_id in gateways(candidates)), None)
        if chosen is None:
            return
        bindings = [PortBinding(p.container_port, p.protocol, p.host_ip, p.host_port, p.host_port) for p in left.ports]
        bindings = [binding for binding in bindings if ":" not in binding.host_ip or chosen.address6]
        moved = replace(chosen, ports=self._ports.hold(bindings, chosen.address, chosen.address6))
        self._keep(moved)
        self._attached[chosen.network_id].publish(moved)

    def first_for_ports(self, wanted: Mapping[str, int]) -> str:
        """Which of several networks (names and gateway priorities) of a container carries its published ports: the one that will give the
        default route."""
        usable = [(name, priority, self._resolve(name)) for name, priority in wanted.items()]
        leading = [(-priority, network.name) for _, priority, network in usable if network.driver == "bridge" and not network.internal]
        return min(leading)[1] if leading else next(iter(wanted))

    def rename(self, container_id: str, name: str) -> None:
        """A container has another name: it is found by that one from now on."""
        for connection in self.connections(container_id):
            self._keep(replace(connection, container_name=name))
        self._running.tell(container_id, self.connections(container_id))

    async def disconnect(self, container_id: str, network: str | None = None) -> None:
        """Take a container out of one network, or out of all. Unknown ones are no error."""
        async with self._lock:
            wanted = None if network is None else self._resolve(network).id
            for connection in self.connections(container_id):
                if wanted in (None, connection.network_id):
                    self._disconnect(connection)
                    self._announce("disconnect", connection)
            if network is None:
                self._running.ended(container_id)
            self._running.tell(container_id, self.connections(container_id))

    async def force_out(self, network: str, reference: str) -> None:
        """Free the place of a container that is not known any more, by its name or id (``disconnect --force``)."""
        network_id = self._resolve(network).id
        stale = [c for c in self.connections() if c.network_id == network_id and reference in (c.container_name, c.container_id)]
        if not stale:
            raise NotFound(f"container {reference} is not connected to the network")
        for connection in stale:
            await self.disconnect(connection.container_id, network_id)

    def connections(self, container_id: str | None = None) -> list[Connection]:
        """The connections of one container, or all."""
        if container_id is not None:
            return list(self._places.get(container_id, {}).values())
        return [connection for places in self._places.values() for connection in places.values()]

    def name_server(self, connections: Sequence[Connection]) -> Path | None:
        """The socket of the name server that is to answer in a container on these networks, or None."""
        return self._running.name_server(connections)

    # Networks

    def mode(self, text: str) -> NetworkMode:
        """Parse a network mode; a network's id or prefix becomes its name. Raises ``NotFound`` for an unknown network."""
        mode = parse_mode(text)
        return replace(mode, name=self._resolve(mode.name).name) if mode.kind == "network" else mode

    def name_of(self, reference: str) -> str:
        """The name of a network that a client calls by its name or id; one that is not there keeps what it is called (a container may be
        made before its network)."""
        try:
            return self._resolve(DEFAULT_NETWORK if reference == "default" else reference).name
        except NotFound:
            return reference

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
        return etc.container_files(
            mode, hostname, domainname, connections, extra_hosts, self.host_gateway, self.dns(dns, dns_search, dns_options)
        )

    def dns(self, servers: Sequence[str] | None, search: Sequence[str] | None, options: Sequence[str] | None) -> Dns:
        """A container's resolver settings with the engine's where it says nothing."""
        config = self._config
        return Dns(tuple(servers or config.dns), tuple(search or config.dns_search), tuple(options or config.dns_options))

    @property
    def host_gateway(self) -> str:
        """The host's address on the default bridge (``--add-host name:host-gateway``), or empty."""
        default = next((n for n in self._networks.values() if n.name == DEFAULT_NETWORK), None)
        return default.subnets[0].gateway if default is not None and default.subnets else ""

    # User-defined networks

    async def create(self, wanted: NewNetwork) -> Network:
        """Create a network."""
        async with self._lock:
            check_request(wanted)
            if any(network.name == wanted.name for network in self._networks.values()):
                raise Conflict(f"network with name {wanted.name} already exists")
            network_id = secrets.token_hex(32)
            options = dict(wanted.options)
            network = Network(
                id=network_id,
                name=wanted.name,
                driver=wanted.driver,
                created=time.time_ns(),
                mtu=mtu(options, self._config.mtu),
                internal=wanted.internal,
                attachable=wanted.attachable,
                ipam_options=dict(wanted.ipam_options),
                options=options,
                labels=dict(wanted.labels),
                ipv6=wanted.ipv6,
            )
            if network.driver == "bridge":
                network = replace(network, bridge=options.get(BRIDGE_NAME_OPTION) or f"br-{network_id[:12]}")
            else:
                network = replace(network, parent=options.get(parent.PARENT_OPTION) or parent.own_parent(network_id))
            check_network(network)
            attached = await asyncio.to_thread(self._place, network, wanted)
            network = attached.network
            try:
                self._warn(*await asyncio.to_thread(attached.bring_up))
                self._records.put_network(network)
            except BaseException as error:
                await asyncio.to_thread(attached.take_down)
                if isinstance(error, OSError):
                    raise Unsupported(f"cannot create network {network.name}: {error.strerror or error}") from None
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
            self._events.publish("network", "prune", "", {"reclaimed": "0"})
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
            if network.driver not in ("host", "null") and network.name != DEFAULT_NETWORK:
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
        except (OSError, InvalidArgument) as error:
            reason = error.strerror or error if isinstance(error, OSError) else error
            attached.failure = f"network {attached.network.name} is not available: {reason}"
            self._warn(attached.failure)
        else:
            attached.failure = ""

    def _adopt(self, connection: Connection) -> None:
        """Take a recorded connection over after a restart of the daemon."""
        attached = self._attached.get(connection.network_id)
        if attached is not None and attached.adopt(connection):
            self._places.setdefault(connection.container_id, {})[connection.network_id] = connection
            for port in self._ports.hold_again(connection.ports):
                self._warn(f"another program listens on published port {port.host_ip}:{port.host_port}/{port.protocol}")
        elif connection.network_id in self._networks and not connection.address:
            self._places.setdefault(connection.container_id, {})[connection.network_id] = connection
        else:
            log.warning("network of container %s is gone or has another subnet: forgotten", connection.container_id)
            self._records.delete_connection(connection)

    def _connect_link(
        self, attached: AttachedNetwork, connection: Connection, bindings: Sequence[PortBinding], endpoint: Endpoint
    ) -> Connection:
        network = attached.network
        held: tuple[PublishedPort, ...] = ()
        taken: list[Address] = []
        try:
            for ipv6, wanted in ((False, endpoint.ip), (True, endpoint.ip6)):
                found = attached.allocate(self._wanted_address(network, wanted, ipv6), ipv6=ipv6)
                if found is None:
                    continue
                address, length, gateway = found
                taken.append(address)
                gateway = "" if network.internal else gateway
                if ipv6:
                    connection = replace(connection, address6=str(address), prefix_length6=length, gateway6=gateway)
                else:
                    connection = replace(connection, address=str(address), prefix_length=length, gateway=gateway)
            held = self._hold(bindings, connection, network)
            connection = replace(
                connection,
                host_link=f"veth{secrets.token_hex(4)[:7]}",
                bridge=network.bridge or network.parent,
                kind="veth" if network.driver == "bridge" else network.driver,
                mode=attached.link_mode,
                interface=self._interface(connection.container_id),
                mac="" if network.driver == "ipvlan" else endpoint.mac or mac_for(taken[0]),
                mtu=network.mtu,
                ports=held,
            )
            self._records.put_connection(connection)
            self._keep(connection, record=False)
            attached.publish(connection)
            self._forget_flows(connection)
            self._running.tell(connection.container_id, self.connections(connection.container_id))
        except BaseException:
            self._drop(connection)
            self._ports.release(held)
            for address in taken:
                attached.release(str(address))
            raise
        return connection

    def _forget_flows(self, connection: Connection) -> None:
        """Flows to published UDP ports begin anew: their peers may be sending all the time, to where the port led before."""
        ports = frozenset(port.host_port for port in connection.ports if port.protocol == "udp")
        if ports:
            try:
                forget_udp(ports, frozenset(filter(None, (connection.address, connection.address6))))
            except OSError as error:
                log.warning("old UDP flows of container %s stay: %s", connection.container_name, error.strerror or error)

    def _hold(self, bindings: Sequence[PortBinding], connection: Connection, network: Network) -> tuple[PublishedPort, ...]:
        """Hold the host ports of a connection; dockerd's text around what went wrong."""
        if network.driver != "bridge" or network.internal:
            return ()
        try:
            return self._ports.hold(bindings, connection.address, connection.address6, network.options.get(HOST_IP_OPTION, ""))
        except TareError as error:
            raise type(error)(
                f"driver failed programming external connectivity on endpoint {connection.container_name} "
                f"({connection.endpoint_id}): {error}"
            ) from None

    def _interface(self, container_id: str) -> str:
        """The first free interface name of a container."""
        used = {connection.interface for connection in self.connections(container_id) if connection.host_link}
        return next(name for number in range(len(used) + 1) if (name := f"eth{number}") not in used)

    def _keep(self, connection: Connection, *, record: bool = True) -> None:
        """Put a connection, new or changed, where it is looked for."""
        if record:
            self._records.put_connection(connection)
        self._places.setdefault(connection.container_id, {})[connection.network_id] = connection
        attached = self._attached.get(connection.network_id)
        if attached is not None:
            attached.connections[connection.container_id] = connection

    def _drop(self, connection: Connection) -> None:
        """Forget a connection that failed while it was made."""
        attached = self._attached.get(connection.network_id)
        if attached is not None and attached.connections.pop(connection.container_id, None) is not None:
            self._records.delete_connection(connection)
        places = self._places.get(connection.container_id, {})
        places.pop(connection.network_id, None)
        if not places:
            self._places.pop(connection.container_id, None)

    def _disconnect(self, connection: Connection) -> None:
        attached = self._attached.get(connection.network_id)
        if attached is not None and attached.connections.pop(connection.container_id, None) is not None:
            try:
                attached.unpublish(connection)
            except OSError as error:
                self._warn(f"cannot take back published ports of {connection.container_name}: {error.strerror or error}")
            self._ports.release(connection.ports)
            self._forget_flows(connection)
            for address in (connection.address, connection.address6):
                attached.release(address)
        places = self._places.get(connection.container_id, {})
        places.pop(connection.network_id, None)
        if not places:
            self._places.pop(connection.container_id, None)
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

    def _wanted_address(self, network: Network, text: str, ipv6: bool) -> Address | None:
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

    def _place(self, network: Network, wanted: NewNetwork) -> AttachedNetwork:
        """Choose or check the subnets of a new network and make its link. Blocking."""
        nft = self._require_kernel()
        others = [n for n in self._networks.values() if n.id != network.id]
        if network.driver != "bridge":
            parent.check(network)
        with kernel.choosing(), Route() as route:
            if network.bridge and route.link(network.bridge) is not None:
                raise Conflict(f"cannot create network {network.id} ({network.bridge}): the link exists already")
            subnets = place_subnets(route, self._config, wanted.subnets, wanted.ipv6, others, network.bridge)
            attached = AttachedNetwork(replace(network, subnets=subnets), nft)
            try:
                attached.bring_up_link()
            except OSError as error:
                kernel.take_down(route, network.bridge)
                raise Unsupported(f"cannot create network {network.name}: {error.strerror or error}") from None
            return attached

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


def _link_local(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        address = None
    if address is None or not address.is_link_local:
        raise InvalidArgument(f"invalid endpoint settings:\ninvalid link-local IP address: {text}")
    return str(address)
