"""Containers as the Engine API shows them: ``inspect`` and the items of ``GET /containers/json`` (pure)."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from tare.containers.links import parse_link
from tare.containers.record import DEAD, PAUSED, RESTARTING, RUNNING, MountPoint, Record
from tare.wire.container import EndpointSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tare.containers.container import Container
    from tare.containers.health import Health
    from tare.networks.model import Connection
    from tare.networks.ports import PublishedPort

ZERO_TIME = "0001-01-01T00:00:00Z"


def rfc3339(nanoseconds: int) -> str:
    """Go's RFC 3339 with nanoseconds, trailing zeros trimmed; 0 is Go's zero time."""
    if not nanoseconds:
        return ZERO_TIME
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    decimals = f"{fraction:09d}".rstrip("0")
    return f"{text}.{decimals}Z" if decimals else f"{text}Z"


def human_duration(seconds: float) -> str:
    """A duration in the words of Docker's status column."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    for limit, size, unit in ((48, 1, "hours"), (24 * 14, 24, "days"), (24 * 60, 24 * 7, "weeks"), (24 * 365 * 2, 24 * 30, "months")):
        if hours < limit:
            return f"{hours // size} {unit}"
    return f"{hours // 24 // 365} years"


def status_text(record: Record, health: str = "", now: int | None = None) -> str:
    """The STATUS column of ``docker ps``."""
    state = record.state
    now = time.time_ns() if now is None else now
    up = f"Up {human_duration((now - state.started_at) / 1e9)}"
    ago = f"({state.exit_code}) {human_duration((now - state.finished_at) / 1e9)} ago"
    match state.status:
        case "running":
            return f"{up} ({'health: starting' if health == 'starting' else health})" if health else up
        case "paused":
            return f"{up} (Paused)"
        case "restarting":
            return f"Restarting {ago}"
        case "removing":
            return "Removal In Progress"
        case "dead":
            return "Dead"
        case "created":
            return "Created"
    return f"Exited {ago}" if state.finished_at else "Created"


def state_view(container: Container) -> dict[str, Any]:
    state = container.record.state
    view = {
        "Status": state.status,
        "Running": state.status in (RUNNING, PAUSED, RESTARTING),
        "Paused": state.status == PAUSED,
        "Restarting": state.status == RESTARTING,
        "OOMKilled": state.oom_killed,
        "Dead": state.status == DEAD,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339(state.started_at),
        "FinishedAt": rfc3339(state.finished_at),
    }
    if container.health is not None:
        view["Health"] = health_view(container.health)
    return view


def health_view(health: Health) -> dict[str, Any]:
    """``State.Health``."""
    return {
        "Status": health.status,
        "FailingStreak": health.failing_streak,
        "Log": [{"Start": rfc3339(r.start), "End": rfc3339(r.end), "ExitCode": r.exit_code, "Output": r.output} for r in health.results],
    }


def mount_view(point: MountPoint, source: str) -> dict[str, Any]:
    view: dict[str, Any] = {"Type": point.type}
    if point.name:
        view["Name"] = point.name
    view.update(
        Source=source, Destination=point.destination, **({"Driver": point.driver} if point.driver else {}),
        Mode=point.mode, RW=point.writable, Propagation=point.propagation,
    )  # fmt: skip
    return view


def port_bindings(connections: Iterable[Connection]) -> dict[str, list[dict[str, str]] | None]:
    """``NetworkSettings.Ports``."""

    def shown(ports: tuple[PublishedPort, ...]) -> list[dict[str, str]]:
        return [{"HostIp": port.host_ip, "HostPort": str(port.host_port)} for port in ports]

    return {key: None if ports is None else shown(ports) for key, ports in sorted(_bound(connections).items())}


def _bound(connections: Iterable[Connection]) -> dict[str, tuple[PublishedPort, ...] | None]:
    """The exposed ports of a container and what is bound to them, whichever of its networks carries that."""
    bound: dict[str, tuple[PublishedPort, ...] | None] = {}
    for connection in connections:
        for key, ports in connection.port_map().items():
            bound[key] = ports or bound.get(key)
    return bound


def endpoint_view(settings: EndpointSettings, connection: Connection | None, record: Record) -> dict[str, Any]:
    """One entry of ``NetworkSettings.Networks``."""
    return {
        "IPAMConfig": None if settings.ipam_config is None else msgspec.to_builtins(settings.ipam_config),
        "Links": settings.links,
        "Aliases": settings.aliases,
        "MacAddress": connection.mac if connection else settings.mac_address,
        "DriverOpts": settings.driver_opts,
        "GwPriority": settings.gw_priority,
        "NetworkID": connection.network_id if connection else settings.network_id,
        "EndpointID": connection.endpoint_id if connection else "",
        "Gateway": connection.gateway if connection else "",
        "IPAddress": connection.address if connection else "",
        "IPPrefixLen": connection.prefix_length if connection else 0,
        "IPv6Gateway": connection.gateway6 if connection else "",
        "GlobalIPv6Address": connection.address6 if connection else "",
        "GlobalIPv6PrefixLen": connection.prefix_length6 if connection else 0,
        "DNSNames": list(connection.dns_names) if connection and connection.named else None,
    }


