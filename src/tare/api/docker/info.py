"""``GET /info``: what this engine is, what the machine offers it, and what it warns about. Every value is looked up, none is claimed."""

from __future__ import annotations

import asyncio
import os
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tare.api.docker import version_differences as differences
from tare.api.docker import versions
from tare.api.docker.versions import ApiVersion
from tare.containers import cdi
from tare.containers.logdrivers import DRIVERS
from tare.linux.cgroup.detect import Layout, detect
from tare.networks import parent

if TYPE_CHECKING:
    from tare.engine import Engine

_DEFAULT_POOLS = [{"Base": f"172.{number}.0.0/16", "Size": 16} for number in range(17, 32)] + [{"Base": "192.168.0.0/16", "Size": 20}]
_NETWORK_DRIVERS = ("bridge", "host", "null", *parent.DRIVERS)
_machine: dict[str, Any] | None = None


def document(engine: Engine, version: ApiVersion) -> dict[str, Any]:
    """All fields that Docker's clients show, in dockerd's spelling."""
    machine = machine_facts()
    return {
        "ID": engine_id(engine.config.data_root),
        **_counts(engine),
        **_storage(engine),
        "Plugins": {"Volume": ["local"], "Network": sorted(_NETWORK_DRIVERS), "Authorization": None, "Log": [*DRIVERS]},
        **machine["limits"],
        "Debug": engine.config.debug,
        "NFd": len(os.listdir("/proc/self/fd")),
        "NGoroutines": len(asyncio.all_tasks()),
        "SystemTime": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "LoggingDriver": engine.config.log_driver,
        "NEventsListener": engine.events.subscriber_count,
        **machine["host"],
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": _registries(engine, version),
        "GenericResources": None,
        "DockerRootDir": str(engine.config.data_root),
        "HttpProxy": _proxy("HTTP_PROXY"),
        "HttpsProxy": _proxy("HTTPS_PROXY"),
        "NoProxy": os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or "",
        "Name": os.uname().nodename,
        "Labels": list(engine.config.labels),
        "ExperimentalBuild": engine.containers.checkpoints.criu.offered,
        "ServerVersion": versions.engine_version(),
        **_runtimes(version, engine.config.init_path),
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": True,
        "Isolation": "",
        "SecurityOptions": differences.security_options(machine["security"], version),
        "DefaultAddressPools": _DEFAULT_POOLS,
        "Warnings": machine["warnings"] + _listener_warnings(engine),
        "CDISpecDirs": [str(path) for path in engine.config.cdi_spec_dirs],
        **({"ExecutionDriver": "<not supported>"} if version < (1, 25) else {}),
        **({"FirewallBackend": {"Driver": "nftables"}} if version >= (1, 49) and engine.config.bridge != "none" else {}),
        **({"DiscoveredDevices": _discovered_devices(engine)} if version >= (1, 50) else {}),
    }


def _discovered_devices(engine: Engine) -> list[dict[str, str]]:
    """What ``--device KIND=NAME`` may name."""
    return [{"Source": "cdi", "ID": name} for name in sorted(cdi.known_devices(engine.config.cdi_spec_dirs).devices)]


def engine_id(data_root: Path) -> str:
    """A stable id of this data root, made at the first call."""
    path = data_root / "engine-id"
    with suppress(OSError):
        if text := path.read_text().strip():
            return text
    made = str(uuid.uuid4())
    temporary = path.with_name(".engine-id.new")
    with suppress(OSError):
        temporary.write_text(made + "\n")
        temporary.chmod(0o600)
        temporary.replace(path)
    return made


def _counts(engine: Engine) -> dict[str, int]:
    states = [container.record.state.status for container in engine.containers.all()]
    running, paused = states.count("running"), states.count("paused")
    return {
        "Containers": len(states),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": len(states) - running - paused,
        "Images": len(engine.images.list()),
    }


def _storage(engine: Engine) -> dict[str, Any]:
    name = engine.layers.name
    return {
        "Driver": name,
        "DriverStatus": [["Backing Filesystem", _filesystem(engine.config.data_root)], ["Root file system", "overlayfs"]],
    }


def _filesystem(path: Path) -> str:
    """Type of the file system that holds ``path``, from the mount table."""
    best, kind = "", "unknown"
    target = str(path.resolve())
    for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        mount = fields[1].replace("\\040", " ")
        inside = target == mount or target.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, fields[2]
    return kind


