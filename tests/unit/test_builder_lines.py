"""Transfers that end when somebody says so, whatever the other side does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tare.builder.remotes import fetch_file, open_context
from tare.builder.stopping import Stop, Stopped
from tare.errors import Upstream


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port that answers nobody: its queue is full, so the kernel drops what comes."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = opened.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture
def silence() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def seconds_to_end(work: Any) -> float:
    """How long ``work(stop)`` goes on once it is stopped; it has to fail as stopped."""
    stop, caught = Stop(), []

    def run() -> None:
        try:
            work(stop)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive()
    begun = time.monotonic()
    stop.stop()
    thread.join(30)
    assert not thread.is_alive() and isinstance(caught[0], Stopped), caught
    return time.monotonic() - begun


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_servers_that_do_not_answer(tmp_path: Path, black_hole: int, silence: int, scheme: str) -> None:
    for port in (black_hole, silence):
        url = f"{scheme}://127.0.0.1:{port}/x"
        assert seconds_to_end(lambda stop, url=url: fetch_file(url, tmp_path, "", None, stop)) < 2
        assert seconds_to_end(lambda stop, url=url: open_context(url, tmp_path, stop)) < 2


def test_a_look_up_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: asked.wait(10) and [])
    try:
        assert seconds_to_end(lambda stop: fetch_file("http://nowhere.invalid/x", tmp_path, "", None, stop)) < 2
    finally:
        asked.set()


def test_what_fails_by_itself_says_why(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.raises(Upstream, match="connection refused"):
        fetch_file(f"http://127.0.0.1:{port}/x", tmp_path, "", None, Stop())
