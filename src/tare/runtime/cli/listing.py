"""list, ps, events: looking at containers."""

from __future__ import annotations

import json
import os
import pwd
import time
from collections.abc import Sequence
from typing import Any

from tare.linux.cgroup.stats import BlockEntry, CgroupStats
from tare.runtime.cli.call import Call
from tare.runtime.cli.report import RuntimeFailure
from tare.runtime.cli.state import Record, cgroup


def list_containers(call: Call) -> int:
    """Table, JSON or bare ids of all containers."""
    records = []
    for name in call.store.ids():
        try:
            records.append(call.store.load(name))
        except RuntimeFailure as error:
            call.report.warning(str(error))
    if call.options.flag("quiet"):
        for record in records:
            print(record.id)
    elif call.options.text("format") == "json":
        print(json.dumps([_entry(call, record) for record in records]))
    else:
        rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
        for record in records:
            status = call.store.status(record)
            pid = "0" if status == "stopped" else str(record.pid)
            rows.append((record.id, pid, status, record.bundle, record.created, _owner(record.owner)))
        print_table(rows)
    return 0


def _entry(call: Call, record: Record) -> dict[str, Any]:
    state = call.store.state(record)
    return {**state, "rootfs": record.rootfs, "created": record.created, "owner": _owner(record.owner)}


def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their longest cell."""
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def ps(call: Call) -> int:
    """The processes of a container."""
    record = call.record()
    group = cgroup(record)
    if group is None:
        raise RuntimeFailure(f"container {record.id} has no cgroup")
    pids = group.pids() if group.exists() else []
    if call.options.text("format") == "json":
        print(json.dumps(pids))
        return 0
    arguments = call.arguments[1:] or ["-ef"]
    wanted = set(pids)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(writer, 1)
            os.execv("/bin/ps", ["ps", *arguments])
        finally:
            os._exit(127)
    os.close(writer)
    with open(reader, encoding="utf-8", errors="replace") as output:
        lines = output.read().splitlines()
    if os.waitpid(child, 0)[1] or not lines or "PID" not in lines[0].split():
        raise RuntimeFailure(f"ps {' '.join(arguments)}: cannot find the PID column")
    column = lines[0].split().index("PID")
    print(lines[0])
    for line in lines[1:]:
        cells = line.split()
        if len(cells) > column and cells[column].isdigit() and int(cells[column]) in wanted:
            print(line)
    return 0


def events(call: Call) -> int:
    """Resource usage, once or at intervals, one JSON object per line in runc's shape."""
    record = call.record()
    interval = _seconds(call.options.text("interval") or "5s")
    while True:
        group = cgroup(record)
        if group is None or call.store.status(record) == "stopped":
            raise RuntimeFailure("container not running")
        print(json.dumps({"type": "stats", "id": record.id, "data": stats_document(group.stats())}), flush=True)
        if call.options.flag("stats"):
            return 0
        time.sleep(interval)
        if call.store.status(record) == "stopped":
            return 0


def _seconds(text: str) -> float:
    scale = 0.001 if text.endswith("ms") else 60.0 if text.endswith("m") else 1.0
    try:
        value = float(text.rstrip("ms")) * scale
    except ValueError:
        value = 0.0
    if value <= 0:
        raise RuntimeFailure(f"--interval: duration must be positive: {text!r}")
    return value


def stats_document(stats: CgroupStats) -> dict[str, Any]:
    """runc's ``events`` data."""
    cpu, memory = stats.cpu, stats.memory
    return {
        "cpu": {
            "usage": {"total": cpu.usage, "percpu": list(cpu.per_cpu), "kernel": cpu.system, "user": cpu.user},
            "throttling": {"periods": cpu.periods, "throttledPeriods": cpu.throttled_periods, "throttledTime": cpu.throttled_time},
        },
        "memory": {
            "usage": {"limit": memory.limit, "usage": memory.usage, "max": memory.max_usage, "failcnt": memory.failures},
            "swap": {"limit": 0, "usage": memory.swap_usage, "failcnt": 0},
            "raw": dict(memory.stat),
        },
        "pids": {"current": stats.pids.current, "limit": stats.pids.limit},
        "blkio": {
            "ioServiceBytesRecursive": _blocks(stats.block.service_bytes),
            "ioServicedRecursive": _blocks(stats.block.serviced),
        },
    }


def _blocks(entries: Sequence[BlockEntry]) -> list[dict[str, Any]]:
    return [{"major": entry.major, "minor": entry.minor, "op": entry.op, "value": entry.value} for entry in entries]
