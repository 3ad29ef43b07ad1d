"""What a prune may take."""

from __future__ import annotations

import pytest

from tare.errors import InvalidArgument
from tare.images.image import Image
from tare.images.retention import prunable
from tare.oci.image import ImageConfig, RootFS

NOW = 1_700_000_000.0


def image(name: str, age: float, *tags: str, used: float = 0.0, tagged: float = 0.0) -> Image:
    created = f"{2000 + int(100 - age)}-01-01T00:00:00Z"
    config = ImageConfig("amd64", "linux", RootFS([]))
    return Image(f"sha256:{name}", config, (), tags, (), 1, created, used=used, tagged=tagged)


def names(images: list[Image]) -> list[str]:
    return [each.id.removeprefix("sha256:") for each in images]


def test_keep_last_counts_in_each_repository() -> None:
    every = [image("a3", 1, "a:3"), image("a2", 2, "a:2"), image("a1", 3, "a:1"), image("b1", 9, "b:1", "a:old"), image("none", 4)]
    assert names(prunable(every, every, False, {"keep-last": ["2"]}, NOW)) == ["a1", "none"]
    assert names(prunable(every, every, True, {"keep-last": ["2"]}, NOW)) == ["none"]
    assert names(prunable(every, every, False, {"keep-last": ["0"]}, NOW)) == names(every)


def test_unused_for_looks_at_use_and_at_naming() -> None:
    every = [image("old", 1), image("used", 1, used=NOW - 60), image("named", 1, tagged=NOW - 60), image("long", 1, used=NOW - 7200)]
    assert names(prunable(every, every, False, {"unused-for": ["1h"]}, NOW)) == ["old", "long"]


@pytest.mark.parametrize("filters", [{"keep-last": ["many"]}, {"unused-for": ["a while"]}])
def test_nonsense_is_refused(filters: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidArgument):
        prunable([], [], False, filters, NOW)
