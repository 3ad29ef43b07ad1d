"""The seccomp compiler against a plain evaluation of the profile, through an interpreter of classic BPF."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.linux import seccomp
from tare.linux.syscalls import X32_BIT, multiplexed, numbers

ALLOW, ERRNO, KILL = seccomp.ALLOW, seccomp.ERRNO, seccomp.KILL_PROCESS


def run_bpf(program: bytes, data: bytes) -> int:
    """What the kernel's checker and interpreter would make of it; asserts the rules for seccomp programs."""
    code = list(struct.iter_unpack("=HBBI", program))
    assert 0 < len(code) <= 4096
    assert code[-1][0] == 0x06
    accumulator = place = 0
    while True:
        operation, true, false, operand = code[place]
        place += 1
        if operation == 0x20:
            assert operand % 4 == 0
            assert operand <= 60
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x05:
            place += operand
        elif operation in (0x15, 0x25, 0x35):
            holds = {0x15: accumulator == operand, 0x25: accumulator > operand, 0x35: accumulator >= operand}[operation]
            place += true if holds else false
        elif operation == 0x06:
            return int(operand)
        else:
            raise AssertionError(f"instruction {operation:#x}")


def call(program: bytes, arch: str, number: int, *arguments: int) -> int:
    values = [*arguments, *[0] * (6 - len(arguments))]
    return run_bpf(program, struct.pack("=IIQ6Q", number, seccomp.AUDIT_ARCH[arch], 0x7F0012345678, *values))


def holds(test: dict[str, Any], arguments: list[int]) -> bool:
    left, right, two = arguments[test["index"]], test["value"], test.get("valueTwo", 0)
    return bool(
        {
            "SCMP_CMP_NE": left != right,
            "SCMP_CMP_LT": left < right,
            "SCMP_CMP_LE": left <= right,
            "SCMP_CMP_EQ": left == right,
            "SCMP_CMP_GE": left >= right,
            "SCMP_CMP_GT": left > right,
            "SCMP_CMP_MASKED_EQ": left & right == two,
        }[test["op"]]
    )


def answer(action: str, errno_return: int | None) -> int:
    if action == "SCMP_ACT_ERRNO":
        return ERRNO | (errno.EPERM if errno_return is None else errno_return)
    return {"SCMP_ACT_ALLOW": ALLOW, "SCMP_ACT_KILL_PROCESS": KILL, "SCMP_ACT_LOG": seccomp.LOG}[action]


def evaluate(profile: dict[str, Any], table: str, number: int, arguments: list[int]) -> int:
    """The module's stated semantics, written down as directly as possible (without multiplexers)."""
    known = numbers(table)
    names = {name for name, value in known.items() if value == number}
    default = answer(profile["defaultAction"], profile.get("defaultErrnoRet"))
    rules = [rule for rule in profile["syscalls"] if names & set(rule["names"])]
    for rule in rules:
        tests = rule.get("args") or []
        repeats = len({test["index"] for test in tests}) < len(tests)
        if tests and (any if repeats else all)(holds(test, arguments) for test in tests):
            return answer(rule["action"], rule.get("errnoRet"))
    for rule in rules:
        if not rule.get("args"):
            return answer(rule["action"], rule.get("errnoRet"))
    named = [known[name] for rule in profile["syscalls"] for name in rule["names"] if name in known]
    newer = bool(named) and number > max(named)
    return ERRNO | errno.ENOSYS if newer and default not in (ALLOW, seccomp.LOG) else default


INTERESTING = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, (1 << 63) + 5, (1 << 64) - 1]
values = st.one_of(st.sampled_from(INTERESTING), st.integers(0, (1 << 64) - 1))
actions = st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_LOG"])
operators = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]
tests = st.fixed_dictionaries(
    {
        "index": st.integers(0, 2),
        "value": values,
        "valueTwo": values,
        "op": st.sampled_from(operators).map("SCMP_CMP_".__add__),
    }
)
NAMES = sorted({*numbers("x86_64"), *numbers("i386")} - {"socketcall", "ipc"})
rules = st.fixed_dictionaries(
    {"names": st.lists(st.sampled_from(NAMES[::7]), min_size=1, max_size=40), "action": actions},
    optional={"errnoRet": st.integers(1, 133), "args": st.lists(tests, max_size=3)},
)
profiles = st.fixed_dictionaries(
    {"defaultAction": actions, "syscalls": st.lists(rules, max_size=12)},
    optional={"defaultErrnoRet": st.integers(1, 133)},
)


@settings(deadline=None, max_examples=25)
@given(profiles, st.lists(values, min_size=6, max_size=6))
def test_program_means_what_the_profile_says(profile: dict[str, Any], arguments: list[int]) -> None:
    profile["architectures"] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    profile["syscalls"].append({"names": ["socketcall", "ipc"], "action": "SCMP_ACT_ALLOW"})
    program = seccomp.compile(profile, "x86_64")
    pool = [test["value"] for rule in profile["syscalls"] for test in rule.get("args", ())]
    tries = [arguments, *([value] * 6 for value in pool), *([min(value + 1, (1 << 64) - 1)] * 6 for value in pool)]
    for arch, table, base in (("x86_64", "x86_64", 0), ("x86_64", "x32", X32_BIT), ("i386", "i386", 0)):
        for number in range(560):
            for attempt in tries[: 1 if number % 7 else 6]:
                expected = evaluate(profile, table, number, attempt)
                assert call(program, arch, base + number, *attempt) == expected, (table, number, attempt)


