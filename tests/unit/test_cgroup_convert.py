"""OCI resources as file writes, device rules as policies and programs, parsers of statistics: all without a kernel."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.linux import ebpf
from tare.linux.cgroup import apply, convert, devices, files, stats
from tare.linux.cgroup.convert import Write

G = 1 << 30


def pairs(writes: list[Write]) -> list[tuple[str, str]]:
    return [(write.file, write.value) for write in writes]


@pytest.mark.parametrize(
    ("shares", "weight"), [(0, 1), (2, 1), (3, 2), (512, 59), (1024, 100), (2048, 174), (262144, 10000), (300000, 10000)]
)
def test_cpu_weight(shares: int, weight: int) -> None:
    assert convert.cpu_weight(shares) == weight


@given(st.integers(2, 262143))
def test_cpu_weight_is_monotonic_and_in_range(shares: int) -> None:
    assert 1 <= convert.cpu_weight(shares) <= convert.cpu_weight(shares + 1) <= 10000


@pytest.mark.parametrize(("weight", "expected"), [(10, 1), (1000, 10000), (500, 4950)])
def test_io_weight(weight: int, expected: int) -> None:
    assert convert.io_weight(weight) == expected


def test_swap_is_a_total_in_docker_and_a_difference_in_v2() -> None:
    assert convert.swap_limit(3 * G, G) == 2 * G
    assert convert.swap_limit(G, G) == 0
    assert convert.swap_limit(-1, G) == -1
    assert convert.swap_limit(0, G) is None
    with pytest.raises(OSError, match="smaller"):
        convert.swap_limit(G, 2 * G)
    with pytest.raises(OSError, match="needs memory"):
        convert.swap_limit(G, 0)


FULL: dict[str, Any] = {
    "memory": {"limit": G, "swap": 2 * G, "reservation": G // 2, "swappiness": 10, "kernel": 5, "disableOOMKiller": True},
    "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "burst": 1000, "cpus": "0-1", "mems": "0", "idle": 0},
    "pids": {"limit": 100},
    "blockIO": {
        "weight": 100,
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 20}, {"major": 8, "minor": 16, "rate": 30}],
    },
    "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}],
    "rdma": {"mlx5_0": {"hcaHandles": 3, "hcaObjects": 10000}},
}


def test_v1_writes() -> None:
    assert pairs(convert.v1_writes(FULL)) == [
        ("memory.limit_in_bytes", str(G)),
        ("memory.memsw.limit_in_bytes", str(2 * G)),
        ("memory.soft_limit_in_bytes", str(G // 2)),
        ("memory.swappiness", "10"),
        ("memory.oom_control", "1"),
        ("cpu.shares", "1024"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "50000"),
        ("cpu.cfs_burst_us", "1000"),
        ("cpu.idle", "0"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("pids.max", "100"),
        ("blkio.weight", "100"),
        ("blkio.throttle.read_bps_device", "8:0 1000"),
        ("blkio.throttle.write_iops_device", "8:0 20"),
        ("blkio.throttle.write_iops_device", "8:16 30"),
        ("hugetlb.2MB.limit_in_bytes", "4096"),
        ("rdma.max", "mlx5_0 hca_handle=3 hca_object=10000"),
    ]


def test_v2_writes() -> None:
    assert pairs(convert.v2_writes(FULL)) == [
        ("memory.swap.max", str(G)),
        ("memory.max", str(G)),
        ("memory.low", str(G // 2)),
        ("cpu.idle", "0"),
        ("cpu.weight", "100"),
        ("cpu.max", "50000 100000"),
        ("cpu.max.burst", "1000"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("pids.max", "100"),
        ("io.bfq.weight", "100"),
        ("io.max", "8:0 rbps=1000 wiops=20"),
        ("io.max", "8:16 wiops=30"),
        ("hugetlb.2MB.max", "4096"),
        ("rdma.max", "mlx5_0 hca_handle=3 hca_object=10000"),
    ]


@pytest.mark.parametrize(
    "resources", [{}, {"memory": None, "cpu": {}, "pids": None}, {"memory": {"limit": 0, "swap": 0, "swappiness": -1}}]
)
def test_nothing_asked_nothing_written(resources: dict[str, Any]) -> None:
    assert convert.v1_writes(resources) == convert.v2_writes(resources) == []


def test_unlimited() -> None:
    resources = {"memory": {"limit": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}}
    assert pairs(convert.v1_writes(resources)) == [
        ("memory.limit_in_bytes", "-1"),
        ("memory.memsw.limit_in_bytes", "-1"),
        ("cpu.cfs_quota_us", "-1"),
        ("pids.max", "max"),
    ]
    assert pairs(convert.v2_writes(resources)) == [
        ("memory.swap.max", "max"),
        ("memory.max", "max"),
        ("cpu.max", "max 100000"),
        ("pids.max", "max"),
    ]


def test_quota_and_period_share_a_file_on_v2() -> None:
    assert pairs(convert.v2_writes({"cpu": {"period": 50000}}, "20000 100000\n")) == [("cpu.max", "20000 50000")]
    assert pairs(convert.v2_writes({"cpu": {"quota": 10000}}, "20000 40000\n")) == [("cpu.max", "10000 40000")]


@pytest.mark.parametrize("name", ["../memory.max", "memory", "cgroup.procs", ""])
def test_unified_takes_only_files_of_controllers(name: str) -> None:
    with pytest.raises(OSError):
        convert.v2_writes({"unified": {name: "1"}})


def test_unified_needs_v2() -> None:
    with pytest.raises(OSError, match="v2"):
        convert.v1_writes({"unified": {"memory.high": "1"}})


# ------------------------------------------------------------------------------------------------------------------ carrying out


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A pretended kernel: what was written, and which errors a file gives, in turn."""
    state: dict[str, Any] = {"written": [], "errors": {}}

    def write(directory: str, file: str, value: str) -> None:
        pending = state["errors"].get(file)
        if pending and (number := pending.pop(0)):
            raise OSError(number, "refused", file)
        state["written"].append((file, value))

    monkeypatch.setattr(files, "write", write)
    return state


