"""What belongs to an image without being part of it: attestations, signatures, bills of materials.

Two ways lead there. BuildKit lists an attestation in the index beside the image, annotated with the digest of the manifest that it is
about; the index is here anyway, so these are always fetched. And the OCI specs let any manifest name another as its ``subject``; a registry
lists these referrers when it is asked (one request per document), which is done on demand only. Referrers may have referrers (the
signature of a bill of materials): they are followed.

Everything is stored as it came, under its digest, with the image. Counts and sizes are capped: what a registry says about somebody's image
is nobody's reason to fill a disk.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from tare.distribution.documents import INDEX_DEPTH, Documents, Pin, Pulled
from tare.distribution.progress import silent
from tare.distribution.retry import retrying
from tare.distribution.segments import from_offset
from tare.distribution.sharing import SharedTasks
from tare.errors import ResourceExhausted, TareError
from tare.oci.digest import Digest
from tare.oci.image import ATTESTED, Descriptor, Index
from tare.store.content import ContentStore

if TYPE_CHECKING:
    from tare.distribution.remote import Repository

COUNT_LIMIT = 64
"""Artifacts of one pull."""
BYTES_LIMIT = 512 << 20
"""Bytes of their blobs."""


class Attachments:
    """Fetches what belongs to the images of one pull. ``tasks`` are shared by all pulls, so that no blob is fetched twice at a time."""

    def __init__(self, content: ContentStore, repository: Repository, documents: Documents, pin: Pin, tasks: SharedTasks[None]) -> None:
        self._content = content
        self._repository = repository
        self._documents = documents
        self._pin = pin
        self._tasks = tasks
        self._artifacts: dict[Digest, None] = {}
        self._blobs: dict[Digest, None] = {}
        self._bytes = 0

    async def attested(self, found: Pulled) -> None:
        """Fetch what the indexes say about the image."""
        for index in found.indexes:
            for entry in index.manifests:
                if (entry.annotations or {}).get(ATTESTED) == found.manifest_digest:
                    await self.artifact(entry.digest)

    async def referring(self, found: Pulled) -> None:
        """Fetch what refers to the image's manifest or to an index above it, or to what was fetched already."""
        asked = [*found.documents[:-1], *self._artifacts]
        while asked:
            subject = asked.pop()
            for referrer in await self._repository.referrers(subject):
                if referrer.digest not in self._artifacts and referrer.digest not in found.documents:
                    await self.artifact(referrer.digest)
                    asked.append(referrer.digest)

    async def artifact(self, digest: Digest, depth: int = 1) -> None:
        """Fetch one artifact: its manifest and what that names."""
        if digest in self._artifacts:
            return
        if len(self._artifacts) >= COUNT_LIMIT:
            raise ResourceExhausted(f"more than {COUNT_LIMIT} artifacts belong to the image")
        _, document = await self._documents.document(str(digest))
        self._artifacts[digest] = None
        try:
            if isinstance(document, Index):
                for entry in document.manifests if depth < INDEX_DEPTH else ():
                    await self.artifact(entry.digest, depth + 1)
                return
            named = {each.digest: each for each in (document.config, *document.layers)}
            for blob in named.values():
                await self._blob(blob)
            self._blobs |= dict.fromkeys(named)
        except TareError:
            del self._artifacts[digest]  # half an artifact is none
            raise

    def added(self, found: Pulled) -> Pulled:
        """``found`` with all that was fetched."""
        return replace(found, artifacts=tuple(self._artifacts), attachments=tuple(self._blobs))

    async def _blob(self, blob: Descriptor) -> None:
        if blob.digest in self._blobs:
            return
        self._bytes += blob.size
        if self._bytes > BYTES_LIMIT:
            raise ResourceExhausted(f"artifacts of more than {BYTES_LIMIT} bytes belong to the image")
        await self._pin([blob.digest])
        if not self._content.has(blob.digest):
            await self._tasks.run(blob.digest, lambda _: retrying(lambda: self._download(blob)), silent)

    async def _download(self, blob: Descriptor) -> None:
        if self._content.has(blob.digest):
            return
        ingest = await asyncio.to_thread(self._content.ingest, blob.digest, blob.size)
        try:
            async with self._repository.blob(blob, ingest.offset) as stream:
                async with aclosing(from_offset(stream.chunks, ingest.offset - stream.offset)) as chunks:
                    async for chunk in chunks:
                        await asyncio.to_thread(ingest.write, chunk)
            await asyncio.to_thread(ingest.commit)
        finally:
            ingest.suspend()
