"""What dockerd checks when a container is made, and the defaults that it writes into the container's settings.

A refused value never reaches a record, so that later stages can take settings as they are. Texts are dockerd's where clients match on
them. What this machine cannot do is dropped with a warning, where dockerd does so, and refused where it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tare.containers import cdi, daemon_defaults, resources
from tare.containers.health import RESTART_ANNOTATION
from tare.containers.machine import Machine, parse_list, this_machine
from tare.containers.security_options import (
    UNCONFINED,
    effective_capabilities,
    normalise_capabilities,
    parse_security_options,
    seccomp_profile_of,
)
from tare.containers.signals import parse_signal
from tare.containers.spec import DEFAULT_SHM_SIZE, MASKED_PATHS, READONLY_PATHS
from tare.errors import InvalidArgument
from tare.wire.container import Config, Healthcheck, HostConfig, RestartPolicy, UpdateRequest

if TYPE_CHECKING:
    from pathlib import Path

    from tare.config import EngineConfig

MINIMUM_MEMORY = 6 << 20
MINIMUM_HEALTH_DURATION = 1_000_000
_BILLION = 1_000_000_000

RUNTIMES = frozenset(("", "runc", "tare", "tare-runtime", "io.containerd.runc.v2"))
RESTART_POLICIES = ("no", "always", "on-failure", "unless-stopped")
ULIMITS = frozenset(
    "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split()  # getrlimit(2)
)
_TMPFS_WORDS = frozenset(
    "exec noexec suid nosuid dev nodev atime noatime diratime nodiratime relatime norelatime strictatime nostrictatime "
    "sync async dirsync ro rw mand nomand defaults private rprivate shared rshared slave rslave unbindable runbindable".split()
)
_TMPFS_VALUES = frozenset("size mode uid gid nr_inodes nr_blocks mpol huge".split())
IPC_SYSCTLS = frozenset(
    "kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax kernel.shmmni kernel.shm_rmid_forced".split()
)


def normalise_host_config(
    host: HostConfig, config: Config, engine: EngineConfig | None = None, machine: Machine | None = None
) -> list[str]:
    """Check both halves of a container's settings and write dockerd's defaults into ``host``. Returns warnings for the client.

    Raises ``InvalidArgument``.
    """
    machine = machine or this_machine()
    if engine is not None:
        daemon_defaults.fill(host, engine)
    _check_config(config)
    _check_modes(host, engine.cdi_spec_dirs if engine is not None else cdi.DIRECTORIES)
    if any(part in (".", "..") for part in host.cgroup_parent.split("/")) or "\0" in host.cgroup_parent:
        raise InvalidArgument(f"invalid cgroup parent {host.cgroup_parent!r}: it is a path below the root of the control groups")
    if host.uts_mode == "host" and config.hostname:
        raise InvalidArgument("conflicting options: hostname and the UTS mode")
    check_tmpfs(host)
    if (choice := (host.annotations or {}).get(RESTART_ANNOTATION)) not in (None, "true", "false"):
        raise InvalidArgument(f"annotation {RESTART_ANNOTATION} is true or false, not {choice!r}")
    if choice == "true" and host.auto_remove:
        raise InvalidArgument(f"annotation {RESTART_ANNOTATION} cannot be used with --rm")
    check_restart_policy(host.restart_policy, host.auto_remove)
    if host.runtime not in RUNTIMES:
        raise InvalidArgument(f"unknown or invalid runtime name: {host.runtime}")
    if not -1000 <= host.oom_score_adj <= 1000:
        raise InvalidArgument(f"Invalid value {host.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    if host.shm_size < 0:
        raise InvalidArgument("SHM size can not be less than 0")
    host.cap_add = normalise_capabilities(host.cap_add, "CapAdd")
    host.cap_drop = normalise_capabilities(host.cap_drop, "CapDrop")
    _check_ulimits(host)
    check_sysctls(host)
    warnings = check_resources(host, machine)
    _check_devices(host, machine)
    _check_security(host, machine, warnings)
    for entry in host.extra_hosts or ():
        name, colon, address = entry.replace("=", ":", 1).partition(":")
        if not name or not colon or not address:
            raise InvalidArgument(f'bad format for add-host: "{entry}"')
    _fill_defaults(host, machine)
    return warnings


def check_network_mode(config: Config, host: HostConfig, endpoints: Iterable[str]) -> None:
    """Refuse, in dockerd's words, what a container without a network namespace of its own cannot have. ``config`` is what was asked,
    without the image's share; ``endpoints`` are the networks that were named besides the mode."""
    mode = "container" if host.network_mode.startswith("container:") else host.network_mode
    conflicts = [
        (("container",), bool(config.hostname), "hostname and the network mode"),
        (
            ("host",),
            bool(host.links),
            "host type networking can't be used with links. This would result in undefined behavior",
        ),
        (
            ("container",),
            bool(host.links),
            "container type network can't be used with links. This would result in undefined behavior",
        ),
        (("container",), bool(host.dns), "dns and the network mode"),
        (("container",), bool(host.extra_hosts), "custom host-to-IP mapping and the network mode"),
        (("container", "host"), bool(config.mac_address), "mac-address and the network mode"),
        (
            ("container",),
            bool(host.port_bindings or host.publish_all_ports),
            "port publishing and the container type network mode",
        ),
        (("container",), bool(config.exposed_ports), "port exposing and the container type network mode"),
        (
            ("container", "host", "none"),
            any(name not in (host.network_mode, "default", "") for name in endpoints),
            "cannot attach both user-defined and non-user-defined network-modes",
        ),
    ]
    for modes, present, text in conflicts:
        if present and mode in modes:
            raise InvalidArgument(f"conflicting options: {text}")


