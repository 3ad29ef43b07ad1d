"""Layers on disk: one shape for all drivers, who differ only in what they make of a layer's tar and how they show it.

On disk, under ``data_root/layers/DRIVER``:

    sha256/HEX/            one layer, complete from the moment it has this name (it is renamed into place), named by its diff_id
        layer.json         record: form, sizes, number of entries, attributes of the root directory
        layer.tar          the uncompressed tar, padded to 512 bytes (forms erofs, tar and pending)
        meta.erofs         its index (form erofs)
        fs/                its files, whiteouts in overlayfs's form (form directory)
        linked-KEY/        its files for one particular stack below it (form pending, or with implied directories)
    l/SHORT -> ../sha256/HEX   short names, unique, because overlay options have room for few bytes per layer
    tmp/                   layers being written, and layers on their way out; emptied at start
    empty/                 the lower directory of an image without layers

Forms. *erofs*: shown through the tar, nothing extracted. *directory*: extracted. *tar*: extracted with its stack. *pending*: a hard link
in it names a file that only a layer below can hold, so what it means depends on its stack: it stays a tar and is extracted when that stack
is acquired.

Whatever the form, ``tar`` gives the layer's uncompressed tar byte for byte, so that what was made or loaded here can be pushed and saved.

Writing is one pass: the uncompressed tar is spooled, hashed and understood (``tree.py``) as it arrives; ``commit`` makes the driver's form
of the tree. All public methods may be called from any thread; a writer belongs to one thread at a time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

from tare.errors import Conflict, Corrupt, InvalidArgument, NotFound, ResourceExhausted, TareError
from tare.oci.digest import Digest
from tare.store.durability import make_directory, remove_tree, replace_file, start_writeback, sync_directory, sync_filesystem, write_all
from tare.store.layers import recipe
from tare.store.layers.extract import extract
from tare.store.layers.inherit import inherit, inherited
from tare.store.layers.tree import Tree
from tare.store.tar.entry import BLOCK, DEFAULT_LIMITS, Entry, Limits
from tare.store.tar.reader import Parser

_WRITEBACK = 8 << 20
_CHUNK = 1 << 20
_SHORT_LENGTHS = (8, 12, 16, 24, 32, 64)


@dataclass(frozen=True)
class Layer:
    """A stored layer. ``size`` is what Docker calls it: the bytes of its files; ``tar_size`` the length of its uncompressed tar."""

    diff_id: Digest
    size: int
    tar_size: int
    entries: int
    form: str
    root: tuple[int, int, int] | None
    """Mode, uid and gid of the root directory when the layer's tar has an entry for it."""
    dropped: tuple[str, ...] = ()
    """Extended attributes that were left out."""
    implied: tuple[str, ...] = ()
    """Directories that its tar does not name but has something in: they take their attributes from the layers below."""


def tree_of(chunks: Iterable[bytes], limits: Limits = DEFAULT_LIMITS) -> Tree:
    """What the tar in ``chunks`` means."""
    tree = Tree(limits)
    parser = Parser(limits, bodies=False)
    for chunk in chunks:
        for entry in parser.feed(chunk):
            if isinstance(entry, Entry):
                tree.add(entry)
    parser.close()
    return tree


def _stack_key(layers: Iterable[Layer]) -> str:
    return hashlib.sha256("".join(layer.diff_id for layer in layers).encode()).hexdigest()[:32]


def _spooled(chunks: Iterable[bytes], target: BinaryIO) -> Iterator[bytes]:
    """The chunks, written down as they pass."""
    for chunk in chunks:
        target.write(chunk)
        yield chunk
    target.flush()


