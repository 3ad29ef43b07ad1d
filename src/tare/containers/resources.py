"""Limits and devices: the resource words of ``HostConfig`` become OCI ``linux.resources`` and ``linux.devices``.

Values are taken as they are: ``validate`` has refused bad ones when the container was made. Zero means "not set" everywhere.

Device rules start from "nothing", then allow: making any node (it cannot be opened, and images contain some), the nodes of every
container's /dev and its pseudo-terminals, and what was asked for. They never take away again, so that their order does not matter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from tare.containers.machine import DeviceNode, Machine
from tare.errors import InvalidArgument
from tare.wire.container import DeviceMapping, HostConfig, ThrottleDevice, UpdateRequest

CPU_PERIOD = 100_000
"""Microseconds; the period in which ``NanoCpus`` is expressed."""

_RULE = re.compile(r"([acb]) ([0-9]{1,9}|\*):([0-9]{1,9}|\*) ([rwm]{1,3})")

# type, major, minor (None: any), access
_DEFAULT_RULES = (
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    ("c", 1, 3, "rwm"),  # null
    ("c", 1, 5, "rwm"),  # zero
    ("c", 1, 7, "rwm"),  # full
    ("c", 1, 8, "rwm"),  # random
    ("c", 1, 9, "rwm"),  # urandom
    ("c", 5, 0, "rwm"),  # tty
    ("c", 5, 1, "rwm"),  # console
    ("c", 5, 2, "rwm"),  # ptmx
    ("c", 136, None, "rwm"),  # pseudo-terminals
)


def limits(host: HostConfig | UpdateRequest, machine: Machine) -> dict[str, Any]:
    """``linux.resources`` without devices; only what is set. Serves ``update`` too."""
    found: dict[str, Any] = {}
    for key, part in (("memory", _memory(host)), ("cpu", _cpu(host)), ("blockIO", _block_io(host, machine))):
        if part:
            found[key] = part
    if host.pids_limit:
        found["pids"] = {"limit": host.pids_limit if host.pids_limit > 0 else -1}
    return found


def _memory(host: HostConfig | UpdateRequest) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if host.memory > 0:
        found["limit"] = host.memory
    if host.memory_reservation > 0:
        found["reservation"] = host.memory_reservation
    if host.memory_swap != 0:
        found["swap"] = host.memory_swap
    if isinstance(host, HostConfig):
        if host.memory_swappiness is not None and host.memory_swappiness != -1:
            found["swappiness"] = host.memory_swappiness
        if host.oom_kill_disable:
            found["disableOOMKiller"] = True
    return found


def _cpu(host: HostConfig | UpdateRequest) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if host.nano_cpus > 0:
        found["period"] = CPU_PERIOD
        found["quota"] = host.nano_cpus * CPU_PERIOD // 1_000_000_000
    for key, value in (
        ("shares", host.cpu_shares),
        ("period", host.cpu_period),
        ("quota", host.cpu_quota),
        ("realtimePeriod", host.cpu_realtime_period),
        ("realtimeRuntime", host.cpu_realtime_runtime),
        ("cpus", host.cpuset_cpus),
        ("mems", host.cpuset_mems),
    ):
        if value:
            found[key] = value
    return found


def _block_io(host: HostConfig | UpdateRequest, machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = {"weight": host.blkio_weight} if host.blkio_weight else {}
    if host.blkio_weight_device:
        found["weightDevice"] = [
            {"major": node.major, "minor": node.minor, "weight": item.weight}
            for item in host.blkio_weight_device
            for node in (_block_device(item.path, machine),)
        ]
    for key, items in (
        ("throttleReadBpsDevice", host.blkio_device_read_bps),
        ("throttleWriteBpsDevice", host.blkio_device_write_bps),
        ("throttleReadIOPSDevice", host.blkio_device_read_iops),
        ("throttleWriteIOPSDevice", host.blkio_device_write_iops),
    ):
        if items:
            found[key] = [_throttle(item, machine) for item in items]
    return found


def _throttle(item: ThrottleDevice, machine: Machine) -> dict[str, int]:
    node = _block_device(item.path, machine)
    return {"major": node.major, "minor": node.minor, "rate": item.rate}


def _block_device(path: str, machine: Machine) -> DeviceNode:
    try:
        return machine.device(path)
    except OSError as error:
        raise InvalidArgument(f"stat {path}: {(error.strerror or '').lower()}") from None  # a 404 would send clients to pull the image
    except ValueError as error:
        raise InvalidArgument(f"cannot limit block device {path}: {error}") from None


def devices(host: HostConfig, machine: Machine) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """``linux.devices`` and ``linux.resources.devices``."""
    if host.privileged:
        nodes = [_node(node, node.path) for node in machine.devices_below("/dev")]
        return nodes, [{"allow": True, "access": "rwm"}]
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    rules += [_rule(kind, major, minor, access) for kind, major, minor, access in _DEFAULT_RULES]
    made: list[dict[str, Any]] = []
    for mapping in host.devices or ():
        for node, path in _mapped(mapping, machine):
            if all(other["path"] != path for other in made):  # of two that are to lie at one place the first is made
                made.append(_node(node, path))
            rules.append(_rule(node.kind, node.major, node.minor, mapping.cgroup_permissions or "rwm"))
    rules += [parse_device_rule(text) for text in host.device_cgroup_rules or ()]
    return made, rules


def _mapped(mapping: DeviceMapping, machine: Machine) -> Sequence[tuple[DeviceNode, str]]:
    """The host's nodes behind one ``--device``, each with its path in the container; a directory stands for all nodes in it."""
    source = os.path.realpath(mapping.path_on_host) if mapping.path_on_host.startswith("/") else mapping.path_on_host
    target = mapping.path_in_container or mapping.path_on_host
    try:
        if os.path.isdir(source):
            return [(node, target + node.path[len(source) :]) for node in machine.devices_below(source)]
        return [(machine.device(source), target)]
    except OSError as error:
        why = (error.strerror or "").lower()
    except ValueError as error:
        why = str(error)
    raise InvalidArgument(f'error gathering device information while adding custom device "{mapping.path_on_host}": {why}')


def _node(node: DeviceNode, path: str) -> dict[str, Any]:
    return {
        "path": path,
        "type": node.kind,
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode,
        "uid": node.uid,
        "gid": node.gid,
    }


def _rule(kind: str, major: int | None, minor: int | None, access: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    if major is not None:
        rule["major"] = major
    if minor is not None:
        rule["minor"] = minor
    return rule


def parse_device_rule(text: str) -> dict[str, Any]:
    """``--device-cgroup-rule``: ``c 42:* rmw``."""
    match = _RULE.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"invalid device cgroup rule format: '{text}'")
    major, minor = (None if number == "*" else int(number) for number in (match[2], match[3]))
    return _rule(match[1], major, minor, match[4])
