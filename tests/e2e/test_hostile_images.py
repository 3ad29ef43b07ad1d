"""Images, containers and volumes that attack the engine through the docker command: nothing on the host may be read, changed or made.

A *canary* is a directory of the host that every attack points at; after each attack it must be what it was, and its secret must not have
come out anywhere.
"""

from __future__ import annotations

import ctypes
import gzip
import io
import lzma
import os
import re
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from conftest import new_daemon
from engine_world import Daemon, busybox_tar

pytestmark = [pytest.mark.root, pytest.mark.peer]

SECRET = "canary-secret"


class Canary:
    """What attacks are aimed at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("dir", "dir/pts", "dir/shm", "dir/docker-init", "etc"):
            (path / name).mkdir(parents=True)
        names = ("file", "dir/null", "dir/console", "dir/inner", "etc/passwd", "etc/group", "etc/hosts", "etc/hostname", "etc/resolv.conf")
        for name in names:
            (path / name).write_text(f"{SECRET}:x:0:0:{SECRET}:/:/bin/sh\n")
        self._before = self._seen()

    def _seen(self) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for each in sorted([self.path, *self.path.rglob("*")]):
            stat = each.lstat()
            found.append(
                (str(each), stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime_ns, each.read_bytes() if each.is_file() else b"")
            )
        return found

    def untouched(self) -> bool:
        return self._seen() == self._before


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "canary")


def hostile(engine: Daemon, name: str, links: Mapping[str, str]) -> None:
    """Import the busybox image with links in place of what it has (and of all below)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(busybox_tar())) as given, tarfile.open(fileobj=buffer, mode="w") as made:
        for member in given:
            if not any(member.name == path or member.name.startswith(f"{path}/") for path in links):
                made.addfile(member, given.extractfile(member) if member.isreg() else None)
        for path, target in links.items():
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            made.addfile(entry)
    engine.docker("import", "-", name, input=buffer.getvalue(), text=False)


PLACES = [
    *([place] for place in ("dev", "proc", "sys", "etc", "sbin", "tmp", "run", "w", "v", "bound", "made")),
    ["dev/null", "dev/console", "dev/pts", "dev/shm", "dev/mqueue", "dev/ptmx", "dev/fd"],
    ["etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab"],
    ["etc/passwd", "etc/group"],
    ["sbin/docker-init", "proc/self", "sys/fs", "sys/fs/cgroup"],
]
"""Each group of paths that the engine steps on becomes links in an image of its own."""


@pytest.mark.parametrize("places", PLACES, ids=["+".join(places)[:30] for places in PLACES])
def test_links_wherever_the_engine_steps(engine: Daemon, canary: Canary, tmp_path: Path, places: list[str]) -> None:
    """The rows of CVE-2026-41579, CVE-2023-27561, CVE-2025-52565, CVE-2022-23648, CVE-2024-9676, CVE-2019-14271 and CVE-2022-1227."""
    data = tmp_path / "data"
    data.mkdir()
    flags = ["--init", "-w", "/w", "-v", "/v", "-v", f"{data}:/bound/x", "--tmpfs", "/tmp", "--mount", "type=volume,dst=/made/by/engine"]
    read = "cat /etc/passwd /etc/hosts /v/* /w/* /bound/*; echo x > /v/x; echo x > /w/x; echo x > /dev/shm/x; ls -laR /w /v /dev /tmp"

    def target(place: str) -> str:
        return "etc/" + os.path.basename(place) if place.startswith("etc/") else "file" if "/" in place else "dir"

    prefix = "../../../../../../../.." if PLACES.index(places) % 2 else ""
    hostile(engine, "hostile", {place: f"{prefix}{canary.path}/{target(place)}" for place in places})
    commands = [["run", "--rm", *flags, *more, "hostile", "sh", "-c", read] for more in ([], ["-t"], ["-u", SECRET])]
    commands.append(["create", "--name", "still", *flags, "hostile", "sleep", "1000"])
    for path in ("/etc/passwd", "/v", "/w", "/dev/null", "/bound", "/made", "/tmp"):
        commands += [["cp", f"still:{path}", "-"], ["cp", str(data), f"still:{path}/copied"]]
    commands += [["export", "still"], ["diff", "still"], ["start", "still"], ["top", "still"], ["commit", "still", "taken"]]
    commands.append(["exec", "-w", "/w", "-u", SECRET, "still", "cat", "/etc/passwd"])
    commands.append(["exec", "-w", "/made", "still", "ls", "-la", "/made"])
    for command in commands:
        done = engine.docker(*command, check=False, text=False)
        assert f"{SECRET}:x:0".encode() not in done.stdout + done.stderr, command
        assert b"internal error" not in done.stderr, command
    engine.docker("rm", "-fv", "still")
    engine.docker("rmi", "-f", "hostile", "taken", check=False)
    assert canary.untouched()


