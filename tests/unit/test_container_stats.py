"""Docker's stats document out of samples, and the rows of ``top`` out of /proc and ps texts."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any, cast

import pytest

from tare.containers import stats, top
from tare.errors import InvalidArgument
from tare.linux.cgroup.stats import UNLIMITED, BlockEntry, BlockStats, CgroupStats, CpuStats, MemoryStats, PidsStats

SECOND = 1_000_000_000
MACHINE = 8 << 30


def v1_sample(at: int = 1000 * SECOND, cpu: int = 5) -> stats.Sample:
    group = CgroupStats(
        1,
        CpuStats(usage=cpu, user=3, system=2, per_cpu=(4, 1), periods=7, throttled_periods=1, throttled_time=9),
        MemoryStats(usage=4096, max_usage=8192, limit=1 << 20, stat={"cache": 1, "total_inactive_file": 2, "shmem": 3}),
        PidsStats(2, 100),
        BlockStats((BlockEntry(8, 0, "Read", 4096),), (BlockEntry(8, 0, "Read", 1),)),
    )
    return stats.Sample(at, group, 900, 2, {"eth0": stats.NetworkCounters(rx_bytes=10, tx_bytes=20)})


def v2_sample() -> stats.Sample:
    memory = MemoryStats(usage=4096, limit=UNLIMITED, failures=3, stat={"anon": 5, "workingset_refault_file": 2, "zswap": 1})
    return stats.Sample(2000 * SECOND + 5000, CgroupStats(2, CpuStats(usage=9), memory, PidsStats(1)), 900, 2)


def test_v1_document() -> None:
    document = stats.document("abc", "web", v1_sample(1001 * SECOND), v1_sample(), MACHINE)
    assert json.loads(json.dumps(document)) == document
    assert (document["id"], document["name"]) == ("abc", "/web")
    assert (document["read"], document["preread"]) == ("1970-01-01T00:16:41Z", "1970-01-01T00:16:40Z")
    assert document["cpu_stats"] == {
        "cpu_usage": {"total_usage": 5, "percpu_usage": [4, 1], "usage_in_kernelmode": 2, "usage_in_usermode": 3},
        "system_cpu_usage": 900,
        "online_cpus": 2,
        "throttling_data": {"periods": 7, "throttled_periods": 1, "throttled_time": 9},
    }
    assert document["precpu_stats"] == document["cpu_stats"]
    memory = document["memory_stats"]
    assert (memory["usage"], memory["max_usage"], memory["limit"]) == (4096, 8192, 1 << 20)
    assert memory["stats"]["total_inactive_file"] == 2 and "shmem" not in memory["stats"] and "failcnt" not in memory
    assert document["pids_stats"] == {"current": 2, "limit": 100}
    assert document["blkio_stats"]["io_service_bytes_recursive"] == [{"major": 8, "minor": 0, "op": "Read", "value": 4096}]
    assert document["blkio_stats"]["io_queue_recursive"] == []
    assert document["networks"]["eth0"]["rx_bytes"] == 10 and len(document["networks"]["eth0"]) == 8


def test_v2_document() -> None:
    document = stats.document("abc", "/web", v2_sample(), None, MACHINE)
    assert document["read"] == "1970-01-01T00:33:20.000005Z"
    assert document["preread"] == stats.ZERO_TIME
    assert "percpu_usage" not in document["cpu_stats"]["cpu_usage"]
    assert "system_cpu_usage" not in document["precpu_stats"] and document["precpu_stats"]["cpu_usage"]["total_usage"] == 0
    memory = document["memory_stats"]
    assert memory["limit"] == MACHINE and memory["failcnt"] == 3 and "max_usage" not in memory
    assert memory["stats"]["anon"] == 5 and memory["stats"]["workingset_refault"] == 2 and "zswap" not in memory["stats"]
    assert "total_inactive_file" not in memory["stats"] and "inactive_file" in memory["stats"]
    assert document["pids_stats"] == {"current": 1, "limit": 2**64 - 1}
    assert document["blkio_stats"]["io_service_bytes_recursive"] is None
    assert "networks" not in document


def test_stopped_container() -> None:
    document = stats.document("abc", "web", None, v1_sample(), MACHINE)
    assert document["read"] == document["preread"] == stats.ZERO_TIME
    assert document["memory_stats"] == document["pids_stats"] == {}
    assert document["precpu_stats"]["cpu_usage"] == {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}
    assert "networks" not in document


def test_proc_stat() -> None:
    text = "cpu  10 20 30 40 50 60 70 80 90 100\ncpu0 1 1\ncpu3 1 1\nintr 5\ncpu9 no\n"
    assert stats.parse_proc_stat(text.splitlines()) == (280 * SECOND // os.sysconf("SC_CLK_TCK"), 2)


def test_net_dev() -> None:
    text = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:1000 2 3 4 0 0 0 0 5000 6 7 8 0 0 0 0
"""
    assert stats.parse_net_dev(text.splitlines()) == {"eth0": stats.NetworkCounters(1000, 2, 3, 4, 5000, 6, 7, 8)}


