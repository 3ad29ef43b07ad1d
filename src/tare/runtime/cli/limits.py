"""pause, resume, update: what happens to a running container through its cgroup."""

from __future__ import annotations

import json
import sys
from typing import Any

from tare.linux.cgroup.group import Cgroup
from tare.runtime.cli.call import Call
from tare.runtime.cli.options import UsageError
from tare.runtime.cli.report import RuntimeFailure
from tare.runtime.cli.state import Record, cgroup
from tare.runtime.context import reason

FIELDS: dict[str, tuple[str, str]] = {
    "blkio_weight": ("blockIO", "weight"),
    "cpu_period": ("cpu", "period"),
    "cpu_quota": ("cpu", "quota"),
    "cpu_burst": ("cpu", "burst"),
    "cpu_share": ("cpu", "shares"),
    "cpu_rt_period": ("cpu", "realtimePeriod"),
    "cpu_rt_runtime": ("cpu", "realtimeRuntime"),
    "cpu_idle": ("cpu", "idle"),
    "memory": ("memory", "limit"),
    "memory_reservation": ("memory", "reservation"),
    "memory_swap": ("memory", "swap"),
    "pids_limit": ("pids", "limit"),
    "cpuset_cpus": ("cpu", "cpus"),
    "cpuset_mems": ("cpu", "mems"),
}
"""Option → member of ``linux.resources``."""
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def pause(call: Call) -> int:
    """Stop all processes of a container."""
    record, group = _group(call, ("running", "created"))
    try:
        group.freeze()
    except OSError as error:
        raise RuntimeFailure(f"cannot pause container {record.id}: {reason(error)}") from None
    return 0


def resume(call: Call) -> int:
    """Let them go on."""
    _, group = _group(call, ("paused",))
    group.thaw()
    return 0


def update(call: Call) -> int:
    """Change limits of a running container."""
    _, group = _group(call, ("running", "paused", "created"))
    try:
        for warning in group.apply(requested(call)):
            call.report.warning(warning)
    except OSError as error:
        raise RuntimeFailure(f"cannot update the limits: {reason(error)}") from None
    return 0


def requested(call: Call) -> dict[str, Any]:
    """The resources asked for by a document or by options."""
    path = call.options.text("resources")
    if path:
        try:
            if path == "-":
                data = sys.stdin.buffer.read()
            else:
                with open(path, "rb") as file:
                    data = file.read()
            document = json.loads(data)
        except (OSError, ValueError) as error:
            raise RuntimeFailure(f"--resources {path}: {error}") from None
        if not isinstance(document, dict):
            raise RuntimeFailure(f"--resources {path}: not a JSON object")
        return document
    resources: dict[str, dict[str, Any]] = {}
    for key, (section, member) in FIELDS.items():
        text = call.options.text(key)
        if text:
            value: Any = text if member in ("cpus", "mems") else _size(key, text)
            resources.setdefault(section, {})[member] = value
    return resources


def _size(key: str, text: str) -> int:
    number = text.rstrip("bkmgtBKMGTi ")
    unit = text[len(number) :].strip().lower().removesuffix("ib") or ""
    unit = unit if len(unit) < 2 else unit.removesuffix("b")
    try:
        return int(number) * _UNITS[unit]
    except (ValueError, KeyError):
        raise UsageError(f"--{key.replace('_', '-')}: not a number: {text!r}") from None


def _group(call: Call, allowed: tuple[str, ...]) -> tuple[Record, Cgroup]:
    record = call.record()
    status = call.store.status(record)
    if status not in allowed:
        raise RuntimeFailure(f"container {record.id} is {status}, not {' or '.join(allowed)}")
    group = cgroup(record)
    if group is None:
        raise RuntimeFailure(f"container {record.id} has no cgroup")
    return record, group
