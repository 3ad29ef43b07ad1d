"""From the plan of a start to that of a restore: a pure function, as ``runtime.lowering``.

What the start would mount and criu cannot know of is mounted on a *stage* instead, flat, under numbers; root and links come about as ever.
Everything of the container's inside (its own file systems, names, limits, user, program) is in the images and left out:

    session, network namespace      ``own`` pid namespace: criu makes it, and the keeper becomes parent of what is in it
    cgroup, cgroup namespace        before the sources: cgroup files are some
    stage, sources, root            the container's mount points are looked at before criu mounts on them
    links, sysctls of the network
    processes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tare.linux.constants import MS_PRIVATE
from tare.runtime import criu
from tare.runtime.plan import Plan, Step
from tare.runtime.steps import kernel, mounts, namespaces, process, restore, rootfs
from tare.runtime.steps.network import ConfigureLink

STREAMS = ("stdin", "stdout", "stderr")


class Restore(NamedTuple):
    """Where a checkpoint is, and who restores it."""

    criu: str
    images: str
    work: str
    record: dict[str, Any]
    """What the dump wrote down (``criu.RECORD``)."""


def check_record(record: Any) -> dict[str, Any]:
    """A checkpoint's record, if it is one of this version. ValueError."""
    if not isinstance(record, dict) or record.get("version") != criu.VERSION:
        raise ValueError(f"not a checkpoint of this version of Tare ({criu.RECORD})")
    for name in ("mounts", "external", "null"):
        if not isinstance(record.get(name), list) or not all(isinstance(item, str) and "\0" not in item for item in record[name]):
            raise ValueError(f"{criu.RECORD}: {name} is not a list of texts")
    streams = record.get("streams")
    if not isinstance(streams, dict) or not all(isinstance(item, str) and "\0" not in item for item in streams.values()):
        raise ValueError(f"{criu.RECORD}: streams is not a map of texts")
    return record


def refusal(plan: Plan) -> str:
    """Why containers of this plan cannot be checkpointed; empty when they can."""
    kinds = {type(item) for item in plan.steps}
    joined = next((set(item.kinds) for item in plan.steps if isinstance(item, namespaces.JoinNamespaces)), set())
    if plan.keeper.stdio.tty:
        return "it has a terminal"
    if plan.keeper.pid_namespace != "new":
        return "it has no pid namespace of its own"
    if joined or namespaces.OpenForeignSource in kinds:
        return "it shares namespaces of another container"
    if namespaces.NewUserNamespace in kinds or "user" in plan.exec_defaults["kinds"]:
        return "it has a user namespace of its own"
    if plan.keeper.hooks:
        return "it has hooks, which belong to a start"
    if any(isinstance(item, process.Execute) and item.supervised for item in plan.steps):
        return "its init is the one built into Tare; an init of the host's (tini-static, or the daemon's --init-path) can be"
    return ""


def restore_plan(plan: Plan, wanted: Restore) -> Plan:
    """The plan that restores a container instead of starting it. ValueError names what the checkpoint has and the container has not."""
    record = check_record(wanted.record)
    if reason := refusal(plan):
        raise ValueError(f"it cannot be restored: {reason}")
    staged = {path: str(number) for number, path in enumerate(sorted(set(record["external"])))}
    stage = plan.keeper.run_dir
    network = any("net" in item.kinds for item in plan.steps if isinstance(item, namespaces.NewNamespaces))
    if network != bool(record.get("network")):
        raise ValueError("the checkpoint was made with another network mode")
    steps: list[Step] = [process.NewSession()]
    if network:
        steps += [namespaces.OpenNamespaces({"host": "/proc/self/ns/net"}), namespaces.NewNamespaces(("net", "mnt"))]
    else:
        steps.append(namespaces.NewNamespaces(("mnt",)))
    steps.append(namespaces.NamespacesReady())
    steps += [item for item in plan.steps if isinstance(item, namespaces.WaitForCgroup)]
    steps += _sources(plan, staged, stage)
    for item in plan.steps:
        if isinstance(item, mounts.MountOverlayRoot | mounts.MountDirectoryRoot):
            steps.append(item._replace(anchor=f"{stage}/{restore.ROOT}"))
    steps.append(restore.CheckMountPoints(stage, _points(record["mounts"], staged)))
    steps += [item for item in plan.steps if isinstance(item, kernel.LoopbackUp | ConfigureLink)]
    for item in plan.steps:
        if isinstance(item, kernel.SetSysctls) and (own := {key: text for key, text in item.values.items() if key.startswith("net.")}):
            steps.append(kernel.SetSysctls(own))
    readonly = any(isinstance(item, rootfs.PivotRoot) and item.readonly for item in plan.steps)
    streams = tuple(str(record["streams"].get(name, "")) for name in STREAMS)
    steps.append(
        restore.RestoreProcesses(
            wanted.criu, wanted.images, wanted.work, stage, staged, streams, tuple(record["null"]), network, readonly
        )
    )  # fmt: skip
    return plan._replace(keeper=plan.keeper._replace(pid_namespace="own"), steps=tuple(steps))


def _sources(plan: Plan, staged: Mapping[str, str], stage: str) -> list[Step]:
    """Whatever the checkpoint names of the host, on the stage under its number."""
    opened: list[tuple[str, str, bool, str]] = []
    mounting: list[Step] = []
    places = {source[0]: source for item in plan.steps if isinstance(item, mounts.OpenSources) for source in item.sources}
    masked = {path for item in plan.steps if isinstance(item, rootfs.MaskPaths) for path in item.paths}
    by_path = {item.destination: item for item in plan.steps if isinstance(item, mounts.BindMount | mounts.MountFilesystem)}
    groups = next((item for item in plan.steps if isinstance(item, mounts.MountCgroupFiles)), None)
    for path, number in staged.items():
        place = "/" + number
        found = by_path.get(path)
        if isinstance(found, mounts.BindMount) and path in places:
            opened.append((place, *places[path][1:]))
            mounting.append(found._replace(destination=place, strict=False))
        elif isinstance(found, mounts.MountFilesystem):
            mounting.append(found._replace(destination=place, strict=False))
        elif path in masked:
            opened.append((place, "/dev/null", False, ""))
            mounting.append(mounts.BindMount("/dev/null", place))
        elif groups is not None and path == groups.destination and not groups.hierarchies:
            mounting.append(groups._replace(destination=place))
        elif groups is not None and (host := _hierarchy(groups, path)):
            opened.append((place, host, False, ""))
            mounting.append(mounts.BindMount(host, place))
        else:
            raise ValueError(f"the checkpoint has a mount on {path} that the container does not have")
    return [
        *([mounts.OpenSources(tuple(opened))] if opened else ()),
        mounts.PrivateMounts(MS_PRIVATE),
        restore.MakeStage(stage),
        *mounting,
    ]


def _hierarchy(groups: mounts.MountCgroupFiles, path: str) -> str:
    """The host's path of the cgroup that the container has at ``path``; empty when there is none."""
    for host, name in groups.hierarchies:
        if path == f"{groups.destination}/{name}":
            return host + groups.cgroup
    return ""


def _points(paths: list[str], staged: Mapping[str, str]) -> tuple[tuple[str, str, str], ...]:
    """Where the mount points lie: in the root, or in something that is bound in. What lies in a file system that criu makes is criu's."""
    found = []
    for path in paths:
        above = max((other for other in paths if path.startswith(other + "/")), key=len, default="")
        if not above:
            found.append(("", path, staged.get(path, "")))
        elif above in staged:
            found.append((staged[above], path[len(above) :], staged.get(path, "")))
    return tuple(found)
