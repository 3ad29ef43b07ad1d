"""One HTTP/1.1 server connection: an asyncio protocol around the parser, and one task that serves its requests in order.

    bytes ──data_received──► parser ──► serve task ──► handler(request) ──► response ──► transport
                 ▲                                        │
                 └── paused while too much lies unread    └── drain() waits while too much lies unsent

Rules that come from Docker's clients:
- End of input never means that the client has gone: ``docker run`` without ``-i`` half-closes at once and waits for the output. Gone is:
  a reset, a failed write, or a hang-up of both directions. The last cannot be seen by reading once the end of input was met, so a
  waiting connection's descriptor is put into a small epoll set of its own (``HangupWatch``) that reports nothing but hang-ups.
- A TCP client that vanished after its FIN looks like a half-closed one; keep-alive probes turn it into a reset within a few minutes.
- Closing a socket with unread input sends a reset that can destroy the answer under way: where input may be left, the connection is
  half-closed and drained for a moment first (``_linger``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import BinaryIO, cast

from tare.http.message import (
    REASONS,
    ClientDisconnected,
    HeaderItems,
    Hijacked,
    Peer,
    Request,
    RequestError,
    Response,
    StreamResponse,
)
from tare.http.parser import ProtocolError, RequestHead, RequestParser

log = logging.getLogger("tare.http")

Handler = Callable[[Request], Awaitable[Response | None]]

READ_HIGH = 256 * 1024
READ_LOW = 64 * 1024
SEND_SIZE = 256 * 1024
YIELD_EVERY = 512 * 1024
"""A writer whose client keeps up never waits; it must still let others run."""
DRAIN_LIMIT = 256 * 1024
"""An unread body up to this size is read to keep the connection; a larger one costs the connection."""
LINGER_SECONDS = 2.0
LINGER_BYTES = 4 * 1024 * 1024


class HangupWatch:
    """Reports sockets whose peer has closed both directions, without reading them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._report)

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` once when the peer of ``fd`` has gone. ``discard`` before ``fd`` is closed."""
        if fd not in self._callbacks:
            self._callbacks[fd] = callback
            self._epoll.register(fd, 0)  # EPOLLHUP and EPOLLERR are always reported

    def discard(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _report(self) -> None:
        for fd, _ in self._epoll.poll(0):
            callback = self._callbacks.get(fd)
            self.discard(fd)
            if callback is not None:
                callback()

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._callbacks.clear()


@dataclass
class Shared:
    """What all connections of one server share."""

    handler: Handler
    loop: asyncio.AbstractEventLoop
    default_headers: bytes = b""
    """Encoded header lines, each with its CRLF, that every answer carries."""
    header_timeout: float = 60.0
    connections: set[Connection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    relays: set[asyncio.BaseTransport] = field(default_factory=set)
    watch: HangupWatch = field(init=False)
    closing: bool = False
    numbers: count[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.watch = HangupWatch(self.loop)


class Connection(asyncio.Protocol):
    """See the module's theory. Made by the server, one per accepted connection."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.gone = asyncio.Event()
        self.busy = False
        self._parser = RequestParser()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._reader: asyncio.Future[None] | None = None
        self._drainer: asyncio.Future[None] | None = None
        self._eof = self._lost = self._hijacked = self._paused = self._continue = False
        self._discard = -1
        self._sent = 0
        self._fd = -1
        self._stream: StreamResponse | None = None

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._fd = sock.fileno()
        self.shared.connections.add(self)
        task = self.shared.loop.create_task(self._serve())
        self.shared.tasks.add(task)
        task.add_done_callback(self.shared.tasks.discard)

    def data_received(self, data: bytes) -> None:
        if self._discard >= 0:
            self._discard += len(data)
            if self._discard > LINGER_BYTES:
                self._transport.abort()
            return
        self._parser.feed(data)
        if self._reader is not None:
            self._wake_reader()
        elif self._parser.buffered > READ_HIGH and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._eof = True
        self._wake_reader()
        if self._discard >= 0:
            self._transport.close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._forget()
        self.gone.set()
        self._wake_reader()
        self.resume_writing()

    def pause_writing(self) -> None:
        if self._drainer is None:
            self._drainer = self.shared.loop.create_future()

    def resume_writing(self) -> None:
        drainer, self._drainer = self._drainer, None
        if drainer is not None and not drainer.done():
            drainer.set_result(None)

    def _wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    def _forget(self) -> None:
        self.shared.connections.discard(self)
        if self._fd >= 0:
            self.shared.watch.discard(self._fd)
            self._fd = -1

    # -- reading

    async def _more(self) -> bool:
        """Wait for input; False at its end."""
        if self._eof or self._lost:
            return False
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self._reader = self.shared.loop.create_future()
        await self._reader
        return True

    async def _read_head(self, first: bool) -> RequestHead | None:
        timer: asyncio.TimerHandle | None = None
        try:
            while True:
                head = self._parser.next_head()
                if head is not None:
                    return head
                if timer is None and (first or self._parser.buffered):
                    timer = self.shared.loop.call_later(self.shared.header_timeout, self._head_timeout)
                if not await self._more():
                    if self._parser.buffered and not self._lost:
                        raise ProtocolError(400, "the request ends before its header does")
                    return None
                if self.shared.closing and not self._parser.buffered:
                    return None
        finally:
            if timer is not None:
                timer.cancel()

    def _head_timeout(self) -> None:
        if self._parser.buffered:
            self._refuse(ProtocolError(408, "timed out while reading the request header"))
        else:
            self._transport.close()

    @property
    def body_pending(self) -> bool:
        return self._parser.in_body

    async def read_body(self) -> bytes:
        """The next piece of the present request's body, ``b""`` at its end."""
        while True:
            data = self._parser.next_data()
            if data is not None:
                if self._paused and self._parser.buffered < READ_LOW:
                    self._paused = False
                    self._transport.resume_reading()
                return data
            if self._continue:
                self._continue = False
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            if not await self._more():
                if self._lost:
                    raise ClientDisconnected("client disconnected while sending the request body")
                raise RequestError(400, "unexpected EOF")

    # -- reading in a worker thread (``bulk``)

    @property
    def parser(self) -> RequestParser:
        return self._parser

    @property
    def lost(self) -> bool:
        return self._lost

    def take_buffered(self) -> bytes:
        """What has come of the body already; tells a client that waits to be asked that it may send."""
        if self._continue:
            self._continue = False
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        pieces = []
        while data := self._parser.next_data():
            pieces.append(data)
        return b"".join(pieces)

    def borrow_socket(self) -> socket.socket | None:
        """A duplicate of the connection's socket, to read from instead of the transport until ``give_back``. None with TLS."""
        sock = self._transport.get_extra_info("socket")
        if sock is None or self._lost or self._eof or self._transport.get_extra_info("sslcontext") is not None:
            return None
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()
        copy = socket.socket(fileno=os.dup(sock.fileno()))
        copy.setblocking(False)
        return copy

    def give_back(self) -> None:
        """Read by the transport again."""
        if self._paused and not self._lost and not self._eof and self._parser.buffered < READ_LOW:
            self._paused = False
            self._transport.resume_reading()

    def input_ended(self) -> None:
        """The borrowed socket's input has ended."""
        self._eof = True

    async def readable(self, sock: socket.socket) -> None:
        """Wait for input at the borrowed socket. ``ClientDisconnected`` when the connection is closed meanwhile."""
        if not self._lost:
            self._reader = self.shared.loop.create_future()
            self.shared.loop.add_reader(sock.fileno(), self._wake_reader)
            try:
                await self._reader
            finally:
                self.shared.loop.remove_reader(sock.fileno())
        if self._lost:
            raise ClientDisconnected("client disconnected while sending the request body")

    # -- writing

    def send(self, data: bytes, ignore_lost: bool = False) -> None:
        if self._lost:
            if ignore_lost:
                return
            raise ClientDisconnected("client disconnected")
        self._sent += len(data)
        self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the client has taken enough of what was sent."""
        if self._drainer is not None:
            await asyncio.shield(self._drainer)
        elif self._sent > YIELD_EVERY:
            await asyncio.sleep(0)
        else:
            return
        self._sent = 0
        if self._lost:
            raise ClientDisconnected("client disconnected")

    # -- serving

    async def _serve(self) -> None:
        first = True
        try:
            while True:
                head = await self._read_head(first)
                if head is None:
                    break
                first = False
                request = Request(head, self, f"{next(self.shared.numbers):x}")
                self.busy = True
                keep = await self._handle(request)
                if self._hijacked:
                    return
                self.busy = False
                if not keep or self.shared.closing:
                    break
            self._finish(clean=not self._parser.in_body)
        except ProtocolError as error:
            self._refuse(error)
        except ClientDisconnected:
            self._transport.abort()
        except asyncio.CancelledError:
            if not self._hijacked:
                self._transport.abort()
            raise
        except Exception:
            log.exception("connection failed")
            self._transport.abort()

    async def _handle(self, request: Request) -> bool:
        """Serve one request; True when the connection can carry another."""
        head = request.head
        self._continue = head.expect_continue and head.has_body
        self._stream = None
        response: Response | None
        try:
            response = await self.shared.handler(request)
        except RequestError as error:
            response = Response(error.status, f"{error}\n".encode(), "text/plain; charset=utf-8")
        except (ProtocolError, ClientDisconnected):
            raise
        except Exception:
            log.exception("request %s failed: %s %s", request.id, request.method, request.path)
            response = Response(500, b"internal error, request " + request.id.encode() + b"\n", "text/plain; charset=utf-8")
            if self._stream is not None or self._hijacked:
                response = None
                if self._stream is not None:  # cut the message off visibly: a clean end would be a lie
                    self._transport.abort()
        if self._hijacked:
            return False
        keep = head.keep_alive and not self.shared.closing
        if self._parser.in_body and (self._continue or (head.content_length or 0) > DRAIN_LIMIT):
            keep = False  # an unread body: not worth reading, or never asked for and so perhaps never sent
        if self._stream is not None:
            if response is not None:
                raise RuntimeError("a handler that streams must return None")
            self._stream.finish()
            keep = keep and self._stream.delimited
        else:
            if response is None:
                raise RuntimeError(f"handler of {request.method} {request.path} returned no response")
            request.response_started = True
            self._send_response(request, response, keep)
        if keep and self._parser.in_body:
            keep = await self._drop_body()
        if keep:
            await self.drain()
        return keep

    async def _drop_body(self) -> bool:
        """Read the rest of a small unread body; False when the connection must be closed instead."""
        dropped = 0
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while data := await self.read_body():
                    dropped += len(data)
                    if dropped > DRAIN_LIMIT:
                        return False
        except (TimeoutError, RequestError):
            return False
        return True

    def _send_response(self, request: Request, response: Response, keep: bool) -> None:
        status, body = response.status, response.body
        bodyless = status < 200 or status in (204, 304)
        parts = [self._head_start(status)]
        if not bodyless:
            if body:
                parts.append(b"Content-Type: %b\r\n" % response.content_type.encode("latin-1"))
            parts.append(b"Content-Length: %d\r\n" % len(body))
        _append_headers(parts, response.headers)
        parts.append(_connection_line(request.head, keep))
        if not bodyless and request.method != "HEAD":
            parts.append(body)
        self.send(b"".join(parts), ignore_lost=True)

    def _head_start(self, status: int) -> bytes:
        return b"HTTP/1.1 %d %b\r\n%bDate: %b\r\n" % (
            status,
            REASONS.get(status, "Status").encode(),
            self.shared.default_headers,
            _date(),
        )

    async def start_stream(
        self, request: Request, status: int, content_type: str, headers: HeaderItems, length: int | None = None
    ) -> StreamResponse:
        if request.response_started:
            raise RuntimeError("the response was already started")
        request.response_started = True
        request.status, request.length = status, length or 0
        chunked = request.head.version >= (1, 1) and length is None
        parts = [self._head_start(status)]
        parts.append(b"Content-Type: %b\r\n" % content_type.encode("latin-1"))
        if chunked:
            parts.append(b"Transfer-Encoding: chunked\r\n")
        elif length is not None:
            parts.append(b"Content-Length: %d\r\n" % length)
        _append_headers(parts, headers)
        delimited = chunked or length is not None
        parts.append(_connection_line(request.head, delimited and request.head.keep_alive and not self.shared.closing))
        self._stream = StreamResponse(self, chunked, request.method == "HEAD", length)
        self.send(b"".join(parts))
        await self.drain()
        return self._stream

    async def send_file(self, file: BinaryIO, offset: int, length: int) -> None:
        """Send a part of a file, without copying it through this process where the transport allows that (not with TLS)."""
        if self._lost:
            raise ClientDisconnected("client disconnected")
        try:
            await self.shared.loop.sendfile(self._transport, file, offset, length, fallback=False)
            return
        except (asyncio.SendfileNotAvailableError, RuntimeError):
            pass
        except OSError:
            raise ClientDisconnected("client disconnected while a file was sent") from None
        while length > 0 and (data := os.pread(file.fileno(), min(length, SEND_SIZE), offset)):
            self.send(data)
            await self.drain()
            offset, length = offset + len(data), length - len(data)

    # -- endings

    def _finish(self, clean: bool) -> None:
        """Close after what was sent has left; linger when the client may still be sending."""
        if self._lost:
            return
        if clean or self._eof:
            self._transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        self._discard = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.shared.loop.call_later(LINGER_SECONDS, self._transport.close)

    def _refuse(self, error: ProtocolError) -> None:
        if self._lost or self._discard >= 0:
            return
        if self._stream is not None and not self._stream.finished:
            self._transport.abort()
            return
        body = f"{error.status} {REASONS.get(error.status, 'Error')}: {error}".encode("latin-1", "replace")
        self.send(
            b"%bContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
            % (self._head_start(error.status), len(body), body)
        )
        self._finish(clean=False)

    def shut_down(self) -> None:
        """The server closes: end idle connections now, tell watchers, let handlers finish."""
        self.gone.set()
        if not self.busy and not self._hijacked:
            self._transport.close()
            self._wake_reader()

    def kill(self) -> None:
        """The grace time is over."""
        self._transport.abort()

    def watch(self) -> None:
        """Start looking for a hang-up (see the module's theory)."""
        if self._fd >= 0 and not self._lost:
            self.shared.watch.add(self._fd, self.gone.set)

    # -- peer and hijack

    @property
    def secure(self) -> bool:
        return self._transport.get_extra_info("sslcontext") is not None

    def peer(self) -> Peer:
        sock = self._transport.get_extra_info("socket")
        if sock is None:
            return Peer()
        if sock.family == socket.AF_UNIX:
            pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return Peer("@", pid, uid, gid)
        name = self._transport.get_extra_info("peername")
        return Peer(f"{name[0]}:{name[1]}" if name else "")

    def detach(self) -> tuple[asyncio.Transport, bytes]:
        """Leave HTTP with reading paused: the transport and the bytes behind the request. The caller sets a protocol of its own."""
        if self._parser.in_body:
            raise RuntimeError("hijack before the request body was read")
        if self._lost:
            raise ClientDisconnected("client disconnected")
        self._hijacked = True
        if not self._eof and not self._paused:
            self._transport.pause_reading()
        return self._transport, self._parser.take_rest()

    def leave(self) -> None:
        """The transport gets another protocol: this connection is no longer the server's business."""
        self._forget()

    @property
    def ended(self) -> bool:
        """The client has ended its input (which does not mean that it has gone)."""
        return self._eof

    async def hijack(self, request: Request, head: bytes) -> Hijacked:
        if request.response_started:
            raise RuntimeError("the response was already started")
        if self._transport.get_extra_info("sslcontext") is not None:
            from tare.http.relay import relay_plain

            transport, rest = self.detach()
            request.response_started = True
            transport.write(head)
            self.leave()
            return await relay_plain(self.shared, transport, rest, self._eof)
        transport, rest = self.detach()
        request.response_started = True
        # Everything that was written must be in the kernel before another process may write to the socket.
        transport.set_write_buffer_limits(high=0)
        transport.write(head)
        while self._drainer is not None:
            await asyncio.shield(self._drainer)
        if self._lost:
            raise ClientDisconnected("client disconnected")
        sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        os.set_inheritable(sock.fileno(), False)
        sock.setblocking(False)
        transport.abort()  # closes our descriptor; the connection lives on in the duplicate
        return Hijacked(sock, rest)


def _append_headers(parts: list[bytes], headers: HeaderItems) -> None:
    for name, value in headers:
        if "\r" in value or "\n" in value:  # a value made from a client's input must not become a header of its own
            value = value.replace("\r", " ").replace("\n", " ")
        parts.append(f"{name}: {value}\r\n".encode())


def _connection_line(head: RequestHead, keep: bool) -> bytes:
    if not keep:
        return b"Connection: close\r\n\r\n"
    return b"\r\n" if head.version == (1, 1) else b"Connection: keep-alive\r\n\r\n"


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_date_second = 0
_date_text = b""


def _date() -> bytes:
    """The Date header's value (RFC 9110 §5.6.7), made once a second, whatever the locale."""
    global _date_second, _date_text
    now = int(time.time())
    if now != _date_second:
        t = time.gmtime(now)
        text = f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year} {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT"
        _date_second, _date_text = now, text.encode()
    return _date_text
