"""Lowering is pure: a configuration gives this plan, the plan survives a trip through JSON, and what cannot be done is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tare.linux.constants import MOUNT_ATTR_NOATIME, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_RDONLY, MS_REC, MS_SHARED
from tare.runtime import lowering, mount_options
from tare.runtime.plan import ExecPlan, LogPlan, Plan, StdioPlan
from tare.runtime.stdio import DetachKeys
from tare.runtime.steps.process import DropPrivileges, LoadSeccomp, NoNewPrivileges

KINDS = ("mount", "network", "uts", "pid", "ipc", "cgroup")


def config(**linux: Any) -> dict[str, Any]:
    return {
        "process": {"args": ["sh", "-c", "true"], "cwd": "/work", "env": ["A=b"], "capabilities": {"bounding": ["CAP_KILL"]}},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
            {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "ro", "rshared"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in KINDS], "maskedPaths": ["/proc/kcore"]} | linux,
    }


def surroundings(**fields: Any) -> lowering.Surroundings:
    root = lowering.OverlayRootPlan(("/layers/2", "/layers/1"), "/c/upper", "/c/work")
    return lowering.Surroundings("/run/c", root, cgroup="/tare/c", user="", **fields)


GOLDEN = """\
keeper: make cgroup /tare/c
keeper: enter a new pid namespace and fork the init as its process 1
keeper: make veth veth1 on bridge tare0, its peer eth0 in the container
keeper: log output as json-file to /c/log
init: start a new session
init: enter new namespaces: mnt net uts ipc
init: tell the keeper that the namespaces exist
init: open bind sources: /srv
init: set propagation of the whole tree to 0x40000
init: mount the root: overlay of 2 layers under /c/upper
init: mount tmpfs on /dev (mode=755,size=65536k)
init: make devices: /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty
init: link /dev/fd, stdin, stdout, stderr, core, ptmx
init: mount proc on /proc
init: bind /srv on /data read-only
init: wait to be in the cgroup, enter a new cgroup namespace
init: bring up lo
init: configure eth0: 10.0.0.2/24 via 10.0.0.1
init: mask: /proc/kcore
init: move into the new root
init: set host name 'box'
init: look up user '0'
init: make working directory /work
init: connect standard input, output and error
init: close every descriptor above 2 on exec
init: become the user; capabilities bounding 0x20, effective 0x0, inheritable 0
init: change to /work
init: find 'sh'
init: execute the program"""


def test_golden() -> None:
    link = lowering.Link("veth1", "tare0", "eth0", "02:42:0a:00:00:02", 1500, ("10.0.0.2/24",), ("10.0.0.1",))
    plan = lowering.lower("c", config(), surroundings(links=(link,), log=LogPlan("json-file", "/c/log")))
    assert "\n".join(plan.describe()) == GOLDEN


def test_round_trip() -> None:
    joined = [{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "network", "path": "/proc/1/ns/net"}]
    asked = config(
        namespaces=[*joined, *({"type": kind} for kind in ("mount", "user", "uts", "ipc"))],
        uidMappings=[{"containerID": 0, "hostID": 1000, "size": 5}],
        gidMappings=[{"containerID": 0, "hostID": 1000, "size": 5}],
        resources={"memory": {"limit": 1}},
        sysctl={"kernel.msgmax": "1"},
        readonlyPaths=["/proc/sys"],
        devices=[{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o600}],
        seccomp={"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read", "exit"], "action": "SCMP_ACT_ALLOW"}]},
    )
    asked["process"] |= {"rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}], "oomScoreAdj": 5, "noNewPrivileges": True}
    plan = lowering.lower("c", asked, surroundings(stdio=StdioPlan(tty=True), hold=True))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert not lowering.fits_spare(plan)
    exec_plan = lowering.lower_exec("e", asked["process"], StdioPlan(tty=True), plan.exec_defaults, user="bob", additional_groups=("x",))
    assert ExecPlan.from_json(json.loads(json.dumps(exec_plan.to_json()))) == exec_plan
    assert any(isinstance(step, LoadSeccomp) for step in exec_plan.steps)


def test_seccomp_comes_before_privileges_are_dropped_unless_no_new_privileges() -> None:
    seccomp = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}]}
    kinds = [type(step) for step in lowering.lower("c", config(seccomp=seccomp), surroundings()).steps]
    assert kinds.index(LoadSeccomp) < kinds.index(DropPrivileges)
    asked = config(seccomp=seccomp)
    asked["process"]["noNewPrivileges"] = True
    kinds = [type(step) for step in lowering.lower("c", asked, surroundings()).steps]
    assert kinds.index(DropPrivileges) < kinds.index(NoNewPrivileges) < kinds.index(LoadSeccomp)


def test_privileged_exec_has_all_capabilities_and_no_filter() -> None:
    defaults = {"kinds": ("mnt",), "seccomp": "AAAA", "flags": 0}
    plan = lowering.lower_exec("e", {"args": ["x"]}, StdioPlan(), defaults, user="", privileged=True)
    assert not any(isinstance(step, LoadSeccomp) for step in plan.steps)
    drop = next(step for step in plan.steps if isinstance(step, DropPrivileges))
    assert drop.effective == drop.permitted == drop.bounding == (1 << 41) - 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"process": {"args": []}}, "args must not be empty"),
        ({"process": {"args": ["x"], "cwd": "relative"}}, "absolute"),
        ({"process": {"args": ["x"], "rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}}, "RLIMIT_X"),
        ({"process": {"args": ["x"], "capabilities": {"bounding": ["CAP_NOPE"]}}}, "CAP_NOPE"),
        ({"linux": {"namespaces": []}}, "mount namespace"),
        ({"linux": {"namespaces": [{"type": "mount"}, {"type": "time"}]}}, "time"),
        ({"linux": {"namespaces": [{"type": "mount"}]}}, "hostname"),
        ({"mounts": [{"destination": "/", "type": "tmpfs"}]}, "destination"),
        ({"mounts": [{"destination": "/x", "type": "bind", "source": "relative"}]}, "absolute"),
        ({"mounts": [{"destination": "/x", "type": "bind", "source": "/x", "options": ["idmap"]}]}, "idmap"),
        ({"mounts": [{"destination": "/x", "type": "ext4", "source": "/dev/sda"}]}, "ext4"),
    ],
)
def test_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        lowering.lower("c", config() | change, surroundings())


def test_mount_options() -> None:
    options = mount_options.parse(["rbind", "ro", "rnoexec", "noatime", "rshared", "size=1", "rw", "defaults"])
    assert options.bind
    assert options.recursive
    assert options.add == MOUNT_ATTR_NOATIME
    assert options.clear & MOUNT_ATTR_RDONLY
    assert options.add_recursive == MOUNT_ATTR_NOEXEC
    assert options.propagation == MS_SHARED | MS_REC
    assert options.data == ("size=1",)


@pytest.mark.parametrize(
    ("chunks", "passed", "left"),
    [
        ([b"abc"], b"abc", False),
        ([b"a\x10", b"\x11b"], b"a", True),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x10", b"x\x10", b"y"], b"\x10x\x10y", False),
    ],
)
def test_detach_keys(chunks: list[bytes], passed: bytes, left: bool) -> None:
    keys = DetachKeys(b"\x10\x11")
    results = [keys.feed(chunk) for chunk in chunks]
    assert b"".join(data for data, _ in results) == passed
    assert results[-1][1] is left
