"""``load``: the images of an archive into the stores, then their records, then their names.

    request body ──► [channel] ──► thread: unpack to a scratch file     (``receive``)
    scratch file ──► thread: each missing layer, verified against its diff_id ──► records and names, in one transaction     (``load``)

As with a pull, a crash at any instant leaves no half image. Compressed layers of an OCI layout are kept with their manifest (see
``archive_contents``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tare.distribution.decompress import decompress
from tare.distribution.progress import Progress, Report
from tare.errors import ResourceExhausted
from tare.events import EventBus
from tare.images.archive_contents import Packaged, contents
from tare.images.archive_read import Archive, blob_name
from tare.images.garbage import Garbage, Pins
from tare.images.image import ImageRecord
from tare.images.intake import intake
from tare.images.records import Records
from tare.oci.digest import Digest
from tare.oci.image import NO_TIME, Descriptor
from tare.oci.platform import Platform
from tare.store.content import ContentStore
from tare.store.layers.driver import LayerDriver
from tare.store.metadata import Metadata


@dataclass(frozen=True)
class Line(Progress):
    """A line of text for people."""

    def document(self) -> dict[str, Any]:
        return {"stream": self.status + "\n"}


class Loader:
    """Loads archives into one engine's stores."""

    def __init__(
        self,
        content: ContentStore,
        layers: LayerDriver,
        metadata: Metadata,
        records: Records,
        garbage: Garbage,
        events: EventBus,
        settle: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        self._content = content
        self._layers = layers
        self._metadata = metadata
        self._records = records
        self._names = records.names
        self._garbage = garbage
        self._events = events
        self._settle = settle

    async def receive(self, source: AsyncIterator[bytes]) -> Archive:
        """Take the archive in; ``close`` it after ``load``."""
        return await intake(source, lambda channel: Archive.receive(channel, self._content.scratch()), Archive.close)

    async def load(self, archive: Archive, platform: Platform | None, quiet: bool, report: Report) -> None:
        """Load every image of the archive. ``report`` gets Docker's messages."""
        loop = asyncio.get_running_loop()

        def tell(progress: Progress) -> None:
            if not quiet:
                loop.call_soon_threadsafe(report, progress)

        for family in await asyncio.to_thread(contents, archive, platform):
            async with self._garbage.pins() as pins:
                for image in family:
                    await self.take(archive, image, pins, tell)
                await asyncio.sleep(0)  # what the thread reported comes first
                self._record(family, report)
            await self._settle([str(image.id) for image in family])

    async def take(self, archive: Archive, image: Packaged, pins: Pins, tell: Callable[[Progress], None] = lambda progress: None) -> None:
        """Store what there is of an image, pinned, without a record of it."""
        pins.hold(*image.documents, *image.config.diff_ids, *(blob.digest for blob in image.blobs))
        pins.hold(*(digest for each in image.artifacts for digest in (each.digest, *(blob.digest for blob in each.blobs))))
        await self._store_safely(archive, image, tell)

    async def _store_safely(self, archive: Archive, image: Packaged, tell: Callable[[Progress], None]) -> None:
        work = asyncio.create_task(asyncio.to_thread(self._store, archive, image, tell))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            with suppress(Exception):
                await work  # the archive must not be closed under it
            raise
        except OSError as error:
            raise ResourceExhausted(f"cannot store image {image.id}: {error}") from error

    def _store(self, archive: Archive, image: Packaged, tell: Callable[[Progress], None]) -> None:
        """Blobs and layers; what is there already is not read."""
        kept = {blob_name(blob.digest): blob for blob in image.blobs}
        for name, diff_id in zip(image.layers, image.config.diff_ids, strict=True):
            blob = kept.pop(name, None)
            if not self._layers.has(diff_id):
                self._store_layer(archive, name, diff_id, blob, tell)
            elif blob is not None:
                self._store_blob(archive, blob)
        for blob in kept.values():
            self._store_blob(archive, blob)
        for artifact in image.artifacts:
            for blob in artifact.blobs:
                self._store_blob(archive, blob)
            self._content.put(artifact.raw, artifact.digest)
        for document in (*image.indexes, *([image.raw_manifest] if image.raw_manifest else ())):
            self._content.put(document)
        self._content.put(image.raw_config, image.id)

    def _store_blob(self, archive: Archive, blob: Descriptor) -> None:
        if self._content.has(blob.digest):
            return
        ingest = self._content.ingest(blob.digest, blob.size)
        try:
            ingest.restart()
            for chunk in archive.chunks(blob_name(blob.digest)):
                ingest.write(chunk)
            ingest.commit()
        finally:
            ingest.abort()

    def _store_layer(self, archive: Archive, name: str, diff_id: Digest, blob: Descriptor | None, tell: Callable[[Progress], None]) -> None:
        """A layer, and in the same pass its compressed form if that is kept."""
        total = archive.size(name)
        ingest = self._content.ingest(blob.digest, blob.size) if blob is not None and not self._content.has(blob.digest) else None

        def counted() -> Iterator[bytes]:
            done = 0
            for chunk in archive.chunks(name):
                if ingest is not None:
                    ingest.write(chunk)
                yield chunk
                done += len(chunk)
                tell(Progress("Loading layer", diff_id.short, done, total))

        try:
            if ingest is not None:
                ingest.restart()
            with self._layers.writer() as writer:
                source = counted()
                for chunk in decompress(source, f"layer {name}"):
                    writer.write(chunk)
                for _ in source:
                    pass  # what follows the compressed data belongs to the blob
                if ingest is not None:
                    ingest.commit()
                writer.commit(diff_id)
        finally:
            if ingest is not None:
                ingest.abort()

    def _record(self, family: list[Packaged], report: Report) -> None:
        """Record the images of one index, and their names, which are the last one's."""
        lead = family[-1]
        renamed = []
        with self._metadata.transaction():
            for image in family:
                record = self._record_of(image)
                self._records.put(str(image.id), record.merged(self._records.find(str(image.id))))
            for name in lead.names:
                before = self._names.find(name)
                if before not in (None, str(lead.id)):
                    renamed.append((name, before))
                self._names.set(name, str(lead.id))
        for image in family:
            self._events.publish("image", "load", str(image.id), {**(image.config.container.labels or {}), "name": str(image.id)})
        for name, before in renamed:
            report(Line(f"The image {name.familiar()} already exists, renaming the old one with ID {before} to empty string"))
        for name in lead.names:
            report(Line(f"Loaded image: {name.familiar()}"))
        if not lead.names:
            report(Line(f"Loaded image ID: {lead.id}"))

    def _record_of(self, image: Packaged) -> ImageRecord:
        return ImageRecord(
            diff_ids=[str(diff_id) for diff_id in image.config.diff_ids],
            size=sum(self._layers.size(diff_id) for diff_id in image.config.diff_ids),
            created=image.config.created or NO_TIME,
            manifest=str(Digest.of(image.raw_manifest)) if image.raw_manifest else "",
            documents=[str(digest) for digest in image.documents],
            blobs=list(dict.fromkeys(str(blob.digest) for blob in image.blobs)),
            artifacts=[str(each.digest) for each in image.artifacts],
            attachments=list(dict.fromkeys(str(blob.digest) for each in image.artifacts for blob in each.blobs)),
        )
