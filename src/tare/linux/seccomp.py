"""seccomp: an OCI ``linux.seccomp`` object becomes a classic BPF program, and a program becomes the filter of this process.

The program:

    audit architecture ──► one decision tree over the call number per architecture ──► leaf
                      └──► none of ours: kill the process

A leaf is a return, or a chain of argument tests that ends in one. The tree is balanced over *ranges* of numbers with the same leaf,
so that about 350 allowed calls cost some seven comparisons.

What a profile means (the specification leaves it open; this is what runc with libseccomp does, where that is consistent):

- The native architecture always counts as listed. Names that an architecture does not have are ignored.
- For one call, rules with argument tests come before rules without; among each the first that matches decides; else the default.
- Tests of one rule must all hold; but if one rule tests an argument twice, each test stands for itself.
- A call newer than all that the profile names (for an architecture) answers ENOSYS where the default is to refuse: programs probe
  for new calls and fall back on ENOSYS, but take EPERM at its word.
- x32 calls (bit 30 of the number, on x86-64) answer ENOSYS unless x32 is listed.
- On i386 a rule for a call that socketcall(2) or ipc(2) multiplexes also holds for that way in, unless the profile names the
  multiplexer itself. Argument tests cannot follow (the arguments lie behind a pointer): such a rule is taken over only if it
  refuses, and then without its tests.

Everything that ``install`` needs is prepared when this module is imported: it can be called in a forked child inside a container's
root, where nothing may be imported or looked up.

Followed: seccomp(2), OCI runtime-spec config-linux "Seccomp", linux/seccomp.h, linux/audit.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tare.linux import classic_bpf as bpf
from tare.linux import syscalls

KILL_PROCESS = 0x80000000
KILL_THREAD = 0x00000000
TRAP = 0x00030000
ERRNO = 0x00050000
TRACE = 0x7FF00000
LOG = 0x7FFC0000
ALLOW = 0x7FFF0000
NO_SUCH_CALL = ERRNO | errno.ENOSYS

_ACTIONS = {
    "SCMP_ACT_KILL": KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    "SCMP_ACT_TRAP": TRAP,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_TRACE": TRACE,
    "SCMP_ACT_LOG": LOG,
    "SCMP_ACT_ALLOW": ALLOW,
}
_OPERATORS = frozenset("NE LT LE EQ GE GT MASKED_EQ".split())

AUDIT_ARCH = {"x86_64": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}
_ARCH_NAMES = {
    "SCMP_ARCH_X86_64": "x86_64",
    "SCMP_ARCH_X86": "i386",
    "SCMP_ARCH_X32": "x32",
    "SCMP_ARCH_AARCH64": "aarch64",
    "SCMP_ARCH_ARM": "arm",
}
_MACHINES = {"i486": "i386", "i586": "i386", "i686": "i386", "armv6l": "arm", "armv7l": "arm", "armv8l": "arm"}

FLAG_TSYNC = 1
FLAG_LOG = 2
FLAG_SPEC_ALLOW = 4
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": FLAG_TSYNC,
    "SECCOMP_FILTER_FLAG_LOG": FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": FLAG_SPEC_ALLOW,
}

# struct seccomp_data: nr, arch, instruction pointer, six 64-bit arguments (little endian on all our architectures).
_OFFSET_NUMBER = 0
_OFFSET_ARCH = 4
_OFFSET_ARGUMENTS = 16

# 32-bit ARM's private calls: far above, and not "newer" than the others.
_ARM_PRIVATE = 0xF0000


class Test(NamedTuple):
    """One comparison of a system call's argument; for ``MASKED_EQ`` ``value`` is the mask and ``value_two`` the result."""

    argument: int
    operator: str
    value: int
    value_two: int


class Verdict:
    """What a profile says about one system call: guarded answers in order, then the answer without a guard, if any."""

    __slots__ = ("guarded", "plain")

    def __init__(self) -> None:
        self.guarded: list[tuple[tuple[Test, ...], int]] = []
        self.plain: int | None = None


def native_arch() -> str:
    """This machine's architecture as named in ``AUDIT_ARCH``."""
    machine = os.uname().machine
    return _MACHINES.get(machine, machine)


