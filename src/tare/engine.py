"""The composition root: makes the stores and services of one engine and ties them together.

One engine owns one data root: a lock file says which process. Construction order is the order of the layers, bottom to top, and ``close``
goes the other way. Running containers are not touched by ``close``.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tare.builder.running import at_once
from tare.builder.service import Builder
from tare.containers.service import Containers
from tare.distribution.endpoints import RegistryPolicy, check_insecure
from tare.distribution.registry_rules import read_rules
from tare.events import EventBus
from tare.images.garbage import PARTIAL_AGE
from tare.images.service import Images
from tare.linux.cgroup.detect import detect
from tare.linux.cgroup.group import Cgroup
from tare.networks.service import Networks
from tare.store.content import ContentStore
from tare.store.layers.choice import choose
from tare.store.lock import DataRootLock
from tare.store.metadata import Metadata
from tare.store.snapshots import Snapshots
from tare.volumes.service import Volumes

if TYPE_CHECKING:
    from tare.config import EngineConfig
    from tare.containers.task import TaskDriver

_log = logging.getLogger(__name__)


_IDLE = 600.0
"""Seconds after which a layer that no container uses is unmounted."""


class Engine:
    """Stores and services over one data root."""

    def __init__(self, config: EngineConfig, driver: TaskDriver) -> None:
        self.config = config
        self.driver = driver
        self.events = EventBus()
        self._lock = DataRootLock(config.data_root)
        self._open = False

    def reconfigure(self, config: EngineConfig) -> None:
        """Take over what may change while the engine runs (``daemon_options.RELOADABLE``). ``InvalidArgument``: nothing has changed."""
        check_insecure(config.insecure_registries)
        policy = RegistryPolicy(config.registry_mirrors, config.insecure_registries, read_rules(config.registry_config))
        self.config = config
        self.images.registry.set_policy(policy)

    async def start(self) -> None:
        """Take the data root, open the stores, take over running containers. Raises ``Conflict`` when another process owns the root."""
        config = self.config
        self._lock.acquire()
        try:
            _make_directories(config)
            self.metadata = Metadata(config.database)
            self.content = ContentStore(config.data_root)
            self.content.discard_scratch()
            self.layers = choose(config.data_root, config.exec_root, config.storage_driver)
            self.snapshots = Snapshots(config.data_root, self.layers)
            self.images = Images(config, self.content, self.layers, self.metadata, self.events)
            self.networks = Networks(config, self.metadata, self.events)
            self.volumes = Volumes(config.data_root / "volumes", self.metadata.volumes, self.events)
            self.containers = Containers(
                config, self.metadata, self.images, self.layers, self.snapshots, self.networks, self.volumes, self.events, self.driver
            )
            self.builder = Builder(config, self.metadata, self.images, self.layers, self.snapshots, self.containers, self.driver, at_once())
            self.images.users_of = self._users_of_image
            self.images.layers_in_use = self._layers_in_use
            self.volumes.start()
            await self.networks.start()
            await self.builder.recover()
            await self.containers.recover()
            await asyncio.to_thread(self.volumes.mounts.settle)
            await self.networks.restore({c.id: c.task.pid for c in self.containers.all() if c.running and c.task is not None})
            await self.containers.resume()
            self._tidying = asyncio.create_task(self._tidy(), name="tidy stores")
            self._open = True
        except BaseException:
            self._lock.release()
            raise

    def _users_of_image(self, image_id: str) -> list[tuple[str, bool]]:
        """Containers made of an image: their ids, and whether they run."""
        return [(container.id, container.running) for container in self.containers.users_of_image(image_id)]

    def _layers_in_use(self) -> list[str]:
        """Layers that containers need, whether or not an image still names them."""
        return [diff_id for container in self.containers.all() for diff_id in container.record.diff_ids]

    async def _tidy(self) -> None:
        """What nobody waits for: drop what crashes left long ago, then unmount layers that nothing has used for a while."""
        await self.images.collect_garbage(PARTIAL_AGE)
        await self.builder.collector.collect()
        while True:
            await asyncio.sleep(_IDLE)
            await asyncio.to_thread(self.layers.unmount_idle, _IDLE)

    async def close(self) -> None:
        """Let go of everything. Containers that run go on; the next engine over this root takes them over."""
        if not self._open:
            return
        self._open = False
        self._tidying.cancel()
        await asyncio.gather(self._tidying, return_exceptions=True)
        await self.builder.collector.close()
        await self.containers.close()
        await self.images.close()
        await self.networks.close()
        await self.driver.close()
        if not any(container.running for container in self.containers.all()):
            await asyncio.to_thread(_remove_empty_group, self.config.cgroup_parent)
        self.layers.close()
        self.metadata.close()
        self._lock.release()


def _make_directories(config: EngineConfig) -> None:
    """The folders of both roots, closed to others whatever the umask was."""
    for path, mode in (
        (config.data_root, 0o711),
        (config.data_root / "containers", 0o711),
        (config.exec_root, 0o711),
        (config.exec_root / "containers", 0o711),
    ):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)


def _remove_empty_group(path: str) -> None:
    """The parent of our containers' control groups goes when nothing is in it."""
    group = Cgroup(detect(), path)
    try:
        if group.exists() and group.empty(2.0):
            group.remove()
    except OSError as error:
        _log.debug("control group %s stays: %s", path, error)
