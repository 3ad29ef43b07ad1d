"""Sessions: what our own command and the daemon say to each other while a build runs (decision 78).

    client                                       daemon
    POST /tare/builds         options        ──► a session, in memory; {"Id": …}
    PUT  /tare/builds/ID/listing      of a big context (``keptcontexts``)
    PUT  /tare/builds/ID/files/NAME   tar    ──► named contexts and imported caches, each one spooled file without a name
    POST /build?session=ID    context        ──► the build; its messages flow back
      {"tare": {"agent": "default", "connection": 3}} ◄── a RUN has connected to the agent's socket
    POST /tare/builds/ID/agents/3  (hijacked)◄─► that connection's bytes
      {"tare": {"export": 0}}                ◄── the build is done; something is to be fetched
    GET  /tare/builds/ID/exports/0           ◄── a tar; when all are fetched, or given up, POST /build ends and the session with it

A build that has nothing to say beyond ``POST /build`` needs no session: ``tare=SOURCE`` there asks for its messages.

A session that is not used within a minute is forgotten. Secrets are never written anywhere but into the memory file system of the RUN
that mounts them, and are no part of a log, a history, a cache key or an error.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tare.builder.request import AgentWanted, ExportReady, Say
from tare.errors import InvalidArgument, NotFound
from tare.store.durability import make_directory
from tare.wire.build import BuildOptions

if TYPE_CHECKING:
    import socket

    from tare.builder.keptcontexts import Plan
    from tare.builder.trees import TarTree

_PATIENCE = 60.0
"""Seconds from a session's beginning to its build, and from an agent's use to the client's answer."""
_CHUNK = 64 << 10
Stream = Callable[[], AsyncGenerator[bytes, None]]


@dataclass
class _Waiting:
    """A connection to an agent's socket that the client has yet to serve."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    taken: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class _Fetch:
    """Something that the client is to fetch."""

    stream: Stream
    started: bool = False
    failure: Exception | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Session:
    """One client's session. Event loop only."""

    def __init__(self, id: str, options: BuildOptions, directory: Path) -> None:
        self.id = id
        self.options = options
        self.files: dict[str, TarTree] = {}
        """What was uploaded, by name."""
        self.agents: dict[str, str] = {}
        """Sockets of the agents, while the build runs."""
        self.context: TarTree | None = None
        """The build's own context, when it is here already."""
        self.plan: Plan | None = None
        """What is to be sent of it, when a part is here."""
        self.begun = False
        self.busy = 0
        """Uploads under way."""
        self._directory = directory
        self._say: Say | None = None
        self._servers: list[asyncio.Server] = []
        self._waiting: dict[int, _Waiting] = {}
        self._connections = 0
        self._exports: list[_Fetch] = []

    async def begin(self, say: Say) -> None:
        """The build starts; ``say`` reaches the client."""
        self._say = say
        for number, name in enumerate(self.options.agents):
            make_directory(self._directory)
            path = self._directory / str(number)
            server = await asyncio.start_unix_server(partial(self._connected, name), path)
            os.chmod(path, 0o666)  # its folder is closed to others; in the container it belongs to whoever the RUN runs as
            self._servers.append(server)
            self.agents[name] = str(path)

    async def _connected(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody in the build uses the agent: ask the client for a connection to the real one."""
        self._connections += 1
        number, waiting = self._connections, _Waiting(reader, writer)
        self._waiting[number] = waiting
        try:
            assert self._say is not None
            await self._say(AgentWanted(name, number))
            async with asyncio.timeout(_PATIENCE):
                await waiting.taken.wait()
        except (TimeoutError, ConnectionError):
            writer.close()
        finally:
            self._waiting.pop(number, None)

    async def serve_agent(self, number: int, sock: socket.socket, rest: bytes) -> None:
        """Join the client's connection to the one that waits under ``number``."""
        waiting = self._waiting.pop(number)
        waiting.taken.set()
        reader, writer = await asyncio.open_connection(sock=sock)
        waiting.writer.write(rest)
        await asyncio.gather(_pump(waiting.reader, writer), _pump(reader, waiting.writer), return_exceptions=True)
        for each in (writer, waiting.writer):
            each.close()

    def has_agent_connection(self, number: int) -> bool:
        return number in self._waiting

    async def deliver(self, stream: Stream) -> None:
        """Have the client fetch ``stream``; returns when it has, or when it could not."""
        fetch = _Fetch(stream)
        self._exports.append(fetch)
        assert self._say is not None
        await self._say(ExportReady(len(self._exports) - 1))
        await fetch.over.wait()
        if fetch.failure is not None:
            raise fetch.failure

    async def fetch(self, number: int) -> AsyncGenerator[bytes, None]:
        """The bytes of an export, once."""
        if not 0 <= number < len(self._exports) or self._exports[number].started:
            raise NotFound(f"build {self.id} has no export {number}")
        fetch = self._exports[number]
        fetch.started = True
        try:
            async for chunk in fetch.stream():
                yield chunk
        except Exception as error:
            fetch.failure = error
            raise
        finally:
            fetch.over.set()

    def expire(self) -> None:
        """Close what was sent. Idempotent."""
        for tree in (*self.files.values(), self.context, self.plan):
            if tree is not None:
                tree.close()
        self.files.clear()

    async def end(self) -> None:
        """Nothing stays. Idempotent."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for waiting in self._waiting.values():
            waiting.writer.close()
        for fetch in self._exports:
            fetch.over.set()
        self.expire()
        if self.options.agents:
            with suppress(OSError):
                await asyncio.to_thread(shutil.rmtree, self._directory)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


class Sessions:
    """The sessions of one builder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sessions: dict[str, Session] = {}

    def open(self, options: BuildOptions) -> Session:
        id = secrets.token_hex(16)
        session = self._sessions[id] = Session(id, options, self._directory / f"session-{id[:12]}")
        asyncio.get_running_loop().call_later(_PATIENCE, self._expire, id)
        return session

    def _expire(self, id: str) -> None:
        session = self._sessions.get(id)
        if session is not None and session.busy:
            asyncio.get_running_loop().call_later(_PATIENCE, self._expire, id)
        elif session is not None and not session.begun:
            del self._sessions[id]
            session.expire()

    def get(self, id: str) -> Session:
        session = self._sessions.get(id)
        if session is None:
            raise NotFound(f"No such build: {id}")
        return session

    def take(self, id: str) -> Session:
        """The session, for the one build that it is for."""
        session = self.get(id)
        if session.begun:
            raise InvalidArgument(f"build {id} has begun already")
        session.begun = True
        return session

    async def end(self, session: Session) -> None:
        self._sessions.pop(session.id, None)
        await session.end()
