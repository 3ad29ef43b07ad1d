"""Networks and connections in metadata: one JSON document each, under their ids."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from tare.networks.model import Connection, Network
from tare.store.metadata import Metadata

log = logging.getLogger(__name__)


class NetworkRecords:
    """Typed access to the records of networks and of connections (keyed by their endpoint ids)."""

    def __init__(self, metadata: Metadata) -> None:
        self._networks = metadata.networks
        self._endpoints = metadata.endpoints

    def networks(self) -> list[Network]:
        """All networks."""
        return _decoded(self._networks.all(), Network)

    def connections(self) -> list[Connection]:
        """All connections."""
        return _decoded(self._endpoints.all(), Connection)

    def put_network(self, network: Network) -> None:
        self._networks.put(network.id, network.name, msgspec.json.encode(network))

    def delete_network(self, network: Network) -> None:
        self._networks.delete(network.id)

    def put_connection(self, connection: Connection) -> None:
        self._endpoints.put(connection.endpoint_id, None, msgspec.json.encode(connection), connection.network_id)

    def delete_connection(self, connection: Connection) -> None:
        self._endpoints.delete(connection.endpoint_id)


T = TypeVar("T")


def _decoded(rows: Iterable[tuple[str, str | None, bytes]], kind: type[T]) -> list[T]:
    """The documents of a table. One that does not decode is skipped, and said: the daemon starts with the others."""
    found = []
    for _id, _name, document in rows:
        try:
            found.append(msgspec.json.decode(document, type=kind))
        except msgspec.MsgspecError as error:
            log.error("a record of a %s is unreadable and left out: %s", kind.__name__.lower(), error)
    return found
