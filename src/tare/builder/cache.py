"""What steps have made before: which layer a step's key stands for, and when it was made.

A key is a digest over everything that can change a step's result: the state that it starts from (layers, the whole config, platform) and
the step itself with the content that it reads. It is never a name or a time. A record says which layer came out ("" for none) and the
time that goes into the image's history, so that an image built wholly from the cache has the id that it had before. What ADD downloads has
records as well (``url:KEY``): which version the server called it, and what a step's key had of it, so that it need not be sent again.

Records lie in the metadata (table ``builds``, ids ``step:KEY``); the layers they name are roots of the collector. A record whose layer is
gone is no hit. Cache mounts (``RUN --mount=type=cache``) have records too (``mount:KEY``), beside a directory of their own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from tare.oci.digest import Digest
from tare.store.metadata import Metadata

_STEP, _MOUNT, _URL = "step:", "mount:", "url:"
_MOST_URLS = 1000
_TOUCH_SECONDS = 60.0


class CacheRecord(msgspec.Struct, omit_defaults=True):
    """One record. Times in seconds since the epoch."""

    created: str
    """As the history has it."""
    diff_id: str = ""
    description: str = ""
    size: int = 0
    made: float = 0.0
    used: float = 0.0
    count: int = 1
    note: str = ""
    """What the step adds to its history line (digests of copied files)."""


class Download(msgspec.Struct, omit_defaults=True):
    """A file that ADD has downloaded: its version in the server's words, its digest, and its part in the keys of steps."""

    etag: str
    modified: str
    digest: str
    identity: list[Any]


def key_of(*parts: Any) -> str:
    """A key over plain values: their JSON, which tells every one of them apart."""
    return hashlib.sha256(msgspec.json.encode(parts), usedforsecurity=False).hexdigest()


class Cache:
    """All records of one engine, in memory and on disk. Event loop only."""

    def __init__(self, metadata: Metadata) -> None:
        self._records = metadata.builds
        self._metadata = metadata
        self._steps: dict[str, CacheRecord] = {}
        self._mounts: dict[str, CacheRecord] = {}
        self._urls: dict[str, Download] = {}
        decoder = msgspec.json.Decoder(CacheRecord)
        for id, _, document in self._records.all():
            for prefix, table in ((_STEP, self._steps), (_MOUNT, self._mounts)):
                if id.startswith(prefix):
                    table[id.removeprefix(prefix)] = decoder.decode(document)
            if id.startswith(_URL):
                self._urls[id.removeprefix(_URL)] = msgspec.json.decode(document, type=Download)

    def find(self, keys: Sequence[str]) -> CacheRecord | None:
        """The record of the first of ``keys`` that has one."""
        for key in keys:
            record = self._steps.get(key)
            if record is not None:
                return record
        return None

    def used(self, keys: Sequence[str], record: CacheRecord) -> None:
        """A hit: it counts for what is pruned first. All its keys lead to it from now on."""
        now = time.time()
        record.count += 1
        stale = now - record.used > _TOUCH_SECONDS
        record.used = now
        for key in keys:
            if stale or key not in self._steps:
                self._steps[key] = record
                self._records.put(_STEP + key, None, msgspec.json.encode(record))

    def put(self, keys: Sequence[str], record: CacheRecord) -> None:
        """Remember what a step has made. The caller has its layer pinned."""
        record.made = record.used = time.time()
        with self._metadata.transaction():
            for key in keys:
                self._steps[key] = record
                self._records.put(_STEP + key, None, msgspec.json.encode(record))

    def downloaded(self, key: str) -> Download | None:
        """What is known of a download."""
        return self._urls.get(key)

    def put_download(self, key: str, download: Download) -> None:
        """Remember a download; the ones remembered first are forgotten when there are many."""
        self._urls.pop(key, None)
        self._urls[key] = download
        self._records.put(_URL + key, None, msgspec.json.encode(download))
        while len(self._urls) > _MOST_URLS:
            oldest = next(iter(self._urls))
            del self._urls[oldest]
            self._records.delete(_URL + oldest)

    def mount_used(self, key: str, description: str) -> None:
        """A cache mount was used."""
        record = self._mounts.setdefault(key, CacheRecord("", description=description, made=time.time(), count=0))
        record.used, record.count = time.time(), record.count + 1
        self._records.put(_MOUNT + key, None, msgspec.json.encode(record))

    def layers(self) -> set[str]:
        """The diff_ids to keep."""
        return {record.diff_id for record in self._steps.values() if record.diff_id}

    def steps(self) -> list[tuple[str, CacheRecord]]:
        """Every record of a step once, by one of its keys; least recently used first. For worker threads too."""
        unique = {id(record): (key, record) for key, record in list(self._steps.items())}  # copied at once, while builds go on
        return sorted(unique.values(), key=lambda pair: pair[1].used)

    def mounts(self) -> list[tuple[str, CacheRecord]]:
        """Every cache mount, least recently used first."""
        return sorted(list(self._mounts.items()), key=lambda pair: pair[1].used)

    def drop(self, wanted: Callable[[CacheRecord], bool]) -> list[tuple[str, CacheRecord]]:
        """Forget the records of steps that ``wanted`` chooses; returns them. The layers are the collector's business."""
        doomed = {id(record) for record in self._steps.values() if wanted(record)}
        gone: dict[int, tuple[str, CacheRecord]] = {}
        with self._metadata.transaction():
            for key, record in list(self._steps.items()):
                if id(record) in doomed:
                    gone[id(record)] = key, record
                    del self._steps[key]
                    self._records.delete(_STEP + key)
        return list(gone.values())

    def drop_mounts(self, keys: Iterable[str]) -> None:
        """Forget cache mounts; their directories are gone already."""
        for key in keys:
            self._mounts.pop(key, None)
            self._records.delete(_MOUNT + key)


def digest_of(record: CacheRecord) -> Digest | None:
    """The layer that a record names."""
    return Digest.parse(record.diff_id) if record.diff_id else None
