"""The HTTP server: listeners, the connections they accept, and an orderly end.

    server = Server(handler)
    await server.listen("unix:///run/tare/tare.sock", group="docker")
    ...
    await server.close(timeout=15)

One server may listen on several addresses. ``close`` stops accepting, ends idle connections and watchers (``Request.disconnected``), waits
for handlers that are changing something, and only after ``timeout`` cancels what is left.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

from tare.http.connection import Connection, Handler, Shared
from tare.http.listen import Listening, listen

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 60, 15, 4


class Server:
    """See the module's text. All methods belong to one event loop."""

    def __init__(self, handler: Handler, default_headers: dict[str, str] | None = None, header_timeout: float = 60.0) -> None:
        encoded = b"".join(f"{name}: {value}\r\n".encode() for name, value in (default_headers or {}).items())
        self._shared = Shared(handler, asyncio.get_running_loop(), encoded, header_timeout)
        self._servers: list[asyncio.Server] = []
        self._listening: list[Listening] = []

    @property
    def addresses(self) -> list[str]:
        return [listening.address for listening in self._listening]

    @property
    def connection_count(self) -> int:
        return len(self._shared.connections)

    async def listen(self, address: str, group: str | None = None, context: ssl.SSLContext | None = None) -> list[str]:
        """Listen on ``address``; TLS (TCP only) when ``context`` is given. Returns the addresses with their real ports."""
        return [await self.serve(listening, context) for listening in listen(address, group, context is not None)]

    async def serve(self, listening: Listening, context: ssl.SSLContext | None = None) -> str:
        """Accept connections from a socket that is already bound."""
        shared = self._shared
        if not listening.is_tcp:
            server = await shared.loop.create_unix_server(lambda: Connection(shared), sock=listening.sock)
        elif context is None:
            server = await shared.loop.create_server(lambda: Connection(shared), sock=listening.sock)
        else:
            from tare.http.tls import TlsTransport

            server = await shared.loop.create_server(
                lambda: TlsTransport(shared.loop, lambda: Connection(shared), context), sock=listening.sock
            )
        if listening.is_tcp:  # accepted sockets inherit these
            listening.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listening.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
            listening.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
            listening.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
        self._servers.append(server)
        self._listening.append(listening)
        return listening.address

    async def close(self, timeout: float = 15.0) -> None:
        shared = self._shared
        shared.closing = True
        for listening in self._listening:
            listening.remove_file()
        for server in self._servers:
            server.close()
        for connection in list(shared.connections):
            connection.shut_down()
        # Tasks, not connections: a handler whose client has gone still has its change of state to finish.
        if shared.tasks:
            await asyncio.wait(shared.tasks, timeout=timeout)
        for connection in list(shared.connections):
            connection.kill()
        left = list(shared.tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for transport in list(shared.relays):
            transport.close()
        await asyncio.sleep(0)
        shared.watch.close()
        self._servers.clear()
        self._listening.clear()
