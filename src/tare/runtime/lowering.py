"""From an OCI runtime configuration to a ``Plan``: a pure function, so that a container can be looked at before it runs.

The order of the init's steps, and why:

    open namespaces to join        before anything changes what their paths mean
    user namespace                 it owns those made after it, also the pid namespace, which takes a second fork
    other namespaces               the keeper is told, and makes links while we mount
    open bind sources              the host's tree is still visible, with its propagation
    private tree, root, mounts     cgroup files as late as possible: the keeper attaches us meanwhile
    network inside                 waits for the keeper's links
    console, devices, masks, pivot [hooks: the keeper's, then createContainer, before it]
    names, sysctls, limits         as root, inside
    user look-up                   in the root's own files
    [seccomp]                      here without no_new_privs: it needs CAP_SYS_ADMIN
    drop privileges, cwd, program
    [seccomp]                      here with no_new_privs: as late as possible
    [startContainer hooks]
    execute
"""

from __future__ import annotations

import binascii
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tare.linux import capabilities, seccomp
from tare.linux.constants import MS_PRIVATE, MS_REC
from tare.linux.namespaces import OCI_NAMES
from tare.runtime import hooks, mount_options
from tare.runtime.plan import ExecPlan, KeeperPlan, LinkPlan, LogPlan, Plan, StdioPlan, Step, UserMap
from tare.runtime.steps import hooks as hook_steps
from tare.runtime.steps import kernel, mounts, namespaces, process, rootfs

INIT_PATH = "/sbin/docker-init"
BUILT_IN_INIT = "built-in"
"""Value of ``Surroundings.init`` for ``runtime.reaper`` in place of a program of the host."""

