"""Builds that share, race, are cancelled, killed, or run out of disk: what is left is a cache that can be used, and nothing else."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import new_daemon
from crash_world import tracebacks, until
from engine_world import Daemon
from tare.maintenance import fsck

pytestmark = pytest.mark.root

ROUNDS = int(os.environ.get("TARE_FAULT_ROUNDS", "2"))
SEED = int(os.environ.get("TARE_FAULT_SEED", "0")) or random.randrange(1 << 30)
_TARE = Path(sys.executable).parent / "tare"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    daemon = new_daemon()
    try:
        daemon.start()
        daemon.load_busybox()
        yield daemon
        assert not tracebacks(daemon)
    finally:
        if daemon.process is not None and daemon.process.poll() is not None:
            daemon.start()
        daemon.stop()


def begin(daemon: Daemon, dockerfile: str, *flags: str, context: str = "-") -> subprocess.Popen[str]:
    """A build under way."""
    arguments = [context] if context == "-" else ["-f", "-", context]
    process = subprocess.Popen(
        [_TARE, "-H", daemon.host, "build", "--progress=plain", *flags, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(dockerfile)
    process.stdin.close()
    process.stdin = None
    return process


def end(process: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str]:
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


def runs(marker: str) -> bool:
    """Whether a command of a build with this word runs."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"sleep\0") and marker.encode() in command:
            return True
    return False


def nothing_runs(daemon: Daemon) -> None:
    """Of builds no process, no mount and no directory is left."""
    places = daemon.root / "run" / "builds"

    def quiet() -> bool:
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(places) in line]
        return not mounts and not (places.is_dir() and list(places.iterdir())) and not list((daemon.root / "data/builder/tmp").iterdir())

    until(quiet, "the end of all builds' places")
    assert not daemon.docker("ps", "-aq").stdout


# -- stages and builds together ------------------------------------------------------------------------------------------------------

_MEET = (
    "RUN --mount=type=cache,id={id},target=/c touch /c/{own}; i=0; "
    "while [ ! -e /c/{other} ] && [ $i -lt 600 ]; do sleep 0.05; i=$((i+1)); done; [ -e /c/{other} ]\n"
)


def test_stages_run_together_and_end_together(daemon: Daemon) -> None:
    """Two stages that wait for each other can only end if they run at the same time; one that fails ends the others at once."""
    stages = [f"FROM busybox AS {own}\n" + _MEET.format(id="meet", own=own, other=other) for own, other in (("a", "b"), ("b", "a"))]
    code, told = end(begin(daemon, "".join(stages) + "FROM busybox\nCOPY --from=a /bin/true /1\nCOPY --from=b /bin/true /2\n"))
    assert code == 0, told
    failing = "FROM busybox AS slow\nRUN sleep 1000\nFROM busybox AS bad\nRUN sleep 0.3; exit 5\nFROM busybox\n"
    begun = time.monotonic()
    code, told = end(begin(daemon, failing + "COPY --from=slow /bin/true /1\nCOPY --from=bad /bin/true /2\n"))
    assert code == 1 and "Dockerfile:4" in told, told
    assert time.monotonic() - begun < 30
    nothing_runs(daemon)


def test_simultaneous_builds_share_their_work(daemon: Daemon) -> None:
    """Each step is made once, by whichever build comes first; a waiting build goes on when that one is cancelled."""
    dockerfile = (
        "FROM busybox\nRUN --mount=type=cache,id=log,target=/c echo x >> /c/log; sleep 0.5\nRUN cat /proc/sys/kernel/random/uuid > /id\n"
    )
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: end(begin(daemon, dockerfile, "-q")), range(4)))
    assert {code for code, _ in done} == {0}
    assert len({output for _, output in done}) == 1, "one image"
    count = daemon.tare(
        "build", "-q", "-", input="FROM busybox\nRUN --mount=type=cache,id=log,target=/c wc -l < /c/log > /n\n"
    ).stdout.strip()
    assert daemon.docker("run", "--rm", count, "cat", "/n").stdout == "1\n"
    slow = "FROM busybox\nRUN --mount=type=cache,id=two,target=/c echo x >> /c/log; sleep 1.625; wc -l < /c/log > /n\n"
    first = begin(daemon, slow)
    until(lambda: runs("1.625"), "the first build's command")
    second = begin(daemon, slow, "-q")
    time.sleep(0.5)
    first.send_signal(signal.SIGINT)
    assert end(first)[0] != 0
    code, image = end(second)
    assert code == 0
    assert daemon.docker("run", "--rm", image.strip(), "cat", "/n").stdout == "2\n"
    nothing_runs(daemon)


