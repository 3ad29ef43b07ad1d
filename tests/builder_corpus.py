"""The corpus of Dockerfiles in ``tests/data/dockerfiles``: its cases, how they are built, and how a result is described.

One directory for each case:

    NAME/Dockerfile       (or what ``case.json`` names)
    NAME/context/...      the files of the context; the Dockerfile is put beside them
    NAME/case.json        optional: flags, peers that cannot build it and why, what a checkout cannot keep (modes, links, archives)
    NAME/expected.txt     the reviewed result: tree (what differs from the base), config, history

A description is text that does not depend on time, machine or engine, so that engines can be compared line by line. What peers make of a
case, where that is not what is expected, lies in ``tests/data/dockerfile_peers.json`` with the reason: ``python tests/builder_peers.py``
writes the lines anew.
"""

from __future__ import annotations

import bz2
import difflib
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "data" / "dockerfiles"
_OLD = 1_577_836_800
"""The time of all files of a context: 2020-01-01."""
_NOW = 1_700_000_000
"""Later times are those of the build."""
_SHOWN = 120
_DIGEST = re.compile(r"(file|dir|multi):[0-9a-f]{64}")
"""What an engine calls the files of a COPY is its own business."""
_CONFIG = (
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "Healthcheck",
    "Shell",
    "OnBuild",
)


@dataclass(frozen=True)
class Case:
    """One Dockerfile with all that its build needs."""

    name: str
    flags: tuple[str, ...] = ()
    client: str = "docker"
    dockerfile: str = "Dockerfile"
    peers: dict[str, str] = field(default_factory=dict)
    """Why a peer cannot build it, by the peer's name."""
    secrets: dict[str, str] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return DIRECTORY / self.name

    @property
    def expected(self) -> Path:
        return self.directory / "expected.txt"

    def prepare(self, root: Path) -> Path:
        """A context of its own below ``root``."""
        context = root / self.name
        source = self.directory / "context"
        if source.is_dir():
            shutil.copytree(source, context, symlinks=True)
        context.mkdir(parents=True, exist_ok=True)
        for path in self.directory.glob(f"{self.dockerfile}*"):
            shutil.copy(path, context)
        for path in context.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        _special(context, self.files)
        for path in sorted(context.rglob("*"), reverse=True):
            os.utime(path, (_OLD, _OLD), follow_symlinks=False)
        return context


def cases() -> list[Case]:
    """All, by name."""
    found = []
    for directory in sorted(DIRECTORY.iterdir()):
        if not directory.is_dir():
            continue
        path = directory / "case.json"
        settings = json.loads(path.read_text()) if path.exists() else {}
        own = {name: settings.pop(name) for name in ("client", "dockerfile", "peers", "secrets") if name in settings}
        found.append(Case(directory.name, tuple(settings.pop("flags", ())), files=settings, **own))
    return found


def _special(context: Path, files: dict[str, Any]) -> None:
    for name in files.get("directories", ()):
        (context / name).mkdir(parents=True, exist_ok=True)
    for name, target in files.get("links", {}).items():
        (context / name).symlink_to(target)
    for name, other in files.get("hardlinks", {}).items():
        os.link(context / other, context / name)
    for name, mode in files.get("modes", {}).items():
        (context / name).chmod(int(mode, 8))
    for name in files.get("archives", ()):
        (context / name).write_bytes(_packed(name))


def _packed(name: str) -> bytes:
    data = _archive() if ".tar" in name else b"compressed, but no archive\n"
    if name.endswith(".gz"):
        return gzip.compress(data, mtime=0)
    if name.endswith(".bz2"):
        return bz2.compress(data)
    if name.endswith(".xz"):
        return lzma.compress(data)
    if name.endswith(".zst"):
        return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout
    return data


def _archive() -> bytes:
    """A tar with owners, modes, links of both kinds and a path without its directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, mode, owner, content, link in (
            ("dir", tarfile.DIRTYPE, 0o750, 33, b"", ""),
            ("dir/file", tarfile.REGTYPE, 0o640, 33, b"file\n", ""),
            ("dir/hard", tarfile.LNKTYPE, 0o640, 33, b"", "dir/file"),
            ("link", tarfile.SYMTYPE, 0o777, 0, b"", "dir/file"),
            ("exec", tarfile.REGTYPE, 0o4755, 0, b"#!/bin/sh\n", ""),
            ("implied/inner", tarfile.REGTYPE, 0o644, 1000, b"inner\n", ""),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.uid, entry.gid, entry.size, entry.linkname = kind, mode, owner, owner, len(content), link
            entry.mtime = _OLD
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


# -- results --------------------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What came out, in lines."""

    tree: dict[str, str]
    config: dict[str, str]
    history: list[str]

    def text(self, base: Result) -> str:
        """The description, without what is as in the base."""
        tree = [f"{path} {line}" for path, line in sorted(self.tree.items()) if base.tree.get(path) != line]
        tree += [f"{path} gone" for path in sorted(base.tree.keys() - self.tree.keys())]
        config = [f"{name} {value}" for name, value in sorted(self.config.items())]
        sections = (("tree", tree), ("config", config), ("history", self.history[len(base.history) :]))
        return "".join(f"-- {name}\n" + "".join(f"{line}\n" for line in lines) for name, lines in sections)


_KEYWORD = re.compile(r"#\(nop\)\s+([A-Z]+)|([A-Z]+) ")
_NOT_THE_IMAGES = re.compile(r"/etc/(hostname|hosts|resolv\.conf) f 0755 0:0 now \"\"|/run d 0755 0:0|Entrypoint \[\]")


