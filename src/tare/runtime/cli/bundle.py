"""A bundle: its configuration read, checked and lowered into a plan.

Nothing is dropped in silence. A field of the specification that we cannot honour is an error that names it. A field that the
specification does not know is a warning: the specification forbids to fail for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tare.linux.cgroup.detect import Layout
from tare.runtime import lowering
from tare.runtime.cli import steps
from tare.runtime.cli.report import RuntimeFailure
from tare.runtime.plan import Plan, StdioPlan, Step
from tare.runtime.steps import mounts, namespaces, process

CONFIG_LIMIT = 16 * 1024 * 1024

KNOWN: dict[str, str] = {
    "": "ociVersion process root hostname domainname mounts hooks annotations linux",
    "process": "terminal consoleSize user args env cwd capabilities rlimits noNewPrivileges apparmorProfile oomScoreAdj",
    "process.user": "uid gid umask additionalGids username",
    "process.consoleSize": "height width",
    "process.capabilities": "bounding effective permitted inheritable ambient",
    "root": "path readonly",
    "hooks": "prestart createRuntime createContainer startContainer poststart poststop",
    "linux": "uidMappings gidMappings sysctl resources cgroupsPath namespaces devices seccomp rootfsPropagation maskedPaths readonlyPaths",
    "linux.resources": "devices memory cpu pids blockIO hugepageLimits network rdma unified",
}
"""What is honoured, by path of the object."""

REFUSED: dict[str, str] = {
    "": "vm windows solaris zos freebsd",
    "process": "selinuxLabel commandLine scheduler ioPriority execCPUAffinity",
    "linux": "mountLabel intelRdt personality timeOffsets netDevices memoryPolicy",
}
"""What the specification has and we have not."""

DEFAULT_DEVICE_RULES: tuple[dict[str, Any], ...] = tuple(
    {"allow": True, "type": kind, "access": access, **numbers}
    for kind, access, numbers in (
        ("c", "m", {}),
        ("b", "m", {}),
        *(("c", "rwm", {"major": 1, "minor": minor}) for minor in (3, 5, 7, 8, 9)),
        *(("c", "rwm", {"major": 5, "minor": minor}) for minor in (0, 1, 2)),
        ("c", "rwm", {"major": 136}),
    )
)
"""What every container may use, whatever ``linux.resources.devices`` forbids: the default devices, terminals, and mknod itself."""


class Bundle(NamedTuple):
    """A bundle directory and its configuration."""

    path: str
    config: dict[str, Any]
    source: bytes
    warnings: tuple[str, ...]

    @property
    def tty(self) -> bool:
        return bool((self.config.get("process") or {}).get("terminal"))

    @property
    def rootfs(self) -> str:
        return os.path.normpath(os.path.join(self.path, str(self.config["root"]["path"])))


def load(path: str) -> Bundle:
    """Read and check a bundle."""
    path = os.path.abspath(path)
    name = os.path.join(path, "config.json")
    try:
        with open(name, "rb") as file:
            source = file.read(CONFIG_LIMIT + 1)
    except FileNotFoundError:
        raise RuntimeFailure(f"JSON specification file {name} not found") from None
    if len(source) > CONFIG_LIMIT:
        raise RuntimeFailure(f"{name} is longer than {CONFIG_LIMIT} bytes")
    try:
        config = json.loads(source)
        warnings = check(config)
    except (ValueError, TypeError, AttributeError) as error:
        raise RuntimeFailure(f"{name}: {error}") from None
    return Bundle(path, config, source, tuple(warnings))


def check(config: Any) -> list[str]:
    """Warnings about a configuration; ValueError for what we cannot do."""
    if not isinstance(config, dict):
        raise ValueError("not a JSON object")
    version = str(config.get("ociVersion") or "")
    if not version.startswith("1."):
        raise ValueError(f"ociVersion: {version!r} is not supported")
    warnings: list[str] = []
    for where in KNOWN:
        if not where.startswith("process"):
            _check_object(config, where, warnings)
    if not str((config.get("root") or {}).get("path") or ""):
        raise ValueError("root.path must not be empty")
    if not config.get("process"):
        raise ValueError("process must be given")
    warnings.extend(check_process(config["process"]))
    for number, mount in enumerate(config.get("mounts") or ()):
        for field in ("uidMappings", "gidMappings"):
            if mount.get(field):
                raise ValueError(f"mounts[{number}].{field}: id-mapped mounts are not supported")
    for number, namespace in enumerate((config.get("linux") or {}).get("namespaces") or ()):
        if namespace.get("type") == "time":
            raise ValueError(f"linux.namespaces[{number}]: time namespaces are not supported")
    seccomp = (config.get("linux") or {}).get("seccomp") or {}
    for field in ("listenerPath", "listenerMetadata"):
        if seccomp.get(field):
            raise ValueError(f"linux.seccomp.{field}: seccomp notification is not supported")
    return warnings


def check_process(process: Mapping[str, Any]) -> list[str]:
    """The same for a process alone (``exec --process``)."""
    warnings: list[str] = []
    for where in KNOWN:
        if where.startswith("process"):
            _check_object({"process": process}, where, warnings)
    capabilities = process.get("capabilities") or {}
    held = set(capabilities.get("ambient") or ())
    if held and int((process.get("user") or {}).get("uid") or 0):
        warnings.append("process.capabilities.ambient: always empty (CVE-2022-24769); a program of this user has file capabilities only")
    return warnings


def _check_object(config: Mapping[str, Any], where: str, warnings: list[str]) -> None:
    value: Any = config
    for part in where.split(".") if where else ():
        value = (value or {}).get(part)
    if value is None:
        return
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not an object")
    prefix = f"{where}." if where else ""
    for field in value.keys() - set(KNOWN[where].split()):
        if field in REFUSED.get(where, "").split():
            if value[field]:
                raise ValueError(f"{prefix}{field} is not supported")
        else:
            warnings.append(f"{prefix}{field}: unknown, ignored")


def cgroup_path(config: Mapping[str, Any], container_id: str) -> str:
    """Where the container's cgroup lies in every hierarchy."""
    path = str((config.get("linux") or {}).get("cgroupsPath") or "")
    if not path:
        return f"/tare-runtime/{container_id}"
    if path.count(":") == 2 and "/" not in path.split(":")[1]:
        raise RuntimeFailure(f"linux.cgroupsPath: {path!r} is a systemd slice; only cgroupfs paths are supported")
    return "/" + path.strip("/")