# -- cancelling ------------------------------------------------------------------------------------------------------------------------


def test_a_cancelled_command_ends_at_once(daemon: Daemon) -> None:
    for client in ("tare", "docker"):
        marker = f"987{random.randrange(10**6)}"
        text = f"FROM busybox\nRUN --mount=type=bind,from=busybox,target=/m --mount=type=tmpfs,target=/t trap '' TERM INT; sleep {marker}\n"
        if client == "tare":
            process = begin(daemon, text)
        else:
            environment = os.environ | {"DOCKER_BUILDKIT": "0"}
            process = subprocess.Popen(
                ["docker", "-H", daemon.host, "build", "-"], env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            assert process.stdin is not None
            process.stdin.write(text)
            process.stdin.close()
            process.stdin = None

        until(lambda marker=marker: runs(marker), "the command")
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        until(lambda marker=marker: not runs(marker), "the command's end")
        assert end(process)[0] != 0
        assert time.monotonic() - begun < 10
        nothing_runs(daemon)


def test_a_cancelled_download_ends_at_once(daemon: Daemon) -> None:
    """Of a server that sends a little and then nothing for ever, of one that never answers, and of a repository."""
    reached, release = threading.Event(), threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/silent":
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                self.wfile.write(b"a little")
                self.wfile.flush()
            reached.set()
            release.wait(60)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        for path in ("file", "silent", "repository.git"):
            reached.clear()
            process = begin(daemon, f"FROM busybox\nADD http://127.0.0.1:{server.server_address[1]}/{path} /x\n")
            assert reached.wait(20)
            process.send_signal(signal.SIGINT)
            begun = time.monotonic()
            assert end(process)[0] != 0
            nothing_runs(daemon)
            assert time.monotonic() - begun < 12, "before any time-out"
    finally:
        release.set()
        server.shutdown()
        server.server_close()
        thread.join()


# -- killed and full -------------------------------------------------------------------------------------------------------------------


def test_a_daemon_killed_in_a_build(daemon: Daemon, tmp_path: Path) -> None:
    """Wherever it is killed: no mount, no process, a clean store, and the build goes on where it was."""
    context = tmp_path / "context"
    context.mkdir()
    for number in range(40):
        (context / f"f{number}").write_bytes(os.urandom(50_000))
    dockerfile = (
        "FROM busybox AS one\nRUN --mount=type=cache,target=/c date +%N > /c/x; head -c 3000000 /dev/urandom > /a\nCOPY . /all\n"
        "FROM busybox\nRUN --mount=type=bind,target=/m --mount=type=tmpfs,target=/t cp -r /m /t && cp -r /t/m /b\n"
        "COPY --from=one /all /a /c/\n"
        "RUN rm /c/a && ls -A /c | wc -l > /n\n"
    )
    chance = random.Random(SEED)
    for _ in range(ROUNDS):
        process = begin(daemon, dockerfile, "--no-cache", context=str(context))
        time.sleep(chance.uniform(0.05, 1.2))
        daemon.kill()
        end(process)
        daemon.start()
        nothing_runs(daemon)
        assert not list((daemon.root / "data/builder/cache").glob(".*"))
    image = daemon.tare("build", "-q", "-f", "-", str(context), input=dockerfile).stdout.strip()
    assert daemon.docker("run", "--rm", image, "cat", "/n").stdout == "40\n", f"TARE_FAULT_SEED={SEED}"
    daemon.terminate()
    report = fsck(daemon.root / "data", repair=False)
    assert not report["problems"], f"TARE_FAULT_SEED={SEED}: {report}"
    daemon.start()


def test_a_full_disk() -> None:
    daemon = new_daemon()
    (daemon.root / "data").mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=711", "tmpfs", daemon.root / "data"], check=True)
    try:
        daemon.start()
        daemon.load_busybox()
        code, told = end(begin(daemon, "FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=100\n"))
        assert code == 1 and "No space left on device" in told, told
        # The command succeeds, but its layer does not fit beside it.
        code, told = end(begin(daemon, "FROM busybox\nRUN head -c 30000000 /dev/urandom > /big\n"))
        assert code == 1 and "no space left" in told.lower(), told
        nothing_runs(daemon)
        image = daemon.tare("build", "-q", "-", input="FROM busybox\nRUN echo fits > /x\n").stdout.strip()
        assert daemon.docker("run", "--rm", image, "cat", "/x").stdout == "fits\n"
        assert not tracebacks(daemon)
        daemon.remove_all()
        daemon.terminate()
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()
        subprocess.run(["umount", "-l", daemon.root / "data"], check=True)
        daemon.stop()
