"""What Tare does not have, answered as a dockerd answers that has none of it: plugins, and everything of a swarm."""

from __future__ import annotations

from tare.api.docker.params import integer, json_response, read_filters
from tare.errors import InvalidArgument, NotFound, Unavailable, Unsupported
from tare.http.message import Request, Response

SWARM_FAMILIES = ("swarm", "nodes", "services", "tasks", "secrets", "configs")

NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'
)
_NO_SWARM = "swarm mode is not offered by Tare: containers run on this machine only"
_NO_PLUGINS = "plugins are not offered by Tare: network, volume and log drivers are built in"


async def swarm(request: Request) -> Response:
    """Every endpoint of a swarm but the three below."""
    raise Unavailable(NOT_A_MANAGER)


async def swarm_begin(request: Request) -> Response:
    """``POST /swarm/init`` and ``/swarm/join``."""
    raise Unsupported(_NO_SWARM)


async def swarm_leave(request: Request) -> Response:
    raise Unavailable("This node is not part of a swarm")


async def plugin_list(request: Request) -> Response:
    read_filters(request).check(("capability", "enabled")).flag("enabled")
    return json_response([])


async def plugin(request: Request) -> Response:
    """Any endpoint about one plugin."""
    if request.path.endswith("/enable") and integer(request, "timeout", None) is None:
        raise InvalidArgument('strconv.Atoi: parsing "": invalid syntax')
    raise NotFound(f'plugin "{request.params["name"]}" not found')


async def plugin_install(request: Request) -> Response:
    """``GET /plugins/privileges``, ``POST /plugins/pull`` and ``/plugins/create``."""
    raise Unsupported(_NO_PLUGINS)


async def options(request: Request) -> Response:
    """``OPTIONS`` of any path: fine, and nothing more. No header lets a browser's page of another origin call the API."""
    return Response(200)