@settings(deadline=None, max_examples=200)
@given(st.lists(tests, min_size=1, max_size=4), values)
def test_argument_tests(conditions: list[dict[str, Any]], value: int) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": conditions}],
    }
    program = seccomp.compile(profile, "x86_64")
    for candidate in [value, *(c["value"] for c in conditions), *(c["valueTwo"] for c in conditions)]:
        arguments = [candidate] * 6
        assert call(program, "x86_64", 0, *arguments) == evaluate(profile, "x86_64", 0, arguments)


def profile_of(*rules_: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(rules_), **more}


def reading(test: dict[str, Any]) -> dict[str, Any]:
    return profile_of({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [test]})


def test_foreign_architecture_is_killed() -> None:
    program = seccomp.compile(profile_of({"names": ["read"], "action": "SCMP_ACT_ALLOW"}), "x86_64")
    assert call(program, "x86_64", 0) == ALLOW
    assert call(program, "i386", 3) == KILL
    assert call(program, "aarch64", 63) == KILL


def test_x32_is_refused_unless_listed() -> None:
    rule = {"names": ["read", "execve"], "action": "SCMP_ACT_ALLOW"}
    without = seccomp.compile(profile_of(rule), "x86_64")
    assert call(without, "x86_64", X32_BIT) == ERRNO | errno.ENOSYS
    assert call(without, "x86_64", 0xFFFFFFFF) == ERRNO | errno.ENOSYS
    listed = seccomp.compile(profile_of(rule, architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]), "x86_64")
    assert call(listed, "x86_64", X32_BIT) == ALLOW
    assert call(listed, "x86_64", X32_BIT + 520) == ALLOW  # x32's own execve
    assert call(listed, "x86_64", X32_BIT + 59) == ERRNO | errno.EPERM


def test_newer_calls_do_not_exist_rather_than_being_forbidden() -> None:
    program = seccomp.compile(profile_of({"names": ["read", "openat2"], "action": "SCMP_ACT_ALLOW"}), "x86_64")
    assert call(program, "x86_64", numbers("x86_64")["mount"]) == ERRNO | errno.EPERM
    assert call(program, "x86_64", numbers("x86_64")["openat2"] + 1) == ERRNO | errno.ENOSYS
    allowing = seccomp.compile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}, "x86_64")
    assert call(allowing, "x86_64", 5000) == ALLOW


def test_arm_private_calls_are_not_the_measure_of_newness() -> None:
    rule = {"names": ["read", "openat2", "set_tls"], "action": "SCMP_ACT_ALLOW"}
    program = seccomp.compile(profile_of(rule, architectures=["SCMP_ARCH_ARM"]), "aarch64")
    assert call(program, "arm", 0xF0005) == ALLOW
    assert call(program, "arm", 0xF0002) == ERRNO | errno.EPERM
    assert call(program, "arm", 438) == ERRNO | errno.ENOSYS
    assert call(program, "aarch64", 63) == ALLOW


def test_a_refusal_covers_the_multiplexer() -> None:
    """What is forbidden by name must not be reachable through socketcall of a 32-bit program."""
    refusal = {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_EQ"}]}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "syscalls": [refusal]}
    program = seccomp.compile(profile, "x86_64")
    socketcall = numbers("i386")["socketcall"]
    assert call(program, "i386", socketcall, multiplexed()["socket"][1]) == ERRNO | errno.EPERM
    assert call(program, "i386", socketcall, multiplexed()["bind"][1]) == ALLOW
    profile["syscalls"] = [refusal, {"names": ["socketcall"], "action": "SCMP_ACT_ALLOW"}]
    assert call(seccomp.compile(profile, "x86_64"), "i386", socketcall, 1) == ALLOW
    allowed = profile_of({**refusal, "action": "SCMP_ACT_ALLOW"}, architectures=["SCMP_ARCH_X86"])
    assert call(seccomp.compile(allowed, "x86_64"), "i386", socketcall, 1) != ALLOW


def test_specific_rules_come_before_general_ones() -> None:
    guarded = {
        "names": ["ioctl"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": 5,
        "args": [{"index": 1, "value": 0x5412, "op": "SCMP_CMP_EQ"}],
    }
    program = seccomp.compile(profile_of({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW"}, guarded), "x86_64")
    assert call(program, "x86_64", 16, 0, 0x5412) == ERRNO | 5
    assert call(program, "x86_64", 16, 0, 0x5413) == ALLOW


@pytest.mark.parametrize(
    "broken",
    [
        {"syscalls": []},
        {"defaultAction": "SCMP_ACT_NONSENSE"},
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": -1},
        {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["x86"]},
        profile_of({"action": "SCMP_ACT_ALLOW"}),
        profile_of({"names": ["read"], "action": "x"}),
        reading({"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}),
        reading({"index": 0, "value": 1, "op": "EQUAL"}),
        reading({"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}),
    ],
)
def test_malformed_profiles_are_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(OSError) as refused:
        seccomp.compile(broken, "x86_64")
    assert refused.value.errno in (errno.EINVAL, errno.ENOTSUP)


def test_flags() -> None:
    assert seccomp.filter_flags({}) == seccomp.FLAG_SPEC_ALLOW
    assert seccomp.filter_flags({"flags": []}) == 0
    assert seccomp.filter_flags({"flags": ["SECCOMP_FILTER_FLAG_LOG"]}) == seccomp.FLAG_LOG
    with pytest.raises(OSError):
        seccomp.filter_flags({"flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]})