def network_settings(record: Record, connections: Mapping[str, Connection]) -> dict[str, Any]:
    """The ``NetworkSettings`` object of ``inspect``."""
    default = connections.get("bridge")
    first = next(iter(connections.values()), None)
    networks = {name: endpoint_view(settings, connections.get(name), record) for name, settings in record.networks.items()}
    mode = record.host_config.network_mode
    if not networks and mode in ("host", "none") and not record.config.network_disabled:
        networks[mode] = endpoint_view(EndpointSettings(), connections.get(mode), record)
    return {
        "Bridge": "",
        "SandboxID": first.sandbox_id if first else "",
        "SandboxKey": f"/proc/{record.state.pid}/ns/net" if first and record.state.pid else "",
        "Ports": port_bindings(connections.values()),
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": default.endpoint_id if default else "",
        "Gateway": default.gateway if default else "",
        "GlobalIPv6Address": default.address6 if default else "",
        "GlobalIPv6PrefixLen": default.prefix_length6 if default else 0,
        "IPAddress": default.address if default else "",
        "IPPrefixLen": default.prefix_length if default else 0,
        "IPv6Gateway": default.gateway6 if default else "",
        "MacAddress": default.mac if default else "",
        "Networks": networks,
    }


_ALWAYS_IN_CONFIG = frozenset(
    "Hostname Domainname User AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce Env Cmd Image Volumes WorkingDir Entrypoint "
    "OnBuild Labels".split()
)
_OMITTED_FROM_HOST_CONFIG = frozenset(
    "Annotations StorageOpt Tmpfs Sysctls Mounts Init KernelMemory KernelMemoryTCP BlkioWeightDevice".split()
)


def config_view(record: Record) -> dict[str, Any]:
    """The ``Config`` object: optional fields only when they are set, as Go's ``omitempty`` leaves them out."""
    view: dict[str, Any] = msgspec.to_builtins(record.config)
    view["Labels"] = view["Labels"] or {}
    if view["Healthcheck"]:
        view["Healthcheck"] = {key: value for key, value in view["Healthcheck"].items() if value}
    return {key: value for key, value in view.items() if value or key in _ALWAYS_IN_CONFIG}


def host_config_view(record: Record) -> dict[str, Any]:
    view: dict[str, Any] = msgspec.to_builtins(record.host_config)
    for name in ("BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps", "BlkioWeightDevice"):
        view[name] = view[name] or []
    view["Devices"] = view["Devices"] or []
    view["Ulimits"] = view["Ulimits"] or []
    if record.host_config.links:
        shown = map(parse_link, record.host_config.links)
        view["Links"] = [f"/{link.target}:/{record.name}/{link.alias}" for link in shown]
    view["LogConfig"]["Config"] = view["LogConfig"]["Config"] or {}
    return {
        key: value
        for key, value in view.items()
        if value or key not in _OMITTED_FROM_HOST_CONFIG or key.startswith("Blkio") or value is False
    }


def inspect_view(
    container: Container,
    *,
    connections: Mapping[str, Connection],
    paths: Mapping[str, str],
    mounts: Iterable[dict[str, Any]],
    graph: dict[str, Any],
    exec_ids: list[str] | None,
    sizes: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The whole answer of ``GET /containers/{id}/json``."""
    record = container.record
    view: dict[str, Any] = {
        "Id": record.id,
        "Created": rfc3339(record.created),
        "Path": record.path,
        "Args": record.args,
        "State": state_view(container),
        "Image": record.image,
        "ResolvConfPath": paths.get("resolv.conf", ""),
        "HostnamePath": paths.get("hostname", ""),
        "HostsPath": paths.get("hosts", ""),
        "LogPath": paths.get("log", ""),
        "Name": f"/{record.name}",
        "RestartCount": record.restart_count,
        "Driver": record.driver,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": exec_ids,
        "HostConfig": host_config_view(record),
        "GraphDriver": graph,
        "Mounts": list(mounts),
        "Config": config_view(record),
        "NetworkSettings": network_settings(record, connections),
    }
    if sizes is not None:
        view["SizeRw"], view["SizeRootFs"] = sizes
    return view


def list_view(
    container: Container,
    *,
    names: Iterable[str],
    image_name: str,
    connections: Mapping[str, Connection],
    mounts: Iterable[dict[str, Any]],
    sizes: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """One item of ``GET /containers/json``. ``names``: its own, then those that links give it."""
    record = container.record
    health = container.health.status if container.health else ""
    settings = network_settings(record, connections)
    view: dict[str, Any] = {
        "Id": record.id,
        "Names": [f"/{name}" for name in names],
        "Image": image_name,
        "ImageID": record.image,
        "Command": command_text(record),
        "Created": record.created // 1_000_000_000,
        "Ports": list_ports(connections.values()),
        "Labels": record.config.labels or {},
        "State": record.state.status,
        "Status": status_text(record, health),
        "HostConfig": {"NetworkMode": record.host_config.network_mode, **_annotations(record)},
        "NetworkSettings": {"Networks": settings["Networks"]},
        "Mounts": list(mounts),
    }
    if sizes is not None:
        view |= {name: size for name, size in zip(("SizeRw", "SizeRootFs"), sizes, strict=True) if size}
    return view


def _annotations(record: Record) -> dict[str, Any]:
    return {"Annotations": record.host_config.annotations} if record.host_config.annotations else {}


def command_text(record: Record) -> str:
    """Path and arguments in one line; arguments with blanks are quoted."""
    words = [f"'{word}'" if " " in word else word for word in record.args]
    return " ".join([record.path, *words])


def list_ports(connections: Iterable[Connection]) -> list[dict[str, Any]]:
    """``Ports`` of a list item: published ones with their host side, the others alone."""
    ports: list[dict[str, Any]] = []
    for key, published in _bound(connections).items():
        number, _, protocol = key.partition("/")
        if published is None:
            ports.append({"PrivatePort": int(number), "Type": protocol})
        else:
            ports.extend(
                {"IP": port.host_ip, "PrivatePort": port.container_port, "PublicPort": port.host_port, "Type": protocol}
                for port in published
            )
    return ports
