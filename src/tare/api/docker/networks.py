"""``/networks``: list, inspect, create, remove, prune; connect and disconnect for containers that do not run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tare.api.docker.container_views import rfc3339
from tare.api.docker.filters import parse_until
from tare.api.docker.params import json_body, json_response, read_filters
from tare.errors import Forbidden, InvalidArgument, NotFound, Unsupported
from tare.http.message import Request, Response
from tare.networks import options
from tare.networks.creation import NewNetwork
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


class ConfigReference(msgspec.Struct, rename="pascal", kw_only=True):
    network: str = ""


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
    config_from: ConfigReference | None = None
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
        self._events = engine.events
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
        if body.ingress:
            raise Unsupported("ingress networks are not offered")
        ipam, given = body.ipam or Ipam(), body.options or {}
        families = [
            options.switch(given, name, default) if asked is None else asked
            for name, asked, default in zip(options.FAMILIES, (body.enable_ipv4, body.enable_ipv6), (True, False), strict=True)
        ]
        network = await self._networks.create(
            NewNetwork(
                name=body.name,
                driver=body.driver or "bridge",
                subnets=[Subnet(pool.subnet, pool.gateway, pool.ip_range, pool.auxiliary or {}) for pool in ipam.config or []],
                ipv4=families[0],
                ipv6=families[1],
                internal=body.internal,
                attachable=body.attachable,
                scope=body.scope or "local",
                options=given,
                labels=body.labels or {},
                ipam_driver=ipam.driver or "default",
                ipam_options=ipam.options,
                config_only=body.config_only,
                config_from=body.config_from.network if body.config_from else "",
            )
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
        check_connectable(container.record.host_config.network_mode, network.name)
        if network.name in container.record.networks:
            raise Forbidden(f"endpoint with name {container.name} already exists in network {network.name}")
        await self._containers.connect(container, network.name, body.endpoint_config or EndpointSettings())
        return Response(status=200)

    async def disconnect(self, request: Request) -> Response:
        body = await json_body(request, ConnectRequest)
        network = self._networks.get(request.params["id"]).network
        try:
            container = self._containers.get(body.container)
        except NotFound:
            if not body.force:
                raise
            await self._networks.force_out(network.id, body.container)
            return Response(status=200)
        if "host" in (container.record.host_config.network_mode, network.name):
            raise Forbidden(HOST_NETWORK)
        if network.name not in container.record.networks:
            raise Forbidden(f"container {container.id} is not connected to network {network.name}")
        linked = container.running
        await self._containers.disconnect(container, network.name)
        if not linked:  # there was no link to announce the end of; dockerd tells of the record's change all the same
            attributes = {"container": container.id, "name": network.name, "type": network.driver}
            self._events.publish("network", "disconnect", network.id, attributes)
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


HOST_NETWORK = "container cannot be disconnected from host network or connected to host network"


def check_connectable(mode: str, network: str) -> None:
    """Refuse to connect a container that has no network namespace of its own, or that was made for none."""
    if mode.startswith("container:"):
        raise InvalidArgument("container sharing network namespace with another container or host cannot be connected to any other network")
    if "host" in (mode, network):
        raise InvalidArgument(HOST_NETWORK)
    if "none" in (mode, network):
        raise InvalidArgument("container cannot be connected to multiple networks with one of the networks in private (none) mode")


def network_view(view: NetworkView, *, with_containers: bool) -> dict[str, Any]:
    """A network as the API shows it; the list leaves the containers out."""
    network = view.network
    containers = {
        connection.container_id: {
            "Name": connection.container_name,
            "EndpointID": connection.endpoint_id,
            "MacAddress": connection.mac,
            "IPv4Address": connection.cidr,
            "IPv6Address": connection.cidr6,
        }
        for connection in (view.connections if with_containers else ())
    }
    pools = [
        {
            "Subnet": pool.subnet,
            **({"IPRange": pool.ip_range} if pool.ip_range else {}),
            **({"Gateway": pool.gateway} if pool.gateway else {}),
            **({"AuxiliaryAddresses": dict(pool.auxiliary)} if pool.auxiliary else {}),
        }
        for pool in network.subnets
    ]
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": rfc3339(network.created),
        "Scope": network.scope,
        "Driver": "null" if network.name == "none" else network.driver,
        "EnableIPv4": network.ipv4,
        "EnableIPv6": network.ipv6,
        "IPAM": {"Driver": network.ipam_driver, "Options": network.ipam_options, "Config": pools},
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": network.config_from},
        "ConfigOnly": network.config_only,
        "Containers": containers,
        "Options": dict(network.options),
        "Labels": dict(network.labels),
    }
