"""Hostile image archives: refused with a clear error, in bounded memory, leaving nothing."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from image_builder import build_image
from tare.errors import Corrupt, InvalidArgument, TareError
from tare.images.archive_contents import contents
from tare.images.archive_read import Archive


def archive_of(tmp_path: Path, *entries: tuple[str, bytes, str]) -> Archive:
    """An archive of (name, type, content or link target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, text in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            data = text.encode() if kind == tarfile.REGTYPE else b""
            info.size, info.linkname = len(data), "" if kind == tarfile.REGTYPE else text
            tar.addfile(info, io.BytesIO(data))
    raw = buffer.getvalue()
    return Archive.receive((raw[at : at + 700] for at in range(0, len(raw), 700)), tmp_path / "scratch")


def test_names_and_links_stay_keys(tmp_path: Path) -> None:
    archive = archive_of(
        tmp_path,
        ("./a/real", tarfile.REGTYPE, "hello"),
        ("b/link", tarfile.SYMTYPE, "../a/real"),
        ("hard", tarfile.LNKTYPE, "a/real"),
        ("round", tarfile.SYMTYPE, "round"),
        ("/etc/passwd", tarfile.REGTYPE, "mine"),
        ("host", tarfile.SYMTYPE, "/etc/hostname"),
    )
    try:
        assert archive.read("a/real") == archive.read("b/link") == archive.read("hard") == b"hello"
        assert archive.read("etc/passwd") == b"mine"
        assert "round" not in archive
        assert "host" not in archive
        with pytest.raises(InvalidArgument, match="does not contain a round"):
            archive.read("round")
        with pytest.raises(InvalidArgument, match="more than 3"):
            archive.read("a/real", 3)
    finally:
        archive.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "entry",
    [("../up", tarfile.REGTYPE, "x"), ("a", tarfile.SYMTYPE, "../../up"), ("a", tarfile.FIFOTYPE, ""), ("a", tarfile.CHRTYPE, "")],
)
def test_what_no_image_archive_has_is_refused(tmp_path: Path, entry: tuple[str, bytes, str]) -> None:
    with pytest.raises(Corrupt, match="invalid archive"):
        archive_of(tmp_path, entry)
    assert list(tmp_path.iterdir()) == []


def test_broken_compression_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Corrupt):
        Archive.receive([gzip.compress(bytes(100_000))[:-20]], tmp_path / "scratch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "manifest",
    ["", "{}", "[1]", "[{}]", "[" * 50_000, '[{"Config":"nowhere.json","Layers":[]}]', '[{"Config":"c","Layers":["missing"]}]',
     '[{"Config":"c","Layers":[]}]', '[{"Config":"c","Layers":["c"],"RepoTags":["UPPER:x"]}]',
     '[{"Config":"c","Layers":["c"],"RepoTags":["x"]}]'],
)  # fmt: skip
def test_documents_that_make_no_sense(tmp_path: Path, manifest: str) -> None:
    config = next(raw for digest, raw in build_image({"a": b"b"}).blobs.items() if raw.startswith(b"{"))
    archive = archive_of(tmp_path, ("manifest.json", tarfile.REGTYPE, manifest), ("c", tarfile.REGTYPE, config.decode()))
    try:
        with pytest.raises(TareError):
            contents(archive)
    finally:
        archive.close()


def test_a_config_must_match_the_digest_that_names_it(tmp_path: Path) -> None:
    name = "blobs/sha256/" + "0" * 64
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}})
    manifest = json.dumps([{"Config": name, "Layers": []}])
    archive = archive_of(tmp_path, ("manifest.json", tarfile.REGTYPE, manifest), (name, tarfile.REGTYPE, config))
    try:
        with pytest.raises(Corrupt, match="does not match its digest"):
            contents(archive)
    finally:
        archive.close()
