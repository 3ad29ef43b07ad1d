"""The containers service: creating, finding, listing and removing containers.

Index: every container by id and by name, all in memory, loaded from the metadata store at start. A look-up takes a name (with or
without its slash), a full id, or a unique prefix of an id, in that order of precedence, as dockerd does.

Order of writing on create: directories → snapshot → record → event. Order on remove: status ``removing`` recorded → network, snapshot
and directories released → record deleted → event. A daemon killed between any two of these finds, at its next start, either a whole
container or one that it goes on removing; directories that no record names are swept.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tare.containers.archive import Archives
from tare.containers.checkpoints import Checkpoints
from tare.containers.commit import Committer
from tare.containers.container import Container
from tare.containers.execs import ExecSessions
from tare.containers.launch import Launcher
from tare.containers.lifecycle import Lifecycle
from tare.containers.links import links_of, parse_link
from tare.containers.logs import LogReader, Readers
from tare.containers.merge import merge
from tare.containers.mounting import ContainerMounts
from tare.containers.mounts import inherit, parse_volumes_from, resolve_mounts
from tare.containers.names import check_name, new_id, random_name
from tare.containers.record import DEAD, EXITED, PAUSED, REMOVING, RESTARTING, RUNNING, MountPoint, Record
from tare.containers.stats import Rounds
from tare.containers.update import update
from tare.containers.validate import check_network_mode, normalise_host_config
from tare.errors import Conflict, InvalidArgument, NotFound, ResourceExhausted, TareError
from tare.linux.cgroup.detect import detect
from tare.linux.cgroup.group import Cgroup
from tare.oci.digest import Digest
from tare.wire.container import Config, CreateRequest, EndpointSettings, HostConfig, UpdateRequest

if TYPE_CHECKING:
    from pathlib import Path

    from tare.config import EngineConfig
    from tare.containers.task import TaskDriver
    from tare.events import EventBus
    from tare.images.service import Images
    from tare.networks.service import Networks
    from tare.store.layers.driver import LayerDriver
    from tare.store.metadata import Metadata
    from tare.store.snapshots import Snapshots
    from tare.volumes.service import Volumes

_log = logging.getLogger(__name__)

_RECOVERED_AT_ONCE = 32
MARK = ".dockerenv"
"""Programs look for this file to know that they run in a container. It is no business of images and of ``diff``."""


class _StartedMeanwhile(Conflict):
    """A start was under way when the container was to be removed."""


class Containers:
    """All containers of one engine."""

    def __init__(
        self,
        config: EngineConfig,
        metadata: Metadata,
        images: Images,
        layers: LayerDriver,
        snapshots: Snapshots,
        networks: Networks,
        volumes: Volumes,
        events: EventBus,
        driver: TaskDriver,
    ) -> None:
        self._config = config
        self._records = metadata.containers
        self._images = images
        self._snapshots = snapshots
        self._networks = networks
        self._volumes = volumes
        self._by_id: dict[str, Container] = {}
        self._by_name: dict[str, Container] = {}
        self._reserved: set[str] = set()
        self._log_readers = Readers()
        self._cgroups = detect()
        self._before: dict[str, str] = {}
        self._mounts = ContainerMounts(volumes, snapshots, events)
        self.launcher = Launcher(config, layers, snapshots, networks, self._mounts, self.resolve, self._by_id.values)
        self.lifecycle = Lifecycle(self._records, events, driver, self.launcher, self._remove_after_exit)
        self.rounds = Rounds(self)
        """Measures for the streams of statistics."""
        self.execs = ExecSessions(self.lifecycle, self.launcher.exec_process)
        self.committer = Committer(images, snapshots, self.lifecycle)
        self.checkpoints = Checkpoints(config, self.lifecycle, self.launcher.checkpoint_refusal)
        self.archives = Archives(snapshots, volumes, self.lifecycle, config.container_dir)
        volumes.users = self._volume_users

    # -- start and end of the engine --------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Load the records, take over what runs, sweep what nobody owns."""
        for container_id, _, document in self._records.all():
            container = Container(Record.decode(document))
            self._by_id[container_id] = container
            self._by_name[container.name] = container
            self._before[container_id] = container.record.state.status
        turns = asyncio.Semaphore(_RECOVERED_AT_ONCE)

        async def recover(container: Container) -> None:
            async with turns:
                await self.lifecycle.recover(container)

        async with asyncio.TaskGroup() as group:
            for container in list(self._by_id.values()):
                group.create_task(recover(container))
        self._sweep()
        asyncio.get_running_loop().run_in_executor(None, self._delete_snapshots, self._snapshots.leftovers())

    async def resume(self) -> None:
        """Finish what was being removed and start what its restart policy wants started with the engine."""
        for container in list(self._by_id.values()):
            if container.removing or (container.record.host_config.auto_remove and container.record.state.status == EXITED):
                await self._finish_removal(container)
            elif self._starts_with_engine(container, self._before.get(container.id, "")):
                await self._start_with_engine(container)
        self._before.clear()

    def _starts_with_engine(self, container: Container, before: str) -> bool:
        policy = container.record.host_config.restart_policy.name
        if container.running:
            return False
        if policy == "always":
            return before in (RUNNING, PAUSED, RESTARTING) or container.record.stopped_by_user
        return policy in ("unless-stopped", "on-failure") and before in (RUNNING, RESTARTING) and not container.record.stopped_by_user

    async def _start_with_engine(self, container: Container) -> None:
        if container.record.host_config.restart_policy.name == "on-failure" and container.record.state.exit_code == 0:
            return
        try:
            await self.lifecycle.start(container)
        except TareError as error:
            _log.warning("container %s: cannot be started again: %s", container.id, error)

    def _sweep(self) -> None:
        for root in (self._config.data_root / "containers", self._config.exec_root / "containers"):
            if root.is_dir():
                for directory in root.iterdir():
                    if directory.name not in self._by_id:
                        shutil.rmtree(directory, ignore_errors=True)
        for snapshot in list(self._snapshots.walk()):
            if snapshot not in self._by_id:
                self._snapshots.discard(snapshot)

    def _delete_snapshots(self, doomed: list[Path]) -> None:
        for path in doomed:
            try:
                self._snapshots.delete(path)
            except OSError as error:
                _log.warning("a removed snapshot could not be deleted: %s", error)

    async def close(self) -> None:
        """Let go of everything; running containers run on."""
        await self.execs.close()
        await self.lifecycle.close(list(self._by_id.values()))

    # -- look-up ----------------------------------------------------------------------------------------------------------------------

    def get(self, reference: str) -> Container:
        """The container that a client means. Raises ``NotFound`` or ``InvalidArgument`` (ambiguous prefix)."""
        if not reference:
            raise InvalidArgument('invalid name or ID supplied: ""')
        bare = reference.removeprefix("/")
        found = self._by_id.get(bare) or self._by_name.get(bare)
        if found is not None:
            return found
        parent, _, alias = bare.rpartition("/")
        if parent:
            return self._by_link(parent, alias, reference)
        matches = [container for key, container in self._by_id.items() if bare and key.startswith(bare)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise InvalidArgument(f"multiple IDs found with provided prefix: {bare}")
        raise NotFound(f"No such container: {reference}")

    resolve = get

    def _by_link(self, parent: str, alias: str, reference: str) -> Container:
        """The container that another one calls by this alias."""
        other = self._by_name.get(parent)
        for link in links_of(other.record.host_config) if other is not None else ():
            if link.alias == alias:
                return self.get(link.target)
        raise NotFound(f"No such container: {reference}")

    def link_names(self) -> dict[str, list[str]]:
        """By container ID: the further names that links give it, ``PARENT/ALIAS``."""
        found: dict[str, list[str]] = {}
        for parent in self._by_id.values():
            for link in links_of(parent.record.host_config):
                target = self._by_name.get(link.target) or self._by_id.get(link.target)
                if target is not None:
                    found.setdefault(target.id, []).append(f"{parent.name}/{link.alias}")
        return found

    def all(self) -> list[Container]:
        """All containers, newest first."""
        return sorted(self._by_id.values(), key=lambda container: -container.record.created)

    def users_of_image(self, image_id: str) -> list[Container]:
        return [container for container in self._by_id.values() if container.record.image == image_id]

    def _volume_users(self, name: str) -> list[str]:
        return [c.id for c in self._by_id.values() if any(point.name == name for point in c.record.mounts)]

    # -- create -----------------------------------------------------------------------------------------------------------------------

    async def create(self, request: CreateRequest, name: str = "", platform: str = "") -> tuple[Container, list[str]]:
        """Create a container; returns it with warnings for the user."""
        name = check_name(name) if name else random_name(self._by_name.keys() | self._reserved)
        container_id = new_id()
        self._reserve(name, container_id)
        try:
            return await self._create(request, name, container_id, platform)
        finally:
            self._reserved.discard(name)

    def _reserve(self, name: str, container_id: str) -> None:
        owner = self._by_name.get(name)
        if owner is not None or name in self._reserved:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{owner.id if owner else container_id}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )
        self._reserved.add(name)

    async def _create(self, request: CreateRequest, name: str, container_id: str, platform: str) -> tuple[Container, list[str]]:
        image = self._images.get(request.image, platform) if request.image else None
        if image is None:
            raise InvalidArgument("no image specified: name the image that the container is to be made of")
        config, host = _config_of(request), request.host_config
        asked = request.networking_config.endpoints_config if request.networking_config else None
        check_network_mode(config, host, asked or ())
        config = merge(config, self.launcher.image_config(image))
        warnings = normalise_host_config(host, config, self._config)
        self._default_hostname(config, host, container_id)
        networks = self._networks_of(request, host)
        self.launcher.check(host)
        command = [*(config.entrypoint or ()), *(config.cmd or ())]
        if not command:
            raise InvalidArgument("no command specified")
        record = Record(
            id=container_id,
            name=name,
            created=time.time_ns(),
            image=image.id,
            config=config,
            host_config=host,
            networks=networks,
            diff_ids=[str(diff_id) for diff_id in image.diff_ids],
            driver=self.launcher.storage_driver,
            mounts=resolve_mounts(host, config.volumes or {}, self._inherited_mounts(host), str(self._config.data_root)),
        )
        record.path, record.args = command[0], command[1:]
        container = Container(record)
        await self._materialise(container)
        self._by_id[container_id] = container
        self._by_name[name] = container
        self._images.touch(image.id)
        self.lifecycle.publish(container, "create")
        return container, warnings

    async def _materialise(self, container: Container) -> None:
        """Make what the container has on disk, and its record last."""
        record = container.record
        made: list[str] = []
        try:
            self.launcher.make_directories(record)
            diff_ids = [Digest(diff_id) for diff_id in record.diff_ids]
            if self._snapshots.copies:
                await asyncio.to_thread(self._snapshots.prepare, record.id, diff_ids, mark=MARK)
            else:
                self._snapshots.prepare(record.id, diff_ids, mark=MARK)
            made = self._mounts.make_volumes(record)
            container.save(self._records)
        except BaseException:
            self._mounts.unmake(made)
            self._snapshots.remove(record.id)
            self.launcher.remove_directories(record)
            raise

    @staticmethod
    def _default_hostname(config: Config, host: HostConfig, container_id: str) -> None:
        if (
            not config.hostname
            and host.uts_mode != "host"
            and not host.network_mode.startswith("container:")
            and host.network_mode != "host"
        ):
            config.hostname = container_id[:12]

    def _networks_of(self, request: CreateRequest, host: HostConfig) -> dict[str, EndpointSettings]:
        asked = (request.networking_config.endpoints_config if request.networking_config else None) or {}
        mode = host.network_mode
        if mode.startswith("container:") or mode in ("host", "none") or request.network_disabled:
            return {}
        networks = {self._networks.name_of(key): settings or EndpointSettings() for key, settings in asked.items()}
        networks.setdefault(self._networks.name_of(mode), EndpointSettings())
        return networks

    def _inherited_mounts(self, host: HostConfig) -> list[MountPoint]:
        points: list[MountPoint] = []
        for text in host.volumes_from or ():
            name, mode = parse_volumes_from(text)
            try:
                other = self.get(name)
            except NotFound as error:
                raise InvalidArgument(str(error)) from None  # a 404 would tell clients that the image is missing
            points.extend(inherit(point, mode) for point in other.record.mounts if point.type != "tmpfs")
        return points

    # -- rename -----------------------------------------------------------------------------------------------------------------------

    def rename(self, container: Container, new_name: str) -> None:
        """Give a container another name."""
        if not new_name:
            raise InvalidArgument("Neither old nor new names may be empty")
        if new_name.removeprefix("/") == container.name:
            raise InvalidArgument("Renaming a container with the same name as its current name")
        try:
            name = check_name(new_name)
            self._reserve(name, container.id)
        except (Conflict, InvalidArgument) as error:
            raise type(error)(f"Error when allocating new name: {error}") from None
        try:
            old = container.name
            container.record.name = name
            container.save(self._records)
            del self._by_name[old]
            self._by_name[name] = container
            self._networks.rename(container.id, name)
        finally:
            self._reserved.discard(name)
        self.lifecycle.publish(container, "rename", {"oldName": f"/{old}"})

    async def connect(self, container: Container, name: str, settings: EndpointSettings) -> None:
        """Put a container into a network; one that runs gets its link at once."""
        async with container.lock:
            record = container.record
            if container.running:
                endpoint = self.launcher.endpoint(record, settings)
                exposed = list(record.config.exposed_ports or {})
                await self._networks.plug(
                    await self._networks.connect(record.id, record.name, network=name, exposed=exposed, endpoint=endpoint)
                )
            record.networks[name] = settings
            container.save(self._records)
            if container.running:
                self.launcher.rewrite_files(record)

    async def disconnect(self, container: Container, name: str) -> None:
        """Take a container out of a network; one that runs loses its link."""
        async with container.lock:
            container.record.networks.pop(name, None)
            container.save(self._records)
            if container.running:
                await self._networks.unplug(container.id, name)
                self.launcher.rewrite_files(container.record)

    async def remove_link(self, reference: str) -> None:
        """Take a link (``PARENT/ALIAS``) from the container that has it."""
        self.get(reference)
        name, _, alias = reference.strip("/").rpartition("/")
        if not name:
            raise Conflict("Conflict, cannot remove the default link name of the container")
        parent = self.get(name)
        async with parent.lock:
            host = parent.record.host_config
            host.links = [text for text in host.links or () if parse_link(text).alias != alias]
            parent.save(self._records)
            if parent.running:
                self.launcher.rewrite_files(parent.record)

    async def update(self, container: Container, request: UpdateRequest) -> list[str]:
        """Change a container's limits or restart policy; returns warnings."""
        warnings = await update(container, request, self._records)
        self.lifecycle.publish(container, "update")
        return warnings

    # -- remove -----------------------------------------------------------------------------------------------------------------------

    async def remove(self, container: Container, *, force: bool = False, volumes: bool = False) -> None:
        """Remove a container; with ``force`` kill it first; with ``volumes`` its anonymous volumes too."""
        if container.removing and not force:
            raise Conflict(f"removal of container {container.id} is already in progress")
        if container.running:
            if not force:
                raise Conflict(
                    f'cannot remove container "/{container.name}": container is {container.record.state.status}: '
                    f"{'unpause and then ' if container.record.state.status == PAUSED else ''}"
                    "stop the container before removing or force remove"
                )
            removal = container.removal()
            await self.lifecycle.force_kill(container)
            if container.record.host_config.auto_remove:
                await removal  # the monitor removes it
                return
            removal.cancel()
        try:
            await self._remove(container, volumes)
        except _StartedMeanwhile:
            if not force:
                raise
            await self.remove(container, force=True, volumes=volumes)

    async def _remove_after_exit(self, container: Container) -> None:
        """``--rm``: the container goes, and its anonymous volumes with it."""
        try:
            await self._remove(container, True)
        except TareError as error:
            _log.warning("container %s: automatic removal failed: %s", container.id, error)

    async def _finish_removal(self, container: Container) -> None:
        """Volumes go with a container only where that is certain: a killed daemon's ``rm`` may have been one without ``--volumes``."""
        try:
            await self._remove(container, container.record.host_config.auto_remove)
        except (TareError, OSError) as error:
            _log.warning("container %s: its removal could not be finished: %s", container.id, error)

    async def _remove(self, container: Container, volumes: bool) -> None:
        async with container.lock:
            if self._by_id.get(container.id) is not container:
                return
            if container.has_task:
                raise _StartedMeanwhile(f'cannot remove container "/{container.name}": container is running: it was started meanwhile')
            record = container.record
            record.state.status = REMOVING
            try:
                container.save(self._records)
            except ResourceExhausted as error:
                # Removing is what makes room; a crash half-way leaves a container that can be removed again.
                _log.warning("container %s: its removal is not on record: %s", record.id, error)
            try:
                container.drop_pending()
                await self.launcher.forget(record)
                await asyncio.to_thread(self._snapshots.remove, record.id)
                self.launcher.remove_directories(record)
            except OSError as error:
                record.state.status, record.state.error = DEAD, str(error)
                container.save(self._records)
                raise Conflict(f"cannot remove container {record.id}: {error}") from error
            self._records.delete(record.id)
            del self._by_id[record.id]
            del self._by_name[record.name]
        self.execs.forget_container(container)
        if volumes:
            await self._mounts.remove_anonymous(record)
        self.lifecycle.publish(container, "destroy")
        container.announce_removal()

    async def prune(self, wanted: Callable[[Container], bool]) -> tuple[list[str], int]:
        """Remove all stopped containers that ``wanted`` accepts; returns their ids and the bytes freed."""
        removed, freed = [], 0
        for container in self.all():
            if not container.running and not container.removing and wanted(container):
                freed += await asyncio.to_thread(self._snapshots.usage, container.id)
                await self._remove(container, False)
                removed.append(container.id)
        return removed, freed

    # -- what a container shows -------------------------------------------------------------------------------------------------------

    def log_reader(self, container: Container) -> LogReader:
        """A reader of the container's log files."""
        record = container.record
        log = self.launcher.log_settings(record.host_config)
        return LogReader(self.launcher.log_path(record), log.max_file, log.format, self._log_readers)

    def cgroup(self, container: Container) -> Cgroup:
        """The container's control group."""
        return Cgroup(self._cgroups, self.launcher.cgroups_path(container.record))


def _config_of(request: CreateRequest) -> Config:
    fields = {name: getattr(request, name) for name in Config.__struct_fields__}
    return Config(**fields)


def statuses(containers: Iterable[Container]) -> dict[str, int]:
    """How many containers are in each state."""
    counts: dict[str, int] = {}
    for container in containers:
        status = container.record.state.status
        counts[status] = counts.get(status, 0) + 1
    return counts
