"""Hijacked connections that cannot be handed over as a socket: a relay between the client's transport and a socket pair.

A TLS connection's keys live in this process, and a WebSocket's frames must be taken apart; the holder of the container's stdio still
gets a plain socket. Half-close travels in both directions:

    client ──► from_client ──► pair ──► holder's socket
    client ◄── from_pair  ◄── pair ◄── holder's socket

End of input from one side becomes ``write_eof`` on the other. The relay ends when the client is lost (the holder then sees the end), or
when the holder closed its socket: what the client still sends is read and dropped for a moment, so that no reset destroys the output.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, cast

from tare.http.message import Hijacked

if TYPE_CHECKING:
    from tare.http.connection import Shared

LINGER_SECONDS = 5.0


class _End(asyncio.Protocol):
    """One end of a relay; everything is decided in ``Relay``."""

    def __init__(self, relay: Relay, is_client: bool) -> None:
        self._relay = relay
        self._is_client = is_client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._is_client:
            self._relay.pair = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._is_client:
            self._relay.from_client(data)
        else:
            self._relay.from_pair(data)

    def eof_received(self) -> bool:
        if self._is_client:
            self._relay.client_ended()
        else:
            self._relay.pair_ended()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_client:
            self._relay.client_lost()
        else:
            self._relay.pair_lost()

    def pause_writing(self) -> None:
        self._relay.flow(self._is_client, False)

    def resume_writing(self) -> None:
        self._relay.flow(self._is_client, True)


class Relay:
    """A relay that changes nothing on the way. ``start`` returns the holder's socket."""

    def __init__(self, shared: Shared, client: asyncio.Transport) -> None:
        self.shared = shared
        self.client = client
        self.pair: asyncio.Transport = cast(asyncio.Transport, None)
        self._client_eof = False
        self._client_lost = False
        self._pair_lost = False
        self._pair_fd = -1

    async def start(self, rest: bytes, eof: bool) -> Hijacked:
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            theirs.setblocking(False)
            await self.shared.loop.connect_accepted_socket(lambda: _End(self, False), ours)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        self.shared.relays.add(self.client)
        # The connection's protocol still holds the client; a loss meanwhile is seen here.
        self.client.set_protocol(_End(self, True))
        if rest:
            self.from_client(rest)
        if self.client.is_closing():
            self.client_lost()
        elif eof:
            self.client_ended()
        else:
            self.client.resume_reading()
        return Hijacked(theirs)

    def flow(self, client_side: bool, go: bool) -> None:
        source = self.pair if client_side else self.client
        if source.is_closing():
            return
        if go:
            source.resume_reading()
        else:
            source.pause_reading()

    def from_client(self, data: bytes) -> None:
        if not self._pair_lost:
            self.pair.write(data)

    def client_ended(self) -> None:
        self._client_eof = True
        if self._pair_lost:
            self.client.close()
        elif not self.pair.is_closing():
            self.pair.write_eof()

    def from_pair(self, data: bytes) -> None:
        if not self._client_lost:
            self.client.write(data)

    def pair_ended(self) -> None:
        if not self._client_lost and not self.client.is_closing():
            self.client.write_eof()
        if self._client_eof:
            self.pair.close()
        elif not self.pair.is_closing():  # a holder that also stopped taking input shows as a hang-up
            self._pair_fd = self.pair.get_extra_info("socket").fileno()
            self.shared.watch.add(self._pair_fd, self.pair.abort)

    def client_lost(self) -> None:
        self._client_lost = True
        self.shared.relays.discard(self.client)
        if self.pair is not None:
            self.pair.close()

    def pair_lost(self) -> None:
        self._pair_lost = True
        if self._pair_fd >= 0:
            self.shared.watch.discard(self._pair_fd)
            self._pair_fd = -1
        if self._client_lost:
            return
        if self._client_eof:
            self.client.close()
        else:
            if not self.client.is_closing():
                self.client.resume_reading()
            self.shared.loop.call_later(LINGER_SECONDS, self.client.close)


async def relay_plain(shared: Shared, client: asyncio.Transport, rest: bytes, eof: bool) -> Hijacked:
    """Put a relay between ``client`` (reading paused) and a new socket pair."""
    return await Relay(shared, client).start(rest, eof)
