"""COPY and ADD as steps of a stage: where their files come from, what the cache is asked, what becomes of them."""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tare.builder import configure, copying
from tare.builder import instructions as ins
from tare.builder.cache import Download, key_of
from tare.builder.chmod import Mode
from tare.builder.context import empty, is_archive, spool
from tare.builder.copying import Item, Placement
from tare.builder.expand import expand_document
from tare.builder.ignore import Patterns
from tare.builder.remotes import Version, fetch_file, fetch_git, file_name, is_git, is_remote
from tare.builder.trees import DirectoryTree, FileTree, TarTree
from tare.errors import InvalidArgument, Upstream
from tare.images.committing import store_layer
from tare.runtime import users
from tare.store.tar import writer
from tare.store.tar.entry import Entry, Kind

if TYPE_CHECKING:
    from tare.builder.stagebuild import Made, StageBuild
    from tare.oci.digest import Digest
    from tare.store.layers.driver import Layer

_ACCOUNTS_LIMIT = 1 << 20


async def copy_step(stage: StageBuild, instruction: ins.Copy) -> None:
    """One COPY or ADD."""
    words = stage.words
    sources = [words.one(source) for source in instruction.sources]
    written = words.one(instruction.destination)
    destination = _destination(written, stage.container.working_dir)
    chown, chmod = words.one(instruction.chown), words.one(instruction.chmod)
    mode = Mode.parse(chmod) if chmod else None
    word = instruction.keyword
    below: tuple[Digest, ...] | None = None
    if instruction.from_:
        below = await stage.build.layers_of(words.one(instruction.from_), stage.stage, stage.voice)
    linked = instruction.link and chown.replace(":", "", 1).isdecimal() | (not chown)
    downloads = _Downloads(stage, instruction, sources)
    with ExitStack() as opened:
        collected: list[Item | Unchanged] = []

        def collect() -> list[Item | Unchanged]:
            tree = _source_tree(stage, below, opened)
            items = _gather(stage, instruction, tree, sources, word, opened, downloads, own=below is None)
            several = len(sources) + len(instruction.heredocs) if instruction.parents else len(items)
            if several > 1 and not destination.endswith("/"):
                raise InvalidArgument(
                    f"When using {word} with more than one source file, the destination must be a directory and end with a /"
                )
            return items

        def identities() -> list[tuple[Any, ...]]:
            return [item.identity() for item in collected]

        state = "linked" if linked else stage.state_key()
        fixed = (state, stage.build.request.epoch, destination, chown, chmod, instruction.exclude, instruction.parents, word)
        keys: list[str] = []
        identified: list[tuple[Any, ...]] = []
        if below is not None:
            keys = [key_of("copy-from", *fixed, [str(diff_id) for diff_id in below], sources)]
        note = ""
        if not keys or stage.uncached() or stage.build.cache.find(keys) is None:
            collected = await stage.build.in_thread(collect)
            known = await stage.build.in_thread(identities)
            downloads.remember()
            keys.append(key_of("copy", *fixed, known))
            note = known[0][0] if len(known) == 1 else f"multi:{key_of(known)}"
            identified = known
        exclude = Patterns("\n".join(instruction.exclude)) if instruction.exclude else None

        def make(items: list[Item]) -> Layer:
            with _linked_root(stage) if linked else stage.root() as root:
                placement = Placement(
                    destination.encode("utf-8", "surrogateescape"),
                    owner(root, chown) if chown else None,
                    mode,
                    exclude,
                    instruction.parents,
                    stage.build.now_ns,
                    stage.build.request.epoch_ns,
                )
                chunks = stage.build.stop.watched(copying.layer(root, items, placement))
                return store_layer(stage.build.layers, chunks, stage.build.pins.hold)

        async def made() -> Made:
            nonlocal collected
            if not collected or any(isinstance(item, Unchanged) for item in collected):
                downloads.forget()
                collected = await stage.build.in_thread(collect)
                if identified and await stage.build.in_thread(identities) != identified:
                    raise Upstream(f"{word} failed: {' '.join(sources)} changed while it was fetched: build again")
            items = [item for item in collected if isinstance(item, Item)]
            return await stage.build.in_thread(partial(make, items)), note

        shown = f"--chown={chown}" if chown else ""  # Docker writes no space behind it

        def created_by(note: str) -> str:
            return configure.nop(stage.container, f"{word} {shown}{note} in {written} ", space=False)

        plain = note and not (chmod or instruction.exclude or instruction.parents)
        await stage.layer_step(keys, created_by, made, line=created_by(note) if plain else "")


