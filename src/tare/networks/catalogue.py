"""The networks that there are: found by name or id, made, brought to work in the kernel, removed.

``networks`` holds every record; ``attached`` those with addresses and links of ours, at work. Not thread-safe: the service's lock keeps one
caller at a time, and what blocks is run in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace

from tare.config import EngineConfig
from tare.errors import Conflict, InvalidArgument, NotFound, ResourceExhausted, TareError, Unsupported
from tare.linux.netlink import Route
from tare.linux.nft import Nftables
from tare.networks import bridge as kernel
from tare.networks import options, parent
from tare.networks.attached import AttachedNetwork
from tare.networks.creation import NewNetwork, check_network, check_request, configured, mtu
from tare.networks.model import DEFAULT_NETWORK, Network
from tare.networks.placement import place_default_bridge, place_subnets
from tare.networks.records import NetworkRecords

log = logging.getLogger(__name__)


class Catalogue:
    """The networks of one engine."""

    def __init__(self, config: EngineConfig, records: NetworkRecords) -> None:
        self._config = config
        self._records = records
        self.networks: dict[str, Network] = {}
        self.attached: dict[str, AttachedNetwork] = {}
        self.warnings: list[str] = []
        self._nft: Nftables | None = None
        self._failure: TareError | None = None

    def warn(self, *warnings: str) -> None:
        """Note what does not work on this machine, each once."""
        for warning in warnings:
            if warning not in self.warnings:
                self.warnings.append(warning)
                log.warning("%s", warning)

    # Life

    async def start(self) -> None:
        """Load the records; make the predefined networks; choose the default bridge's name and subnet. Links are there afterwards, rules
        not yet (``bring_up``)."""
        self.networks = {network.id: network for network in self._records.networks()}
        self._ensure_predefined()
        if self._config.bridge == "none":
            # The network does not exist in this run; its record (and id) stays for the next.
            self.networks = {key: network for key, network in self.networks.items() if network.name != DEFAULT_NETWORK}
        try:
            await asyncio.to_thread(self._open_kernel)
        except (OSError, ResourceExhausted) as error:
            reason = error.strerror or error if isinstance(error, OSError) else error
            self._failure = Unsupported(f"bridge networks are not available: {reason}")
            self.warn(str(self._failure))

    def _ensure_predefined(self) -> None:
        known = {network.name for network in self.networks.values()}
        for name, driver in (("bridge", "bridge"), ("host", "host"), ("none", "null")):
            if name not in known:
                network = Network(id=secrets.token_hex(32), name=name, driver=driver, created=time.time_ns())
                self._records.put_network(network)
                self.networks[network.id] = network

    def _open_kernel(self) -> None:
        """Open nftables and place the default bridge. Blocking."""
        self._nft = self._nft or Nftables()
        for network in list(self.networks.values()):
            if network.driver in ("host", "null") or network.config_only:
                continue
            if network.name != DEFAULT_NETWORK:
                self.attached[network.id] = AttachedNetwork(network, self._nft)
                continue
            others = [n for n in self.networks.values() if n.name != DEFAULT_NETWORK]
            with kernel.choosing():
                network, claim = place_default_bridge(self._config, network, others)
                self.networks[network.id] = network
                attached = self.attached[network.id] = AttachedNetwork(network, self._nft, claim)
                attached.bring_up_link()

    async def bring_up(self, attached: AttachedNetwork) -> None:
        """Create or repair; a network that cannot be is a warning here, and an error where it is used."""
        self._records.put_network(attached.network)
        try:
            self.warn(*await asyncio.to_thread(attached.bring_up))
        except (OSError, InvalidArgument) as error:
            reason = error.strerror or error if isinstance(error, OSError) else error
            attached.failure = f"network {attached.network.name} is not available: {reason}"
            self.warn(attached.failure)
        else:
            attached.failure = ""

    async def remove_idle(self) -> None:
        """Remove bridge, rules and claim of every network on which no container is. ``start`` makes them again."""
        for network_id, attached in list(self.attached.items()):
            if not attached.connections:
                await asyncio.to_thread(attached.take_down)
                del self.attached[network_id]

    def close(self) -> None:
        """Let go of claims and of the kernel; what is there stays."""
        for attached in self.attached.values():
            if attached.claim is not None:
                attached.claim.release(forget=False)
        self.attached.clear()
        if self._nft is not None:
            self._nft.close()
            self._nft = None

    # Finding

    def resolve(self, reference: str) -> Network:
        """A network by id, name or unambiguous id prefix."""
        named = next((n for n in self.networks.values() if n.name == reference), None)
        found = self.networks.get(reference) or named
        if found is not None:
            return found
        prefixed = [n for n in self.networks.values() if reference and n.id.startswith(reference)]
        if len(prefixed) > 1:
            raise InvalidArgument(f"network {reference} is ambiguous ({len(prefixed)} matches found on name)")
        if not prefixed:
            raise NotFound(f"network {reference} not found")
        return prefixed[0]

    def require(self, network: Network) -> AttachedNetwork:
        """A network that containers can be connected to. Raises Unsupported with the reason when this machine cannot."""
        self._require_kernel()
        attached = self.attached[network.id]
        if attached.failure:
            raise Unsupported(attached.failure)
        return attached

    def _require_kernel(self) -> Nftables:
        if self._failure is not None:
            raise self._failure
        assert self._nft is not None, "start() comes first"
        return self._nft

    # Making and removing

    async def create(self, wanted: NewNetwork) -> Network:
        """Make a network: link and rules, then the record. On failure nothing is left."""
        if wanted.config_from:
            wanted = configured(wanted, self.resolve(wanted.config_from))
        check_request(wanted)
        if any(network.name == wanted.name for network in self.networks.values()):
            raise Conflict(f"network with name {wanted.name} already exists")
        network = self._drafted(wanted)
        if network.config_only:
            self._records.put_network(network)
            self.networks[network.id] = network
            return network
        check_network(network)
        attached = await asyncio.to_thread(self._place, network, wanted)
        network = attached.network
        try:
            self.warn(*await asyncio.to_thread(attached.bring_up))
            self._records.put_network(network)
        except BaseException as error:
            await asyncio.to_thread(attached.take_down)
            if isinstance(error, OSError):
                raise Unsupported(f"cannot create network {network.name}: {error.strerror or error}") from None
            raise
        self.networks[network.id] = network
        self.attached[network.id] = attached
        return network

    def _drafted(self, wanted: NewNetwork) -> Network:
        network_id = secrets.token_hex(32)
        network = Network(
            id=network_id,
            name=wanted.name,
            driver="null" if wanted.config_only else wanted.driver,
            created=time.time_ns(),
            subnets=tuple(wanted.subnets) if wanted.config_only else (),
            mtu=mtu(wanted.options, self._config.mtu),
            internal=wanted.internal,
            attachable=wanted.attachable,
            ipam_options=wanted.ipam_options,
            options=dict(wanted.options),
            labels=dict(wanted.labels),
            ipv4=wanted.ipv4,
            ipv6=wanted.ipv6,
            config_only=wanted.config_only,
            config_from=wanted.config_from,
        )
        if network.config_only:
            return network
        if network.driver == "bridge":
            return replace(network, bridge=wanted.options.get(options.BRIDGE_NAME) or f"br-{network_id[:12]}")
        return replace(network, parent=wanted.options.get(parent.PARENT_OPTION) or parent.own_parent(network_id))

    def _place(self, network: Network, wanted: NewNetwork) -> AttachedNetwork:
        """Choose or check the subnets of a new network and make its link. Blocking."""
        nft = self._require_kernel()
        others = [n for n in self.networks.values() if n.id != network.id]
        if network.driver != "bridge":
            network = replace(network, own_bridge=parent.is_missing(network))
            parent.check(network)
        with kernel.choosing(), Route() as route:
            if network.bridge and route.link(network.bridge) is not None:
                raise Conflict(f"cannot create network {network.id} ({network.bridge}): {_occupied(network, others)}")
            subnets = place_subnets(route, self._config, wanted, others, network.bridge)
            attached = AttachedNetwork(replace(network, subnets=subnets), nft)
            try:
                attached.bring_up_link()
            except OSError as error:
                kernel.take_down(route, network.bridge)
                raise Unsupported(f"cannot create network {network.name}: {error.strerror or error}") from None
            return attached

    async def remove(self, network: Network) -> None:
        """Take a network away that no container uses."""
        attached = self.attached.pop(network.id, None)
        self._records.delete_network(network)
        del self.networks[network.id]
        if attached is not None:
            await asyncio.to_thread(attached.take_down)


def _occupied(network: Network, others: Sequence[Network]) -> str:
    for other in others:
        if other.bridge == network.bridge:
            return f"conflicts with network {other.id} ({other.bridge}): networks have same bridge name"
    return "the link exists already"