def lower(
    bundle: Bundle,
    container_id: str,
    state_directory: str,
    layout: Layout | None,
    *,
    listener: int = -1,
    size: tuple[int, int] | None = None,
    descriptors: int = 0,
    environment: tuple[str, ...] = (),
) -> Plan:
    """The plan of a container without a keeper. ``listener`` is its start socket, if it shall wait."""
    config = dict(bundle.config)
    config["linux"] = linux = dict(config.get("linux") or {})
    config["mounts"], filled = _without_copy_up(config.get("mounts") or ())
    linux["resources"] = resources = dict(linux.get("resources") or {})
    given = list(resources.get("devices") or ())
    nothing = {"allow": False, "access": "rwm"}
    resources["devices"] = [*([] if given[:1] == [nothing] else [nothing]), *given, *DEFAULT_DEVICE_RULES]
    if environment:
        config["process"] = {**config["process"], "env": [*(config["process"].get("env") or ()), *environment]}
    console = config["process"].get("consoleSize") or {}
    rows, columns = size or (int(console.get("height") or 0), int(console.get("width") or 0))
    around = lowering.Surroundings(
        run_dir=state_directory,
        root=lowering.DirectoryRootPlan(bundle.rootfs),
        stdio=StdioPlan(bundle.tty, rows=rows, columns=columns),
        cgroup=cgroup_path(config, container_id) if layout is not None else "",
        v1_hierarchies=tuple((item.mount, os.path.basename(item.mount)) for item in layout.v1) if layout is not None else (),
        hold=listener >= 0,
    )
    try:
        plan = lowering.lower(container_id, config, around)
        own_user = any(isinstance(item, namespaces.NewUserNamespace) for item in plan.steps)
        if own_user and not (plan.keeper.uid_map and plan.keeper.gid_map):
            raise ValueError("linux.uidMappings and linux.gidMappings must be given with a new user namespace")
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise RuntimeFailure(f"invalid configuration: {error}") from None
    result: list[Step] = []
    for item in adapt(plan.steps, listener, descriptors):
        if isinstance(item, mounts.MountFilesystem) and item.destination in filled:
            item = steps.FillTmpfs(item.destination, (type(item).__name__, item._asdict()))
        result.append(item)
    return plan._replace(steps=tuple(result))


def _without_copy_up(entries: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], set[str]]:
    """Mounts without runc's own option ``tmpcopyup``, and the destinations that have it."""
    result, filled = [], set[str]()
    for entry in entries:
        options = list(entry.get("options") or ())
        if entry.get("type") == "tmpfs" and "tmpcopyup" in options:
            filled.add(os.path.normpath(str(entry.get("destination"))))
        result.append({**entry, "options": [option for option in options if option not in ("tmpcopyup", "notmpcopyup")]})
    return result, filled


def adapt(plan_steps: tuple[Step, ...], listener: int, descriptors: int) -> tuple[Step, ...]:
    """Steps for an init without a keeper."""
    result: list[Step] = []
    for item in plan_steps:
        if isinstance(item, process.Hold):
            result.append(steps.AwaitStart(listener))
            continue
        result.append(item)
        if isinstance(item, process.CloseDescriptors) and descriptors:
            result.append(steps.KeepDescriptors(2 + descriptors))
        elif isinstance(item, process.DropPrivileges):
            result.append(steps.Outlive())
    return tuple(result)
