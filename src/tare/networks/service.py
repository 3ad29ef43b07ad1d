"""Networks of this engine and the containers connected to them.

State lives in three places, in this order of authority:

    metadata     records of networks and connections: written before anything is announced
    memory       address pools and held host ports (``places``), networks at work (``catalogue``), rebuilt from the records at start
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from tare.config import EngineConfig
from tare.errors import Forbidden, InvalidArgument, NotFound, Unsupported
from tare.events import EventBus
from tare.linux.link_watch import LinkWatch
from tare.linux.nft_watch import RuleWatch
from tare.networks import bandwidth, etc, files, options
from tare.networks.catalogue import Catalogue
from tare.networks.creation import NewNetwork
from tare.networks.model import DEFAULT_NETWORK, Connection, Dns, Endpoint, Network, NetworkMode, NetworkView, parse_mode
from tare.networks.places import Places
from tare.networks.ports import PortBinding
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
        self._catalogue = Catalogue(config, self._records)
        self._places = Places(self._catalogue, self._records)
        self._running = Running(config.exec_root, self._catalogue.warn)
        self._rule_watch = Watch(RuleWatch, RuleWatch.changed_by_others, self._look_at_rules)
        self._link_watch = Watch(LinkWatch, self._heard_of_links, self._look_at_links)
        self._gone: set[str] = set()
        """Links of ours that went away since the last look."""

    # Life

    async def start(self) -> None:
        """Load the records and bring the kernel into their state. A machine that cannot have bridges is a warning, not an error: what
        needs one fails then with the reason."""
        async with self._lock:
            connections = self._records.connections()
            await self._catalogue.start()
            for connection in connections:
                self._places.adopt(connection)
            for attached in self._catalogue.attached.values():
                await self._catalogue.bring_up(attached)
            for watch, what in ((self._rule_watch, "packet rules"), (self._link_watch, "links")):
                try:
                    watch.start()
                except OSError as error:
                    self._catalogue.warn(f"changes of {what} by others are not noticed: {error.strerror or error}")

    async def close(self) -> None:
        """Let go of host ports and claims. Containers that run keep their network; where none runs, bridge and rules go."""
        await self._rule_watch.close()
        await self._link_watch.close()
        await self.remove_kernel_state()
        async with self._lock:
            self._running.close()
            self._places.close()
            self._catalogue.close()

    async def remove_kernel_state(self) -> None:
        """Remove bridge, rules and claim of every network on which no container is. ``start`` makes them again."""
        async with self._lock:
            await self._catalogue.remove_idle()

    async def restore(self, active: Mapping[str, int]) -> None:
        """After a restart: keep the connections of these containers (with the pids of their inits), free those of all others, put bridges,
        rules and links right."""
        for container_id in set(self._places.containers()) - active.keys():
            await self.disconnect(container_id)
        for container_id in self._places.containers():
            self._running.tell(container_id, self.connections(container_id), start=False)
        await self._running.restore(active)
        await self.repair()

    async def repair(self) -> None:
        """Put bridges and rules back as they should be (after ``nft flush ruleset``, a firewall's restart, a deleted link). Harmless
        at any time."""
        async with self._lock:
            for attached in self._catalogue.attached.values():
                await self._catalogue.bring_up(attached)
        await self._running.repair(self.connections)

    async def _look_at_rules(self) -> None:
        """Somebody else has changed packet rules."""
        async with self._lock:
            for attached in self._catalogue.attached.values():
                for warning in await asyncio.to_thread(attached.look):
                    log.warning("%s", warning)

    def _heard_of_links(self, watch: LinkWatch) -> bool:
        ours = {link for attached in self._catalogue.attached.values() for link in attached.links}
        ours |= {connection.host_link for connection in self.connections()}
        gone = watch.gone()
        self._gone |= ours if gone is None else gone & ours
        return bool(self._gone)

    async def _look_at_links(self) -> None:
        """Links of ours went away, though nobody told us to remove them: make them again. (A container that ends takes its links along;
        where that is not known yet there is nothing left to be put right.)"""
        gone, self._gone = self._gone, set()
        async with self._lock:
            lost = [attached for attached in self._catalogue.attached.values() if attached.links & gone]
            for attached in lost:
                if await asyncio.to_thread(attached.lost_link):
                    log.warning("the link of network %s was deleted by somebody: made again", attached.network.name)
                    await self._catalogue.bring_up(attached)
        touched = {c.container_id for attached in lost for c in attached.connections.values()}
        touched |= {c.container_id for c in self.connections() if c.host_link in gone}
        await self._running.repair(self.connections, touched)

    @property
    def warnings(self) -> Sequence[str]:
        """What does not work on this machine, and why; for ``docker info``."""
        return tuple(self._catalogue.warnings)

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
            record = self._catalogue.resolve(network)
            if record.config_only:
                raise Forbidden(f"cannot create endpoint on configuration-only network {record.name}")
            if self._places.find(container_id, record.id) is not None:
                raise Forbidden(f"endpoint with name {name} already exists in network {record.name}")
            connection = Connection(
                container_id=container_id,
                container_name=name,
                network_id=record.id,
                network_name=record.name,
                endpoint_id=secrets.token_hex(32),
                sandbox_id=self._places.sandbox_of(container_id),
                exposed=tuple(exposed),
                aliases=endpoint.aliases,
                hostname=endpoint.hostname,
                links=endpoint.links,
                gw_priority=endpoint.gw_priority,
                dns=endpoint.dns,
                link_local=tuple(map(_link_local, endpoint.link_local)),
                internal=record.internal or record.driver == "null",
                named=not record.predefined,
                bandwidth=endpoint.driver_options.get(options.BANDWIDTH, "") or record.options.get(options.BANDWIDTH, ""),
            )
            bandwidth.parse_bandwidth(connection.bandwidth)
            if record.driver in ("host", "null"):
                self._places.keep(connection)
            else:
                connection = self._places.take(connection, bindings, endpoint, self._tell)
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
        network_id = self._catalogue.resolve(network).id
        connection = self._places.find(container_id, network_id)
        if connection is None:
            return
        rest = [c for c in self.connections(container_id) if c.network_id != network_id]
        async with self._running.unplugged(connection, rest):
            await self.disconnect(container_id, network_id)
        if connection.ports:
            self._places.move_ports(connection)

    def _tell(self, connection: Connection) -> None:
        self._running.tell(connection.container_id, self.connections(connection.container_id))

    def first_for_ports(self, wanted: Mapping[str, int]) -> str:
        """Which of several networks (names and gateway priorities) of a container carries its published ports: the one that will give the
        default route."""
        usable = [(name, priority, self._catalogue.resolve(name)) for name, priority in wanted.items()]
        leading = [(-priority, network.name) for _, priority, network in usable if network.driver == "bridge" and not network.internal]
        return min(leading)[1] if leading else next(iter(wanted))

    def rename(self, container_id: str, name: str) -> None:
        """A container has another name: it is found by that one from now on."""
        for connection in self.connections(container_id):
            self._places.keep(replace(connection, container_name=name))
        self._running.tell(container_id, self.connections(container_id))

    async def disconnect(self, container_id: str, network: str | None = None) -> None:
        """Take a container out of one network, or out of all. Unknown ones are no error."""
        async with self._lock:
            wanted = None if network is None else self._catalogue.resolve(network).id
            for connection in self.connections(container_id):
                if wanted in (None, connection.network_id):
                    self._places.leave(connection)
                    self._announce("disconnect", connection)
            if network is None:
                self._running.ended(container_id)
            self._running.tell(container_id, self.connections(container_id))

    async def force_out(self, network: str, reference: str) -> None:
        """Free the place of a container that is not known any more, by its name or id (``disconnect --force``)."""
        network_id = self._catalogue.resolve(network).id
        stale = [c for c in self.connections() if c.network_id == network_id and reference in (c.container_name, c.container_id)]
        if not stale:
            raise NotFound(f"endpoint {reference} not found")
        for connection in stale:
            await self.disconnect(connection.container_id, network_id)

    def connections(self, container_id: str | None = None) -> list[Connection]:
        """The connections of one container, or all."""
        if container_id is not None:
            return self._places.of(container_id)
        return self._places.all()

    def name_server(self, connections: Sequence[Connection]) -> Path | None:
        """The socket of the name server that is to answer in a container on these networks, or None."""
        return self._running.name_server(connections)

    # Networks

    def mode(self, text: str) -> NetworkMode:
        """Parse a network mode; a network's id or prefix becomes its name. Raises ``NotFound`` for an unknown network."""
        mode = parse_mode(text)
        return replace(mode, name=self._catalogue.resolve(mode.name).name) if mode.kind == "network" else mode

    def name_of(self, reference: str) -> str:
        """The name of a network that a client calls by its name or id; one that is not there keeps what it is called (a container may be
        made before its network)."""
        try:
            return self._catalogue.resolve(DEFAULT_NETWORK if reference == "default" else reference).name
        except NotFound:
            return reference

    def get(self, reference: str) -> NetworkView:
        """A network by id, name or unambiguous id prefix."""
        return self._view(self._catalogue.resolve(reference))

    def list(self) -> Sequence[NetworkView]:
        """All networks, oldest first."""
        return [self._view(network) for network in sorted(self._catalogue.networks.values(), key=lambda n: n.created)]

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
            mode, hostname, domainname, connections, extra_hosts, self.host_gateways, self.dns(dns, dns_search, dns_options)
        )

    def dns(self, servers: Sequence[str] | None, search: Sequence[str] | None, options: Sequence[str] | None) -> Dns:
        """A container's resolver settings with the engine's where it says nothing."""
        config = self._config
        return Dns(tuple(servers or config.dns), tuple(search or config.dns_search), tuple(options or config.dns_options))

    @property
    def host_gateways(self) -> tuple[str, ...]:
        """The host's addresses on the default bridge (``--add-host name:host-gateway``), unless the daemon was given others."""
        default = next((n for n in self._catalogue.networks.values() if n.name == DEFAULT_NETWORK), None)
        return self._config.host_gateway_ips or tuple(subnet.gateway for subnet in (default.subnets if default is not None else ()))

    # User-defined networks

    async def create(self, wanted: NewNetwork) -> Network:
        """Create a network."""
        given = self._config.default_network_opts.get(wanted.driver, {})
        if not wanted.config_only and not wanted.config_from:
            wanted = replace(wanted, options={**given, **wanted.options})
        async with self._lock:
            network = await self._catalogue.create(wanted)
            self._events.publish("network", "create", network.id, {"name": network.name, "type": network.driver})
            return network

    async def remove(self, reference: str) -> Network:
        """Remove a user-defined network that no container uses."""
        async with self._lock:
            network = self._catalogue.resolve(reference)
            if network.predefined:
                raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
            users = [c for c in self.connections() if c.network_id == network.id]
            if users:
                named = ", ".join(f'name:"{c.container_name}" id:"{c.endpoint_id[:12]}"' for c in users)
                raise Forbidden(f"error while removing network: network {network.name} has active endpoints ({named})")
            if any(other.config_from == network.name for other in self._catalogue.networks.values()):
                raise Forbidden(f'configuration network "{network.name}" is in use')
            await self._remove(network)
            return network

    async def prune(self, wanted: Callable[[Network], bool] = lambda network: True) -> Sequence[Network]:
        """Remove the user-defined networks without containers for which ``wanted`` holds."""
        async with self._lock:
            used = {connection.network_id for connection in self.connections()}
            candidates = [n for n in self._catalogue.networks.values() if not n.predefined and not n.config_only]
            unused = [network for network in candidates if network.id not in used and wanted(network)]
            for network in unused:
                await self._remove(network)
            self._events.publish("network", "prune", "", {"reclaimed": "0"})
            return unused

    # Inside

    async def _remove(self, network: Network) -> None:
        await self._catalogue.remove(network)
        self._events.publish("network", "destroy", network.id, {"name": network.name, "type": network.driver})

    def _view(self, network: Network) -> NetworkView:
        return NetworkView(network, [c for c in self.connections() if c.network_id == network.id])

    def _announce(self, action: str, connection: Connection) -> None:
        network = self._catalogue.networks[connection.network_id]
        attributes = {"container": connection.container_id, "name": network.name, "type": network.driver}
        self._events.publish("network", action, network.id, attributes)


def _link_local(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        address = None
    if address is None or not address.is_link_local:
        raise InvalidArgument(f"invalid endpoint settings:\ninvalid link-local IP address: {text}")
    return str(address)
