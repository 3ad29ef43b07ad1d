"""Pulling: from a reference to an image whose every byte is verified and stored.

    reference ──► indexes, manifest, config (``documents``) ──► layers, several at a time (``transfer``)
                                                           └──► what belongs to the image (``attachments``)

Each document is verified against the digest that named it before it is read, and stored as it came. Nothing here knows of
tags or image records: ``Registry.pull`` makes content available and says what it found; the caller records it, and until
then keeps the garbage collector away through ``pin``.

aiohttp is loaded with the first pull, in a thread, so that an idle daemon does not carry it.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tare.distribution.auth import Credentials
from tare.distribution.certificates import DIRECTORIES
from tare.distribution.documents import Documents, Pin, Pulled, fetch_document
from tare.distribution.endpoints import RegistryPolicy
from tare.distribution.progress import Progress, Report, silent
from tare.distribution.segments import Budget
from tare.distribution.sharing import SharedTasks, together
from tare.distribution.transfer import STAGES, LayerTransfer
from tare.errors import TareError
from tare.oci import media_types
from tare.oci.digest import Digest
from tare.oci.image import Descriptor, Index, PlatformEntry, parse_config, parse_manifest
from tare.oci.platform import Platform
from tare.oci.reference import Reference
from tare.store.content import ContentStore
from tare.store.layers.driver import LayerDriver

if TYPE_CHECKING:
    from tare.distribution.remote import Repository
    from tare.distribution.transport import Transport

_USER_AGENT = "tare/0.1 (linux)"


@dataclass(frozen=True)
class Inspected:
    """What a reference names in its registry: descriptor, and the platforms that it is there for."""

    media_type: str
    digest: Digest
    size: int
    platforms: tuple[PlatformEntry, ...]
    """As the documents say it, not normalised."""


class Registry:
    """The client for all registries. One per engine, on its event loop; ``close`` when done."""

    def __init__(
        self,
        content: ContentStore,
        layers: LayerDriver,
        policy: RegistryPolicy | None = None,
        max_concurrent_downloads: int = 3,
        certificate_directories: Sequence[Path] = DIRECTORIES,
        max_concurrent_uploads: int = 5,
        max_download_attempts: int = 5,
    ) -> None:
        self._content = content
        self._layers = layers
        self.policy = policy or RegistryPolicy()
        self._certificate_directories = certificate_directories
        self._attempts = max_download_attempts
        self.upload_slots = asyncio.Semaphore(max(1, max_concurrent_uploads))
        """How many layers are pushed at once, by all pushes together."""
        self._slots = asyncio.Semaphore(max(1, max_concurrent_downloads))
        self._threads = max(1, max_concurrent_downloads) * STAGES + 1
        self._pool: ThreadPoolExecutor | None = None
        """Exists while pulls run: an idle daemon keeps no threads for them."""
        self._pulls = 0
        self._budget = Budget()
        self._transfers: SharedTasks[None] = SharedTasks()
        self._attachments: SharedTasks[None] = SharedTasks()
        self._loading = asyncio.Lock()
        self._transport: Transport | None = None

    async def close(self) -> None:
        if self._transport is not None:
            await self._transport.close()
            self._transport = None

    async def pull(
        self,
        reference: Reference,
        platform: Platform | None = None,
        credentials: Credentials | None = None,
        report: Report = silent,
        pin: Pin | None = None,
        known: Callable[[Digest], bool] = lambda image_id: False,
        referrers: bool = False,
    ) -> Pulled:
        """Make the image available. ``platform`` chooses in an index; by default it is this machine's. A lone image is taken as it is.

        Nothing is told of the layers of an image that is ``known`` already (only missing ones are fetched again), as with dockerd.
        With the image comes what its index says about it and, with ``referrers``, what refers to it in its registry.
        """
        pin = pin or _pin_nothing
        repository = await self.repository(reference.with_default_tag(), credentials)
        documents = Documents(self._content, repository, pin)
        found = await documents.one(platform)
        with self._workers():
            return await self._complete(repository, found, documents, report, pin, known, referrers)

    async def pull_every(
        self,
        reference: Reference,
        credentials: Credentials | None = None,
        report: Report = silent,
        pin: Pin | None = None,
        known: Callable[[Digest], bool] = lambda image_id: False,
        referrers: bool = False,
    ) -> list[Pulled]:
        """``pull`` for every platform that the reference has an image for; this machine's, if there is one, is the last."""
        pin = pin or _pin_nothing
        repository = await self.repository(reference.with_default_tag(), credentials)
        documents = Documents(self._content, repository, pin)
        found = await documents.every()
        with self._workers():
            return [await self._complete(repository, each, documents, report, pin, known, referrers) for each in found]

    async def _complete(
        self,
        repository: Repository,
        found: Pulled,
        documents: Documents,
        report: Report,
        pin: Pin,
        known: Callable[[Digest], bool],
        referrers: bool,
    ) -> Pulled:
        """Bring in an image's layers, and what belongs to it."""
        from tare.distribution.attachments import Attachments

        await pin([*found.diff_ids, *(layer.digest for layer in found.manifest.layers)])
        attachments = Attachments(self._content, repository, documents, pin, self._attachments)

        async def belonging() -> None:
            try:
                await attachments.attested(found)
                for digest in documents.artifacts:
                    await attachments.artifact(digest)
            except TareError as error:  # the image is whole without it
                report(Progress(f"WARNING: an attestation of {found.manifest_digest} was not kept: {error}"))
            if referrers:
                await attachments.referring(found)

        await together([self._layers_of(repository, found, report, quiet=known(found.image_id)), belonging()])
        return attachments.added(found)

    @contextmanager
    def _workers(self) -> Iterator[None]:
        self._pulls += 1
        try:
            yield
        finally:
            self._pulls -= 1
            if not self._pulls and self._pool is not None:
                self._pool.shutdown(wait=False)
                self._pool = None
                _give_memory_back()

    async def layer(self, repository: Repository, descriptor: Descriptor, diff_id: Digest, report: Report = silent) -> None:
        """Bring one layer into the layer store, verified; the caller pins it."""
        with self._workers():
            await self._layer(repository, descriptor, diff_id, report)

    async def repository(self, reference: Reference, credentials: Credentials | None = None) -> Repository:
        """The repository of ``reference`` as this user sees it."""
        transport = await self.transport()
        from tare.distribution.remote import Repository

        return Repository(transport, self.policy, reference, credentials or Credentials())

    async def inspect(self, reference: Reference, credentials: Credentials | None = None) -> Inspected:
        """Look at a reference in its registry without pulling it; artifacts have no platforms."""
        reference = reference.with_default_tag()
        transport = await self.transport()
        from tare.distribution.answers import translate_plain
        from tare.distribution.remote import Repository

        repository = Repository(transport, self.policy, reference, credentials or Credentials(), translate_plain)
        target: str = reference.digest or reference.tag or ""
        fetched = await repository.manifest(target)
        document = parse_manifest(fetched.raw, fetched.media_type)
        platforms: list[PlatformEntry] = []
        if isinstance(document, Index):
            platforms = [entry.platform for entry in document.manifests if entry.platform]
        elif document.config.media_type in media_types.CONFIGS:
            config = parse_config(await fetch_document(repository, document.config))
            platforms = [PlatformEntry(config.architecture, config.os, config.variant, config.os_version)]
        return Inspected(document.media_type, fetched.digest, len(fetched.raw), tuple(platforms))

    async def manifest(self, reference: Reference, credentials: Credentials | None = None) -> tuple[bytes, str]:
        """A manifest or index as it is in its registry, and its media type."""
        reference = reference.with_default_tag()
        transport = await self.transport()
        from tare.distribution.answers import translate_plain
        from tare.distribution.remote import Repository

        repository = Repository(transport, self.policy, reference, credentials or Credentials(), translate_plain)
        fetched = await repository.manifest(reference.digest or reference.tag or "")
        return fetched.raw, parse_manifest(fetched.raw, fetched.media_type).media_type

    async def tags(self, reference: Reference, credentials: Credentials | None = None) -> list[str]:
        """All tags of a repository."""
        return await (await self.repository(reference, credentials)).tags()

    async def login(self, credentials: Credentials) -> str:
        """Prove credentials at the registry that they name (Docker Hub when they name none); returns its identity token, if it gives one.

        Raises ``Unauthorized`` and what keeps us from asking.
        """
        transport = await self.transport()
        from tare.distribution.access import Access

        endpoint = self.policy.endpoints(credentials.domain)[-1]
        return await Access(transport, endpoint, credentials, lambda challenge: "").login()

    def set_policy(self, policy: RegistryPolicy) -> None:
        """Mirrors, insecure registries and rules for the transfers to come; those under way go on as they began."""
        self.policy = policy
        if self._transport is not None:
            self._transport.policy = policy

    async def transport(self) -> Transport:
        """The connections that all transfers share; the first call loads the HTTP client."""
        async with self._loading:
            if self._transport is None:
                # Importing blocks for 0.15 s: not on the event loop.
                await asyncio.to_thread(importlib.import_module, "tare.distribution.remote")
                from tare.distribution.transport import Transport

                self._transport = Transport(self.policy, _USER_AGENT, self._certificate_directories)
            return self._transport

    async def _layers_of(self, repository: Repository, found: Pulled, report: Report, quiet: bool) -> None:
        """Bring in all layers that are not here yet. The first failure cancels the others."""
        missing: dict[Digest, Descriptor] = {}
        for descriptor, diff_id in zip(found.manifest.layers, found.diff_ids, strict=True):
            if self._layers.has(diff_id):
                if not quiet:
                    report(Progress("Already exists", descriptor.digest.short))
            elif diff_id not in missing:
                missing[diff_id] = descriptor
                report(Progress("Pulling fs layer", descriptor.digest.short))
        jobs = [self._layer(repository, descriptor, diff_id, report) for diff_id, descriptor in missing.items()]
        await together(jobs)

    async def _layer(self, repository: Repository, descriptor: Descriptor, diff_id: Digest, report: Report) -> None:
        mine = False

        async def work(tell: Report) -> None:
            nonlocal mine
            mine = True
            if self._slots.locked():
                tell(Progress("Waiting", descriptor.digest.short))
            async with self._slots:
                if self._layers.has(diff_id):
                    return
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="tare-pull")
                transfer = LayerTransfer(descriptor, diff_id, self._content, self._layers, self._pool, tell, self._budget, self._attempts)
                await transfer.run(repository)

        while True:
            try:
                return await self._transfers.run((diff_id, descriptor.digest), work, report)
            except TareError:
                if mine:
                    raise  # else another pull's registry failed it: that says nothing about ours


def _give_memory_back() -> None:
    """Ask the C library to return what the transfers' buffers took (glibc keeps it otherwise: some 15 MB for an idle daemon)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


async def _pin_nothing(digests: Iterable[Digest]) -> None:
    """For callers whose stores are never collected."""
