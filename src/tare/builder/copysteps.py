"""COPY and ADD as steps of a stage: where their files come from, what the cache is asked, what becomes of them."""

from __future__ import annotations

import io
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tare.builder import configure, copying
from tare.builder import instructions as ins
from tare.builder.cache import key_of
from tare.builder.chmod import Mode
from tare.builder.context import is_archive, spool
from tare.builder.copying import Item, Placement
from tare.builder.expand import Lookup, expand
from tare.builder.ignore import Patterns
from tare.builder.remotes import fetch_file, fetch_git, is_git, is_remote
from tare.builder.trees import DirectoryTree, FileTree, TarTree
from tare.errors import InvalidArgument
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
    with ExitStack() as opened:
        collected: list[Item] = []

        def collect() -> list[Item]:
            tree = _source_tree(stage, below, opened)
            items = _gather(stage, instruction, tree, sources, word, opened, own=below is None)
            if len(items) > 1 and not destination.endswith("/"):
                raise InvalidArgument(
                    f"When using {word} with more than one source file, the destination must be a directory and end with a /"
                )
            return items

        def digests() -> list[tuple[str, str, bool]]:
            return [(item.fingerprint(), item.name.hex(), item.keep_owner) for item in collected]

        fixed = (stage.state_key(), destination, chown, chmod, instruction.exclude, instruction.parents, word)
        keys: list[str] = []
        if below is not None:
            keys = [key_of("copy-from", *fixed, [str(diff_id) for diff_id in below], sources)]
        note = ""
        if not keys or stage.uncached() or stage.build.cache.find(keys) is None:
            collected = await stage.build.in_thread(collect)
            known = await stage.build.in_thread(digests)
            keys.append(key_of("copy", *fixed, known))
            note = known[0][0] if len(known) == 1 else f"multi:{key_of(known)}"
        exclude = Patterns("\n".join(instruction.exclude)) if instruction.exclude else None

        def make() -> Layer:
            with stage.root() as root:
                placement = Placement(
                    destination.encode("utf-8", "surrogateescape"),
                    owner(root, chown) if chown else None,
                    mode,
                    exclude,
                    instruction.parents,
                    stage.build.now_ns,
                    stage.build.request.epoch_ns,
                )
                return store_layer(stage.build.layers, copying.layer(root, collected, placement), stage.build.pins.hold)

        async def made() -> Made:
            nonlocal collected
            if not collected:
                collected = await stage.build.in_thread(collect)
            return await stage.build.in_thread(make), note

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


def _source_tree(stage: StageBuild, below: tuple[Digest, ...] | None, opened: ExitStack) -> FileTree:
    if below is None:
        return stage.build.context
    tree = DirectoryTree(os.dup(opened.enter_context(stage.build.snapshots.view(below))))
    opened.callback(tree.close)
    return tree


def _gather(
    stage: StageBuild, instruction: ins.Copy, tree: FileTree, sources: list[str], word: str, opened: ExitStack, *, own: bool
) -> list[Item]:
    items: list[Item] = []
    if not isinstance(instruction, ins.Add) and any(source.startswith(("http://", "https://")) for source in sources):
        raise InvalidArgument("COPY failed: source can't be a URL for COPY")
    local = [source for source in sources if not (isinstance(instruction, ins.Add) and is_remote(source))]
    for source in sources:
        if source not in local:
            assert isinstance(instruction, ins.Add)
            items += _remote(stage, instruction, source, opened)
    if local or (not items and not instruction.heredocs):
        items += copying.gather(tree, local, keep_owner=not own, parents=instruction.parents, what=word, own=own)
    items += [_document(stage, document, opened) for document in instruction.heredocs]
    if isinstance(instruction, ins.Add):
        items = [_unpacked(stage, instruction, item, opened) for item in items]
    return items


def _remote(stage: StageBuild, instruction: ins.Add, source: str, opened: ExitStack) -> list[Item]:
    directory = stage.build.scratch
    if is_git(source):
        tree = fetch_git(source, directory, keep_git_dir=instruction.keep_git_dir)
        opened.callback(tree.close)
        return [Item(tree, tree.root, b"", True)]
    tree, name = fetch_file(source, directory, stage.words.one(instruction.checksum))
    opened.callback(tree.close)
    found = tree.find(name)
    assert found is not None
    return [Item(tree, found, name, False)]


def _document(stage: StageBuild, document: ins.Heredoc, opened: ExitStack) -> Item:
    text = expand_document(document.content, stage.lookup, stage.words.escape) if document.expand else document.content
    data = text.encode("utf-8", "surrogateescape")
    name = document.name.encode("utf-8", "surrogateescape")
    tree = one_file(stage, name, data, 0o644)
    opened.callback(tree.close)
    found = tree.find(name)
    assert found is not None
    return Item(tree, found, name, False)


def expand_document(text: str, lookup: Lookup, escape: str) -> str:
    """A here-document with its variables expanded: quotes are plain text, and what follows an escape character stays as it is."""
    protected = re.sub(
        re.escape(escape) + r"(.)|(['\"])", lambda match: 2 * escape + escape + match[1] if match[1] else escape + match[2], text
    )
    return expand(protected, lookup, escape)


def one_file(stage: StageBuild, name: bytes, data: bytes, mode: int) -> TarTree:
    """A tree of one file."""
    entry = Entry(name, Kind.FILE, mode, size=len(data), mtime_ns=stage.build.now_ns)
    tar = io.BytesIO(writer.header(entry) + data + writer.padding(len(data)) + writer.END)
    return spool(iter(lambda: tar.read(1 << 20), b""), stage.build.scratch, "here-document")


def _unpacked(stage: StageBuild, instruction: ins.Add, item: Item, opened: ExitStack) -> Item:
    """An archive as what is in it; everything else as it is. Downloads are unpacked only when that is asked for."""
    local = item.tree is stage.build.context or isinstance(item.tree, DirectoryTree)
    wanted = instruction.unpack if instruction.unpack is not None else local
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
