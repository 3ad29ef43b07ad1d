"""``/containers``: create, look at, start, stop, wait for, attach to and remove containers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from tare.api.docker import container_views as views
from tare.api.docker import version_differences as differences
from tare.api.docker.attach import attach_request, detach_keys
from tare.api.docker.filters import container_filter
from tare.api.docker.logs import stream_logs
from tare.api.docker.params import boolean, integer, json_body, json_bytes, json_response, parse_json, read_filters, terminal_size
from tare.containers.signals import parse_signal
from tare.containers.stats import stats_document, stats_stream
from tare.containers.top import top
from tare.errors import InvalidArgument, NotFound
from tare.http.message import ClientDisconnected, Request, Response
from tare.wire.container import Config, CreateRequest, HostConfig, UpdateRequest

if TYPE_CHECKING:
    from tare.api.docker.versions import ApiVersion
    from tare.containers.container import Container
    from tare.containers.record import Record
    from tare.containers.task import Exit
    from tare.engine import Engine
    from tare.networks.model import Connection

ImageNames = dict[tuple[str, str], str]
"""What containers of one list show as their image, by the name and the image that they were made with: many have the same."""

NO_CONTENT = Response(status=204)

_EMPTY_OBJECT = 7
"""Bytes of a body of start that dockerd takes for an empty object; more is a host configuration, which start does not take."""
_NO_HOST_CONFIG = HostConfig()
_CONFIG_DEFAULTS = tuple(zip(Config.__struct_fields__, Config.__struct_defaults__, strict=True))


class ContainerHandlers:
    """Handlers of the container endpoints over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._containers = engine.containers

    def _get(self, request: Request) -> Container:
        return self._containers.get(request.params["id"])

    # -- create, list, inspect --------------------------------------------------------------------------------------------------------

    async def create(self, request: Request, version: ApiVersion) -> Response:
        raw = await json_bytes(request)
        body = parse_json(CreateRequest, raw)
        if body.host_config == _NO_HOST_CONFIG:
            body.host_config = parse_json(HostConfig, raw)  # some clients put its fields beside the config's: dockerd takes them
        if not any(getattr(body, field) != field_default for field, field_default in _CONFIG_DEFAULTS):
            raise InvalidArgument("config cannot be empty in order to create a container")
        differences.create_request(body, version)
        name = request.query.get("name", "")
        platform = request.query.get("platform", "") if version >= (1, 41) else ""
        container, warnings = await self._containers.create(body, name, platform)
        return json_response({"Id": container.id, "Warnings": warnings}, 201)

    async def index(self, request: Request, version: ApiVersion) -> Response:
        filters = read_filters(request)
        limit = integer(request, "limit", 0)
        everything = boolean(request, "all") or limit > 0
        wanted = container_filter(filters, self._containers, self._engine.images)
        size = boolean(request, "size")
        items: list[dict[str, Any]] = []
        names: ImageNames = {}
        links = self._containers.link_names()
        for container in self._containers.all():
            if not (everything or container.running or "status" in filters or "exited" in filters) or not wanted(container):
                continue
            items.append(differences.list_item(await self._list_item(container, size, names, links), version))
            if limit > 0 and len(items) >= limit:
                break
        return json_response(items)

    async def summaries(self, version: ApiVersion) -> list[dict[str, Any]]:
        """Every container as the list shows it, with sizes."""
        names: ImageNames = {}
        links = self._containers.link_names()
        return [differences.list_item(await self._list_item(each, True, names, links), version) for each in self._containers.all()]

    async def _list_item(self, container: Container, size: bool, names: ImageNames, links: Mapping[str, list[str]]) -> dict[str, Any]:
        record = container.record
        image = (record.config.image, record.image)
        if image not in names:
            names[image] = self._image_name(record)
        return views.list_view(
            container,
            names=sorted((record.name, *links.get(record.id, ()))),
            image_name=names[image],
            connections=self._connections(record),
            mounts=self._mounts(record),
            sizes=await self._sizes(record) if size else None,
        )

    def _connections(self, record: Record) -> dict[str, Connection]:
        return {connection.network_name: connection for connection in self._engine.networks.connections(record.id)}

    def _image_name(self, record: Record) -> str:
        """The name that the container was made with, or the image's id when that name means another image by now."""
        try:
            if self._engine.images.get(record.config.image).id == record.image:
                return record.config.image
        except (NotFound, InvalidArgument):
            pass
        return record.image

    def _mounts(self, record: Record) -> list[dict[str, Any]]:
        return [
            views.mount_view(point, str(self._engine.volumes.mountpoint(point.name)) if point.type == "volume" else point.source)
            for point in record.mounts
            if point.type != "tmpfs" or point.from_mounts
        ]

    async def _sizes(self, record: Record) -> tuple[int, int]:
        own = await asyncio.to_thread(self._engine.snapshots.usage, record.id)
        return own, own + self._engine.images.size_of(record.image)

    async def inspect(self, request: Request, version: ApiVersion) -> Response:
        container = self._get(request)
        record = container.record
        launcher = self._containers.launcher
        view = views.inspect_view(
            container,
            connections=self._connections(record),
            paths=launcher.paths(record),
            mounts=self._mounts(record),
            graph=launcher.graph_driver(record),
            exec_ids=sorted(container.exec_ids) or None,
            sizes=await self._sizes(record) if boolean(request, "size") else None,
        )
        return json_response(differences.inspect_view(view, version))

    # -- start, stop, ... -------------------------------------------------------------------------------------------------------------

    async def start(self, request: Request) -> Response:
        if request.head.chunked or (request.head.content_length or 0) > _EMPTY_OBJECT:
            raise InvalidArgument("starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
        await request.read()
        container = self._get(request)
        name, directory = request.query.get("checkpoint", ""), request.query.get("checkpoint-dir", "")
        restore = await self._containers.checkpoints.find(container, name, directory) if name else None
        await self._containers.lifecycle.start(container, restore)
        return NO_CONTENT

    async def stop(self, request: Request, version: ApiVersion) -> Response:
        timeout, signal_name = _stop_options(request, version)
        await self._containers.lifecycle.stop(self._get(request), timeout, signal_name)
        return NO_CONTENT

    async def restart(self, request: Request, version: ApiVersion) -> Response:
        timeout, signal_name = _stop_options(request, version)
        await self._containers.lifecycle.restart(self._get(request), timeout, signal_name)
        return NO_CONTENT

    async def kill(self, request: Request) -> Response:
        name = request.query.get("signal", "")
        if name:
            parse_signal(name)
        try:
            container = self._get(request)
        except NotFound as error:
            raise NotFound(f"cannot kill container: {request.params['id']}: {error}") from None
        await self._containers.lifecycle.kill(container, name, request.params["id"])
        return NO_CONTENT

    async def pause(self, request: Request) -> Response:
        await self._containers.lifecycle.pause(self._get(request))
        return NO_CONTENT

    async def unpause(self, request: Request) -> Response:
        await self._containers.lifecycle.unpause(self._get(request))
        return NO_CONTENT

    async def rename(self, request: Request) -> Response:
        self._containers.rename(self._get(request), request.query.get("name", ""))
        return NO_CONTENT

    async def update(self, request: Request, version: ApiVersion) -> Response:
        body = await json_body(request, UpdateRequest)
        differences.update_request(body, version)
        warnings = await self._containers.update(self._get(request), body)
        return json_response({"Warnings": warnings or None})

    async def remove(self, request: Request) -> Response:
        self._get(request)
        if boolean(request, "link"):
            await self._containers.remove_link(request.params["id"])
            return NO_CONTENT
        await self._containers.remove(self._get(request), force=boolean(request, "force"), volumes=boolean(request, "v"))
        return NO_CONTENT

    async def prune(self, request: Request) -> Response:
        filters = read_filters(request)
        wanted = container_filter(filters, self._containers, self._engine.images, prune=True)
        removed, freed = await self._containers.prune(wanted)
        return json_response({"ContainersDeleted": removed or None, "SpaceReclaimed": freed})

    # -- wait -------------------------------------------------------------------------------------------------------------------------

    async def wait(self, request: Request, version: ApiVersion) -> Response | None:
        condition = (request.query.get("condition", "") if version >= (1, 30) else "") or "not-running"
        if condition not in ("not-running", "next-exit", "removed"):
            raise InvalidArgument(f'invalid condition: "{condition}"')
        container = self._get(request)
        await request.read()
        future = container.removal() if condition == "removed" else container.next_exit()
        if condition == "not-running" and not container.running:
            future.set_result(container.last_exit())
        # The head must reach the client before the container is started: it waits for it.
        stream = await request.stream()
        try:
            async with request.until_disconnected():
                exit: Exit = await future
        except ClientDisconnected:
            return None
        finally:
            future.cancel()
        answer: dict[str, Any] = {"StatusCode": exit.code}
        if exit.error:
            answer["Error"] = {"Message": exit.error}
        await stream.write(msgspec.json.encode(answer) + b"\n")
        return None

    # -- streams ----------------------------------------------------------------------------------------------------------------------

    async def attach(self, request: Request, version: ApiVersion) -> None:
        await attach_request(self._containers, self._get(request), request, detach_keys(request), version)

    async def attach_websocket(self, request: Request, version: ApiVersion) -> None:
        await attach_request(self._containers, self._get(request), request, detach_keys(request), version, websocket=True)

    async def logs(self, request: Request, version: ApiVersion) -> None:
        await stream_logs(self._containers, self._get(request), request, version)

    async def resize(self, request: Request) -> Response:
        rows, columns = terminal_size(request)
        container = self._get(request)
        task = self._containers.lifecycle.require_task(container)
        if container.record.config.tty:  # without a terminal there is nothing to do, and dockerd says that this went well
            await task.resize(rows, columns)
        return Response(status=200)

    async def top(self, request: Request) -> Response:
        container = self._get(request)
        task = self._containers.lifecycle.require_task(container)
        return json_response(await top(self._containers.cgroup(container).pids(), task.pid, request.query.get("ps_args", "") or "-ef"))

    async def stats(self, request: Request, version: ApiVersion) -> Response | None:
        container = self._get(request)
        follow = "stream" not in request.query or boolean(request, "stream")
        if not follow:
            one_shot = version >= (1, 41) and boolean(request, "one-shot")
            return json_response(await stats_document(self._containers, container, one_shot=one_shot))
        stream = await request.stream()
        async for document in stats_stream(self._containers, container):
            await stream.write(msgspec.json.encode(document) + b"\n")
        return None

    async def changes(self, request: Request) -> Response:
        container = self._get(request)
        changes = await asyncio.to_thread(self._engine.snapshots.diff, container.id)
        shown = [{"Path": change.path, "Kind": int(change.kind)} for change in changes if not _of_the_engine(change.path)]
        if not any(item["Path"] != "/etc" and str(item["Path"]).startswith("/etc/") for item in shown):
            shown = [item for item in shown if item["Path"] != "/etc"]  # changed only by our mount points in it
        return json_response(shown or None)


def _stop_options(request: Request, version: ApiVersion) -> tuple[int | None, str]:
    """Timeout and signal of stop and restart; the signal exists since 1.42."""
    return integer(request, "t", None), request.query.get("signal", "") if version >= (1, 42) else ""


def _of_the_engine(path: str) -> bool:
    """Mount points that the engine made in the container's layer; dockerd hides its own in a layer of their own."""
    return path in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/.dockerenv")
