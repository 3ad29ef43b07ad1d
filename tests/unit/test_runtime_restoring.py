"""From a start's plan to a restore's, and what is read out of mounts and of criu's log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tare.linux.mountinfo import parse
from tare.runtime import criu, lowering
from tare.runtime.plan import Plan, StdioPlan
from tare.runtime.restoring import Restore, refusal, restore_plan
from tare.runtime.steps import mounts, namespaces, restore

HOST = """\
24 1 254:0 / / rw - ext4 /dev/vda rw
25 24 0:6 / /dev rw - devtmpfs devtmpfs rw
29 24 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
"""
CONTAINER = """\
85 128 0:51 / /proc rw - proc proc rw
86 128 0:52 / /dev rw - tmpfs tmpfs rw
122 128 254:0 /srv/a\\040b /data rw - ext4 /dev/vda rw
128 92 0:57 / / rw - overlay overlay rw
129 88 0:60 / /sys/fs/cgroup ro - tmpfs tmpfs rw
130 129 0:29 /x /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu
145 85 0:6 /null /proc/keys rw - devtmpfs devtmpfs rw
"""


def plan(tty: bool = False, **linux: Any) -> Plan:
    config = {
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "/srv/a b", "options": ["rbind", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
        ],
        "process": {"args": ["true"], "user": {"uid": 0, "gid": 0}},
        "linux": {
            "namespaces": [{"type": name} for name in ("mount", "pid", "network", "uts", "ipc", "cgroup")],
            "maskedPaths": ["/proc/keys"],
            "sysctl": {"net.ipv4.ip_forward": "1", "kernel.msgmax": "5"},
            **linux,
        },
        "root": {"readonly": True},
    }
    around = lowering.Surroundings(
        run_dir="/run/t/c",
        root=lowering.OverlayRootPlan(("/l",), "/u", "/w"),
        stdio=StdioPlan(tty=tty),
        cgroup="/tare/c",
        v1_hierarchies=(("/sys/fs/cgroup/cpu", "cpu"),),
    )
    return lowering.lower("c" * 64, config, around)


def record() -> dict[str, Any]:
    mine = parse(CONTAINER.splitlines(keepends=True))
    return {
        "version": criu.VERSION,
        "mounts": [entry.path for entry in mine if entry.path != "/"],
        "external": criu.external_mounts(parse(HOST.splitlines(keepends=True)), mine),
        "streams": {"stdout": "pipe:[7]", "stderr": "pipe:[8]"},
        "null": ["file[18:3]"],
        "network": True,
    }


def test_what_comes_from_the_host_is_staged_and_the_rest_is_left_to_criu() -> None:
    assert record()["external"] == ["/data", "/proc/keys", "/sys/fs/cgroup/cpu"]
    found = restore_plan(plan(), Restore("/usr/sbin/criu", "/images", "/work", record()))
    assert found.keeper.pid_namespace == "own"
    steps = {type(item): item for item in found.steps}
    assert steps[mounts.OpenSources].sources == (
        ("/0", "/srv/a b", True, ""),
        ("/1", "/dev/null", False, ""),
        ("/2", "/sys/fs/cgroup/cpu/tare/c", False, ""),
    )
    assert [item.destination for item in found.steps if isinstance(item, mounts.BindMount)] == ["/0", "/1", "/2"]
    assert not any(isinstance(item, mounts.MountFilesystem) for item in found.steps)
    assert steps[mounts.MountOverlayRoot].anchor == "/run/t/c/root"
    assert steps[restore.CheckMountPoints].points == (
        ("", "/proc", ""),
        ("", "/dev", ""),
        ("", "/data", "0"),
        ("", "/sys/fs/cgroup", ""),
    )
    last = found.steps[-1]
    assert isinstance(last, restore.RestoreProcesses) and last.readonly and last.network
    assert last.external == {"/data": "0", "/proc/keys": "1", "/sys/fs/cgroup/cpu": "2"}
    assert last.streams == ("", "pipe:[7]", "pipe:[8]")
    assert any("net.ipv4.ip_forward=1" in line and "msgmax" not in line for line in found.describe())
    order = [type(item) for item in found.steps]
    # The cgroup exists before its files are opened, and the stage before anything is put on it.
    assert order.index(namespaces.WaitForCgroup) < order.index(mounts.OpenSources) < order.index(restore.MakeStage)
    assert Plan.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, "not a checkpoint of this version"),
        ({"external": ["/elsewhere"]}, "a mount on /elsewhere that the container does not have"),
        ({"external": "x"}, "external is not a list"),
        ({"mounts": ["a\0b"]}, "mounts is not a list"),
        ({"streams": []}, "streams is not a map"),
        ({"network": False}, "another network mode"),
    ],
)
def test_records_that_do_not_fit(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        restore_plan(plan(), Restore("/criu", "/images", "/work", record() | change))


def test_what_cannot_be_checkpointed() -> None:
    assert refusal(plan()) == ""
    assert "terminal" in refusal(plan(tty=True))
    assert "pid namespace" in refusal(plan(sysctl={}, namespaces=[{"type": "mount"}]))
    assert "another container" in refusal(
        plan(sysctl={}, namespaces=[{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/proc/1/ns/net"}])
    )


def test_criu_is_told_of_everything_by_one_name() -> None:
    made = criu.restore_command("/criu", "/images", "/work", "/run/root", {"/data": "/run/0"}, [(5, "pipe:[7]")])
    assert made[made.index("--external") :][:2] == ["--external", "mnt[/data]:/run/0"]
    assert made[-2:] == ["--inherit-fd", "fd[5]:pipe:[7]"]


def test_criu_s_own_reason_is_given(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text(
        "(00.01) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
        "(00.02) Error (criu/sk-inet.c:188): inet: no such thing\n(00.03) Error (criu/cr-dump.c:2111): Dumping FAILED.\n"
    )
    assert criu.explain(str(log), 1) == f"criu failed: inet: no such thing (log file: {log})"
    assert criu.explain(str(tmp_path / "none"), 9) == f"criu failed with exit status 9 (log file: {tmp_path}/none)"
    assert criu.explain(str(log), 127) == "criu cannot be executed"
