"""``commit``: what a container wrote becomes a layer, its settings become an image's config.

The container is paused meanwhile if it runs (and the client did not ask otherwise), so that its files are of one instant. Nothing is
locked: a container that is being removed while its files are read would give a layer with gaps, so that is looked for afterwards, before
the image is recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from tare.containers.merge import as_list, merge
from tare.containers.record import DEAD, RUNNING
from tare.errors import Conflict, NotFound
from tare.images.changes import apply_changes
from tare.oci.digest import Digest
from tare.oci.image import ContainerConfig
from tare.wire.container import Config
from tare.wire.decode import convert

if TYPE_CHECKING:
    from tare.containers.container import Container
    from tare.containers.lifecycle import Lifecycle
    from tare.images.image import Image
    from tare.images.service import Images
    from tare.oci.reference import Reference
    from tare.store.snapshots import Snapshots


@dataclass(frozen=True)
class CommitRequest:
    """What ``docker commit`` can say."""

    name: Reference | None = None
    author: str = ""
    comment: str = ""
    pause: bool = True
    changes: Sequence[str] = ()
    config: Config | None = None
    """Settings of the image; what they leave open comes from the container."""


class Committer:
    """Makes images of one engine's containers."""

    def __init__(self, images: Images, snapshots: Snapshots, lifecycle: Lifecycle) -> None:
        self._images = images
        self._snapshots = snapshots
        self._lifecycle = lifecycle

    async def commit(self, container: Container, request: CommitRequest) -> Image:
        """Make an image of ``container`` as it is now."""
        _check(container)
        record = container.record
        config = _image_config(record.config, request)
        async with self._still(container, request.pause):
            image = await self._images.commit(
                lambda: self._snapshots.changeset(record.id),
                lambda: _check(container),
                config,
                parent=record.image,
                below=[Digest.parse(diff_id) for diff_id in record.diff_ids],
                created_by=" ".join(as_list(record.config.cmd) or ()),
                author=request.author,
                comment=request.comment,
                name=request.name,
            )
        reference = request.name.with_default_tag().familiar() if request.name else ""
        self._lifecycle.publish(container, "commit", {"comment": request.comment, "imageID": image.id, "imageRef": reference})
        return image

    @asynccontextmanager
    async def _still(self, container: Container, pause: bool) -> AsyncIterator[None]:
        paused = pause and container.record.state.status == RUNNING and await self._pause(container)
        try:
            yield
        finally:
            if paused:
                await asyncio.shield(self._resume(container))

    async def _pause(self, container: Container) -> bool:
        try:
            await self._lifecycle.pause(container)
        except Conflict:  # it has just ended, or somebody else paused it: still all the same
            return False
        return True

    async def _resume(self, container: Container) -> None:
        try:
            await self._lifecycle.unpause(container)
        except (Conflict, NotFound):
            pass  # it was killed, or somebody else resumed it


def _check(container: Container) -> None:
    if container.record.state.status == DEAD:
        raise Conflict(f"You cannot commit container {container.id} which is Dead")
    if container.removing:
        raise Conflict(f"You cannot commit container {container.id} which is being removed")


def _image_config(own: Config, request: CommitRequest) -> ContainerConfig:
    """The image's config: the request's (or the container's) with the changes applied, completed from the container's."""
    changed = apply_changes(_for_image(request.config or own), request.changes)
    document: dict[str, Any] = msgspec.to_builtins(changed)
    return _for_image(merge(convert(Config, document), own))


def _for_image(config: Config) -> ContainerConfig:
    fields: dict[str, Any] = msgspec.to_builtins(config)
    for name in ("Cmd", "Entrypoint"):
        fields[name] = as_list(fields.get(name))
    return msgspec.convert({name: value for name, value in fields.items() if value}, ContainerConfig)
