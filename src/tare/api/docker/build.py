"""``/build``: images from Dockerfiles, as the classic builder of dockerd offers it.

What the classic endpoint cannot say (secrets, agents, named contexts, outputs) our own command line says in a session, before it
(``tare.builder.sessions``, decision 78).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from tare.api.docker.attach import RAW, upgrade_head
from tare.api.docker.params import boolean, integer, json_body, json_response
from tare.api.docker.streams import JsonStream
from tare.builder.context import receive
from tare.builder.keptcontexts import ranges
from tare.builder.remotes import open_context
from tare.builder.request import AgentWanted, BuildRequest, Built, ExportReady, Message, Note, RunFailed, Text, Trace
from tare.builder.solver import in_thread
from tare.builder.stopping import Stop
from tare.builder.trees import TarTree
from tare.distribution.auth import Credentials
from tare.distribution.progress import Progress
from tare.errors import InvalidArgument, NotFound, Unsupported
from tare.http.message import Request, Response, StreamResponse
from tare.oci.platform import Platform
from tare.oci.reference import Reference
from tare.wire.build import BuildOptions
from tare.wire.container import HostConfig, Ulimit

if TYPE_CHECKING:
    from tare.builder.sessions import Session
    from tare.engine import Engine


_LISTING_LIMIT = 512 << 20
"""Some four million files."""
_KEPT = 4096
"""Messages of a quiet build that are kept for the case that it fails."""


class RegistryAuth(msgspec.Struct):
    """One entry of ``X-Registry-Config``."""

    username: str = ""
    password: str = ""
    auth: str = ""
    identitytoken: str = ""
    registrytoken: str = ""
    serveraddress: str = ""


class BuildHandlers:
    """Handlers of the builder's endpoints over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._builder = engine.builder

    async def build(self, request: Request) -> None:
        """Build an image; its log is the answer. A client that goes away ends the build."""
        name = request.query.get("session", "")
        session = self._builder.sessions.take(name) if name else None
        try:
            options = build_request(request, session)
            quiet = boolean(request, "q")
            context, options = await self._context(request, options, session)
            feed = _Feed(request, quiet=quiet, own=session is not None or options.trace)
            try:
                async with request.until_disconnected():
                    try:
                        if session is not None:
                            await session.begin(feed.say)
                            options = replace(options, agents=session.agents, uploads=session.files)
                        image = await self._builder.build(options, context, feed.say, session)
                        if quiet:
                            await feed.send({"stream": f"{image}\n"})
                    except Exception as error:
                        await feed.fail(error)
                    feed.flush()
            finally:
                context.close()
        finally:
            if session is not None:
                await self._builder.sessions.end(session)

    async def open_session(self, request: Request) -> Response:
        session = self._builder.sessions.open(await json_body(request, BuildOptions))
        state, answer = session.options.context, {"Id": session.id}
        if state is not None:
            session.context = self._builder.contexts.find(state.name, state.state)
            answer["Context"] = "listing" if session.context is None else "kept"
        return json_response(answer, 201)

    async def listing(self, request: Request) -> Response:
        """The listing of a big context; the answer is what of it has to be sent."""
        session = self._builder.sessions.get(request.params["id"])
        state = session.options.context
        if session.begun or state is None or session.plan is not None:
            raise InvalidArgument(f"build {session.id} takes no listing")
        session.busy += 1
        try:
            listing = bytearray()
            async for chunk in request.chunks():
                listing += chunk
                if len(listing) > _LISTING_LIMIT:
                    raise InvalidArgument(
                        f"the listing of the build context is larger than {_LISTING_LIMIT >> 20} MiB: leave files out of it"
                    )
            session.plan = await self._builder.contexts.plan(state.name, bytes(listing))
        finally:
            session.busy -= 1
        return json_response({"Needed": ranges(session.plan.needed)})

    async def upload(self, request: Request) -> Response:
        """A named context, or a cache to import."""
        session = self._builder.sessions.get(request.params["id"])
        if session.begun:
            raise InvalidArgument(f"build {session.id} has begun already")
        session.busy += 1
        try:
            tree = await receive(request.chunks(), self._builder.scratch)
        finally:
            session.busy -= 1
        session.files[request.params["name"]] = tree
        return Response(204)

    async def agent(self, request: Request) -> None:
        """The client's connection to its SSH agent, for one that waits in the build."""
        session, number = self._builder.sessions.get(request.params["id"]), int(request.params["number"])
        if not session.has_agent_connection(number):
            raise NotFound(f"build {session.id} has no connection {number}")
        await request.read()
        hijacked = await request.hijack(upgrade_head(request, RAW))
        await session.serve_agent(number, hijacked.sock, hijacked.rest)

    async def export(self, request: Request) -> None:
        """What the client is to fetch of a build's result."""
        session = self._builder.sessions.get(request.params["id"])
        async with aclosing(session.fetch(int(request.params["number"]))) as chunks:
            stream: StreamResponse | None = None
            async for chunk in chunks:
                stream = stream or await request.stream(200, "application/x-tar")
                await stream.write(chunk)

    async def _context(self, request: Request, options: BuildRequest, session: Session | None) -> tuple[TarTree, BuildRequest]:
        remote = request.query.get("remote", "")
        scratch = self._builder.scratch
        if remote and remote != "client-session":
            await request.read()
            stop = Stop()
            async with request.until_disconnected():
                tree, text = await in_thread(lambda: open_context(remote, scratch, stop), stop.stop)
            return tree, options if text is None else replace(options, dockerfile_text=text)
        if session is not None and session.context is not None:
            await request.read()
            return session.context.fork(), options
        if session is not None and session.plan is not None:
            return await self._builder.contexts.receive(session.plan, request.chunks()), options
        return await receive(request.chunks(), scratch), options

    async def cancel(self, request: Request) -> Response:
        raise Unsupported("builds are cancelled by closing their connection")


