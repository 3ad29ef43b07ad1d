"""Upkeep of a registry's content while it serves: the collection of what nobody needs, retention of tags, verification of digests.

**Collection.** A push first stores a blob, then links it, then looks once more whether the blob is there (``Storage._hold``). The
collection hides a blob that no link names, then reads the links once more: who has linked it meanwhile gets it back, else it is destroyed.
Whatever the order, one of the two sees the other, so that no process has to lock another out. A blob that a killed collection left hidden
is brought back by the first who misses it, and by the next collection.

The same with a repository's links to blobs that no manifest names: they go after a ``grace`` (a push uploads blobs before the manifest),
and come back when a manifest that names them appeared at the same time. What is about to go is written down before
(``repositories/NAME/_unlinking``), for the collection after a kill.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from tare.errors import InvalidArgument
from tare.oci.digest import Digest
from tare.registry.errors import RegistryError
from tare.registry.storage import Storage

log = logging.getLogger("tare.registry")

GRACE = 24 * 3600.0
UPLOAD_SECONDS = 168 * 3600.0
"""Uploads untouched for so long are given up."""


_WRITING_SECONDS = 3600.0
"""Younger leftovers may be somebody's work."""


class Retention(NamedTuple):
    """What of a repository's tags is kept; what no rule keeps is removed. Zero: the rule is not used."""

    newest: int = 0
    """So many tags, those pushed last."""
    seconds: float = 0.0
    """Tags pushed so lately."""
    untagged_seconds: float = 0.0
    """Manifests that no tag, index or subject keeps go when they were pushed so long ago."""


def named_by(document: dict[str, Any]) -> list[Digest]:
    """Digests of the blobs and manifests that a manifest or index names."""
    parts = [document.get("config"), *(document.get("layers") or ()), *(document.get("blobs") or ()), *(document.get("manifests") or ())]
    return [Digest.parse(str(part["digest"])) for part in parts if isinstance(part, dict) and "digest" in part]


def collect(storage: Storage, grace: float = GRACE) -> tuple[int, int]:
    """Remove blobs that no manifest names (linked ``grace`` seconds ago or earlier) and uploads given up. Returns (blobs, bytes)."""
    with storage.objects.collecting():
        return _Collection(storage).run(grace)


class _Collection:
    """One run; remembers what manifests name."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._names: dict[Digest, list[Digest]] = {}

    def run(self, grace: float) -> tuple[int, int]:
        storage, objects, now = self._storage, self._storage.objects, time.time()
        left = list(objects.hidden())
        for name in storage.repositories():
            self._unlink_unused(name, now - grace)
        held = self._held()
        hidden = []
        for digest in (*left, *objects.blobs()):
            if digest not in held:
                objects.hide(digest)
                hidden.append(digest)
        held = self._held() if hidden else held
        blobs = size = 0
        for digest in dict.fromkeys((*left, *hidden)):
            if digest in held:
                objects.unhide(digest)
                continue
            removed = objects.destroy(digest)
            blobs, size = blobs + 1, size + removed
        for upload, changed in list(objects.uploads()):
            if now - changed > UPLOAD_SECONDS:
                objects.drop(upload)
        objects.tidy(now - max(grace, _WRITING_SECONDS))
        for name in storage.repositories():
            storage.write_layout(name)
        return blobs, size

    def _held(self) -> set[Digest]:
        """By links, and by manifests: another collection may have a link in hand."""
        held: set[Digest] = set()
        for name in self._storage.repositories():
            held.update(self._storage.blobs(name), self._storage.manifests(name), self._used(name) or ())
        return held

    def _used(self, name: str) -> set[Digest] | None:
        """None: a manifest that the repository has cannot be read, and nobody knows what it names."""
        used: set[Digest] = set()
        for digest in self._storage.manifests(name):
            try:
                if digest not in self._names:
                    self._names[digest] = named_by(json.loads(self._storage.document(digest)))
            except (RegistryError, ValueError):
                if self._storage.has_manifest(name, digest):
                    log.error("manifest %s of %s cannot be read: nothing of this repository is collected", digest, name)
                    return None
                continue
            used.update(self._names[digest])
        return used

    def _unlink_unused(self, name: str, before: float) -> None:
        storage = self._storage
        used, linked = self._used(name), storage.blobs(name)
        if used is None:
            return
        for digest in used.intersection(self._taken(name)):
            _try_link(storage, name, digest)
        gone = [digest for digest in linked if digest not in used and storage.link_time(name, digest) <= before]
        if gone:
            storage.objects.put(_taking(name), json.dumps(gone).encode())
            for digest in gone:
                try:
                    storage.delete_blob(name, digest)
                except RegistryError:
                    continue
            used = self._used(name)
            for digest in gone if used is None else used.intersection(gone):
                _try_link(storage, name, digest)
        storage.objects.remove(_taking(name))

    def _taken(self, name: str) -> list[Digest]:
        """Links that a killed collection may have taken away. No others are made: a manifest may well name what its repository must not
        have (layers that lie elsewhere, blobs of a cached image that nobody has asked for)."""
        try:
            return [Digest.parse(text) for text in json.loads(self._storage.objects.get(_taking(name)))]
        except (FileNotFoundError, ValueError, InvalidArgument):
            return []


def _taking(name: str) -> str:
    return f"repositories/{name}/_unlinking"


def _try_link(storage: Storage, name: str, digest: Digest) -> None:
    try:
        storage.link_blob(name, digest)
    except RegistryError:
        return


def scrub(storage: Storage) -> Iterator[Digest]:
    """Verify every blob; yields the digests of those whose bytes do not match."""
    for digest in storage.objects.blobs():
        hasher = digest.hasher()
        size = storage.objects.size(digest)
        try:
            for data in storage.objects.read(digest, 0, size or 0):
                hasher.update(data)
        except FileNotFoundError:
            if size is None or storage.objects.size(digest) is None:
                continue  # collected meanwhile
        if not digest.matches(hasher):
            yield digest


def retain(storage: Storage, name: str, rules: Retention) -> list[str]:
    """Remove the tags (and manifests) that no rule keeps; returns their names. Their blobs go with the next collection."""
    now = time.time()
    removed = []
    if rules.newest or rules.seconds:
        tags = sorted(((storage.tag_time(name, tag), tag) for tag in storage.tags(name)), reverse=True)
        for place, (pushed, tag) in enumerate(tags):
            if (rules.newest and place < rules.newest) or (rules.seconds and now - pushed < rules.seconds):
                continue
            try:
                storage.delete_tag(name, tag)
            except RegistryError:
                continue
            removed.append(tag)
    if rules.untagged_seconds:
        removed += _remove_untagged(storage, name, now - rules.untagged_seconds)
    return removed


def _remove_untagged(storage: Storage, name: str, before: float) -> list[str]:
    """Manifests that neither a tag nor a kept index or subject leads to."""
    kept = {found for tag in storage.tags(name) if (found := storage.tagged(name, tag))}
    waiting = list(kept)
    while waiting:
        digest = waiting.pop()
        try:
            more = set(named_by(json.loads(storage.document(digest))))
        except (RegistryError, ValueError):
            more = set()
        more.update(Digest.parse(str(found["digest"])) for found in storage.referrers(name, digest))
        waiting += more - kept
        kept |= more
    removed = []
    for digest in storage.manifests(name):
        if digest not in kept and storage.manifest_time(name, digest) < before:
            try:
                storage.delete_manifest(name, digest)
            except RegistryError:
                continue
            removed.append(str(digest))
    return removed
