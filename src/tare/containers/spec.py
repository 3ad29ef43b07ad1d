"""From a container's settings to the OCI runtime configuration: what dockerd does between its API and its runtime (pure).

Everything that needs the world comes in: mounts and files as a resolved list, joined namespaces as paths, facts about the machine as
a ``Machine``. The user's name is not looked up here: that is done inside the container's own root, by the runtime. So ``process.user``
is not part of the result, and the capability sets are those of root; another user loses them with its first exec, as the kernel rules.

Precedence among mounts: a mount that the user asked for replaces a default one at the same place.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tare.containers import resources
from tare.containers.machine import DEFAULT_SYSCTLS, Machine, this_machine
from tare.containers.security_options import effective_capabilities, parse_security_options, seccomp_profile_of
from tare.wire.container import Config, ExecCreateRequest, HostConfig

OCI_VERSION = "1.1.0"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHM_SIZE = 64 << 20

MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_ENGINE_FILE = re.compile(r"/[0-9a-f]{64}/(hosts|hostname|resolv\.conf)\Z")
_PROC_PID = re.compile(r"(/proc/[0-9]+)/ns/ipc")


def runtime_config(
    config: Config,
    host: HostConfig,
    *,
    container_id: str,
    mounts: Sequence[Mapping[str, Any]] = (),
    namespaces: Mapping[str, str] | None = None,
    cgroups_path: str = "",
    own_network: bool = True,
    hostname: str = "",
    machine: Machine | None = None,
) -> dict[str, Any]:
    """The OCI configuration of a container (without ``root``, which the task driver provides, and without ``process.user``).

    ``config`` is merged with the image's, ``host`` has gone through ``validate.normalise_host_config``. ``mounts`` are OCI mounts with
    host paths: the engine's files for /etc and what the user asked for. ``namespaces`` names, by OCI type, namespaces that are not made
    anew: a path to join, or "" for the host's. ``hostname`` is for HOSTNAME where the container has no name of its own.

    Raises ``InvalidArgument`` for devices, rules or profiles that make no sense (``normalise_host_config`` has found most).
    """
    machine = machine or this_machine()
    joined = dict(namespaces or {})
    if "cgroup" not in joined and (host.cgroupns_mode or machine.default_cgroupns) != "private":
        joined["cgroup"] = ""
    security = parse_security_options(host.security_opt)
    names = effective_capabilities(host, machine)
    own_uts = "uts" not in joined
    shown_name = config.hostname or hostname or (machine.nodename if joined.get("uts") == "" else "")
    document: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(
            config,
            names,
            args=[*_words(config.entrypoint), *_words(config.cmd)],
            env=environment(config.env, hostname=shown_name, tty=config.tty),
            cwd=config.working_dir,
            tty=config.tty,
            host=host,
        )
        | {"oomScoreAdj": host.oom_score_adj},
        "mounts": _mounts(host, mounts, joined, security.writable_cgroups),
        "linux": _linux(host, joined, cgroups_path, own_network, machine),
    }
    if profile := seccomp_profile_of(host, security, names, machine):
        document["linux"]["seccomp"] = profile
    if security.apparmor:
        document["process"]["apparmorProfile"] = security.apparmor
    if host.readonly_rootfs:
        document["root"] = {"readonly": True}
    if own_uts and config.hostname:
        document["hostname"] = config.hostname
    if own_uts and config.domainname:
        document["domainname"] = config.domainname
    if host.annotations:
        document["annotations"] = dict(host.annotations)
    return document


def exec_process(
    config: Config,
    host: HostConfig,
    request: ExecCreateRequest,
    environment_: Sequence[str],
    machine: Machine | None = None,
) -> dict[str, Any]:
    """The OCI ``process`` of an exec. ``environment_`` is the container's environment with the exec's own over it."""
    machine = machine or this_machine()
    as_host = HostConfig(privileged=True) if request.privileged else host
    return _process(
        config,
        effective_capabilities(as_host, machine),
        args=list(request.cmd or ()),
        env=environment(environment_, hostname=config.hostname, tty=request.tty),
        cwd=request.working_dir or config.working_dir,
        tty=request.tty,
        host=host,
    )


def environment(own: Sequence[str] | None, *, hostname: str = "", tty: bool = False) -> list[str]:
    """PATH, HOSTNAME and TERM, then the container's variables; these replace, and a name without ``=`` removes."""
    found = {"PATH": f"PATH={DEFAULT_PATH}"}
    if hostname:
        found["HOSTNAME"] = f"HOSTNAME={hostname}"
    if tty:
        found["TERM"] = "TERM=xterm"
    for entry in own or ():
        name, equals, _ = entry.partition("=")
        if equals:
            found[name] = entry
        else:
            found.pop(name, None)
    return list(found.values())


