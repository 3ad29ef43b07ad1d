"""The corpus of Dockerfiles: what both of our faces make of each, and what peers make of it.

The peers' results are recorded (``builder_peers``); some cases are built with them here too, so that the records stay honest. With
``TARE_PEERS=1`` all are.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from builder_corpus import Case, cases
from builder_peers import RECORDED, Docker, build_with_tare, differing, recorded, started
from engine_world import Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]
_LIVE = {
    "classic": ("copy-overwrite", "onbuild"),
    "buildkit": ("workdir-user", "mount-tmpfs"),
    "buildah": ("copy-symlinks",),
}


def test_every_case_builds_to_what_is_expected(engine: Daemon, tmp_path: Path) -> None:
    """By ``POST /build`` first; by ``tare build`` then, which finds all of it in the cache and ends with the same image."""
    ours = Docker(engine.host, tmp_path)
    base = ours.base()

    def one(case: Case) -> str:
        context = case.prepare(tmp_path)
        image = "" if case.client == "tare" or case.secrets else ours.image(case)
        if image:
            ours.build(case, context)
        id = build_with_tare(engine, case, context, tmp_path)
        if image and ours.id(image) != id:
            return f"{case.name}: {id} by tare build, {ours.id(image)} by POST /build"
        text = ours.saved(id).text(base)
        if os.environ.get("TARE_RECORD"):
            case.expected.write_text(text)
        return "" if text == case.expected.read_text() else f"{case.name}:\n{text}"

    with ThreadPoolExecutor(3) as pool:
        wrong = [each for each in pool.map(one, cases()) if each]
    assert not wrong, "\n".join(wrong)


def test_the_corpus_has_every_instruction() -> None:
    text = "\n".join((case.directory / case.dockerfile).read_text() for case in cases())
    words = {line.split()[0].upper() for line in text.splitlines() if line.strip()}
    assert len(cases()) >= 60
    assert not {
        "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD", "RUN", "SHELL",
        "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
    } - words  # fmt: skip


def test_every_recorded_difference_has_a_reason() -> None:
    known = {case.name for case in cases()}
    for peer, differences in recorded().items():
        assert set(differences) <= known, f"{RECORDED.name}: {peer} has cases that are gone"
        assert not [case for case, entry in differences.items() if not entry["why"]], peer


@pytest.mark.parametrize("names", [("classic", "buildkit"), ("buildah",)])
def test_peers(names: tuple[str, ...], tmp_path: Path) -> None:
    everything = bool(os.environ.get("TARE_PEERS"))
    with started(*names) as peers:
        for name, peer in peers.items():
            chosen = [case for case in cases() if everything or case.name in _LIVE[name]]
            assert everything or len(chosen) == len(_LIVE[name])
            found = differing(peer, name, chosen, tmp_path / name)
            known = recorded()[name]
            assert found == {case.name: known[case.name]["lines"] for case in chosen if case.name in known}, name
