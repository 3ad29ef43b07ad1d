"""From a container's record to what a task driver starts: files, mounts, network, OCI configuration.

``prepare`` acquires (layer mounts, an address and ports) and ``release`` gives back; both are called by the lifecycle only, once per
start.

On disk, per container (``data_root/containers/ID``, mode 0700): ``hostname``, ``hosts``, ``resolv.conf`` as they are mounted into the
container, and ``ID-json.log`` with its rotated predecessors. The files are written in place on every start, because a running
container has them bind-mounted and a rename would leave it with the old ones.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tare.containers import cdi, links, logdrivers
from tare.containers.execs import exec_environment
from tare.containers.links import Linked
from tare.containers.machine import this_machine
from tare.containers.mounting import ContainerMounts
from tare.containers.spec import exec_process, runtime_config
from tare.containers.task import Attachment, Checkpoint, DirectoryRoot, Launch, LogTarget, OverlayRoot, Rootfs, Stdio, VethLink
from tare.errors import Conflict, InvalidArgument, NotFound, StartFailed, TareError
from tare.networks.gateway import gateways
from tare.networks.model import Endpoint, NetworkMode, parse_mode
from tare.networks.ports import parse_bindings, publish_all
from tare.runtime.lowering import BUILT_IN_INIT
from tare.wire.container import Config, EndpointSettings, HostConfig
from tare.wire.decode import convert

if TYPE_CHECKING:
    from tare.config import EngineConfig
    from tare.containers.container import Container
    from tare.containers.logdrivers import LogSettings
    from tare.containers.record import Record
    from tare.images.image import Image
    from tare.networks.model import Connection
    from tare.networks.service import Networks
    from tare.store.layers.driver import LayerDriver
    from tare.store.snapshots import Snapshots
    from tare.wire.container import ExecCreateRequest


_log = logging.getLogger(__name__)

_STATIC_INITS = ("/usr/bin/tini-static", "/usr/bin/docker-init", "/sbin/docker-init", "/usr/libexec/docker/docker-init")


class Launcher:
    """Builds launches, and owns what a container has on disk beside its snapshot."""

    def __init__(
        self,
        config: EngineConfig,
        layers: LayerDriver,
        snapshots: Snapshots,
        networks: Networks,
        mounts: ContainerMounts,
        resolve: Callable[[str], Container],
        others: Callable[[], Iterable[Container]] = tuple,
    ) -> None:
        self._config = config
        self._layers = layers
        self._snapshots = snapshots
        self._networks = networks
        self.mounts = mounts
        self._resolve = resolve
        self._others = others

    # -- what create asks -------------------------------------------------------------------------------------------------------------

    @property
    def storage_driver(self) -> str:
        return self._layers.name

    @staticmethod
    def image_config(image: Image) -> Config:
        """The image's config in the container's words."""
        return convert(Config, image.container_config())

    def check(self, host: HostConfig) -> None:
        """Refuse what cannot be started, by name, before anything is made."""
        parse_mode(host.network_mode)
        for text, option in ((host.pid_mode, "pid"), (host.ipc_mode, "ipc")):
            if not text.startswith("container:") and text not in ("", "host", "private", "shareable", "none"):
                raise InvalidArgument(f"invalid {option.upper()} mode: {text}")
        if host.storage_opt:
            raise InvalidArgument(f"--storage-opt is not supported by storage driver {self.storage_driver}")
        parse_bindings(_plain_bindings(host))
        self.log_settings(host)
        self._check_links(host)
        host.pid_mode, host.ipc_mode, host.network_mode = map(self._by_id, (host.pid_mode, host.ipc_mode, host.network_mode))

    def _check_links(self, host: HostConfig) -> None:
        for text in host.links or ():
            link = links.parse_link(text)
            try:
                self._resolve(link.target)
            except NotFound as error:
                # A 404 would tell clients that the image is missing.
                raise InvalidArgument(f"could not get container for {link.target}: {error}") from None

    def _by_id(self, mode: str) -> str:
        """``container:NAME`` with the id instead, which outlives a new name; as it is when there is no such container (yet)."""
        kind, colon, reference = mode.partition(":")
        if kind != "container" or not colon:
            return mode
        try:
            return f"container:{self._resolve(reference).id}"
        except (NotFound, InvalidArgument):
            return mode

    def _linked(self, record: Record, *, all_run: bool = False) -> list[Linked]:
        """The containers that one on the default bridge is linked with. With ``all_run`` raises when one does not run."""
        found = []
        for link in links.links_of(record.host_config):
            other = self._resolve(link.target)
            address = links.address_on_bridge(self._networks.connections(other.id))
            if all_run and not (other.running and address):
                raise StartFailed(f"Cannot link to a non running container: /{other.name} AS /{record.name}/{link.alias}", 128)
            if address:
                found.append(Linked(link.alias, other.record, address))
        return found

    def _tell_linked(self, record: Record) -> None:
        """Write the address of a container that has started into the files of those that are linked with it."""
        for other in list(self._others()):
            if other.has_task and any(link.target in (record.name, record.id) for link in links.links_of(other.record.host_config)):
                try:
                    self.rewrite_files(other.record)
                except (TareError, OSError) as error:
                    _log.warning("container %s: its links could not be brought up to date: %s", other.id, error)

    def log_settings(self, host: HostConfig) -> LogSettings:
        """The container's log: driver, options, files. Engine defaults apply where the container says nothing."""
        own = host.log_config
        return logdrivers.settings(own.type, own.config, self._config.log_driver, self._config.log_opts)

    # -- on disk ----------------------------------------------------------------------------------------------------------------------

    def run_dir(self, container_id: str) -> Path:
        return self._config.run_dir(container_id)

    def log_path(self, record: Record) -> Path:
        return self.log_settings(record.host_config).path(self._config.container_dir(record.id), record.id)

    def paths(self, record: Record) -> dict[str, str]:
        """Host paths that ``inspect`` shows."""
        directory = self._config.container_dir(record.id)
        shown = {name: str(directory / name) for name in ("hostname", "hosts", "resolv.conf")}
        shown["log"] = str(self.log_path(record)) if self.log_settings(record.host_config).driver == "json-file" else ""
        return shown

    def graph_driver(self, record: Record) -> dict[str, Any]:
        """``GraphDriver`` of ``inspect``: the merged directory exists only inside the container's own mount namespace."""
        path = self._snapshots.path(record.id)
        if self._snapshots.copies:
            return {"Name": record.driver, "Data": {"Dir": str(path / "whole")}}
        names = {"MergedDir": "merged", "UpperDir": "upper", "WorkDir": "work"}
        return {"Name": record.driver, "Data": {key: str(path / name) for key, name in names.items()}}

    def make_directories(self, record: Record) -> None:
        directory = self._config.container_dir(record.id)
        directory.mkdir(mode=0o700)

    def remove_directories(self, record: Record) -> None:
        shutil.rmtree(self._config.container_dir(record.id), ignore_errors=True)
        shutil.rmtree(self.run_dir(record.id), ignore_errors=True)

    # -- start ------------------------------------------------------------------------------------------------------------------------

    async def prepare(self, record: Record, attachments: list[Attachment], restore: Checkpoint | None = None) -> Launch:
        """Acquire what a start (or the restore of a checkpoint) needs. On failure nothing stays acquired."""
        mode = self._networks.mode(_network_mode(record))
        self._joined_namespaces(record, mode)  # refuses early what cannot be joined
        self.run_dir(record.id).mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self._snapshots.rootfs(record.id)
        root = OverlayRoot(found.lower, found.upper, found.work) if found.lower else DirectoryRoot(found.upper)
        try:
            connections = await self._connect(record, mode)
            self._write_files(record, mode, connections)
            mounts, propagation = await self._mounts(record, mode)
            launch = self._launch(record, mode, root, mounts, connections, attachments, await self._log_target(record))
            if requests := record.host_config.device_requests:
                known = await asyncio.to_thread(cdi.known_devices, self._config.cdi_spec_dirs)
                edits = cdi.edits_of(cdi.names_of(requests, known), known)
                cdi.inject(launch.config, edits, this_machine())
                launch.additional_groups += cdi.groups_of(edits)
            launch.restore = restore
            if propagation:
                launch.config["linux"]["rootfsPropagation"] = propagation
            return launch
        except BaseException:
            await self.release(record)
            raise

    def _launch(
        self,
        record: Record,
        mode: NetworkMode,
        root: Rootfs,
        mounts: list[dict[str, Any]],
        connections: Sequence[Connection],
        attachments: list[Attachment],
        log: LogTarget,
    ) -> Launch:
        config, host = record.config, record.host_config
        return Launch(
            id=record.id,
            config=runtime_config(
                self._with_links(record),
                host,
                container_id=record.id,
                mounts=mounts,
                namespaces=self._joined_namespaces(record, mode),
                cgroups_path=self.cgroups_path(record),
                own_network=mode.private,
            ),
            rootfs=root,
            stdio=Stdio(
                tty=config.tty,
                open_stdin=config.open_stdin,
                stdin_once=config.stdin_once,
                console_size=(host.console_size[0], host.console_size[1]),
            ),
            log=log,
            run_dir=self.run_dir(record.id),
            user=config.user,
            additional_groups=tuple(host.group_add or ()),
            links=self._links(connections),
            name_server=self._networks.name_server(connections),
            attachments=attachments,
            init=self._init(host),
        )

    def _with_links(self, record: Record) -> Config:
        """The config with the variables of links before its own, which count more."""
        linked = self._linked(record, all_run=True)
        if not linked:
            return record.config
        told = links.environment(record.name, linked)
        return msgspec.structs.replace(record.config, env=[*told, *(record.config.env or ())])

    async def _log_target(self, record: Record) -> LogTarget:
        log = self.log_settings(record.host_config)
        return LogTarget(
            log.driver,
            self.log_path(record) if log.readable else None,
            log.max_size,
            log.max_file,
            logdrivers.attributes(record, log.options),
            log.compress,
            await asyncio.to_thread(logdrivers.receiver, record, log) if log.cached or not log.readable else {},
        )

    async def _connect(self, record: Record, mode: NetworkMode) -> list[Connection]:
        """The container's place in each of its networks; the first one carries the published ports."""
        if mode.kind == "container" or record.config.network_disabled:
            return []
        host, config = record.host_config, record.config
        exposed = list(config.exposed_ports or {})
        bindings = parse_bindings(_plain_bindings(host))
        if host.publish_all_ports:
            bindings = publish_all(exposed, bindings)
        first = mode.name if mode.kind == "network" else mode.kind
        connections: list[Connection] = []
        # The network of the mode comes first, unless the container has left it; with no network at all the mode's is taken again.
        ordered = sorted(record.networks, key=lambda name: name != first) if mode.kind == "network" else []
        wanted = {name: record.networks[name] for name in ordered} or {first: record.networks.get(first) or EndpointSettings()}
        publishing = self._networks.first_for_ports({name: settings.gw_priority for name, settings in wanted.items()})
        for name, settings in wanted.items():
            endpoint = self.endpoint(record, settings, first=not connections)
            connections.append(
                await self._networks.connect(
                    record.id,
                    record.name,
                    network=name,
                    bindings=bindings if name == publishing else (),
                    exposed=exposed,
                    endpoint=endpoint,
                )
            )
        return connections

    def endpoint(self, record: Record, settings: EndpointSettings, *, first: bool = False) -> Endpoint:
        """What a container asks of its place in a network. ``first``: the network of its network mode."""
        host, config = record.host_config, record.config
        ipam = settings.ipam_config
        return Endpoint(
            aliases=tuple(settings.aliases or ()),
            hostname=config.hostname,
            ip=ipam.ipv4_address if ipam else "",
            ip6=ipam.ipv6_address if ipam else "",
            mac=settings.mac_address or (config.mac_address if first else ""),
            links=(*(settings.links or ()), *((host.links or ()) if first else ())),
            gw_priority=settings.gw_priority,
            link_local=tuple((ipam.link_local_ips if ipam else None) or ()),
            driver_options=settings.driver_opts or {},
            dns=self._networks.dns(host.dns, host.dns_search, host.dns_options),
        )

    def rewrite_files(self, record: Record) -> None:
        """Bring the files of a running container up to date after it joined or left a network."""
        mode = self._networks.mode(_network_mode(record))
        self._write_files(record, mode, self._networks.connections(record.id))

    @staticmethod
    def _links(connections: Sequence[Connection]) -> tuple[VethLink, ...]:
        defaults = gateways(connections)
        return tuple(
            VethLink(
                host_name=connection.host_link,
                bridge=connection.bridge,
                name=connection.interface,
                mac=connection.mac,
                addresses=connection.cidrs,
                gateways=defaults.get(connection.endpoint_id, ()),
                mtu=connection.mtu,
                kind=connection.kind,
                mode=connection.mode,
            )
            for connection in connections
            if connection.host_link
        )

    def _write_files(self, record: Record, mode: NetworkMode, connections: Sequence[Connection]) -> None:
        if mode.kind == "container":
            return
        host, config = record.host_config, record.config
        linked = self._linked(record)
        texts = self._networks.files(
            mode,
            hostname=config.hostname or os.uname().nodename,
            domainname=config.domainname,
            connections=connections,
            extra_hosts=[*links.hosts(linked), *(host.extra_hosts or ())],
            dns=host.dns,
            dns_search=host.dns_search,
            dns_options=host.dns_options,
        )
        directory = self._config.container_dir(record.id)
        for name, text in (("hostname", texts.hostname), ("hosts", texts.hosts), ("resolv.conf", texts.resolv_conf)):
            with open(f"{directory}/{name}", "wb", buffering=0) as file:
                file.write(text.encode())

    async def _mounts(self, record: Record, mode: NetworkMode) -> tuple[list[dict[str, Any]], str]:
        """The engine's files and the container's own mounts, outer ones first, and the root's propagation."""
        owner = record if mode.kind != "container" else self._resolve(mode.name).record
        directory = self._config.container_dir(owner.id)
        taken = {point.destination for point in record.mounts}
        files = [
            {"destination": f"/etc/{name}", "type": "bind", "source": f"{directory}/{name}", "options": ["rbind", "rprivate"]}
            for name in ("resolv.conf", "hostname", "hosts")
            if f"/etc/{name}" not in taken
        ]
        entries, propagation = await self.mounts.entries(record)
        return sorted([*entries, *files], key=lambda entry: str(entry["destination"]).count("/")), propagation

    def _joined_namespaces(self, record: Record, mode: NetworkMode) -> dict[str, str]:
        """Paths of namespaces that belong to other containers, by OCI type; an empty path means the host's."""
        joined: dict[str, str] = {}
        host = record.host_config
        if mode.kind == "container":
            joined["network"] = self._namespace_of(mode.name, "net")
        elif mode.kind == "host":
            joined["network"] = ""
        for kind, text in (("pid", host.pid_mode), ("ipc", host.ipc_mode)):
            if text == "host":
                joined[kind] = ""
            elif text.startswith("container:"):
                joined[kind] = self._namespace_of(text.partition(":")[2], kind)
        if host.uts_mode == "host":
            joined["uts"] = ""
        elif mode.kind == "container":
            joined["uts"] = self._namespace_of(mode.name, "uts")
        if host.cgroupns_mode == "host":
            joined["cgroup"] = ""
        return joined

    def _namespace_of(self, reference: str, file: str) -> str:
        other = self._resolve(reference)
        joining = f"can't join IPC of container {other.id}: " if file == "ipc" else ""
        if not other.has_task or other.task is None:
            if file in ("net", "uts"):
                raise Conflict(f"cannot join network of a non running container: {other.id}")
            raise Conflict(f"{joining}container {other.id} is not running")
        if joining and other.record.host_config.ipc_mode not in ("shareable", "host") and not self._shares_ipc(other):
            raise InvalidArgument(f"{joining}non-shareable IPC (hint: use IpcMode:shareable for the donor container)")
        return f"/proc/{other.task.pid}/ns/{file}"

    @staticmethod
    def _shares_ipc(container: Container) -> bool:
        """Whether its IPC namespace is a joined one, which its owner has made shareable."""
        return container.record.host_config.ipc_mode.startswith("container:")

    def cgroups_path(self, record: Record) -> str:
        parent = record.host_config.cgroup_parent or self._config.cgroup_parent
        return f"/{parent.strip('/')}/{record.id}"

    def _init(self, host: HostConfig) -> str:
        """The init that the container asks for, or the daemon for all: one given by path, one that the host has, or our own."""
        if not (self._config.init if host.init is None else host.init):
            return ""
        return self._config.init_path or next((path for path in _STATIC_INITS if os.path.exists(path)), BUILT_IN_INIT)

    def checkpoint_refusal(self, record: Record) -> str:
        """Why this container cannot be checkpointed, whatever its processes do; empty when it can."""
        host = record.host_config
        if record.config.tty:
            return "it has a terminal (--tty)"
        if host.pid_mode:
            return "it has no pid namespace of its own (--pid)"
        if host.ipc_mode.startswith("container:") or host.network_mode.startswith("container:"):
            return "it shares namespaces of another container"
        if host.device_requests:
            return "it has devices by name (CDI, --gpus)"
        if self._init(host) == BUILT_IN_INIT:
            return "its init is Tare's own: install tini-static, or name a static init with the daemon's option --init-path"
        return ""

    # -- exec, take-over, end -----------------------------------------------------------------------------------------------------------

    @staticmethod
    def exec_process(container: Container, request: ExecCreateRequest) -> dict[str, Any]:
        """The OCI ``process`` of an exec."""
        record = container.record
        environment = exec_environment(record.config.env or [], request.env)
        return exec_process(record.config, record.host_config, request, environment)

    def adopt(self, record: Record) -> None:
        """Count the layers of a task that was started by an earlier daemon."""
        self._snapshots.rootfs(record.id)
        self.mounts.adopt(record)

    def started(self, record: Record) -> None:
        """The task runs: finish what needs its links to exist."""
        self._networks.attached(record.id, record.state.pid)
        self._tell_linked(record)

    async def release(self, record: Record) -> None:
        """Give back what a start acquired."""
        await self._networks.disconnect(record.id)
        await self.mounts.release(record)
        self._snapshots.release(record.id)

    async def forget(self, record: Record) -> None:
        """The container is being removed: nothing of it may stay."""
        await self._networks.disconnect(record.id)


def _network_mode(record: Record) -> str:
    return "none" if record.config.network_disabled else record.host_config.network_mode


def _plain_bindings(host: HostConfig) -> dict[str, list[dict[str, str]] | None]:
    return {
        port: None if bindings is None else [{"HostIp": binding.host_ip, "HostPort": binding.host_port} for binding in bindings]
        for port, bindings in host.port_bindings.items()
    }
