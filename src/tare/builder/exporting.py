"""What becomes of a build's result: an image in the store, a push, or an archive or tree that the client fetches.

    image      recorded and named; ``push=true`` sends it to its registry as well
    registry   pushed, not recorded
    docker     with ``dest`` an archive for ``docker load``, else as ``image``
    oci        an OCI image layout as a tar
    local, tar the file tree
    cacheonly  nothing but the cache

Several platforms make an index. In the store each platform is an image, and the index ties them together: the one for this machine has the
names, the others are its siblings (``images.siblings``). What is attested of an image, and annotations, are kept with it in the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from tare.builder.publication import Annotations, Publication, Result, Style, encode, is_true, plain, publish
from tare.builder.request import BuildRequest, Built, Note, Say, Text
from tare.builder.trace import Vertex
from tare.distribution.progress import Progress
from tare.distribution.push import LayerToPush, Push
from tare.errors import InvalidArgument
from tare.images.intake import outflow
from tare.oci import media_types
from tare.oci.digest import Digest
from tare.oci.image import Descriptor
from tare.oci.platform import host
from tare.oci.reference import Reference
from tare.store.tar.entry import Entry, Kind
from tare.store.tar.writer import header, padding
from tare.store.tartree import batched, tar_below
from tare.wire.build import Export

if TYPE_CHECKING:
    from tare.builder.sessions import Session
    from tare.images.garbage import Pins
    from tare.images.service import Images
    from tare.store.content import ContentStore
    from tare.store.snapshots import Snapshots

_CHUNK = 1 << 20
_TYPES = ("image", "registry", "docker", "oci", "local", "tar", "cacheonly")
_COMMON = {"name", "push", "compression", "compression-level", "force-compression", "oci-mediatypes", "unpack", "rewrite-timestamp"}
_KNOWN = {
    "image": _COMMON | {"push-by-digest", "store"},
    "registry": _COMMON | {"push-by-digest"},
    "docker": _COMMON | {"dest", "tar"},
    "oci": _COMMON | {"dest", "tar"},
    "local": {"dest", "platform-split"},
    "tar": {"dest", "platform-split"},
    "cacheonly": set(),
}


def check(request: BuildRequest) -> None:
    """Refuse what could not be done later. ``InvalidArgument`` names it."""
    outputs, tags = request.outputs, request.tags
    Annotations.parse(request.annotations)
    if request.annotations and outputs and all(output.type in ("local", "tar", "cacheonly") for output in outputs):
        raise InvalidArgument("annotations are part of a manifest, which a file tree has not: use --output type=image or type=oci")
    for output in outputs:
        if output.type not in _TYPES:
            raise InvalidArgument(f"unsupported output type {output.type!r}: {', '.join(_TYPES)} are offered")
        unknown = sorted(name for name in output.attributes if name not in _KNOWN[output.type] and not name.startswith("annotation"))
        if unknown:
            raise InvalidArgument(f"output type {output.type}: unknown attribute {unknown[0]!r}")
        pushed = output.type == "registry" or is_true(output.attributes.get("push", ""))
        if pushed and not (tags or output.attributes.get("name")):
            raise InvalidArgument("tag is needed when pushing to registry")


@dataclass
class Exporter:
    """Exports of one build."""

    images: Images
    content: ContentStore
    snapshots: Snapshots
    request: BuildRequest
    pins: Pins
    say: Say
    session: Session | None = None

    async def export(self, results: Sequence[Result]) -> str:
        """All outputs; the id of the image that the store got, or would have."""
        main = next((result for result in results if host().runs(result.config.platform())), results[0])
        metadata: dict[str, Any] = {"containerimage.config.digest": str(main.id)}
        for output in self.request.outputs or (Export("image"),):
            names = self._names(output)
            if output.type == "cacheonly":
                continue
            if output.type in ("local", "tar"):
                async with self._step(f"exporting to {'client directory' if output.type == 'local' else 'client tarball'}") as vertex:
                    split = is_true(output.attributes.get("platform-split", "")) or len(results) > 1
                    await self._deliver(lambda split=split: outflow(self._tree(results, split=split)), vertex)
            elif output.type == "oci" or (output.type == "docker" and "dest" in output.attributes):
                metadata |= await self._archive(output, results, names)
            else:
                metadata |= await self._image(output, results, main, names)
            if names and output.type not in ("local", "tar"):
                metadata["image.name"] = ",".join(name.canonical() for name in names)
        await self.say(Note("metadata", metadata))
        return str(main.id)

    def _names(self, output: Export) -> list[Reference]:
        given = output.attributes.get("name", "")
        if not given:
            return list(self.request.tags)
        return [Reference.parse(name).with_default_tag() for name in given.split(",") if name]

    @asynccontextmanager
    async def _step(self, name: str) -> Any:
        if not self.request.trace:
            yield None
            return
        vertex = Vertex(self.say, f"{id(self)} {name}", name)
        await vertex.begin()
        try:
            yield vertex
        except BaseException as error:
            await vertex.end(str(error) or "context canceled")
            raise
        await vertex.end()

    async def _deliver(self, stream: Any, vertex: Vertex | None) -> None:
        if self.session is None:
            raise InvalidArgument("outputs other than an image need a session: use 'tare build --output'")
        if vertex is not None:
            await vertex.status("sending", done=False)
        await self.session.deliver(stream)
        if vertex is not None:
            await vertex.status("sending", done=True)

    # -- images -------------------------------------------------------------------------------------------------------------------------

    async def _image(self, output: Export, results: Sequence[Result], main: Result, names: Sequence[Reference]) -> dict[str, Any]:
        pushed = output.type == "registry" or is_true(output.attributes.get("push", ""))
        stored = output.type != "registry" and is_true(output.attributes.get("store", "true"))
        style = Style.of(output.attributes, self.request.annotations, oci=False)
        family = len(results) > 1 or bool(results[0].statements or style.annotations.entries)
        publication: Publication | None = None
        async with self._step("exporting to image") as vertex:
            if pushed or family:
                publication = await publish(results, style, self.images.publisher, self.pins)
                for raw in (*publication.documents.values(), *(raw for _, raw in publication.manifests.values())):
                    self.pins.hold(Digest.of(raw))
                    self.content.put(raw)
            if stored:
                await self._store(results, main, names, publication if family else None, vertex)
            if pushed and publication is not None:
                for name in names:
                    await self._push(publication, name, main if stored else None, output, vertex)
        return {"containerimage.digest": str(main.id)} if publication is None else _described(publication)

    async def _store(
        self, results: Sequence[Result], main: Result, names: Sequence[Reference], publication: Publication | None, vertex: Vertex | None
    ) -> None:
        for result in sorted(results, key=lambda result: result is main):
            image = await self.images.create_from_layers(result.config, packed=publication.images[result.id] if publication else None)
            if vertex is not None:
                await vertex.status(f"writing image {image.id}", done=True)
        if self.request.trace or self.request.squash:  # else the last stage has told it
            await self.say(Built(str(main.id)))
        if not self.request.trace:
            await self.say(Text(f"Successfully built {main.id.hex[:12]}\n"))
        for name in names:
            self.images.tag(str(main.id), name.repository.familiar(), name.tag or "latest")
            if vertex is not None:
                await vertex.status(f"naming to {name.canonical()}", done=True)
            else:
                await self.say(Text(f"Successfully tagged {name.familiar()}\n"))

    async def _push(self, publication: Publication, name: Reference, stored: Result | None, output: Export, vertex: Vertex | None) -> None:
        """Send everything to one repository; progress goes to the client as it comes."""
        queue: asyncio.Queue[Progress | None] = asyncio.Queue()

        async def work() -> None:
            blobs = self.images.publisher.blobs()
            sources = sorted({source for digest in publication.layers for source in blobs.sources(digest, name)})
            push = await Push.open(self.images.registry, self.content, name, self.request.credentials(name), sources, queue.put_nowait)
            await push.layers(
                [LayerToPush(each.digest, each, blobs.sources(each.digest, name), _found(each)) for each in publication.layers.values()]
            )
            for digest in publication.documents:
                await push.blob(digest)
            *parts, (kind, raw) = publication.manifests.values()
            for part_kind, part in parts:
                await push.part(part, part_kind)
            if is_true(output.attributes.get("push-by-digest", "")):
                await push.part(raw, kind)
            else:
                await push.manifest(name.tag or "latest", raw, kind)
            if stored is not None:
                single = kind in media_types.MANIFESTS
                self.images.publisher.remember(
                    str(stored.id), name, publication.top.digest, list(publication.layers.values()) if single else [], becomes_own=single
                )

        task = asyncio.create_task(work())
        task.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (message := await queue.get()) is not None:
                if vertex is not None:
                    await vertex.progress(message)
                else:
                    await self.say(message)
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if vertex is not None:
            await vertex.status(f"pushing manifest for {name.canonical()}@{publication.top.digest}", done=True)

    # -- archives and trees -------------------------------------------------------------------------------------------------------------

    async def _archive(self, output: Export, results: Sequence[Result], names: Sequence[Reference]) -> dict[str, Any]:
        docker = output.type == "docker"
        if docker and len(results) > 1:
            raise InvalidArgument("docker exporter does not currently support exporting manifest lists")
        results = [Result(each.platform, each.config, each.raw) for each in results] if docker else results
        async with self._step(f"exporting to {'docker' if docker else 'oci'} image format") as vertex:
            style = Style.of(output.attributes, self.request.annotations, oci=True)
            publication = await publish(results, style, self.images.publisher, self.pins)
            if vertex is not None:
                await vertex.status(f"exporting manifest {publication.top.digest}", done=True)
            moment = results[0].config.created or ""
            await self._deliver(lambda: outflow(layout(publication, results, names, self.content, moment, docker=docker)), vertex)
        return _described(publication)

    def _tree(self, results: Sequence[Result], *, split: bool) -> Generator[bytes, None, None]:
        """The file trees as one tar."""

        def pieces() -> Iterator[bytes]:
            for result in results:
                prefix = str(result.config.platform()).replace("/", "_").encode() + b"/" if split else b""
                with self.snapshots.view(result.config.diff_ids) as root:
                    yield from tar_below(root, prefix)
                for statement in result.statements:
                    name = b"sbom.spdx.json" if "spdx" in statement.predicate_type else b"provenance.json"
                    yield _file(prefix + name, msgspec.json.format(msgspec.json.encode(statement.predicate), indent=2))

        yield from batched(pieces())


def _found(blob: Descriptor) -> Any:
    async def packed() -> Descriptor:
        return blob

    return packed


def _described(publication: Publication) -> dict[str, Any]:
    return {"containerimage.digest": str(publication.top.digest), "containerimage.descriptor": plain(publication.top)}


def layout(
    publication: Publication, results: Sequence[Result], names: Sequence[Reference], content: ContentStore, created: str, *, docker: bool
) -> Generator[bytes, None, None]:
    """An OCI image layout as a tar; with ``docker`` one that ``docker load`` of any age takes."""
    entries = [plain(publication.top) | {"annotations": _named(publication.top, name, created)} for name in names]
    index = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": entries or [plain(publication.top)]}
    documents: Mapping[Any, bytes] = {**publication.documents, **{digest: raw for digest, (_, raw) in publication.manifests.items()}}

    def pieces() -> Iterator[bytes]:
        yield header(Entry(b"blobs/", Kind.DIRECTORY, 0o755))
        yield header(Entry(b"blobs/sha256/", Kind.DIRECTORY, 0o755))
        for digest in sorted(chain(documents, publication.layers)):
            name = f"blobs/sha256/{digest.hex}".encode()
            if digest in documents:
                yield _file(name, documents[digest])
                continue
            size = publication.layers[digest].size
            yield header(Entry(name, Kind.FILE, 0o644, size=size))
            with content.open(digest) as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
            yield padding(size)
        yield _file(b"index.json", encode(index))
        if docker:
            yield _file(b"manifest.json", msgspec.json.encode([_docker_entry(publication, results[0], names)]))
        yield _file(b"oci-layout", b'{"imageLayoutVersion":"1.0.0"}')

    yield from batched(pieces())


def _named(top: Descriptor, name: Reference, created: str) -> dict[str, str]:
    found = {"io.containerd.image.name": name.canonical(), "org.opencontainers.image.ref.name": name.tag or "latest"}
    return {**(top.annotations or {}), **found, **({"org.opencontainers.image.created": created} if created else {})}


def _docker_entry(publication: Publication, result: Result, names: Sequence[Reference]) -> dict[str, Any]:
    _, raw = publication.manifests[publication.top.digest]
    layers = msgspec.json.decode(raw)["layers"]
    return {
        "Config": f"blobs/sha256/{result.id.hex}",
        "RepoTags": [name.familiar() for name in names] or None,
        "Layers": [f"blobs/sha256/{layer['digest'].partition(':')[2]}" for layer in layers],
    }


def _file(name: bytes, data: bytes) -> bytes:
    return header(Entry(name, Kind.FILE, 0o644, size=len(data))) + data + padding(len(data))
