"""The wire to the daemon: HTTP/1.1 over unix and TCP sockets, streams, and connections that are taken over.

Theory. ``http.client`` costs 23 ms to import and can neither hand out left-over bytes after ``101`` nor half-close;
the little that a client of the Engine API needs is less code than working round that. A `Client` holds an address and
the idle connections to it. A `Response` is either read to its end, which gives its connection back, or closed, which
ends the connection. A hijacked connection leaves HTTP for good.

Version negotiation costs no round trip of its own: requests carry our version, and a daemon that is older refuses
them with 400 and names its own version in the ``Api-Version`` header; the request is then sent again with that.
Nothing has been executed in that case.

``_socket`` is the C half of the ``socket`` module: the same objects without the 4 ms for enumerations and file
wrappers nobody uses here.
"""

from __future__ import annotations

import _socket

from tare.cli.documents import decode, encode
from tare.cli.failures import CliError, DaemonError, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

API_VERSION = "1.51"
READ_SIZE = 1 << 18
_HEADER_LIMIT = 1 << 20
_UNRESERVED = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/:,")


def quote(text: str, *, slash: bool = True) -> str:
    """Percent-encode for a path or a query."""
    data = text.encode("utf-8", "surrogateescape")
    return "".join(chr(b) if b in _UNRESERVED and (slash or b != 0x2F) else f"%{b:02X}" for b in data)


def query_string(query: Mapping[str, object]) -> str:
    """``a=b&c=1`` without the entries that are None or empty text; True is 1 and False is 0, a list repeats its name."""
    parts = []
    for key, values in query.items():
        for value in values if isinstance(values, list) else (values,):
            if value is None or value == "":
                continue
            parts.append(f"{key}={quote(str(int(value)) if isinstance(value, bool) else str(value))}")
    return "&".join(parts)


def version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


class Broken(Exception):
    """The connection ended where an answer was due."""


def open_socket(host: str) -> _socket.socket:
    """A connected socket to ``unix://PATH`` or ``tcp://HOST:PORT``, in the clear. Raises OSError."""
    scheme, _, rest = host.partition("://")
    if scheme == "unix":
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            sock.connect(rest)
        except BaseException:
            sock.close()
            raise
        return sock
    name, port = split_address(rest)
    failure: OSError = ConnectionRefusedError(f"no address for {name}")
    for family, kind, proto, _canonical, address in _socket.getaddrinfo(name, port, 0, _socket.SOCK_STREAM):
        sock = _socket.socket(family, kind, proto)
        try:
            sock.connect(address)
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure


def split_address(text: str) -> tuple[str, int]:
    """``host:port`` with docker's default port; IPv6 in brackets."""
    text = text.split("/", 1)[0]
    name, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        name, port = text, "2375"
    if not port.isdecimal():
        raise OSError(f"invalid port in address {text}")
    return name.strip("[]") or "127.0.0.1", int(port)


class Wire:
    """One connection and what was read from it but not used yet: ``buffer`` from ``position`` on."""

    __slots__ = ("buffer", "position", "sock", "used")

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.position = 0
        self.used = False

    def fill(self) -> bool:
        """Read more; False at the end of the stream."""
        data = self.sock.recv(READ_SIZE)
        self.buffer = self.buffer[self.position :] + data if self.position < len(self.buffer) else data
        self.position = 0
        return bool(data)

    def unread(self) -> bytes:
        return self.buffer[self.position :]

    def line(self) -> bytes:
        while (end := self.buffer.find(b"\n", self.position)) < 0:
            if len(self.buffer) - self.position > _HEADER_LIMIT or not self.fill():
                raise Broken
        line = self.buffer[self.position : end]
        self.position = end + 1
        return line.rstrip(b"\r")

    def take(self, most: int) -> bytes:
        """Between 1 and ``most`` bytes."""
        if self.position >= len(self.buffer) and not self.fill():
            raise Broken
        data = self.buffer[self.position : self.position + most]
        self.position += len(data)
        return data

    def close(self) -> None:
        self.sock.close()


def _chunked(wire: Wire) -> Iterator[bytes]:
    """The payload of a chunked body. Chunks that arrived together are given together: a log of short lines has millions."""
    size = _chunk_size(wire.line())
    batch: list[bytes] = []
    while size:
        piece = wire.take(size)
        size -= len(piece)
        batch.append(piece)
        # The next header must already be here, or else what we hold would wait for it.
        if size or wire.buffer.find(b"\n", wire.position + 2) < 0:
            yield batch[0] if len(batch) == 1 else b"".join(batch)
            batch = []
        if not size:
            wire.line()
            size = _chunk_size(wire.line())
    if batch:
        yield b"".join(batch)
    while wire.line():
        pass


