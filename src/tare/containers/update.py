"""Changing a container's limits, also while it runs (``docker update``).

What is asked is checked as at create, then against what the container has already: CPU time is given by ``NanoCpus`` or by period and
quota, never by both, and memory does not outgrow the limit of memory with swap. Only then the task's control group is written, and last the
record: a group that refuses leaves the record as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tare.containers.machine import Machine, this_machine
from tare.containers.record import DEAD, RESTARTING
from tare.containers.resources import limits
from tare.containers.validate import check_resources, check_restart_policy
from tare.errors import Conflict, InvalidArgument, TareError

if TYPE_CHECKING:
    from tare.containers.container import Container
    from tare.store.metadata import Records
    from tare.wire.container import HostConfig, UpdateRequest

_LIMITS = (
    "cpu_shares", "memory", "nano_cpus", "blkio_weight", "blkio_weight_device", "blkio_device_read_bps", "blkio_device_write_bps",
    "blkio_device_read_iops", "blkio_device_write_iops", "cpu_period", "cpu_quota", "cpu_realtime_period", "cpu_realtime_runtime",
    "cpuset_cpus", "cpuset_mems", "memory_reservation", "memory_swap",
)  # fmt: skip


def check_conflicts(host: HostConfig, request: UpdateRequest) -> None:
    """Raise ``Conflict`` for a limit that contradicts what the container has."""
    already = "has already been set"
    for asked, present, text in (
        (request.nano_cpus, host.cpu_period, f"Nano CPUs cannot be updated as CPU Period {already}"),
        (request.nano_cpus, host.cpu_quota, f"Nano CPUs cannot be updated as CPU Quota {already}"),
        (request.cpu_period, host.nano_cpus, f"CPU Period cannot be updated as NanoCPUs {already}"),
        (request.cpu_quota, host.nano_cpus, f"CPU Quota cannot be updated as NanoCPUs {already}"),
    ):
        if asked and present:
            raise Conflict(f"Conflicting options: {text}")
    if request.memory and not request.memory_swap and host.memory_swap != -1 and request.memory > host.memory_swap:
        raise Conflict("Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
    policy = request.restart_policy
    if host.auto_remove and policy is not None and policy.name not in ("", "no"):
        raise Conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")


def updated(host: HostConfig, request: UpdateRequest) -> HostConfig:
    """The settings after the update; zero and empty values leave a limit as it is."""
    changes = {name: getattr(request, name) for name in _LIMITS if getattr(request, name)}
    if request.pids_limit:
        changes["pids_limit"] = request.pids_limit
    if request.restart_policy is not None and request.restart_policy.name:
        changes["restart_policy"] = request.restart_policy
    return msgspec.structs.replace(host, **changes)


async def update(container: Container, request: UpdateRequest, records: Records, machine: Machine | None = None) -> list[str]:
    """Apply new limits: to the task if there is one, then to the record. Returns warnings."""
    machine = machine or this_machine()
    warnings = check_resources(request, machine, update=True)
    if request.restart_policy is not None:
        check_restart_policy(request.restart_policy, auto_remove=False)
    limits(request, machine)  # names of devices that there are not
    prefix = f"Cannot update container {container.id}: "
    async with container.lock:
        if container.removing or container.record.state.status == DEAD:
            raise Conflict(f'{prefix}container is marked for removal and cannot be "update"')
        if container.record.state.status == RESTARTING and any(getattr(request, name) for name in _LIMITS):
            raise Conflict(f"{prefix}Container {container.id} is restarting, wait until the container is running")
        try:
            check_conflicts(container.record.host_config, request)
            host = updated(container.record.host_config, request)
            if container.has_task and container.task is not None:
                await container.task.update(limits(host, machine))
        except (Conflict, InvalidArgument) as error:
            raise type(error)(f"{prefix}{error}") from None
        except TareError:
            raise
        except OSError as error:
            raise Conflict(f"{prefix}{(error.strerror or str(error)).lower()}") from error
        container.record.host_config = host
        container.save(records)
    return warnings
