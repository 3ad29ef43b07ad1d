"""Builds: cached and cold, many files and a big one, independent stages. Beside dockerd's classic builder and buildah, in one run.

    builder.py [PART…]      cached, files, big, stages, python (none: all)

``python`` is a real application on a real Debian: the base comes from mmdebstrap, packages from the archive and from PyPI, with the
machine's own configuration of apt and pip put into the build context. It is skipped, with the reason, where they cannot be reached.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from peers import BIN, DOCKER, busybox_tar, dockerd, tared

FILES = 50_000
BIG = 2 << 30
_ROUNDS = 5


@dataclass
class Builder:
    """One engine's builder: the command before and after the flags."""

    name: str
    prefix: list[str]
    load: list[str]
    network: list[str] = field(default_factory=list)
    socket: str = ""

    def build(self, context: Path, *flags: str, check: bool = True) -> float:
        """Seconds of one build."""
        environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
        started = time.perf_counter()
        done = subprocess.run([*self.prefix, *self.network, *flags, str(context)], env=environment, capture_output=True, check=False)
        seconds = time.perf_counter() - started
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {(done.stdout + done.stderr).decode(errors='replace')[-3000:]}")
        return seconds

    def request(self, body: bytes, tag: str) -> float:
        """Seconds of one ``POST /build``: the daemon alone, without any command."""
        head = f"POST /v1.41/build?q=1&t={tag} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        started = time.perf_counter()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.socket)
            sock.sendall(head.encode() + body)
            answer = b""
            while data := sock.recv(65536):
                answer += data
        if b"sha256:" not in answer:
            raise RuntimeError(f"{self.name}: {answer.decode(errors='replace')}")
        return time.perf_counter() - started

    def add(self, name: str, tar: Path) -> None:
        """Make a base image of a tar."""
        if self.name == "buildah":
            context = tar.parent / f"base-{name}"
            context.mkdir(exist_ok=True)
            os.link(tar, context / "base.tar")
            (context / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
            self.build(context, "-t", f"localhost/{name}")
            shutil.rmtree(context)
        else:
            with tar.open("rb") as file:
                subprocess.run([*self.load, "import", "-", name], stdin=file, check=True, capture_output=True)


@contextmanager
def builders(root: Path, *, network: bool) -> Iterator[dict[str, Builder]]:
    """All of them. ``network``: RUN has the machine's."""
    flags = ["--network", "host"] if network else []
    with ExitStack() as stack:
        ours = stack.enter_context(tared(root / "tare"))
        theirs = stack.enter_context(dockerd(root / "docker", *(("--bridge=none", "--iptables=false") if network else ())))
        entitled = ["--allow", "network.host"] if network else []
        own, docker = ([DOCKER, "-H", f"unix://{engine.socket}"] for engine in (ours, theirs))
        found = [
            Builder("tare", [str(BIN / "tare"), "-H", f"unix://{ours.socket}", "build", "-q", *entitled], own, flags, ours.socket),
            Builder("docker", [*docker, "build", "-q"], docker, flags, theirs.socket),
        ]
        if shutil.which("buildah"):
            stores = ["--root", str(root / "buildah"), "--runroot", str(root / "buildah-run")]
            limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
            found.append(Builder("buildah", ["buildah", *stores, "bud", "-q", "--layers", *limits], [], ["--network", "host"]))
        tar = root / "busybox.tar"
        tar.write_bytes(busybox_tar())
        for builder in found:
            builder.add("busybox:latest", tar)
        yield {builder.name: builder for builder in found}


def tell(what: str, seconds: dict[str, float], bar: float) -> None:
    """One line: all times, and the best peer's share. ``bar``: what ours may take of it."""
    best = min(value for name, value in seconds.items() if name != "tare")
    share = seconds["tare"] / best
    times = "   ".join(f"{name} {value:7.2f} s" if value >= 0.1 else f"{name} {value * 1000:6.1f} ms" for name, value in seconds.items())
    print(f"{what:<44} {times}   ours/best {share:5.2f} (at most {bar:.2f}){'' if share <= bar else '   MISSED'}", flush=True)


def median(action: Callable[[], float], rounds: int = _ROUNDS) -> float:
    return statistics.median(action() for _ in range(rounds))


def context(root: Path, name: str, dockerfile: str) -> Path:
    path = root / name
    path.mkdir()
    (path / "Dockerfile").write_text(dockerfile)
    return path


def cached(found: dict[str, Builder], root: Path) -> None:
    """Twenty steps, all of them known."""
    lines = ["FROM busybox:latest", "WORKDIR /app", "ENV A=1", "LABEL a=1", "COPY one /app/"]
    lines += [f"RUN echo {number} > /app/file{number}" for number in range(10)]
    lines += ["COPY two /app/", "ENV B=2", "EXPOSE 80", "USER root", 'CMD ["sh"]']
    assert len(lines) == 20
    path = context(root, "cached", "\n".join(lines) + "\n")
    for name in ("one", "two"):
        (path / name).write_text(name)
    seconds = {}
    for name, builder in found.items():
        cold = builder.build(path, "-t", "cached")
        seconds[name] = median(lambda builder=builder: builder.build(path, "-t", "cached"), 15)
        print(f"  {name}: cold {cold:.2f} s", flush=True)
    tell("20 steps, all cached", seconds, 1 / 3)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in sorted(path.iterdir()):
            tar.add(file, file.name)
    for name in ("tare", "docker"):
        found[name].request(buffer.getvalue(), "cached")
        seconds[name] = median(lambda name=name: found[name].request(buffer.getvalue(), "cached"), 15)
    tell("the same, POST /build alone", seconds, 1 / 3)


def _many(path: Path) -> None:
    for number in range(FILES):
        folder = path / "tree" / f"{number // 250:03d}"
        if number % 250 == 0:
            folder.mkdir(parents=True)
        (folder / f"file{number}").write_bytes(b"%d\n" % number * (number % 40 + 1))


def files(found: dict[str, Builder], root: Path) -> None:
    """COPY of 50,000 small files, nothing cached."""
    path = context(root, "files", "FROM busybox:latest\nCOPY tree /tree\n")
    _many(path)
    seconds = {name: median(lambda builder=builder: builder.build(path, "--no-cache", "-t", "files"), 3) for name, builder in found.items()}
    tell(f"COPY of {FILES:,} files", seconds, 1 / 2)
    seconds = {}
    for name, builder in found.items():
        builder.build(path, "-t", "files")
        seconds[name] = median(lambda builder=builder: builder.build(path, "-t", "files"), 3)
    tell("the same, unchanged, all cached (ours: <= 0.5 s)", seconds, 1)
    shutil.rmtree(path)


def big(found: dict[str, Builder], root: Path) -> None:
    """COPY of one file of 2 GB."""
    path = context(root, "big", "FROM busybox:latest\nCOPY big /big\n")
    with (path / "big").open("wb") as file:
        piece = os.urandom(1 << 20)
        for number in range(BIG >> 20):
            file.write(number.to_bytes(8, "big") + piece[8:])
    seconds = {}
    for name, builder in found.items():
        seconds[name] = median(lambda builder=builder: builder.build(path, "--no-cache", "-t", "big"), 3)
    tell(f"COPY of {BIG >> 30} GB", seconds, 1 / 2)
    seconds = {name: median(lambda builder=builder: builder.build(path, "-t", "big"), 3) for name, builder in found.items()}
    tell("the same, unchanged", seconds, 1)
    shutil.rmtree(path)


def stages(found: dict[str, Builder], root: Path) -> None:
    """Four stages that need nothing of each other, each two seconds long."""
    lines = []
    for number in range(4):
        lines.append(f"FROM busybox:latest AS s{number}\nRUN sleep 2 && echo {number} > /out{number}")
    lines.append("FROM busybox:latest\n" + "\n".join(f"COPY --from=s{number} /out{number} /" for number in range(4)))
    path = context(root, "stages", "\n".join(lines) + "\n")
    seconds = {name: builder.build(path, "--no-cache", "-t", "stages") for name, builder in found.items()}
    tell("four stages of 2 s", seconds, 1)


_PYTHON = """FROM debian-bench:latest
ENV DEBIAN_FRONTEND=noninteractive PIP_BREAK_SYSTEM_PACKAGES=1 PIP_CERT=/etc/machine.crt
COPY machine/ /
RUN apt-get update
RUN apt-get install -y --no-install-recommends python3 python3-pip ca-certificates
WORKDIR /srv/app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY app.py .
CMD ["python3", "app.py"]
"""
_APPLICATION = """from flask import Flask

app = Flask(__name__)


@app.get("/")
def index() -> str:
    return "hello"


if __name__ == "__main__":
    app.run(host="0.0.0.0")
"""
_MACHINE = (
    "/etc/apt/sources.list",
    "/etc/apt/sources.list.d",
    "/etc/apt/apt.conf.d",
    "/etc/pip.conf",
)


def _machine(path: Path) -> None:
    """The machine's configuration of apt and pip, as files below ``path``."""
    for name in _MACHINE:
        source, target = Path(name), path / name[1:]
        if source.is_dir():
            shutil.copytree(source, target, symlinks=False)
        elif source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    shutil.copyfile("/etc/ssl/certs/ca-certificates.crt", path / "etc/machine.crt")


def python(found: dict[str, Builder], root: Path) -> None:
    """Ten steps to an application in Python, nothing cached."""
    if shutil.which("mmdebstrap") is None:
        print("python application: skipped: mmdebstrap is not installed")
        return
    tar = root / "debian.tar"
    done = subprocess.run(["mmdebstrap", "--variant=minbase", "--quiet", "bookworm", tar], capture_output=True, check=False)
    if done.returncode:
        print(f"python application: skipped: no Debian base: {done.stderr.decode(errors='replace').strip().splitlines()[-1:]}")
        return
    path = context(root, "python", _PYTHON)
    (path / "app.py").write_text(_APPLICATION)
    (path / "requirements.txt").write_text("flask==3.0.3\nrequests==2.32.3\n")
    _machine(path / "machine")
    for builder in found.values():
        builder.add("debian-bench:latest", tar)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    try:
        for _ in range(2):
            for name, builder in found.items():
                seconds[name].append(builder.build(path, "--no-cache", "-t", "python"))
    except RuntimeError as error:
        print(f"python application: skipped: {str(error).strip().splitlines()[-1]}")
        print(str(error)[-1500:])
        return
    tell("a Python application on Debian, cold (best of 2)", {name: min(times) for name, times in seconds.items()}, 1)


def _isolate() -> None:
    """Mounts of its own; the network stays, for apt and pip."""
    if os.geteuid() != 0:
        sys.exit("the benchmarks need root")
    if not os.environ.get("TARE_BENCH_ISOLATED"):
        os.environ["TARE_BENCH_ISOLATED"] = "1"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])


def main() -> None:
    _isolate()
    table = {"cached": cached, "files": files, "big": big, "stages": stages, "python": python}
    with tempfile.TemporaryDirectory(prefix="tare-bench-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        with builders(root, network=True) as found:
            for name in sys.argv[1:] or table:
                table[name](found, root)


if __name__ == "__main__":
    main()
