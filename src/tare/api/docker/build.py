"""``/build``: images from Dockerfiles, as the classic builder of dockerd offers it, and the build cache.

What the classic endpoint cannot say (secrets, agents, named contexts, entitlements) comes in a header of our own, ``X-Tare-Build``: base64
of a JSON object. It is only sent by our own command line, to a daemon that has answered as Tare.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from tare.api.docker.filters import parse_until
from tare.api.docker.params import boolean, integer, json_response, read_filters
from tare.api.docker.streams import JsonStream
from tare.builder.context import empty, receive
from tare.builder.remotes import open_context
from tare.builder.request import BuildRequest, Built, Message, RunFailed, Text
from tare.builder.service import CacheEntry
from tare.builder.trees import TarTree
from tare.distribution.auth import Credentials
from tare.errors import InvalidArgument, Unsupported
from tare.http.message import Request, Response
from tare.oci.platform import Platform
from tare.oci.reference import Reference
from tare.wire.container import HostConfig, Ulimit

if TYPE_CHECKING:
    from tare.engine import Engine


_KEPT = 4096
"""Messages of a quiet build that are kept for the case that it fails."""


class BuildExtras(msgspec.Struct, forbid_unknown_fields=True):
    """The header ``X-Tare-Build``."""

    secrets: dict[str, bytes] = {}
    agents: dict[str, str] = {}
    contexts: dict[str, str] = {}
    allow: list[str] = []
    epoch: int | None = None


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
        options = build_request(request)
        quiet = boolean(request, "q")
        context, options = await self._context(request, options)
        feed = _Feed(request, quiet=quiet)
        try:
            async with request.until_disconnected():
                try:
                    image = await self._builder.build(options, context, feed.say)
                    if quiet:
                        await feed.send({"stream": f"{image.id}\n"})
                except Exception as error:
                    await feed.fail(error)
        finally:
            context.close()

    async def _context(self, request: Request, options: BuildRequest) -> tuple[TarTree, BuildRequest]:
        remote = request.query.get("remote", "")
        scratch = self._builder.scratch
        if remote and remote != "client-session":
            await request.read()
            tree, text = await asyncio.to_thread(open_context, remote, scratch)
            return tree, options if text is None else replace(options, dockerfile_text=text)
        if request.query.get("dockerfile") == "-":
            return await asyncio.to_thread(empty, scratch), options
        return await receive(request.chunks(), scratch), options

    async def prune(self, request: Request) -> Response:
        filters = read_filters(request).check(_PRUNE_FILTERS)
        if filters.get("label"):  # `system prune --filter label=…` comes here as well; a cache record has no labels, so none matches
            return json_response({"CachesDeleted": None, "SpaceReclaimed": 0})
        wanted = _wanted(filters)
        keep = integer(request, "reserved-space", 0) or integer(request, "keep-storage", 0)
        gone, freed = await self._builder.prune(wanted, everything=boolean(request, "all"), keep=keep)
        return json_response({"CachesDeleted": gone or None, "SpaceReclaimed": freed})

    async def cancel(self, request: Request) -> Response:
        raise Unsupported("builds are cancelled by closing their connection")


_PRUNE_FILTERS = ("description", "id", "inuse", "label", "label!", "parent", "private", "shared", "type", "until", "unused-for")


class _Feed:
    """The build's messages on their way to the client; the head of the answer leaves with the first.

    A quiet build says only its image's id; when it fails, the (last) output is told after all.
    """

    def __init__(self, request: Request, *, quiet: bool) -> None:
        self._request = request
        self._quiet = quiet
        self._kept: deque[Message] = deque(maxlen=_KEPT)
        self.stream: JsonStream | None = None

    async def say(self, message: Message) -> None:
        if self._quiet:
            self._kept.append(message)
        else:
            await self._tell(message)

    async def _tell(self, message: Message) -> None:
        if isinstance(message, Text):
            await self.send({"stream": message.text})
        elif isinstance(message, Built):
            await self.send({"aux": {"ID": message.id}})
        else:
            await self.send(message.document())

    async def send(self, document: dict[str, Any]) -> None:
        if self.stream is None:
            self.stream = await JsonStream.open(self._request, end=b"\r\n")
        await self.stream.send(document)

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


def build_request(request: Request) -> BuildRequest:
    """The options of a build in the words of ``POST /build``."""
    query = request.query
    if query.get("version", "") == "2":
        raise Unsupported("BuildKit sessions are not offered by this engine: set DOCKER_BUILDKIT=0, or use 'tare build'")
    if query.get("outputs"):
        raise Unsupported("outputs other than an image are not offered by POST /build: use 'tare build --output'")
    if boolean(request, "squash"):
        raise InvalidArgument("squash is only supported with experimental mode")
    extras = _extras(request)
    platform = query.get("platform", "")
    return BuildRequest(
        tags=tuple(_tag(name) for name in query.all("t") if name),
        dockerfile=query.get("dockerfile", "") or "Dockerfile",
        build_args={name: value for name, value in _json(request, "buildargs", dict[str, str | None]).items() if value is not None},
        labels=_json(request, "labels", dict[str, str]),
        target=query.get("target", ""),
        platform=str(Platform.parse(platform)) if platform else "",
        no_cache=boolean(request, "nocache"),
        pull=boolean(request, "pull"),
        cache_from=tuple(_json(request, "cachefrom", list[str], [])),
        host=_host(request),
        remove=boolean(request, "rm", True),
        credentials=_credentials(request),
        secrets=extras.secrets,
        agents=extras.agents,
        contexts=extras.contexts,
        allow=frozenset(extras.allow),
        epoch=extras.epoch,
    )


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


def _extras(request: Request) -> BuildExtras:
    header = request.headers.get("x-tare-build", "")
    if not header:
        return BuildExtras()
    try:
        return msgspec.json.decode(base64.b64decode(header), type=BuildExtras)
    except (msgspec.MsgspecError, binascii.Error) as error:
        raise InvalidArgument(f"malformed header X-Tare-Build: {error}") from None


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


def _wanted(filters: dict[str, list[str]]) -> Callable[[CacheEntry], bool]:
    ages = filters.get("until", []) + filters.get("unused-for", [])
    before = [parse_until(age) / 1e9 for age in ages]

    def wanted(entry: CacheEntry) -> bool:
        return (
            all(entry.used <= limit for limit in before)
            and all(entry.id.startswith(text) for text in filters.get("id", ()))
            and all(entry.type == text for text in filters.get("type", ()))
            and all(text in entry.description for text in filters.get("description", ()))
            and all(entry.shared == (text.lower() in ("", "1", "true")) for text in filters.get("shared", ()))
            and all(entry.shared != (text.lower() in ("", "1", "true")) for text in filters.get("private", ()))
        )

    return wanted
