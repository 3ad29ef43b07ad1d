"""A world for tests of the runtime: a busybox root, drivers, launches, and a look for what was left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import uuid
from pathlib import Path
from typing import Any

from tare.containers.driver import RuntimeDriver, RuntimeTask
from tare.containers.task import Attachment, Exit, Launch, LogTarget, OverlayRoot, Stdio

DOCKER_CAPABILITIES = [
    "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
]  # fmt: skip
MASKED = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
SAFE = ("nosuid", "noexec", "nodev")
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def mount(fstype: str, destination: str, *options: str, source: str = "") -> dict[str, Any]:
    return {"destination": destination, "type": fstype, "source": source or fstype, "options": list(options)}


def bind(source: Path, destination: str, *options: str) -> dict[str, Any]:
    return mount("bind", destination, "rbind", *options, source=str(source))


def process(args: list[str], **fields: Any) -> dict[str, Any]:
    """An OCI process with Docker's capabilities."""
    sets = dict.fromkeys(("bounding", "effective", "permitted"), DOCKER_CAPABILITIES)
    return {"args": args, "cwd": "/", "env": [PATH], "capabilities": sets} | fields


def configuration(args: list[str], **fields: Any) -> dict[str, Any]:
    """An OCI configuration as Docker makes it; ``fields`` replace members of process, linux or the top."""
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc", "cgroup")],
        "maskedPaths": MASKED,
        "readonlyPaths": READONLY,
    }
    config: dict[str, Any] = {
        "process": process(args, **fields.pop("process", {})),
        "hostname": "box",
        "root": {"readonly": fields.pop("readonly", False)},
        "mounts": [
            mount("proc", "/proc", *SAFE),
            mount("tmpfs", "/dev", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("devpts", "/dev/pts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
            mount("sysfs", "/sys", *SAFE, "ro"),
            mount("cgroup", "/sys/fs/cgroup", *SAFE, "ro"),
            mount("mqueue", "/dev/mqueue", *SAFE),
            mount("tmpfs", "/dev/shm", *SAFE, "mode=1777", "size=67108864"),
            *fields.pop("mounts", []),
        ],
        "linux": linux | fields.pop("linux", {}),
    }
    return config | fields


def make_busybox_root(path: Path) -> None:
    (path / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", path / "bin/busybox")
    applets = subprocess.run(["/bin/busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    for name in applets:
        if name != "busybox":
            (path / "bin" / name).symlink_to("busybox")
    for name in ("etc", "root", "tmp", "proc", "sys", "dev"):
        (path / name).mkdir()
    (path / "tmp").chmod(0o1777)
    (path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1001:Bob:/home/bob:/bin/sh\n")
    (path / "etc/group").write_text("root:x:0:\nbobs:x:1001:\nwheel:x:10:root,bob\nstaff:x:50:\n")


class World:
    """One test's driver and containers."""

    def __init__(self, base: Path, root: Path) -> None:
        self.base = base
        self.root = root
        self.parent = f"/tare-test-{uuid.uuid4().hex[:8]}"
        self.driver = self.new_driver()
        self.tasks: list[RuntimeTask] = []
        self.extra: list[RuntimeDriver] = []

    def new_driver(self, spares: int = 1) -> RuntimeDriver:
        driver = RuntimeDriver(self.base, self.parent, spares=spares)
        driver.start_launcher()
        return driver

    def launch(
        self, args: list[str], *, stdio: Stdio | None = None, user: str = "", log: dict[str, Any] | None = None, **fields: Any
    ) -> Launch:
        """A start; ``fields`` go to ``configuration`` or, when it knows them, to ``Launch``."""
        name = f"box-{uuid.uuid4().hex[:12]}"
        home = self.base / name
        for directory in ("run", "upper", "work"):
            (home / directory).mkdir(parents=True, mode=0o755)
        more = {key: fields.pop(key) for key in ("additional_groups", "links", "attachments", "init") if key in fields}
        return Launch(
            name,
            configuration(args, **fields),
            OverlayRoot((self.root,), home / "upper", home / "work"),
            stdio or Stdio(),
            LogTarget("json-file", home / "log", **(log or {})),
            home / "run",
            user=user,
            **more,
        )

    async def start(self, launch: Launch) -> RuntimeTask:
        task = await self.driver.start(launch)
        assert isinstance(task, RuntimeTask)
        self.tasks.append(task)
        return task

    async def run(self, args: list[str], **fields: Any) -> tuple[Exit, str]:
        """Run to the end: exit and logged output."""
        launch = self.launch(args, **fields)
        task = await self.start(launch)
        exit = await asyncio.wait_for(task.wait(), 30)
        await task.release()
        self.tasks.remove(task)
        return exit, self.output(launch)

    async def sh(self, script: str, **fields: Any) -> str:
        """The output of a shell script that has to succeed."""
        exit, output = await self.run(["sh", "-c", script], **fields)
        assert exit.code == 0, (exit, output)
        return output

    def abandon(self, task: RuntimeTask) -> None:
        """As if the daemon that started the task had been killed: its connection closes, nobody does anything."""
        self.tasks.remove(task)
        client = task._client
        assert client is not None
        client._loop.remove_reader(client._sock.fileno())
        client._sock.close()

    def output(self, launch: Launch) -> str:
        return "".join(json.loads(line)["log"] for line in launch.log.path.read_text().splitlines())

    async def close(self) -> None:
        """Stop everything and complain about what is left."""
        for task in self.tasks:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(task.kill(9), 10)
            with contextlib.suppress(Exception):
                await asyncio.wait_for(task.wait(), 10)
            await task.release()
        for driver in (self.driver, *self.extra):
            await driver.close()
        left = await asyncio.to_thread(self._leftovers)
        assert not left, left

    def _leftovers(self) -> list[str]:
        """Cgroups below our parent (removed once empty), mounts, and run-time files."""
        import time

        deadline = time.monotonic() + 5
        while True:
            left = []
            for top in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]:
                parent = top / self.parent[1:]
                if parent.is_dir():
                    left += [str(path) for path in parent.iterdir() if path.is_dir()]
                    try:
                        parent.rmdir()
                    except OSError:
                        left.append(str(parent))
            left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.base) in line]
            left += [str(path) for path in self.base.glob("box-*/run/*")]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.05)


def pair(**fields: Any) -> tuple[socket.socket, Attachment]:
    """A client's socket and the attachment for its other end."""
    ours, theirs = socket.socketpair()
    settings: dict[str, Any] = {"stdin": False, "stdout": True, "stderr": True, "multiplexed": False} | fields
    return ours, Attachment(theirs, **settings)


def read_all(sock: socket.socket) -> bytes:
    """Everything until the end."""
    sock.settimeout(30)
    chunks = []
    while chunk := sock.recv(1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Docker's multiplexed frames."""
    result = []
    while data:
        size = int.from_bytes(data[4:8], "big")
        result.append((data[0], data[8 : 8 + size]))
        data = data[8 + size :]
    return result


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie (what reaps orphans here may be slow)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False
