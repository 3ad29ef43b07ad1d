"""Links between containers (``--link NAME:ALIAS``), the old way to find another container.

On a network of the user's a link is one more name for the other container, which the name server knows (``networks.names``). On the
default bridge, which has no name server, a link is lines in /etc/hosts, brought up to date when the other container starts again, and
variables that say where its exposed ports are. The other container has to run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tare.errors import InvalidArgument
from tare.networks.model import DEFAULT_NETWORK

if TYPE_CHECKING:
    from tare.containers.record import Record
    from tare.networks.model import Connection
    from tare.wire.container import HostConfig

_PORT = re.compile(r"(\d+)/(tcp|udp|sctp)")


class Link(NamedTuple):
    """The other container, as it was named, and what it is called here."""

    target: str
    alias: str


class Linked(NamedTuple):
    """A link whose container runs on the same bridge."""

    alias: str
    record: Record
    address: str


def parse_link(text: str) -> Link:
    """``name``, ``name:alias`` or dockerd's own ``/name:/parent/alias``. Raises ``InvalidArgument``."""
    parts = text.split(":")
    if not text or len(parts) > 2 or not parts[0].strip("/"):
        raise InvalidArgument(f"bad format for links: {text}" if text else "empty string specified for links")
    target = parts[0].removeprefix("/")
    alias = (parts[1] if len(parts) == 2 else target).rsplit("/", 1)[-1]
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", alias):
        raise InvalidArgument(f"bad format for links: {text}")
    return Link(target, alias)


def links_of(host: HostConfig) -> list[Link]:
    """A container's links on the default bridge."""
    return [parse_link(text) for text in host.links or ()] if host.network_mode in ("bridge", "default") else []


def address_on_bridge(connections: Sequence[Connection]) -> str:
    """Where a container is on the default bridge; empty when it is not there."""
    return next((connection.address for connection in connections if connection.network_name == DEFAULT_NETWORK), "")


def hosts(linked: Sequence[Linked]) -> list[str]:
    """Lines for /etc/hosts, in the form of ``--add-host``."""
    return [
        f"{name}:{link.address}"
        for link in linked
        for name in dict.fromkeys((link.alias, link.record.config.hostname, link.record.name))
        if name
    ]


def environment(parent: str, linked: Sequence[Linked]) -> list[str]:
    """The variables that tell ``parent`` of its links."""
    found: list[str] = []
    for link in linked:
        prefix = link.alias.upper().replace("-", "_").replace(".", "_")
        ports = sorted(
            (int(match[1]), match[2]) for port in link.record.config.exposed_ports or () if (match := _PORT.fullmatch(port)) is not None
        )
        if ports:
            number, protocol = ports[0]
            found.append(f"{prefix}_PORT={protocol}://{link.address}:{number}")
        for number, protocol in ports:
            name = f"{prefix}_PORT_{number}_{protocol.upper()}"
            found += [
                f"{name}={protocol}://{link.address}:{number}", f"{name}_ADDR={link.address}",
                f"{name}_PORT={number}", f"{name}_PROTO={protocol}",
            ]  # fmt: skip
        found.append(f"{prefix}_NAME=/{parent}/{link.alias}")
        for entry in link.record.config.env or ():
            name, equals, value = entry.partition("=")
            if equals and name not in ("HOME", "PATH"):
                found.append(f"{prefix}_ENV_{name}={value}")
    return found
