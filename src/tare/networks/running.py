"""The containers that run, as far as their networks are concerned: their links, and what the name server knows of them.

A task makes its links itself when it starts; what comes later (a network joined or left, a link that somebody deleted, a limit) is done
from here. The name server is told of every change before it can be asked about it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tare.errors import Unsupported
from tare.networks import bandwidth, names
from tare.networks import bridge as kernel
from tare.networks.dns.client import NameServer
from tare.networks.gateway import gateways
from tare.networks.live import Namespace
from tare.networks.model import Connection

log = logging.getLogger(__name__)

Connections = Sequence[Connection]


class Running:
    """Links and names of running containers. ``warn`` takes what an administrator should read."""

    def __init__(self, exec_root: Path, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._name_server = NameServer(exec_root)
        self._pids: dict[str, int] = {}
        self._leaving: set[str] = set()
        """Endpoints whose links are being taken away."""

    def close(self) -> None:
        self._name_server.close()

    # Names

    def name_server(self, connections: Connections) -> Path | None:
        """The socket of the name server that is to answer in a container on these networks, or None."""
        return self._name_server.path if names.served(connections) else None

    def tell(self, container_id: str, connections: Connections, *, start: bool = True) -> None:
        """Tell the name server what changed. ``start``: it is needed from now on."""
        if not names.served(connections):
            self._name_server.forget(container_id)
            return
        document = names.document(connections)
        if not start:
            self._name_server.learn(container_id, document)
            return
        try:
            self._name_server.put(container_id, document)
        except OSError as error:
            self._name_server.forget(container_id)
            raise Unsupported(f"the name server cannot be started: {error.strerror or error}") from None

    async def restore(self, active: Mapping[str, int]) -> None:
        """After a restart of the daemon: these containers run, with these inits."""
        self._pids = {container_id: pid for container_id, pid in active.items() if pid}
        try:
            await self._name_server.restore(self._pids)
        except OSError as error:
            self._warn(f"containers have no name server: {error.strerror or error}")

    # Links

    def started(self, container_id: str, pid: int, connections: Connections) -> None:
        """The container's task runs: finish what needs its links to exist. Quick."""
        self._pids[container_id] = pid
        self._name_server.running(container_id, pid)
        links = [c.host_link for c in connections if c.ports and c.host_link]
        try:
            if links and kernel.filters_bridged():
                kernel.allow_hairpin(links)
        except OSError as error:
            self._warn(f"container {container_id[:12]} does not reach its own published ports: {error.strerror or error}")
        try:
            for connection in connections:
                if connection.bandwidth and connection.kind == "veth":
                    bandwidth.apply(connection, pid)
        except OSError as error:
            self._warn(f"bandwidth limits do not work on this machine: {error.strerror or error}")

    def ended(self, container_id: str) -> None:
        """The container does not run any more. (One that has left its last network may, and may join another.)"""
        self._pids.pop(container_id, None)

    async def plug(self, connection: Connection, connections: Connections) -> None:
        """Give a container the link of a connection that was just made. Raises OSError, and has left nothing then."""
        container_id = connection.container_id
        pid = self._pids.get(container_id, 0)
        if not pid:
            raise ProcessLookupError(errno.ESRCH, "the container does not run", container_id)
        linked = [c for c in connections if c.host_link]

        def put_in() -> None:
            with Namespace(pid) as namespace:
                namespace.plug(connection)
                namespace.route(linked, gateways(linked))

        if connection.host_link:
            await asyncio.to_thread(put_in)
        self.started(container_id, pid, connections)
        if connection.named and sum(c.named for c in connections) == 1:
            await self._name_server.serve(container_id, pid)

    @asynccontextmanager
    async def unplugged(self, connection: Connection, rest: Connections) -> AsyncIterator[None]:
        """Take the link of a connection away; its other networks give the default route from now on. Until the body has made the connection
        forgotten, its link is not missed."""
        pid = self._pids.get(connection.container_id, 0)
        linked = [c for c in rest if c.host_link]

        def take_out() -> None:
            with Namespace(pid) as namespace:
                namespace.unplug(connection)
                namespace.route(linked, gateways(linked))

        self._leaving.add(connection.endpoint_id)
        try:
            if connection.host_link and pid:
                try:
                    await asyncio.to_thread(take_out)
                except OSError as error:
                    where = f"{connection.interface} of container {connection.container_id[:12]}"
                    log.warning("link %s: %s", where, error.strerror or error)
            yield
        finally:
            self._leaving.discard(connection.endpoint_id)

    async def repair(self, connections_of: Callable[[str], Connections], only: Collection[str] | None = None) -> None:
        """Make links again that somebody deleted, and put veths back on their bridges. ``only`` these containers, or all."""
        for container_id, pid in list(self._pids.items()):
            if only is not None and container_id not in only:
                continue
            connections = [c for c in connections_of(container_id) if c.endpoint_id not in self._leaving]
            try:
                await asyncio.to_thread(_put_right, pid, [c for c in connections if c.host_link])
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ESRCH) and error.filename == f"/proc/{pid}/ns/net":
                    continue  # it has just ended
                self._warn(f"the network of container {container_id[:12]} cannot be put right: {error.strerror or error}")
            self.started(container_id, pid, connections)


def _put_right(pid: int, connections: Connections) -> None:
    if connections:
        with Namespace(pid) as namespace:
            namespace.repair(connections, gateways(connections))