_DEV_MOUNT: dict[str, Any] = {
    "destination": "/dev",
    "type": "tmpfs",
    "source": "tmpfs",
    "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
}
_FOREIGN = re.compile(r"/proc/([0-9]+)/root/(.+)")
"""A bind source inside another process's root: it has to be taken out of that process's mount namespace."""
_IPC_SYSCTLS = frozenset(
    "kernel." + name for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


class OverlayRootPlan(NamedTuple):
    """A root of read-only layers (topmost first) under a writable directory."""

    lower: tuple[str, ...]
    upper: str
    work: str


class DirectoryRootPlan(NamedTuple):
    """A root that is one directory."""

    path: str


class Link(NamedTuple):
    """One link with the container's addresses."""

    host_name: str
    bridge: str
    name: str
    mac: str
    mtu: int
    addresses: tuple[str, ...]
    gateways: tuple[str, ...]
    kind: str = "veth"
    mode: str = ""


class Surroundings(NamedTuple):
    """What is not in the OCI configuration: where things lie on the host and how the container is connected."""

    run_dir: str
    root: OverlayRootPlan | DirectoryRootPlan
    stdio: StdioPlan = StdioPlan()
    log: LogPlan = LogPlan()
    cgroup: str = ""
    v1_hierarchies: tuple[tuple[str, str], ...] = ()
    links: tuple[Link, ...] = ()
    name_server: str = ""
    user: str | None = None
    """Docker's user string; None takes the numbers of ``process.user``."""
    additional_groups: tuple[str, ...] = ()
    init: str = ""
    """Host path of a static init, or ``BUILT_IN_INIT``."""
    hold: bool = False


def lower(container_id: str, config: Mapping[str, Any], around: Surroundings) -> Plan:
    """The plan of a container. ValueError names what the configuration asks and we cannot do."""
    linux: Mapping[str, Any] = config.get("linux") or {}
    wanted = _namespaces(linux)
    new = tuple(kind for kind, path in wanted.items() if not path and kind not in ("user", "pid", "cgroup"))
    joined = {kind: path for kind, path in wanted.items() if path and kind != "pid"}
    steps: list[Step] = [process.NewSession()]
    if joined:
        steps.append(namespaces.OpenNamespaces(joined))
    score = (config.get("process") or {}).get("oomScoreAdj")
    if score is not None:
        steps.append(namespaces.OutOfMemoryScore(int(score)))
    if translated := _translated_sources(config, linux):
        from tare.runtime.steps.idmap import OpenMappedSources  # seldom needed

        steps.append(OpenMappedSources(translated))
    if wanted.get("user") == "":
        steps.append(namespaces.NewUserNamespace())
    if joined:
        steps.append(namespaces.JoinNamespaces(tuple(sorted(joined, key=lambda kind: (kind != "user", kind == "mnt", kind)))))
    pids = wanted["pid"] or "new" if "pid" in wanted else "host"
    if pids == "new" and "user" in wanted:
        pids = "own"
        steps.append(namespaces.ForkIntoPidNamespace())
    if new:
        steps.append(namespaces.NewNamespaces(new))
    steps.append(namespaces.NamespacesReady())
    steps.extend(_root_steps(config, linux, wanted, around))
    steps.extend(_kernel_steps(config, linux, wanted))
    filter_text, filter_flags = _filter(linux.get("seccomp"))
    start_hooks = hooks.read(config, "startContainer")
    steps.extend(lower_process(config.get("process") or {}, around, filter_text, filter_flags, start_hooks=start_hooks))
    keeper = KeeperPlan(
        stdio=around.stdio,
        log=around.log,
        run_dir=around.run_dir,
        cgroup=around.cgroup,
        resources=dict(linux.get("resources") or {}),
        pid_namespace=pids,
        links=tuple(LinkPlan(link.host_name, link.bridge, link.name, link.mac, link.mtu, link.kind, link.mode) for link in around.links),
        name_server=around.name_server,
        uid_map=_maps(linux.get("uidMappings")),
        gid_map=_maps(linux.get("gidMappings")),
        hold=around.hold,
        kill_rest=wanted.get("pid") != "",
        hooks=_keepers_hooks(config, around),
    )
    kinds = tuple(kind for kind in wanted if kind != "pid")
    return Plan(container_id, keeper, tuple(steps), {"kinds": kinds, "seccomp": filter_text, "flags": filter_flags})


def fits_spare(plan: Plan) -> bool:
    """Whether an init that was made ahead can serve: its pid, network, UTS and IPC namespaces are new and belong to the
    host's user namespace."""
    new = next((item.kinds for item in plan.steps if isinstance(item, namespaces.NewNamespaces)), ())
    user = any(isinstance(item, namespaces.NewUserNamespace) for item in plan.steps) or "user" in plan.exec_defaults["kinds"]
    return plan.keeper.pid_namespace == "new" and not user and {"net", "uts", "ipc"} <= set(new)


def lower_exec(
    exec_id: str,
    process_config: Mapping[str, Any],
    stdio: StdioPlan,
    defaults: Mapping[str, Any],
    *,
    user: str | None,
    additional_groups: tuple[str, ...] = (),
    privileged: bool = False,
) -> ExecPlan:
    """The plan of a further process; ``defaults`` are the container's ``Plan.exec_defaults``."""
    around = Surroundings("", DirectoryRootPlan("/"), stdio=stdio, user=user, additional_groups=additional_groups)
    steps: list[Step] = [process.NewSession()]
    score = process_config.get("oomScoreAdj")
    if score is not None:
        steps.append(namespaces.OutOfMemoryScore(int(score)))
    steps.append(namespaces.WaitForCgroup(False))
    steps.append(namespaces.JoinContainer(tuple(defaults["kinds"])))
    if stdio.tty:
        steps.append(rootfs.OpenConsole(stdio.rows, stdio.columns, False))
    filter_text = "" if privileged else str(defaults.get("seccomp", ""))
    if privileged:
        everything = list(capabilities.NAMES)
        process_config = {**process_config, "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), everything)}
    steps.extend(lower_process(process_config, around, filter_text, int(defaults.get("flags", 0)), make_directory=False))
    return ExecPlan(exec_id, stdio, tuple(steps))


def lower_process(
    config: Mapping[str, Any],
    around: Surroundings,
    filter_text: str,
    filter_flags: int,
    *,
    make_directory: bool = True,
    start_hooks: tuple[hooks.Hook, ...] = (),
) -> list[Step]:
    """Steps from inside the root to exec, for a container's first process and for an exec (which finds its directory or fails)."""
    args = tuple(config.get("args") or ())
    if not args:
        raise ValueError("process.args must not be empty")
    supervised = around.init == BUILT_IN_INIT
    if around.init and not supervised:
        args = (INIT_PATH, "--", *args)
    user: Mapping[str, Any] = config.get("user") or {}
    cwd = str(config.get("cwd") or "/")
    if not cwd.startswith("/"):
        raise ValueError(f"Cwd must be an absolute path: {cwd!r}")
    steps: list[Step] = []
    limits = tuple((str(item["type"]), int(item["soft"]), int(item["hard"])) for item in config.get("rlimits") or ())
    for name, _, _ in limits:
        if name not in kernel.RESOURCES:
            raise ValueError(f"unknown rlimit type: {name}")
    if limits:
        steps.append(kernel.SetLimits(limits))
    profile = str(config.get("apparmorProfile") or "")
    if profile and profile != "unconfined":
        steps.append(kernel.ApparmorProfile(profile))
    if around.user is None:
        groups = tuple(int(number) for number in user.get("additionalGids") or ())
        steps.append(process.NumericUser(int(user.get("uid", 0)), int(user.get("gid", 0)), groups))
    else:
        steps.append(process.LookUpUser(around.user, around.additional_groups))
    if cwd != "/" and make_directory:
        steps.append(process.MakeWorkingDirectory(cwd))
    steps.append(process.ConnectStreams())
    steps.append(process.CloseDescriptors())
    no_new_privileges = bool(config.get("noNewPrivileges"))
    if filter_text and not no_new_privileges:
        steps.append(process.LoadSeccomp(filter_text, filter_flags))
    caps: Mapping[str, Any] = config.get("capabilities") or {}
    bounding, effective, permitted = (_capability_bits(caps.get(name) or ()) for name in ("bounding", "effective", "permitted"))
    umask = user.get("umask")
    steps.append(process.DropPrivileges(bounding, effective & permitted, permitted, 0o022 if umask is None else int(umask)))
    steps.append(process.ChangeDirectory(cwd))
    steps.append(process.FindProgram(args, tuple(config.get("env") or ())))
    if no_new_privileges:
        steps.append(process.NoNewPrivileges())
    if around.hold:
        steps.append(process.Hold())
    if start_hooks:
        steps.append(hook_steps.StartHooks(start_hooks))
    if filter_text and no_new_privileges:
        steps.append(process.LoadSeccomp(filter_text, filter_flags))
    steps.append(process.Execute(supervised))
    return steps


def _namespaces(linux: Mapping[str, Any]) -> dict[str, str]:
    """Kernel's name → path ("" for a new one), in the configuration's order. Absent means the host's."""
    result: dict[str, str] = {}
    for item in linux.get("namespaces") or ():
        kind = OCI_NAMES.get(str(item.get("type")))
        if kind is None or kind == "time":
            raise ValueError(f"namespace type {item.get('type')} is not supported")
        result[kind] = str(item.get("path") or "")
    if result.get("mnt") != "":
        raise ValueError("a container needs a mount namespace of its own")
    return result


def _maps(lines: Iterable[Mapping[str, Any]] | None) -> tuple[UserMap, ...]:
    return tuple(UserMap(int(line["containerID"]), int(line["hostID"]), int(line["size"])) for line in lines or ())


def _capability_bits(names: Iterable[str]) -> int:
    return capabilities.mask(capabilities.numbers_of(names))


def _root_steps(config: Mapping[str, Any], linux: Mapping[str, Any], wanted: Mapping[str, str], around: Surroundings) -> list[Step]:
    entries = list(config.get("mounts") or ())
    if around.init and around.init != BUILT_IN_INIT:
        entries.append({"destination": INIT_PATH, "type": "bind", "source": around.init, "options": ["bind", "ro"]})
    own_dev = not any(_destination(entry) == "/dev" and mount_options.parse(entry.get("options") or ()).bind for entry in entries)
    if own_dev and not any(_destination(entry) == "/dev" for entry in entries):
        entries.insert(0, _DEV_MOUNT)
    sources: list[tuple[str, str, bool, str]] = []
    mounting: list[Step] = []
    cgroup_files: list[Step] = []
    for entry in entries:
        (cgroup_files if entry.get("type") == "cgroup" else mounting).append(_mount_step(entry, sources, around))
        if own_dev and _destination(entry) == "/dev":
            mounting.append(rootfs.MakeDevices(rootfs.DEFAULT_DEVICES, by_bind="user" in wanted))
            mounting.append(rootfs.LinkDevices())
    steps: list[Step] = []
    foreign = {destination: match for destination, path, _, _ in sources if (match := _FOREIGN.fullmatch(path))}
    if own := tuple(source for source in sources if source[0] not in foreign):
        steps.append(mounts.OpenSources(own))
    steps.extend(namespaces.OpenForeignSource(place, int(match[1]), match[2]) for place, match in foreign.items())
    steps.append(mounts.PrivateMounts(MS_PRIVATE))
    anchor = hooks_root(around) if config.get("hooks") else around.run_dir
    if isinstance(around.root, OverlayRootPlan):
        steps.append(mounts.MountOverlayRoot(around.root.lower, around.root.upper, around.root.work, anchor))
    else:
        steps.append(mounts.MountDirectoryRoot(around.root.path, anchor))
    steps.extend(mounting)
    # /dev/ptmx is always a link to the container's own: a node of that name would lead to the host's terminals.
    listed = (item for item in linux.get("devices") or () if os.path.normpath(str(item.get("path"))) != "/dev/ptmx")
    devices = tuple(_device(item) for item in listed)
    if devices:
        steps.append(rootfs.MakeDevices(devices, by_bind="user" in wanted))
    if around.stdio.tty:
        steps.append(rootfs.OpenConsole(around.stdio.rows, around.stdio.columns, True))
    steps.append(namespaces.WaitForCgroup(wanted.get("cgroup") == ""))
    steps.extend(cgroup_files)
    if wanted.get("net") == "":
        steps.append(kernel.LoopbackUp())
    if around.links:
        from tare.runtime.steps.network import ConfigureLink  # not paid for by tare-runtime, which has no links

        for link in around.links:
            made_as = "" if link.kind == "veth" else link.host_name
            steps.append(ConfigureLink(link.name, link.addresses, link.gateways, made_as))
    if linux.get("readonlyPaths"):
        steps.append(rootfs.ReadonlyPaths(tuple(linux["readonlyPaths"])))
    if linux.get("maskedPaths"):
        steps.append(rootfs.MaskPaths(tuple(linux["maskedPaths"])))
    awaited = len(hooks.read(config, "prestart") + hooks.read(config, "createRuntime"))
    if (inside := hooks.read(config, "createContainer")) or awaited:
        steps.append(hook_steps.CreateHooks(awaited, inside))
    propagation = mount_options.PROPAGATION.get(str(linux.get("rootfsPropagation") or ""), 0)
    steps.append(rootfs.PivotRoot(bool((config.get("root") or {}).get("readonly")), propagation))
    return steps


def hooks_root(around: Surroundings) -> str:
    """Where a container's root is attached until pivot_root, if it has hooks: they find it there, by their bundle's ``root.path``."""
    return around.root.path if isinstance(around.root, DirectoryRootPlan) else f"{around.run_dir}/rootfs"


def _keepers_hooks(config: Mapping[str, Any], around: Surroundings) -> dict[str, Any]:
    """What the keeper needs to run its share of the hooks and to tell those of the init the container's state."""
    if not config.get("hooks"):
        return {}
    version, annotations = str(config.get("ociVersion") or "1.2.0"), dict(config.get("annotations") or {})
    state = {"ociVersion": version, "bundle": around.run_dir, "annotations": annotations}
    return {"state": state, **{kind: hooks.read(config, kind) for kind in hooks.OUTSIDE}}


def _translated_sources(config: Mapping[str, Any], linux: Mapping[str, Any]) -> tuple[tuple[Any, ...], ...]:
    """Bind mounts with translated owners, as ``steps.idmap`` takes them: by maps of their own, else by the container's."""
    found: dict[str, tuple[Any, ...]] = {}
    for entry in config.get("mounts") or ():
        options = mount_options.parse(entry.get("options") or ())
        if not options.translated:
            if entry.get("uidMappings") or entry.get("gidMappings"):
                raise ValueError(f"mount of {_destination(entry)} has uidMappings or gidMappings, but no option idmap or ridmap")
            continue
        maps = [_maps(entry.get(name) or linux.get(name)) for name in ("uidMappings", "gidMappings")]
        if not all(maps):
            raise ValueError(f"mount option {options.translated} needs uidMappings and gidMappings: {_destination(entry)}")
        if _destination(entry) in found:
            raise ValueError(f"duplicate mount point: {_destination(entry)}")
        found[_destination(entry)] = (
            _destination(entry), str(entry.get("source") or ""), options.recursive, str(entry.get("subpath") or ""),
            options.translated == "ridmap", *(tuple(tuple(line) for line in lines) for lines in maps),
        )  # fmt: skip
    return tuple(found.values())


def _destination(entry: Mapping[str, Any]) -> str:
    return os.path.normpath("/" + str(entry.get("destination") or "").lstrip("/"))


def _mount_step(entry: Mapping[str, Any], sources: list[tuple[str, str, bool, str]], around: Surroundings) -> Step:
    destination = _destination(entry)
    source, fstype = str(entry.get("source") or ""), str(entry.get("type") or "")
    options = mount_options.parse(entry.get("options") or ())
    if destination == "/":
        raise ValueError("invalid mount: destination can't be '/'")
    if options.translated and not (options.bind or fstype == "bind"):
        raise ValueError(f"mount option {options.translated} is for bind mounts: {destination}")
    if options.bind or fstype == "bind":
        if not source.startswith("/"):
            raise ValueError(f"invalid bind mount source, must be an absolute path: {source!r}")
        if any(existing == destination for existing, _, _, _ in sources):
            raise ValueError(f"duplicate mount point: {destination}")
        if not options.translated:
            sources.append((destination, source, options.recursive, str(entry.get("subpath") or "")))
        return mounts.BindMount(
            source, destination, options.add, options.clear, options.add_recursive, options.clear_recursive,
            options.propagation or MS_PRIVATE | MS_REC, destination in ("/proc", "/sys", "/dev"),
        )  # fmt: skip
    if fstype == "cgroup":
        return mounts.MountCgroupFiles(destination, around.cgroup, options.add, around.v1_hierarchies)
    if not fstype:
        raise ValueError(f"mount of {destination} has no type")
    if fstype == "overlay" or (fstype not in ("proc", "sysfs", "tmpfs", "devpts", "mqueue", "ramfs", "tracefs", "debugfs") and source):
        raise ValueError(f"mount type {fstype} is not supported")
    strict = fstype in ("proc", "sysfs") or destination in ("/proc", "/sys", "/dev")
    return mounts.MountFilesystem(fstype, destination, source, options.data, options.add, options.propagation, strict)


def _device(item: Mapping[str, Any]) -> tuple[str, str, int, int, int, int, int]:
    path = str(item["path"])
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"invalid device path: {path!r}")
    kind = str(item.get("type") or "")
    if kind not in ("c", "u", "b", "p"):
        raise ValueError(f"invalid type of device {path}: {kind!r}")
    mode = item.get("fileMode")
    return (
        path,
        kind,
        int(item.get("major") or 0),
        int(item.get("minor") or 0),
        (0o666 if mode is None else int(mode)) & 0o7777,
        int(item.get("uid") or 0),
        int(item.get("gid") or 0),
    )


def _kernel_steps(config: Mapping[str, Any], linux: Mapping[str, Any], wanted: Mapping[str, str]) -> list[Step]:
    steps: list[Step] = []
    hostname, domainname = str(config.get("hostname") or ""), str(config.get("domainname") or "")
    if hostname or domainname:
        if wanted.get("uts") != "":
            raise ValueError("unable to set hostname without a private UTS namespace")
        steps.append(kernel.SetNames(hostname, domainname))
    sysctls = {str(key): str(value) for key, value in (linux.get("sysctl") or {}).items()}
    for key, value in sysctls.items():
        _check_sysctl(key, value, wanted)
    if sysctls:
        steps.append(kernel.SetSysctls(sysctls))
    return steps


def _check_sysctl(key: str, value: str, wanted: Mapping[str, str]) -> None:
    """Only what belongs to a namespace of the container's own, and no way to smuggle in a second path or line (CVE-2022-0811)."""
    if not key or "/" in key or ".." in key or not all(c.isalnum() or c in "._-" for c in key) or "\n" in value or "\0" in value:
        raise ValueError(f"invalid sysctl {key!r}")
    if key in _IPC_SYSCTLS or key.startswith("fs.mqueue."):
        if "ipc" not in wanted:
            raise ValueError(f"sysctl {key!r} is not allowed in the hosts ipc namespace")
    elif key.startswith("net."):
        if "net" not in wanted:
            raise ValueError(f"sysctl {key!r} not allowed in host network namespace")
    elif key not in ("kernel.domainname", "kernel.hostname") or "uts" not in wanted:
        raise ValueError(f"sysctl {key!r} is not in a separate kernel namespace")


_compiled: dict[int, tuple[Any, str, int]] = {}
_compiled_by_text: dict[str, tuple[str, int]] = {}
_CACHE_LIMIT = 32


def _filter(profile: Mapping[str, Any] | None) -> tuple[str, int]:
    """The compiled filter as base64 and its flags. Profiles are long and mostly the same object: cached by identity, then by content."""
    if not profile:
        return "", 0
    known = _compiled.get(id(profile))
    if known is not None and known[0] is profile:
        return known[1], known[2]
    text = json.dumps(profile, sort_keys=True)
    found = _compiled_by_text.get(text)
    if found is None:
        found = (binascii.b2a_base64(seccomp.compile(profile), newline=False).decode(), seccomp.filter_flags(profile))
    for cache in (_compiled, _compiled_by_text):
        if len(cache) >= _CACHE_LIMIT:
            cache.clear()
    _compiled_by_text[text] = found
    _compiled[id(profile)] = (profile, *found)
    return found