def _destination(text: str, working_directory: str) -> str:
    """Absolute, cleaned, with its final slash if it had one."""
    into = text.endswith(("/", "/.")) or text in (".", "..", "")
    path = posixpath.normpath(posixpath.join("/", working_directory, text)).replace("//", "/")
    return path if path == "/" or not into else f"{path}/"


@contextmanager
def _linked_root(stage: StageBuild) -> Iterator[FileTree]:
    """What ``--link`` copies onto: nothing, so that the layer does not depend on what is below it."""
    root = empty(stage.build.scratch)
    try:
        yield root
    finally:
        root.close()


def _source_tree(stage: StageBuild, below: tuple[Digest, ...] | None, opened: ExitStack) -> FileTree:
    if below is None:
        return stage.build.context
    tree = DirectoryTree(os.dup(opened.enter_context(stage.build.snapshots.view(below))))
    opened.callback(tree.close)
    return tree


def _gather(
    stage: StageBuild,
    instruction: ins.Copy,
    tree: FileTree,
    sources: list[str],
    word: str,
    opened: ExitStack,
    downloads: _Downloads,
    *,
    own: bool,
) -> list[Item | Unchanged]:
    items: list[Item | Unchanged] = []
    if not isinstance(instruction, ins.Add) and any(source.startswith(("http://", "https://")) for source in sources):
        raise InvalidArgument("COPY failed: source can't be a URL for COPY")
    local = [source for source in sources if not (isinstance(instruction, ins.Add) and is_remote(source))]
    if local and isinstance(instruction, ins.Add) and instruction.checksum:
        raise InvalidArgument("checksum requires HTTP(S) or Git sources")
    for source in sources:
        if source not in local:
            assert isinstance(instruction, ins.Add)
            items.append(_repository(stage, instruction, source, opened) if is_git(source) else downloads.fetch(source, opened))
    if local or (not items and not instruction.heredocs):
        items += copying.gather(tree, local, keep_owner=not own, parents=instruction.parents, what=word, own=own)
    items += [_document(stage, document, opened) for document in instruction.heredocs]
    if isinstance(instruction, ins.Add):
        items = [_unpacked(stage, instruction, item, opened) if isinstance(item, Item) else item for item in items]
    return items


def _repository(stage: StageBuild, instruction: ins.Add, source: str, opened: ExitStack) -> Item:
    checksum = stage.words.one(instruction.checksum)
    tree = fetch_git(source, stage.build.scratch, keep_git_dir=instruction.keep_git_dir, checksum=checksum, stop=stage.build.stop)
    opened.callback(tree.close)
    return Item(tree, tree.root, b"", True)


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A download that need not be made to know a step's key: the server still has the version that was fetched before."""

    known: tuple[Any, ...]

    def identity(self) -> tuple[Any, ...]:
        return self.known


class _Downloads:
    """The files that one ADD fetches by HTTP, and what the cache knows of them.

    Made, and asked to ``remember``, in the event loop, where the cache lives; the rest is for the worker thread.
    """

    def __init__(self, stage: StageBuild, instruction: ins.Copy, sources: list[str]) -> None:
        self._stage = stage
        self._instruction = instruction
        self._cache = stage.build.cache
        self._checksum = stage.words.one(instruction.checksum) if isinstance(instruction, ins.Add) else ""
        self._unpack = isinstance(instruction, ins.Add) and bool(instruction.unpack)
        urls = [source for source in sources if isinstance(instruction, ins.Add) and is_remote(source) and not is_git(source)]
        self._known = {} if stage.uncached() else {url: found for url in urls if (found := self._cache.downloaded(self._key(url)))}
        self._new: dict[str, Download] = {}

    def _key(self, url: str) -> str:
        return key_of(url, self._unpack)

    def forget(self) -> None:
        """Fetch everything from now on."""
        self._known.clear()

    def fetch(self, url: str, opened: ExitStack) -> Item | Unchanged:
        """One file; what is known already when a given checksum or the server says that it is still the same."""
        known = self._known.get(url)
        if known is not None and self._checksum:
            if known.digest == self._checksum:
                return Unchanged(tuple(known.identity))
            known = None
        had = Version(known.etag, known.modified) if known is not None else None
        done = fetch_file(url, self._stage.build.scratch, self._checksum, had, self._stage.build.stop)
        if done is None:
            assert known is not None
            return Unchanged(tuple(known.identity))
        tree, version, digest = done
        opened.callback(tree.close)
        found = tree.find(file_name(url))
        assert found is not None
        item = _unpacked(self._stage, self._instruction, Item(tree, found, file_name(url), False), opened)
        if version or self._checksum:
            self._new[url] = Download(version.etag, version.modified, digest, list(item.identity()))
        return item

    def remember(self) -> None:
        """What was fetched need not be the next time."""
        for url, download in self._new.items():
            self._cache.put_download(self._key(url), download)
        self._new.clear()


