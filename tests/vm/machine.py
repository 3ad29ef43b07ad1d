"""The test machine: qemu with a stock kernel, two processors, and the host's root directory shared read-only.

Everything the host has (the interpreter, the checkout, busybox) is in the guest under the same path, over it a tmpfs; so the guest can
write anywhere and the host never sees it. Three processes per run, all ended with it: virtiofsd serves the files, qemu runs the kernel.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import debian_kernel
import initramfs
from debian_kernel import Unavailable

QEMU = Path("/usr/bin/qemu-system-x86_64")
VIRTIOFSD = (Path("/usr/lib/qemu/virtiofsd"), Path("/usr/libexec/virtiofsd"))
BUSYBOX = Path("/bin/busybox")
HERE = Path(__file__).resolve().parent

BOOT_MODULES = ["virtio_pci", "virtiofs", "overlay"]
GUEST_MODULES = """veth bridge br_netfilter dummy tun erofs loop vsock nf_tables nft_nat nft_chain_nat nft_masq nft_redir nft_ct
nft_fib_inet nft_reject_inet nf_conntrack nf_nat virtio_net macvlan ipvlan 8021q sctp quota_v2""".split()

KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all swapaccount=1 random.trust_cpu=on mitigations=off"
)


@dataclass(frozen=True)
class Outcome:
    """How a job ended. ``code`` is None when the machine broke off; ``console`` then tells why."""

    code: int | None
    output: str
    console: str
    seconds: float


def requirements() -> tuple[Path, Path]:
    """(qemu, virtiofsd), or ``Unavailable`` with the remedy."""
    if not os.access(QEMU, os.X_OK):
        raise Unavailable(f"{QEMU} is missing: apt-get install --no-install-recommends qemu-system-x86")
    for program in VIRTIOFSD:
        if os.access(program, os.X_OK):
            break
    else:
        raise Unavailable("virtiofsd is missing: apt-get install --no-install-recommends qemu-system-common (or virtiofsd)")
    if os.geteuid() != 0:
        raise Unavailable("the test machine shares the host's root directory and needs root for that")
    if b"statically linked" not in _file_kind(BUSYBOX):
        raise Unavailable(f"{BUSYBOX} is missing or not static: apt-get install busybox-static")
    return QEMU, program


def _file_kind(path: Path) -> bytes:
    """Enough of file(1): a program without an interpreter entry is static."""
    try:
        head = path.read_bytes()[:4096]
    except OSError:
        return b""
    return b"" if b"/ld-linux" in head or not head.startswith(b"\x7fELF") else b"statically linked"


def run(argv: Sequence[str], cwd: Path, environment: dict[str, str], timeout: float = 300.0, memory: str = "1G") -> Outcome:
    """Boot, run ``argv`` as root in the guest, power off. Output appears on our stdout as it comes, and in the outcome."""
    qemu, virtiofsd = requirements()
    chosen = debian_kernel.obtain()
    nonce = secrets.token_hex(8)
    load = debian_kernel.resolve_modules(chosen, GUEST_MODULES)
    job = {
        "argv": list(argv),
        "cwd": str(cwd),
        "environment": environment,
        "nonce": nonce,
        "modules": str(chosen.modules),
        "load": [str(path.relative_to(chosen.modules)) for path in load],
    }
    boot = debian_kernel.resolve_modules(chosen, BOOT_MODULES)
    python = Path(sys.executable)
    archive = initramfs.build(BUSYBOX, boot, python, HERE / "guest.py", json.dumps(job).encode())
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tare-vm-")))
        (scratch / "initramfs").write_bytes(archive)
        server = stack.enter_context(_ended(_start_virtiofsd(virtiofsd, scratch)))
        started = time.monotonic()
        command = _qemu_command(qemu, chosen, scratch, memory)
        machine = stack.enter_context(_ended(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)))
        output = _follow(machine, nonce, started + timeout)
        code = _exit_code(output, nonce)
        seconds = time.monotonic() - started
        if code is not None:  # the guest powers itself off right after the report
            try:
                machine.wait(5)
            except subprocess.TimeoutExpired:
                pass
        del server
        console = (scratch / "console").read_text(errors="replace") if (scratch / "console").exists() else ""
    return Outcome(code, output, console, seconds)


def _start_virtiofsd(program: Path, scratch: Path) -> subprocess.Popen[bytes]:
    socket = scratch / "fs.sock"
    log = open(scratch / "virtiofsd.log", "wb")  # noqa: SIM115 - handed to the child
    command = [str(program), "-f", f"--socket-path={socket}", "-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot", "-o", "xattr"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    log.close()
    deadline = time.monotonic() + 10
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise Unavailable("virtiofsd does not start: " + (scratch / "virtiofsd.log").read_text(errors="replace")[-300:])
        time.sleep(0.01)
    return process


def _qemu_command(qemu: Path, chosen: debian_kernel.Kernel, scratch: Path, memory: str) -> list[str]:
    return [
        str(qemu),
        *("-accel", os.environ.get("TARE_VM_ACCEL", "tcg")),
        *("-machine", "q35", "-cpu", "max", "-smp", "1", "-m", memory),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(chosen.image), "-initrd", str(scratch / "initramfs"), "-append", KERNEL_ARGUMENTS),
        *("-object", f"memory-backend-memfd,id=ram,size={memory},share=on", "-numa", "node,memdev=ram"),
        *("-chardev", f"socket,id=fs,path={scratch / 'fs.sock'}", "-device", "vhost-user-fs-pci,chardev=fs,tag=host,queue-size=1024"),
        *("-serial", f"file:{scratch / 'console'}", "-serial", "stdio"),
    ]


def _follow(machine: subprocess.Popen[bytes], nonce: str, deadline: float) -> str:
    """Copy the guest's report to our stdout until its last line, the end of the machine, or the deadline."""
    assert machine.stdout is not None
    received = b""
    os.set_blocking(machine.stdout.fileno(), False)
    while time.monotonic() < deadline:
        data = machine.stdout.read(65536)
        if data:
            data = data.replace(b"\r\n", b"\n")
            received += data
            sys.stdout.write(data.decode("utf-8", "replace"))
            sys.stdout.flush()
            if nonce.encode() + b" exit " in received and received.endswith(b" s\n"):
                break
        elif data == b"" or machine.poll() is not None:
            break
        else:
            time.sleep(0.02)
    return received.decode("utf-8", "replace")


def _exit_code(output: str, nonce: str) -> int | None:
    for line in reversed(output.splitlines()):
        words = line.split()
        if len(words) >= 3 and words[0] == nonce and words[1] == "exit":
            return int(words[2])
    return None


class _ended:
    """A child process that does not outlive the block."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self._process

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