class _Feed:
    """The build's messages on their way to the client; the head of the answer leaves with the first.

    A quiet build says only its image's id; when it fails, the (last) output is told after all.
    """

    def __init__(self, request: Request, *, quiet: bool, own: bool) -> None:
        self._request = request
        self._own = own
        self._quiet = quiet
        self._kept: deque[Message] = deque(maxlen=_KEPT)
        self.stream: JsonStream | None = None

    async def say(self, message: Message) -> None:
        if isinstance(message, AgentWanted | ExportReady | Note | Trace):
            if self._own and isinstance(message, Trace) and "vertexes" in message.document and self.stream is not None:
                self.stream.send_soon(_own_document(message))
            elif self._own:
                await self.send(_own_document(message))
        elif self._quiet:
            self._kept.append(message)
        else:
            await self._tell(message)

    async def _tell(self, message: Message) -> None:
        if isinstance(message, Text):
            await self.send({"stream": message.text})
        elif isinstance(message, Built):
            await self.send({"aux": {"ID": message.id}})
        elif isinstance(message, Progress):
            await self.send(message.document())

    async def send(self, document: dict[str, Any]) -> None:
        if self.stream is None:
            self.stream = await JsonStream.open(self._request, end=b"\r\n")
        await self.stream.send(document)

    def flush(self) -> None:
        """Nothing more will be said."""
        if self.stream is not None:
            self.stream.flush()

    async def fail(self, error: Exception) -> None:
        """The last message of a build that failed; one that failed before it had said anything becomes an HTTP status."""
        for message in self._kept:
            await self._tell(message)
        if self.stream is None:
            raise error
        if isinstance(error, RunFailed):
            await self.send({"errorDetail": {"code": error.code, "message": str(error)}, "error": str(error)})
        else:
            await self.stream.fail(error, self._request.id)


def _own_document(message: AgentWanted | ExportReady | Note | Trace) -> dict[str, Any]:
    """What only our own command understands."""
    if isinstance(message, Trace):
        return {"trace": message.document}
    if isinstance(message, AgentWanted):
        return {"tare": {"agent": message.name, "connection": message.number}}
    if isinstance(message, ExportReady):
        return {"tare": {"export": message.number}}
    return {"tare": {message.kind: message.value}}