def compile(profile: Mapping[str, Any], arch: str | None = None) -> bytes:
    """The BPF program for an OCI ``linux.seccomp`` object on a machine of this architecture (default: this one).

    Raises OSError: EINVAL for a malformed profile, ENOTSUP for what we do not offer, E2BIG for a program over the kernel's limit.
    """
    native = arch or native_arch()
    if native not in AUDIT_ARCH:
        raise OSError(errno.ENOTSUP, "no seccomp support for this architecture", native)
    listed = [native, *_architectures(profile)]
    default = _answer(profile.get("defaultAction"), profile.get("defaultErrnoRet"))
    assembler = bpf.Assembler()
    # Backwards: what is written last is tested first, so the native architecture comes last.
    start = assembler.give_back(KILL_PROCESS)
    for name in reversed(list(dict.fromkeys(item for item in listed if item in AUDIT_ARCH))):
        tree = _Tree(assembler, _ranges(profile, name, "x32" in listed, default)).write()
        section = assembler.load(_OFFSET_NUMBER, tree)
        start = assembler.branch(bpf.JUMP_EQ, AUDIT_ARCH[name], section, start)
    program = assembler.program(assembler.load(_OFFSET_ARCH, start))
    if len(program) > bpf.MAX_INSTRUCTIONS * bpf.INSTRUCTION.size:
        raise OSError(errno.E2BIG, "seccomp profile makes a program of more than 4096 instructions", "seccomp")
    return program


def filter_flags(profile: Mapping[str, Any]) -> int:
    """The profile's flags for ``install``. A profile without a word on flags gets SPEC_ALLOW, as from runc: the speculation
    barrier that the kernel would otherwise add costs much and guards against nothing that the container could reach."""
    names = profile.get("flags")
    if names is None:
        return FLAG_SPEC_ALLOW
    if not isinstance(names, list):
        raise OSError(errno.EINVAL, "seccomp flags are not a list", "seccomp")
    flags = 0
    for name in names:
        if not isinstance(name, str) or name not in _FLAGS:
            raise OSError(errno.ENOTSUP, "seccomp flag is not supported", str(name))
        flags |= _FLAGS[name]
    return flags


def _architectures(profile: Mapping[str, Any]) -> list[str]:
    found = []
    for name in profile.get("architectures") or ():
        if not isinstance(name, str) or not name.startswith("SCMP_ARCH_"):
            raise OSError(errno.EINVAL, "not a seccomp architecture", str(name))
        if name in _ARCH_NAMES:
            found.append(_ARCH_NAMES[name])
    return found


def _answer(action: object, errno_return: object) -> int:
    """The filter's return value for an action."""
    if action == "SCMP_ACT_NOTIFY":
        raise OSError(errno.ENOTSUP, "seccomp action needs a supervisor, which is not offered", "SCMP_ACT_NOTIFY")
    if not isinstance(action, str) or action not in _ACTIONS:
        raise OSError(errno.EINVAL, "not a seccomp action", str(action))
    base = _ACTIONS[action]
    if base not in (ERRNO, TRACE):
        return base
    number = errno.EPERM if errno_return is None else errno_return
    if not isinstance(number, int) or not 0 <= number <= 0xFFFF:
        raise OSError(errno.EINVAL, "not an errno for a seccomp action", str(errno_return))
    return base | number


def _tests(rule: Mapping[str, Any]) -> list[tuple[Test, ...]]:
    """The rule's argument tests as alternatives, each a conjunction; empty when it has none."""
    tests = []
    items = rule.get("args") or []
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise OSError(errno.EINVAL, "seccomp argument tests are not a list of objects", "seccomp")
    for item in items:
        index, operator = item.get("index"), str(item.get("op", "")).removeprefix("SCMP_CMP_")
        value, value_two = item.get("value", 0), item.get("valueTwo") or 0
        numbers = (index, value, value_two)
        if operator not in _OPERATORS or not all(isinstance(n, int) and 0 <= n < 1 << 64 for n in numbers) or index > 5:
            raise OSError(errno.EINVAL, f"not a seccomp argument test: {item!r}", "seccomp")
        tests.append(Test(index, operator, value, value_two))
    if len({test.argument for test in tests}) < len(tests):
        return [(test,) for test in tests]
    return [tuple(tests)] if tests else []


