"""Large request bodies, read by worker threads: each takes the bytes from the socket into one buffer and hands them to a sink.

The event loop's way of reading costs three copies and two changes of thread for each piece. Here the transport is paused, and a thread
reads, while bytes come, from a duplicate of its socket; a client that pauses gives the thread back after a moment (``PATIENCE``), and the
event loop waits for it. So a few threads serve any number of slow clients, and a fast one costs one copy. Where there is no plain socket
(TLS) the connection reads as usual and only the sink runs in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from tare.http.message import ClientDisconnected, RequestError
from tare.http.parser import RequestParser

if TYPE_CHECKING:
    from tare.http.connection import Connection

Sink = Callable[[bytes | memoryview], None]
"""Takes a piece; the memory is not its own. Runs in the worker thread; what it raises, ``receive`` raises."""

BUFFER = 1 << 17
TURN = 16 << 20
"""Bytes after which a thread lets the next connection have its turn."""
PATIENCE = 20
"""Milliseconds that a thread waits for a client."""
_DONE, _WAIT, _TURN, _EOF = range(4)


async def receive(connection: Connection, sink: Sink, pool: Executor) -> None:
    """Give the rest of the present request's body to ``sink``. ``ClientDisconnected`` or ``RequestError`` when the client breaks off; the
    sink has then got every byte that came."""
    if not connection.body_pending:
        return
    while (
        data := connection.take_buffered()
    ):  # more may come while the sink has it: a thread that reads the socket would wait for it in vain
        await _run(pool, sink, data)
    if not connection.body_pending:
        return
    sock = connection.borrow_socket()
    if sock is None:
        await _receive_slowly(connection, sink, pool)
        return
    reader = _Reader(connection.parser, sock, sink)
    try:
        while not connection.lost:
            state = await _run(pool, reader.turn)
            if state == _DONE:
                return
            if state == _EOF:
                connection.input_ended()
                raise RequestError(400, "unexpected EOF")
            if state == _WAIT:
                await connection.readable(sock)
        raise ClientDisconnected("client disconnected while sending the request body")
    except OSError as error:
        if reader.failed is error:
            raise ClientDisconnected("client disconnected while sending the request body") from None
        raise
    finally:
        sock.close()
        connection.give_back()


async def _run(pool: Executor, function: Callable[..., int | None], *arguments: object) -> int | None:
    """Run in a thread, to its end even when the handler is cancelled: nobody else may touch parser and sink meanwhile."""
    future = asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await future
        raise


async def _receive_slowly(connection: Connection, sink: Sink, pool: Executor) -> None:
    pieces: list[bytes] = []
    held = 0
    try:
        while data := await connection.read_body():
            pieces.append(data)
            held += len(data)
            if held >= BUFFER:
                batch, pieces, held = b"".join(pieces), [], 0
                await _run(pool, sink, batch)
    finally:
        if pieces:
            await _run(pool, sink, b"".join(pieces))


class _Buffers(threading.local):
    """One for each thread, not for each client: there may be a thousand slow ones."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(BUFFER))


_buffers = _Buffers()


class _Reader:
    """What a worker thread does; one thread at a time."""

    def __init__(self, parser: RequestParser, sock: socket.socket, sink: Sink) -> None:
        self._parser = parser
        self._sock = sock
        self._sink = sink
        self.failed: OSError | None = None
        """The socket's error, to be told from the sink's."""

    def turn(self) -> int:
        """Read until the body or the client's input ends, the client pauses, or it is the next one's turn."""
        taken = 0
        self._view = _buffers.view
        while taken < TURN:
            limit = min(self._parser.unfed, BUFFER) or BUFFER
            count, paused = self._fill(limit)
            taken += count
            if count:
                self._take(count)
            if not self._parser.in_body:
                return _DONE
            if paused:
                return paused
        return _TURN

    def _fill(self, limit: int) -> tuple[int, int]:
        """Fill the buffer with up to ``limit`` bytes: how many, and why it is not full."""
        count = 0
        poll: select.poll | None = None
        while count < limit:
            try:
                got = self._sock.recv_into(self._view[count:limit])
            except BlockingIOError:
                if poll is None:
                    poll = select.poll()
                    poll.register(self._sock, select.POLLIN)
                if not poll.poll(PATIENCE):
                    return count, _WAIT
                continue
            except OSError as error:
                self.failed = error
                if count:
                    self._take(count)
                raise
            if not got:
                return count, _EOF
            count += got
            if not self._parser.unfed:  # chunked: the body may end anywhere, and what follows is not to be waited for
                break
        return count, 0

    def _take(self, count: int) -> None:
        parser = self._parser
        if parser.unfed:
            self._sink(self._view[:count])
            parser.skip(count)
            return
        parser.feed(self._view[:count])
        while data := parser.next_data():
            self._sink(data)
