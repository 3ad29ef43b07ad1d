"""The name server of all containers: a process of its own that outlives the daemon.

Why a process: a busy daemon must not stall answers, and a restarted or killed one must not cost any. Why one: names are shared, and a
process per container would cost each of them megabytes.

In a container the server is 127.0.0.11, port 53, as with Docker. Its sockets are opened in the container's network namespace on that
address but on ports of the kernel's choice, so that a container may have a server of its own on port 53; two stateless rules on the
loopback there exchange the port numbers (no connection tracking, which would cost every packet of the container).

Who says what (SOCK_SEQPACKET, ``runtime.messages``):

    keeper   {"op": "serve", "id"} + network namespace, pidfd of the init  →  {} or {"error"}     before the container's program runs
    daemon   {"op": "put", "container": document}, {"op": "forget", "id"}, {"op": "keep", "ids"}   no answers
             {"op": "hello"} → {"version", "pid", "served": [ids]}

Invariants:
- The sockets of a container keep its network namespace alive; they are closed as soon as its init has ended, whoever lives or not.
- The process ends when no daemon is connected and no container is served, or when a daemon says ``quit``.
- Whatever a container sends costs bounded memory: streams and waiting questions per container are counted.

Single thread: it enters a container's network namespace only to open sockets there and is back before anything else happens. Standard
library only (run with ``python -I -S``).
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tare.linux import namespaces
from tare.linux.netlink import Route
from tare.linux.nft import Nftables
from tare.networks.dns import wire
from tare.networks.dns.forward import LENGTH, Forwarder, HostServers, Upstream
from tare.networks.dns.zones import Zones
from tare.runtime import messages

VERSION = 1
ADDRESS = "127.0.0.11"
LOOPBACK = 1
"""The index of every namespace's loopback."""
RESOLV_CONF = "/etc/resolv.conf"
BURST = 64
"""Datagrams of one container that are answered before others have their turn."""
STREAMS = 64
STREAM_SECONDS = 10.0
WAITING = 512

_NEW = "create table ip tare_dns\n"
_ANEW = "delete table ip tare_dns\n"
"""The rules of an earlier server are replaced; not by way of caution, as the kernel takes 10 ms for a deletion."""
_RULES = """\
table ip tare_dns {{
  chain output {{
    type filter hook output priority -300; policy accept;
    ip daddr {address} udp dport 53 udp dport set {udp}
    ip daddr {address} tcp dport 53 tcp dport set {tcp}
    ip saddr {address} udp sport {udp} udp sport set 53
    ip saddr {address} tcp sport {tcp} tcp sport set 53
  }}
}}
"""


class Inside:
    """Opens things in network namespaces."""

    def __init__(self) -> None:
        self._home = namespaces.open_namespace("/proc/self/ns/net")

    @contextmanager
    def entered(self, namespace: int) -> Iterator[None]:
        namespaces.join(namespace, "net")
        try:
            yield
        finally:
            namespaces.join(self._home, "net")

    def listen(self, namespace: int) -> tuple[socket.socket, socket.socket]:
        """The datagram and the stream socket of a container's name server, reachable on port 53 from now on."""
        datagrams = streams = None
        try:
            with self.entered(namespace):
                with Route() as route:
                    # The init may not have come so far. Before the loopback is up nothing in the namespace is known to be local, and
                    # a socket is bound as if to a broadcast address: it would answer from another one.
                    route.set_link(LOOPBACK, up=True)
                datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                streams = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                datagrams.bind((ADDRESS, 0))
                streams.bind((ADDRESS, 0))
                streams.listen(STREAMS)
                rules = _RULES.format(address=ADDRESS, udp=datagrams.getsockname()[1], tcp=streams.getsockname()[1])
                with Nftables() as nft:
                    try:
                        nft.run(_NEW + rules)
                    except OSError as error:
                        if error.errno != errno.EEXIST:
                            raise
                        nft.run(_ANEW + rules)
        except BaseException:
            for opened in (datagrams, streams):
                if opened is not None:
                    opened.close()
            raise
        return datagrams, streams

    def opener(self, namespace: int) -> Callable[[int, int], socket.socket]:
        """Opens sockets in a namespace."""

        def open_socket(family: int, kind: int) -> socket.socket:
            with self.entered(namespace):
                return socket.socket(family, kind)

        return open_socket


