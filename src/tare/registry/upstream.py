"""Pull-through cache: repositories below a prefix are those of another registry, fetched when somebody asks and kept.

    docker.io/library/debian:12     ──► docker.io, library/debian        a prefix
    library/debian                  ──► the ``mirror`` source            docker's registry-mirrors: the whole registry is a mirror
    library/debian?ns=docker.io     ──► the source of that name          containerd

What was fetched lies in the storage like anything that was pushed, under the name with the prefix; so it is served whether or not the
upstream answers. A digest is never asked for twice. A tag is believed for ``ttl`` seconds since it was last compared with the upstream;
then one request (HEAD) compares it. If the upstream cannot be reached, is overloaded or limits us, an older answer is served, and for some
seconds it is not even tried; if it says that there is no such tag (any more), ours goes as well.

    repositories/NAME/_tags/TAG             modified: when it was last compared
    repositories/NAME/_manifests/ALG/HEX    modified: when it was last asked for (roughly), which is what ``evict`` goes by

Layers that another repository of the same source brought in are not fetched again, but the upstream has to confirm that this one has them,
too: what a repository holds is not for everybody.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol, TypeVar

import msgspec

from tare.distribution.auth import Credentials
from tare.distribution.certificates import DIRECTORIES
from tare.distribution.endpoints import RegistryPolicy
from tare.distribution.progress import silent
from tare.distribution.sharing import SharedTasks
from tare.errors import Corrupt, Forbidden, NotFound, ResourceExhausted, TareError, Unauthorized, Unavailable
from tare.oci.digest import Digest
from tare.oci.image import Descriptor
from tare.oci.reference import DEFAULT_DOMAIN, Reference
from tare.registry.download import Download
from tare.registry.errors import RegistryError
from tare.registry.storage import Storage
from tare.registry.threads import to_its_end
from tare.registry.upkeep import named_by

if TYPE_CHECKING:
    from tare.distribution.remote import Repository
    from tare.distribution.transport import Transport

log = logging.getLogger("tare.registry")

DOWN_SECONDS = 30.0
"""How long an upstream that did not answer is left alone when there is something older to serve."""
USED_SECONDS = 6 * 3600.0
"""How exact the time of the last use is."""
THREADS = 8
_SIZES = 50_000
_LISTS = 64
_USER_AGENT = "tare-registry/0.1"
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """One upstream. Times in seconds, sizes in bytes; 0 means no limit for ``keep`` and ``size``."""

    prefix: str
    upstream: str
    """``DOMAIN[/PATH]``"""
    credentials: Credentials = field(default_factory=Credentials)
    insecure: bool = False
    certificates: Path | None = None
    ttl: float = 600.0
    timeout: float = 10.0
    keep: float = 0.0
    size: int = 0
    downloads: int = 8

    @property
    def domain(self) -> str:
        return self.upstream.partition("/")[0]


class Place(NamedTuple):
    """A repository of an upstream, and what it is called here."""

    source: Source
    name: str
    reference: Reference


class Checked(Protocol):
    """What a manifest is (``api.registry.manifests.Checked``)."""

    @property
    def digest(self) -> Digest: ...

    @property
    def media_type(self) -> str: ...

    @property
    def subject(self) -> dict[str, Any] | None: ...


@dataclass
class _State:
    """What is known of one source at the moment."""

    slots: asyncio.Semaphore
    down_until: float = 0.0


class PullThrough:
    """All sources of one registry. Use on one event loop."""

    def __init__(
        self,
        storage: Storage,
        sources: Sequence[Source],
        mirror: str,
        check: Callable[[bytes, str, str], Checked],
        spool: Path | None,
    ) -> None:
        """``check`` looks at a manifest (bytes, reference, media type). ``spool``: see ``Download``."""
        self._storage, self._check, self._spool = storage, check, spool
        self._pool = ThreadPoolExecutor(THREADS, "cache")
        self._sources = {source.prefix: source for source in sources}
        self._mirror = self._sources.get(mirror)
        self._states = {source.prefix: _State(asyncio.Semaphore(source.downloads)) for source in sources}
        self._transport: Transport | None = None
        self._loading = asyncio.Lock()
        self._manifests: SharedTasks[None] = SharedTasks()
        self._downloads: dict[tuple[str, Digest], Download | asyncio.Future[Download]] = {}
        self._sizes: OrderedDict[Digest, int] = OrderedDict()
        self._lists: OrderedDict[str, tuple[float, list[str]]] = OrderedDict()
        self._used: dict[tuple[str, Digest], float] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        """By kind (``manifest``, ``blob``) and result (``hit``, ``miss``, ``stale``, ``failed``)."""

    async def close(self) -> None:
        """Give up downloads, close connections."""
        for download in list(self._downloads.values()):
            if isinstance(download, Download):
                await download.stop()
        if self._transport is not None:
            await self._transport.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await to_its_end(self._pool, function, *args, **kwargs)

    async def _look(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Ask the storage something short: at once where it lies on this machine."""
        return function(*args, **kwargs) if self._storage.local else await self._run(function, *args, **kwargs)

    # Names

    def find(self, name: str, namespace: str = "") -> Place | None:
        """Where a repository comes from; None when it is one of this registry's own. ``NAME_UNKNOWN`` for a namespace without a source."""
        for prefix, source in self._sources.items():
            if name.startswith(f"{prefix}/"):
                return _place(source, name[len(prefix) + 1 :])
        if namespace:
            for source in self._sources.values():
                if namespace in (source.upstream, source.prefix):  # the latter when the upstream is itself a mirror
                    return _place(source, name)
            raise RegistryError("NAME_UNKNOWN", f"this registry does not mirror {namespace[:200]}", {"name": name})
        return _place(self._mirror, name) if self._mirror else None

    def resolve(self, name: str) -> str:
        """The name that a repository goes by here."""
        place = self.find(name)
        return place.name if place else name

    # Manifests

    async def manifest(self, place: Place, reference: str) -> None:
        """See to it that a manifest is in the storage, as fresh as it should be. ``RegistryError`` when it cannot be had."""
        if ":" in reference:
            wanted = Digest.parse(reference)
            digest = wanted if await self._look(self._storage.has_manifest, place.name, wanted) else None
            known = fresh = digest is not None
        else:
            digest = await self._known(place, reference)
            known = digest is not None
            age = time.time() - await self._look(self._storage.tag_time, place.name, reference)
            fresh = known and 0 <= age < place.source.ttl
        state = self._states[place.source.prefix]
        if known and not fresh and time.monotonic() < state.down_until:
            self.counts["manifest", "stale"] += 1
        elif not fresh:
            await self._manifests.run((place.name, reference), lambda _: self._update(place, reference, digest), silent)
        else:
            self.counts["manifest", "hit"] += 1
        await self._note_use(place, reference)

    async def _known(self, place: Place, tag: str) -> Digest | None:
        found = await self._look(self._storage.tagged, place.name, tag)
        return found if found is not None and await self._look(self._storage.has_manifest, place.name, found) else None

    async def _update(self, place: Place, reference: str, known: Digest | None) -> None:
        """Fetch, or compare; with ``known`` an upstream that does not answer is no reason to fail."""
        state = self._states[place.source.prefix]
        try:
            async with asyncio.timeout(place.source.timeout if known is not None else None):
                await self._fetch(place, reference, known)
            state.down_until = 0.0
        except (Unavailable, ResourceExhausted, TimeoutError) as error:
            if known is None:
                self.counts["manifest", "failed"] += 1
                raise _translate(error, "MANIFEST_UNKNOWN") from None
            state.down_until = time.monotonic() + DOWN_SECONDS
            self.counts["manifest", "stale"] += 1
            log.warning("%s:%s is served as it was: %s", place.name, reference, error or "the upstream does not answer")
        except TareError as error:
            if isinstance(error, NotFound) and known is not None:
                await self._run(self._drop_tag, place.name, reference)
            self.counts["manifest", "failed"] += 1
            raise _translate(error, "MANIFEST_UNKNOWN") from None

    def _drop_tag(self, name: str, tag: str) -> None:
        try:
            self._storage.delete_tag(name, tag)
        except RegistryError:
            return

    async def _fetch(self, place: Place, reference: str, known: Digest | None) -> None:
        repository = await self._repository(place)
        if known is not None and await repository.resolve(reference) == known:
            await self._run(self._storage.renew_tag, place.name, reference)
            self.counts["manifest", "hit"] += 1
            return
        fetched = await repository.manifest(reference)
        try:
            checked = self._check(fetched.raw, reference if ":" in reference else "", fetched.media_type)
        except RegistryError as error:
            raise Corrupt(f"{place.source.upstream}: {error}") from None
        self._learn_sizes(fetched.raw)
        tag = "" if ":" in reference else reference
        put = self._storage.put_manifest
        await self._run(put, place.name, fetched.raw, checked.digest, checked.media_type, checked.subject, tag, [])
        self.counts["manifest", "miss"] += 1

    def _learn_sizes(self, raw: bytes) -> None:
        document = json.loads(raw)
        for part in (document.get("config"), *(document.get("layers") or ()), *(document.get("blobs") or ())):
            if isinstance(part, dict) and isinstance(part.get("size"), int) and part["size"] >= 0 and "digest" in part:
                self._sizes[Digest.parse(str(part["digest"]))] = part["size"]
        while len(self._sizes) > _SIZES:
            self._sizes.popitem(last=False)

    async def _note_use(self, place: Place, reference: str) -> None:
        if not place.source.keep and not place.source.size:
            return
        digest = Digest.parse(reference) if ":" in reference else await self._known(place, reference)
        now = time.time()
        if digest is not None and now - self._used.get((place.name, digest), 0.0) > USED_SECONDS:
            if len(self._used) > _SIZES:
                self._used.clear()
            self._used[place.name, digest] = now
            if now - await self._look(self._storage.manifest_time, place.name, digest) > USED_SECONDS:
                await self._run(self._storage.renew_manifest, place.name, digest)

    # Blobs

    async def has(self, place: Place, digest: Digest) -> bool:
        """Whether a blob can be served from the storage alone; the upstream may be asked whether one that is stored belongs here."""
        if await self._look(self._storage.has_blob, place.name, digest):
            self.counts["blob", "hit"] += 1
            return True
        if await self._look(self._storage.objects.size, digest) is None:
            return False
        await self._ask(place, "BLOB_UNKNOWN", lambda repository: repository.blob_size(digest))
        try:
            await self._run(self._storage.link_blob, place.name, digest)
        except RegistryError:
            return False
        self.counts["blob", "hit"] += 1
        return True

    async def size(self, place: Place, digest: Digest) -> int:
        """Size of a blob that is not here. ``BLOB_UNKNOWN``, ``UNAVAILABLE``."""
        return await self._ask(place, "BLOB_UNKNOWN", lambda repository: repository.blob_size(digest))

    async def download(self, place: Place, digest: Digest) -> Download:
        """The download of a blob, begun now or under way, once it has brought something. ``release`` it in the end."""
        key = (place.name, digest)
        while (found := self._downloads.get(key)) is None or isinstance(found, asyncio.Future):
            if found is None:
                found = await self._begin(place, digest)
                break
            await asyncio.wait([found])
        found.hold()
        try:
            if found.size:
                await found.available(0) if found.size > 1 else await found.finished()
        except BaseException as error:
            found.release()
            if isinstance(error, TareError):
                self.counts["blob", "failed"] += 1
                raise _translate(error, "BLOB_UNKNOWN") from None
            raise
        return found

    async def _begin(self, place: Place, digest: Digest) -> Download:
        key = (place.name, digest)
        promise = self._downloads[key] = asyncio.get_running_loop().create_future()
        try:
            size = self._sizes.get(digest)
            if size is None:
                size = await self.size(place, digest)
            repository = await self._repository(place)
            descriptor = Descriptor("application/octet-stream", digest, size)
            download = Download(self._storage, place.name, digest, size, self._run, self._spool)
            slots = self._states[place.source.prefix].slots
            await download.start(lambda offset: repository.blob(descriptor, offset), slots, lambda: self._ended(key))
            self._downloads[key] = download
        except BaseException:
            del self._downloads[key]
            raise
        finally:
            promise.cancel()
        self.counts["blob", "miss"] += 1
        return download

    def _ended(self, key: tuple[str, Digest]) -> None:
        self._downloads.pop(key, None)

    # Lists

    async def tags(self, place: Place) -> list[str]:
        """The upstream's tags; those that are here when it does not answer. ``NAME_UNKNOWN``."""
        until, names = self._lists.get(place.name, (0.0, []))
        if time.monotonic() < until:
            return names
        try:
            names = sorted(await self._ask(place, "NAME_UNKNOWN", lambda repository: repository.tags()))
        except RegistryError as error:
            here: list[str] = await self._run(self._storage.tags, place.name)
            if error.status < 429 or not here:
                raise
            return here
        self._lists[place.name] = (time.monotonic() + place.source.ttl, names)
        if len(self._lists) > _LISTS:
            self._lists.popitem(last=False)
        return names

    async def referrers(self, place: Place, digest: Digest) -> list[dict[str, Any]]:
        """The upstream's; those that are here when it does not answer or has no such list."""
        try:
            found = await self._ask(place, "NAME_UNKNOWN", lambda repository: repository.referrers(digest))
            return [msgspec.to_builtins(descriptor, enc_hook=str) for descriptor in found]
        except RegistryError:
            here: list[dict[str, Any]] = await self._run(self._storage.referrers, place.name, digest)
            return here

    # Upstream

    async def _ask(self, place: Place, code: str, question: Callable[[Repository], Awaitable[T]]) -> T:
        try:
            return await question(await self._repository(place))
        except TareError as error:
            raise _translate(error, code) from None

    async def _repository(self, place: Place) -> Repository:
        async with self._loading:
            if self._transport is None:
                # Importing blocks for 0.15 s: not on the event loop.
                await asyncio.to_thread(importlib.import_module, "tare.distribution.remote")
                from tare.distribution.transport import Transport

                policy = RegistryPolicy(insecure=tuple(source.domain for source in self._sources.values() if source.insecure))
                folders = [source.certificates for source in self._sources.values() if source.certificates]
                self._transport = Transport(policy, _USER_AGENT, (*folders, *DIRECTORIES))
        from tare.distribution.answers import translate_plain
        from tare.distribution.remote import Repository

        return Repository(self._transport, self._transport.policy, place.reference, place.source.credentials, translate_plain)

    # Upkeep (in a thread)

    @property
    def evicts(self) -> bool:
        """Whether anything is ever removed."""
        return any(source.keep or source.size for source in self._sources.values())

    def evict(self) -> str:
        """Remove manifests that nobody asked for lately, or for the longest time where there is too much; blobs go with the collection."""
        removed = sum(self._evict(source) for source in self._sources.values() if source.keep or source.size)
        return f"{removed} manifests removed"

    def _evict(self, source: Source) -> int:
        storage = self._storage
        entries = []
        for name in storage.repositories():
            if name.startswith(f"{source.prefix}/"):
                entries += [(storage.manifest_time(name, digest), name, digest) for digest in storage.manifests(name)]
        entries.sort()
        old = [entry for entry in entries if source.keep and entry[0] < time.time() - source.keep]
        gone = old + (self._surplus(entries[len(old) :], source.size) if source.size else [])
        for _, name, digest in gone:
            try:
                storage.delete_manifest(name, digest)
            except RegistryError:
                continue
        return len(gone)

    def _surplus(self, entries: Sequence[tuple[float, str, Digest]], limit: int) -> list[tuple[float, str, Digest]]:
        """The oldest ones whose removal brings the rest below ``limit``."""
        holds = {entry: self._held_by(entry[2]) for entry in entries}
        users = Counter(digest for digests in holds.values() for digest in digests)
        sizes = {digest: self._storage.objects.size(digest) or 0 for digest in users}
        total, gone = sum(sizes.values()), []
        for entry in entries:
            if total <= limit:
                break
            gone.append(entry)
            for digest in holds[entry]:
                users[digest] -= 1
                total -= 0 if users[digest] else sizes[digest]
        return gone

    def _held_by(self, digest: Digest) -> set[Digest]:
        try:
            document = json.loads(self._storage.document(digest))
            return {digest, *(named_by(document) if "manifests" not in document else ())}
        except (RegistryError, ValueError):
            return {digest}

    @property
    def downloading(self) -> int:
        """Blobs that are being fetched."""
        return len(self._downloads)


def _place(source: Source, rest: str) -> Place:
    domain, _, path = source.upstream.partition("/")
    if domain == DEFAULT_DOMAIN and not path and "/" not in rest:
        rest = f"library/{rest}"
    return Place(source, f"{source.prefix}/{rest}", Reference(domain, f"{path}/{rest}" if path else rest))


def _translate(error: BaseException, code: str) -> RegistryError:
    """What our client is told when the upstream refuses."""
    if isinstance(error, NotFound):
        return RegistryError(code, str(error))
    if isinstance(error, Forbidden | Unauthorized):
        return RegistryError("DENIED", f"the upstream refuses: {error}")
    if isinstance(error, ResourceExhausted):
        return RegistryError("TOOMANYREQUESTS", str(error), headers=(("Retry-After", "60"),))
    if isinstance(error, Corrupt):
        return RegistryError("UNAVAILABLE", str(error), status=502)
    return RegistryError("UNAVAILABLE", str(error) or "the upstream does not answer", headers=(("Retry-After", "5"),))
