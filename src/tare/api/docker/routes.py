"""The table of the Docker API: which handler answers which method and path.

A handler takes the request and the API version; ``plain`` adapts one that does not care about the version.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from tare.api.docker import absent
from tare.api.docker.archive import ArchiveHandlers
from tare.api.docker.build import BuildHandlers
from tare.api.docker.buildcache import BuildCacheHandlers
from tare.api.docker.checkpoints import CheckpointHandlers
from tare.api.docker.containers import ContainerHandlers
from tare.api.docker.df import UsageHandlers
from tare.api.docker.execs import ExecHandlers
from tare.api.docker.fsck import CheckHandlers
from tare.api.docker.images import ImageHandlers
from tare.api.docker.networks import NetworkHandlers
from tare.api.docker.registries import RegistryHandlers
from tare.api.docker.system import SystemHandlers
from tare.api.docker.versions import ApiVersion
from tare.api.docker.volumes import VolumeHandlers
from tare.http.message import Request, Response
from tare.http.routing import Router

if TYPE_CHECKING:
    from tare.engine import Engine

Handler = Callable[[Request, ApiVersion], Awaitable[Response | None]]
Routes = Router[Handler]


def plain(handler: Callable[[Request], Awaitable[Response | None]]) -> Handler:
    def call(request: Request, version: ApiVersion) -> Awaitable[Response | None]:
        return handler(request)

    return call


def table(engine: Engine) -> Routes:
    """All endpoints over one engine."""
    routes: Routes = Router()
    add_system(routes, SystemHandlers(engine))
    routes.add("GET", "/system/df", UsageHandlers(engine, ContainerHandlers(engine)).usage)
    routes.add("POST", "/system/fsck", plain(CheckHandlers(engine).fsck))
    add_registries(routes, RegistryHandlers(engine))
    add_images(routes, ImageHandlers(engine))
    add_checkpoints(routes, CheckpointHandlers(engine))  # before DELETE /containers/{id:*}
    add_containers(routes, ContainerHandlers(engine))
    add_archives(routes, ArchiveHandlers(engine))
    add_builder(routes, BuildHandlers(engine), BuildCacheHandlers(engine))
    add_execs(routes, ExecHandlers(engine))
    add_networks(routes, NetworkHandlers(engine))
    add_volumes(routes, VolumeHandlers(engine))
    add_absent(routes)
    return routes


def add_system(routes: Routes, system: SystemHandlers) -> None:
    routes.add("GET", "/_ping", plain(system.ping))
    routes.add("HEAD", "/_ping", plain(system.ping))
    routes.add("GET", "/version", plain(system.version))
    routes.add("GET", "/info", system.info)
    routes.add("GET", "/events", system.events)
    for method, path in (("POST", "/session"), ("POST", "/grpc")):
        routes.add(method, path, plain(system.no_builder))


def add_builder(routes: Routes, builder: BuildHandlers, cache: BuildCacheHandlers) -> None:
    routes.add("POST", "/build", plain(builder.build))
    routes.add("POST", "/build/prune", plain(cache.prune))
    routes.add("POST", "/build/cancel", plain(builder.cancel))
    routes.add("POST", "/tare/builds", plain(builder.open_session))
    routes.add("PUT", "/tare/builds/{id}/files/{name}", plain(builder.upload))
    routes.add("PUT", "/tare/builds/{id}/listing", plain(builder.listing))
    routes.add("POST", "/tare/builds/{id}/agents/{number}", plain(builder.agent))
    routes.add("GET", "/tare/builds/{id}/exports/{number}", plain(builder.export))
    routes.add("GET", "/tare/history", plain(cache.history))
    routes.add("GET", "/tare/history/{id}", plain(cache.record))
    routes.add("GET", "/tare/history/{id}/log", plain(cache.log))
    routes.add("DELETE", "/tare/history/{id}", plain(cache.forget))


def add_absent(routes: Routes) -> None:
    routes.add("OPTIONS", "/{path:*}", plain(absent.options))
    routes.add("GET", "/plugins", plain(absent.plugin_list))
    for method, path in (("GET", "/plugins/privileges"), ("POST", "/plugins/pull"), ("POST", "/plugins/create")):
        routes.add(method, path, plain(absent.plugin_install))
    routes.add("GET", "/plugins/{name:*}/json", plain(absent.plugin))
    routes.add("DELETE", "/plugins/{name:*}", plain(absent.plugin))
    for name in ("enable", "disable", "push", "upgrade", "set"):
        routes.add("POST", f"/plugins/{{name:*}}/{name}", plain(absent.plugin))
    for path in ("/swarm/init", "/swarm/join"):
        routes.add("POST", path, plain(absent.swarm_begin))
    routes.add("POST", "/swarm/leave", plain(absent.swarm_leave))
    for family in absent.SWARM_FAMILIES:
        for method in ("GET", "POST", "DELETE"):
            routes.add(method, f"/{family}", plain(absent.swarm))
            routes.add(method, f"/{family}/{{rest:*}}", plain(absent.swarm))


def add_images(routes: Routes, images: ImageHandlers) -> None:
    routes.add("POST", "/images/create", plain(images.create))
    routes.add("GET", "/images/json", images.list)
    routes.add("GET", "/images/search", plain(images.search))
    routes.add("POST", "/images/load", plain(images.load))
    routes.add("GET", "/images/get", plain(images.save))
    routes.add("POST", "/images/prune", plain(images.prune))
    routes.add("GET", "/images/{name:*}/get", plain(images.save))
    routes.add("GET", "/images/{name:*}/json", images.inspect)
    routes.add("GET", "/images/{name:*}/history", plain(images.history))
    routes.add("POST", "/images/{name:*}/tag", plain(images.tag))
    routes.add("DELETE", "/images/{name:*}", plain(images.delete))


def add_registries(routes: Routes, registries: RegistryHandlers) -> None:
    routes.add("POST", "/auth", plain(registries.auth))
    routes.add("POST", "/images/{name:*}/push", plain(registries.push))
    routes.add("GET", "/distribution/{name:*}/json", plain(registries.distribution))
    routes.add("GET", "/distribution/{name:*}/manifest", plain(registries.manifest))
    routes.add("PUT", "/distribution/{name:*}/manifest", plain(registries.publish))


def add_containers(routes: Routes, containers: ContainerHandlers) -> None:
    routes.add("POST", "/containers/create", containers.create)
    routes.add("GET", "/containers/json", containers.index)
    routes.add("POST", "/containers/prune", plain(containers.prune))
    routes.add("GET", "/containers/{id:*}/json", containers.inspect)
    routes.add("DELETE", "/containers/{id:*}", plain(containers.remove))
    for name in ("start", "kill", "pause", "unpause", "rename", "resize"):
        routes.add("POST", f"/containers/{{id}}/{name}", plain(getattr(containers, name)))
    for name in ("stop", "restart", "update", "wait"):
        routes.add("POST", f"/containers/{{id}}/{name}", getattr(containers, name))
    for name in ("top", "changes"):
        routes.add("GET", f"/containers/{{id}}/{name}", plain(getattr(containers, name)))
    routes.add("GET", "/containers/{id}/stats", containers.stats)
    routes.add("POST", "/containers/{id}/attach", containers.attach)
    routes.add("GET", "/containers/{id}/attach/ws", containers.attach_websocket)
    routes.add("GET", "/containers/{id}/logs", containers.logs)


def add_checkpoints(routes: Routes, checkpoints: CheckpointHandlers) -> None:
    routes.add("GET", "/containers/{id}/checkpoints", plain(checkpoints.list))
    routes.add("POST", "/containers/{id}/checkpoints", plain(checkpoints.create))
    routes.add("DELETE", "/containers/{id}/checkpoints/{checkpoint}", plain(checkpoints.remove))


def add_archives(routes: Routes, archives: ArchiveHandlers) -> None:
    routes.add("HEAD", "/containers/{id}/archive", plain(archives.head))
    routes.add("GET", "/containers/{id}/archive", plain(archives.get))
    routes.add("PUT", "/containers/{id}/archive", plain(archives.put))
    routes.add("GET", "/containers/{id}/export", plain(archives.export))
    routes.add("POST", "/commit", plain(archives.commit))


def add_execs(routes: Routes, execs: ExecHandlers) -> None:
    routes.add("POST", "/containers/{id}/exec", plain(execs.create))
    routes.add("POST", "/exec/{id}/start", execs.start)
    routes.add("GET", "/exec/{id}/json", plain(execs.inspect))
    routes.add("POST", "/exec/{id}/resize", plain(execs.resize))


def add_networks(routes: Routes, networks: NetworkHandlers) -> None:
    routes.add("GET", "/networks", plain(networks.list))
    routes.add("POST", "/networks/create", plain(networks.create))
    routes.add("POST", "/networks/prune", plain(networks.prune))
    routes.add("GET", "/networks/{id}", plain(networks.inspect))
    routes.add("DELETE", "/networks/{id}", plain(networks.remove))
    routes.add("POST", "/networks/{id}/connect", plain(networks.connect))
    routes.add("POST", "/networks/{id}/disconnect", plain(networks.disconnect))


def add_volumes(routes: Routes, volumes: VolumeHandlers) -> None:
    routes.add("GET", "/volumes", plain(volumes.list))
    routes.add("POST", "/volumes/create", plain(volumes.create))
    routes.add("POST", "/volumes/prune", volumes.prune)
    routes.add("GET", "/volumes/{name}", plain(volumes.inspect))
    routes.add("PUT", "/volumes/{name}", plain(volumes.update))
    routes.add("GET", "/volumes/{name}/export", plain(volumes.export))
    routes.add("POST", "/volumes/{name}/import", plain(volumes.load))
    routes.add("POST", "/volumes/{name}/clone", plain(volumes.clone))
    routes.add("DELETE", "/volumes/{name}", plain(volumes.remove))
