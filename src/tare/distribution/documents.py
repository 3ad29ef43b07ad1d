"""From a reference to the images that it names: indexes, manifests and configs, each verified, pinned and stored as it came.

    reference ──► (index ──► index ──►) manifest ──► config          ``one``: the entry for one platform
                                                                     ``every``: all entries that are images for Linux

An index also lists what is no image: BuildKit's attestations, other artifacts. ``one`` passes them over; ``every`` says what it met.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tare.errors import Corrupt, NotFound, Unsupported
from tare.oci.digest import Digest
from tare.oci.image import (
    ATTESTED,
    CONFIG_LIMIT,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    check_config,
    check_supported,
    parse_config,
    parse_manifest,
)
from tare.oci.platform import Platform, choose, host
from tare.oci.reference import Reference
from tare.store.content import ContentStore

if TYPE_CHECKING:
    from tare.distribution.remote import Repository

INDEX_DEPTH = 3

Pin = Callable[[Iterable[Digest]], Awaitable[None]]
"""Told the digests (blobs and diff_ids) that a pull is about to rely on, before it looks whether they are there."""


@dataclass(frozen=True)
class Pulled:
    """What a pull made available."""

    reference: Reference
    digest: Digest
    """What the reference named: the index if there is one, else the manifest."""
    manifest_digest: Digest
    manifest: Manifest
    config: ImageConfig
    documents: tuple[Digest, ...]
    """Every stored document on the way: indexes, manifest, config."""
    indexes: tuple[Index, ...] = ()
    artifacts: tuple[Digest, ...] = ()
    """Manifests of what belongs to the image: attestations, referrers."""
    attachments: tuple[Digest, ...] = ()
    """The blobs of these."""

    @property
    def image_id(self) -> Digest:
        return self.manifest.config.digest

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        return self.config.diff_ids


class Documents:
    """The documents of one repository, for one pull."""

    def __init__(self, content: ContentStore, repository: Repository, pin: Pin) -> None:
        self._content = content
        self._repository = repository
        self._pin = pin
        self.artifacts: list[Digest] = []
        """What ``every`` met in the index that is neither an image nor about one of its images."""

    async def one(self, platform: Platform | None) -> Pulled:
        """The image for ``platform``, by default this machine's. A lone image is taken as it is."""
        wanted = platform or host()
        return (await self._below(self._target, (), lambda index: [_choose(index, wanted)]))[0]

    async def every(self) -> list[Pulled]:
        """The images for all platforms; this machine's, if there is one, last. Raises ``NotFound`` when there is none."""
        found = await self._below(self._target, (), self._images, strays=True)
        if not found:
            raise NotFound(f"{self._repository.reference.familiar()} holds no image for linux")
        best = choose(host(), [image.config.platform() for image in found])
        return [*found[: best or 0], *found[(best or 0) + 1 :], found[best or 0]]

    async def document(self, target: str) -> tuple[Digest, Manifest | Index]:
        """One manifest or index, stored and pinned."""
        raw, digest, media_type = await self._manifest(target)
        document = parse_manifest(raw, media_type)
        await self._pin([digest])
        await self._store(raw, digest)
        return digest, document

    @property
    def _target(self) -> str:
        return self._repository.reference.digest or self._repository.reference.tag or ""

    async def _below(
        self,
        target: str,
        above: tuple[tuple[Digest, Index], ...],
        entries: Callable[[Index], Sequence[Digest]],
        *,
        strays: bool = False,
    ) -> list[Pulled]:
        digest, document = await self.document(target)
        if isinstance(document, Manifest):
            if strays and above and not _is_image(document):
                self.artifacts.append(digest)
                return []
            return [await self._image(above, digest, document)]
        if len(above) + 1 >= INDEX_DEPTH:
            raise Unsupported(f"{self._repository.reference.familiar()}: indexes are nested more than {INDEX_DEPTH - 1} deep")
        found: list[Pulled] = []
        for entry in entries(document):
            found += await self._below(str(entry), (*above, (digest, document)), entries, strays=strays)
        return found

    def _images(self, index: Index) -> list[Digest]:
        """The entries that are to be looked at; what is for another system, or about an image, is not."""
        found = []
        for entry in index.manifests:
            system = entry.platform.os.lower() if entry.platform else ""
            if entry.annotations and ATTESTED in entry.annotations:
                continue
            if system in ("", "linux"):
                found.append(entry.digest)
            elif system == "unknown":
                self.artifacts.append(entry.digest)
        return list(dict.fromkeys(found))

    async def _image(self, above: tuple[tuple[Digest, Index], ...], digest: Digest, manifest: Manifest) -> Pulled:
        check_supported(manifest)
        config = await self._config(manifest.config)
        check_config(manifest, config)
        _check_system(config)
        top = above[0][0] if above else digest
        documents = (*(each for each, _ in above), digest, manifest.config.digest)
        return Pulled(self._repository.reference, top, digest, manifest, config, documents, tuple(index for _, index in above))

    async def _manifest(self, target: str) -> tuple[bytes, Digest, str | None]:
        if ":" in target and self._content.has(digest := Digest.parse(target)):
            return await asyncio.to_thread(self._content.read, digest), digest, None
        fetched = await self._repository.manifest(target)
        return fetched.raw, fetched.digest, fetched.media_type

    async def _config(self, descriptor: Descriptor) -> ImageConfig:
        digest = descriptor.digest
        await self._pin([digest])
        if self._content.has(digest):
            return parse_config(await asyncio.to_thread(self._content.read, digest))
        raw = await fetch_document(self._repository, descriptor)
        config = parse_config(raw)
        await self._store(raw, digest)
        return config

    async def _store(self, raw: bytes, digest: Digest) -> None:
        if not self._content.has(digest):
            await asyncio.to_thread(self._content.put, raw, digest)


async def fetch_document(repository: Repository, descriptor: Descriptor, limit: int = CONFIG_LIMIT) -> bytes:
    """A whole blob in memory, verified."""
    from tare.distribution.retry import retrying

    if descriptor.size > limit:
        raise Corrupt(f"image config {descriptor.digest} has {descriptor.size} bytes, more than {limit}")

    async def fetch() -> bytes:
        data = bytearray()
        async with repository.blob(descriptor) as stream:
            async for chunk in stream.chunks:
                data += chunk
                if len(data) > descriptor.size:
                    break
        return bytes(data)

    raw = await retrying(fetch)
    if Digest.of(raw, descriptor.digest.algorithm) != descriptor.digest:
        raise Corrupt(f"image config verification failed for digest {descriptor.digest}")
    return raw


def _is_image(manifest: Manifest) -> bool:
    try:
        check_supported(manifest)
    except Unsupported:
        return False
    return True


def _choose(index: Index, wanted: Platform) -> Digest:
    position = choose(wanted, (entry.platform.platform() if entry.platform else None for entry in index.manifests))
    if position is None and len(index.manifests) == 1 and index.manifests[0].platform is None:
        position = 0
    if position is None:
        raise NotFound(f"no matching manifest for {wanted} in the manifest list entries")
    return index.manifests[position].digest


def _check_system(config: ImageConfig) -> None:
    if config.os and config.os.lower() != "linux":
        raise Unsupported(f'image operating system "{config.os}" cannot be used on this platform')
