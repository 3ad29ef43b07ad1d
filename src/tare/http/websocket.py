"""The server's end of RFC 6455 for streams: a WebSocket whose messages are pieces of a byte stream, relayed to a plain socket.

Used by ``attach/ws``. What the client sends, in text or binary messages of any fragmentation, is input; output leaves as binary frames,
never multiplexed. A close frame ends the connection in both directions (WebSocket has no half-close). Extensions are not offered.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import struct

from tare.http.connection import Shared
from tare.http.message import Hijacked, Request, RequestError
from tare.http.relay import Relay

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MAX_FRAME = 1024 * 1024
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10


class FrameError(Exception):
    """The client broke the framing; ``code`` is the status of the close frame it gets."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame(opcode: int, payload: bytes) -> bytes:
    """One unmasked, final frame."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return struct.pack(">BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack(">BBQ", 0x80 | opcode, 127, size) + payload


def unmask(payload: bytes, key: bytes) -> bytes:
    """XOR with the repeated key, done as one big integer."""
    size = len(payload)
    mask = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")).to_bytes(size, "little")


class FrameReader:
    """Sans-io decoder of a client's frames: bytes in, (opcode, payload) out; fragments are given as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._in_message = False

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        self._buffer += data
        frames: list[tuple[int, bytes]] = []
        while (item := self._next()) is not None:
            frames.append(item)
        return frames

    def _next(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        opcode, final, size, start = first & 0x0F, first & 0x80, second & 0x7F, 2
        if first & 0x70:
            raise FrameError(1002, "reserved bits are set")
        if not second & 0x80:
            raise FrameError(1002, "client frame is not masked")
        if opcode >= 8 and (opcode > _PONG or not final or size > 125):
            raise FrameError(1002, "bad control frame")
        if _BINARY < opcode < 8:
            raise FrameError(1002, "unknown opcode")
        if opcode < 8 and (opcode == _CONTINUATION) != self._in_message:
            raise FrameError(1002, "fragments out of order")
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(buffer) < 2 + width:
                return None
            size, start = int.from_bytes(buffer[2 : 2 + width], "big"), 2 + width
        if size > MAX_FRAME:
            raise FrameError(1009, "frame too large")
        if len(buffer) < start + 4 + size:
            return None
        payload = unmask(bytes(buffer[start + 4 : start + 4 + size]), bytes(buffer[start : start + 4]))
        del buffer[: start + 4 + size]
        if opcode < 8:
            self._in_message = not final
        return opcode, payload


class _WebSocketRelay(Relay):
    def __init__(self, shared: Shared, client: asyncio.Transport) -> None:
        super().__init__(shared, client)
        self._frames = FrameReader()
        self._closed = False

    def from_client(self, data: bytes) -> None:
        if self._closed:
            return
        try:
            for opcode, payload in self._frames.feed(data):
                if opcode == _CLOSE:
                    self._close(payload[:2])
                    return
                if opcode == _PING:
                    self.client.write(frame(_PONG, payload))
                elif opcode != _PONG and payload:
                    super().from_client(payload)
        except FrameError as error:
            self._close(struct.pack(">H", error.code))

    def client_ended(self) -> None:
        self._close(b"")

    def from_pair(self, data: bytes) -> None:
        if not self._closed:
            super().from_pair(frame(_BINARY, data))

    def pair_ended(self) -> None:
        self._close(struct.pack(">H", 1000))

    def pair_lost(self) -> None:
        self._close(struct.pack(">H", 1000))
        super().pair_lost()

    def _close(self, status: bytes) -> None:
        if self._closed:
            return
        self._closed = True
        if not self.client.is_closing():
            self.client.write(frame(_CLOSE, status))
            self.client.write_eof()
            self.shared.loop.call_later(1.0, self.client.close)
        if not self.pair.is_closing():
            self.pair.close()


async def accept(request: Request) -> Hijacked:
    """Answer the opening handshake and return the plain socket of the relay.

    A request that a browser sent from another site is refused: it would let any page that its user visits drive the engine.
    """
    headers = request.headers
    key = headers.get("sec-websocket-key", "")
    try:
        valid = len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        valid = False
    if request.upgrade != "websocket" or request.method != "GET" or not valid:
        raise RequestError(400, "not a WebSocket handshake")
    if headers.get("sec-websocket-version") != "13":
        raise RequestError(426, "unsupported WebSocket version, 13 is needed")
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].rstrip("/") != headers.get("host"):
        raise RequestError(403, "WebSocket request from another origin")
    token = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest())
    transport, rest = request.connection.detach()
    request.response_started = True
    transport.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + token + b"\r\n\r\n"
    )
    request.connection.leave()
    return await _WebSocketRelay(request.connection.shared, transport).start(rest, request.connection.ended)
