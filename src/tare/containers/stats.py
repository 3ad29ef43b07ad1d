"""Resource use of a container as ``GET /containers/{id}/stats`` gives it.

Two halves. ``Sample`` is what was measured at one moment; ``document`` is a pure function of two samples that knows Docker's names. A
client reckons the share of the processors from both (docker's CLI: Δcontainer / Δsystem × online processors), so a document carries the
earlier sample's processor figures as ``precpu_stats``:

- stream: one document per second, the first without an earlier sample, each later one with that of the document before;
- no stream: two samples a second apart, so that ``precpu_stats`` is filled;
- one-shot: one sample, at once.

A container that does not run has a document of zeros; a stream goes on over its stops and starts and ends when it is removed.
``memory_stats.stats`` has other keys on cgroup v1 than on v2; clients tell the two apart by them, so the sets are dockerd's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tare.linux.cgroup.stats import UNLIMITED, BlockEntry, CgroupStats
from tare.runtime.jsonlog import rfc3339

if TYPE_CHECKING:
    from tare.containers.container import Container
    from tare.containers.service import Containers
    from tare.linux.cgroup.group import Cgroup

ZERO_TIME = "0001-01-01T00:00:00Z"
INTERVAL = 1.0

_NANOSECONDS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_V2_UNLIMITED_PIDS = 2**64 - 1

_V1_MEMORY = """active_anon active_file cache dirty inactive_anon inactive_file mapped_file pgfault pgmajfault pgpgin pgpgout rss rss_huge
unevictable writeback""".split()
_V1_KEYS = tuple(sorted(["hierarchical_memory_limit", "hierarchical_memsw_limit", *_V1_MEMORY, *(f"total_{key}" for key in _V1_MEMORY)]))
_V2_KEYS = tuple(
    """active_anon active_file anon anon_thp file file_dirty file_mapped file_writeback inactive_anon inactive_file kernel_stack pgactivate
    pgdeactivate pgfault pglazyfree pglazyfreed pgmajfault pgrefill pgscan pgsteal shmem slab slab_reclaimable slab_unreclaimable sock
    thp_collapse_alloc thp_fault_alloc unevictable workingset_activate workingset_nodereclaim workingset_refault""".split()
)


@dataclass(frozen=True)
class NetworkCounters:
    """One interface, seen from inside the container."""

    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


@dataclass(frozen=True)
class Sample:
    """What was measured at ``read_at`` (nanoseconds since the epoch). ``system_cpu``: processor time of the whole machine, nanoseconds."""

    read_at: int
    cgroup: CgroupStats
    system_cpu: int
    online_cpus: int
    networks: Mapping[str, NetworkCounters] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------------------ measuring


def take_sample(cgroup: Cgroup, pid: int | None) -> Sample:
    """Measure now. ``pid``: a process in the container's network namespace, None to leave interfaces out. Raises ``FileNotFoundError`` when
    the container has ended. Blocking, for a fraction of a millisecond."""
    return _sample(cgroup, pid, *_machine_time())


def _machine_time() -> tuple[int, int]:
    with open("/proc/stat", encoding="ascii") as stream:
        return parse_proc_stat(stream)


def _sample(cgroup: Cgroup, pid: int | None, system: int, online: int) -> Sample:
    networks: Mapping[str, NetworkCounters] = {}
    if pid is not None:
        try:
            with open(f"/proc/{pid}/net/dev", encoding="utf-8", errors="replace") as stream:
                networks = parse_net_dev(stream)
        except OSError:
            networks = {}  # it ended between two reads; the next sample says so
    return Sample(time.time_ns(), cgroup.stats(), system, online, networks)


def parse_proc_stat(lines: Iterable[str]) -> tuple[int, int]:
    """(processor time of the machine in nanoseconds, number of online processors) from /proc/stat. Guest time is part of user time."""
    ticks, online = 0, 0
    for line in lines:
        if not line.startswith("cpu"):
            break  # the lines that follow are long and of no interest here
        label, *values = line.split()
        if label == "cpu":
            ticks = sum(map(int, values[:7]))
        else:
            online += 1
    return ticks * _NANOSECONDS_PER_TICK, online


def parse_net_dev(lines: Iterable[str]) -> dict[str, NetworkCounters]:
    """Interfaces but the loopback from /proc/PID/net/dev."""
    found = {}
    for line in lines:
        name, colon, rest = line.partition(":")
        values = rest.split()
        if not colon or len(values) < 12 or (name := name.strip()) == "lo":
            continue
        numbers = list(map(int, values))
        found[name] = NetworkCounters(*numbers[0:4], *numbers[8:12])
    return found


def machine_memory() -> int:
    """Bytes of memory of this machine: the limit of a container that has none."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# ------------------------------------------------------------------------------------------------------------------- document