def _words(value: Sequence[str] | str | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _process(
    config: Config,
    capabilities: Sequence[str],
    *,
    args: list[str],
    env: list[str],
    cwd: str,
    tty: bool,
    host: HostConfig,
) -> dict[str, Any]:
    process: dict[str, Any] = {
        "args": args,
        "env": env,
        "cwd": os.path.normpath(cwd) if cwd else "/",
        "capabilities": {kind: list(capabilities) for kind in ("bounding", "effective", "permitted")},
        "noNewPrivileges": parse_security_options(host.security_opt).no_new_privileges,
    }
    if tty:
        process["terminal"] = True
    if host.ulimits:
        limits = {item.name: item for item in host.ulimits}
        process["rlimits"] = [
            {"type": f"RLIMIT_{item.name.upper()}", "hard": _limit(item.hard), "soft": _limit(item.soft)} for item in limits.values()
        ]
    return process


def _limit(value: int) -> int:
    """-1 is "no limit", which the OCI document writes as the largest number."""
    return value if value >= 0 else (1 << 64) - 1


def _linux(host: HostConfig, joined: Mapping[str, str], cgroups_path: str, own_network: bool, machine: Machine) -> dict[str, Any]:
    made, rules = resources.devices(host, machine)
    linux: dict[str, Any] = {
        "namespaces": _namespaces(joined),
        "resources": {"devices": rules} | resources.limits(host, machine),
        "sysctl": _sysctls(host, own_network, machine),
    }
    if cgroups_path:
        linux["cgroupsPath"] = cgroups_path
    if made:
        linux["devices"] = made
    if not host.privileged:
        for key, given, default in (
            ("maskedPaths", host.masked_paths, MASKED_PATHS),
            ("readonlyPaths", host.readonly_paths, READONLY_PATHS),
        ):
            if paths := list(default if given is None else given):
                linux[key] = paths
    return linux


def _namespaces(joined: Mapping[str, str]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for kind in ("mount", "network", "uts", "pid", "ipc", "cgroup"):
        path = joined.get(kind)
        if path is None:
            found.append({"type": kind})
        elif path:
            found.append({"type": kind, "path": path})
    return found


def _sysctls(host: HostConfig, own_network: bool, machine: Machine) -> dict[str, str]:
    defaults = DEFAULT_SYSCTLS if own_network else {}
    return {key: value for key, value in defaults.items() if key not in machine.missing_sysctls} | (host.sysctls or {})


def _mounts(
    host: HostConfig, asked: Sequence[Mapping[str, Any]], joined: Mapping[str, str], writable_cgroups: bool
) -> list[dict[str, Any]]:
    places = {str(mount["destination"]) for mount in asked}
    found = [mount for mount in _default_mounts(host, joined, writable_cgroups) if not _covered(mount["destination"], places)]
    for mount in asked:
        options = list(mount.get("options") or ())
        if host.readonly_rootfs and "ro" not in options and _ENGINE_FILE.search(str(mount.get("source") or "")):
            options.insert(1, "ro")
        found.append({**mount, "options": options})
    return found


def _covered(place: str, places: set[str]) -> bool:
    return place in places or (place.startswith("/dev/") and "/dev" in places)


def _default_mounts(host: HostConfig, joined: Mapping[str, str], writable_cgroups: bool) -> list[dict[str, Any]]:
    plain = ["nosuid", "noexec", "nodev"]
    read_only_sys = [] if host.privileged else ["ro"]
    read_only_cgroup = [] if host.privileged or writable_cgroups else ["ro"]
    if host.readonly_rootfs and not host.privileged:
        read_only_cgroup = ["ro"]
    found: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": [*plain]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*plain, *read_only_sys]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*read_only_cgroup, *plain]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": [*plain]},
    ]
    if shm := _shm(host, joined):
        found.append(shm)
    return found


def _shm(host: HostConfig, joined: Mapping[str, str]) -> dict[str, Any] | None:
    """/dev/shm follows the IPC namespace: own, the host's, that of the container whose namespace is joined, or none."""
    if host.ipc_mode == "none":
        return None
    path = joined.get("ipc")
    if path is None:
        options = ["nosuid", "noexec", "nodev", "mode=1777", f"size={host.shm_size or DEFAULT_SHM_SIZE}"]
        return {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": options}
    match = _PROC_PID.fullmatch(path)
    source = f"{match[1]}/root/dev/shm" if match else "/dev/shm"
    return {"destination": "/dev/shm", "type": "bind", "source": source, "options": ["rbind", "rprivate"]}