def build_request(request: Request, session: Session | None = None) -> BuildRequest:
    """The options of a build in the words of ``POST /build``, and those of its session."""
    query = request.query
    if query.get("version", "") == "2":
        raise Unsupported("BuildKit sessions are not offered by this engine: set DOCKER_BUILDKIT=0, or use 'tare build'")
    if query.get("version", "") not in ("", "1"):
        raise InvalidArgument(f'invalid version "{query["version"]}"')
    if query.get("outputs"):
        raise Unsupported("outputs other than an image are not offered by POST /build: use 'tare build --output'")
    source = query.get("tare", "")  # of our own command, when it needs no session: what it calls the context
    options = session.options if session is not None else BuildOptions(trace=bool(source), source=source)
    platforms = [str(Platform.parse(name)) for name in (*options.platforms, *query.get("platform", "").split(",")) if name]
    arguments = {name: value for name, value in _json(request, "buildargs", dict[str, str | None]).items() if value is not None}
    return BuildRequest(
        tags=tuple(_tag(name) for name in query.all("t") if name),
        dockerfile=query.get("dockerfile", "") or "Dockerfile",
        dockerfile_text=options.dockerfile,
        build_args=arguments,
        labels=_json(request, "labels", dict[str, str]),
        target=query.get("target", ""),
        platform=platforms[0] if len(platforms) == 1 else "",
        platforms=tuple(dict.fromkeys(platforms)) if len(platforms) > 1 else (),
        no_cache=boolean(request, "nocache"),
        pull=boolean(request, "pull"),
        cache_from=tuple(_json(request, "cachefrom", list[str], [])),
        host=_host(request),
        remove=boolean(request, "rm", True),
        credentials=_credentials(request),
        secrets=options.secrets,
        contexts=options.contexts,
        allow=frozenset(options.allow),
        epoch=_epoch(arguments) if options.epoch is None else options.epoch,
        outputs=tuple(options.outputs),
        annotations=tuple(options.annotations),
        attestations=options.attestations,
        cache_imports=tuple(options.cache_from),
        cache_to=tuple(options.cache_to),
        no_cache_filter=frozenset(options.no_cache_filter),
        squash=options.squash or boolean(request, "squash"),
        trace=options.trace,
        call=options.call,
        source=options.source or query.get("remote", ""),
    )


def _epoch(arguments: Mapping[str, str]) -> int | None:
    """The build argument SOURCE_DATE_EPOCH, as BuildKit understands it."""
    text = arguments.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not text.isdecimal() or int(text) > 1 << 40:
        raise InvalidArgument(f"invalid SOURCE_DATE_EPOCH: {text}")
    return int(text)


def _host(request: Request) -> HostConfig:
    query = request.query
    host = HostConfig(
        network_mode=query.get("networkmode", "") or "default",
        cgroup_parent=query.get("cgroupparent", ""),
        cpuset_cpus=query.get("cpusetcpus", ""),
        cpuset_mems=query.get("cpusetmems", ""),
        memory=integer(request, "memory", 0),
        memory_swap=integer(request, "memswap", 0),
        cpu_shares=integer(request, "cpushares", 0),
        cpu_quota=integer(request, "cpuquota", 0),
        cpu_period=integer(request, "cpuperiod", 0),
        shm_size=integer(request, "shmsize", 0),
        extra_hosts=query.all("extrahosts") or None,
        ulimits=_json(request, "ulimits", list[Ulimit], []) or None,
        isolation=query.get("isolation", ""),
    )
    if query.get("isolation", "").lower() not in ("", "default"):
        raise InvalidArgument(f'Unsupported isolation: "{query["isolation"]}"')
    if query.get("securityopt"):
        raise InvalidArgument("The daemon on this platform does not support setting security options on build")
    return host


def _tag(name: str) -> Reference:
    reference = Reference.parse(name)
    if reference.digest:
        raise InvalidArgument("build tag cannot contain a digest")
    return reference.with_default_tag()


def _json(request: Request, name: str, kind: Any, default: Any = None) -> Any:
    text = request.query.get(name, "")
    if not text:
        return {} if default is None else default
    try:
        return msgspec.json.decode(text, type=kind | None) or ({} if default is None else default)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"error reading {_NAMES.get(name, name)}: {error}") from None


_NAMES = {"buildargs": "build args", "cachefrom": "cache from"}


def _credentials(request: Request) -> Callable[[Reference], Credentials | None]:
    """Who the client is at each registry; as with dockerd a header that cannot be read counts as none."""
    header = request.headers.get("x-registry-config", "")
    found: dict[str, Credentials] = {}
    with contextlib.suppress(msgspec.MsgspecError, binascii.Error, ValueError, InvalidArgument):
        entries = msgspec.json.decode(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)), type=dict[str, RegistryAuth])
        for address, entry in entries.items():
            user, password = entry.username, entry.password
            if entry.auth and not user:
                user, _, password = base64.b64decode(entry.auth).decode().partition(":")
            credentials = Credentials(user, password, entry.identitytoken, entry.registrytoken, entry.serveraddress or address)
            found[credentials.domain] = credentials
    return lambda reference: found.get(reference.domain)
