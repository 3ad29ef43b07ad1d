"""``update``: other limits for containers that exist, also while they run."""

from __future__ import annotations

import sys

from tare.cli.createbody import restart_policy
from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.lifecycle import each, path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options

_FIELDS = {
    "blkio-weight": "BlkioWeight", "cpu-period": "CpuPeriod", "cpu-quota": "CpuQuota", "cpu-rt-period": "CpuRealtimePeriod",
    "cpu-rt-runtime": "CpuRealtimeRuntime", "cpu-shares": "CpuShares", "cpus": "NanoCpus", "memory": "Memory",
    "memory-reservation": "MemoryReservation", "memory-swap": "MemorySwap", "pids-limit": "PidsLimit",
}  # fmt: skip


def body(options: Options) -> dict[str, Any]:
    """What ``POST /containers/ID/update`` gets; zero and empty text mean "as it is"."""
    document: dict[str, Any] = {field: options.number(name) for name, field in _FIELDS.items()}
    if "pids-limit" not in options.given:
        document["PidsLimit"] = None
    document["CpusetCpus"], document["CpusetMems"] = options.text("cpuset-cpus"), options.text("cpuset-mems")
    if options.text("restart"):
        document["RestartPolicy"] = restart_policy(options.text("restart"))
    return document


def _update(context: Context, options: Options) -> int:
    if not options.given:
        raise CliError("you must provide one or more flags when using this command")
    document = body(options)
    client = context.client
    warnings: list[str] = []

    def one(name: str) -> str:
        answer = client.call("POST", path(name, "update"), body=document) or {}
        warnings.extend(str(warning) for warning in answer.get("Warnings") or ())
        return name

    code = each(options.operands, one)
    if warnings:
        sys.stdout.write("\n".join(warnings) + "\n")
    return code


UPDATE = Command(
    "update",
    "update [OPTIONS] CONTAINER [CONTAINER...]",
    "Update configuration of one or more containers",
    _update,
    (
        ("blkio-weight", "", "uint16", "Block IO (relative weight), between 10 and 1000, or 0 to disable"),
        ("cpu-period", "", "int", "Limit CPU CFS (Completely Fair Scheduler) period"),
        ("cpu-quota", "", "int", "Limit CPU CFS (Completely Fair Scheduler) quota"),
        ("cpu-rt-period", "", "int", "Limit the CPU real-time period in microseconds"),
        ("cpu-rt-runtime", "", "int", "Limit the CPU real-time runtime in microseconds"),
        ("cpu-shares", "c", "int", "CPU shares (relative weight)"),
        ("cpus", "", "decimal", "Number of CPUs"),
        ("cpuset-cpus", "", "string", "CPUs in which to allow execution (0-3, 0,1)"),
        ("cpuset-mems", "", "string", "MEMs in which to allow execution (0-3, 0,1)"),
        ("memory", "m", "bytes", "Memory limit"),
        ("memory-reservation", "", "bytes", "Memory soft limit"),
        ("memory-swap", "", "swap", "Swap limit equal to memory plus swap: '-1' to enable unlimited swap"),
        ("pids-limit", "", "int", "Tune container pids limit (set -1 for unlimited)"),
        ("restart", "", "string", "Restart policy to apply when a container exits"),
    ),
    least=1,
    aliases=("container update", "update"),
    examples=("tare update -m 512m --memory-swap 1g web", "tare update --restart unless-stopped $(tare ps -q)"),
)
