"""``fsck``: does everything under a data root fit together, and what can be done about what does not.

Checked, bottom to top, with what ``repair`` does:

    database     SQLite's own check                                  nothing: restore it
    blobs        the digest is the name                              deleted (what needs it is judged below)
    layers       the tar's digest, the index, the files (verify.py)  written again from the compressed blob; else deleted
    images       config, layers and documents are there              a missing layer as above; else the image and its names are removed;
                                                                     a missing manifest or compressed layer is forgotten
    names        the image is there                                  removed
    containers   their snapshot and its layers are there             a layer as above; else nothing: remove the container
    snapshots    a container has it                                  nothing: the next start of the daemon removes it

What nothing needs (a crash, a broken-off pull) is no problem: it is told as a *note*, and ``image prune`` gives the space back.
The check reads every byte of the stores: for a worker thread. Nobody may collect garbage meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tare.distribution.decompress import decompress
from tare.errors import NotFound, TareError
from tare.images.image import ImageRecord
from tare.images.publishing import manifest_of
from tare.oci.digest import Digest
from tare.oci.image import parse_config
from tare.store.content import ContentStore
from tare.store.layers.driver import LayerDriver
from tare.store.layers.verify import verify
from tare.store.metadata import Metadata

_CHUNK = 1 << 20


@dataclass
class Problem:
    """Something that does not fit: what kind of thing, its name, what is wrong, and what was done about it ("" for nothing)."""

    kind: str
    name: str
    text: str
    repair: str = ""


@dataclass
class Findings:
    """What a check found."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    blobs: int = 0
    layers: int = 0
    images: int = 0
    containers: int = 0

    @property
    def unrepaired(self) -> int:
        return sum(not problem.repair for problem in self.problems)


class _SnapshotLayers(msgspec.Struct):
    """The part of a container's record that the check needs."""

    diff_ids: list[str] = []


