"""``--cache-from``: steps that other machines made.

A source is read when the build begins, without its layers: a document of keys (``cachedocument``) of a registry, of a directory that the
client uploaded, or inline in an image's config. A layer is fetched when a step asks for it. What was used is in the own cache from then on.

An image *without* such a document still tells by its history, as with docker's classic builder: when layers and lines up to a step are the
same, the next line names the next step, and its layer follows. That holds only for steps whose line says everything about them.

A source that cannot be read is no failure of the build.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from tare.builder import cachedocument
from tare.builder.cache import CacheRecord
from tare.builder.cachedocument import CacheDocument
from tare.builder.request import BuildRequest, Say
from tare.builder.trace import Vertex
from tare.distribution.decompress import decompress
from tare.distribution.documents import fetch_document
from tare.errors import Corrupt, InvalidArgument, NotFound, TareError
from tare.images.committing import store_layer
from tare.oci.digest import Digest
from tare.oci.image import Descriptor, ImageConfig, Index, Manifest, parse_config, parse_manifest
from tare.oci.platform import Platform, host
from tare.oci.reference import Reference

if TYPE_CHECKING:
    from tare.builder.trees import FileTree
    from tare.distribution.remote import Repository
    from tare.images.garbage import Pins
    from tare.images.service import Images
    from tare.store.layers.driver import LayerDriver

_DOCUMENT_LIMIT = 64 << 20


class Source(ABC):
    """One place that a cache comes from."""

    def __init__(self, document: CacheDocument, layers: Sequence[Digest], image: ImageConfig | None = None) -> None:
        self.document = document
        self.steps = document.by_key()
        self.layers = layers
        self.image = image
        """Its history counts when there is no document."""

    @abstractmethod
    async def fetch(self, number: int) -> None:
        """Bring layer ``number`` into the layer store, verified."""

    def by_history(self, state: ImageConfig, line: str) -> CacheRecord | None:
        """What the image's history says comes after ``state`` by ``line``."""
        if self.image is None or self.document.steps:
            return None
        own, theirs = state.history or [], self.image.history or []
        if len(theirs) <= len(own) or [(one.created_by, bool(one.empty_layer)) for one in own] != [
            (one.created_by, bool(one.empty_layer)) for one in theirs[: len(own)]
        ]:
            return None
        count, follower = len(state.diff_ids), theirs[len(own)]
        if self.image.diff_ids[:count] != state.diff_ids or follower.created_by != line:
            return None
        if follower.empty_layer:
            return CacheRecord(follower.created or "", description=line)
        if len(self.image.diff_ids) <= count:
            return None
        return CacheRecord(follower.created or "", str(self.image.diff_ids[count]), line)


class _OwnImage(Source):
    """An image that is here, with its layers."""

    async def fetch(self, number: int) -> None:
        raise NotFound(f"layer {self.layers[number]} is not here any more")


class _Remote(Source):
    """A manifest in a registry."""

    def __init__(
        self, images: Images, repository: Repository, manifest: Manifest, document: CacheDocument, layers: Sequence[Digest],
        image: ImageConfig | None,
    ) -> None:  # fmt: skip
        super().__init__(document, layers, image)
        self._images = images
        self._repository = repository
        self._blobs = manifest.layers

    async def fetch(self, number: int) -> None:
        await self._images.registry.layer(self._repository, self._blobs[number], self.layers[number])


class _Uploaded(Source):
    """An OCI layout that the client sent."""

    def __init__(self, tree: FileTree, manifest: Manifest, document: CacheDocument, layers: Sequence[Digest], imports: Imports) -> None:
        super().__init__(document, layers)
        self._tree = tree
        self._blobs = manifest.layers
        self._imports = imports

    async def fetch(self, number: int) -> None:
        blob, expected = self._blobs[number], self.layers[number]
        found = self._tree.find(_path(blob.digest))
        if found is None:
            raise NotFound(f"the local cache has no blob {blob.digest}")

        def store() -> Digest:
            chunks = decompress(self._tree.read(found), f"blob {blob.digest}")
            return store_layer(self._imports.driver, chunks, self._imports.pins.hold).diff_id

        got = await self._imports.in_thread(store)
        if got != expected:
            raise Corrupt(f"the local cache's layer {expected} is {got}")


def _path(digest: Digest) -> bytes:
    return f"blobs/{digest.algorithm}/{digest.hex}".encode()


