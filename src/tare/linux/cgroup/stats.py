"""What a group has used: one snapshot, the same shape for v1 and v2. Parsers are pure; ``read_v1`` and ``read_v2`` read the files.

Times are nanoseconds, sizes bytes. A counter that the kernel does not offer is 0; a limit that is not set is ``UNLIMITED``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

UNLIMITED = 2**63 - 1

V1_PAGE_LIMIT = 2**63 - 4096
"""What v1 prints for "no limit": the largest multiple of the page size (smaller with larger pages, so compared with a margin)."""

Reader = Callable[[str, str], str]
"""(controller, file) → text, empty when there is no such file."""


class BlockEntry(NamedTuple):
    """One counter of one block device. ``op`` in the kernel's words: ``Read`` on v1, ``read`` on v2."""

    major: int
    minor: int
    op: str
    value: int


class CpuStats(NamedTuple):
    usage: int = 0
    user: int = 0
    system: int = 0
    per_cpu: tuple[int, ...] = ()
    """v1 only."""
    periods: int = 0
    throttled_periods: int = 0
    throttled_time: int = 0


class MemoryStats(NamedTuple):
    usage: int = 0
    max_usage: int = 0
    limit: int = UNLIMITED
    failures: int = 0
    """How often the limit was hit: v1 ``memory.failcnt``, v2 the ``oom`` count of ``memory.events``."""
    swap_usage: int = 0
    stat: Mapping[str, int] = {}


class PidsStats(NamedTuple):
    current: int = 0
    limit: int = UNLIMITED


class BlockStats(NamedTuple):
    service_bytes: tuple[BlockEntry, ...] = ()
    serviced: tuple[BlockEntry, ...] = ()


class CgroupStats(NamedTuple):
    """One sample. ``version`` is the layout of the memory and cpu figures (1 or 2): their ``stat`` keys differ."""

    version: int
    cpu: CpuStats = CpuStats()
    memory: MemoryStats = MemoryStats()
    pids: PidsStats = PidsStats()
    block: BlockStats = BlockStats()


def parse_keyed(text: str) -> dict[str, int]:
    """A "flat keyed" file: one ``key number`` per line; lines that are not are left out."""
    found = {}
    for entry in text.splitlines():
        key, _, value = entry.partition(" ")
        if value.isdigit():
            found[key] = int(value)
    return found


def parse_limit(text: str) -> int:
    """A limit file: a number, or ``max``; v1's "largest possible" counts as unlimited."""
    text = text.strip()
    if not text or text == "max":
        return UNLIMITED
    value = int(text)
    return UNLIMITED if value < 0 or value >= V1_PAGE_LIMIT - (1 << 20) else value


def parse_v1_block(text: str) -> tuple[BlockEntry, ...]:
    """``blkio.throttle.io_service_bytes`` and its like: ``8:0 Read 4096`` lines, and a ``Total`` without device that is left out."""
    found = []
    for entry in text.splitlines():
        words = entry.replace(":", " ").split()
        if len(words) == 4 and words[0].isdigit():
            found.append(BlockEntry(int(words[0]), int(words[1]), words[2], int(words[3])))
    return tuple(found)


def parse_io_stat(text: str) -> BlockStats:
    """v2 ``io.stat``: ``8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`` lines."""
    sizes: list[BlockEntry] = []
    counts: list[BlockEntry] = []
    for entry in text.splitlines():
        number, *pairs = entry.split(" ")
        major, colon, minor = number.partition(":")
        if not colon:
            continue
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        for target, read, write in ((sizes, "rbytes", "wbytes"), (counts, "rios", "wios")):
            for op, key in (("read", read), ("write", write)):
                if key in values:
                    target.append(BlockEntry(int(major), int(minor), op, int(values[key])))
    return BlockStats(tuple(sizes), tuple(counts))


def read_v1(read: Reader) -> CgroupStats:
    """A sample of a group in v1 hierarchies."""
    throttling = parse_keyed(read("cpu", "cpu.stat"))
    cpu = CpuStats(
        usage=_number(read("cpuacct", "cpuacct.usage")),
        user=_number(read("cpuacct", "cpuacct.usage_user")),
        system=_number(read("cpuacct", "cpuacct.usage_sys")),
        per_cpu=tuple(int(word) for word in read("cpuacct", "cpuacct.usage_percpu").split()),
        periods=throttling.get("nr_periods", 0),
        throttled_periods=throttling.get("nr_throttled", 0),
        throttled_time=throttling.get("throttled_time", 0),
    )
    usage = _number(read("memory", "memory.usage_in_bytes"))
    with_swap = _number(read("memory", "memory.memsw.usage_in_bytes"))
    memory = MemoryStats(
        usage=usage,
        max_usage=_number(read("memory", "memory.max_usage_in_bytes")),
        limit=parse_limit(read("memory", "memory.limit_in_bytes")),
        failures=_number(read("memory", "memory.failcnt")),
        swap_usage=max(0, with_swap - usage),
        stat=parse_keyed(read("memory", "memory.stat")),
    )
    sizes = parse_v1_block(read("blkio", "blkio.throttle.io_service_bytes_recursive"))
    counts = parse_v1_block(read("blkio", "blkio.throttle.io_serviced_recursive"))
    return CgroupStats(1, cpu, memory, _pids(read), BlockStats(sizes, counts))


def read_v2(read: Reader) -> CgroupStats:
    """A sample of a group in the unified hierarchy."""
    stat = parse_keyed(read("cpu", "cpu.stat"))
    cpu = CpuStats(
        usage=stat.get("usage_usec", 0) * 1000,
        user=stat.get("user_usec", 0) * 1000,
        system=stat.get("system_usec", 0) * 1000,
        periods=stat.get("nr_periods", 0),
        throttled_periods=stat.get("nr_throttled", 0),
        throttled_time=stat.get("throttled_usec", 0) * 1000,
    )
    memory = MemoryStats(
        usage=_number(read("memory", "memory.current")),
        max_usage=_number(read("memory", "memory.peak")),
        limit=parse_limit(read("memory", "memory.max")),
        failures=parse_keyed(read("memory", "memory.events")).get("oom", 0),
        swap_usage=_number(read("memory", "memory.swap.current")),
        stat=parse_keyed(read("memory", "memory.stat")),
    )
    return CgroupStats(2, cpu, memory, _pids(read), parse_io_stat(read("io", "io.stat")))


def _pids(read: Reader) -> PidsStats:
    return PidsStats(_number(read("pids", "pids.current")), parse_limit(read("pids", "pids.max")))


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.isdigit() else 0
