"""The default profile and Docker's profile format."""

from __future__ import annotations

from typing import Any

import pytest

from tare.runtime.seccomp_profile import compiled, default_profile, from_docker_json

LINUX = (6, 1)


def allowed(profile: dict[str, Any]) -> set[str]:
    rules = profile["syscalls"]
    return {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args") for name in rule["names"]}


def test_capabilities_open_their_calls() -> None:
    plain = allowed(default_profile([], LINUX, "x86_64"))
    assert {"read", "openat2", "ptrace", "arch_prctl", "landlock_add_rule"} <= plain
    assert not {"mount", "bpf", "keyctl", "io_uring_setup", "userfaultfd", "clone", "clone3", "chroot", "reboot", "setns"} & plain
    admin = allowed(default_profile(["CAP_SYS_ADMIN"], LINUX, "x86_64"))
    assert admin - plain >= {"mount", "bpf", "clone", "clone3", "unshare", "setns"}
    assert allowed(default_profile(["CAP_SYS_CHROOT"], LINUX, "x86_64")) - plain == {"chroot"}


def test_kernel_and_architecture() -> None:
    assert "ptrace" not in allowed(default_profile([], (4, 7), "x86_64"))
    assert "ptrace" in allowed(default_profile(["CAP_SYS_PTRACE"], (4, 7), "x86_64"))
    arm = default_profile([], LINUX, "aarch64")
    assert "cacheflush" in allowed(arm)
    assert arm["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    for arch in ("x86_64", "i386", "aarch64", "arm"):
        assert len(compiled(default_profile([], LINUX, arch), arch)) > 0


def test_clone3_says_that_it_does_not_exist() -> None:
    rules = default_profile([], LINUX, "x86_64")["syscalls"]
    assert {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38} in rules


DOCUMENT: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": None},
    ],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "x", "includes": {}, "excludes": {}},
        {"name": "write", "action": "SCMP_ACT_ALLOW"},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
        {"names": ["sync_file_range2"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["ppc64le"]}},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
    ],
}


def names(profile: dict[str, Any]) -> list[str]:
    return [name for rule in profile["syscalls"] for name in rule["names"]]


def test_docker_format() -> None:
    profile = from_docker_json(DOCUMENT, [], LINUX, "x86_64")
    assert profile["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert names(profile) == ["read", "write", "clone3", "arch_prctl", "ptrace", "personality"]
    assert set().union(*profile["syscalls"]) <= {"names", "action", "errnoRet", "args"}
    assert names(from_docker_json(DOCUMENT, ["CAP_SYS_ADMIN"], (4, 4), "x86_64")) == ["read", "write", "mount", "arch_prctl", "personality"]
    assert "arch_prctl" not in names(from_docker_json(DOCUMENT, [], LINUX, "aarch64"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"defaultAction": None}, "no defaultAction"),
        ({"defaultAction": "SCMP_ACT_OTHER"}, "SCMP_ACT_OTHER"),
        ({"architectures": ["SCMP_ARCH_X86"]}, "either architectures or archMap"),
        ({"syscalls": [{"name": "a", "names": ["b"], "action": "SCMP_ACT_ALLOW"}]}, "either name or names"),
        ({"syscalls": [{"names": ["b"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}}]}, "MAJOR.MINOR"),
        ({"syscalls": {"a": 1}}, "not a list"),
        ({"syscalls": [1]}, "not an object"),
        ({"syscalls": [{"names": [1], "action": "SCMP_ACT_ALLOW"}]}, "not all strings"),
        ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [1]}]}, "argument"),
        ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": 7}]}, "argument"),
        ({"flags": 3}, "flags"),
        ({"archMap": [3]}, "not an object"),
        ({"archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": [3]}]}, "architecture"),
    ],
)
def test_malformed_documents(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        from_docker_json(DOCUMENT | change, [], LINUX, "x86_64")
