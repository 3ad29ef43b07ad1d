"""Process 1 of the test machine: brings up a plain cgroup v2 system, runs one job, reports, powers off.

The job lies in ``/job.json``: {"argv": [...], "cwd": ..., "environment": {...}, "nonce": ..., "modules": PATH, "load": [...]}.
The tests' output goes to the second serial port, closed by the line ``NONCE exit CODE``: only whoever knows the nonce can forge a result.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import termios
import time

REPORT = "/dev/ttyS1"
RB_POWER_OFF = 0x4321FEDC

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, data: str = "") -> None:
    """mount(2) with an existing or new directory as the target."""
    os.makedirs(target, exist_ok=True)
    if _libc.mount(source.encode(), target.encode(), kind.encode(), 0, data.encode()) < 0:
        print(f"tare-vm: mount {target}: {os.strerror(ctypes.get_errno())}", flush=True)


def bind(source: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    _libc.mount(source.encode(), target.encode(), None, 4096, None)


def bring_up(keep: str) -> None:
    """The mounts that a booted system has; the controllers are enabled by whoever needs them. ``keep`` (the checkout) stays in sight
    when it lies below a directory that gets a file system of its own."""
    bind(keep, "/checkout")
    mount("proc", "/proc", "proc")
    mount("sysfs", "/sys", "sysfs")
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
    mount("bpf", "/sys/fs/bpf", "bpf", "mode=700")
    mount("devpts", "/dev/pts", "devpts", "ptmxmode=666,mode=620")
    mount("shm", "/dev/shm", "tmpfs")
    mount("mqueue", "/dev/mqueue", "mqueue")
    for directory in ("/tmp", "/run", "/var/tmp", "/var/lib/tare"):
        mount("tmpfs", directory, "tmpfs", "mode=1777" if directory.endswith("tmp") else "mode=755")
    if not os.path.exists(keep):
        bind("/checkout", keep)
    for number, name in enumerate(("fd", "fd/0", "fd/1", "fd/2")):
        link = "/dev/" + ("fd", "stdin", "stdout", "stderr")[number]
        if not os.path.lexists(link):
            os.symlink(f"/proc/self/{name}", link)
    with open("/proc/sys/kernel/printk", "w", encoding="ascii") as stream:
        stream.write("1")


def load_modules(directory: str, names: list[str]) -> None:
    """Insert further modules (already in dependency order) straight from the host's cache."""
    for name in names:
        descriptor = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC)
        if _libc.syscall(313, descriptor, b"", 0) < 0 and ctypes.get_errno() != 17:  # finit_module; EEXIST
            print(f"tare-vm: module {name}: {os.strerror(ctypes.get_errno())}", flush=True)
        os.close(descriptor)


def loopback_up() -> None:
    """lo is down in a fresh network stack, and tests with sockets expect it."""
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sH14x", b"lo", 0x1 | 0x40)
        fcntl.ioctl(probe, 0x8914, request)  # SIOCSIFFLAGS, up and running


def run(job: dict[str, object]) -> int:
    """Run the job as a child; process 1 has to reap strangers meanwhile."""
    with open(REPORT, "wb", buffering=0) as report:
        child = subprocess.Popen(
            job["argv"],  # type: ignore[arg-type, call-overload]
            cwd=job["cwd"],
            env=job["environment"],
            stdin=subprocess.DEVNULL,
            stdout=report,
            stderr=report,
            start_new_session=True,
        )
        while True:
            pid, status = os.wait()
            if pid == child.pid:
                return os.waitstatus_to_exitcode(status)


def main() -> None:
    with open("/job.json", encoding="utf-8") as stream:
        job = json.load(stream)
    bring_up(job["cwd"])
    code = 125
    started = time.monotonic()
    try:
        load_modules(job["modules"], job["load"])
        loopback_up()
        code = run(job)
    except Exception as error:  # process 1 must not die: the kernel would panic without a report
        print(f"tare-vm: {error!r}", flush=True)
    with open(REPORT, "w", encoding="ascii") as report:
        report.write(f"\n{job['nonce']} exit {code} after {started:.1f}+{time.monotonic() - started:.1f} s\n")
        report.flush()
        termios.tcdrain(report.fileno())
    os.sync()
    sys.stdout.flush()
    _libc.reboot(RB_POWER_OFF)


main()