def document(container_id: str, name: str, now: Sample | None, before: Sample | None, memory: int) -> dict[str, Any]:
    """Docker's document for one moment. ``now`` None: not running. ``memory``: bytes of the machine, as ``machine_memory``."""
    result: dict[str, Any] = {
        "read": rfc3339(now.read_at) if now else ZERO_TIME,
        "preread": rfc3339(before.read_at) if now and before else ZERO_TIME,
        "pids_stats": _pids(now.cgroup) if now else {},
        "blkio_stats": _block(now.cgroup if now else None),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _cpu(now),
        "precpu_stats": _cpu(before if now else None),
        "memory_stats": _memory(now.cgroup, memory) if now else {},
        "name": "/" + name.removeprefix("/"),
        "id": container_id,
    }
    if now and now.networks:
        result["networks"] = {interface: vars(counters) for interface, counters in now.networks.items()}
    return result


def _pids(sample: CgroupStats) -> dict[str, int]:
    found = {"current": sample.pids.current} if sample.pids.current else {}
    if sample.pids.limit != UNLIMITED:
        found["limit"] = sample.pids.limit
    elif sample.version == 2:
        found["limit"] = _V2_UNLIMITED_PIDS
    return found


def _cpu(sample: Sample | None) -> dict[str, Any]:
    if sample is None:
        nothing = {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}
        return {"cpu_usage": nothing, "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0}}
    cpu = sample.cgroup.cpu
    usage: dict[str, Any] = {"total_usage": cpu.usage}
    if cpu.per_cpu:
        usage["percpu_usage"] = list(cpu.per_cpu)
    usage |= {"usage_in_kernelmode": cpu.system, "usage_in_usermode": cpu.user}
    throttling = {"periods": cpu.periods, "throttled_periods": cpu.throttled_periods, "throttled_time": cpu.throttled_time}
    return {
        "cpu_usage": usage,
        "system_cpu_usage": sample.system_cpu,
        "online_cpus": sample.online_cpus,
        "throttling_data": throttling,
    }


def _memory(sample: CgroupStats, machine: int) -> dict[str, Any]:
    memory = sample.memory
    found: dict[str, Any] = {"usage": memory.usage}
    if sample.version == 1:
        found["max_usage"] = memory.max_usage
        found["stats"] = {key: memory.stat.get(key, 0) for key in _V1_KEYS}
    else:
        # Newer kernels count refaults of anonymous and file pages apart.
        refaults = memory.stat.get("workingset_refault_anon", 0) + memory.stat.get("workingset_refault_file", 0)
        found["stats"] = {key: memory.stat.get(key, 0) for key in _V2_KEYS}
        found["stats"]["workingset_refault"] += refaults
    if memory.failures:
        found["failcnt"] = memory.failures
    found["limit"] = min(memory.limit, machine)
    return found


_BLOCK_LISTS = (
    "io_service_bytes_recursive io_serviced_recursive io_queue_recursive io_service_time_recursive io_wait_time_recursive "
    "io_merged_recursive io_time_recursive sectors_recursive"
).split()


def _block(sample: CgroupStats | None) -> dict[str, list[dict[str, Any]] | None]:
    """dockerd gives empty lists on v1, null on v2 and for a container that does not run."""
    found: dict[str, list[dict[str, Any]] | None] = dict.fromkeys(_BLOCK_LISTS)
    if sample is None:
        return found
    if sample.version == 1:
        found = {key: [] for key in _BLOCK_LISTS}
        found["io_serviced_recursive"] = _entries(sample.block.serviced)
    found["io_service_bytes_recursive"] = _entries(sample.block.service_bytes) or found["io_service_bytes_recursive"]
    return found


def _entries(entries: Sequence[BlockEntry]) -> list[dict[str, Any]]:
    return [entry._asdict() for entry in entries]


# -------------------------------------------------------------------------------------------------------------------- service


async def sample_container(containers: Containers, container: Container) -> Sample | None:
    """A sample of a running container; None when it does not run (or has just ended)."""
    target = _target(containers, container)
    if target is None:
        return None
    try:
        return await asyncio.to_thread(take_sample, *target)
    except FileNotFoundError:
        return None


def _target(containers: Containers, container: Container) -> tuple[Cgroup, int | None] | None:
    """What is measured of a container; None when it does not run."""
    task = container.task
    if task is None or not container.has_task:
        return None
    host_network = container.record.host_config.network_mode == "host"
    return containers.cgroup(container), None if host_network else task.pid


class Rounds:
    """Measures for all streams of statistics together: once in an interval, every container that somebody watches, in one thread. A hundred
    streams that each kept a clock of their own would cost a hundred wake-ups and threads a second."""

    def __init__(self, containers: Containers, interval: float = INTERVAL) -> None:
        self._containers = containers
        self._interval = interval
        self._waiting: dict[str, tuple[Container, asyncio.Future[Sample | None]]] = {}
        self._running: set[asyncio.Task[None]] = set()

    def next(self, container: Container) -> asyncio.Future[Sample | None]:
        """The container's sample of the next round. Shared: shield it before it can be cancelled."""
        if not self._waiting:
            loop = asyncio.get_running_loop()
            loop.call_at((loop.time() // self._interval + 1) * self._interval, self._begin)
        if container.id not in self._waiting:
            self._waiting[container.id] = (container, asyncio.get_running_loop().create_future())
        return self._waiting[container.id][1]

    def head_start(self) -> float:
        """Seconds to wait before ``next`` for one who has just measured: a difference over a moment would say nothing."""
        left = self._interval - asyncio.get_running_loop().time() % self._interval
        return left if left < self._interval / 2 else 0.0

    def _begin(self) -> None:
        waiting, self._waiting = list(self._waiting.values()), {}
        task = asyncio.get_running_loop().create_task(self._measure(waiting))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _measure(self, waiting: list[tuple[Container, asyncio.Future[Sample | None]]]) -> None:
        samples: list[Sample | None] = [None] * len(waiting)
        try:
            samples = await asyncio.to_thread(_sample_all, [_target(self._containers, container) for container, _ in waiting])
        finally:
            for (_, future), sample in zip(waiting, samples, strict=True):
                if not future.done():
                    future.set_result(sample)


def _sample_all(targets: Sequence[tuple[Cgroup, int | None] | None]) -> list[Sample | None]:
    system, online = _machine_time()
    samples: list[Sample | None] = []
    for target in targets:
        try:
            samples.append(None if target is None else _sample(*target, system, online))
        except FileNotFoundError:
            samples.append(None)
    return samples


async def stats_document(containers: Containers, container: Container, *, one_shot: bool = False) -> dict[str, Any]:
    """One document: at once when ``one_shot``, else over an interval of a second."""
    before, now = None, await sample_container(containers, container)
    if now is not None and not one_shot:
        await asyncio.sleep(INTERVAL)
        before, now = now, await sample_container(containers, container)
    return document(container.id, container.name, now, before, machine_memory())


async def stats_stream(containers: Containers, container: Container) -> AsyncIterator[dict[str, Any]]:
    """A document at once and then one per round until the container is removed."""
    memory, removed = machine_memory(), container.removal()
    before: Sample | None = None
    now = await sample_container(containers, container)
    pause = containers.rounds.head_start()
    try:
        while not removed.done():
            yield document(container.id, container.name, now, before, memory)
            if pause:
                await asyncio.wait([removed], timeout=pause)
                pause = 0.0
            coming = containers.rounds.next(container)
            both: list[asyncio.Future[Any]] = [removed, coming]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            before, now = now, coming.result() if coming.done() else None
    finally:
        removed.cancel()
