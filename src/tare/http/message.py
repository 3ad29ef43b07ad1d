"""Requests and responses as handlers see them: no Docker, no sockets (those are the connection's).

A handler is ``async def handler(request) -> Response | None``. It answers in one of three ways:

- returns a ``Response``: status, headers and a body that is complete;
- calls ``await request.stream(...)``, writes pieces, returns None: the head is sent at once, the end is marked when the handler returns,
  and a handler that raises leaves the message visibly cut off;
- calls ``await request.hijack(head)`` and returns None: the connection leaves HTTP.

A handler always runs to its end, also when its client has gone: a half-done change of state is worse than an unread answer. Only what
merely watches (events, logs, wait) opts in with ``request.disconnected()`` or ``async with request.until_disconnected()``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import parse_qsl, unquote

from tare.http.parser import Headers, ProtocolError, RequestHead

if TYPE_CHECKING:
    from tare.http.connection import Connection

DEFAULT_MAX_BODY = 16 * 1024 * 1024
BODY_TIMEOUT = 120.0
"""Seconds without a byte after which ``Request.read`` gives up; streamed bodies may stall as long as they like."""

REASONS = {
    100: "Continue",
    101: "Switching Protocols",
    200: "OK",
    201: "Created",
    202: "Accepted",
    204: "No Content",
    206: "Partial Content",
    301: "Moved Permanently",
    302: "Found",
    304: "Not Modified",
    307: "Temporary Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    413: "Request Entity Too Large",
    415: "Unsupported Media Type",
    416: "Requested Range Not Satisfiable",
    417: "Expectation Failed",
    426: "Upgrade Required",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
    507: "Insufficient Storage",
}

HeaderItems = Iterable[tuple[str, str]]


class ClientDisconnected(ConnectionError):
    """The client has gone: nothing more can be read from it or told to it."""


class RequestError(Exception):
    """The request cannot be taken; ``status`` is 400 (malformed), 408 (body stalled), 413 (body too large) and the like."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Response:
    """A complete answer. 1xx, 204 and 304 never carry a body."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: HeaderItems = ()


class Hijacked(NamedTuple):
    """A connection that has left HTTP.

    ``sock`` belongs to the caller: non-blocking, nobody else reads or writes it, fit to be sent to another process. ``rest`` are the
    bytes that the client sent behind its request; they precede whatever ``sock`` gives.
    """

    sock: socket.socket
    rest: bytes = b""


class Query(dict[str, str]):
    """Query parameters; of a repeated name the first value counts, as in Go. ``all`` gives every one."""

    def __init__(self, raw: str) -> None:
        super().__init__()
        self._pairs = parse_qsl(raw, keep_blank_values=True, max_num_fields=4096) if raw else []
        for name, value in self._pairs:
            self.setdefault(name, value)

    def all(self, name: str) -> list[str]:
        """Every value of a repeated parameter, in order."""
        return [value for key, value in self._pairs if key == name]


@dataclass(slots=True, frozen=True)
class Peer:
    """Who is at the other end: ids for a unix socket, an address for TCP."""

    address: str = ""
    pid: int | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass
class Request:
    """One request. ``path`` is percent-decoded exactly once; ``params`` are set by the router."""

    head: RequestHead
    connection: Connection
    id: str
    path: str = ""
    raw_query: str = ""
    params: dict[str, str] = field(default_factory=dict)
    route: str = ""
    """Pattern of the route that answers, set by the face; empty when none does."""
    max_body: int = DEFAULT_MAX_BODY
    response_started: bool = False
    status: int = 0
    """Of a streamed answer, once that has begun."""
    length: int = 0
    """Bytes that a streamed answer announced."""
    caller: object = None
    """Who asks, as the face found out."""

    def __post_init__(self) -> None:
        target = self.head.target
        if not target.startswith("/"):
            scheme, separator, rest = target.partition("://")
            if separator and scheme.lower() in ("http", "https"):  # absolute form, RFC 9112 §3.2.2
                slash = rest.find("/")
                target = rest[slash:] if slash >= 0 else "/"
            elif target != "*":
                raise ProtocolError(400, "malformed request target")
        path, _, self.raw_query = target.partition("?")
        self.path = unquote(path.encode("latin-1").decode("utf-8", "replace")) if "%" in path else path

    @property
    def method(self) -> str:
        return self.head.method

    @property
    def headers(self) -> Headers:
        return self.head.headers

    @cached_property
    def query(self) -> Query:
        try:
            return Query(self.raw_query)
        except ValueError:
            raise RequestError(400, "too many query parameters") from None

    @property
    def upgrade(self) -> str | None:
        """The protocol that the client wants to change to (``tcp``, ``h2c``, ``websocket``), lower case, or None."""
        if "upgrade" not in self.headers or "upgrade" not in self.headers.tokens("connection"):
            return None
        return self.headers["upgrade"].lower()

    @cached_property
    def peer(self) -> Peer:
        return self.connection.peer()

    @property
    def secure(self) -> bool:
        """It came through TLS."""
        return self.connection.secure

    # -- body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, unbounded in total; reading is paused while the consumer is busy."""
        while data := await self.connection.read_body():
            yield data

    async def receive(self, sink: Callable[[bytes | memoryview], None], pool: Executor) -> None:
        """Give the body to ``sink`` in worker threads, fast and in any size. When it raises, the sink has got all bytes that came."""
        from tare.http.bulk import receive

        await receive(self.connection, sink, pool)

    async def read(self, limit: int | None = None) -> bytes:
        """The whole body, at most ``limit`` bytes (default: the route's ``max_body``)."""
        limit = self.max_body if limit is None else limit
        if (self.head.content_length or 0) > limit:
            raise RequestError(413, "request body too large")
        if not self.connection.body_pending:
            return b""
        pieces: list[bytes] = []
        total = 0
        while True:
            try:
                async with asyncio.timeout(BODY_TIMEOUT):
                    data = await self.connection.read_body()
            except TimeoutError:
                raise RequestError(408, "timed out while reading the request body") from None
            if not data:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            total += len(data)
            if total > limit:
                raise RequestError(413, "request body too large")
            pieces.append(data)

    # -- answer

    async def stream(
        self, status: int = 200, content_type: str = "application/json", headers: HeaderItems = (), length: int | None = None
    ) -> StreamResponse:
        """Send the head now and return the stream for the body (of ``length`` bytes, else chunked; until close for HTTP/1.0)."""
        return await self.connection.start_stream(self, status, content_type, headers, length)

    async def hijack(self, head: bytes) -> Hijacked:
        """Send ``head`` as it is and take the connection out of HTTP. The body must have been read."""
        return await self.connection.hijack(self, head)

    # -- the client's presence

    @property
    def gone(self) -> bool:
        return self.connection.gone.is_set()

    async def disconnected(self) -> None:
        """Return when the client has gone or the server shuts down. A half-closed client has not gone."""
        self.connection.watch()
        await self.connection.gone.wait()

    @contextlib.asynccontextmanager
    async def until_disconnected(self) -> AsyncIterator[None]:
        """Run a block that ends with ``ClientDisconnected`` as soon as the client has gone (or the server shuts down)."""
        task = asyncio.current_task()
        assert task is not None
        state = "open"

        def fire(watcher: asyncio.Task[None]) -> None:
            nonlocal state
            if state == "open" and not watcher.cancelled():
                state = "fired"
                task.cancel()

        watcher = asyncio.create_task(self.disconnected())
        watcher.add_done_callback(fire)
        try:
            yield
        except asyncio.CancelledError:
            if state == "fired" and task.uncancel() == 0:
                raise ClientDisconnected("client disconnected") from None
            raise
        finally:
            if state == "open":
                state = "closed"
            watcher.cancel()


