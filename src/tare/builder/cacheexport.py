"""``--cache-to``: what a build found and made, for other machines (``cachedocument``).

    type=registry,ref=REF     pushed as a manifest
    type=local,dest=DIR       an OCI layout that the client puts there
    type=inline               in the image's own config

``mode=min`` (the default) has the steps of the target and of the stages below it, ``mode=max`` those of all stages. With ``mounts=true``
the content of the cache mounts (``RUN --mount=type=cache``) that the build used goes along. An unchanged layer is the same blob in every
export, so a registry takes it once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from tare.builder import cachedocument
from tare.builder.cachedocument import CacheDocument, CacheMount
from tare.builder.exporting import layout
from tare.builder.publication import Publication, Style, encode, is_true, plain
from tare.builder.request import BuildRequest, Say
from tare.builder.trace import vertex
from tare.distribution.progress import Progress
from tare.distribution.push import LayerToPush, Push
from tare.errors import InvalidArgument, TareError
from tare.images.committing import store_layer
from tare.images.intake import outflow
from tare.oci import media_types
from tare.oci.digest import Digest
from tare.oci.image import Descriptor, ImageConfig
from tare.oci.reference import Reference
from tare.store.tartree import DIRECTORY, tar_tree
from tare.wire.build import Export

if TYPE_CHECKING:
    from tare.builder.sessions import Session
    from tare.builder.solver import Build
    from tare.images.garbage import Pins
    from tare.images.service import Images

_COMMON = {"mode", "mounts", "ignore-error", "compression", "compression-level", "force-compression", "oci-mediatypes", "image-manifest"}
_KNOWN = {"registry": _COMMON | {"ref"}, "local": _COMMON | {"tag"}, "inline": {"mode"}}


def check(wanted: Sequence[Export]) -> None:
    """Refuse what could not be done later. ``InvalidArgument`` names it."""
    for export in wanted:
        if export.type not in _KNOWN:
            raise InvalidArgument(f"cache type {export.type!r} is not offered: registry, local or inline is expected")
        unknown = sorted(set(export.attributes) - _KNOWN[export.type])
        if unknown:
            raise InvalidArgument(f"cache type {export.type}: unknown attribute {unknown[0]!r}")
        if export.attributes.get("mode", "min") not in ("min", "max"):
            raise InvalidArgument(f"cache mode {export.attributes['mode']!r} is not offered: min or max is expected")
        if export.type == "registry":
            Reference.parse(export.attributes.get("ref", ""))
        for name in ("oci-mediatypes", "image-manifest"):
            if not is_true(export.attributes.get(name, "true")):
                raise InvalidArgument(f"cache type {export.type}: {name}=false is not offered: a cache is an OCI manifest")


def inline(build: Build, config: ImageConfig) -> ImageConfig:
    """The config with the build's own cache in it."""
    layers = [str(diff_id) for diff_id in config.diff_ids]
    found = cachedocument.document(build.used_steps(whole=False), layers)
    found.layers = []
    return msgspec.structs.replace(config, inline_cache=msgspec.to_builtins(found))


@dataclass
class CacheExporter:
    """Cache exports of one request."""

    images: Images
    request: BuildRequest
    pins: Pins
    say: Say
    session: Session | None = None

    async def export(self, builds: Sequence[Build]) -> None:
        """All that was asked for but inline ones."""
        for wanted in self.request.cache_to:
            if wanted.type == "inline":
                continue
            try:
                async with vertex(self._told, f"{id(self)} {wanted.type}", f"exporting cache to {_place(wanted)}") as step:
                    await step.status("preparing build cache for export", done=False)
                    found = await self._publication(wanted, builds)
                    await step.status("preparing build cache for export", done=True)
                    await step.status(f"writing cache manifest {found.top.digest}", done=True)
                    await (self._push(found, wanted, step.progress) if wanted.type == "registry" else self._deliver(found, wanted))
            except TareError:
                if not is_true(wanted.attributes.get("ignore-error", "")):
                    raise

    async def _told(self, message: Any) -> None:
        if self.request.trace:
            await self.say(message)

    async def _publication(self, wanted: Export, builds: Sequence[Build]) -> Publication:
        attributes = wanted.attributes
        whole = attributes.get("mode", "min") == "max"
        found = cachedocument.document([used for build in builds for used in build.used_steps(whole=whole)])
        if is_true(attributes.get("mounts", "")):
            await self._add_mounts(found, builds)
        style = Style.of(attributes, (), oci=True)
        blobs, publisher = self.images.publisher.blobs(), self.images.publisher
        packed = []
        for diff_id in found.layers:
            packed.append(await publisher.packed(Digest.parse(diff_id), blobs, style.compression, self.pins, oci=True, force=style.force))
        return _published(found, packed)

    async def _add_mounts(self, found: CacheDocument, builds: Sequence[Build]) -> None:
        """The content of the cache mounts, each as a layer."""
        mounts = {key: (build, description) for build in builds for key, description in build.mounts.items()}
        for key, (build, description) in sorted(mounts.items()):

            def store(build: Build = build, key: str = key) -> Digest:
                return store_layer(build.layers, _content(build, key), build.pins.hold).diff_id

            diff_id = str(await build.in_thread(store))
            if diff_id not in found.layers:
                found.layers.append(diff_id)
            found.mounts.append(CacheMount(key, found.layers.index(diff_id), description))

    async def _deliver(self, found: Publication, wanted: Export) -> None:
        if self.session is None:
            raise InvalidArgument("a local cache needs a session: use 'tare build --cache-to'")
        name = Reference.parse("cache").with_tag(wanted.attributes.get("tag", "") or "latest")
        await self.session.deliver(lambda: outflow(layout(found, (), [name], self.images.content, "", docker=False)))

    async def _push(self, found: Publication, wanted: Export, told: Any) -> None:
        name = Reference.parse(wanted.attributes["ref"]).with_default_tag()
        queue: asyncio.Queue[Progress | None] = asyncio.Queue()

        async def work() -> None:
            push = await Push.open(self.images.registry, self.images.content, name, self.request.credentials(name), (), queue.put_nowait)
            await push.layers([LayerToPush(blob.digest, blob, (), _ready(blob)) for blob in found.layers.values()])
            for digest, raw in found.documents.items():
                self.pins.hold(digest)
                self.images.content.put(raw)
                await push.blob(digest)
            ((kind, raw),) = found.manifests.values()
            await push.manifest(name.tag or "latest", raw, kind)

        task = asyncio.create_task(work())
        task.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (message := await queue.get()) is not None:
                await told(message)
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _place(wanted: Export) -> str:
    return f"registry {wanted.attributes['ref']}" if wanted.type == "registry" else "client directory"


def _ready(blob: Descriptor) -> Any:
    async def packed() -> Descriptor:
        return blob

    return packed


def _content(build: Build, key: str) -> Iterator[bytes]:
    """The tar of a cache mount. Blocks."""
    root = os.open(build.runner.places.cache_path(key), DIRECTORY)
    try:
        yield from tar_tree(root)
    finally:
        os.close(root)


def _published(found: CacheDocument, packed: Sequence[Descriptor]) -> Publication:
    raw = msgspec.json.encode(found)
    config = Descriptor(cachedocument.MEDIA_TYPE, Digest.of(raw), len(raw))
    document = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": plain(config),
        "layers": [plain(blob) for blob in packed],
    }
    manifest = encode(document)
    top = Descriptor(media_types.OCI_MANIFEST, Digest.of(manifest), len(manifest))
    return Publication(top, {top.digest: (top.media_type, manifest)}, {config.digest: raw}, {blob.digest: blob for blob in packed})
