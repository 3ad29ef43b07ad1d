"""Control groups against the running kernel, whatever its layout; in the suite's virtual machine also on pure v2 (tests/vm)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tare.linux.cgroup.detect import Layout, detect
from tare.linux.cgroup.favor import fast_migration
from tare.linux.cgroup.group import Cgroup

pytestmark = pytest.mark.root

Spawn = Callable[..., "subprocess.Popen[bytes]"]

MEGABYTE = 1 << 20
DOCKER_DEVICES = [
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *({"allow": True, "type": "c", "major": 1, "minor": minor, "access": "rwm"} for minor in (3, 5, 8, 9)),
]


@pytest.fixture(scope="module")
def layout() -> Layout:
    return detect()


@pytest.fixture
def parent(layout: Layout) -> Iterator[str]:
    path = f"/tare-test-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    yield path
    group = Cgroup(layout, path)
    group.kill()
    group.empty(seconds=5)
    group.remove()
    assert not group.exists()


@pytest.fixture
def group(layout: Layout, parent: str) -> Cgroup:
    made = Cgroup(layout, f"{parent}/c1")
    made.create()
    return made


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start a process that waits for a line, joins groups, and then becomes ``argv``."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: str) -> subprocess.Popen[bytes]:
        shell = ["/bin/sh", "-c", 'read line && exec "$@"', "sh", *argv]
        process = subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def go(group: Cgroup, process: subprocess.Popen[bytes]) -> None:
    group.attach(process.pid)
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()


def value(group: Cgroup, v1_controller: str, v1_file: str, v2_file: str) -> str:
    """What the kernel says in the file of either version."""
    hierarchy = group.layout.hierarchy(v1_controller)
    if hierarchy is None or hierarchy.version == 2:
        assert group.layout.unified is not None
        return Path(group.layout.unified.mount + group.path, v2_file).read_text().strip()
    return Path(hierarchy.mount + group.path, v1_file).read_text().strip()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_layout_has_what_a_container_host_needs(layout: Layout) -> None:
    assert {"memory", "pids", "cpu", "cpuset"} <= layout.controllers
    if os.environ.get("TARE_VM"):
        assert layout.mode == "v2"


def test_created_everywhere_and_removed_everywhere(group: Cgroup) -> None:
    assert all(os.path.isdir(path) for path in group.directories())
    group.remove()
    group.remove()
    assert not any(os.path.isdir(path) for path in group.directories())


def test_attach_joins_every_hierarchy(group: Cgroup, spawn: Spawn) -> None:
    process = spawn("/bin/sleep", "100")
    go(group, process)
    paths = {line.split(":", 2)[2] for line in Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()}
    assert paths == {group.path}
    assert group.pids() == [process.pid]


def test_attach_by_descriptor(group: Cgroup) -> None:
    descriptors = group.open_procs()
    child = os.fork()
    if child == 0:
        for descriptor in descriptors:
            os.write(descriptor, b"0")
        signal.pause()
    try:
        for descriptor in descriptors:
            os.close(descriptor)
        eventually(lambda: group.pids() == [child] and all(_in(path, child) for path in group.procs_paths()))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _in(path: str, pid: int) -> bool:
    return str(pid) in Path(path).read_text().split()


def test_attach_of_a_dead_process_names_it(group: Cgroup, spawn: Spawn) -> None:
    process = spawn("/bin/true")
    process.kill()
    process.communicate()
    with pytest.raises(ProcessLookupError, match=f"process {process.pid}"):
        group.attach(process.pid)


def test_limits_reach_the_kernel(group: Cgroup) -> None:
    warnings = group.apply(
        {
            "memory": {"limit": 64 * MEGABYTE, "swap": 96 * MEGABYTE, "reservation": 32 * MEGABYTE},
            "cpu": {"shares": 512, "quota": 50000, "period": 200000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 33},
            "devices": DOCKER_DEVICES,
        }
    )
    assert [warning for warning in warnings if "swap" not in warning] == []
    assert value(group, "memory", "memory.limit_in_bytes", "memory.max") == str(64 * MEGABYTE)
    assert value(group, "memory", "memory.soft_limit_in_bytes", "memory.low") == str(32 * MEGABYTE)
    assert value(group, "pids", "pids.max", "pids.max") == "33"
    assert value(group, "cpuset", "cpuset.cpus", "cpuset.cpus") == "0"
    if group.layout.mode == "v2":
        assert value(group, "cpu", "", "cpu.max") == "50000 200000"
        assert value(group, "cpu", "", "cpu.weight") == "59"
        if not warnings:
            assert value(group, "memory", "", "memory.swap.max") == str(32 * MEGABYTE)
    else:
        assert value(group, "cpu", "cpu.cfs_quota_us", "") == "50000"
        assert value(group, "cpu", "cpu.shares", "") == "512"
        assert value(group, "memory", "memory.memsw.limit_in_bytes", "") == str(96 * MEGABYTE)


@pytest.mark.parametrize("total", [16, 32, 200, 64])
def test_memory_and_swap_move_together_up_and_down(group: Cgroup, total: int) -> None:
    group.apply({"memory": {"limit": 64 * MEGABYTE, "swap": 64 * MEGABYTE}})
    again = Cgroup(group.layout, group.path)  # not fresh, as for an update of a running container
    again.apply({"memory": {"limit": total * MEGABYTE, "swap": total * MEGABYTE}})
    assert value(group, "memory", "memory.limit_in_bytes", "memory.max") == str(total * MEGABYTE)
    again.apply({"memory": {"limit": -1}})
    assert again.stats().memory.limit > 1 << 60


def test_quota_alone_keeps_the_period(group: Cgroup) -> None:
    group.apply({"cpu": {"quota": 20000, "period": 50000}})
    Cgroup(group.layout, group.path).apply({"cpu": {"quota": 30000}})
    if group.layout.mode == "v2":
        assert value(group, "cpu", "", "cpu.max") == "30000 50000"
    else:
        assert value(group, "cpu", "cpu.cfs_period_us", "") == "50000"


def test_nonsense_is_an_error_that_names_file_and_value(group: Cgroup) -> None:
    with pytest.raises(OSError, match=r"'4096-5000'.*cpuset\.cpus"):
        group.apply({"cpu": {"cpus": "4096-5000"}})


def test_unknown_file_of_a_page_size_is_only_a_warning(group: Cgroup) -> None:
    warnings = group.apply({"hugepageLimits": [{"pageSize": "3MB", "limit": 0}]})
    assert any("hugetlb.3MB" in warning for warning in warnings)


def test_pids_limit_stops_a_fork(group: Cgroup, spawn: Spawn) -> None:
    group.apply({"pids": {"limit": 1}})
    process = spawn("/bin/sh", "-c", "/bin/true; echo not reached")
    go(group, process)
    output, _ = process.communicate(timeout=20)
    assert b"ork" in output and b"not reached" not in output
    assert group.stats().pids.limit == 1


def test_a_memory_hog_is_killed_and_counted(group: Cgroup, spawn: Spawn) -> None:
    group.apply({"memory": {"limit": 16 * MEGABYTE, "swap": 16 * MEGABYTE}})
    assert group.oom_kills() == 0
    process = spawn("/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
    go(group, process)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert group.oom_kills() == 1
    assert group.stats().memory.limit == 16 * MEGABYTE


# A regular builtin: the shell goes on when its redirection fails. Its complaints go nowhere, not even to /dev/null.
READ_DEVICES = 'exec 2>&-; for f in null zero full; do if true < "/dev/$f"; then echo "$f yes"; else echo "$f no"; fi; done'


def test_devices_not_allowed_cannot_be_opened(group: Cgroup, spawn: Spawn) -> None:
    rules = [rule for rule in DOCKER_DEVICES if rule.get("minor") != 5]
    group.apply({"devices": rules})
    process = spawn("/bin/sh", "-c", READ_DEVICES)
    go(group, process)
    assert process.communicate(timeout=20)[0].split() == b"null yes zero no full no".split()
    # An update replaces the rules of a running group.
    without_null = {"allow": False, "type": "c", "major": 1, "minor": 3, "access": "rw"}
    Cgroup(group.layout, group.path).apply({"devices": [*DOCKER_DEVICES, without_null]})
    process = spawn("/bin/sh", "-c", READ_DEVICES)
    go(group, process)
    assert process.communicate(timeout=20)[0].split() == b"null no zero yes full no".split()


def test_everything_allowed_but_one(group: Cgroup, spawn: Spawn) -> None:
    group.apply({"devices": [{"allow": True}, {"allow": False, "type": "c", "major": 1, "minor": 7, "access": "r"}]})
    process = spawn("/bin/sh", "-c", READ_DEVICES)
    go(group, process)
    assert process.communicate(timeout=20)[0].split() == b"null yes zero yes full no".split()


def test_frozen_processes_stand_still_and_can_be_killed(group: Cgroup, spawn: Spawn) -> None:
    process = spawn("/bin/sh", "-c", "while :; do :; done")
    go(group, process)
    eventually(lambda: group.stats().cpu.usage > 0)
    group.freeze()
    assert group.frozen()
    used = group.stats().cpu.usage
    time.sleep(0.05)
    assert group.stats().cpu.usage - used < 20_000_000
    group.thaw()
    assert not group.frozen()
    group.freeze()
    group.kill()
    assert process.wait(20) == -signal.SIGKILL
    assert group.empty(seconds=5)


def test_kill_catches_a_forking_crowd_in_subgroups(group: Cgroup, layout: Layout, spawn: Spawn) -> None:
    group.apply({"pids": {"limit": 200}})
    inner = Cgroup(layout, f"{group.path}/inner")
    if layout.mode == "v2":
        for directory in group.directories():
            os.mkdir(f"{directory}/inner")
    else:
        inner.create()
    process = spawn("/bin/sh", "-c", "trap '' TERM INT HUP; while :; do (sleep 0.01; sleep 0.01) & done 2>/dev/null")
    go(inner, process)
    eventually(lambda: len(group.pids()) > 10)
    assert process.pid in group.pids()
    group.kill()
    process.communicate(timeout=20)
    assert group.empty(seconds=10)
    group.remove()
    assert not group.exists()


def test_kill_and_stats_of_a_group_that_is_gone(group: Cgroup) -> None:
    group.remove()
    group.kill()
    with pytest.raises(FileNotFoundError):
        group.stats()


def test_busy_group_is_not_removed(group: Cgroup, spawn: Spawn) -> None:
    process = spawn("/bin/sleep", "100")
    go(group, process)
    with pytest.raises(OSError) as caught:
        group.remove()
    assert caught.value.errno == errno.EBUSY


def test_leftover_is_replaced_but_a_living_group_is_not(group: Cgroup, layout: Layout, spawn: Spawn) -> None:
    group.apply({"pids": {"limit": 5}})
    again = Cgroup(layout, group.path)
    again.create()
    assert again.stats().pids.limit > 5
    process = spawn("/bin/sleep", "100")
    go(again, process)
    with pytest.raises(FileExistsError):
        Cgroup(layout, group.path).create()
    assert again.pids() == [process.pid]


def test_rename(group: Cgroup, layout: Layout, spawn: Spawn, parent: str) -> None:
    process = spawn("/bin/sleep", "100")
    go(group, process)
    if layout.mode == "v2":
        with pytest.raises(OSError, match="cannot be renamed on cgroup v2"):
            group.rename(f"{parent}/c2")
        return
    old = group.directories()
    group.rename(f"{parent}/c2")
    assert group.path == f"{parent}/c2" and group.pids() == [process.pid]
    assert not any(os.path.exists(path) for path in old)
    with pytest.raises(OSError, match="the parent differs"):
        group.rename(f"{parent}/deeper/c2")


def test_rename_to_a_taken_name(group: Cgroup, layout: Layout, parent: str, spawn: Spawn) -> None:
    if layout.mode == "v2":
        pytest.skip("v2 has no rename")
    other = Cgroup(layout, f"{parent}/c2")
    other.create()
    process = spawn("/bin/sleep", "100")
    go(other, process)
    before = group.directories()
    with pytest.raises(FileExistsError):
        group.rename(other.path)
    assert all(os.path.isdir(path) for path in before + other.directories())
    process.kill()
    process.communicate()
    group.rename(other.path)  # only a leftover now
    assert not any(os.path.isdir(path) for path in before)


def test_apply_twice_by_the_same_object(group: Cgroup) -> None:
    group.apply({"cpu": {"quota": 20000, "period": 50000}})
    group.apply({"cpu": {"quota": 30000}})
    if group.layout.mode == "v2":
        assert value(group, "cpu", "", "cpu.max") == "30000 50000"


@pytest.mark.parametrize("path", ["/", "relative", "/a/../b", "/a\n/b", ""])
def test_paths_that_lead_elsewhere_are_refused(layout: Layout, path: str) -> None:
    with pytest.raises(OSError) as caught:
        Cgroup(layout, path)
    assert caught.value.errno == errno.EINVAL


def test_stats_count_work(group: Cgroup, spawn: Spawn) -> None:
    process = spawn("/bin/sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; read line")
    go(group, process)
    eventually(lambda: group.stats().cpu.usage > 1_000_000)
    stats = group.stats()
    assert stats.version == (2 if group.layout.mode == "v2" else 1)
    assert stats.memory.usage > 0 and stats.memory.stat
    assert stats.pids.current == 1


def test_v2_unified_settings(group: Cgroup, layout: Layout) -> None:
    if layout.mode != "v2":
        pytest.skip("needs a cgroup v2 machine; tests/vm has one")
    group.apply({"unified": {"memory.high": "1048576000", "cpu.weight": "7"}})
    assert value(group, "memory", "", "memory.high") == "1048576000"
    assert value(group, "cpu", "", "cpu.weight") == "7"
    with pytest.raises(OSError, match=r"memory\.nonsense"):
        group.apply({"unified": {"memory.nonsense": "1"}})
    with pytest.raises(OSError, match="not the name"):
        group.apply({"unified": {"../memory.max": "1"}})


def test_v2_foreign_processes_in_the_parent_are_an_error(layout: Layout, parent: str, spawn: Spawn) -> None:
    if layout.mode != "v2":
        pytest.skip("needs a cgroup v2 machine; tests/vm has one")
    assert layout.unified is not None
    os.mkdir(layout.unified.mount + parent)
    process = spawn("/bin/sleep", "100")
    Path(layout.unified.mount + parent, "cgroup.procs").write_text(str(process.pid))
    with pytest.raises(OSError, match="processes of its own"):
        Cgroup(layout, f"{parent}/c1").create()
    assert not os.path.exists(f"{layout.unified.mount}{parent}/c1")
    process.kill()
    process.communicate()


def test_v2_check_before_update(group: Cgroup, layout: Layout, spawn: Spawn) -> None:
    if layout.mode != "v2":
        pytest.skip("needs a cgroup v2 machine; tests/vm has one")
    process = spawn("/bin/sleep", "100")
    go(group, process)
    eventually(lambda: group.stats().memory.usage > 0)
    with pytest.raises(OSError, match="below the present usage"):
        group.apply({"memory": {"limit": 4096, "checkBeforeUpdate": True}})


def test_fast_migration_is_harmless() -> None:
    descriptor = fast_migration(f"tare-test-{os.getpid()}")
    if descriptor is not None:
        os.close(descriptor)
