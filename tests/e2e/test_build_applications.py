"""Real applications in several stages, with apt, pip and npm: built, cached, run. Only with ``TARE_APPLICATIONS=1``: they take minutes.

Where packages come from is this machine's business: it is given to the builds as secrets, and is no part of the images.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import new_daemon
from crash_world import until
from engine_world import Daemon

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not os.environ.get("TARE_APPLICATIONS"), reason="needs package registries and minutes: TARE_APPLICATIONS=1"),
]
_CONTEXTS = Path(__file__).parents[1] / "data" / "applications"


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a Debian image made here."""
    tar = tmp_path_factory.mktemp("debian") / "debian.tar"
    subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates", "bookworm", str(tar)], check=True)
    daemon = new_daemon()
    try:
        daemon.start()
        daemon.docker("import", str(tar), "debian:bookworm")
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that bring in the machine's sources of packages."""
    directory = tmp_path_factory.mktemp("secrets")
    (directory / "sources").write_text("\n".join(_sources()) + "\n")
    settings = sorted(Path("/etc/apt/apt.conf.d").glob("99*"))
    (directory / "aptconf").write_text("".join(path.read_text() for path in settings))
    files = {"sources": directory / "sources", "aptconf": directory / "aptconf", "ca": Path("/etc/ssl/certs/ca-certificates.crt")}
    return [word for id, path in files.items() for word in ("--secret", f"id={id},src={path}")]


def _sources() -> Iterator[str]:
    """The machine's Debian sources, a line each."""
    for path in Path("/etc/apt").rglob("*.list"):
        yield from (line for line in path.read_text().splitlines() if line.startswith("deb "))
    for path in Path("/etc/apt/sources.list.d").glob("*.sources"):
        for block in path.read_text().split("\n\n"):
            fields = dict(re.findall(r"^([\w-]+): (.*)$", block, re.MULTILINE))
            if "debian" in fields.get("URIs", ""):
                for suite in fields["Suites"].split():
                    yield f"deb [trusted=yes] {fields['URIs']} {suite} {fields['Components']}"


def build(daemon: Daemon, name: str, secrets: list[str]) -> str:
    flags = ["-q", "--network", "host", *secrets, "-t", f"application:{name}"]
    return daemon.tare("build", *flags, str(_CONTEXTS / name), timeout=1200).stdout.strip()


@pytest.mark.parametrize(("name", "shown"), [("c", "hello world\n"), ("node", "172800000 true lib\n")])
def test_programs(debian: Daemon, secrets: list[str], name: str, shown: str) -> None:
    image = build(debian, name, secrets)
    assert debian.docker("run", "--rm", f"application:{name}").stdout == shown
    assert build(debian, name, secrets) == image


def test_a_python_service(debian: Daemon, secrets: list[str]) -> None:
    build(debian, "python", secrets)
    debian.docker("run", "-d", "--name", "service", "application:python")
    until(lambda: debian.docker("inspect", "-f", "{{.State.Health.Status}}", "service").stdout == "healthy\n", "health", 60)
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/').read().decode())"
    assert debian.docker("exec", "service", "python3", "-c", ask).stdout == '{"hello":"world"}\n'
    assert debian.docker("exec", "service", "id", "-un").stdout == "app\n"
