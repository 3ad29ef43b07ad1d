"""Logs that go to another program: syslog and the journal.

Each line becomes one message. A container's output must not stop because its log's receiver is slow or away: messages wait in a bounded
queue (``max-buffer-size``, a mebibyte unless told), and what does not fit is counted as lost. The queue is sent on as further
output comes, and before the keeper goes to rest or ends. A connection that broke is made again, at most every few seconds.

Beside it a ``local`` log keeps the latest output, so that it can be read back (Docker's "dual logging").

Addresses were resolved by the daemon: here nothing waits for a name server.
"""

from __future__ import annotations

import socket
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from tare.runtime.locallog import LocalLog
from tare.runtime.logfile import LineLog

QUEUE_LIMIT = 1 << 20
_RETRY_SECONDS = 5.0
_CONNECT_SECONDS = 1.0
_LAST_SECONDS = 2.0
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ERROR, _INFO = 3, 6


class Connection:
    """A socket to the receiver with a bounded queue before it."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self.options = options
        self.lost = 0
        self._limit = int(options.get("queue") or QUEUE_LIMIT)
        self._queue: deque[bytes] = deque()
        self._waiting = 0
        self._sock: socket.socket | None = None
        self._next_try = 0.0

    def encode(self, stream: str, line: bytes, partial: bool, now: int) -> bytes:
        """The message for one line (without its newline)."""
        raise NotImplementedError

    def open(self) -> socket.socket:
        """Connect. Raises OSError."""
        kind, _, address = self.options["address"].partition("://")
        if kind == "unixgram" or kind == "unix":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if kind == "unixgram" else socket.SOCK_STREAM)
            target: Any = address
        else:
            host, _, port = address.rpartition(":")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
            target = (host.strip("[]"), int(port))
        try:
            sock.settimeout(_CONNECT_SECONDS)
            sock.connect(target)
            if kind == "tcp+tls":
                sock = self._secure(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _secure(self, sock: socket.socket) -> socket.socket:
        # Megabytes, for the few that use it. The launcher's own library is out of reach by now, so it comes from where the daemon has its.
        options = self.options
        sys.path += [path for path in options["library"].split(":") if path not in sys.path]
        import ssl

        context = ssl.create_default_context(cafile=options.get("ca") or None)
        if options.get("skip_verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if options.get("cert"):
            context.load_cert_chain(options["cert"], options.get("key") or None)
        return context.wrap_socket(sock, server_hostname=options.get("name") or None)

    def send(self, message: bytes) -> None:
        """Send, or queue, or drop."""
        if self._waiting + len(message) > self._limit:
            self.lost += 1
            return
        self._queue.append(message)
        self._waiting += len(message)
        self.flush(0.0)

    def flush(self, seconds: float) -> None:
        """Send what is queued, waiting at most so long for the receiver."""
        deadline = time.monotonic() + seconds
        try:
            while self._queue and (sock := self._connected()) is not None:
                sock.settimeout(max(0.0, deadline - time.monotonic()))
                message = self._queue[0]
                sent = sock.send(message)
                self._waiting -= sent
                if sent < len(message):
                    self._queue[0] = message[sent:]
                else:
                    self._queue.popleft()
        except (BlockingIOError, TimeoutError):
            return
        except OSError as error:
            if getattr(error, "errno", None) is None or type(error).__name__.startswith("SSLWant"):
                return  # TLS that would block
            self._broken()

    def _connected(self) -> socket.socket | None:
        if self._sock is None and time.monotonic() >= self._next_try:
            self._next_try = time.monotonic() + _RETRY_SECONDS
            try:
                self._sock = self.open()
            except OSError:
                return None
        return self._sock

    def _broken(self) -> None:
        if self._queue:
            # A message that was sent in part cannot be continued on another connection.
            self._waiting -= len(self._queue.popleft())
            self.lost += 1
        self.close()

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


class Syslog(Connection):
    """RFC 3164 and RFC 5424 messages, in the variants that Docker's option ``syslog-format`` knows."""

    def encode(self, stream: str, line: bytes, partial: bool, now: int) -> bytes:
        options = self.options
        priority = int(options["facility"]) << 3 | (_ERROR if stream == "stderr" else _INFO)
        tag, host, pid = options["tag"], options["host"], options["pid"]
        style = options.get("format", "")
        if style.startswith("rfc5424"):
            head = f"<{priority}>1 {_rfc3339(now, micro=style == 'rfc5424micro')} {host} {tag} {pid} {tag} - "
        elif style == "rfc3164":
            head = f"<{priority}>{_stamp(now)} {host} {tag}[{pid}]: "
        else:
            head = f"<{priority}>{_stamp(now)} {tag}[{pid}]: "
        message = head.encode() + line.rstrip(b"\r")
        if style.startswith("rfc5424") and options["address"].startswith("tcp"):
            return b"%d " % len(message) + message
        return message + b"\n"


class Journal(Connection):
    """Messages in journald's native protocol."""

    def encode(self, stream: str, line: bytes, partial: bool, now: int) -> bytes:
        fields = [_field("MESSAGE", line), _field("PRIORITY", b"3" if stream == "stderr" else b"6")]
        fields += [_field(name, value.encode()) for name, value in self.options.items() if name.isupper()]
        if partial:
            fields.append(_field("CONTAINER_PARTIAL_MESSAGE", b"true"))
        return b"".join(fields)


def _field(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


def _stamp(now: int) -> str:
    at = time.localtime(now // 1_000_000_000)
    return f"{_MONTHS[at.tm_mon - 1]} {at.tm_mday:2} {at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02}"


def _rfc3339(now: int, micro: bool) -> str:
    seconds, fraction = divmod(now, 1_000_000_000)
    at = time.gmtime(seconds)
    text = f"{at.tm_year:04}-{at.tm_mon:02}-{at.tm_mday:02}T{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02}"
    return f"{text}.{fraction // 1000:06}Z" if micro else f"{text}Z"


def connection(driver: str, options: Mapping[str, str]) -> Connection:
    """The connection of a driver. ValueError for one that there is not."""
    if driver == "syslog":
        return Syslog(options)
    if driver == "journald":
        return Journal(options)
    raise ValueError(f"no log driver named {driver}")


class ForwardingLog(LineLog):
    """A log that is sent away, with a local one beside it."""

    def __init__(self, receiver: Connection, cache: LocalLog | None, resting: Mapping[str, Any] | None = None) -> None:
        super().__init__(resting)
        self._receiver = receiver
        self._cache = cache

    def rest(self) -> dict[str, Any]:
        """All that another worker needs to go on. The connection is not kept: it is made again with the next output."""
        self._receiver.flush(_LAST_SECONDS)
        self._receiver.close()
        return super().rest() | (self._cache.file.rest() if self._cache is not None else {})

    def position(self) -> tuple[int, int]:
        """(inode, size) of the cache: all that can be read back lies before it."""
        return self._cache.position() if self._cache is not None else (0, 0)

    def close(self) -> None:
        """Send what waits, for a little while, and close."""
        self.flush()
        self._receiver.flush(_LAST_SECONDS)
        self._receiver.close()
        if self._cache is not None:
            self._cache.file.close()

    def _write_records(self, stream: str, lines: bytes, partial: list[bytes], now: int) -> None:
        now = now or time.time_ns()
        receiver = self._receiver
        if lines:
            for line in lines[:-1].split(b"\n"):
                receiver.send(receiver.encode(stream, line, False, now))
        for piece in partial:
            receiver.send(receiver.encode(stream, piece, True, now))
        if self._cache is not None:
            self._cache.write_records(stream, lines, partial, now)
