"""The keeper's event loop: what was said of a descriptor does not concern the next one with its number."""

from __future__ import annotations

import os

from tare.runtime.reactor import READ, Reactor


def test_an_event_of_a_closed_descriptor_is_dropped() -> None:
    reactor = Reactor()
    told: list[str] = []
    pipes = [os.pipe(), os.pipe()]
    fresh: list[int] = []

    def first(which: int) -> None:
        """Closes the other, and opens a pipe whose reading end gets the same number; nothing is in it."""
        told.append("first")
        other = pipes[1 - which][0]
        reactor.forget(other)
        os.close(other)
        read, write = os.pipe()
        assert read == other
        fresh.extend((read, write))
        reactor.watch(read, READ, lambda _: told.append("stale"))
        reactor.forget(pipes[which][0])

    for which, (read, write) in enumerate(pipes):
        reactor.watch(read, READ, lambda _, which=which: first(which))  # type: ignore[misc]
        os.write(write, b"x")
    reactor.run_once()
    assert told == ["first"]
    os.write(fresh[1], b"x")
    reactor.run_once()
    assert told == ["first", "stale"]
    for fd in {fd for pair in pipes for fd in pair} | set(fresh):
        os.close(fd)


def test_a_changed_watch_is_told_again() -> None:
    reactor = Reactor()
    told: list[int] = []
    pipes = [os.pipe(), os.pipe()]

    def rewatch(which: int) -> None:
        told.append(which)
        for number, (read, _) in enumerate(pipes):
            if number not in told:
                reactor.watch(read, READ, lambda _, number=number: rewatch(number))  # type: ignore[misc]
        reactor.forget(pipes[which][0])

    for which, (read, write) in enumerate(pipes):
        reactor.watch(read, READ, lambda _, which=which: rewatch(which))  # type: ignore[misc]
        os.write(write, b"x")
    reactor.run_once()
    reactor.run_once()
    assert sorted(told) == [0, 1]
    for pair in pipes:
        for fd in pair:
            os.close(fd)
