"""Fixtures of the tests of the runtime: a root file system and a world to start containers in."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from runtime_world import World, make_busybox_root


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root with the host's static busybox."""
    root = tmp_path_factory.mktemp("busybox") / "root"
    make_busybox_root(root)
    yield root


@pytest.fixture
async def world(tmp_path: Path, busybox: Path) -> AsyncIterator[World]:
    """A driver of its own; what it started is gone afterwards, and that is checked."""
    world = World(tmp_path, busybox)
    try:
        yield world
    finally:
        await world.close()
