"""OCI ``linux.resources`` (runtime-spec 1.2, config-linux.md "Control groups") as a list of file writes. Pure: touches no file.

A ``Write`` names a controller and one or more alternatives (file, value): the first file that exists is used, for kernels that offer the
same limit under two names (``blkio.weight``, ``blkio.bfq.weight``).

Order matters where the kernel checks one file against another: a memory limit may not exceed the memory+swap limit, a quota depends on
its period, a burst on its quota. Whether a pair is being raised or lowered decides which must come first. Instead of reading the present
values, such a write is marked ``deferrable``: when the kernel refuses it with EINVAL it is tried once more after the others.

Null and absent members mean "leave alone"; so does 0 for the scalars where runc and crun read it so.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Resources = Mapping[str, Any]


class Write(NamedTuple):
    """Write a value into one file of a group. ``required``: a failure for want of the file or of permission is an error, not a warning."""

    controller: str
    alternatives: tuple[tuple[str, str], ...]
    deferrable: bool = False
    required: bool = False

    @property
    def file(self) -> str:
        return self.alternatives[0][0]

    @property
    def value(self) -> str:
        return self.alternatives[0][1]


def _write(controller: str, file: str, value: object, deferrable: bool = False) -> Write:
    return Write(controller, ((file, str(value)),), deferrable)


def invalid(message: str) -> OSError:
    """The error for resources that contradict themselves, before anything is written."""
    return OSError(errno.EINVAL, message)


# ---------------------------------------------------------------------------------------------------------------- conversions


def cpu_weight(shares: int) -> int:
    """v1 ``cpu.shares`` (2..262144, default 1024) as v2 ``cpu.weight`` (1..10000, default 100).

    The quadratic-in-log2 curve through (2, 1), (1024, 100), (262144, 10000) which runc (1.3.2) and crun (1.23) use; the older linear map
    gave the default 1024 shares the weight 39.
    """
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    logarithm = math.log2(shares)
    return math.ceil(10 ** ((logarithm * logarithm + 125 * logarithm) / 612.0 - 7.0 / 34.0))


def io_weight(weight: int) -> int:
    """v1 ``blkio`` weight (10..1000) as v2 ``io.weight`` (1..10000)."""
    return 1 + (weight - 10) * 9999 // 990


def swap_limit(swap: int, memory: int) -> int | None:
    """Docker's memory+swap total as v2 swap alone: -1 unlimited, None leave alone; raises EINVAL when the two contradict each other."""
    if swap == 0:
        return None
    if swap < 0:
        return -1
    if memory <= 0:
        raise invalid("memory.swap needs memory.limit: on cgroup v2 swap is their difference")
    if swap < memory:
        raise invalid(f"memory.swap ({swap}, memory and swap together) is smaller than memory.limit ({memory})")
    return swap - memory


def _v2_number(value: int) -> str:
    return "max" if value < 0 else str(value)


# ------------------------------------------------------------------------------------------------------------------------- v1


def v1_writes(resources: Resources) -> list[Write]:
    """All writes but the device rules for v1 hierarchies."""
    writes = _v1_memory(resources.get("memory") or {})
    writes += _v1_cpu(resources.get("cpu") or {})
    writes += _pids(resources.get("pids") or {})
    writes += _v1_block_io(resources.get("blockIO") or {})
    for page in resources.get("hugepageLimits") or ():
        writes.append(_write("hugetlb", f"hugetlb.{page['pageSize']}.limit_in_bytes", page["limit"]))
    network = resources.get("network") or {}
    if network.get("classID"):
        writes.append(_write("net_cls", "net_cls.classid", network["classID"]))
    for entry in network.get("priorities") or ():
        writes.append(_write("net_prio", "net_prio.ifpriomap", f"{entry['name']} {entry['priority']}"))
    writes += _rdma(resources.get("rdma") or {})
    if resources.get("unified"):
        raise invalid("resources.unified needs a cgroup v2 machine")
    return writes