class Imports:
    """The cache sources of one request. Event loop only."""

    def __init__(self, request: BuildRequest, images: Images, driver: LayerDriver, pins: Pins, in_thread: Any) -> None:
        self._request = request
        self._images = images
        self.driver = driver
        self.pins = pins
        self.in_thread = in_thread
        self._sources: list[Source] = []

    async def load(self, say: Say) -> None:
        """Read all sources."""
        for name in self._request.cache_from:
            self._add(self._own(name))
        for number, wanted in enumerate(self._request.cache_imports):
            attributes = dict(wanted.attributes)
            shown = attributes.get("ref", "") or "client directory"
            step = Vertex(say, f"{id(self)} {number}", f"importing cache manifest from {shown}") if self._request.trace else None
            if step is not None:
                await step.begin()
            text = ""
            try:
                self._add(await self._read(wanted.type, attributes))
            except TareError as error:
                self._add(own := self._own(attributes.get("ref", "")))
                text = "" if own is not None else str(error)
            if step is not None:
                await step.end(text)

    def _add(self, source: Source | None) -> None:
        if source is not None:
            self._sources.append(source)

    async def _read(self, kind: str, attributes: dict[str, str]) -> Source:
        if kind == "local":
            return self._local(attributes)
        if kind != "registry":
            raise InvalidArgument(f"cache type {kind!r} cannot be imported: registry or local is expected")
        return await self._from_registry(Reference.parse(attributes.get("ref", "")).with_default_tag())

    def _own(self, name: str) -> Source | None:
        """An image that is here; None when it is not."""
        try:
            image = self._images.get(name)
        except TareError:
            return None
        return _OwnImage(_inline(image.config), image.config.diff_ids, image.config)

    async def _from_registry(self, reference: Reference) -> Source:
        repository = await self._images.registry.repository(reference, self._request.credentials(reference))
        fetched = await repository.manifest(reference.digest or reference.tag or "")
        document = parse_manifest(fetched.raw, fetched.media_type)
        if isinstance(document, Index):
            chosen = _for_platform(document, self._request.platform)
            fetched = await repository.manifest(str(chosen))
            document = parse_manifest(fetched.raw, fetched.media_type)
        if isinstance(document, Index):
            raise Corrupt(f"{reference.familiar()}: an index within an index")
        raw = await fetch_document(repository, document.config, _DOCUMENT_LIMIT)
        if document.config.media_type == cachedocument.MEDIA_TYPE:
            found = cachedocument.parse(raw)
            return _Remote(self._images, repository, document, found, _layers(found, document), None)
        config = parse_config(raw)
        if len(config.diff_ids) != len(document.layers):
            raise Corrupt(f"{reference.familiar()}: its manifest and its config have different numbers of layers")
        return _Remote(self._images, repository, document, _inline(config), config.diff_ids, config)

    def _local(self, attributes: dict[str, str]) -> Source:
        tree = self._request.uploads.get(attributes.get("file", ""))
        if tree is None:
            raise NotFound("the local cache was not sent")
        index = parse_manifest(_read(tree, b"index.json"), None)
        if not isinstance(index, Index) or not index.manifests:
            raise Corrupt("the local cache has no manifest")
        wanted = attributes.get("digest", "")
        tag = attributes.get("tag", "") or "latest"
        chosen = next(
            (
                entry
                for entry in index.manifests
                if str(entry.digest) == wanted or (not wanted and (entry.annotations or {}).get(_REF_NAME, "latest") == tag)
            ),
            None,
        )
        if chosen is None:
            raise NotFound(f"the local cache has no {wanted or tag}")
        manifest = parse_manifest(_blob(tree, chosen), chosen.media_type)
        if not isinstance(manifest, Manifest) or manifest.config.media_type != cachedocument.MEDIA_TYPE:
            raise Corrupt("the local cache was not written by Tare")
        found = cachedocument.parse(_blob(tree, manifest.config))
        return _Uploaded(tree, manifest, found, _layers(found, manifest), self)

    # -- what steps ask -----------------------------------------------------------------------------------------------------------------

    async def find(self, keys: Sequence[str], state: ImageConfig, line: str) -> CacheRecord | None:
        """What a source has for one of ``keys``, or by its history for ``line`` after ``state``; its layer is here then, and pinned."""
        for source in self._sources:
            step = next((source.steps[key] for key in keys if key in source.steps), None)
            record: CacheRecord | None = None
            if step is not None:
                diff_id = str(source.layers[step.layer]) if step.layer >= 0 else ""
                record = CacheRecord(step.created, diff_id, step.description, step.size, note=step.note)
            elif line:
                record = source.by_history(state, line)
            if record is not None and await self._bring(source, record):
                return record
        return None

    async def mount(self, key: str) -> Digest | None:
        """The content of a cache mount as a layer, pinned; None when no source has it."""
        for source in self._sources:
            for mount in source.document.mounts:
                if mount.key == key:
                    digest = source.layers[mount.layer]
                    if await self._bring(source, CacheRecord("", str(digest))):
                        return digest
        return None

    async def _bring(self, source: Source, record: CacheRecord) -> bool:
        if not record.diff_id:
            return True
        digest = Digest.parse(record.diff_id)
        self.pins.hold(digest)
        if not self.driver.has(digest):
            try:
                await source.fetch(list(source.layers).index(digest))
            except TareError:
                return False
        record.size = record.size or self.driver.size(digest)
        return True


_REF_NAME = "org.opencontainers.image.ref.name"


def _layers(found: CacheDocument, manifest: Manifest) -> list[Digest]:
    if len(found.layers) != len(manifest.layers):
        raise Corrupt("cache document and manifest have different numbers of layers")
    return [Digest.parse(diff_id) for diff_id in found.layers]


def _inline(config: ImageConfig) -> CacheDocument:
    """The document in an image's config; an empty one when there is none that makes sense."""
    try:
        return cachedocument.checked(msgspec.convert(config.inline_cache or {}, CacheDocument), len(config.diff_ids))
    except (msgspec.MsgspecError, Corrupt):
        return CacheDocument()


def _for_platform(index: Index, platform: str) -> Digest:
    wanted = Platform.parse(platform) if platform else host()
    for entry in index.manifests:
        found = entry.platform
        if found is None or wanted.runs(found.platform()):
            return entry.digest
    raise NotFound(f"no cache for {wanted} in the index")


def _read(tree: FileTree, path: bytes) -> bytes:
    found = tree.find(path)
    if found is None or found.is_directory or found.size > _DOCUMENT_LIMIT:
        raise Corrupt(f"the local cache has no {path.decode()}")
    return b"".join(tree.read(found))


def _blob(tree: FileTree, descriptor: Descriptor) -> bytes:
    raw = _read(tree, _path(descriptor.digest))
    if Digest.of(raw) != descriptor.digest:
        raise Corrupt(f"the local cache's blob {descriptor.digest} is damaged")
    return raw