def test_a_refused_member_of_a_pair_is_tried_again_last(kernel: dict[str, Any]) -> None:
    kernel["errors"] = {"memory.limit_in_bytes": [22]}
    assert apply.run(convert.v1_writes({"memory": {"limit": 2 * G, "swap": 2 * G}}), lambda _: "/g") == []
    assert [file for file, _ in kernel["written"]] == ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]


def test_refused_twice_is_an_error(kernel: dict[str, Any]) -> None:
    kernel["errors"] = {"memory.limit_in_bytes": [22, 22]}
    with pytest.raises(OSError):
        apply.run(convert.v1_writes({"memory": {"limit": 2 * G, "swap": 2 * G}}), lambda _: "/g")


@pytest.mark.parametrize("number", [1, 13, 30, 2])
def test_what_the_host_forbids_or_lacks_is_a_warning(kernel: dict[str, Any], number: int) -> None:
    kernel["errors"] = {"pids.max": [number]}
    warnings = apply.run(convert.v1_writes({"pids": {"limit": 5}, "cpu": {"shares": 5}}), lambda _: "/g")
    assert len(warnings) == 1 and "pids.max" in warnings[0] and "'5'" in warnings[0]
    assert kernel["written"] == [("cpu.shares", "5")]


@pytest.mark.parametrize("number", [16, 22, 34, 28])
def test_what_cannot_be_is_an_error(kernel: dict[str, Any], number: int) -> None:
    kernel["errors"] = {"pids.max": [number]}
    with pytest.raises(OSError):
        apply.run(convert.v1_writes({"pids": {"limit": 5}}), lambda _: "/g")


def test_second_name_of_a_file(kernel: dict[str, Any]) -> None:
    kernel["errors"] = {"io.bfq.weight": [2]}
    assert apply.run(convert.v2_writes({"blockIO": {"weight": 1000}}), lambda _: "/g") == []
    assert kernel["written"] == [("io.weight", "default 10000")]


def test_missing_controller(kernel: dict[str, Any]) -> None:
    assert "no pids controller" in apply.run(convert.v1_writes({"pids": {"limit": 5}}), lambda _: None)[0]
    with pytest.raises(OSError, match="memory controller"):
        apply.run(convert.v2_writes({"unified": {"memory.high": "1"}}), lambda _: None)


# ---------------------------------------------------------------------------------------------------------------------- devices

DENY_ALL = {"allow": False, "access": "rwm"}
NULL = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}


def test_policy_starts_denied_and_a_rule_for_all_resets_it() -> None:
    assert devices.Policy.of([NULL]) == devices.Policy.of([DENY_ALL, NULL])
    assert devices.Policy.of([NULL, {"allow": True}]) == devices.Policy(allow=True)
    assert devices.Policy.of([NULL, {**NULL, "allow": False, "access": "m"}]).exceptions == {("c", 1, 3): frozenset("rw")}


def test_partial_override_is_refused() -> None:
    with pytest.raises(OSError, match="different rule"):
        devices.Policy.of([{"allow": True, "type": "c", "access": "rwm"}, {**NULL, "allow": False}])