class StreamResponse:
    """The body of an answer under way. ``write`` waits while the client reads slowly and raises ``ClientDisconnected`` when it has gone."""

    __slots__ = ("_chunked", "_connection", "_left", "_mute", "finished")

    def __init__(self, connection: Connection, chunked: bool, mute: bool, length: int | None = None) -> None:
        self._connection = connection
        self._chunked = chunked
        self._left = length
        self._mute = mute  # HEAD
        self.finished = False

    async def write(self, data: bytes) -> None:
        self.put(data)
        await self._connection.drain()

    def put(self, data: bytes) -> None:
        """As ``write``, but without waiting: for little that goes beside what is written."""
        if data and not self._mute:
            if self._left is not None:
                self._left -= len(data)
            self._connection.send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def write_file(self, file: BinaryIO, offset: int, length: int) -> None:
        """Send a part of a file; only in a body whose length was told."""
        if self._left is None:
            raise RuntimeError("a file needs a body of known length")
        if not self._mute:
            await self._connection.send_file(file, offset, length)
            self._left -= length

    @property
    def delimited(self) -> bool:
        """The client can tell the end of the body without the connection being closed."""
        return self._chunked or self._mute or self._left == 0

    def finish(self) -> None:
        """Mark the end of the body. The server calls it when the handler returns."""
        if not self.finished:
            self.finished = True
            if self._chunked and not self._mute:
                self._connection.send(b"0\r\n\r\n", ignore_lost=True)
