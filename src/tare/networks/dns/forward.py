"""Questions that are passed on to upstream servers, with time-outs, and the cache of their answers. Standard library only.

A question goes to one server after the other until one answers; a server that did not is asked last for a while, so that one dead server
costs its time-out once and not per question. Each question has a socket of its own with a port of the kernel's choice, and a random number:
an answer must come from the server asked, to that port, with that number and the same question, letter case included.

Equal questions that are on their way to the same servers share one exchange. Answers are cached per list of servers: when the host's
resolv.conf changes, its next question goes to the new servers, and what the old ones said is not repeated.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from tare.networks.dns import wire

SECONDS_PER_SERVER = 2.0
SHUNNED_SECONDS = 15.0
MAX_PENDING = 2048
MAX_SERVERS = 6
CACHE_ENTRIES = 8192
CACHE_SECONDS = 3600
_PORT = 53
LENGTH = struct.Struct("!H")
"""What precedes a message in a stream."""

OpenSocket = Callable[[int, int], socket.socket]
"""(family, type) -> socket."""


@dataclass(frozen=True)
class Upstream:
    """Servers, and the network namespace from which they are asked (``scope`` tells namespaces apart)."""

    servers: tuple[str, ...]
    scope: str
    open_socket: OpenSocket


class HostServers:
    """The name servers of the host's resolver configuration, read again when the file changes (looked at once a second at most)."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._look_again = 0.0
        self._stamp: tuple[int, int, int] | None = None
        self._servers: tuple[str, ...] = ()

    def __call__(self) -> tuple[str, ...]:
        now = time.monotonic()
        if now >= self._look_again:
            self._look_again = now + 1.0
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._stamp, self._servers = stamp, _nameservers(self._path)
        return self._servers


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _nameservers(path: str) -> tuple[str, ...]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file.read(65536).splitlines()]
    except OSError:
        return ()
    return tuple(words[1] for words in lines if len(words) > 1 and words[0] == "nameserver")


class Cache:
    """Answers of upstream servers until their time has come; the least recently used go first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, tuple[bytes, tuple[int, ...], float, float]] = OrderedDict()

    def get(self, key: Hashable) -> bytes | None:
        found = self._entries.get(key)
        if found is None:
            return None
        data, offsets, stored, expires = found
        now = time.monotonic()
        if now >= expires:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return wire.aged(data, offsets, int(now - stored))

    def put(self, key: Hashable, data: bytes) -> None:
        try:
            seconds, offsets = wire.lifetime(data)
        except (wire.Malformed, struct.error):
            return
        if seconds > 0:
            now = time.monotonic()
            self._entries[key] = data, offsets, now, now + min(seconds, CACHE_SECONDS)
            self._entries.move_to_end(key)
            if len(self._entries) > CACHE_ENTRIES:
                self._entries.popitem(last=False)


class Forwarder:
    """Passes questions on. One for the whole server."""

    def __init__(self) -> None:
        self._cache = Cache()
        self._pending: dict[Hashable, asyncio.Task[bytes]] = {}
        self._shunned: dict[str, float] = {}

    def cached(self, query: wire.Query, upstream: Upstream) -> bytes | None:
        """The answer as it was kept, with the number and letter case of this query; None when it has to be asked for."""
        found = self._cache.get(_key(query, upstream))
        return found and query.id.to_bytes(2, "big") + found[2:12] + query.question + found[12 + len(query.question) :]

    async def ask(self, query: wire.Query, message: bytes, upstream: Upstream, stream: bool) -> bytes:
        """The answer to ``message`` (the client's bytes), with the client's number; ``SERVFAIL`` when no server answers."""
        key = (_key(query, upstream), query.question, stream)
        task = self._pending.get(key)
        if task is None:
            if not upstream.servers or len(self._pending) >= MAX_PENDING:
                return wire.answer(query, code=wire.SERVFAIL)
            task = asyncio.create_task(self._exchange(query, message, upstream, stream))
            self._pending[key] = task
            task.add_done_callback(lambda _: self._pending.pop(key))
        return query.id.to_bytes(2, "big") + (await asyncio.shield(task))[2:]

    async def _exchange(self, query: wire.Query, message: bytes, upstream: Upstream, stream: bool) -> bytes:
        """Ask one server after the other. The last refusal is better than nothing."""
        refusal = b""
        now = time.monotonic()
        for server in sorted(upstream.servers[:MAX_SERVERS], key=lambda server: self._shunned.get(server, 0.0) > now):
            number = secrets.token_bytes(2)
            try:
                async with asyncio.timeout(SECONDS_PER_SERVER):
                    answer = await _ask_one(server, number + message[2:], query.question, upstream.open_socket, stream)
            except (OSError, TimeoutError, EOFError):
                self._shunned[server] = time.monotonic() + SHUNNED_SECONDS
                continue
            self._shunned.pop(server, None)
            if wire.code_of(answer) not in (wire.SERVFAIL, wire.REFUSED, wire.NOTIMP):
                self._cache.put(_key(query, upstream), answer)
                return answer
            refusal = answer
        return refusal or wire.answer(query, code=wire.SERVFAIL)


def _key(query: wire.Query, upstream: Upstream) -> Hashable:
    return upstream.servers, upstream.scope, query.name, query.question[-4:], query.extended, query.dnssec, query.flags & 0x0110


async def _ask_one(server: str, message: bytes, question: bytes, open_socket: OpenSocket, stream: bool) -> bytes:
    """One exchange with one server. Raises OSError or EOFError; its caller sets the time."""
    loop = asyncio.get_running_loop()
    host, _, zone = server.partition("%")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address = (host, _PORT, 0, socket.if_nametoindex(zone)) if zone else (host, _PORT)
    with open_socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, LENGTH.pack(len(message)) + message if stream else message)
        while True:
            if stream:
                answer = await _receive(sock, LENGTH.unpack(await _receive(sock, LENGTH.size))[0])
            else:
                answer = await loop.sock_recv(sock, 65535)
            if wire.answers_to(answer, message[:2], question):
                return answer


async def _receive(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = await asyncio.get_running_loop().sock_recv(sock, length - len(data))
        if not more:
            raise EOFError("closed before it answered")
        data += more
    return data
