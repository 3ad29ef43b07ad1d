"""The images service: what images there are, how they get here, what they are called and how they go.

Order of things, so that a crash at any instant leaves no half image: content and layers first (verified and durable), then the record, then
the names, then the event. Removal goes the other way: names, record, event, and the bytes last; what a crash leaves is garbage, never a
record without its bytes.

Everything here runs on the engine's event loop; the metadata is microseconds away, and what is slow (network, disk) is awaited.
"""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tare.config import EngineConfig
from tare.distribution.auth import Credentials
from tare.distribution.documents import Pulled
from tare.distribution.endpoints import RegistryPolicy, check_insecure
from tare.distribution.progress import Progress, Report, silent
from tare.distribution.registry import Registry
from tare.distribution.registry_rules import read_rules
from tare.distribution.sharing import SharedTasks
from tare.errors import Corrupt, InvalidArgument, NotFound, Unsupported
from tare.events import EventBus
from tare.images.archive_load import Loader
from tare.images.archive_save import Saved, Saver
from tare.images.changes import apply_changes
from tare.images.check import Checker, Findings
from tare.images.committing import Step, child_config, store_layer
from tare.images.filters import select
from tare.images.garbage import Freed, Garbage, Pins
from tare.images.image import HistoryItem, Image, ImageRecord, Packed, Removal, epoch, platform_mismatch
from tare.images.importing import import_layer
from tare.images.names import Names
from tare.images.publishing import Publisher
from tare.images.records import Records
from tare.images.removing import Remover
from tare.images.retention import OWN, prunable
from tare.oci.digest import Digest
from tare.oci.image import NO_TIME, ContainerConfig, History, ImageConfig, RootFS, chain_ids, encode
from tare.oci.platform import Platform, host
from tare.oci.reference import Reference, parse_any
from tare.store.content import ContentStore
from tare.store.layers.driver import LayerDriver
from tare.store.metadata import Metadata

_USE_RESOLUTION = 3600


@dataclass(frozen=True)
class Extent:
    """How much of what a reference names a pull brings here, beyond the image for one platform and its attestations."""

    every_platform: bool = False
    referrers: bool = False
    """What refers to the image in its registry: signatures, bills of materials."""


