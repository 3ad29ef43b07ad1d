"""Publishing an index: several images, usually of one name for several platforms, under one tag.

The images are in registries already. Whatever of them the target repository lacks is mounted from a neighbour, or copied through us: a blob
goes from one registry to the other as it comes, without touching the disk, and the target checks its digest. Manifests are verified against
the digests that the index names and are sent on as they are. The index goes last, so nobody finds one with holes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from tare.distribution.auth import Credentials
from tare.errors import InvalidArgument, NotFound
from tare.oci.digest import Digest
from tare.oci.image import Descriptor, Index, Manifest, parse_manifest
from tare.oci.reference import Reference

if TYPE_CHECKING:
    from tare.distribution.registry import Registry
    from tare.distribution.remote import Repository
    from tare.distribution.upload import Uploader


async def publish_index(
    registry: Registry,
    target: Reference,
    raw: bytes,
    media_type: str,
    sources: Sequence[Reference],
    credentials: Mapping[str, Credentials],
) -> Digest:
    """Put the index ``raw`` under ``target``'s tag; ``sources`` say by digest where its manifests are. ``credentials`` go by domain."""
    index = parse_manifest(raw, media_type)
    if not isinstance(index, Index):
        raise InvalidArgument("an image index or manifest list is expected")
    by_digest = {source.digest: source for source in sources if source.digest}
    missing = [entry.digest for entry in index.manifests if entry.digest not in by_digest]
    if missing:
        raise InvalidArgument(f"manifest {missing[0]} of the index: its source is not named")
    target = target.with_default_tag()
    transport = await registry.transport()
    from tare.distribution.upload import Uploader

    neighbours = sorted({source.path for source in sources if source.domain == target.domain and source.path != target.path})
    own = credentials.get(target.domain, Credentials())
    uploader = Uploader(transport, registry.policy, target, own, neighbours)
    for entry in index.manifests:
        source = by_digest[entry.digest]
        if source.repository == target.repository:
            await _check_present(registry, source, own)
            continue
        repository = await registry.repository(source, credentials.get(source.domain, Credentials()))
        await _copy_image(repository, uploader, replace(source, tag=None), target)
    assert target.tag is not None
    await uploader.put_manifest(target.tag, raw, index.media_type)
    return Digest.of(raw)


async def _check_present(registry: Registry, source: Reference, credentials: Credentials) -> None:
    repository = await registry.repository(source, credentials)
    await repository.manifest(str(source.digest))


async def _copy_image(repository: Repository, uploader: Uploader, source: Reference, target: Reference) -> None:
    fetched = await repository.manifest(str(source.digest))
    manifest = parse_manifest(fetched.raw, fetched.media_type)
    if not isinstance(manifest, Manifest):
        raise NotFound(f"{source.familiar()} is an index itself: name the images in it")
    for blob in {descriptor.digest: descriptor for descriptor in (manifest.config, *manifest.layers)}.values():
        if blob.urls or await uploader.has_blob(blob.digest):
            continue
        if source.domain == target.domain and await uploader.mount(blob.digest, source.path):
            continue
        await _copy_blob(repository, uploader, blob)
    await uploader.put_manifest(str(fetched.digest), fetched.raw, manifest.media_type)


async def _copy_blob(repository: Repository, uploader: Uploader, blob: Descriptor) -> None:
    from tare.distribution.segments import from_offset

    async def body(start: int, end: int) -> AsyncIterator[bytes]:
        async with repository.blob(blob, start, end if end < blob.size else None) as stream:
            left = end - start
            async with aclosing(from_offset(stream.chunks, start - stream.offset)) as chunks:
                async for chunk in chunks:
                    yield chunk[:left]
                    left -= len(chunk[:left])
                    if not left:
                        return

    await uploader.upload(blob.digest, blob.size, body)