def _chunk_size(line: bytes) -> int:
    digits = line.split(b";")[0].strip()
    if not digits or digits.strip(b"0123456789abcdefABCDEF"):
        raise Broken
    return int(digits, 16)


class Response:
    """Status line, headers (names in lower case) and the body as a stream."""

    __slots__ = ("_client", "_left", "_wire", "headers", "status")

    def __init__(self, client: Client, wire: Wire, method: str) -> None:
        self._client = client
        self._wire: Wire | None = wire
        while True:
            words = wire.line().split(None, 2)
            if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
                wire.close()
                raise CliError(f"{client.host} does not speak HTTP")
            self.status = int(words[1])
            self.headers: dict[str, str] = {}
            while line := wire.line():
                name, _, value = line.partition(b":")
                self.headers[name.strip().lower().decode("latin-1")] = value.strip().decode("latin-1")
            if self.status >= 200 or self.status == 101:
                break
        if method == "HEAD" or self.status in (101, 204, 304):
            self._left = 0
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._left = -1
        else:
            self._left = int(self.headers.get("content-length", "-2"))
        if self._left == 0 and self.status != 101:
            self._release()

    def fileno(self) -> int:
        return self._wire.sock.fileno() if self._wire else -1

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces as they come. Ends the response."""
        wire = self._wire
        if wire is None:
            return
        try:
            if self._left == -1:
                yield from _chunked(wire)
                self._release()
            elif self._left == -2:
                while wire.unread() or wire.fill():
                    yield wire.take(READ_SIZE)
                self.close()
            else:
                while self._left:
                    piece = wire.take(self._left)
                    self._left -= len(piece)
                    yield piece
                self._release()
        except (Broken, ConnectionResetError):
            self.close()
            raise CliError("the daemon closed the connection in the middle of its answer") from None

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def lines(self) -> Iterator[Any]:
        """The documents of a stream of JSON values, one per line."""
        rest = b""
        for piece in self.chunks():
            *complete, rest = (rest + piece).split(b"\n")
            for line in complete:
                if line.strip():
                    yield decode(line)
        if rest.strip():
            yield decode(rest)

    def hijack(self) -> tuple[_socket.socket, bytes]:
        """Take the connection over: its socket and what had already arrived on it."""
        wire, self._wire = self._wire, None
        if wire is None:
            raise CliError("the connection is already closed")
        return wire.sock, wire.unread()

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _release(self) -> None:
        wire, self._wire = self._wire, None
        if wire is None:
            return
        if self.headers.get("connection", "").lower() == "close" or wire.unread():
            wire.close()
        else:
            self._client.idle.append(wire)


class Client:
    """Requests to one daemon. ``call`` for documents, ``stream`` for bodies that flow, ``hijack`` for raw connections."""

    def __init__(
        self, host: str, opener: Callable[[str], _socket.socket] = open_socket, headers: Mapping[str, str] | None = None, version: str = ""
    ) -> None:
        self.host = host
        self.version = version or API_VERSION
        self.idle: list[Wire] = []
        self._open = opener
        self._headers = headers or {}
        self._understood = False
        """Whether the daemon has answered a request of this version."""

    def another(self) -> Client:
        """A client of the same daemon with connections of its own, for another thread or a signal handler."""
        return Client(self.host, self._open, self._headers, self.version)

    def connect(self) -> _socket.socket:
        """A new connection. Raises OSError."""
        return self._open(self.host)

    def call(self, method: str, path: str, query: Mapping[str, object] | None = None, body: object = None) -> Any:
        """Send a document, give back the answer's document (None when it has no body). Raises DaemonError."""
        response = self.stream(method, path, query, body)
        data = response.read()
        return decode(data) if data.strip() else None

    def stream(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """The answer with its body unread. Raises DaemonError for statuses from 400 on."""
        extra = dict(headers or {})
        data = b""
        if body is not None:
            data = encode(body).encode("utf-8")
            extra["Content-Type"] = "application/json"
        response = self._send(method, path, query, data, extra)
        if response.status >= 400:
            raise self._failure(response)
        return response

    def hijack(self, path: str, query: Mapping[str, object] | None = None, body: object = None) -> tuple[_socket.socket, bytes, str]:
        """POST that takes the connection over: socket, bytes already read, content type of the stream."""
        extra = {"Connection": "Upgrade", "Upgrade": "tcp"}
        data = b""
        if body is not None:
            data = encode(body).encode("utf-8")
            extra["Content-Type"] = "application/json"
        else:
            extra["Content-Type"] = "text/plain"
        response = self._send("POST", path, query, data, extra)
        if response.status >= 400:
            raise self._failure(response)
        if response.status != 101:
            response.close()
            raise CliError(f"unable to upgrade to tcp, received {response.status}")
        sock, left = response.hijack()
        return sock, left, response.headers.get("content-type", "")

    def upload(
        self,
        path: str,
        query: Mapping[str, object],
        pieces: Iterable[bytes],
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a body of unknown length in chunks."""
        self.negotiate()
        wire = self.idle.pop() if self.idle else self._connect()  # an idle one has just been used
        head = self._head(method, path, query, {**(headers or {}), "Transfer-Encoding": "chunked", "Content-Type": "application/x-tar"})
        wire.sock.sendall(head)
        try:
            for piece in pieces:
                if piece:
                    wire.sock.sendall(b"%x\r\n" % len(piece) + piece + b"\r\n")
            wire.sock.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon refused early: its answer says why
        try:
            response = Response(self, wire, method)
        except (Broken, ConnectionResetError):
            raise self.unreachable(None) from None
        if response.status >= 400:
            raise self._failure(response)
        return response

    def negotiate(self) -> None:
        """Learn the daemon's version when a request cannot be repeated."""
        if self._understood:
            return
        response = self._send("HEAD", "/_ping", None, b"", {})
        self._adopt(response)

    def answers(self) -> bool:
        """Whether a daemon serves requests here."""
        try:
            return self._send("HEAD", "/_ping", None, b"", {}).status == 200
        except (CliError, OSError):
            return False

    def _adopt(self, response: Response) -> bool:
        theirs = response.headers.get("api-version", "")
        if theirs and version_tuple(theirs) < version_tuple(self.version):
            self.version = theirs
            return True
        return False

    def _head(self, method: str, path: str, query: Mapping[str, object] | None, headers: Mapping[str, str]) -> bytes:
        parameters = query_string(query or {})
        target = f"/v{self.version}{path}{('&' if '?' in path else '?') + parameters if parameters else ''}"
        lines = [f"{method} {target} HTTP/1.1", "Host: api.tare.localhost", "User-Agent: tare"]
        lines.extend(f"{name}: {value}" for name, value in {**self._headers, **headers}.items())
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _send(self, method: str, path: str, query: Mapping[str, object] | None, data: bytes, headers: dict[str, str]) -> Response:
        if data or method in ("POST", "PUT"):
            headers["Content-Length"] = str(len(data))
        while True:
            wire = self.idle.pop() if self.idle else self._connect()
            try:
                wire.sock.sendall(self._head(method, path, query, headers) + data)
                response = Response(self, wire, method)
            except (Broken, ConnectionResetError, BrokenPipeError):
                reused = wire.used
                wire.close()
                if reused and method in ("GET", "HEAD"):
                    continue  # an idle connection that the daemon had given up meanwhile
                raise self._silent() from None
            wire.used = True
            if response.status == 400 and self._adopt(response):
                response.read()
                continue
            self._understood = self._understood or response.status < 400
            return response

    def _connect(self) -> Wire:
        try:
            return Wire(self.connect())
        except OSError as error:
            raise self.unreachable(error) from None

    def _silent(self) -> CliError:
        """Why a connection may have ended without an answer."""
        if self._open is open_socket:
            return CliError(f"the daemon at {self.host} closed the connection without an answer")
        from tare.cli.remote import last_failure

        return Unreachable(last_failure() or f"error during connect: {self.host} closed the connection without an answer")

    def unreachable(self, error: OSError | None) -> CliError:
        """What to tell somebody whose daemon does not answer."""
        if isinstance(error, PermissionError):
            return Unreachable(
                f"permission denied while trying to connect to the Tare daemon socket at {self.host}\n"
                "Run the command as root, or start tared with --group and become a member of that group."
            )
        reason = ""
        if error is not None and not isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            reason = f" ({error.strerror or error})"
        if self._open is not open_socket and not isinstance(error, ConnectionRefusedError):
            return Unreachable(f"error during connect: cannot reach the daemon at {self.host}{reason or f' ({error})'}")
        return Unreachable(
            f"Cannot connect to the Tare daemon at {self.host}{reason}. Is the tare daemon running?\n"
            "Start it with 'tare daemon start', or name another one with -H or TARE_HOST."
        )

    def _failure(self, response: Response) -> DaemonError:
        data = response.read()
        try:
            document = decode(data)
            message = str(document["message"])
        except (ValueError, KeyError, TypeError):
            message = data.decode("utf-8", "replace").strip() or f"request returned {response.status}"
        return DaemonError(response.status, message)
