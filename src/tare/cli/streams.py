"""Carrying bytes between a hijacked connection and this process's standard streams.

Without a terminal the daemon multiplexes: frames of 8 bytes header (stream, three zero bytes, big-endian length) and
payload. `Demultiplexer` reads them out of large buffers and writes slices, many at a time, so neither long nor short
frames cost a copy in Python.

`carry` is one poll loop for both directions. stdin is read only when what was read before has been sent, so a
container that does not read holds the producer back instead of filling memory; sending never blocks, so a container
that writes while we send cannot lock us up. The end of stdin is passed on as a half-close, after which output goes
on. With a terminal, the detach keys are recognised here: the connection is then simply given up, and the container
goes on.
"""

from __future__ import annotations

import os
import select

from tare.cli.failures import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable

_BUFFER = 1 << 20
_STDIN = 1 << 16
_VECTORS = 512
DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"


class OutputClosed(Exception):
    """Nobody reads our standard output or error any more."""


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything, also to a descriptor that somebody made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            _wait_writable(fd)
        except (BrokenPipeError, ConnectionResetError):
            raise OutputClosed from None


def _wait_writable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


def _write_vector(fd: int, views: list[memoryview]) -> None:
    if len(views) == 1:
        write_all(fd, views[0])
        return
    total = sum(map(len, views))
    try:
        written = os.writev(fd, views)
    except BlockingIOError:
        written = 0
    except (BrokenPipeError, ConnectionResetError):
        raise OutputClosed from None
    if written < total:
        write_all(fd, memoryview(b"".join(views))[written:])


class Demultiplexer:
    """Feeds on pieces of a multiplexed stream, writes payloads to the descriptors of stdout and stderr."""

    __slots__ = ("_fds", "_head", "_left", "_target")

    def __init__(self, stdout: int = 1, stderr: int = 2) -> None:
        self._fds = (stdout, stdout, stderr, stderr)
        self._head = b""
        self._left = 0
        self._target = stdout

    def feed(self, data: memoryview) -> None:
        """Write out all payload in ``data``; a frame may go on in the next piece. Raises CliError for what is no frame."""
        position, end = 0, len(data)
        views: list[memoryview] = []
        fd, left, fds = self._target, self._left, self._fds
        while position < end:
            if not left:
                if self._head or end - position < 8:
                    self._left = 0
                    position = self._partial_head(data, position)
                    left = self._left
                else:
                    kind = data[position]
                    if kind > 3:
                        raise CliError(f"unrecognized stream {kind} in the daemon's output")
                    self._target = fds[kind]
                    left = int.from_bytes(data[position + 4 : position + 8], "big")
                    position += 8
                continue
            if self._target != fd or len(views) >= _VECTORS:
                if views:
                    _write_vector(fd, views)
                    views = []
                fd = self._target
            stop = position + left
            if stop <= end:
                views.append(data[position:stop])
                position, left = stop, 0
            else:
                views.append(data[position:end])
                position, left = end, stop - end
        self._left = left
        if views:
            _write_vector(fd, views)

    def _partial_head(self, data: memoryview, position: int) -> int:
        """Collect a header that came in pieces; the position after what was used of it."""
        piece = bytes(data[position : position + 8 - len(self._head)])
        head = self._head + piece
        if len(head) < 8:
            self._head = head
        else:
            self._head = b""
            if head[0] > 3:
                raise CliError(f"unrecognized stream {head[0]} in the daemon's output")
            self._target, self._left = self._fds[head[0]], int.from_bytes(head[4:], "big")
        return position + len(piece)


class Plain:
    """The raw stream of a terminal: everything goes to stdout."""

    def feed(self, data: memoryview) -> None:
        write_all(1, data)


def sink(*, multiplexed: bool) -> Callable[[memoryview], None]:
    return Demultiplexer().feed if multiplexed else Plain().feed


def parse_detach_keys(text: str) -> bytes:
    """The byte sequence of ``ctrl-p,ctrl-q`` or ``a,b``. Raises CliError."""
    keys = bytearray()
    for key in (text or DEFAULT_DETACH_KEYS).split(","):
        if len(key) == 1:
            keys += key.encode("utf-8")
        elif len(key) == 6 and key.startswith("ctrl-") and (key[5].islower() or key[5] in "@[\\]^_"):
            keys.append(ord(key[5].upper()) & 0x1F)
        else:
            raise CliError(f"invalid detach keys ({text}): Unknown character: '{key}'")
    return bytes(keys)


class Escape:
    """Finds the detach keys in what is typed. Bytes that began the sequence but did not end it are passed on."""

    __slots__ = ("_keys", "_matched")

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def scan(self, data: bytes) -> tuple[bytes, bool]:
        """What to send of ``data`` and whether the keys were typed."""
        out = bytearray()
        for byte in data:
            if byte == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    return bytes(out), True
                continue
            out += self._keys[: self._matched]
            self._matched = 0
            if byte == self._keys[0] and len(self._keys) > 1:
                self._matched = 1
            else:
                out.append(byte)
        return bytes(out), False


class Carrier:
    """One hijacked connection and the loop that serves it."""

    def __init__(self, sock: socket, left: bytes, *, multiplexed: bool, stdin: int | None, escape: bytes = b"") -> None:
        self._sock = sock
        self._feed = sink(multiplexed=multiplexed)
        self._stdin = stdin
        self._escape = Escape(escape) if escape else None
        self._pending = memoryview(b"")
        self._left = left
        self._sending = True
        self.detached = False

    def run(self) -> None:
        """Until the daemon ends the stream, the user detaches, or our own output is closed."""
        if self._left:
            self._feed(memoryview(self._left))
        if self._stdin is None:
            self._half_close()
            self._drain()
            return
        self._sock.setblocking(False)
        poll = select.poll()
        buffer = memoryview(bytearray(_BUFFER))
        sock_fd = self._sock.fileno()
        while True:
            poll.register(sock_fd, select.POLLIN | (select.POLLOUT if self._pending else 0))
            if self._sending and not self._pending:
                poll.register(self._stdin, select.POLLIN)
            else:
                _forget(poll, self._stdin)
            for fd, event in poll.poll():
                if fd == sock_fd:
                    if event & select.POLLOUT:
                        self._send()
                    if event & ~select.POLLOUT and not self._receive(buffer):
                        return
                elif not self._read_stdin():
                    self.detached = True
                    return

    def _drain(self) -> None:
        """Output only: plain blocking reads."""
        self._sock.setblocking(True)
        buffer = memoryview(bytearray(_BUFFER))
        while self._receive(buffer):
            pass

    def _receive(self, buffer: memoryview) -> bool:
        try:
            count = self._sock.recv_into(buffer)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        if count:
            self._feed(buffer[:count])
        return count > 0

    def _read_stdin(self) -> bool:
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, _STDIN)
        except BlockingIOError:
            return True
        except OSError:
            data = b""  # the terminal hung up
        if not data:
            self._sending = False
            self._half_close()
            return True
        if self._escape is not None:
            data, typed = self._escape.scan(data)
            if typed:
                return False
        self._pending = memoryview(data)
        self._send()
        return True

    def _send(self) -> None:
        try:
            while self._pending:
                self._pending = self._pending[self._sock.send(self._pending) :]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._pending = memoryview(b"")
            self._sending = False  # the container no longer reads; its output may still come

    def _half_close(self) -> None:
        try:
            self._sock.shutdown(1)
        except OSError:
            pass


def _forget(poll: select.poll, fd: int) -> None:
    try:
        poll.unregister(fd)
    except KeyError:
        pass