class Checker:
    """One check of one data root. ``kept`` are digests that something else than images and containers needs: a builder's cache."""

    def __init__(
        self,
        root: Path,
        metadata: Metadata,
        content: ContentStore,
        layers: LayerDriver,
        *,
        repair: bool = False,
        kept: Iterable[str] = (),
    ) -> None:
        self._root = root
        self._kept = frozenset(kept)
        self._metadata = metadata
        self._content = content
        self._layers = layers
        self._repair = repair
        self._bad_layers: dict[Digest, Problem] = {}
        self._known_blobs: set[Digest] = set()
        self.findings = Findings()

    def run(self) -> Findings:
        """Check everything, repair if asked to."""
        self._database()
        before = set(self._content.walk()), set(self._layers.walk())
        self._blobs()
        self._check_layers()
        needed = self._images()
        self._names()
        needed |= self._containers() | self._kept
        self._drop_bad_layers()
        self._unused(*before, needed)
        return self.findings

    def _problem(self, kind: str, name: str, text: str, repair: str = "") -> Problem:
        problem = Problem(kind, str(name), text, repair if self._repair else "")
        self.findings.problems.append(problem)
        return problem

    def _database(self) -> None:
        for (text,) in self._metadata.rows("PRAGMA integrity_check(20)", ()):
            if text != "ok":
                self._problem("database", "metadata.db", str(text))

    # --- blobs and layers

    def _blobs(self) -> None:
        for digest in self._content.walk():
            self.findings.blobs += 1
            try:
                with self._content.open(digest) as file:
                    hasher = digest.hasher()
                    while chunk := file.read(_CHUNK):
                        hasher.update(chunk)
            except NotFound:
                continue
            except OSError as error:
                self._problem("blob", digest, f"it cannot be read: {error.strerror}")
                continue
            if digest.matches(hasher):
                self._known_blobs.add(digest)
                continue
            self._problem("blob", digest, f"its content has the digest {digest.algorithm}:{hasher.hexdigest()}", "deleted")
            if self._repair:
                self._content.delete(digest)

    def _check_layers(self) -> None:
        for diff_id in self._layers.walk():
            self.findings.layers += 1
            wrong = verify(self._layers, diff_id)
            if wrong is not None:
                self._bad_layers[diff_id] = self._problem("layer", diff_id, wrong)

    def _layer_usable(self, diff_id: Digest, record: ImageRecord | None) -> bool:
        """Whether a layer is right, or was made right from the blob that ``record``'s manifest names."""
        problem = self._bad_layers.get(diff_id)
        if problem is None and self._layers.has(diff_id):
            return True
        if problem is not None and problem.repair:
            return self._layers.has(diff_id)
        if not self._repair or record is None:
            return False
        blob = self._blob_of(diff_id, record)
        if blob is None:
            return False
        try:
            self._layers.discard_damaged(diff_id)
            with self._layers.writer() as writer, self._content.open(blob) as file:
                for chunk in decompress(iter(lambda: file.read(_CHUNK), b""), f"layer {blob}"):
                    writer.write(chunk)
                writer.commit(diff_id)
        except (TareError, OSError) as error:
            self.findings.notes.append(f"layer {diff_id} could not be written again from blob {blob}: {error}")
            return False
        done = f"written again from blob {blob.short}"
        if problem is not None:
            problem.repair = done
        else:
            self._problem("layer", diff_id, "it is missing", done)
        return True

    def _blob_of(self, diff_id: Digest, record: ImageRecord) -> Digest | None:
        try:
            manifest = manifest_of(self._content, record)
        except TareError:
            return None
        for each, layer in zip(record.diff_ids, manifest.layers if manifest else (), strict=False):
            if each == diff_id and layer.digest in self._known_blobs:
                return layer.digest
        return None

    def _drop_bad_layers(self) -> None:
        """Bad layers that nothing could make right, or that nothing needs."""
        for diff_id, problem in self._bad_layers.items():
            if self._repair and not problem.repair:
                try:
                    self._layers.discard_damaged(diff_id)
                    problem.repair = "deleted"
                except TareError as error:
                    self.findings.notes.append(str(error))

    # --- records

    def _images(self) -> set[str]:
        """Check every image; returns what those that stay need."""
        needed: set[str] = set()
        for image_id, _, document in self._metadata.images.all():
            self.findings.images += 1
            try:
                record = msgspec.json.decode(document, type=ImageRecord)
                wrong = self._image(image_id, record)
            except (msgspec.MsgspecError, TareError) as error:
                wrong = f"its record is damaged: {error}"
            else:
                if wrong is None:
                    needed |= self._tidied(image_id, record).needs(image_id)
                    continue
            self._problem("image", image_id, wrong, "removed with its names: pull or load it again")
            if self._repair:
                with self._metadata.transaction():
                    for name, _ in self._metadata.tags.owned(image_id):
                        self._metadata.tags.delete(name)
                    self._metadata.images.delete(image_id)
        return needed

    def _image(self, image_id: str, record: ImageRecord) -> str | None:
        config = Digest.parse(image_id)
        if config not in self._known_blobs:
            return "its config is missing or damaged"
        if [str(diff_id) for diff_id in parse_config(self._content.read(config)).diff_ids] != record.diff_ids:
            return "its record names other layers than its config"
        for diff_id in record.diff_ids:
            if not self._layer_usable(Digest.parse(diff_id), record):
                return f"its layer {diff_id} is missing or damaged"
        return None

    def _tidied(self, image_id: str, record: ImageRecord) -> ImageRecord:
        """The record without documents and compressed layers that are gone: the image works without them."""
        lost = [digest for digest in record.kept() if Digest.parse(digest) not in self._known_blobs]
        if not lost:
            return record
        kept = msgspec.structs.replace(
            record,
            manifest="" if record.manifest in lost else record.manifest,
            documents=[digest for digest in record.documents if digest not in lost],
            blobs=[digest for digest in record.blobs if digest not in lost],
            artifacts=[digest for digest in record.artifacts if digest not in lost],
            attachments=[digest for digest in record.attachments if digest not in lost],
        )
        for digest in dict.fromkeys(lost):
            self._problem("image", image_id, f"its document or blob {digest} is missing", "forgotten")
        if self._repair:
            self._metadata.images.put(image_id, None, msgspec.json.encode(kept))
        return kept

    def _names(self) -> None:
        for name, owner in self._metadata.rows("SELECT id, owner FROM tags", ()):
            if self._metadata.images.get(str(owner)) is None:
                self._problem("name", str(name), f"its image {owner} does not exist", "removed")
                if self._repair:
                    self._metadata.tags.delete(str(name))

    def _containers(self) -> set[str]:
        needed: set[str] = set()
        known = set()
        for container_id, name, document in self._metadata.containers.all():
            self.findings.containers += 1
            known.add(container_id)
            try:
                diff_ids = msgspec.json.decode(document, type=_SnapshotLayers).diff_ids
            except msgspec.MsgspecError as error:
                self._problem("container", name or container_id, f"its record is damaged: {error}")
                continue
            needed.update(diff_ids)
            if not (self._root / "snapshots" / container_id / ("upper" if self._layers.overlaid else "whole")).is_dir():
                self._problem("container", name or container_id, "its files are missing: remove it")
            for diff_id in diff_ids:
                if not self._layer_usable(Digest.parse(diff_id), self._record_with(diff_id)):
                    self._problem("container", name or container_id, f"its layer {diff_id} is missing or damaged: pull its image again")
        for snapshot in self._snapshots():
            if snapshot not in known:
                self.findings.notes.append(f"snapshot {snapshot} belongs to no container: the daemon removes it when it starts")
        return needed

    def _record_with(self, diff_id: str) -> ImageRecord | None:
        """An image that has this layer and its compressed form."""
        for _, _, document in self._metadata.images.all():
            record = msgspec.json.decode(document, type=ImageRecord)
            if diff_id in record.diff_ids and record.manifest:
                return record
        return None

    def _snapshots(self) -> Iterator[str]:
        try:
            names = os.listdir(self._root / "snapshots")
        except FileNotFoundError:
            return
        yield from (name for name in names if not name.startswith("."))

    def _unused(self, blobs: set[Digest], layers: set[Digest], needed: set[str]) -> None:
        idle = [digest for digest in blobs if digest not in needed and self._content.has(digest)]
        spare = [diff_id for diff_id in layers if diff_id not in needed and diff_id not in self._bad_layers]
        if idle or spare:
            size = sum(self._content.size(digest) for digest in idle)
            for diff_id in spare:
                layer = self._layers.get(diff_id)
                size += layer.tar_size if layer else 0
            self.findings.notes.append(f"{len(idle)} blobs and {len(spare)} layers ({size} bytes) are needed by nothing: prune images")