@pytest.mark.parametrize("bad", [{"type": "x"}, {"access": "q"}, {"type": "c", "major": -7}, {"type": "c", "minor": 2**40}])
def test_malformed_rules(bad: dict[str, Any]) -> None:
    with pytest.raises(OSError, match="device rule"):
        devices.Policy.of([{"allow": True, **bad}])


def test_v1_lines() -> None:
    target = devices.Policy.of([DENY_ALL, NULL, {"allow": True, "type": "c", "major": 136, "access": "rw"}])
    assert devices.v1_writes(target) == [("devices.deny", "a"), ("devices.allow", "c 1:3 rwm"), ("devices.allow", "c 136:* rw")]
    assert devices.v1_writes(devices.Policy(allow=True)) == [("devices.allow", "a")]


def test_v1_update_writes_only_the_difference() -> None:
    present = devices.parse_list("c *:* m\nc 1:3 rwm\nc 1:5 rwm\n")
    every = {"allow": True, "type": "c", "access": "m"}
    target = devices.Policy.of([every, NULL, {**NULL, "minor": 8}, {**NULL, "minor": 5, "access": "r"}])
    assert devices.v1_writes(target, present) == [("devices.deny", "c 1:5 wm"), ("devices.allow", "c 1:8 rwm")]
    assert devices.parse_list("a *:* rwm\n").allow


ACCESS = {1: "m", 2: "r", 4: "w"}


def execute(program: bytes, access: int, kind: int, major: int, minor: int) -> int:
    """A tiny eBPF interpreter: enough to check what the programs answer."""
    code = [struct.unpack_from("<BBhI", program, offset) for offset in range(0, len(program), 8)]
    memory = {0: access << 16 | kind, 4: major, 8: minor}
    registers = {1: 0}
    at = 0
    while True:
        operation, names, offset, immediate = code[at]
        target, source = names & 15, names >> 4
        at += 1
        match operation:
            case 0x61:
                registers[target] = memory[registers[source] + offset]
            case 0xBF:
                registers[target] = registers[source]
            case 0xB7:
                registers[target] = immediate
            case 0x57:
                registers[target] &= immediate
            case 0x77:
                registers[target] >>= immediate
            case 0x16:
                at += offset if registers[target] == immediate else 0
            case 0x56:
                at += offset if registers[target] != immediate else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(hex(operation))


numbers = st.sampled_from([devices.ANY, 0, 1, 3, 2**32 - 1])
nodes = st.tuples(st.sampled_from("bc"), numbers, numbers)
accesses = st.frozensets(st.sampled_from("rwm"), min_size=1)


@given(
    st.builds(devices.Policy, st.booleans(), st.dictionaries(nodes, accesses, max_size=5)),
    st.integers(1, 7),
    st.sampled_from([1, 2]),
    st.sampled_from([0, 1, 3, 7, 2**32 - 1]),
    st.sampled_from([0, 1, 3, 7, 2**32 - 1]),
)
def test_program_answers_as_the_policy(policy: devices.Policy, access: int, kind: int, major: int, minor: int) -> None:
    asked = {letter for bit, letter in ACCESS.items() if access & bit}

    def covers(node: devices.Node) -> bool:
        return node[0] == " bc"[kind] and node[1] in (devices.ANY, major) and node[2] in (devices.ANY, minor)

    if policy.allow:
        expected = not any(covers(node) and held & asked for node, held in policy.exceptions.items())
    else:
        expected = any(covers(node) and asked <= held for node, held in policy.exceptions.items())
    assert execute(ebpf.assemble(policy), access, kind, major, minor) == expected


# ------------------------------------------------------------------------------------------------------------------- statistics


def test_limits() -> None:
    assert stats.parse_limit("max\n") == stats.parse_limit("9223372036854771712\n") == stats.parse_limit("") == stats.UNLIMITED
    assert stats.parse_limit("4096\n") == 4096


def test_io_stat() -> None:
    text = "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=5\n253:0\n"
    block = stats.parse_io_stat(text)
    assert block.service_bytes == ((8, 0, "read", 10), (8, 0, "write", 20), (8, 16, "read", 5))
    assert block.serviced == ((8, 0, "read", 1), (8, 0, "write", 2))


def test_v1_block() -> None:
    assert stats.parse_v1_block("8:0 Read 4096\n8:0 Write 0\nTotal 4096\n") == ((8, 0, "Read", 4096), (8, 0, "Write", 0))


def test_v2_sample_of_a_group_without_controllers() -> None:
    sample = stats.read_v2(lambda _controller, file: "usage_usec 5\nuser_usec 3\nsystem_usec 2\n" if file == "cpu.stat" else "")
    assert sample.cpu.usage == 5000 and sample.memory.limit == stats.UNLIMITED and sample.pids.current == 0
