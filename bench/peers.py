"""The engines that the benchmarks compare: a private ``tared``, a private ``dockerd``, podman with private roots.

Every benchmark runs inside network and mount namespaces of its own (``isolate``), so that bridges, rules and mounts of all three
engines are gone with it. All get the same image: busybox, imported from one tar.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
DOCKER = next((path for path in ("/usr/local/bin/docker", "/usr/bin/docker") if os.path.exists(path)), "docker")


def isolate() -> None:
    """Move this process into network and mount namespaces of its own by starting it again in them."""
    if os.environ.get("TARE_BENCH_ISOLATED"):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    if os.geteuid() != 0:
        sys.exit("the benchmarks need root")
    os.environ["TARE_BENCH_ISOLATED"] = "1"
    os.execvp("unshare", ["unshare", "--net", "--mount", sys.executable, *sys.argv])


def busybox_tar(extra: dict[str, bytes] | None = None) -> bytes:
    """A root file system with the host's static busybox and its applets."""
    program = Path("/bin/busybox")
    if not program.exists():
        sys.exit("busybox-static is not installed: apt-get install busybox-static")
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory in ("bin", "etc", "tmp", "root", "usr", "dev", "proc", "sys"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        files = {
            "bin/busybox": program.read_bytes(),
            "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
            "etc/group": b"root:x:0:\n",
            **(extra or {}),
        }
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
        for applet in applets:
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
    return buffer.getvalue()


@dataclass
class Engine:
    """One engine: ``command`` is the prefix before a verb (``[docker, -H, unix://…]``)."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    socket: str = ""
    run_flags: tuple[str, ...] = ()
    """Flags that every ``run`` of this engine needs on a confined machine."""

    def run(self, *arguments: str, check: bool = True, **options: object) -> subprocess.CompletedProcess[bytes]:
        if arguments[0] == "run":
            arguments = ("run", *self.run_flags, *arguments[1:])
        return subprocess.run([*self.command, *arguments], check=check, capture_output=True, **options)  # type: ignore[call-overload]

    def load_busybox(self) -> None:
        self.run("import", "-", "busybox:latest", input=busybox_tar()) if self.name != "tare" else subprocess.run(
            [DOCKER, "-H", f"unix://{self.socket}", "import", "-", "busybox:latest"],
            input=busybox_tar(),
            check=True,
            stdout=subprocess.DEVNULL,
        )


def _await_socket(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            sys.exit(f"{process.args!r} ended:\n{log.read_text()[-2000:]}")
        if path.exists():
            return
        time.sleep(0.05)
    sys.exit(f"{process.args!r} did not open {path}")


@contextmanager
def tared(root: Path, *flags: str) -> Iterator[Engine]:
    """Our own daemon under ``root``; the engine's command is ``tare``."""
    root.mkdir(parents=True, exist_ok=True)
    socket, log = root / "tare.sock", root / "tared.log"
    arguments = ["-H", f"unix://{socket}", "--data-root", root / "data", "--exec-root", root / "run", "--pidfile", root / "pid"]
    arguments += ["--cgroup-parent", f"/tare-bench-{os.getpid()}", *flags]
    process = subprocess.Popen([BIN / "tared", *arguments], stdout=log.open("wb"), stderr=subprocess.STDOUT)
    try:
        _await_socket(process, socket, log)
        yield Engine("tare", [str(BIN / "tare"), "-H", f"unix://{socket}"], process, str(socket))
    finally:
        _stop(process)


@contextmanager
def dockerd(root: Path, *flags: str) -> Iterator[Engine]:
    """Debian's dockerd under ``root``, with its default bridge."""
    root.mkdir(parents=True, exist_ok=True)
    socket, log = root / "docker.sock", root / "dockerd.log"
    arguments = ["-H", f"unix://{socket}", "--data-root", root / "data", "--exec-root", root / "run", "--pidfile", root / "pid", *flags]
    process = subprocess.Popen(["/usr/sbin/dockerd", *arguments], stdout=log.open("wb"), stderr=subprocess.STDOUT)
    try:
        _await_socket(process, socket, log)
        yield Engine("docker", [DOCKER, "-H", f"unix://{socket}"], process, str(socket))
    finally:
        _stop(process)


def podman(root: Path) -> Engine | None:
    """podman with private roots, or None where it is not installed."""
    if shutil.which("podman") is None:
        return None
    command = [
        "podman",
        "--root",
        str(root / "root"),
        "--runroot",
        str(root / "runroot"),
        "--cgroup-manager",
        "cgroupfs",
        "--events-backend",
        "file",
    ]
    return Engine("podman", command, run_flags=("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def engines(*, with_podman: bool = True) -> Iterator[dict[str, Engine]]:
    """All engines, ready, each with the busybox image."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tare-bench-", ignore_cleanup_errors=True)))
        found = {"tare": stack.enter_context(tared(root / "tare")), "docker": stack.enter_context(dockerd(root / "docker"))}
        if with_podman and (engine := podman(root / "podman")) is not None:
            found["podman"] = engine
        for engine in found.values():
            engine.load_busybox()
        yield found


def median_ms(action: Callable[[], object], rounds: int) -> float:
    """Median duration of ``action`` in milliseconds after one warm-up."""
    action()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def report(what: str, ours: float, peers: dict[str, float], unit: str = "ms", *, higher_is_better: bool = False) -> None:
    """One line: our figure, each peer's, and the ratio."""
    parts = [f"{what:<46} tare {ours:9.1f} {unit}"]
    for name, value in peers.items():
        ratio = ours / value if higher_is_better else value / ours
        parts.append(f"{name} {value:9.1f} {unit} ({ratio:4.1f}x)")
    print("   ".join(parts), flush=True)