class Served:
    """One container whose questions are answered. Owns its descriptors."""

    def __init__(self, server: Server, container_id: str, namespace: int, pidfd: int) -> None:
        self.id = container_id
        self._server = server
        self._namespace = namespace
        self._pidfd = pidfd
        self._waiting: set[asyncio.Task[None]] = set()
        self._answers: dict[bytes, bytes] = {}
        self._generation = -1
        self._own = server.inside.opener(namespace)
        self._datagrams, self._streams = server.inside.listen(namespace)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._datagrams, self._on_datagrams)
        loop.add_reader(self._streams, self._on_streams)
        loop.add_reader(pidfd, server.drop, self)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for watched in (self._datagrams.fileno(), self._streams.fileno(), self._pidfd):
            loop.remove_reader(watched)
        self._datagrams.close()
        self._streams.close()
        for task in self._waiting:
            task.cancel()
        os.close(self._namespace)
        os.close(self._pidfd)

    def _on_datagrams(self) -> None:
        for _ in range(BURST):
            try:
                data, sender = self._datagrams.recvfrom(4096)
            except OSError:  # nothing more, or an ICMP error about an earlier answer
                return
            answer = self._at_once(data)
            if answer is None:
                self._later(self._answer_datagram(data, sender))
            elif answer:
                self._send(answer, sender)

    def _on_streams(self) -> None:
        try:
            stream, _ = self._streams.accept()
        except OSError:
            return
        stream.setblocking(False)
        if not self._later(self._answer_stream(stream)):
            stream.close()

    def _later(self, work: Any) -> bool:
        """Do work that has to wait for something; False (not done) when too much waits already."""
        if len(self._waiting) >= WAITING:
            work.close()
            return False
        task = asyncio.get_running_loop().create_task(work)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return True

    def _send(self, answer: bytes, receiver: Any) -> None:
        with suppress(OSError):
            self._datagrams.sendto(answer, receiver)

    def _at_once(self, data: bytes) -> bytes | None:
        """The answer to a datagram when it is known here: the same bytes as to the same question before, as long as no name changed. None
        when it is not, empty bytes when there is nothing to say."""
        if self._generation != self._server.zones.generation:
            self._answers.clear()
            self._generation = self._server.zones.generation
        known = self._answers.get(data[2:])
        if known is not None:
            return data[:2] + known
        try:
            query = wire.parse_query(data)
        except (wire.Malformed, struct.error):
            return wire.format_error(data)
        turn = self._server.zones.turn
        answer = self._local(query, query.udp_size)
        if answer is None:
            upstream = self._upstream()
            found = self._server.forwarder.cached(query, upstream)
            return wire.shortened(query, found) if found else None
        if turn == self._server.zones.turn:  # not one of several that take turns
            if len(self._answers) >= 1024:
                self._answers.clear()
            self._answers[data[2:]] = answer[2:]
        return answer

    def _local(self, query: wire.Query, size: int) -> bytes | None:
        """The answer that needs no other server, or None."""
        zones = self._server.zones
        if query.flags & wire.OPCODE:
            return wire.answer(query, code=wire.NOTIMP)
        answer = zones.answer(self.id, query, size)
        if answer is None and zones.upstream(self.id) == ():
            return wire.answer(query, code=wire.SERVFAIL if "." in query.name else wire.NXDOMAIN)
        if answer is None and "." not in query.name and zones.asks_only_domains(self.id):
            return wire.answer(query, code=wire.NXDOMAIN)
        return answer

    def _upstream(self) -> Upstream:
        chosen = self._server.zones.upstream(self.id)
        if chosen is None:
            return Upstream(self._server.host_servers(), "", socket.socket)
        return Upstream(chosen, self.id, self._own)

    async def _answer_datagram(self, data: bytes, sender: Any) -> None:
        query = wire.parse_query(data)
        answer = await self._server.forwarder.ask(query, data, self._upstream(), False)
        self._send(wire.shortened(query, answer), sender)

    async def _answer_stream(self, stream: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=stream)
        try:
            while True:
                async with asyncio.timeout(STREAM_SECONDS):
                    data = await reader.readexactly(LENGTH.unpack(await reader.readexactly(LENGTH.size))[0])
                answer = await self._answer_message(data)
                if not answer:
                    return
                writer.write(LENGTH.pack(len(answer)) + answer)
                async with asyncio.timeout(STREAM_SECONDS):
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _answer_message(self, data: bytes) -> bytes:
        try:
            query = wire.parse_query(data)
        except (wire.Malformed, struct.error):
            return wire.format_error(data)
        answer = self._local(query, 65535)
        return await self._server.forwarder.ask(query, data, self._upstream(), True) if answer is None else answer


