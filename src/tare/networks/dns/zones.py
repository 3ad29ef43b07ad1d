"""Who is called what in which network: the names that containers see, as tables for quick answers. Pure, standard library only.

A container is described by one document, which the daemon sends whenever something of it changes:

    {"id", "name", "networks": [{"id", "name", "internal", "names": [...], "addresses": [...], "zone": true}, ...],
     "links": {"alias": "target"}, "upstream": ["10.0.0.2"] or null (the host's), "ndots": true}

``networks`` in the order in which they are asked; ``zone`` is false for the default bridge, where no names are served. A container sees the
names of its own networks only. Several containers with one alias in a network form a service: all of their addresses are answered, each
time beginning with another.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from typing import Any

from tare.networks.dns import wire

Document = dict[str, Any]
Packed = tuple[bytes, ...]


class Network:
    """The names of one network: packed addresses by name, and names by address."""

    def __init__(self) -> None:
        self.addresses: dict[str, dict[str, Packed]] = {}
        self.names: dict[bytes, tuple[str, str]] = {}


class Zones:
    """All containers and networks. ``generation`` grows with every change, so that who keeps answers knows when they are stale."""

    def __init__(self) -> None:
        self.generation = 0
        self._containers: dict[str, Document] = {}
        self._networks: dict[str, Network] = {}
        self.turn = 0
        """Grows with every answer that may begin with another container than the last."""

    def __contains__(self, container_id: str) -> bool:
        return container_id in self._containers

    def put(self, document: Document) -> None:
        """Learn of a container, or that it changed."""
        self.forget(document["id"])
        self._containers[document["id"]] = document
        self.generation += 1
        for place in _zones(document):
            network = self._networks.setdefault(place["id"], Network())
            packed = tuple(map(pack_address, place["addresses"]))
            for name in place["names"]:
                network.addresses.setdefault(name.lower(), {})[document["id"]] = packed
            for address in packed:
                network.names[address] = (document["id"], f"{document['name']}.{place['name']}")

    def forget(self, container_id: str) -> None:
        """A container is gone. Unknown ones are no error."""
        document = self._containers.pop(container_id, None)
        if document is None:
            return
        self.generation += 1
        for place in _zones(document):
            network = self._networks[place["id"]]
            for name in {name.lower() for name in place["names"]}:
                holders = network.addresses.get(name, {})
                holders.pop(container_id, None)
                if not holders:
                    network.addresses.pop(name, None)
            for address in map(pack_address, place["addresses"]):
                if network.names.get(address, ("",))[0] == container_id:
                    del network.names[address]
            if not network.addresses and not network.names:
                del self._networks[place["id"]]

    def keep_only(self, container_ids: set[str]) -> None:
        """Forget all other containers."""
        for container_id in self._containers.keys() - container_ids:
            self.forget(container_id)

    def upstream(self, container_id: str) -> tuple[str, ...] | None:
        """The servers that a container's other questions go to: none in internal networks, None for the host's."""
        document = self._containers.get(container_id)
        if document is None or all(place["internal"] for place in document["networks"]):
            return ()
        return None if document["upstream"] is None else tuple(document["upstream"])

    def asks_only_domains(self, container_id: str) -> bool:
        """Whether the user set ``ndots``: names without a dot are then never asked upstream, as the client appends its domains."""
        document = self._containers.get(container_id)
        return bool(document and document.get("ndots"))

    def resolve(self, container_id: str, name: str) -> list[bytes] | None:
        """The packed addresses (both families) of a name as a container sees it, or None for a name that is not ours."""
        document = self._containers.get(container_id)
        if document is None:
            return None
        name = document["links"].get(name, name)
        for place in _zones(document):
            network = self._networks[place["id"]]
            holders = network.addresses.get(name)
            if holders is None and name.endswith("." + place["name"].lower()):
                holders = network.addresses.get(name[: -len(place["name"]) - 1])
            if holders is not None:
                groups = list(holders.values())
                if len(groups) > 1:
                    self.turn += 1
                    start = random.randrange(len(groups))
                    groups = groups[start:] + groups[:start]
                return [address for group in groups for address in group]
        return None

    def reverse(self, container_id: str, address: bytes) -> str:
        """The name of an address as a container sees it, or empty."""
        document = self._containers.get(container_id)
        for place in _zones(document) if document else ():
            found = self._networks[place["id"]].names.get(address)
            if found is not None:
                return found[1]
        return ""

    def answer(self, container_id: str, query: wire.Query, size: int) -> bytes | None:
        """The answer to a query about a name or address of ours, or None for what is to be asked elsewhere."""
        if query.klass != wire.IN:
            return None
        if query.type == wire.PTR:
            try:
                address = pack_address(wire.reverse_address(query.name))
            except OSError:
                return None
            name = self.reverse(container_id, address)
            return wire.answer(query, [wire.pack_name(name)], size=size) if name else None
        addresses = self.resolve(container_id, query.name)
        if addresses is None:
            return None
        length = {wire.A: 4, wire.AAAA: 16}.get(query.type, 0)
        # A name of ours has no other records; saying so keeps the question from wandering to servers that would deny the name.
        return wire.answer(query, [address for address in addresses if len(address) == length], size=size)


def _zones(document: Document) -> Iterator[dict[str, Any]]:
    return (place for place in document["networks"] if place["zone"])


def pack_address(address: str) -> bytes:
    """Network bytes of a numeric address. Raises OSError."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