def _v1_memory(memory: Mapping[str, Any]) -> list[Write]:
    writes = []
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if limit == -1 and swap == 0:
        swap = -1  # without this a present memsw limit would still bound the "unlimited" memory
    if limit:
        writes.append(_write("memory", "memory.limit_in_bytes", limit, deferrable=True))
    if swap:
        writes.append(_write("memory", "memory.memsw.limit_in_bytes", swap, deferrable=True))
    if memory.get("reservation"):
        writes.append(_write("memory", "memory.soft_limit_in_bytes", memory["reservation"]))
    swappiness = memory.get("swappiness")
    if swappiness is not None and 0 <= swappiness < 2**63:  # Docker's -1 may arrive as an unsigned number
        if swappiness > 100:
            raise invalid(f"memory.swappiness {swappiness} is not between 0 and 100")
        writes.append(_write("memory", "memory.swappiness", swappiness))
    if memory.get("disableOOMKiller"):
        writes.append(_write("memory", "memory.oom_control", 1))
    return writes


def _v1_cpu(cpu: Mapping[str, Any]) -> list[Write]:
    writes = []
    if cpu.get("shares"):
        writes.append(_write("cpu", "cpu.shares", cpu["shares"]))
    for key, file in (
        ("period", "cpu.cfs_period_us"),
        ("quota", "cpu.cfs_quota_us"),
        ("burst", "cpu.cfs_burst_us"),
        ("realtimePeriod", "cpu.rt_period_us"),
        ("realtimeRuntime", "cpu.rt_runtime_us"),
    ):
        value = cpu.get(key)
        if value or (value == 0 and key == "burst"):
            writes.append(_write("cpu", file, value, deferrable=True))
    if cpu.get("idle") is not None:
        writes.append(_write("cpu", "cpu.idle", cpu["idle"]))
    return writes + _cpuset(cpu)


def _cpuset(cpu: Mapping[str, Any]) -> list[Write]:
    return [_write("cpuset", f"cpuset.{key}", cpu[key]) for key in ("cpus", "mems") if cpu.get(key)]


def _pids(pids: Mapping[str, Any]) -> list[Write]:
    limit = pids.get("limit")
    if limit is None:
        return []
    return [_write("pids", "pids.max", limit if limit > 0 else "max")]


def _rdma(rdma: Mapping[str, Mapping[str, int]]) -> list[Write]:
    writes = []
    for device, limits in rdma.items():
        words = [device]
        for key, word in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object")):
            if limits.get(key) is not None:
                words.append(f"{word}={limits[key]}")
        writes.append(_write("rdma", "rdma.max", " ".join(words)))
    return writes


_V1_THROTTLE = (
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device"),
)


def _either(controller: str, value: object, *files: str) -> Write:
    return Write(controller, tuple((file, str(value)) for file in files))


def _v1_block_io(block: Mapping[str, Any]) -> list[Write]:
    writes = []
    if block.get("weight"):
        writes.append(_either("blkio", block["weight"], "blkio.weight", "blkio.bfq.weight"))
    if block.get("leafWeight"):
        writes.append(_write("blkio", "blkio.leaf_weight", block["leafWeight"]))
    for device in block.get("weightDevice") or ():
        number = f"{device['major']}:{device['minor']}"
        if device.get("weight"):
            writes.append(_either("blkio", f"{number} {device['weight']}", "blkio.weight_device", "blkio.bfq.weight_device"))
        if device.get("leafWeight"):
            writes.append(_write("blkio", "blkio.leaf_weight_device", f"{number} {device['leafWeight']}"))
    for key, file in _V1_THROTTLE:
        for device in block.get(key) or ():
            writes.append(_write("blkio", file, f"{device['major']}:{device['minor']} {device['rate']}"))
    return writes


# ------------------------------------------------------------------------------------------------------------------------- v2


