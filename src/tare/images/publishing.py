"""``push``: an image of ours to a repository of a registry.

An image that was pulled is pushed with the very manifest and blobs that it came with, so that its digest stays. For an image made here
(import, commit, load of a plain archive) its layers are compressed once, a manifest is written, and both are *kept* as if it had been
pulled: the second push finds everything and gives the same digest.

A layer that two images share may be here only as one image's blob. Then the other's manifest is kept if the registry has its blob;
otherwise the manifest is written anew with the blob that there is.

An index that is here with all its parts (several platforms, attestations) is pushed as it came. What refers to a pushed manifest
(signatures, bills of materials) follows it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from tare.distribution.auth import Credentials
from tare.distribution.compress import Compression
from tare.distribution.progress import Progress, Report
from tare.distribution.push import LayerToPush, Push
from tare.distribution.registry import Registry
from tare.distribution.sharing import SharedTasks
from tare.errors import Corrupt, InvalidArgument, MissingCredentials, NotFound, TareError
from tare.events import EventBus
from tare.images.garbage import Garbage, Pins
from tare.images.image import ImageRecord
from tare.images.layertar import pack
from tare.images.names import Names
from tare.images.records import Records
from tare.images.siblings import Family
from tare.oci import media_types
from tare.oci.digest import Digest
from tare.oci.image import Descriptor, Index, Manifest, parse_config, parse_manifest
from tare.oci.platform import Platform
from tare.oci.reference import Reference
from tare.store.content import ContentStore
from tare.store.layers.driver import LayerDriver
from tare.store.metadata import Metadata

_REMEMBERED = 10_000
"""Layers of builders whose blobs are known by heart."""


class Blobs:
    """Which compressed blob stands for which layer, as the manifests of all images tell."""

    def __init__(self, content: ContentStore, metadata: Metadata, names: Names) -> None:
        self._content = content
        self.by_layer: dict[str, Descriptor] = {}
        """By diff_id: a blob that the content store has."""
        self._sources: dict[str, set[tuple[str, str]]] = {}
        for image_id, _, document in metadata.images.all():
            record = msgspec.json.decode(document, type=ImageRecord)
            manifest = manifest_of(content, record)
            if manifest is None:
                continue
            places = {(name.domain, name.path) for name in names.of(image_id) if name.digest}
            for diff_id, layer in zip(record.diff_ids, manifest.layers, strict=False):
                self._sources.setdefault(layer.digest, set()).update(places)
                if content.has(layer.digest):
                    self.by_layer.setdefault(diff_id, layer)

    def sources(self, digest: Digest, target: Reference) -> list[str]:
        """Other repositories of ``target``'s registry that are known to hold the blob."""
        return sorted(path for domain, path in self._sources.get(digest, ()) if domain == target.domain and path != target.path)


def manifest_of(content: ContentStore, record: ImageRecord) -> Manifest | None:
    """The manifest that an image came with or was pushed with; ``None`` if it has none."""
    digest = Digest.parse(record.manifest) if record.manifest else None
    if digest is None or not content.has(digest):
        return None
    found = parse_manifest(content.read(digest))
    return found if isinstance(found, Manifest) and len(found.layers) == len(record.diff_ids) else None


@dataclass(frozen=True)
class _Choice:
    """What holds for all layers of one push."""

    target: Reference
    kind: str
    blobs: Blobs
    pins: Pins
    compression: Compression | None

    def takes(self, blob: Descriptor) -> bool:
        return self.compression is None or _packed_as(blob, self.compression)