# -------------------------------------------------------------------------------------------------------------------------- top

STAT = b"42 (a) (b ) S 7 42 42 34817 42 0 0 0 0 0 350 150 0 0 20 0 1 0 1000 0 0 0"


def row(stat: bytes = STAT, command: bytes = b"sh\0-c\0x\ny\0", now: float = 1_700_000_100.0) -> list[str]:
    return top.format_process(42, "root", stat, command, now, booted=1_700_000_000, ticks=100)


def test_row() -> None:
    assert row()[:4] == ["root", "42", "7", "5"]
    assert row()[5:] == ["pts/1", "00:00:05", "sh -c x?y"]


def test_row_without_command_line() -> None:
    assert row(command=b"")[-1] == "[a) (b ]"
    assert row(STAT.replace(b") S", b") Z"), b"")[-1] == "[a) (b ] <defunct>"


def test_times() -> None:
    now = 1_700_000_000.0
    assert top.cpu_time(93784) == "1-02:03:04" and top.cpu_time(59) == "00:00:59"
    assert len(top.start_time(now, now)) == 5 and ":" in top.start_time(now, now)
    assert top.start_time(now - 40 * 86400, now)[:3] in ("Oct", "Sep")
    assert top.start_time(now - 400 * 86400, now) == "2022"


@pytest.mark.parametrize(
    ("device", "name"), [((0, 0), "?"), ((4, 1), "tty1"), ((4, 64), "ttyS0"), ((137, 0), "pts/256"), ((5, 1), "console")]
)
def test_terminal(device: tuple[int, int], name: str) -> None:
    assert top.terminal(os.makedev(*device)) == name


def test_ps_output_is_filtered() -> None:
    output = "PID  COMMAND\n 10  a b  c\n 11 d\n\n -  thread\n 12 e\n"
    assert top.parse_ps(output, {11, 12}) == (["PID", "COMMAND"], [["11", "d"], ["-", "thread"], ["12", "e"]])


def test_ps_output_without_pids() -> None:
    with pytest.raises(InvalidArgument, match="couldn't find PID field in ps output"):
        top.parse_ps("COMMAND\nx\n", {1})
    with pytest.raises(InvalidArgument, match="unexpected pid 'x'"):
        top.parse_ps("PID COMMAND\nx y\n", {1})


@pytest.mark.parametrize("arguments", ["-o comm=PID", "ax -o comm=PIDX,pid"])
def test_a_forged_pid_column_is_refused(arguments: str) -> None:
    with pytest.raises(InvalidArgument, match="is not allowed"):
        top.check_arguments(arguments)


def test_the_real_pid_column_may_be_named() -> None:
    top.check_arguments("-o pid=PID,comm")


def test_top_of_a_real_process() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        found = asyncio.run(top.top([child.pid, 2**22 - 1], child.pid))
        assert found["Titles"] == top.TITLES
        [process] = found["Processes"]
        assert process[1:3] == [str(child.pid), str(os.getpid())] and process[-1].endswith("-c input()")
    finally:
        child.communicate()


@pytest.mark.skipif(not os.access("/bin/ps", os.X_OK), reason="needs ps")
async def test_top_with_own_arguments() -> None:
    found = await top.top([os.getpid()], os.getpid(), "-o pid,comm")
    assert found["Titles"] == ["PID", "COMMAND"]
    assert [process[0] for process in found["Processes"]] == [str(os.getpid())]
    with pytest.raises(InvalidArgument, match="ps: error"):
        await top.top([os.getpid()], os.getpid(), "--nonsense")


class FakeContainer:
    """A container that does not run."""

    def __init__(self, name: str) -> None:
        self.id = name
        self.task = None
        self.has_task = False


def test_rounds_measure_every_watched_container_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    real = stats._sample_all

    def count(targets: Any) -> Any:
        measured.append(len(targets))
        return real(targets)

    monkeypatch.setattr(stats, "_sample_all", count)

    async def run() -> None:
        rounds = stats.Rounds(cast(Any, None), interval=0.05)
        one, other = cast(Any, FakeContainer("one")), cast(Any, FakeContainer("other"))
        first, again, second = rounds.next(one), rounds.next(one), rounds.next(other)
        assert first is again
        assert await asyncio.gather(first, second) == [None, None] and measured == [2]
        assert rounds.next(one) is not first
        assert 0 <= rounds.head_start() < 0.025
        await rounds.next(one)
        assert measured == [2, 1]

    asyncio.run(run())


def test_a_failing_round_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(targets: Any) -> Any:
        raise PermissionError("no")

    monkeypatch.setattr(stats, "_sample_all", fail)

    async def run() -> None:
        rounds = stats.Rounds(cast(Any, None), interval=0.01)
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        assert await rounds.next(cast(Any, FakeContainer("one"))) is None
        await asyncio.sleep(0.02)

    asyncio.run(run())