def verdicts(profile: Mapping[str, Any], arch: str) -> dict[int, Verdict]:
    """What the profile says about each call number of an architecture that it names."""
    known = syscalls.numbers(arch)
    rules = profile.get("syscalls") or []
    if not isinstance(rules, list) or not all(isinstance(rule, Mapping) for rule in rules):
        raise OSError(errno.EINVAL, "seccomp syscalls are not a list of objects", "seccomp")
    through = _multiplexers(rules) if arch == "i386" else {}
    found: dict[int, Verdict] = {}
    for rule in rules:
        answer = _answer(rule.get("action"), rule.get("errnoRet"))
        alternatives = _tests(rule)
        for name in _names(rule):
            if name in known:
                _enter(found, known[name], alternatives, answer)
            if name in through and (not alternatives or answer not in (ALLOW, LOG)):
                multiplexer, call = through[name]
                _enter(found, known[multiplexer], [(Test(0, "EQ", call, 0),)], answer)
    return found


def _enter(found: dict[int, Verdict], number: int, alternatives: list[tuple[Test, ...]], answer: int) -> None:
    verdict = found.setdefault(number, Verdict())
    if alternatives:
        verdict.guarded.extend((tests, answer) for tests in alternatives)
    elif verdict.plain is None:
        verdict.plain = answer


def _names(rule: Mapping[str, Any]) -> list[str]:
    names = rule.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise OSError(errno.EINVAL, "seccomp rule without a list of names", "seccomp")
    return names


def _multiplexers(rules: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, int]]:
    named = {name for rule in rules for name in _names(rule)}
    return {name: entry for name, entry in syscalls.multiplexed().items() if entry[0] not in named}


_Leaf = tuple[tuple[tuple[tuple[Test, ...], int], ...], int]
"""Guarded answers and the last answer: a hashable ``Verdict`` with the default filled in."""


def _ranges(profile: Mapping[str, Any], arch: str, with_x32: bool, default: int) -> list[tuple[int, _Leaf]]:
    """The call numbers of an audit architecture as (first number, leaf), ascending from 0; neighbours differ."""
    refuses = default in (KILL_PROCESS, KILL_THREAD, TRAP) or default & 0xFFFF0000 == ERRNO
    newer = NO_SUCH_CALL if refuses else default
    spans = _spans(verdicts(profile, arch), 0, default, newer)
    if arch == "x86_64":
        spans = [span for span in spans if span[0] < syscalls.X32_BIT]
        if with_x32:
            spans += _spans(verdicts(profile, "x32"), syscalls.X32_BIT, default, newer)
        else:
            spans.append((syscalls.X32_BIT, ((), NO_SUCH_CALL)))
    merged: list[tuple[int, _Leaf]] = []
    for first, leaf in spans:
        if not merged or merged[-1][1] != leaf:
            merged.append((first, leaf))
    return merged


def _spans(found: Mapping[int, Verdict], base: int, default: int, newer: int) -> list[tuple[int, _Leaf]]:
    last = max((number for number in found if number < _ARM_PRIVATE), default=_ARM_PRIVATE)

    def background(number: int) -> _Leaf:
        return (), newer if last < number < _ARM_PRIVATE else default

    leaves = {number: background(number) for number in (0, last + 1, _ARM_PRIVATE)}
    leaves |= {number + 1: background(number + 1) for number in found}
    leaves |= {number: _leaf(verdict, default) for number, verdict in found.items()}
    return [(number + base, leaves[number]) for number in sorted(leaves)]


def _leaf(verdict: Verdict, default: int) -> _Leaf:
    final = default if verdict.plain is None else verdict.plain
    guarded = list(verdict.guarded)
    while guarded and guarded[-1][1] == final:  # A test whose outcome makes no difference.
        guarded.pop()
    return tuple(guarded), final


