"""``/networks``: list, inspect, create, remove, prune; connect and disconnect for containers that do not run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tare.api.docker.container_views import rfc3339
from tare.api.docker.filters import parse_until
from tare.api.docker.params import json_body, json_response, read_filters
from tare.errors import Conflict, Forbidden, InvalidArgument, NotFound, Unsupported
from tare.http.message import Request, Response
from tare.networks.model import Subnet
from tare.wire.container import EndpointSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tare.api.docker.filter_parameter import Filters
    from tare.engine import Engine
    from tare.networks.model import Network, NetworkView

_LIST_FILTERS = ("dangling", "driver", "id", "label", "label!", "name", "scope", "type", "until")


class IpamPool(msgspec.Struct, kw_only=True):
    subnet: str = msgspec.field(name="Subnet", default="")
    ip_range: str = msgspec.field(name="IPRange", default="")
    gateway: str = msgspec.field(name="Gateway", default="")
    auxiliary: dict[str, str] | None = msgspec.field(name="AuxiliaryAddresses", default=None)


class Ipam(msgspec.Struct, rename="pascal", kw_only=True):
    driver: str = ""
    options: dict[str, str] | None = None
    config: list[IpamPool] | None = None


class NetworkCreateRequest(msgspec.Struct, rename="pascal", kw_only=True):
    """Body of ``POST /networks/create``."""

    name: str = ""
    check_duplicate: bool = False
    driver: str = ""
    scope: str = ""
    enable_ipv4: bool | None = msgspec.field(name="EnableIPv4", default=None)
    enable_ipv6: bool | None = msgspec.field(name="EnableIPv6", default=None)
    ipam: Ipam | None = msgspec.field(name="IPAM", default=None)
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: dict[str, Any] | None = None
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class ConnectRequest(msgspec.Struct, rename="pascal", kw_only=True):
    """Body of ``POST /networks/{id}/connect`` and ``disconnect``."""

    container: str = ""
    endpoint_config: EndpointSettings | None = None
    force: bool = False


class NetworkHandlers:
    """Handlers of the network endpoints over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._networks = engine.networks
        self._containers = engine.containers

    async def list(self, request: Request) -> Response:
        wanted = self._filter(read_filters(request), _LIST_FILTERS)
        return json_response([network_view(view, with_containers=False) for view in self._networks.list() if wanted(view)])

    async def inspect(self, request: Request) -> Response:
        return json_response(network_view(self._networks.get(request.params["id"]), with_containers=True))

    async def create(self, request: Request) -> Response:
        body = await json_body(request, NetworkCreateRequest)
        if not body.name.strip():
            raise InvalidArgument("network name cannot be empty")
        for asked, what in (
            (body.ingress, "ingress networks"),
            (body.config_only, "config-only networks"),
            (body.config_from, "config-from"),
        ):
            if asked:
                raise Unsupported(f"{what} are not offered")
        if body.enable_ipv6:
            raise Unsupported("IPv6 networks are not offered in this release: create the network without --ipv6")
        network = await self._networks.create(
            body.name,
            driver=body.driver or "bridge",
            subnets=_subnets(body.ipam),
            internal=body.internal,
            attachable=body.attachable,
            options=body.options,
            labels=body.labels,
        )
        return json_response({"Id": network.id, "Warning": ""}, 201)

    async def remove(self, request: Request) -> Response:
        await self._networks.remove(request.params["id"])
        return Response(status=204)

    async def prune(self, request: Request) -> Response:
        wanted = self._filter(read_filters(request), ("label", "label!", "until"))
        named = {c for container in self._containers.all() for c in container.record.networks}
        removed = await self._networks.prune(lambda network: network.name not in named and wanted(self._networks.get(network.id)))
        return json_response({"NetworksDeleted": [network.name for network in removed] or None})

    async def connect(self, request: Request) -> Response:
        body = await json_body(request, ConnectRequest)
        network = self._networks.get(request.params["id"]).network
        container = self._containers.get(body.container)
        if container.record.host_config.network_mode in ("host", "none") or network.name in ("host", "none"):
            raise Forbidden("container cannot be connected to host network - container must be created in host network mode")
        if network.name in container.record.networks:
            raise Forbidden(f"endpoint with name {container.name} already exists in network {network.name}")
        if container.running:
            raise Unsupported("connecting a running container is not offered in this release: stop it first, or name the network at run")
        self._containers.set_network(container, network.name, body.endpoint_config or EndpointSettings())
        return Response(status=200)

    async def disconnect(self, request: Request) -> Response:
        body = await json_body(request, ConnectRequest)
        network = self._networks.get(request.params["id"]).network
        container = self._containers.get(body.container)
        if network.name not in container.record.networks:
            raise NotFound(f"container {container.id} is not connected to network {network.name}")
        if container.running:
            raise Conflict("disconnecting a running container is not offered in this release: stop it first")
        self._containers.set_network(container, network.name, None)
        return Response(status=200)

    @staticmethod
    def _filter(filters: Filters, accepted: tuple[str, ...]) -> Callable[[NetworkView], bool]:
        for key in filters:
            if key not in accepted:
                raise InvalidArgument(f"invalid filter '{key}'")
        for value in filters.get("type", []):
            if value not in ("builtin", "custom"):
                raise InvalidArgument(f"invalid filter 'type={value}'")
        tests: dict[str, Callable[[Network, str], bool]] = {
            "driver": lambda n, value: n.driver == value,
            "id": lambda n, value: n.id.startswith(value),
            "name": lambda n, value: value in n.name,
            "scope": lambda n, value: n.scope == value,
            "type": lambda n, value: n.predefined == (value == "builtin"),
        }

        def wanted(view: NetworkView) -> bool:
            network = view.network
            for key, test in tests.items():
                if key in filters and not any(test(network, value) for value in filters[key]):
                    return False
            if "dangling" in filters and (filters["dangling"][0] in ("1", "true")) != (not view.connections and not network.predefined):
                return False
            if "until" in filters and network.created >= parse_until(filters["until"][0]):
                return False
            if not all(_labelled(network, text) for text in filters.get("label", [])):
                return False
            return not any(_labelled(network, text) for text in filters.get("label!", []))

        return wanted


