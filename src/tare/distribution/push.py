"""Pushing: the blobs that a repository lacks, then the config, then the manifest that makes them an image.

Each layer goes the cheapest way that works: the repository has it; another repository of the same registry has it and lends it; it is
uploaded from the content store. Several layers are on their way at once, each told about under its diff_id as Docker does.

What is to be sent is said by ``LayerToPush``: a layer pulled earlier is sent as the very blob that it came in; one made here has to be
packed first, which its owner does when asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tare.distribution.auth import Credentials
from tare.distribution.progress import Progress, Report
from tare.distribution.sharing import together
from tare.oci.digest import Digest
from tare.oci.image import Descriptor, Index, Manifest
from tare.oci.reference import Reference
from tare.store.content import ContentStore

if TYPE_CHECKING:
    from tare.distribution.registry import Registry
    from tare.distribution.upload import Uploader

_CHUNK = 256 << 10


@dataclass(frozen=True)
class LayerToPush:
    """One layer. ``original`` is the blob of the image's own manifest, which need not be here (only its content is)."""

    diff_id: Digest
    original: Descriptor | None
    sources: Sequence[str]
    """Repositories of the same registry that have ``original``, by path."""
    pack: Callable[[], Awaitable[Descriptor]]
    """Finds or makes a blob of this layer in the content store."""


@dataclass(frozen=True)
class Result(Progress):
    """The machine-readable end of a push."""

    aux: tuple[str, str, int] = ("", "", 0)
    """Tag, digest, size of the manifest."""

    def document(self) -> dict[str, Any]:
        tag, digest, size = self.aux
        return {"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest, "Size": size}}


class Push:
    """Sends images to one repository."""

    def __init__(self, uploader: Uploader, content: ContentStore, report: Report, slots: asyncio.Semaphore) -> None:
        self._uploader = uploader
        self._content = content
        self._report = report
        self._slots = slots

    @classmethod
    async def open(
        cls,
        registry: Registry,
        content: ContentStore,
        reference: Reference,
        credentials: Credentials | None,
        sources: Sequence[str],
        report: Report,
    ) -> Push:
        """Get ready; ``sources`` are the repositories that blobs may be mounted from. Raises when the registry cannot be reached."""
        transport = await registry.transport()
        from tare.distribution.upload import Uploader

        uploader = Uploader(transport, registry.policy, reference, credentials or Credentials(), sources)
        await uploader.connect()
        return cls(uploader, content, report, registry.upload_slots)

    async def layers(self, layers: Sequence[LayerToPush]) -> dict[Digest, Descriptor]:
        """Make all layers (bottom first) available in the repository; returns the blob that each is there."""
        distinct = {layer.diff_id: layer for layer in reversed(layers)}
        for diff_id in distinct:
            self._report(Progress("Preparing", diff_id.short))
        jobs = [self._layer(layer) for layer in distinct.values()]
        return dict(zip(distinct, await together(jobs), strict=True))

    def tell(self, text: str) -> None:
        """A line for people."""
        self._report(Progress(text))

    async def blob(self, digest: Digest) -> None:
        """Make a blob of the content store available that is no layer: a config, what an artifact holds."""
        if not await self._uploader.has_blob(digest):
            await self._uploader.upload(digest, self._content.size(digest), lambda start, end: self._read(digest, None, start, end))

    async def part(self, raw: bytes, media_type: str) -> None:
        """Make a manifest available that an index will name."""
        await self._uploader.put_manifest(str(Digest.of(raw)), raw, media_type)

    async def referrer(self, raw: bytes, document: Manifest | Index) -> None:
        """Publish a manifest that names another as its subject; its ``document`` says which."""
        await self._uploader.put_referrer(raw, document)
        self._report(Progress(f"{Digest.of(raw)}: refers to {document.subject.digest if document.subject else None}"))

    async def manifest(self, tag: str, raw: bytes, media_type: str) -> Digest:
        """Publish the image under ``tag``."""
        digest = Digest.of(raw)
        await self._uploader.put_manifest(tag, raw, media_type)
        self._report(Progress(f"{tag}: digest: {digest} size: {len(raw)}"))
        self._report(Result("", aux=(tag, str(digest), len(raw))))
        return digest

    async def _layer(self, layer: LayerToPush) -> Descriptor:
        name = layer.diff_id.short
        if self._slots.locked():
            self._report(Progress("Waiting", name))
        async with self._slots:
            if layer.original is not None and await self._there(layer, layer.original):
                return layer.original
            packed = layer.original
            if packed is None or not self._content.has(packed.digest):
                packed = await layer.pack()
                if await self._uploader.has_blob(packed.digest):
                    self._report(Progress("Layer already exists", name))
                    return packed
            await self._uploader.upload(packed.digest, packed.size, lambda start, end: self._read(packed.digest, name, start, end))
            self._report(Progress("Pushed", name))
            return packed

    async def _there(self, layer: LayerToPush, blob: Descriptor) -> bool:
        """Whether the repository has the blob, or gets it without our sending it."""
        if await self._uploader.has_blob(blob.digest):
            self._report(Progress("Layer already exists", layer.diff_id.short))
            return True
        for source in layer.sources:
            if await self._uploader.mount(blob.digest, source):
                self._report(Progress(f"Mounted from {source}", layer.diff_id.short))
                return True
        return False

    async def _read(self, digest: Digest, name: str | None, start: int, end: int) -> AsyncIterator[bytes]:
        total, sent = self._content.size(digest), start
        with self._content.open(digest) as blob:
            blob.seek(start)
            while sent < end and (chunk := await asyncio.to_thread(blob.read, min(_CHUNK, end - sent))):
                if name:
                    self._report(Progress("Pushing", name, sent, total))
                sent += len(chunk)
                yield chunk
        if name:
            self._report(Progress("Pushing", name, sent, total))