def test_working_directories_behind_descriptors(engine: Daemon) -> None:
    """CVE-2024-21626: no descriptor of the engine's leads out of the root, at start or at exec."""
    probe = "cat ../../../../../../../../../proc/1/comm 2>/dev/null; true"
    engine.docker("run", "-d", "--name", "victim", "busybox", "sleep", "1000")
    for number in range(3, 16):
        directory = f"/{('proc/self', 'proc/1', 'dev')[number % 3]}/fd/{number}"
        done = engine.docker("run", "--rm", "-w", directory, "busybox", "sh", "-c", probe, check=False)
        assert done.returncode != 0, done
        done = engine.docker("exec", "-w", directory, "victim", "sh", "-c", probe, check=False)
        assert done.returncode != 0, done
    listing = 'for fd in $(ls /proc/self/fd); do echo "$fd $(readlink /proc/self/fd/$fd)"; done'
    for command in (["run", "--rm", "busybox"], ["exec", "victim"]):
        found = engine.docker(*command, "sh", "-c", listing).stdout
        assert {line.split()[0] for line in found.splitlines()} <= {"0", "1", "2", "3"}, found  # 3 is what ls itself reads


def test_nothing_is_inheritable(engine: Daemon) -> None:
    """CVE-2022-29162, CVE-2022-24769, CVE-2022-27649: for run, exec and health checks alike."""
    look = "grep -E 'CapInh|CapAmb' /proc/self/status | tee -a /seen"
    engine.docker("run", "-d", "--name", "caps", "--health-cmd", look, "--health-interval", "100ms", "busybox", "sleep", "1000")
    engine.docker("exec", "caps", "sh", "-c", look)
    outputs = [engine.docker("exec", "--privileged", "caps", "sh", "-c", look).stdout]
    outputs += [engine.docker("run", "--rm", *flags, "busybox", "sh", "-c", look).stdout for flags in ([], ["--privileged"])]
    deadline = time.monotonic() + 10
    seen = ""
    while seen.count("CapInh") < 4 and time.monotonic() < deadline:
        seen = engine.docker("exec", "caps", "cat", "/seen").stdout
        time.sleep(0.1)
    assert seen.count("CapInh") >= 4
    for line in "".join([*outputs, seen]).splitlines():
        assert re.fullmatch(r"Cap(Inh|Amb):\s+0{16}", line), line


@pytest.mark.parametrize("user", ["4294967296", "2147483648", "4294967295", "-1", "0:4294967296", "1:-1", "99999999999999999999"])
def test_ids_that_wrap_around(engine: Daemon, user: str) -> None:
    """CVE-2024-40635."""
    assert engine.docker("run", "--rm", "-u", user, "busybox", "id", check=False).returncode != 0
    engine.docker("run", "-d", "--name", "ids", "busybox", "sleep", "1000")
    done = engine.docker("exec", "-u", user, "ids", "id", check=False)
    assert done.returncode != 0 and "uid=0" not in done.stdout


def test_a_replaced_null_device_masks_nothing(engine: Daemon, tmp_path: Path) -> None:
    """CVE-2025-31133: what is bound over masked paths is the null device itself, or the container does not start."""
    fake = tmp_path / "dev"
    fake.mkdir()
    for name in ("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"):
        (fake / name).write_text("")
    for name in ("pts", "shm", "mqueue"):
        (fake / name).mkdir()
    probe = "ls -l /proc/kcore; dd if=/proc/kcore bs=1 count=4"
    done = engine.docker("run", "--rm", "-v", f"{fake}:/dev", "busybox", "sh", "-c", probe, check=False)
    assert "ELF" not in done.stdout, done
    assert done.returncode != 0 or re.search(r"^c.* 1, +3 .*/proc/kcore", done.stdout), done


@pytest.mark.parametrize("target", ["/proc", "/proc/sys", "/proc/self/attr", "/proc/1", "/made/../proc/sys/kernel"])
def test_nothing_is_mounted_over_proc(engine: Daemon, tmp_path: Path, target: str) -> None:
    """CVE-2019-16884 and CVE-2025-52881: no mount of a container's can lead the engine's writes elsewhere."""
    (tmp_path / "hostname").write_text("before")
    for mount in (["-v", f"{tmp_path}:{target}"], ["--tmpfs", target], ["--mount", f"type=volume,dst={target}"]):
        done = engine.docker("run", "--rm", *mount, "--sysctl", "kernel.msgmax=4096", "busybox", "true", check=False)
        assert done.returncode != 0 and "/proc" in done.stderr, done
    assert (tmp_path / "hostname").read_text() == "before"


