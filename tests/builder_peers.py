"""The engines that build the corpus of Dockerfiles: ours by both of its faces, and the peers.

    classic    dockerd's first builder, through the docker command without BuildKit
    buildkit   the BuildKit inside dockerd 20.10, through Debian's docker command
    buildah    with layers, in docker's format, isolated by chroot only (that is all it can do on every machine)

Run as a program it builds the whole corpus with the named peers (all by default) and records how they differ.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder_corpus import Case, Result, cases, differences, read
from dockerd_world import dockerd
from engine_world import Daemon, busybox_tar

_CLASSIC = ("/usr/local/bin/docker", "/usr/bin/docker")
_BUILDKIT = "/usr/bin/docker"
_SECONDS = 600


class BuildFailed(AssertionError):
    """The engine could not build; the text is what it said."""


def _run(command: list[str | Path], environment: dict[str, str] | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False, env=os.environ | (environment or {})
    )
    if check and done.returncode:
        raise BuildFailed(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done


def _arguments(case: Case, context: Path, root: Path) -> list[str]:
    flags = [*case.flags, "-f", str(context / case.dockerfile)]
    for name, value in case.secrets.items():
        path = root / f"secret-{case.name}-{name}"
        path.write_text(value)
        flags += ["--secret", f"id={name},src={path}"]
    return flags


@dataclass
class Docker:
    """Whatever answers the docker command: dockerd, or our daemon."""

    host: str
    root: Path
    buildkit: bool = False

    def image(self, case: Case) -> str:
        return f"corpus-{case.name}:{'kit' if self.buildkit else 'one'}"

    def _docker(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        program = _BUILDKIT if self.buildkit else next(path for path in _CLASSIC if os.path.exists(path))
        return _run([program, "-H", self.host, *arguments], {"DOCKER_BUILDKIT": "1" if self.buildkit else "0"}, check)

    def build(self, case: Case, context: Path) -> None:
        """Build; the image is there then."""
        self._docker("build", *_arguments(case, context, self.root), "-t", self.image(case), context)

    def result(self, case: Case) -> Result:
        return self.saved(self.image(case))

    def base(self) -> Result:
        return self.saved("busybox")

    def id(self, image: str) -> str:
        return self._docker("inspect", "-f", "{{.Id}}", image).stdout.strip()

    def saved(self, image: str) -> Result:
        with tempfile.TemporaryDirectory(dir=self.root) as scratch:
            path = Path(scratch) / "image.tar"
            self._docker("save", "-o", path, image)
            return read(path)


def build_with_tare(daemon: Daemon, case: Case, context: Path, root: Path) -> str:
    """Build by our own command; returns the image's id."""
    return daemon.tare("build", "-q", *_arguments(case, context, root), str(context)).stdout.strip()


@dataclass
class Buildah:
    """A store of its own under ``root``."""

    root: Path

    def _buildah(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        store = ["--root", self.root / "store", "--runroot", self.root / "run", "--storage-driver", "vfs"]
        return _run(["buildah", *store, *arguments], {"BUILDAH_ISOLATION": "chroot"})

    def prepare(self) -> None:
        """Bring the base image in."""
        tar = self.root / "busybox.tar"
        tar.write_bytes(busybox_tar())
        name = self._buildah("from", "scratch").stdout.strip()
        self._buildah("add", name, tar, "/")
        self._buildah("config", "--cmd", "", name)
        self._buildah("commit", "--format", "docker", "--quiet", name, "docker.io/library/busybox:latest")
        self._buildah("rm", name)

    def build(self, case: Case, context: Path) -> None:
        flags = _arguments(case, context, self.root)
        self._buildah("bud", "--layers", "--format", "docker", "--pull-never", *flags, "-t", f"corpus-{case.name}", context)

    def result(self, case: Case) -> Result:
        return self.saved(f"corpus-{case.name}")

    def base(self) -> Result:
        return self.saved("docker.io/library/busybox:latest")

    def saved(self, image: str) -> Result:
        with tempfile.TemporaryDirectory(dir=self.root) as scratch:
            path = Path(scratch) / "image.tar"
            self._buildah("push", "--quiet", image, f"docker-archive:{path}")
            return read(path)


@contextmanager
def buildah() -> Iterator[Buildah]:
    """Buildah with the busybox image."""
    with tempfile.TemporaryDirectory(prefix="tare-buildah-", ignore_cleanup_errors=True) as folder:
        peer = Buildah(Path(folder))
        peer.prepare()
        yield peer


# -- recorded differences -------------------------------------------------------------------------------------------------------------

RECORDED = Path(__file__).parent / "data" / "dockerfile_peers.json"
"""By peer and case: the lines that differ, and why."""
PEERS = ("classic", "buildkit", "buildah")
Peer = Docker | Buildah


def recorded() -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(RECORDED.read_text())
    return found


@contextmanager
def started(*names: str) -> Iterator[dict[str, Peer]]:
    """Peers, ready to build: buildah, or those that are dockerd's."""
    if names == ("buildah",):
        with buildah() as peer:
            yield {"buildah": peer}
        return
    with dockerd() as socket, tempfile.TemporaryDirectory(prefix="tare-oracle-") as scratch:
        yield {name: Docker(f"unix://{socket}", Path(scratch), buildkit=name == "buildkit") for name in names}


def differing(peer: Peer, name: str, chosen: Sequence[Case], root: Path) -> dict[str, list[str]]:
    """Build the cases, as far as the peer can; how each result differs from what is expected, if it does."""
    base = peer.base()

    def one(case: Case) -> list[str]:
        try:
            peer.build(case, case.prepare(root))
        except BuildFailed as error:
            return [f"+cannot build it: {str(error).strip().splitlines()[-1]}"]
        return differences(case.expected.read_text(), peer.result(case).text(base), name)

    able = [case for case in chosen if name not in case.peers]
    with ThreadPoolExecutor(2) as pool:
        return {case.name: lines for case, lines in zip(able, pool.map(one, able), strict=True) if lines}


def main(arguments: Sequence[str]) -> None:
    """Build with the named peers, or all, the named cases, or all; write down how they differ. Some minutes for each peer."""
    chosen = [case for case in cases() if case.name in arguments] or cases()
    for name in [peer for peer in PEERS if peer in arguments] or PEERS:
        with started(name) as peers, tempfile.TemporaryDirectory() as root:
            found = differing(peers[name], name, chosen, Path(root))
        known = recorded()
        old = known.get(name, {})
        kept = {case: entry for case, entry in old.items() if case not in {each.name for each in chosen}}
        new = {case: {"why": old.get(case, {}).get("why", ""), "lines": lines} for case, lines in found.items()}
        known[name] = dict(sorted({**kept, **new}.items()))
        RECORDED.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
        print(f"{name}: {len(found)} cases differ; without a reason: {[case for case, entry in new.items() if not entry['why']]}")


if __name__ == "__main__":
    main(sys.argv[1:])