class LayerWriter:
    """One layer being written. End it with ``commit`` or ``abort``; as a context manager it aborts when left without a commit."""

    def __init__(self, driver: LayerDriver, staging: Path, limits: Limits, claim: Callable[[Digest], None] | None = None) -> None:
        self.tree = Tree(limits)
        self.size = 0
        """Bytes of files so far."""
        self.offset = 0
        """Bytes of the tar so far."""
        self._driver = driver
        self._staging = staging
        self._claim = claim
        self._hasher = hashlib.sha256(usedforsecurity=False)
        self._parser = Parser(limits, bodies=False)
        self._flushed = 0
        self._file = os.open(staging / "layer.tar", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next part of the uncompressed tar, of any length (64 KiB to 1 MiB is fastest).

        Raises ``Corrupt`` for what is no tar or leaves the root, ``InvalidArgument`` over a limit, ``ResourceExhausted`` on a full disk.
        """
        try:
            write_all(self._file, chunk)
        except OSError as error:
            raise self._driver.translate(error) from error
        self._hasher.update(chunk)
        self.offset += len(chunk)
        for entry in self._parser.feed(chunk):
            if isinstance(entry, Entry):
                self.tree.add(entry)
                self.size += entry.size
        if self.offset - self._flushed >= _WRITEBACK and self._driver.keeps_tar:
            start_writeback(self._file, self._flushed, self.offset - self._flushed)
            self._flushed = self.offset

    def commit(self, expected: Digest | None = None) -> Layer:
        """Verify and publish. A layer that is there already is success. On any error nothing is left."""
        try:
            self._parser.close()
            diff_id = Digest.sha256(self._hasher.hexdigest())
            if expected is not None and diff_id != expected:
                raise Corrupt(f"layer does not match its diff_id: expected {expected}, got {diff_id}")
            if self._claim is not None:
                self._claim(diff_id)
            try:
                padding = -self.offset % BLOCK
                write_all(self._file, bytes(padding))
                return self._driver.publish(self, diff_id)
            except OSError as error:
                raise self._driver.translate(error) from error
        finally:
            self.abort()

    @property
    def entries(self) -> int:
        return self._parser.entries

    @property
    def staging(self) -> Path:
        return self._staging

    @property
    def file(self) -> int:
        """The spooled tar, open."""
        return self._file

    def abort(self) -> None:
        """Leave nothing. Idempotent; harmless after ``commit``."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            remove_tree(self._staging)

    def __enter__(self) -> LayerWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


class LayerDriver(ABC):
    """Stores layers and shows stacks of them as directories."""

    name: ClassVar[str]
    keeps_tar: ClassVar[bool] = False
    """Whether layers normally stay tars."""
    overlaid: ClassVar[bool] = True
    """Whether a container's root is an overlay over what ``acquire`` gives; if not, it is a copy of the one directory."""

    def __init__(self, root: Path, exec_root: Path, limits: Limits = DEFAULT_LIMITS) -> None:
        self._root = root / "layers" / self.name
        self._exec = exec_root / "layers" / self.name
        self._limits = limits
        self._lock = threading.RLock()
        self._records: dict[Digest, Layer] = {}
        self._shorts: dict[Digest, str] = {}
        self._counts: dict[Digest, int] = {}
        self._released: dict[Digest, float] = {}
        """When a layer was last let go."""
        self._inheriting: dict[tuple[Digest, str], bool] = {}
        for directory in (self._root, self._root / "sha256", self._root / "l", self._root / "empty", self._exec):
            make_directory(directory)
        (self._root / "empty").chmod(0o755)
        remove_tree(self._root / "tmp")
        (self._root / "tmp").mkdir(mode=0o700)

    @classmethod
    @abstractmethod
    def probe(cls, root: Path, exec_root: Path) -> None:
        """Try the driver for real on these directories; raises ``Unsupported`` saying what is missing."""

    @abstractmethod
    def _form(self, writer: LayerWriter, diff_id: Digest) -> str:
        """Turn the writer's staging directory into this driver's form of the layer, durable, and return the form's name."""

    def _show(self, layer: Layer) -> Path:
        """A directory that shows a layer of form *directory* or one of the driver's own; mounted if need be."""
        return self._short_path(layer.diff_id) / "fs"

    # --- queries

    def path(self, diff_id: Digest) -> Path:
        """The layer's directory on disk, or where it would be."""
        return self._root / "sha256" / diff_id.hex

    def get(self, diff_id: Digest) -> Layer | None:
        """The layer, or None."""
        record = self._records.get(diff_id)
        if record is None:
            try:
                fields = json.loads((self.path(diff_id) / "layer.json").read_bytes())
                root = fields.pop("root")
                record = Layer(
                    diff_id=diff_id,
                    root=tuple(root) if root else None,
                    dropped=tuple(fields.pop("dropped")),
                    implied=tuple(fields.pop("implied", ())),
                    **fields,
                )
            except FileNotFoundError:
                return None
            except (ValueError, KeyError, TypeError):
                raise Corrupt(f"layer {diff_id} has a damaged record in {self.path(diff_id)}: remove its image and pull again") from None
            self._records[diff_id] = record
        return record

    def has(self, diff_id: Digest) -> bool:
        return self.get(diff_id) is not None

    def size(self, diff_id: Digest) -> int:
        """Bytes of the layer's files (what Docker shows); ``NotFound`` when it is not stored."""
        return self._need(diff_id).size

    def has_tar(self, diff_id: Digest) -> bool:
        """Whether ``tar`` can give this layer (false for one that an older engine extracted without keeping its recipe)."""
        directory = self.path(diff_id)
        return self.has(diff_id) and ((directory / "layer.tar").exists() or (directory / recipe.NAME).exists())

    def tar(self, diff_id: Digest) -> Generator[bytes, None, None]:
        """The layer's uncompressed tar, exactly its ``tar_size`` bytes, in chunks of up to 1 MiB.

        Raises ``NotFound`` when it is not stored and ``Corrupt``, possibly only at the end, when it is damaged. Not to be removed
        meanwhile: the caller holds it.
        """
        layer = self._need(diff_id)
        directory = self.path(diff_id)
        try:
            tar = open(directory / "layer.tar", "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            if not self.has_tar(diff_id):
                raise NotFound(f"the tar of layer {diff_id} was not kept: remove its image and pull or load it again") from None
            yield from recipe.read(directory, diff_id)
            return
        with tar:
            left = layer.tar_size  # the file is padded
            while left:
                chunk = tar.read(min(_CHUNK, left))
                if not chunk:
                    raise Corrupt(f"the tar of layer {diff_id} is cut off on disk: remove its image and pull it again")
                left -= len(chunk)
                yield chunk

    def _need(self, diff_id: Digest) -> Layer:
        layer = self.get(diff_id)
        if layer is None:
            raise NotFound(f"layer {diff_id} is not in the {self.name} layer store: pull its image again")
        return layer

    def walk(self) -> Iterator[Digest]:
        """Every stored layer."""
        for name in os.listdir(self._root / "sha256"):
            yield Digest.sha256(name)

    def busy(self) -> frozenset[Digest]:
        """Layers that are acquired right now."""
        with self._lock:
            return frozenset(self._counts)

    # --- writing

    def writer(self, claim: Callable[[Digest], None] | None = None) -> LayerWriter:
        """Begin a layer. ``claim`` hears its diff_id in ``commit``, before anybody can see (and delete) it."""
        try:
            return LayerWriter(self, Path(tempfile.mkdtemp(dir=self._root / "tmp")), self._limits, claim)
        except OSError as error:
            raise self.translate(error) from error

    def translate(self, error: OSError) -> TareError | OSError:
        """A full disk as an error for users; anything else as it is."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceExhausted(f"no space left on device while storing a layer: free some space under {self._root}")
        if error.errno == errno.EFBIG:
            return InvalidArgument(f"a file of the layer is larger than the file system of {self._root} allows")
        return error

    def publish(self, writer: LayerWriter, diff_id: Digest) -> Layer:
        """Give a verified layer its name (called by ``LayerWriter.commit``)."""
        present = self.get(diff_id)
        if present is not None:
            return present
        staging = writer.staging
        root = writer.tree.root
        if writer.tree.missing():
            os.fsync(writer.file)
            form = "pending"
        else:
            form = self._form(writer, diff_id)
        layer = Layer(
            diff_id=diff_id,
            size=writer.size,
            tar_size=writer.offset,
            entries=writer.entries,
            form=form,
            root=(root.mode & 0o7777, root.uid, root.gid) if writer.tree.root_given else None,
            dropped=tuple(sorted(os.fsdecode(name) for name in writer.tree.dropped)),
            implied=tuple(map(os.fsdecode, writer.tree.implied())),
        )
        fields = asdict(layer)
        del fields["diff_id"]
        replace_file(staging / "layer.json", json.dumps(fields).encode())
        with self._lock:
            if self.get(diff_id) is None:
                target = self.path(diff_id)
                if target.exists():
                    self._discard(target)
                self._shorten(diff_id)
                staging.rename(target)
                sync_directory(target.parent)
                self._records[diff_id] = layer
        return layer

    def _extract_into(self, writer: LayerWriter) -> str:
        """The form *directory*: extract the spooled tar, replace it by its recipe, make the files durable."""
        target = writer.staging / "fs"
        target.mkdir(mode=0o755)
        extract(writer.tree, writer.file, target)
        recipe.write(writer.tree, writer.file, writer.offset, writer.staging / recipe.NAME)
        (writer.staging / "layer.tar").unlink()
        sync_filesystem(target)
        return "directory"

    # --- short names

    def _shorten(self, diff_id: Digest) -> str:
        """A short unique name for a layer, kept as a symbolic link. Two layers may share a prefix by design, hence the longer tries."""
        destination = f"../sha256/{diff_id.hex}"
        for length in _SHORT_LENGTHS:
            short = diff_id.hex[:length]
            link = self._root / "l" / short
            try:
                link.symlink_to(destination)
                return short
            except FileExistsError:
                held = os.readlink(link)
                if held == destination:
                    return short
                if not (link.parent / held).exists() and not self._claimed(short):
                    link.unlink()
                    link.symlink_to(destination)
                    return short
        raise Conflict(f"layer {diff_id} has no free short name")

    def _claimed(self, short: str) -> bool:
        return short in self._shorts.values()

    def short(self, diff_id: Digest) -> str:
        """The layer's short name."""
        short = self._shorts.get(diff_id)
        if short is None:
            short = self._shorts[diff_id] = self._shorten(diff_id)
        return short

    def _short_path(self, diff_id: Digest) -> Path:
        return self._root / "l" / self.short(diff_id)

    # --- showing

    def acquire(self, diff_ids: Sequence[Digest]) -> tuple[Path, ...]:
        """Directories that show these layers (given bottom first), bottom first, fit for overlay's ``lowerdir``.

        Layers that add nothing to the stack are left out: empty ones, and all but the topmost occurrence of one that is there twice
        (overlayfs refuses a directory twice, and the topmost holds all that the others do). There is always at least one directory.
        Count with ``release``; raises ``NotFound`` when a layer is missing.
        """
        with self._lock:
            paths = self.show(diff_ids)
            for diff_id in diff_ids:
                self._counts[diff_id] = self._counts.get(diff_id, 0) + 1
            return paths

    def show(self, diff_ids: Sequence[Digest]) -> tuple[Path, ...]:
        """``acquire`` without counting: make sure that the directories are there."""
        with self._lock:
            layers = [self._need(diff_id) for diff_id in diff_ids]
            paths: list[Path] = []
            for index, layer in enumerate(layers):
                if layer.entries == 0 or layer in layers[index + 1 :]:
                    continue
                special = layer.form == "pending" or (layer.implied and self._inherits(layer, layers[:index], paths))
                paths.append(self._linked(layer, layers[:index], paths) if special else self._show(layer))
            return tuple(paths) or (self._root / "empty",)

    def release(self, diff_ids: Sequence[Digest]) -> None:
        """Undo one ``acquire``. Mounts stay for the next container; ``unmount_idle`` drops them."""
        with self._lock:
            for diff_id in diff_ids:
                count = self._counts.get(diff_id, 0) - 1
                if count > 0:
                    self._counts[diff_id] = count
                else:
                    self._counts.pop(diff_id, None)
                    self._released[diff_id] = time.monotonic()

    def _inherits(self, layer: Layer, below: Sequence[Layer], lowers: Sequence[Path]) -> bool:
        """Whether an implied directory of the layer has to look otherwise over this stack than it does alone."""
        key = layer.diff_id, _stack_key(below)
        if key not in self._inheriting:
            self._inheriting[key] = any(inherited(os.fsencode(path), lowers[::-1]) is not None for path in layer.implied)
        return self._inheriting[key]

    def _linked(self, layer: Layer, below: Sequence[Layer], lowers: Sequence[Path]) -> Path:
        """A layer whose meaning depends on what lies below it, extracted for this stack (once per stack)."""
        key = _stack_key(below)
        target = self._short_path(layer.diff_id) / f"linked-{key}"
        if target.exists():
            return target
        staging = Path(tempfile.mkdtemp(dir=self._root / "tmp"))
        try:
            with open(staging / "tar", "w+b") as tar:
                tree = tree_of(_spooled(self.tar(layer.diff_id), tar), self._limits)
                inherit(tree, lowers[::-1])
                (staging / "fs").mkdir(mode=0o755)
                extract(tree, tar.fileno(), staging / "fs", lowers[::-1])
            (staging / "tar").unlink()
            sync_filesystem(staging)
            (staging / "fs").rename(target)
        except OSError as error:
            raise self.translate(error) from error
        finally:
            remove_tree(staging)
        return target

    # --- removing

    def remove(self, diff_id: Digest) -> int:
        """Delete a layer; returns the bytes of its tar, 0 when there was none. ``Conflict`` while it is acquired."""
        doomed, size = self.discard(diff_id)
        self.delete(doomed)
        return size

    def discard(self, diff_id: Digest) -> tuple[Path | None, int]:
        """The quick half of ``remove``: the layer is gone for everybody, its files wait for ``delete`` or the next start."""
        with self._lock:
            layer = self.get(diff_id)
            if layer is None:
                return None, 0
            if diff_id in self._counts:
                raise Conflict(f"layer {diff_id} is in use")
            self._hide(layer)
            doomed = Path(tempfile.mkdtemp(dir=self._root / "tmp"))
            short = self.short(diff_id)
            self.path(diff_id).rename(doomed / "layer")
            (self._root / "l" / short).unlink(missing_ok=True)
            self._records.pop(diff_id, None)
            self._shorts.pop(diff_id, None)
            self._released.pop(diff_id, None)
        return doomed, layer.tar_size

    @staticmethod
    def delete(doomed: Path | None) -> None:
        """The slow half of ``remove``."""
        if doomed is not None:
            remove_tree(doomed)

    def discard_damaged(self, diff_id: Digest) -> None:
        """Take away a layer that cannot be used as it is, record readable or not. ``Conflict`` while it is acquired."""
        with self._lock:
            if diff_id in self._counts:
                raise Conflict(f"layer {diff_id} is in use")
            try:
                layer = self.get(diff_id)
            except Corrupt:
                layer = None
            if layer is not None:
                self._hide(layer)
            self._records.pop(diff_id, None)
            if self.path(diff_id).exists():
                self._discard(self.path(diff_id))

    def _discard(self, path: Path) -> None:
        """Move a directory without a readable record out of the way."""
        doomed = Path(tempfile.mkdtemp(dir=self._root / "tmp"))
        path.rename(doomed / "layer")
        remove_tree(doomed)

    def _hide(self, layer: Layer) -> None:  # noqa: B027 - directories need no unmounting
        """Unmount whatever shows this layer."""

    def unmount_idle(self, age: float = 0.0) -> int:
        """Unmount every layer that nobody has acquired for ``age`` seconds; returns how many.

        Running containers hold their own clones and would not notice.
        """
        return 0

    def close(self) -> None:
        """Forget counts and unmount everything that this driver mounted."""
        with self._lock:
            self._counts.clear()
            self.unmount_idle()
