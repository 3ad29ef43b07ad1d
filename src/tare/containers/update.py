"""Changing a container's limits, also while it runs (``docker update``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tare.containers.machine import this_machine
from tare.containers.resources import limits
from tare.containers.validate import check_resources, check_restart_policy
from tare.errors import Conflict

if TYPE_CHECKING:
    from tare.containers.container import Container
    from tare.store.metadata import Records
    from tare.wire.container import HostConfig, UpdateRequest

_LIMITS = (
    "cpu_shares", "memory", "nano_cpus", "blkio_weight", "cpu_period", "cpu_quota", "cpu_realtime_period", "cpu_realtime_runtime",
    "cpuset_cpus", "cpuset_mems", "memory_reservation", "memory_swap",
)  # fmt: skip


def updated(host: HostConfig, request: UpdateRequest) -> HostConfig:
    """The settings after the update; zero and empty values leave a limit as it is."""
    changes = {name: getattr(request, name) for name in _LIMITS if getattr(request, name)}
    if request.pids_limit is not None:
        changes["pids_limit"] = request.pids_limit
    if request.restart_policy is not None and request.restart_policy.name:
        changes["restart_policy"] = request.restart_policy
    return msgspec.structs.replace(host, **changes)


async def update(container: Container, request: UpdateRequest, records: Records) -> list[str]:
    """Apply new limits: to the task if there is one, then to the record. Returns warnings."""
    async with container.lock:
        if container.removing:
            raise Conflict(f"container {container.id} is marked for removal and cannot be updated")
        host = updated(container.record.host_config, request)
        if host.auto_remove and host.restart_policy.name not in ("", "no"):
            raise Conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
        check_restart_policy(host.restart_policy, host.auto_remove)
        warnings = check_resources(host, update=True)
        if container.has_task and container.task is not None:
            await container.task.update(limits(host, this_machine()))
        container.record.host_config = host
        container.save(records)
    return warnings
