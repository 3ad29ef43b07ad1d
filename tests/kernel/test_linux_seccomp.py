"""Filters in the kernel: each in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.root

PRELUDE = """
import ctypes, errno, os, socket, sys
from tare.linux import seccomp
from tare.runtime import seccomp_profile
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
def errno_of(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *(ctypes.c_ulong(a) for a in arguments))
    return ctypes.get_errno() if result == -1 else 0
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PRELUDE + body], capture_output=True, text=True)


def test_the_default_profile_lets_a_program_run_and_stops_the_rest() -> None:
    done = run(
        """
profile = seccomp_profile.default_profile([], (6, 1), seccomp.native_arch())
seccomp.install(seccomp.compile(profile), seccomp.filter_flags(profile))
from tare.linux.syscalls import numbers
number = numbers(seccomp.native_arch())
assert errno_of(number["mount"]) == errno.EPERM
assert errno_of(number["unshare"], 0x10000000) == errno.EPERM
assert errno_of(number["keyctl"], 0) == errno.EPERM
assert errno_of(number["clone3"], 0, 0) == errno.ENOSYS
assert errno_of(number["clone"], 0x10000000) == errno.EPERM
assert errno_of(999) == errno.ENOSYS
assert errno_of(number["socket"], 38, 5, 0) == errno.EPERM
assert errno_of(number["socket"], 40, 1, 0) == errno.EPERM
assert errno_of(number["socket"], (1 << 32) + 38, 5, 0) == errno.EPERM
assert errno_of(number["personality"], 0xffffffff) == 0
assert errno_of(number["personality"], 0x0200000) == errno.EPERM
socket.socket().close()
import subprocess, threading
threading.Thread(target=lambda: None).start()
assert subprocess.run(["/bin/true"]).returncode == 0
print("fine")
"""
    )
    assert done.stdout == "fine\n", done.stderr


def test_killing_and_errno() -> None:
    done = run(
        """
profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
    {"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77},
    {"names": ["getpgid"], "action": "SCMP_ACT_KILL_PROCESS", "args": [{"index": 0, "value": 5, "op": "SCMP_CMP_GT"}]}]}
seccomp.install(seccomp.compile(profile), seccomp.filter_flags(profile))
print(errno_of(110), os.getpgid(0) >= 0, flush=True)
os.getpgid(6)
print("not reached")
"""
    )
    assert done.stdout == "77 True\n", done.stderr
    assert done.returncode == -31


def test_refused_without_no_new_privs() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os\nfrom tare.linux import seccomp\n"
            "program = seccomp.compile({'defaultAction': 'SCMP_ACT_ALLOW'})\n"
            "os.setresuid(65534, 65534, 65534)\n"
            "try: seccomp.install(program)\n"
            "except PermissionError as error: print(error)\n",
        ],
        capture_output=True,
        text=True,
    )
    assert "seccomp" in done.stdout, done.stderr


INT_80 = """
import mmap
def int80(number):
    # mov eax, number; int 0x80; cdqe; ret - the i386 way in, from a 64-bit process
    code = bytes((0xB8,)) + number.to_bytes(4, "little") + bytes((0xCD, 0x80, 0x48, 0x98, 0xC3))
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    keep.append(memory)
    return ctypes.CFUNCTYPE(ctypes.c_long)(address)()
keep = []
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="int 0x80 is x86")
@pytest.mark.parametrize("listed", [True, False])
def test_the_32_bit_way_in_is_no_way_around(listed: bool) -> None:
    if run(INT_80 + "print(int80(20) == os.getpid())").stdout != "True\n":
        pytest.skip("this kernel has no 32-bit emulation")
    done = run(
        INT_80
        + f"""
profile = {{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
    {{"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}}]}}
if {listed}:
    profile["architectures"] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
seccomp.install(seccomp.compile(profile))
print(errno_of(39), flush=True)
print(int80(20), flush=True)
"""
    )
    assert done.stdout == ("77\n-77\n" if listed else "77\n"), done.stderr
    assert done.returncode == (0 if listed else -31)
