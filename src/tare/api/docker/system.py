"""The engine as a whole: ``/_ping``, ``/version``, ``/info``, ``/events``, ``/auth``."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import time
from typing import TYPE_CHECKING

from tare.api.docker import info, versions
from tare.api.docker.event_filter import ALLOWED, EventFilter
from tare.api.docker.params import json_response, read_filters, timestamp
from tare.api.docker.streams import JsonStream
from tare.api.docker.versions import ApiVersion
from tare.errors import InvalidArgument, Unsupported
from tare.http.message import ClientDisconnected, Request, RequestError, Response
from tare.wire import system as wire

if TYPE_CHECKING:
    from tare.engine import Engine
    from tare.events import Event

_PING = Response(
    200,
    b"OK",
    "text/plain; charset=utf-8",
    (("Cache-Control", "no-cache, no-store, must-revalidate"), ("Pragma", "no-cache"), ("Swarm", "inactive")),
)
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class SystemHandlers:
    """Handlers of the system endpoints over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._version: Response | None = None

    async def ping(self, request: Request) -> Response:
        return _PING

    async def version(self, request: Request) -> Response:
        if self._version is None:
            self._version = json_response(version_document(experimental=self._engine.containers.checkpoints.criu.offered))
        return self._version

    async def info(self, request: Request, version: ApiVersion) -> Response:
        return json_response(info.document(self._engine, version))

    async def no_builder(self, request: Request) -> Response:
        if request.params.get("rest") is None and request.path.endswith(("/session", "/grpc")) and request.upgrade is None:
            raise RequestError(400, "no upgrade proto in request")
        raise Unsupported("BuildKit's sessions are not offered by Tare: build with 'tare build', or with DOCKER_BUILDKIT=0")

    async def events(self, request: Request, version: ApiVersion) -> None:
        """Replay what happened since ``since``, then follow, until ``until`` or until the client goes."""
        since, until = timestamp(request, "since"), timestamp(request, "until")
        if since is not None and until is not None and since > until:
            given = request.query
            raise InvalidArgument(f"`since` time ({given['since']}) cannot be after `until` time ({given['until']})")
        wanted = EventFilter(read_filters(request).check(ALLOWED))
        bus = self._engine.events
        with bus.subscribe() as subscription:  # before the history is read, in one step of the loop: nothing is lost or doubled
            past = [] if since is None else [event for event in bus.history() if event.time_nano >= since]
            stream = await JsonStream.open(request)
            for event in past:
                if (until is None or event.time_nano <= until) and wanted(event):
                    await stream.send(event_document(event))
            left = None if until is None else (until - time.time_ns()) / 1e9
            if left is not None and left <= 0:
                return
            try:
                async with request.until_disconnected(), asyncio.timeout(left):
                    async for event in subscription:
                        if until is not None and event.time_nano > until:
                            return
                        if wanted(event):
                            await stream.send(event_document(event))
            except (TimeoutError, ClientDisconnected):
                pass


def architecture() -> str:
    """The machine's, in Go's words."""
    machine = os.uname().machine
    return ARCHITECTURES.get(machine, machine)


def event_document(event: Event) -> wire.EventMessage:
    """The event as Docker's clients read it."""
    message = wire.EventMessage(
        type=event.type,
        action=event.action,
        actor=wire.Actor(id=event.actor_id, attributes=dict(event.attributes)),
        scope=event.scope,
        time=event.time_nano // 1_000_000_000,
        time_nano=event.time_nano,
    )
    if event.type in ("container", "image"):
        message.status, message.id = event.action, event.actor_id
    if event.type == "container":
        message.origin = event.attributes.get("image", "")
    return message


def version_document(*, experimental: bool = False) -> wire.Version:
    """Honest about what this is: the engine is Tare, and the field for Go's version names Python's."""
    uname = os.uname()
    arch = architecture()
    own = versions.engine_version()
    python = f"python{platform.python_version()}"
    details = {
        "ApiVersion": versions.text(versions.MAXIMUM),
        "MinAPIVersion": versions.text(versions.MINIMUM),
        "Os": "linux",
        "Arch": arch,
        "KernelVersion": uname.release,
        "GoVersion": python,
        "Experimental": str(experimental).lower(),
    }
    return wire.Version(
        platform=wire.Platform(name=f"Tare Engine {own}"),
        components=[
            wire.Component(name="Engine", version=own, details=details),
            wire.Component(name="tare-runtime", version=own),
            wire.Component(name="python", version=platform.python_version(), details={"Executable": sys.executable}),
        ],
        version=own,
        api_version=versions.text(versions.MAXIMUM),
        min_api_version=versions.text(versions.MINIMUM),
        go_version=python,
        arch=arch,
        kernel_version=uname.release,
    )
