"""Named contexts (``--build-context NAME=…``): what FROM, ``COPY --from`` and ``RUN --mount=from=`` may name beside stages and images.

    docker-image://REF     an image in the place of another
    oci-layout://DIGEST    an image that the client uploaded before the build, as an OCI layout; the store has it as long as the build
                           takes, and what is built of it for good
    a directory            uploaded by the client before the build (the address is "")
    a tar by HTTP, a git repository

Files of a context become a layer, as root's. FROM such a context starts with that layer and an empty config, as with BuildKit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from tare.builder import copying
from tare.builder.remotes import open_context
from tare.errors import InvalidArgument, NotFound
from tare.images.archive_contents import Packaged, contents
from tare.images.archive_read import Archive
from tare.images.committing import store_layer
from tare.images.image import Image
from tare.oci.digest import Digest
from tare.oci.image import NO_TIME, ContainerConfig, History, ImageConfig, RootFS
from tare.oci.platform import Platform, choose, host
from tare.oci.reference import Reference
from tare.store.tar.entry import Kind

if TYPE_CHECKING:
    from tare.builder.solver import Build
    from tare.builder.trees import TarTree

_IMAGE = "docker-image://"
LAYOUT = "oci-layout://"


class _Uploaded(Archive):
    """An OCI layout in a tree that the client sent."""

    def __init__(self, tree: TarTree) -> None:
        self._tree = tree

    def close(self) -> None:
        """The tree is the request's."""

    def _find(self, name: str) -> tuple[int, int] | None:
        found = self._tree.find(name.encode("utf-8", "surrogateescape"))
        return (0, found.size) if found is not None and found.kind is Kind.FILE else None

    def chunks(self, name: str) -> Iterator[bytes]:
        self._need(name)
        found = self._tree.find(name.encode("utf-8", "surrogateescape"))
        assert found is not None
        return self._tree.read(found)


class NamedContexts:
    """The named contexts of one build. Event loop only."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._addresses = build.request.contexts
        self._layers: dict[str, asyncio.Task[Digest]] = {}

    def find(self, name: str) -> str | None:
        """The context that ``name`` means, if any: by its own name, or as an image's name in any of its spellings."""
        if name in self._addresses:
            return name
        wanted = _canonical(name)
        return next((known for known in self._addresses if wanted and _canonical(known) == wanted), None)

    def image(self, name: str) -> str | None:
        """The image that takes the place of the image ``name``; ``name`` itself without a context; None for a context of files. One in a
        layout is called by its context: ``oci-layout://NAME``, for ``layout``."""
        found = self.find(name)
        if found is None:
            return name
        address = self._addresses[found]
        if address.startswith(LAYOUT):
            return LAYOUT + found
        return address.removeprefix(_IMAGE) if address.startswith(_IMAGE) else None

    async def layout(self, name: str, platform: str) -> Image:
        """The image of a context that is an OCI layout."""
        build = self._build
        tree, wanted = build.request.uploads.get(f"context-{name}"), self._addresses[name].removeprefix(LAYOUT)
        if tree is None:
            raise InvalidArgument(f"build context {name}: its files were not sent")
        archive = _Uploaded(tree)

        def chosen() -> Packaged:
            families = contents(archive)
            family = [each for each in chain(*families) if wanted in map(str, each.documents)]
            if not family:
                raise NotFound(f"build context {name}: the OCI layout has no image {wanted}")
            asked = Platform.parse(platform) if platform else host()
            position = choose(asked, [each.config.platform() for each in family])
            if position is None:
                raise NotFound(f"build context {name}: {wanted} is for {family[-1].config.platform()}, not for {asked}")
            return family[position]

        packaged = await build.in_thread(chosen)
        await build.images.loader.take(archive, packaged, build.pins)
        size = sum(build.layers.size(diff_id) for diff_id in packaged.config.diff_ids)
        created = packaged.config.created or NO_TIME
        return Image(str(packaged.id), packaged.config, packaged.config.diff_ids, (), (), size, created, None)

    async def layer(self, name: str) -> Digest:
        """The files of the context that ``name`` means, as a layer."""
        found = self.find(name)
        assert found is not None
        if found not in self._layers:
            self._layers[found] = asyncio.create_task(self._store(found))
        return await asyncio.shield(self._layers[found])

    async def _store(self, name: str) -> Digest:
        build, address = self._build, self._addresses[name]

        def fetched() -> TarTree:
            tree, dockerfile = open_context(address, build.scratch, build.stop)
            if dockerfile is not None:
                tree.close()
                raise InvalidArgument(f"build context {name}: {address} is no archive")
            return tree

        own = build.request.uploads.get(f"context-{name}") if not address else None
        if not address and own is None:
            raise InvalidArgument(f"build context {name}: its files were not sent")
        tree = own if own is not None else await build.in_thread(fetched)
        try:

            def store() -> Digest:
                items = [copying.Item(tree, tree.root, b"", True)]
                chunks = copying.layer(tree, items, copying.Placement(b"/", now_ns=build.now_ns, latest_ns=build.request.epoch_ns))
                return store_layer(build.layers, chunks, build.pins.hold).diff_id

            return await build.in_thread(store)
        finally:
            if own is None:
                tree.close()

    async def base(self, name: str, platform: str) -> ImageConfig:
        """The config that FROM a context of files starts with."""
        layer = await self.layer(name)
        found = Platform.parse(platform) if platform else host()
        line = History(created=self._build.now_text(), created_by=f"COPY {name} / # context", empty_layer=False)
        return ImageConfig(found.architecture, found.os, RootFS([layer]), found.variant or None, config=ContainerConfig(), history=[line])

    def tasks(self) -> list[asyncio.Task[Digest]]:
        """What has to be over before the build is."""
        return list(self._layers.values())


def _canonical(name: str) -> str:
    try:
        return Reference.parse(name).with_default_tag().canonical()
    except InvalidArgument:
        return ""