class Publisher:
    """Pushes images of one engine."""

    def __init__(
        self,
        content: ContentStore,
        layers: LayerDriver,
        metadata: Metadata,
        records: Records,
        garbage: Garbage,
        registry: Registry,
        events: EventBus,
    ) -> None:
        self._content = content
        self._layers = layers
        self._metadata = metadata
        self._records = records
        self._names = records.names
        self._siblings = records.siblings
        self._garbage = garbage
        self._registry = registry
        self._events = events
        self._packing: SharedTasks[Descriptor] = SharedTasks()
        self._packed: dict[tuple[Digest, Compression], Descriptor] = {}
        """What was packed for a builder: no image may name it, so it lasts until the next collection."""

    async def push(
        self,
        name: str,
        tag: str,
        credentials: Credentials | None,
        report: Report,
        platform: Platform | None = None,
        compression: Compression | None = None,
    ) -> None:
        """Push ``name:tag``, or every tag of ``name`` when neither says one. ``report`` gets Docker's messages.

        An image that came through an index goes out as that index, if all of it is here; else, or with a ``platform``, as the one manifest.
        With a ``compression`` the layers that have another are packed anew, and the manifest that goes out is not the image's own.

        Raises ``NotFound`` ("An image does not exist locally with the tag: x") and what the registry's refusal means.
        """
        reference = Reference.parse(name)
        if tag:
            reference = reference.with_tag(tag)
        if reference.digest:
            raise InvalidArgument("cannot push a digest reference")
        report(Progress(f"The push refers to repository [{reference.name}]"))
        images = self._wanted(reference)
        if platform is not None:
            images = {
                target: self._records.variant(self._records.image(each), platform, target.familiar()).id for target, each in images.items()
            }
        blobs = Blobs(self._content, self._metadata, self._names)
        sources = {
            source
            for image_id in {each for found in images.values() for each in (found, *(() if platform else self._siblings.of(found)))}
            for layer in (_layers_of(self._content, self._records.need(image_id)))
            for source in blobs.sources(layer.digest, reference)
        }
        push = await Push.open(self._registry, self._content, reference, credentials, sorted(sources), report)
        try:
            for target, image_id in images.items():
                async with self._garbage.pins() as pins:
                    family = None if platform or compression else self._siblings.family(self._records.need(image_id))
                    if family is not None and family.whole:
                        await self._push_family(push, target, image_id, family, blobs, pins)
                        continue
                    if family is not None and self._siblings.of(image_id):
                        report(Progress(f"Not all of {family.digest} is here: only {self._records.image(image_id).platform()} is pushed"))
                    await self._push(push, target, image_id, blobs, pins, compression)
        except MissingCredentials:
            raise MissingCredentials("no basic auth credentials") from None

    def _wanted(self, reference: Reference) -> dict[Reference, str]:
        """Image ids by tagged reference."""
        own = {
            found: image_id
            for image_id, references in self._names.by_image().items()
            for found in references
            if found.tag and not found.digest and found.repository == reference.repository
        }
        if not own:
            raise NotFound(f"An image does not exist locally with the tag: {reference.familiar_name}")
        if reference.tag is None:
            return own
        if reference not in own:
            raise NotFound(f"tag does not exist: {reference.familiar()}")
        return {reference: own[reference]}

    async def _push_family(self, push: Push, target: Reference, image_id: str, family: Family, blobs: Blobs, pins: Pins) -> None:
        """Push an index with all that it leads to, as it came."""
        pins.hold(family.digest)
        for part in family.parts:
            if isinstance(part.document, Index):
                pins.hold(part.digest)
            elif part.image_id is not None:
                await self._push_image_part(push, target, part.image_id, part.document, blobs, pins)
            else:
                await self._push_blobs(push, target, part.document, pins)
            await push.part(part.raw, part.document.media_type)
        assert target.tag is not None
        digest = await push.manifest(target.tag, family.raw, family.index.media_type)
        await self._push_referrers(
            push, target, [image_id, *self._siblings.of(image_id)], {digest, *(part.digest for part in family.parts)}, pins
        )
        self.remember(image_id, target, digest, (), becomes_own=False)

    async def _push_image_part(self, push: Push, target: Reference, image_id: str, manifest: Manifest, blobs: Blobs, pins: Pins) -> None:
        record = self._records.need(image_id)
        self._hold(pins, image_id, record)
        pins.hold(*(layer.digest for layer in manifest.layers))
        choice = _Choice(target, manifest.media_type, blobs, pins, None)
        pairs = zip(record.diff_ids, manifest.layers, strict=True)
        sent = await push.layers([self._layer(Digest.parse(diff_id), layer, choice) for diff_id, layer in pairs])
        if {layer.digest for layer in sent.values()} != {layer.digest for layer in manifest.layers}:
            raise Corrupt(f"a layer of {image_id} vanished while its index was pushed: push again")
        await push.blob(manifest.config.digest)

    async def _push_blobs(self, push: Push, target: Reference, artifact: Manifest, pins: Pins) -> None:
        for blob in {each.digest: each for each in (artifact.config, *artifact.layers)}.values():
            pins.hold(blob.digest)
            await push.blob(blob.digest)

    async def _push_referrers(self, push: Push, target: Reference, image_ids: Sequence[str], pushed: set[Digest], pins: Pins) -> None:
        """Push the artifacts whose subject is among what was pushed, or refers to that."""
        found = {part.digest: part for each in image_ids for part in self._siblings.artifacts(self._records.need(each))}
        waiting = {digest: part for digest, part in found.items() if digest not in pushed and part.subject is not None}
        while ready := [part for part in waiting.values() if part.subject in pushed]:
            for part in ready:
                del waiting[part.digest]
                pins.hold(part.digest)
                if isinstance(part.document, Index):
                    for entry in part.document.manifests:
                        inner = found.get(entry.digest)
                        if inner is not None and isinstance(inner.document, Manifest):
                            await self._push_blobs(push, target, inner.document, pins)
                            await push.part(inner.raw, inner.document.media_type)
                else:
                    await self._push_blobs(push, target, part.document, pins)
                await push.referrer(part.raw, part.document)
                pushed.add(part.digest)
        for part in waiting.values():
            push.tell(f"{part.digest} is not pushed: what it refers to, {part.subject}, is not")

    def _hold(self, pins: Pins, image_id: str, record: ImageRecord) -> None:
        pins.hold(*(Digest.parse(digest) for digest in record.needs(image_id)))

    async def _push(self, push: Push, target: Reference, image_id: str, blobs: Blobs, pins: Pins, compression: Compression | None) -> None:
        record = self._records.need(image_id)
        diff_ids = [Digest.parse(diff_id) for diff_id in record.diff_ids]
        self._hold(pins, image_id, record)
        own = manifest_of(self._content, record)
        kind = own.media_type if own else media_types.DOCKER_MANIFEST
        original = own
        if compression is not None and not (own and all(_packed_as(layer, compression) for layer in own.layers)):
            original = self._packed_before(record, compression)
            kind = media_types.OCI_MANIFEST if compression.name == "zstd" else kind
        choice = _Choice(target, kind, blobs, pins, compression)
        bases = original or own
        work = [self._layer(diff_id, bases.layers[number] if bases else None, choice) for number, diff_id in enumerate(diff_ids)]
        sent = await push.layers(work)
        config = Digest.parse(image_id)
        await push.blob(config)
        layers = [sent[diff_id] for diff_id in diff_ids]
        if own is not None and [layer.digest for layer in layers] == [layer.digest for layer in own.layers]:
            raw, kind = await asyncio.to_thread(self._content.read, Digest.parse(record.manifest)), own.media_type
        else:
            raw = write_manifest(kind, config, self._content.size(config), layers)
            await pins.add([Digest.of(raw)])
            await asyncio.to_thread(self._content.put, raw)
        assert target.tag is not None
        digest = await push.manifest(target.tag, raw, kind)
        await self._push_referrers(push, target, [image_id], {digest}, pins)
        self.remember(image_id, target, digest, layers, becomes_own=own is None or compression is None)

    def _packed_before(self, record: ImageRecord, compression: Compression) -> Manifest | None:
        """A manifest that an earlier push with this compression wrote, if its blobs are still here."""
        for document in record.documents:
            digest = Digest.parse(document)
            if not self._content.has(digest):
                continue
            with suppress(TareError):
                found = parse_manifest(self._content.read(digest))
                if not isinstance(found, Manifest) or len(found.layers) != len(record.diff_ids):
                    continue
                if all(_packed_as(layer, compression) and self._content.has(layer.digest) for layer in found.layers):
                    return found
        return None

    def _layer(self, diff_id: Digest, original: Descriptor | None, choice: _Choice) -> LayerToPush:
        blobs, pins = choice.blobs, choice.pins

        async def packed() -> Descriptor:
            known = blobs.by_layer.get(diff_id)
            if known is not None and choice.takes(known):
                await pins.add([known.digest])
                if self._content.has(known.digest):
                    return _retyped(known, choice.kind)
            source = original.digest if original is not None and self._content.has(original.digest) else None
            compression = choice.compression or Compression()
            key = (diff_id, compression)
            made = await self._packing.run(key, lambda _: self._pack(diff_id, pins, compression, source), lambda _: None)
            await pins.add([made.digest])
            return _retyped(made, choice.kind)

        found = original or blobs.by_layer.get(diff_id)
        if found is None or not choice.takes(found):
            return LayerToPush(diff_id, None, (), packed)
        found = _retyped(found, choice.kind)
        return LayerToPush(diff_id, found, blobs.sources(found.digest, choice.target), packed)

    def blobs(self) -> Blobs:
        """Which blobs stand for which layers now."""
        return Blobs(self._content, self._metadata, self._names)

    async def packed(
        self, diff_id: Digest, blobs: Blobs, compression: Compression, pins: Pins, *, oci: bool, force: bool = False
    ) -> Descriptor:
        """A blob of this layer, in the content store and pinned. With ``force`` none of another compression will do."""
        kind = media_types.OCI_MANIFEST if oci else media_types.DOCKER_MANIFEST
        known = blobs.by_layer.get(diff_id)
        if known is not None:
            pins.hold(known.digest)
            if (not force or _packed_as(known, compression)) and self._content.has(known.digest):
                return _retyped(known, kind)
        before = self._packed.get((diff_id, compression))
        if before is not None:
            pins.hold(before.digest)
            if self._content.has(before.digest):
                return _retyped(before, kind)
        source = known.digest if known is not None and self._content.has(known.digest) else None
        made = await self._packing.run((diff_id, compression), lambda _: self._pack(diff_id, pins, compression, source), lambda _: None)
        pins.hold(made.digest)
        if len(self._packed) >= _REMEMBERED:
            del self._packed[next(iter(self._packed))]
        self._packed[diff_id, compression] = made
        return _retyped(made, kind)

    async def _pack(self, diff_id: Digest, pins: Pins, compression: Compression, source: Digest | None) -> Descriptor:
        stop = threading.Event()
        work = asyncio.create_task(asyncio.to_thread(pack, self._layers, self._content, diff_id, stop.is_set, compression, source))
        try:
            made = await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            with suppress(Exception):
                (await work).packer.abort()
            raise
        try:
            await pins.add([made.digest])
            await asyncio.to_thread(made.packer.commit, made.digest)
        except BaseException:
            made.packer.abort()
            raise
        return Descriptor(_LAYER_TYPES[compression.name], made.digest, made.size)

    def remember(self, image_id: str, target: Reference, digest: Digest, layers: Sequence[Descriptor], *, becomes_own: bool) -> None:
        """Remember manifest and blobs, and what the registry calls the image now."""
        record = self._records.need(image_id)
        kept = [str(layer.digest) for layer in layers if self._content.has(layer.digest)]
        record = msgspec.structs.replace(
            record,
            manifest=str(digest) if becomes_own else record.manifest,
            documents=list(dict.fromkeys([*record.documents, str(digest), image_id])),
            blobs=list(dict.fromkeys([*kept, *record.blobs])),
        )
        with self._metadata.transaction():
            self._records.put(image_id, record)
            self._names.set(target.with_digest(digest), image_id)
        labels = parse_config(self._content.read(Digest.parse(image_id))).container.labels or {}
        self._events.publish("image", "push", target.familiar(), {**labels, "name": target.familiar_name})