def _exchange(directory: Path, one: str, other: str, stop: threading.Event) -> None:
    """Swap two names as fast as the kernel can (renameat2, RENAME_EXCHANGE)."""
    libc = ctypes.CDLL(None, use_errno=True)
    a, b = os.fsencode(directory / one), os.fsencode(directory / other)
    while not stop.is_set():
        libc.renameat2(-100, a, -100, b, 2)


@pytest.fixture
def swapping(tmp_path: Path, canary: Canary) -> Iterator[Path]:
    """A directory in which ``sub`` is now a directory, now a link to the canary."""
    shared = tmp_path / "shared"
    (shared / "sub").mkdir(parents=True)
    (shared / "link").symlink_to(canary.path / "dir")
    stop = threading.Event()
    thread = threading.Thread(target=_exchange, args=(shared, "sub", "link", stop))
    thread.start()
    yield shared
    stop.set()
    thread.join()


def test_mount_targets_that_are_swapped_for_links(engine: Daemon, swapping: Path, canary: Canary, tmp_path: Path) -> None:
    """CVE-2021-30465 and CVE-2024-45310: another container swaps a part of a mount's target while it is mounted."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "mark").write_text("mounted")
    mounts = ["-v", f"{swapping}:/s", "-v", f"{data}:/s/sub/new/deep", "--mount", f"type=bind,src={data}/mark,dst=/s/sub/file"]
    started = 0
    for _ in range(12):
        done = engine.docker("run", "--rm", *mounts, "busybox", "sh", "-c", "cat /s/*/inner /s/sub/inner 2>/dev/null; true", check=False)
        assert SECRET not in done.stdout
        started += done.returncode == 0
        assert canary.untouched()
    assert started


def test_copies_into_what_is_swapped_for_a_link(engine: Daemon, swapping: Path, canary: Canary, tmp_path: Path) -> None:
    """CVE-2026-41568 and CVE-2026-42306: copies into and out of a container whose directories change under them."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "planted").write_text("planted")
    engine.docker("run", "-d", "--name", "swapped", "-v", f"{swapping}:/s", "busybox", "sleep", "1000")
    for _ in range(12):
        engine.docker("cp", f"{source}/.", "swapped:/s/sub", check=False)
        for path in ("/s/sub", "/s/sub/inner"):
            assert SECRET not in engine.docker("cp", "-L", f"swapped:{path}", "-", check=False).stdout
        assert canary.untouched()


HELPERS = """
ip nft iptables ip6tables modprobe mount umount tc nsenter newuidmap unpigz gzip gunzip zstd xz tar cp git ssh openssl sh bash busybox
python3 mkfs.erofs losetup tini docker-init criu
"""


def test_helper_programs_are_not_looked_up(tmp_path: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    """PATH does not decide which programs the engine runs, and none unpacks (CVE-2026-41567)."""
    evil = tmp_path / "evil"
    evil.mkdir()
    for name in HELPERS.split():
        (evil / name).write_text(f"#!/bin/busybox sh\necho called $0 >> {canary.path}/called\nexit 1\n")
        (evil / name).chmod(0o755)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    daemon = new_daemon()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{evil}:{os.environ['PATH']}")
        daemon.start()
    try:
        daemon.load_busybox()
        daemon.docker("network", "create", "n")
        daemon.docker("run", "-d", "--init", "--name", "served", "--network", "n", "-p", "80", "-v", "vol:/v", "busybox", "sleep", "1000")
        daemon.docker("exec", "served", "true")
        for packed in (gzip.compress(plain.getvalue()), lzma.compress(plain.getvalue())):
            daemon.docker("cp", "-", "served:/tmp", input=packed, text=False)
            daemon.docker("import", "-", "packed", input=packed, text=False)
        daemon.docker("rm", "-f", "-v", "served")
        daemon.docker("network", "rm", "n")
    finally:
        daemon.stop()
    assert canary.untouched(), (canary.path / "called").read_text()


def test_sockets_have_paths_and_are_closed_to_others(engine: Daemon) -> None:
    """CVE-2020-15257: no abstract sockets, and none that another user could reach."""
    engine.docker("network", "create", "sockets")
    engine.docker("run", "-d", "--name", "listens", "--network", "sockets", "busybox", "sleep", "1000")
    ours = [line.split()[7] for line in Path("/proc/net/unix").read_text().splitlines()[1:] if len(line.split()) > 7]
    assert not [path for path in ours if path.startswith("@") and ("tare" in path or str(engine.root) in path)]
    found = [path for path in (engine.root / "run").rglob("*") if path.is_socket()]
    assert found
    for path in found:
        assert path.stat().st_mode & 0o777 == 0o600, path
        assert all(parent.stat().st_mode & 0o022 == 0 for parent in path.parents if engine.root in parent.parents), path
    engine.docker("rm", "-f", "listens")
    engine.docker("network", "rm", "sockets")
