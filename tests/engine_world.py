"""A private daemon for tests: its own roots, socket, control groups; and the commands that talk to it.

Used by the api and e2e layers through the fixtures in ``tests/conftest.py``. ``Daemon.stop`` checks that nothing stays behind.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

BIN = Path(sys.executable).parent
DOCKER = next((path for path in ("/usr/local/bin/docker", "/usr/bin/docker") if os.path.exists(path)), None)


def busybox_tar() -> bytes:
    """A root file system of the host's static busybox, with users and groups of its own."""
    program = Path("/bin/busybox")
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:

        def add(name: str, kind: bytes, mode: int, content: bytes = b"", link: str = "") -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(content), link
            tar.addfile(entry, io.BytesIO(content))

        for directory in ("bin", "etc", "root", "home", "usr", "usr/bin", "var", "proc", "sys", "dev"):
            add(directory, tarfile.DIRTYPE, 0o755)
        add("tmp", tarfile.DIRTYPE, 0o1777)
        add("bin/busybox", tarfile.REGTYPE, 0o755, program.read_bytes())
        add("etc/passwd", tarfile.REGTYPE, 0o644, b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www:/var/www:/bin/sh\n")
        add("etc/group", tarfile.REGTYPE, 0o644, b"root:x:0:\nwww-data:x:33:\naudio:x:29:www-data\n")
        add("etc/not-executable", tarfile.REGTYPE, 0o644, b"text\n")
        for applet in applets:
            if applet != "busybox":
                add(f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="busybox")
    return buffer.getvalue()


class Daemon:
    """One ``tared`` under ``root``."""

    def __init__(self, root: Path, *flags: str) -> None:
        self.root = root
        self.flags = flags
        self.socket = root / "t.sock"
        self.group = f"/tare-test-{os.getpid()}-{root.name[-12:]}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    @property
    def log(self) -> str:
        return (self.root / "tared.log").read_text(errors="replace")

    def start(self) -> None:
        arguments = ["-H", self.host, "--data-root", self.root / "data", "--exec-root", self.root / "run", "--pidfile", self.root / "pid"]
        arguments += ["--cgroup-parent", self.group, *self.flags]
        with (self.root / "tared.log").open("ab") as log:
            self.process = subprocess.Popen([BIN / "tared", *map(str, arguments)], stdout=log, stderr=log, start_new_session=True)
        for _ in range(400):
            if self.process.poll() is not None:
                raise AssertionError(f"tared ended with {self.process.returncode}:\n{self.log[-3000:]}")
            if self.docker("version", check=False).returncode == 0 if DOCKER else self.socket.exists():
                return
            time.sleep(0.05)
        raise AssertionError(f"tared does not answer:\n{self.log[-3000:]}")

    def kill(self) -> None:
        """kill -9: what a crash is."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"tared did not stop on SIGTERM:\n{self.log[-3000:]}") from None

    def docker(self, *arguments: str, check: bool = True, timeout: float = 120, **options: object) -> subprocess.CompletedProcess[str]:
        """Run the real docker command against this daemon."""
        assert DOCKER is not None, "no docker command on this machine: apt-get install docker.io"
        return _run([DOCKER, "-H", self.host, *arguments], check, timeout, options)

    def tare(self, *arguments: str, check: bool = True, timeout: float = 120, **options: object) -> subprocess.CompletedProcess[str]:
        """Run our own command against this daemon."""
        return _run([str(BIN / "tare"), "-H", self.host, *arguments], check, timeout, options)

    def load_busybox(self) -> None:
        self.docker("import", "-", "busybox:latest", input=busybox_tar(), text=False)

    def remove_all(self) -> None:
        """Remove every container."""
        found = self.docker("ps", "-aq", "--no-trunc").stdout.split()
        if found:
            self.docker("rm", "-f", "-v", *found)

    def leaks(self) -> list[str]:
        """What a stopped daemon without containers left on the machine."""
        found = [f"mount {line.split()[4]}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.root) in line]
        found += [f"group {path}" for path in Path("/sys/fs/cgroup").glob(f"*{self.group}*")]
        found += [f"group {path}" for path in Path("/sys/fs/cgroup").glob(f"*/{self.group.strip('/')}*")]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if str(self.root).encode() in command and int(process.name) != os.getpid():
                found.append(f"process {process.name} {command[:200]!r}")
        return found

    def stop(self) -> None:
        """Remove all containers, stop the daemon, and assert that nothing is left."""
        if self.process is not None and self.process.poll() is None:
            self.remove_all()
            self.terminate()
        for _ in range(40):
            if not self.leaks():
                break
            time.sleep(0.05)
        left = self.leaks()
        shutil.rmtree(self.root, ignore_errors=True)
        assert not left, left


def _run(command: list[str], check: bool, timeout: float, options: dict[str, object]) -> subprocess.CompletedProcess[str]:
    settings: dict[str, object] = {"capture_output": True, "text": True, "timeout": timeout, **options}
    done: subprocess.CompletedProcess[str] = subprocess.run(command, **settings)  # type: ignore[call-overload]
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout!r}\n{done.stderr!r}")
    return done