class _Tree:
    """Writes a balanced decision tree over ranges of call numbers; each distinct leaf is written once."""

    def __init__(self, assembler: bpf.Assembler, ranges: Sequence[tuple[int, _Leaf]]) -> None:
        self._assembler = assembler
        self._ranges = ranges
        self._leaves: dict[_Leaf, int] = {}

    def write(self) -> int:
        return self._between(0, len(self._ranges))

    def _between(self, low: int, high: int) -> int:
        if high - low == 1:
            return self._leaf(self._ranges[low][1])
        middle = (low + high) // 2
        above = self._between(middle, high)
        below = self._between(low, middle)
        return self._assembler.branch(bpf.JUMP_GE, self._ranges[middle][0], above, below)

    def _leaf(self, leaf: _Leaf) -> int:
        guarded, final = leaf
        if not guarded:
            return self._assembler.give_back(final)
        if leaf not in self._leaves:
            spot = self._assembler.give_back(final)
            for tests, answer in reversed(guarded):
                passed, failed = self._assembler.give_back(answer), spot
                for test in reversed(tests):
                    passed = self._test(test, passed, failed)
                spot = passed
            self._leaves[leaf] = spot
        return self._leaves[leaf]

    def _test(self, test: Test, passed: int, failed: int) -> int:
        """Compare a 64-bit argument in two halves, the upper one first."""
        write = self._assembler
        low = _OFFSET_ARGUMENTS + 8 * test.argument
        value_low, value_high = test.value & 0xFFFFFFFF, test.value >> 32
        match test.operator:
            case "NE":
                return self._equal(low, test.value, failed, passed)
            case "EQ":
                return self._equal(low, test.value, passed, failed)
            case "LT":
                return self._greater(bpf.JUMP_GE, low, test.value, failed, passed)
            case "LE":
                return self._greater(bpf.JUMP_GT, low, test.value, failed, passed)
            case "GE":
                return self._greater(bpf.JUMP_GE, low, test.value, passed, failed)
            case "GT":
                return self._greater(bpf.JUMP_GT, low, test.value, passed, failed)
        spot = write.branch(bpf.JUMP_EQ, test.value_two & 0xFFFFFFFF, passed, failed)
        spot = write.load(low, write.mask(value_low, spot))
        if value_high == 0 and test.value_two >> 32 == 0:
            return spot
        spot = write.branch(bpf.JUMP_EQ, test.value_two >> 32, spot, failed)
        return write.load(low + 4, write.mask(value_high, spot))

    def _equal(self, low: int, value: int, true: int, false: int) -> int:
        write = self._assembler
        spot = write.load(low, write.branch(bpf.JUMP_EQ, value & 0xFFFFFFFF, true, false))
        return write.load(low + 4, write.branch(bpf.JUMP_EQ, value >> 32, spot, false))

    def _greater(self, test: int, low: int, value: int, true: int, false: int) -> int:
        write = self._assembler
        spot = write.load(low, write.branch(test, value & 0xFFFFFFFF, true, false))
        spot = write.branch(bpf.JUMP_EQ, value >> 32, spot, false)
        return write.load(low + 4, write.branch(bpf.JUMP_GT, value >> 32, true, spot))


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


_SECCOMP_SET_MODE_FILTER = 1
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_libc = ctypes.CDLL(None, use_errno=True)
_seccomp_number = syscalls.numbers(native_arch())["seccomp"] if native_arch() in AUDIT_ARCH else None
_call = _libc.syscall
_call.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_ulong, ctypes.POINTER(_Program))
_call.restype = ctypes.c_long
_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.POINTER(_Program))
_prctl.restype = ctypes.c_int


def install(filter: bytes, flags: int = 0) -> None:
    """Make the program a filter of the calling thread, for good and for all that it executes.

    Needs ``no_new_privs`` or CAP_SYS_ADMIN. Raises OSError with the kernel's errno.
    """
    program = _Program(len(filter) // bpf.INSTRUCTION.size, filter)
    number = errno.ENOSYS
    if _seccomp_number is not None:
        if _call(_seccomp_number, _SECCOMP_SET_MODE_FILTER, flags, program) == 0:
            return
        number = ctypes.get_errno()
    if number == errno.EINVAL and flags & FLAG_SPEC_ALLOW:  # Kernels before 4.17 do not know this flag, nor need it.
        install(filter, flags & ~FLAG_SPEC_ALLOW)
        return
    if number == errno.ENOSYS and not flags & ~FLAG_SPEC_ALLOW:  # Kernels before 3.17.
        if _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program) == 0:
            return
        number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), "seccomp")