def v2_writes(resources: Resources, cpu_max: str = "max 100000") -> list[Write]:
    """All writes but the device rules for the unified hierarchy. ``cpu_max`` is the group's present ``cpu.max``: quota and period share
    that file, so a change of one has to repeat the other."""
    writes = _v2_memory(resources.get("memory") or {})
    writes += _v2_cpu(resources.get("cpu") or {}, cpu_max)
    writes += _pids(resources.get("pids") or {})
    writes += _v2_block_io(resources.get("blockIO") or {})
    for page in resources.get("hugepageLimits") or ():
        writes.append(_write("hugetlb", f"hugetlb.{page['pageSize']}.max", page["limit"]))
    writes += _rdma(resources.get("rdma") or {})
    for file, value in (resources.get("unified") or {}).items():
        controller, dot, _ = file.partition(".")
        if not dot or "/" in file or controller == "cgroup":
            raise invalid(f"resources.unified: {file!r} is not the name of a controller's file")
        writes.append(Write(controller, ((file, str(value)),), required=True))
    return writes


def _v2_memory(memory: Mapping[str, Any]) -> list[Write]:
    writes = []
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if limit == -1 and swap == 0:
        swap = -1
    # A lower memory.max pushes pages out to swap, so the new swap limit goes first.
    only_swap = swap_limit(swap, limit)
    if only_swap is not None:
        writes.append(_write("memory", "memory.swap.max", _v2_number(only_swap)))
    if limit:
        writes.append(_write("memory", "memory.max", _v2_number(limit)))
    if memory.get("reservation"):
        writes.append(_write("memory", "memory.low", _v2_number(memory["reservation"])))
    return writes


def _v2_cpu(cpu: Mapping[str, Any], cpu_max: str) -> list[Write]:
    writes = []
    if cpu.get("idle") is not None:
        writes.append(_write("cpu", "cpu.idle", cpu["idle"]))
    if cpu.get("shares") and not cpu.get("idle"):  # an idle group has no weight: the kernel refuses it
        writes.append(_write("cpu", "cpu.weight", cpu_weight(cpu["shares"])))
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 0
    if quota or period:
        now_quota, _, now_period = cpu_max.strip().partition(" ")
        first = now_quota if quota == 0 else ("max" if quota < 0 else str(quota))
        writes.append(_write("cpu", "cpu.max", f"{first} {period or now_period or 100000}", deferrable=True))
    if cpu.get("burst") is not None:
        writes.append(_write("cpu", "cpu.max.burst", cpu["burst"], deferrable=True))
    return writes + _cpuset(cpu)


_V2_THROTTLE = (
    ("throttleReadBpsDevice", "rbps"),
    ("throttleWriteBpsDevice", "wbps"),
    ("throttleReadIOPSDevice", "riops"),
    ("throttleWriteIOPSDevice", "wiops"),
)


def _v2_block_io(block: Mapping[str, Any]) -> list[Write]:
    writes = []
    if block.get("weight"):
        weight = block["weight"]
        pair = (("io.bfq.weight", str(weight)), ("io.weight", f"default {io_weight(weight)}"))
        writes.append(Write("io", pair))
    for device in block.get("weightDevice") or ():
        if device.get("weight"):
            number = f"{device['major']}:{device['minor']}"
            pair = (("io.bfq.weight", f"{number} {device['weight']}"), ("io.weight", f"{number} {io_weight(device['weight'])}"))
            writes.append(Write("io", pair))
    limits: dict[str, list[str]] = {}
    for key, word in _V2_THROTTLE:
        for device in block.get(key) or ():
            number = f"{device['major']}:{device['minor']}"
            limits.setdefault(number, []).append(f"{word}={device['rate'] or 'max'}")
    writes += [_write("io", "io.max", f"{number} {' '.join(words)}") for number, words in limits.items()]
    return writes


def unsupported_on_v2(resources: Resources) -> Sequence[str]:
    """Limits asked for that the unified hierarchy has no counterpart of, as warnings."""
    warnings = []
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    if memory.get("swappiness") is not None and 0 <= memory["swappiness"] <= 100:
        warnings.append("memory.swappiness is not supported on cgroup v2 and was left out")
    if memory.get("disableOOMKiller"):
        warnings.append("memory.disableOOMKiller is not supported on cgroup v2 and was left out")
    if cpu.get("realtimeRuntime") or cpu.get("realtimePeriod"):
        warnings.append("cpu realtime limits are not supported on cgroup v2 and were left out")
    return warnings
