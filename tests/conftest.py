"""Fixtures for all layers: which machine this is, and daemons to test against."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from engine_world import DOCKER, Daemon

if TYPE_CHECKING:
    from runtime_world import World

# An example that takes long says something about the machine and its load, not about the code.
settings.register_profile("tare", deadline=None)
settings.load_profile("tare")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say why a test cannot run here, instead of letting it fail."""
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


def new_daemon(*flags: str) -> Daemon:
    """A daemon (not started) under a short path of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if DOCKER is None or not os.path.exists("/bin/busybox"):
        pytest.skip("needs the docker command and busybox-static: apt-get install docker.io busybox-static")
    return Daemon(Path(tempfile.mkdtemp(prefix="tare-test-")), *flags)


@pytest.fixture(scope="session")
def shared_daemon() -> Iterator[Daemon]:
    """One daemon with a busybox image for all tests that neither stop it nor mind other containers."""
    daemon = new_daemon()
    try:
        daemon.start()
        daemon.load_busybox()
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
def engine(shared_daemon: Daemon) -> Iterator[Daemon]:
    """The shared daemon; the test's containers are removed after it."""
    yield shared_daemon
    shared_daemon.remove_all()


@pytest.fixture
def own_daemon() -> Iterator[Daemon]:
    """A started daemon with a busybox image that the test may kill and restart."""
    daemon = new_daemon()
    try:
        daemon.start()
        daemon.load_busybox()
        yield daemon
    finally:
        if daemon.process is not None and daemon.process.poll() is not None:
            daemon.start()
        daemon.stop()


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root directory with the host's static busybox, for tests of the runtime."""
    from runtime_world import make_busybox_root

    root = tmp_path_factory.mktemp("busybox") / "root"
    make_busybox_root(root)
    yield root


@pytest.fixture
async def world(tmp_path: Path, busybox: Path) -> AsyncIterator[World]:
    """A driver of the runtime; what it started is gone afterwards, and that is checked."""
    from runtime_world import World

    world = World(tmp_path, busybox)
    try:
        yield world
    finally:
        await world.close()