def write_manifest(kind: str, config: Digest, config_size: int, layers: Sequence[Descriptor]) -> bytes:
    """A manifest of ours, indented as Docker indents its own."""
    oci = kind == media_types.OCI_MANIFEST
    config_type = media_types.OCI_CONFIG if oci else media_types.DOCKER_CONFIG
    document = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": _plain(Descriptor(config_type, config, config_size)),
        "layers": [_plain(layer) for layer in layers],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=3)


def _plain(descriptor: Descriptor) -> dict[str, str | int]:
    return {"mediaType": descriptor.media_type, "size": descriptor.size, "digest": str(descriptor.digest)}


def _layers_of(content: ContentStore, record: ImageRecord) -> Sequence[Descriptor]:
    manifest = manifest_of(content, record)
    return manifest.layers if manifest else ()


_COUNTERPARTS = (
    (media_types.DOCKER_LAYER_GZIP, media_types.OCI_LAYER_GZIP),
    (media_types.DOCKER_LAYER_ZSTD, media_types.OCI_LAYER_ZSTD),
    (media_types.DOCKER_LAYER, media_types.OCI_LAYER),
)


_LAYER_TYPES = {"gzip": media_types.DOCKER_LAYER_GZIP, "zstd": media_types.OCI_LAYER_ZSTD}


def _packed_as(layer: Descriptor, compression: Compression) -> bool:
    """Whether a blob will do for a wanted compression. Nobody can see a level, so a wanted one is packed anew."""
    return compression.level is None and layer.media_type.endswith((f"+{compression.name}", f".{compression.name}"))


def _retyped(blob: Descriptor, kind: str) -> Descriptor:
    """The same blob with the media type that belongs into a manifest of ``kind``."""
    oci = kind == media_types.OCI_MANIFEST
    for docker_type, oci_type in _COUNTERPARTS:
        if blob.media_type in (docker_type, oci_type):
            return msgspec.structs.replace(blob, media_type=oci_type if oci else docker_type)
    return blob
