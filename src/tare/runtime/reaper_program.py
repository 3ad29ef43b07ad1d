"""The reaper's loop as a program of its own, some 400 bytes: what process 1 becomes when it has nothing else to do.

A Python process that waits costs each container megabytes, which are counted against its memory limit, and keeps the host's interpreter in
sight of the container. So process 1 executes this instead: an ELF file in a memfd, written with the number of the one child that matters.

    prctl(PR_SET_NAME, "docker-init")
    again:  number = rt_sigtimedwait(set)         interrupted: again; any other error: exit 1
            SIGCHLD: reap; SIGTTIN, SIGTTOU: again; else kill(child, number), again
    reap:   pid = wait4(-1, &status, WNOHANG)     nothing: again; not the child: reap
            exit_group(128 + signal or exit code of the child)

The signals of ``set`` are blocked by whoever executes it: a mask and what is pending survive exec.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection

_X86_64 = bytes.fromhex(
    "b89d000000"  # _start: mov eax, 157  (prctl)
    "bf0f000000"  # mov edi, 15           (PR_SET_NAME)
    "488d3597000000"  # lea rsi, [name]
    "0f05"  # syscall
    "b880000000"  # again: mov eax, 128   (rt_sigtimedwait)
    "488d3d81000000"  # lea rdi, [set]
    "31f6 31d2"  # xor esi, esi; xor edx, edx
    "6a08 415a"  # push 8; pop r10
    "0f05"  # syscall
    "83f8fc 74e5"  # cmp eax, -EINTR; je again
    "bf01000000"  # mov edi, 1
    "85c0 785b"  # test eax, eax; js out
    "83f811 741b"  # cmp eax, SIGCHLD; je reap
    "83f815 74d2"  # cmp eax, SIGTTIN; je again
    "83f816 74cd"  # cmp eax, SIGTTOU; je again
    "89c6"  # mov esi, eax
    "8b3d66000000"  # mov edi, [child]
    "b83e000000"  # mov eax, 62           (kill)
    "0f05 ebbc"  # syscall; jmp again
    "6aff 5f"  # reap: push -1; pop rdi
    "488d7424f0"  # lea rsi, [rsp-16]
    "ba01000000"  # mov edx, WNOHANG
    "4531d2"  # xor r10d, r10d
    "b83d000000"  # mov eax, 61           (wait4)
    "0f05"  # syscall
    "85c0 7ea1"  # test eax, eax; jle again
    "3b053c000000 75dd"  # cmp eax, [child]; jne reap
    "8b7c24f0"  # mov edi, [rsp-16]
    "40f6c77f 740b"  # test dil, 0x7f; jz exited
    "83e77f"  # and edi, 0x7f
    "81c780000000 eb03"  # add edi, 128; jmp out
    "c1ef08"  # exited: shr edi, 8
    "b8e7000000 0f05"  # out: mov eax, 231; syscall  (exit_group)
    "0f1f8000000000"  # nop
)
_AARCH64 = struct.pack(
    "<44I",
    *(0xD28014E8, 0xD28001E0, 0x10000581, 0xD4000001),  # _start: x8 = 167 (prctl), x0 = 15, x1 = name; svc
    *(0xD2801128, 0x100004E0, 0xD2800001, 0xD2800002),  # again: x8 = 137 (rt_sigtimedwait), x0 = set, x1 = x2 = 0
    *(0xD2800103, 0xD4000001, 0x3100101F, 0x54FFFF20),  # x3 = 8; svc; cmn w0, #EINTR; b.eq again
    *(0x2A0003E4, 0x52800020, 0x37F80384),  # w4 = w0; w0 = 1; tbnz w4, #31, out
    *(0x7100449F, 0x54000140),  # cmp w4, #SIGCHLD; b.eq reap
    *(0x7100549F, 0x54FFFE40, 0x7100589F, 0x54FFFE00),  # cmp w4, #SIGTTIN; b.eq again; cmp w4, #SIGTTOU; b.eq again
    *(0x2A0403E1, 0x18000360, 0xD2801028, 0xD4000001, 0x17FFFFEB),  # w1 = w4; w0 = child; x8 = 129 (kill); svc; b again
    *(0x92800000, 0xD10043E1, 0xD2800022, 0xD2800003),  # reap: x0 = -1; x1 = sp - 16; x2 = WNOHANG; x3 = 0
    *(0xD2802088, 0xD4000001, 0x7100001F, 0x54FFFC6D),  # x8 = 260 (wait4); svc; cmp w0, #0; b.le again
    *(0x180001E4, 0x6B04001F, 0x54FFFEC1),  # w4 = child; cmp w0, w4; b.ne reap
    *(0xB85F03E4, 0x72001880, 0x11020000, 0x54000041),  # w4 = [sp - 16]; ands w0, w4, #0x7f; w0 += 128; b.ne out
    0x53083C80,  # ubfx w0, w4, #8, #8
    *(0xD2800BC8, 0xD4000001),  # out: x8 = 94 (exit_group); svc
)
_PROGRAMS = {"x86_64": (62, _X86_64), "aarch64": (183, _AARCH64)}
"""(ELF machine, code) by machine."""

_BASE, _PAGE = 0x400000, 0x10000
_HEADERS = 64 + 2 * 56
_NAME = b"docker-init\0"


def image(child: int, signals: Collection[int], machine: str = os.uname().machine) -> bytes:
    """The ELF file that forwards ``signals`` to the process ``child`` and ends as it does; empty for a machine that we have no code for."""
    if machine not in _PROGRAMS:
        return b""
    number, code = _PROGRAMS[machine]
    data = struct.pack("<Q12si", sum(1 << signal - 1 for signal in signals), _NAME, child)
    size = _HEADERS + len(code) + len(data)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")  # 64 bits, little-endian, version 1
    header = struct.pack("<16sHHIQQQIHHHHHH", identity, 2, number, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, _PAGE)  # PT_LOAD, read and execute
    stack = struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)  # PT_GNU_STACK, read and write
    return header + load + stack + code + data