def compared(text: str, peer: str) -> list[str]:
    """The lines of a description that can be compared with the peer's.

    Only the classic builder words its history as we do: of the others' lines the keyword is left. Buildah signs its images, writes an
    empty entry point, and leaves the mount points of its own isolation in the tree.
    """
    lines = text.splitlines()
    if peer == "classic":
        return lines
    at = lines.index("-- history")
    history = []
    for line in lines[at + 1 :]:
        kind, _, rest = line.partition(": ")
        match = _KEYWORD.search(rest) if "#(nop)" in rest else _KEYWORD.match(rest)
        history.append(f"{kind}: {(match[1] or match[2]) if match else 'RUN'}")
    described = [*lines[:at], "-- history", *history]
    if peer != "buildah":
        return described
    return [_unsigned(line) for line in described if not _NOT_THE_IMAGES.fullmatch(line) and _unsigned(line) != "Labels {}"]


def _unsigned(line: str) -> str:
    if not line.startswith("Labels "):
        return line
    labels = json.loads(line.removeprefix("Labels "))
    labels.pop("io.buildah.version", None)
    return f"Labels {json.dumps(labels, sort_keys=True, ensure_ascii=False)}"


def differences(expected: str, text: str, peer: str) -> list[str]:
    """Lines that only one of both has: ``- ours`` and ``+ theirs``."""
    found = difflib.unified_diff(compared(expected, peer), compared(text, peer), lineterm="", n=0)
    return [line for line in found if not line.startswith(("---", "+++", "@@"))]


def read(path: Path) -> Result:
    """The image in a ``docker save`` archive."""
    with tarfile.open(path) as archive:
        manifest = json.load(_member(archive, "manifest.json"))[0]
        image = json.load(_member(archive, manifest["Config"]))
        tree: dict[str, str] = {}
        for name in manifest["Layers"]:
            with tarfile.open(fileobj=_member(archive, name)) as layer:
                _apply(tree, layer)
    config = {}
    for name in _CONFIG:
        value = (image.get("config") or {}).get(name)
        if value or (name == "Entrypoint" and value == []):
            config[name] = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if image.get("author"):
        config["Author"] = image["author"]
    history = []
    for entry in image.get("history") or []:
        layer = "no layer" if entry.get("empty_layer") else "layer"
        line = _DIGEST.sub(r"\1:DIGEST", json.dumps(entry.get("created_by", ""), ensure_ascii=False)[1:-1])
        history.append(f"{layer}: {line}")
    return Result(tree, config, history)


def _member(archive: tarfile.TarFile, name: str) -> Any:
    member = archive.getmember(name)
    if member.issym():
        member = archive.getmember(os.path.normpath(os.path.join(os.path.dirname(name), member.linkname)))
    file = archive.extractfile(member)
    assert file is not None
    return file


def _apply(tree: dict[str, str], layer: tarfile.TarFile) -> None:
    """One layer over a tree: whiteouts first remove what is below, then everything is put in its place."""
    members = layer.getmembers()
    contents: dict[str, str] = {}
    links: dict[str, list[str]] = {}
    for member in members:
        head, name = os.path.split("/" + member.name.strip("/").removeprefix("./"))
        if name == ".wh..wh..opq":
            _drop(tree, head, itself=False)
        elif name.startswith(".wh."):
            _drop(tree, os.path.join(head, name.removeprefix(".wh.")), itself=True)
    for member in members:
        path = os.path.normpath("/" + member.name)
        if path == "/" or os.path.basename(path).startswith(".wh."):
            continue
        if not member.isdir():
            _drop(tree, path, itself=True)
        elif not tree.get(path, "d").startswith("d"):
            del tree[path]
        if member.islnk():
            target = os.path.normpath("/" + member.linkname)
            tree[path] = contents.get(target) or tree[target]
            links.setdefault(target, [target]).append(path)
        else:
            tree[path] = contents[path] = _line(layer, member)
    for names in links.values():
        for name in names:
            tree[name] += f" linked {' '.join(sorted(set(names) - {name}))}"


def _drop(tree: dict[str, str], path: str, *, itself: bool) -> None:
    doomed = [each for each in tree if each.startswith(path.rstrip("/") + "/") or (itself and each == path)]
    for each in doomed:
        del tree[each]


def _line(layer: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    kind = "d" if member.isdir() else "l" if member.issym() else "f" if member.isreg() else "p" if member.isfifo() else "c"
    time = "now" if member.mtime > _NOW else "-" if member.mtime <= 0 else f"{int(member.mtime)}"
    what = ""
    if member.isreg():
        file = layer.extractfile(member)
        assert file is not None
        data = file.read()
        plain = len(data) <= _SHOWN and data.decode("utf-8", "replace").replace("\n", "").isprintable()
        what = json.dumps(data.decode(), ensure_ascii=False) if plain else f"{len(data)} sha256:{hashlib.sha256(data).hexdigest()[:16]}"
    elif member.issym():
        what = f"-> {member.linkname}"
    elif kind == "c":
        what = f"{member.devmajor}:{member.devminor}"
    mode = "" if member.issym() else f"{member.mode & 0o7777:04o} "
    xattrs = " ".join(sorted(f"{name}={value!r}" for name, value in member.pax_headers.items() if name.startswith("SCHILY.xattr.")))
    shown = "" if kind in "dl" else f" {time}"
    return f"{kind} {mode}{member.uid}:{member.gid}{shown} {what} {xattrs}".rstrip()