def _document(stage: StageBuild, document: ins.Heredoc, opened: ExitStack) -> Item:
    text = expand_document(document.content, stage.lookup) if document.expand else document.content
    data = text.encode("utf-8", "surrogateescape")
    name = document.name.encode("utf-8", "surrogateescape")
    tree = one_file(stage, name, data, 0o644)
    opened.callback(tree.close)
    found = tree.find(name)
    assert found is not None
    return Item(tree, found, name, False)


def one_file(stage: StageBuild, name: bytes, data: bytes, mode: int) -> TarTree:
    """A tree of one file."""
    entry = Entry(name, Kind.FILE, mode, size=len(data), mtime_ns=stage.build.now_ns)
    tar = io.BytesIO(writer.header(entry) + data + writer.padding(len(data)) + writer.END)
    return spool(iter(lambda: tar.read(1 << 20), b""), stage.build.scratch, "here-document")


def _unpacked(stage: StageBuild, instruction: ins.Copy, item: Item, opened: ExitStack) -> Item:
    """An archive as what is in it; everything else as it is. Downloads are unpacked only when that is asked for."""
    local = item.tree is stage.build.context or isinstance(item.tree, DirectoryTree)
    asked = instruction.unpack if isinstance(instruction, ins.Add) else False
    wanted = local if asked is None else asked
    if not wanted or item.spread or item.found.kind is not Kind.FILE or not is_archive(_chunks(item)):
        return item
    tree = spool(_chunks(item), stage.build.scratch, item.name.decode("utf-8", "replace"))
    opened.callback(tree.close)
    return Item(tree, tree.root, item.name, True, keep_owner=True, archive=True)


def _chunks(item: Item) -> Iterator[bytes]:
    return item.tree.read(item.found)


def owner(root: FileTree, text: str) -> tuple[int, int]:
    """``--chown``: numbers, or names by the image's own files. A user alone: the group of the same name or number, else its first."""
    passwd, group = _lines(root, b"/etc/passwd"), _lines(root, b"/etc/group")
    try:
        if ":" not in text and text.isascii() and text.isdecimal():
            return int(text), int(text)
        if ":" not in text:
            own = users.resolve(text, (), passwd, group)
            try:
                return own.uid, users.resolve(f"{own.uid}:{text}", (), passwd, group).gid
            except users.UnknownUser:
                return own.uid, own.gid
        identity = users.resolve(text, (), passwd, group)
        return identity.uid, identity.gid
    except users.UnknownUser as error:
        name, _, group_name = text.partition(":")
        reason = str(error)
        if reason.startswith("unable to find user"):
            reason = f"can't find uid for user {name}: no such user: {name}"
        elif reason.startswith("unable to find group"):
            reason = f"can't find gid for group {group_name}: no such group: {group_name}"
        raise InvalidArgument(f"unable to convert uid/gid chown string to host mapping: {reason}") from None


def _lines(root: FileTree, path: bytes) -> list[str]:
    found = root.find(path)
    if found is None or found.kind is not Kind.FILE or found.size > _ACCOUNTS_LIMIT:
        return []
    return b"".join(root.read(found)).decode("utf-8", "surrogateescape").splitlines()