def _check_config(config: Config) -> None:
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidArgument(f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute path")
    for entry in config.env or ():
        if not entry or entry.startswith("=") or "\0" in entry:
            raise InvalidArgument(f"invalid environment variable: {entry}")
    for value, what in ((config.hostname, "hostname"), (config.domainname, "domainname")):
        if len(value.encode()) > 64 or "\0" in value or "\n" in value:
            raise InvalidArgument(f"invalid {what} format: {value}")
    if config.stop_signal:
        parse_signal(config.stop_signal)
    if config.healthcheck is not None:
        _check_health(config.healthcheck)


def _check_health(check: Healthcheck) -> None:
    for value, what in (
        (check.interval, "Interval"),
        (check.timeout, "Timeout"),
        (check.start_period, "StartPeriod"),
        (check.start_interval, "StartInterval"),
    ):
        if value and value < MINIMUM_HEALTH_DURATION:
            raise InvalidArgument(f"{what} in Healthcheck cannot be less than 1ms")
    if check.retries < 0:
        raise InvalidArgument("Retries in Healthcheck cannot be negative")


def _check_modes(host: HostConfig, directories: Sequence[Path]) -> None:
    if host.cgroupns_mode not in ("", "private", "host"):
        raise InvalidArgument(f"invalid cgroup namespace mode: {host.cgroupns_mode}")
    if host.uts_mode not in ("", "host"):
        raise InvalidArgument(f"invalid UTS mode: {host.uts_mode}")
    if host.userns_mode not in ("", "host"):
        raise InvalidArgument(f"invalid user namespace mode: {host.userns_mode}")
    if host.isolation not in ("", "default"):
        raise InvalidArgument(f'invalid isolation "{host.isolation}": linux only supports "default"')
    if host.device_requests:
        known = cdi.known_devices(directories)
        cdi.edits_of(cdi.names_of(host.device_requests, known), known)


def check_restart_policy(policy: RestartPolicy, auto_remove: bool) -> None:
    name, retries = policy.name, policy.maximum_retry_count
    if name and name not in RESTART_POLICIES:
        raise InvalidArgument(
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if name != "on-failure" and retries != 0:
        raise InvalidArgument("invalid restart policy: maximum retry count can only be used with 'on-failure'")
    if retries < 0:
        raise InvalidArgument("invalid restart policy: maximum retry count cannot be negative")
    if auto_remove and name not in ("", "no"):
        raise InvalidArgument("can't create 'AutoRemove' container with restart policy")


def check_tmpfs(host: HostConfig) -> None:
    """``--tmpfs``: absolute places, and options that tmpfs(5) or every mount knows."""
    for place, text in (host.tmpfs or {}).items():
        if not place.startswith("/"):
            raise InvalidArgument(f"invalid mount path: '{place}' mount path must be absolute")
        for word in filter(None, text.split(",")):
            name, equals, value = word.partition("=")
            if (name not in _TMPFS_VALUES or not value) if equals else (name not in _TMPFS_WORDS):
                shown = " ".join(f'"{part}"' for part in ((name, value) if equals else (name,)))
                raise InvalidArgument(f"invalid tmpfs option [{shown}]")


def _check_ulimits(host: HostConfig) -> None:
    for item in host.ulimits or ():
        if item.name not in ULIMITS:
            raise InvalidArgument(f"invalid ulimit type: {item.name}")
        if item.hard != -1 and (item.soft > item.hard or item.soft == -1):
            raise InvalidArgument(f"ulimit soft limit must be less than or equal to hard limit: {item.soft} > {item.hard}")
        if item.soft < -1 or item.hard < -1:
            raise InvalidArgument(f"invalid ulimit value: {item.name}={item.soft}:{item.hard}")


def check_sysctls(host: HostConfig) -> None:
    """Only what belongs to a namespace of the container's own, and nothing that could name a second path or line."""
    for key, value in (host.sysctls or {}).items():
        if not key or not all(part.replace("-", "").replace("_", "").isalnum() and part.isascii() for part in key.split(".")):
            raise InvalidArgument(f'invalid sysctl name "{key}": write it with dots, as net.ipv4.ip_forward')
        if any(character in value for character in "\n\0"):
            raise InvalidArgument(f'invalid value of sysctl "{key}": it has to be one line')
        if key.startswith("net."):
            if host.network_mode == "host":
                raise InvalidArgument(f'sysctl "{key}" not allowed in host network namespace')
        elif key in IPC_SYSCTLS or key.startswith("fs.mqueue."):
            if host.ipc_mode == "host":
                raise InvalidArgument(f'sysctl "{key}" is not allowed in the hosts ipc namespace')
        else:
            raise InvalidArgument(f'sysctl "{key}" is not in a separate kernel namespace')


def check_resources(host: HostConfig | UpdateRequest, machine: Machine | None = None, *, update: bool = False) -> list[str]:
    """Check limits. Those that this machine does not offer are taken out of ``host``; the warnings say so."""
    machine = machine or this_machine()
    warnings: list[str] = []
    _check_memory(host, machine, update, warnings)
    _check_cpu(host, machine, warnings)
    if host.pids_limit and "pids" not in machine.controllers:
        warnings.append("Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.")
        host.pids_limit = None
    if host.blkio_weight and not machine.blkio_weight:
        warnings.append("Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.")
        host.blkio_weight = 0
    if host.blkio_weight and not 10 <= host.blkio_weight <= 1000:
        raise InvalidArgument("Range of blkio weight is from 10 to 1000")
    if isinstance(host, HostConfig):
        _check_host_only(host, machine, warnings)
    return warnings


def _check_memory(host: HostConfig | UpdateRequest, machine: Machine, update: bool, warnings: list[str]) -> None:
    if host.memory < 0 or 0 < host.memory < MINIMUM_MEMORY:
        raise InvalidArgument("Minimum memory limit allowed is 6MB")
    if host.memory and "memory" not in machine.controllers:
        warnings.append("Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.")
        host.memory, host.memory_swap, host.memory_reservation = 0, 0, 0
    if host.memory_swap < -1:
        raise InvalidArgument(f"Invalid memory swap limit: {host.memory_swap}; -1 stands for no limit")
    if host.memory and 0 < host.memory_swap < host.memory:
        raise InvalidArgument("Minimum memoryswap limit should be larger than memory limit, see usage")
    if not host.memory and host.memory_swap > 0 and not update:
        raise InvalidArgument("You should always set the Memory limit when using Memoryswap limit, see usage")
    if host.memory and host.memory_swap != -1 and not machine.swap_limit:
        warnings.append("Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.")
        host.memory_swap = -1
    if host.memory_reservation < 0 or 0 < host.memory_reservation < MINIMUM_MEMORY:
        raise InvalidArgument("Minimum memory reservation allowed is 6MB")
    if host.memory and host.memory < host.memory_reservation:
        raise InvalidArgument("Minimum memory limit can not be less than memory reservation limit, see usage")
    if host.memory and host.memory_swap == 0 and not update:
        host.memory_swap = host.memory * 2


def _check_cpu(host: HostConfig | UpdateRequest, machine: Machine, warnings: list[str]) -> None:
    if host.nano_cpus and host.cpu_period:
        raise InvalidArgument("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if host.nano_cpus and host.cpu_quota:
        raise InvalidArgument("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    if host.nano_cpus and not _BILLION // 100 <= host.nano_cpus <= machine.cpus * _BILLION:
        raise InvalidArgument(f"Range of CPUs is from 0.01 to {machine.cpus}.00, as there are only {machine.cpus} CPUs available")
    if host.cpu_period and not 1000 <= host.cpu_period <= 1_000_000:
        raise InvalidArgument("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < host.cpu_quota < 1000:
        raise InvalidArgument("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if host.cpu_shares < 0:
        raise InvalidArgument(f"invalid CPU shares ({host.cpu_shares}): value must be a positive integer")
    if host.cpu_realtime_period or host.cpu_realtime_runtime:
        warnings.append("Your kernel does not support CPU realtime scheduling for containers. CPU realtime limits discarded.")
        host.cpu_realtime_period = host.cpu_realtime_runtime = 0
    for value, available, kind, what in (
        (host.cpuset_cpus, machine.cpuset_cpus, "cpus", "CPUs"),
        (host.cpuset_mems, machine.cpuset_mems, "mems", "memory nodes"),
    ):
        if not value:
            continue
        try:
            asked = parse_list(value)
        except ValueError:
            raise InvalidArgument(f"Invalid value {value} for cpuset {kind}: invalid format: {value}") from None
        if asked - available:
            raise InvalidArgument(f"Requested {what} are not available - requested {value}, available: {_ranges(available)}")
        if "cpuset" not in machine.controllers:
            warnings.append("Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.")
            host.cpuset_cpus = host.cpuset_mems = ""


def _ranges(numbers: frozenset[int]) -> str:
    """The kernel's list format, as short as it gets."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def _check_host_only(host: HostConfig, machine: Machine, warnings: list[str]) -> None:
    swappiness = host.memory_swappiness
    if swappiness is not None and swappiness != -1:
        if not 0 <= swappiness <= 100:
            raise InvalidArgument(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
        if machine.cgroup_version == 2:
            warnings.append(
                "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded."
            )
            host.memory_swappiness = None
    if host.oom_kill_disable and not machine.oom_kill_disable:
        warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
        host.oom_kill_disable = None
    if host.oom_kill_disable and not host.memory:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources."
        )
    if host.kernel_memory or host.kernel_memory_tcp:
        warnings.append("Kernel memory limits are deprecated by the kernel and have no effect. Kernel memory limit discarded.")
        host.kernel_memory = host.kernel_memory_tcp = 0
    if host.blkio_weight_device and not machine.blkio_weight:
        warnings.append("Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.")
        host.blkio_weight_device = None
    for item in host.blkio_weight_device or ():
        if not 10 <= item.weight <= 1000:
            raise InvalidArgument("Range of blkio weight is from 10 to 1000")
    if host.io_maximum_bandwidth or host.io_maximum_iops:
        raise InvalidArgument("Invalid QoS settings: Linux does not support Maximum IO Bandwidth or Maximum IO IOps")
    if host.cpu_count or host.cpu_percent:
        raise InvalidArgument("Invalid QoS settings: Linux does not support CPU count or CPU percent: use NanoCpus")


def _check_devices(host: HostConfig, machine: Machine) -> None:
    for mapping in host.devices or ():
        permissions = mapping.cgroup_permissions
        if permissions and (set(permissions) - set("rwm") or len(set(permissions)) != len(permissions)):
            raise InvalidArgument(f"invalid device mode: {permissions}")
        if mapping.path_in_container and not mapping.path_in_container.startswith("/"):
            raise InvalidArgument(f"{mapping.path_in_container} is not an absolute path")
    for text in host.device_cgroup_rules or ():
        resources.parse_device_rule(text)
    resources.limits(host, machine)


def _check_security(host: HostConfig, machine: Machine, warnings: list[str]) -> None:
    options = parse_security_options(host.security_opt)
    if options.apparmor not in ("", UNCONFINED) and not machine.apparmor:
        warnings.append(f"AppArmor is not enabled on this host. Profile {options.apparmor} discarded.")
        host.security_opt = [option for option in host.security_opt or () if not re.match("apparmor[=:]", option)]
    if options.seccomp not in ("", UNCONFINED):
        seccomp_profile_of(host, options, effective_capabilities(host, machine), machine)


def _fill_defaults(host: HostConfig, machine: Machine) -> None:
    host.network_mode = "bridge" if host.network_mode in ("", "default") else host.network_mode
    host.ipc_mode = host.ipc_mode or "private"
    host.cgroupns_mode = host.cgroupns_mode or machine.default_cgroupns
    host.runtime = host.runtime or "runc"
    host.restart_policy.name = host.restart_policy.name or "no"
    host.shm_size = host.shm_size or DEFAULT_SHM_SIZE
    if host.pids_limit is not None and host.pids_limit <= 0:
        host.pids_limit = None  # both are written for "unlimited"
    labelled = any(re.match("label[=:]", option) for option in host.security_opt or ())
    if not labelled and (host.privileged or "host" in (host.ipc_mode, host.pid_mode)):
        host.security_opt = [*(host.security_opt or ()), "label=disable"]
    if host.oom_kill_disable is None and machine.oom_kill_disable:
        host.oom_kill_disable = False
    if not host.privileged:
        host.masked_paths = list(MASKED_PATHS) if host.masked_paths is None else host.masked_paths
        host.readonly_paths = list(READONLY_PATHS) if host.readonly_paths is None else host.readonly_paths