class Server:
    """All served containers and all names."""

    def __init__(self, listener: socket.socket) -> None:
        self.zones = Zones()
        self.forwarder = Forwarder()
        self.host_servers = HostServers(RESOLV_CONF)
        self.inside = Inside()
        self._served: dict[str, Served] = {}
        self._listener = listener
        self._path = listener.getsockname()
        self._status = os.stat(self._path)
        self._daemons: set[socket.socket] = set()
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Serve until there is nobody left to serve."""
        self._listener.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._listener, self._on_connection)
        await self._done.wait()
        # Only our own socket file: a successor may have put its own there.
        with suppress(OSError):
            if os.path.samestat(os.stat(self._path), self._status):
                os.unlink(self._path)

    def drop(self, served: Served) -> None:
        """A container's init has ended."""
        served.close()
        if self._served.get(served.id) is served:
            del self._served[served.id]
        self._end_when_idle()

    def _end_when_idle(self) -> None:
        if not self._served and not self._daemons:
            self._done.set()

    def _on_connection(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        peer.setblocking(False)
        asyncio.get_running_loop().add_reader(peer, self._on_message, peer)

    def _on_message(self, peer: socket.socket) -> None:
        try:
            while True:
                message, fds = messages.receive(peer)
                if message is None:
                    break
                reply = self._handle(peer, message, fds)
                if reply is not None:
                    messages.send(peer, reply)
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a peer that speaks nonsense is let go
        asyncio.get_running_loop().remove_reader(peer)
        peer.close()
        self._daemons.discard(peer)
        self._end_when_idle()

    def _handle(self, peer: socket.socket, message: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        match message["op"]:
            case "put":
                self.zones.put(message["container"])
            case "forget":
                self.zones.forget(message["id"])
            case "keep":
                self.zones.keep_only(set(message["ids"]))
            case "serve":
                return self._serve(message["id"], *fds)
            case "hello":
                self._daemons.add(peer)
                return {"version": VERSION, "pid": os.getpid(), "served": list(self._served)}
            case "quit":
                self._done.set()
        return None

    def _serve(self, container_id: str, namespace: int, pidfd: int) -> dict[str, Any]:
        try:
            served = Served(self, container_id, namespace, pidfd)
        except OSError as error:
            os.close(namespace)
            os.close(pidfd)
            return {"error": f"{error.strerror or error}"}
        previous = self._served.pop(container_id, None)
        if previous is not None:
            previous.close()
        self._served[container_id] = served
        return {}


def main(fd: int) -> None:
    """Serve on the listening socket ``fd``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    listener = socket.socket(fileno=fd)
    listener.set_inheritable(False)

    async def serve() -> None:
        await Server(listener).run()

    asyncio.run(serve())
