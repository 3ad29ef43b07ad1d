"""Device rules as an eBPF program: what cgroup v2 has in place of the v1 devices controller (bpf(2), bpf-helpers(7)).

The kernel runs the programs of type ``CGROUP_DEVICE`` that are attached to a process's group, and to those above it, on every open and
mknod of a device node; all have to return 1. A program gets three words: access (high half) and node type (low half), major, minor.

    access_type = access << 16 | type          access: 1 mknod, 2 read, 4 write        type: 1 block, 2 character

Translation of a ``Policy``: one short run of instructions per exception, in any order since exceptions are disjoint in effect. As in the v1
controller an allowing exception has to cover the whole request (opening read-write needs one rule with both), and a denying one applies as
soon as it shares an access with it.

    r2 type   r3 access   r4 major   r5 minor   r1 scratch (the context, until all is loaded)

Nothing is pinned: the program belongs to the group and goes away with it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from tare.linux import libc
from tare.linux.cgroup.devices import ALL_ACCESS, ANY, Node, Policy

_BPF_NUMBER = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "armv7l": 386, "i686": 357, "ppc64le": 361, "s390x": 351}

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_CGROUP_DEVICE_PROGRAM = 15
_CGROUP_DEVICE_HOOK = 6
_ALLOW_MULTI, _REPLACE = 2, 4
_MAX_ATTACHED = 64

_LOAD_WORD = 0x61  # dst = *(u32 *)(src + off)
_MOVE, _MOVE_REGISTER = 0xB7, 0xBF
_AND, _SHIFT_RIGHT = 0x57, 0x77
_JUMP_EQUAL32, _JUMP_NOT_EQUAL32 = 0x16, 0x56  # 32-bit compares: an immediate would be sign-extended for 64-bit ones
_EXIT = 0x95

_TYPE = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}


def instruction(code: int, destination: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """One eBPF instruction (little-endian machines)."""
    return struct.pack("<BBhI", code, destination | source << 4, offset, immediate & 0xFFFFFFFF)


def assemble(policy: Policy) -> bytes:
    """The program that answers as ``policy``."""
    program = [
        instruction(_LOAD_WORD, 2, 1, 0),
        instruction(_MOVE_REGISTER, 3, 2),
        instruction(_AND, 2, immediate=0xFFFF),
        instruction(_SHIFT_RIGHT, 3, immediate=16),
        instruction(_LOAD_WORD, 4, 1, 4),
        instruction(_LOAD_WORD, 5, 1, 8),
    ]
    for node, access in policy.exceptions.items():
        program += _exception(node, access, policy.allow)
    program += [instruction(_MOVE, 0, immediate=int(policy.allow)), instruction(_EXIT)]
    return b"".join(program)


def _exception(node: Node, access: frozenset[str], default: bool) -> list[bytes]:
    """Leave with the opposite of ``default`` if the request matches; otherwise fall through to what follows."""
    bits = sum(_ACCESS[letter] for letter in access)
    # (code, register, immediate): jumps that skip the rest; their offsets are known only when all are counted.
    steps: list[tuple[int, int, int]] = [(_JUMP_NOT_EQUAL32, 2, _TYPE[node[0]])]
    if default:
        steps += [(_MOVE_REGISTER, 1, 3), (_AND, 1, bits), (_JUMP_EQUAL32, 1, 0)]
    elif access != ALL_ACCESS:
        steps += [(_MOVE_REGISTER, 1, 3), (_AND, 1, 7 & ~bits), (_JUMP_NOT_EQUAL32, 1, 0)]
    for register, number in ((4, node[1]), (5, node[2])):
        if number != ANY:
            steps.append((_JUMP_NOT_EQUAL32, register, number))
    length = len(steps) + 2
    encoded = []
    for position, (code, register, operand) in enumerate(steps):
        if code == _MOVE_REGISTER:
            encoded.append(instruction(code, register, operand))
        elif code == _AND:
            encoded.append(instruction(code, register, immediate=operand))
        else:
            encoded.append(instruction(code, register, offset=length - position - 1, immediate=operand))
    return [*encoded, instruction(_MOVE, 0, immediate=int(not default)), instruction(_EXIT)]


def set_device_policy(group: int, policy: Policy) -> None:
    """Make ``policy`` the group's device rules, in place of those set before. ``group`` is an open directory of a v2 group.

    The kernel swaps one program for another at once; where it cannot (before 5.6) the new one is added before the old ones go, so that the
    group is never without rules.
    """
    present = attached_programs(group)
    program = load(assemble(policy))
    old: list[int] = []
    try:
        old = [_program_by_id(number) for number in present]
        if len(old) == 1:
            try:
                _attach(group, program, _ALLOW_MULTI | _REPLACE, old[0])
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        _attach(group, program, _ALLOW_MULTI)
        for descriptor in old:
            _bpf(_PROG_DETACH, struct.pack("=IIII", group, descriptor, _CGROUP_DEVICE_HOOK, 0), "detaching device rules")
    finally:
        for descriptor in (program, *old):
            os.close(descriptor)


def load(program: bytes) -> int:
    """Load a device program; returns its descriptor. The verifier's words are in the error."""
    code = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    fixed = struct.pack("=IIQQ", _CGROUP_DEVICE_PROGRAM, len(program) // 8, ctypes.addressof(code), ctypes.addressof(licence))
    quiet = fixed + struct.pack("=IIQII16s", 0, 0, 0, 0, 0, b"tare_devices")
    try:
        return _bpf(_PROG_LOAD, quiet, "loading device rules")
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
        log = ctypes.create_string_buffer(65536)
        loud = fixed + struct.pack("=IIQII16s", 1, len(log), ctypes.addressof(log), 0, 0, b"tare_devices")
        try:
            return _bpf(_PROG_LOAD, loud, "loading device rules")
        except OSError as second:
            said = log.value.decode("utf-8", "replace").strip()[-400:]
            raise OSError(second.errno, f"{second.strerror} (the verifier: {said})", "loading device rules") from None


def attached_programs(group: int) -> list[int]:
    """Ids of the device programs attached to this very group."""
    ids = (ctypes.c_uint32 * _MAX_ATTACHED)()
    attribute = struct.pack("=IIIIQIxxxx", group, _CGROUP_DEVICE_HOOK, 0, 0, ctypes.addressof(ids), _MAX_ATTACHED)
    buffer = ctypes.create_string_buffer(attribute, len(attribute))
    _call(_PROG_QUERY, buffer, "listing device rules")
    (count,) = struct.unpack_from("=I", buffer.raw, 24)
    return list(ids[:count])


def _attach(group: int, program: int, flags: int, replaced: int = 0) -> None:
    attribute = struct.pack("=IIIII", group, program, _CGROUP_DEVICE_HOOK, flags, replaced)
    _bpf(_PROG_ATTACH, attribute, "attaching device rules")


def _program_by_id(number: int) -> int:
    return _bpf(_PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0), "opening device rules")


def _bpf(command: int, attribute: bytes, what: str) -> int:
    return _call(command, ctypes.create_string_buffer(attribute, len(attribute)), what)


def _call(command: int, attribute: ctypes.Array[ctypes.c_char], what: str) -> int:
    number = _BPF_NUMBER.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2) is not known on {os.uname().machine}", what)
    return libc.syscall(number, command, ctypes.addressof(attribute), len(attribute), what=what)