class Images:
    """The images of one engine. ``users_of`` and ``layers_in_use`` are set by whoever knows the containers."""

    def __init__(self, config: EngineConfig, content: ContentStore, layers: LayerDriver, metadata: Metadata, events: EventBus) -> None:
        check_insecure(config.insecure_registries)
        policy = RegistryPolicy(config.registry_mirrors, config.insecure_registries, read_rules(config.registry_config))
        self._content = self.content = content
        self._layers = layers
        self._metadata = metadata
        self._events = events
        self._names = Names(metadata)
        self._records = Records(content, metadata, self._names)
        self.siblings = self._records.siblings
        """Images of one index."""
        self._garbage = Garbage(content, layers, metadata)
        self._drops_compressed = config.drop_compressed_layers
        self._pulls: SharedTasks[Image] = SharedTasks()
        self.registry = Registry(
            content,
            layers,
            policy,
            config.max_concurrent_downloads,
            [Path(path) for path in config.registry_certs],
            config.max_concurrent_uploads,
            config.max_download_attempts,
        )
        self.publisher = Publisher(content, layers, metadata, self._records, self._garbage, self.registry, events)
        """Pushes."""
        self.saver = Saver(content, layers, metadata, self._records, self._garbage)
        self.loader = Loader(content, layers, metadata, self._records, self._garbage, events, self._settle)
        self.users_of: Callable[[str], Sequence[tuple[str, bool]]] = lambda image_id: ()
        """Containers made of an image: their ids, and whether they run."""
        self._remover = Remover(self._records, self._garbage, lambda image_id: self.users_of(image_id), self._publish)

    @property
    def layers_in_use(self) -> Callable[[], Iterable[str]]:
        """The diff_ids that containers need, running or not: they are kept although their image may be gone."""
        return self._garbage.in_use

    @layers_in_use.setter
    def layers_in_use(self, in_use: Callable[[], Iterable[str]]) -> None:
        self._garbage.in_use = in_use

    def keep(self, root: Callable[[], Iterable[str]]) -> None:
        """From now on ``root`` names further digests that the collector must keep (a builder's cache). Called on the event loop."""
        self._garbage.roots.append(root)

    async def collect_layers(self, diff_ids: Iterable[str]) -> Freed:
        """Delete those of these layers that nothing needs any more (what a cache has given up)."""
        return await self._garbage.collect((), diff_ids)

    def pins(self) -> AbstractAsyncContextManager[Pins]:
        """Protection from the collector for work that makes layers or relies on some (a build)."""
        return self._garbage.pins()

    async def close(self) -> None:
        await self.registry.close()

    # --- looking

    def get(self, name: str, platform: str | Platform | None = None) -> Image:
        """The image called ``name``: a reference, an id, or the beginning of an id. With ``platform`` it or one of its siblings.

        Raises ``NotFound`` ("No such image: x"), ``InvalidArgument`` for what can be no name.
        """
        image, wanted = self._records.image(self._records.resolve(name)), _platform(platform)
        return image if wanted is None else self._records.variant(image, wanted, name)

    def list(self, filters: Mapping[str, Sequence[str]] | None = None) -> builtins.list[Image]:
        """All images, or those that pass Docker's ``filters``, newest first."""
        return select(self._records.images(), filters or {}, self.get)

    def count(self) -> int:
        return self._records.count()

    def size_of(self, image_id: str) -> int:
        """Bytes of an image's files; 0 when it is gone."""
        record = self._records.find(image_id)
        return record.size if record else 0

    def needs(self, image_id: str) -> set[str]:
        """Digests of everything in the stores that an image is made of; empty when it is gone."""
        record = self._records.find(image_id)
        return record.needs(image_id) if record else set()

    def layer_chain(self, image: Image) -> builtins.list[Digest]:
        """Chain ids of the image's layers, bottom first."""
        return chain_ids(image.diff_ids)

    def raw_config(self, image: Image) -> bytes:
        """The config document as it was fetched or made."""
        return self._content.read(Digest.parse(image.id))

    def record(self, image: Image) -> ImageRecord:
        """What is kept of the image beside its config."""
        return self._records.need(image.id)

    def blobs_of(self, image: Image) -> builtins.list[Digest]:
        """The compressed layers that the image came in; they need not all be here any more."""
        return [Digest.parse(digest) for digest in self._records.need(image.id).blobs]

    def history(self, name: str, platform: Platform | None = None) -> builtins.list[HistoryItem]:
        """How the image came to be, newest step first."""
        image = self.get(name, platform)
        sizes = iter([self._layers.size(diff_id) if self._layers.has(diff_id) else 0 for diff_id in image.diff_ids])
        items: builtins.list[HistoryItem] = []
        for step in image.config.history or ():
            size = 0 if step.empty_layer else next(sizes, 0)
            items.append(HistoryItem("<missing>", epoch(step.created), step.created_by or "", (), size, step.comment or ""))
        items += [HistoryItem("<missing>", image.created_at, "", (), size, "") for size in sizes]
        items.reverse()
        ancestor: Image | None = image
        for position, item in enumerate(items):  # one step back in the history is one image up, as dockerd counts
            if ancestor is None:
                break
            items[position] = replace(item, id=ancestor.id, tags=ancestor.tags)
            ancestor = self._records.image(ancestor.parent) if ancestor.parent and self._records.find(ancestor.parent) else None
        return items

    def touch(self, image_id: str) -> None:
        """A container was made of the image: kept to within an hour, so that it costs a write only now and then."""
        record = self._records.find(image_id)
        if record is not None and time.time() - record.used > _USE_RESOLUTION:
            self._records.put(image_id, msgspec.structs.replace(record, used=time.time()))

    # --- coming

    async def pull(
        self,
        reference: str | Reference,
        platform: str | Platform | None = None,
        credentials: Credentials | None = None,
        progress: Report = silent,
        extent: Extent = Extent(),
    ) -> Image:
        """Bring an image here from its registry. Several who want the same share one pull.

        ``progress`` gets Docker's messages. Raises what ``distribution`` raises; then nothing has changed but that
        partial downloads may wait to be resumed.
        """
        wanted = (Reference.parse(reference) if isinstance(reference, str) else reference).with_default_tag()
        target = _platform(platform)
        if target and extent.every_platform:
            raise InvalidArgument("conflicting options: one platform and all platforms cannot both be asked for")
        key = (wanted, target, credentials, extent)
        return await self._pulls.run(key, lambda report: self._pull(wanted, target, credentials, report, extent), progress)

    async def pull_all(
        self,
        repository: Reference,
        platform: str | Platform | None = None,
        credentials: Credentials | None = None,
        progress: Report = silent,
        extent: Extent = Extent(),
    ) -> builtins.list[Image]:
        """Pull every tag of ``repository``, one after the other."""
        fresh, found = False, []

        def tell(message: Progress) -> None:
            nonlocal fresh
            if message.status.startswith("Status: "):
                fresh = fresh or message.status.startswith("Status: Downloaded")
            else:
                progress(message)

        for tag in await self.registry.tags(repository, credentials):
            found.append(await self.pull(repository.with_tag(tag), platform, credentials, tell, extent))
        outcome = "Downloaded newer image for" if fresh else "Image is up to date for"
        progress(Progress(f"Status: {outcome} {repository.familiar_name}"))
        return found

    async def _pull(
        self, reference: Reference, platform: Platform | None, credentials: Credentials | None, report: Report, extent: Extent
    ) -> Image:
        before = self._names.find(reference)
        report(Progress(f"Pulling from {reference.path}", str(reference.digest or reference.tag or "")))
        async with self._garbage.pins() as pin:
            try:
                if extent.every_platform:
                    every = await self.registry.pull_every(reference, credentials, report, pin.add, self._known, extent.referrers)
                else:
                    one = self.registry.pull(reference, platform, credentials, report, pin.add, self._known, extent.referrers)
                    every = [await one]
            except (Corrupt, InvalidArgument, NotFound, Unsupported):
                # Asking again will not help: keep nothing. After a network failure what is complete waits for the next try.
                await pin.drop()
                raise
            self._record_pulled(every)
        pulled = every[-1]
        await self._settle([str(each.image_id) for each in every])
        image = self._records.image(str(pulled.image_id))
        name = reference.familiar()
        report(Progress(f"Digest: {pulled.digest}"))
        fresh = "Image is up to date for" if before == image.id else "Downloaded newer image for"
        report(Progress(f"Status: {fresh} {name}"))
        if platform is not None and not platform.runs(image.platform()):  # only a lone image gets this far; creating a container refuses it
            report(Progress(f"WARNING: {platform_mismatch(name, platform, image.platform())}"))
        self._publish("pull", name, reference.familiar_name, image.labels)
        return image

    def _known(self, image_id: Digest) -> bool:
        return self._records.find(image_id) is not None

    def _record_pulled(self, every: Sequence[Pulled]) -> None:
        """Record what one pull brought; the last image gets the names."""
        with self._metadata.transaction():
            for pulled in every:
                image_id = str(pulled.image_id)
                record = ImageRecord(
                    diff_ids=[str(diff_id) for diff_id in pulled.diff_ids],
                    size=self._size(pulled.diff_ids),
                    created=pulled.config.created or NO_TIME,
                    manifest=str(pulled.manifest_digest),
                    documents=[str(digest) for digest in pulled.documents],
                    blobs=list(dict.fromkeys(str(layer.digest) for layer in pulled.manifest.layers)),
                    artifacts=[str(digest) for digest in pulled.artifacts],
                    attachments=[str(digest) for digest in pulled.attachments],
                )
                self._records.put(image_id, record.merged(self._records.find(image_id)))
            reference = pulled.reference
            self._names.set(reference.with_digest(reference.digest or pulled.digest), image_id)
            if reference.tag and not reference.digest:
                self._names.set(reference, image_id)

    async def import_(
        self,
        source: AsyncIterator[bytes],
        repository: str = "",
        tag: str = "",
        changes: Sequence[str] = (),
        message: str = "",
        platform: str | Platform | None = None,
        origin: str = "-",
    ) -> Image:
        """Make an image of one layer from a tar stream (``docker import``); without ``repository`` it gets no name."""
        target = _platform(platform) or host()
        name = _target(repository, tag) if repository else None
        container = apply_changes(ContainerConfig(), changes)
        async with self._garbage.pins() as pin:
            layer = await import_layer(self._layers, source, pin)
            now = _now()
            config = ImageConfig(
                architecture=target.architecture,
                os=target.os,
                variant=target.variant or None,
                rootfs=RootFS([layer.diff_id]),
                created=now,
                config=container,
                history=[History(created=now, comment=message or f"Imported from {origin}")],
            )
            image = await self.create_from_layers(config, name)
        self._publish("import", image.id, image.id, image.labels)
        return image

    async def create_from_layers(
        self, config: ImageConfig, name: Reference | None = None, parent: str = "", packed: Packed | None = None
    ) -> Image:
        """Record an image over layers that the store has; its id is the digest of ``config`` as encoded here.

        For import, commit and build. The caller pins the layers, and what is ``packed`` of it, until this returns.
        """
        missing = [diff_id for diff_id in config.diff_ids if not self._layers.has(diff_id)]
        if missing:
            raise NotFound(f"layer {missing[0]} is not in the {self._layers.name} layer store")
        raw = encode(config)
        image_id = Digest.of(raw)
        async with self._garbage.pins() as pin:
            await pin.add([image_id, *config.diff_ids])
            self._content.put(raw, image_id)
            record = ImageRecord(
                diff_ids=[str(diff_id) for diff_id in config.diff_ids],
                size=self._size(config.diff_ids),
                created=config.created or NO_TIME,
                documents=[*map(str, packed.documents if packed else ()), str(image_id)],
                parent=parent,
            )
            if packed is not None:
                record.manifest = str(packed.manifest)
                record.blobs = list(dict.fromkeys(map(str, packed.blobs)))
                record.artifacts, record.attachments = [*map(str, packed.artifacts)], [*map(str, packed.attachments)]
            with self._metadata.transaction():
                self._records.put(str(image_id), record.merged(self._records.find(str(image_id))))
                if name is not None:
                    self._names.set(name.with_default_tag(), str(image_id))
        return self._records.image(str(image_id))

    async def commit(
        self,
        changes: Callable[[], Iterator[bytes]],
        confirm: Callable[[], None],
        container: ContainerConfig,
        *,
        parent: str,
        below: Sequence[Digest],
        created_by: str = "",
        author: str = "",
        comment: str = "",
        name: Reference | None = None,
    ) -> Image:
        """A child of the image ``parent``: over the layers ``below`` one more, whose tar ``changes`` gives (read in a worker thread).

        ``confirm`` is asked, and may raise, when the tar has been read: was it whole? An empty tar adds no layer.
        """
        record = self._records.find(parent)
        base = self._records.config(parent) if record else _bare_config(below)
        async with self._garbage.pins() as pin:
            layer = await asyncio.to_thread(lambda: store_layer(self._layers, changes(), pin.hold))
            try:
                confirm()
            except BaseException:
                await pin.drop()
                raise
            step = Step(_now(), created_by, author, comment)
            return await self.create_from_layers(child_config(base, layer, container, step), name, parent if record else "")

    # --- archives

    def saved(self, names: Sequence[str], platform: Platform | None = None) -> builtins.list[Saved]:
        """The images that ``save`` is asked for, with the names that they keep: one given with a tag keeps that one, a repository alone
        stands for all its tags, an id has none. A name stands for the siblings too, unless there is a ``platform``."""
        found: dict[str, Saved] = {}

        def add(name: str, image: Image, reference: Reference | None = None) -> None:
            image = image if platform is None else self._records.variant(image, platform, name)
            saved = found.setdefault(image.id, Saved(image))
            if reference is not None and reference not in saved.references:
                saved.references.append(reference)
                others = self.siblings.of(image.id) if platform is None and not saved.siblings else ()
                saved.siblings += [self._records.image(other) for other in others]

        for name in names:
            parsed = parse_any(name)
            reference = None if isinstance(parsed, Digest) else parsed
            if reference is not None and reference.is_name_only:
                every = [
                    (owner, other)
                    for owner, references in self._names.by_image().items()
                    for other in references
                    if other.tag and not other.digest and other.repository == reference
                ]
                for owner, other in every:
                    add(name, self._records.image(owner), other)
                if every:
                    continue
            image = self.get(name)
            named = reference is not None and reference.tag and not reference.digest and self._names.find(reference) == image.id
            add(name, image, reference if named else None)
        return builtins.list(found.values())

    # --- names

    def tag(self, name: str, repository: str, tag: str = "") -> None:
        """Give the image called ``name`` a further name; another image may lose it."""
        image = self.get(name)
        target = _target(repository, tag)
        self._names.set(target, image.id)
        self._publish("tag", image.id, target.familiar(), image.labels)

    # --- going

    async def delete(
        self, name: str, force: bool = False, prune: bool = True, platforms: Sequence[Platform] = ()
    ) -> builtins.list[Removal]:
        """Remove a name, and the image with its last one; or, given an id, the image with its names. See ``removing.py``."""
        return await self._remover.delete(name, force, prune, platforms)

    async def prune(
        self, dangling: bool = True, filters: Mapping[str, Sequence[str]] | None = None, *, compressed: bool = False
    ) -> tuple[builtins.list[Removal], int]:
        """Remove images that no container uses (``dangling``: only those without a tag); returns what went and the bytes freed.

        ``filters``: those of ``list``, and ``keep-last`` and ``unused-for`` (``retention.py``). With ``compressed`` the images that stay
        lose their compressed layers: they work, but a push to a registry that has not got these gives another digest.
        """
        given = filters or {}
        own = {name: given[name] for name in OWN if name in given}
        found = self.list({name: values for name, values in given.items() if name not in own})
        removals = self._remover.remove_unused(prunable(found, self.list() if own else (), dangling, own, time.time()))
        if compressed:
            self._drop_compressed([image_id for image_id, _ in self._records.all()])
        freed = await self._garbage.collect_all()
        self._events.publish("image", "prune", "", {"reclaimed": str(freed.bytes)})
        return removals, freed.bytes

    async def _settle(self, image_ids: Sequence[str]) -> None:
        """These images have come and are recorded."""
        if self._drops_compressed:
            await self._garbage.collect(self._drop_compressed(image_ids), ())

    def _drop_compressed(self, image_ids: Iterable[str]) -> builtins.list[str]:
        """Let images do without their compressed layers where the layer store can give the plain ones; returns what may be deleted."""
        dropped = []
        with self._metadata.transaction():
            for image_id in image_ids:
                record = self._records.need(image_id)
                if record.blobs and all(self._layers.has_tar(Digest.parse(diff_id)) for diff_id in record.diff_ids):
                    dropped += record.blobs
                    self._records.put(image_id, msgspec.structs.replace(record, blobs=[]))
        return dropped

    async def collect_garbage(self, age: float = 0.0) -> Freed:
        """Delete whatever a crash or a broken-off pull left in the stores, when it is ``age`` seconds old.

        ``layers_in_use`` must be set.
        """
        return await self._garbage.collect_all(age)

    async def check(self, root: Path, repair: bool = False) -> Findings:
        """``fsck`` while the engine runs: see ``check.py``."""
        async with self._garbage.paused():
            kept = [digest for root_of in self._garbage.roots for digest in root_of()]
            checker = Checker(root, self._metadata, self._content, self._layers, repair=repair, kept=kept)
            findings = await asyncio.to_thread(checker.run)
        self._records.forget_all()
        return findings

    def _size(self, diff_ids: Iterable[Digest]) -> int:
        return sum(self._layers.size(diff_id) for diff_id in diff_ids)

    def _publish(self, action: str, actor_id: str, name: str, labels: Mapping[str, str]) -> None:
        self._events.publish("image", action, actor_id, {**labels, "name": name})


def _target(repository: str, tag: str) -> Reference:
    """The name to give: ``repository`` may bring its own tag when ``tag`` is empty."""
    reference = Reference.parse(repository)
    if reference.digest:
        raise InvalidArgument("refusing to create a tag with a digest reference")
    if reference.familiar_name == "sha256":
        raise InvalidArgument("refusing to create an ambiguous tag using digest algorithm as name")
    return reference.with_tag(tag) if tag else reference.with_default_tag()


def _bare_config(diff_ids: Sequence[Digest]) -> ImageConfig:
    """What is left of an image whose record is gone while a container still has its layers."""
    machine = host()
    return ImageConfig(
        architecture=machine.architecture, os=machine.os, variant=machine.variant or None, rootfs=RootFS(list(diff_ids)), history=[]
    )


def _platform(platform: str | Platform | None) -> Platform | None:
    if isinstance(platform, str):
        return Platform.parse(platform) if platform else None
    return platform


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