def _registries(engine: Engine, version: ApiVersion) -> dict[str, Any]:
    config = engine.config
    cidrs = ["127.0.0.0/8", "::1/128"] + [entry for entry in config.insecure_registries if "/" in entry]
    indexes: dict[str, Any] = {
        "docker.io": {"Name": "docker.io", "Mirrors": list(config.registry_mirrors), "Secure": True, "Official": True}
    }
    for entry in config.insecure_registries:
        if "/" not in entry:
            indexes[entry] = {"Name": entry, "Mirrors": [], "Secure": False, "Official": False}
    answer: dict[str, Any] = {"InsecureRegistryCIDRs": cidrs, "IndexConfigs": indexes, "Mirrors": list(config.registry_mirrors)}
    if version < (1, 49):
        answer |= {"AllowNondistributableArtifactsCIDRs": [], "AllowNondistributableArtifactsHostnames": []}
    return answer


def _runtimes(version: ApiVersion, init_path: str) -> dict[str, Any]:
    own = versions.engine_version()

    def commit(text: str) -> dict[str, str]:
        return {"ID": text, "Expected": text} if version < (1, 49) else {"ID": text}

    return {
        "Runtimes": {name: {"path": "tare-runtime"} for name in ("io.containerd.runc.v2", "runc", "tare")},
        "DefaultRuntime": "runc",  # as inspect shows it: the name that clients know for "the engine's own"
        "InitBinary": init_path or "docker-init",
        "ContainerdCommit": commit("none"),
        "RuncCommit": commit(f"tare-runtime {own}"),
        "InitCommit": commit(""),
    }


def _proxy(name: str) -> str:
    """A proxy's address without the password that it may carry."""
    value = os.environ.get(name) or os.environ.get(name.lower()) or ""
    scheme, separator, rest = value.partition("://")
    if "@" in rest:
        rest = "xxxxx:xxxxx@" + rest.rpartition("@")[2]
    return scheme + separator + rest


def _listener_warnings(engine: Engine) -> list[str]:
    config = engine.config
    if config.tls and config.tlsverify:
        return []
    return [
        f"[DEPRECATION NOTICE]: API is accessible on {host} without {'client authentication' if config.tls else 'encryption'}. "
        "Access to the API is equivalent to root access on the host."
        for host in config.hosts
        if host.startswith("tcp://")
    ]


def machine_facts() -> dict[str, Any]:
    """What does not change while the daemon runs; looked up once."""
    global _machine
    if _machine is None:
        layout = detect()
        limits, warnings = _limits(layout)
        _machine = {"host": _host(layout), "limits": limits, "warnings": warnings, "security": _security()}
    return _machine


def _host(layout: Layout) -> dict[str, Any]:
    release = _os_release()
    uname = os.uname()
    return {
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": "2" if layout.mode == "v2" else "1",
        "KernelVersion": uname.release,
        "OperatingSystem": release.get("PRETTY_NAME", "Linux"),
        "OSVersion": release.get("VERSION_ID", ""),
        "OSType": "linux",
        "Architecture": uname.machine,
        "NCPU": len(os.sched_getaffinity(0)),
        "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _os_release() -> dict[str, str]:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        with suppress(OSError):
            pairs = (line.partition("=") for line in Path(path).read_text().splitlines() if "=" in line)
            return {name: value.strip().strip("\"'") for name, _, value in pairs}
    return {}


def _limits(layout: Layout) -> tuple[dict[str, bool], list[str]]:
    controllers = layout.controllers
    memory = layout.hierarchy("memory")
    swap = memory is not None and (memory is layout.unified or os.path.exists(f"{memory.mount}/memory.memsw.limit_in_bytes"))
    cpu = "cpu" in controllers
    facts = {
        "MemoryLimit": "memory" in controllers,
        "SwapLimit": swap,
        "CpuCfsPeriod": cpu,
        "CpuCfsQuota": cpu,
        "CPUShares": cpu,
        "CPUSet": "cpuset" in controllers,
        "PidsLimit": "pids" in controllers,
        "IPv4Forwarding": _sysctl("net/ipv4/ip_forward"),
        "OomKillDisable": memory is not None and memory is not layout.unified,
    }
    texts = {
        "MemoryLimit": "WARNING: No memory limit support",
        "SwapLimit": "WARNING: No swap limit support",
        "CpuCfsQuota": "WARNING: No cpu cfs quota support",
        "CPUSet": "WARNING: No cpuset support",
        "PidsLimit": "WARNING: No pids limit support",
        "IPv4Forwarding": "WARNING: IPv4 forwarding is disabled",
    }
    return facts, [text for name, text in texts.items() if not facts[name]]


def _sysctl(name: str) -> bool:
    with suppress(OSError):
        return Path("/proc/sys", name).read_text().strip() not in ("", "0")
    return False


def _security() -> list[str]:
    options = []
    with suppress(OSError):
        if "Seccomp:" in Path("/proc/self/status").read_text():
            options.append("name=seccomp,profile=builtin")
    options += ["name=cgroupns"] if Path("/proc/self/ns/cgroup").exists() else []
    return options