def _labelled(network: Network, text: str) -> bool:
    key, equals, value = text.partition("=")
    return key in network.labels and (not equals or network.labels[key] == value)


def _subnets(ipam: Ipam | None) -> list[Subnet]:
    if ipam is None:
        return []
    if ipam.driver not in ("", "default"):
        raise InvalidArgument(f"ipam driver {ipam.driver!r} is not offered: only default is")
    pools = ipam.config or []
    if len(pools) > 1:
        raise Unsupported("several address pools for one network are not offered in this release")
    for pool in pools:
        if pool.auxiliary:
            raise Unsupported("auxiliary addresses are not offered in this release")
    return [Subnet(pool.subnet, pool.gateway, pool.ip_range) for pool in pools]


def network_view(view: NetworkView, *, with_containers: bool) -> dict[str, Any]:
    """A network as the API shows it; the list leaves the containers out."""
    network = view.network
    containers = {
        connection.container_id: {
            "Name": connection.container_name,
            "EndpointID": connection.endpoint_id,
            "MacAddress": connection.mac,
            "IPv4Address": connection.cidr,
            "IPv6Address": "",
        }
        for connection in (view.connections if with_containers else ())
    }
    pools = [
        {"Subnet": pool.subnet, **({"IPRange": pool.ip_range} if pool.ip_range else {}), "Gateway": pool.gateway}
        for pool in network.subnets
    ]
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": rfc3339(network.created),
        "Scope": network.scope,
        "Driver": "null" if network.name == "none" else network.driver,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": network.ipam_driver, "Options": dict(network.ipam_options) or None, "Config": pools or None},
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": containers,
        "Options": dict(network.options),
        "Labels": dict(network.labels),
    }
