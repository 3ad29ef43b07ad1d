"""A registry's content in a directory: the contract, and what only a directory can do."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tare.errors import InvalidArgument
from tare.oci.digest import Digest
from tare.registry.places import open_storage

sys.path.insert(0, str(Path(__file__).parents[1] / "suites"))

from registry_objects import ObjectsContract, StorageContract, objects, push_image, storage

__all__ = ["objects", "storage"]


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "registry")


class TestFileObjects(ObjectsContract):
    pass


class TestFileStorage(StorageContract):
    pass


def test_layout_for_other_tools(place: str) -> None:
    storage = open_storage(place)
    digest = push_image(storage, "team/app", "v1", b"layer")
    storage.objects.put("repositories/team/app/_tags/v2", digest.encode())
    untagged = push_image(storage, "team/app", "", b"other")
    layout = Path(place) / "repositories/team/app/_oci"
    index = json.loads((layout / "index.json").read_text())
    named = [(entry["digest"], entry.get("annotations", {}).get("org.opencontainers.image.ref.name")) for entry in index["manifests"]]
    assert sorted(named, key=str) == sorted([(digest, "v1"), (digest, "v2"), (untagged, None)], key=str)
    assert Digest.of((layout / "blobs/sha256" / digest.hex).read_bytes()) == digest


def test_nobody_elses_uploads_can_be_read(place: str) -> None:
    open_storage(place)
    for name in ("uploads", "temporary"):
        assert os.stat(Path(place) / name).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("wrong", ["s3://", "s3://bucket?unknown=1", "s3:///x"])
def test_wrong_places(wrong: str) -> None:
    with pytest.raises(InvalidArgument, match="expected s3://BUCKET"):
        open_storage(wrong)


def test_a_file_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="cannot open"):
        open_storage(str(tmp_path / "file"))
