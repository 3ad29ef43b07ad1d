"""Devices by name: the Container Device Interface (https://github.com/cncf-tags/container-device-interface, specification 1.1).

The vendor of a device lays a specification into ``/etc/cdi`` or ``/var/run/cdi``, in JSON or YAML (``cdispec``). It says for each device,
and for all of one kind, what a container that gets it needs: nodes, mounts, variables, groups, hooks. ``--device vendor.com/class=name``
names one; ``--gpus`` means those of kind ``nvidia.com/gpu`` or ``amd.com/gpu``.

Of two files that know the same device the one in the later directory counts; in one directory neither does. A file that cannot be read
spoils no other: it is told when a device is asked for that nobody has.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tare.containers import cdispec
from tare.containers.cdispec import Device, DeviceNode, Edits, Specification
from tare.containers.machine import Machine
from tare.errors import InvalidArgument
from tare.wire.container import DeviceRequest

DIRECTORIES = (Path("/etc/cdi"), Path("/var/run/cdi"))
"""Where vendors lay them; ``--cdi-spec-dir`` names others."""
GPU_KINDS = ("nvidia.com/gpu", "amd.com/gpu")
FAILED = "CDI device injection failed: "
_NOT_OFFERED = "which Tare does not offer: take it out of the specification, or name a device without it"
_CACHE_LIMIT = 256

_Read = Specification | str
_cache: dict[tuple[str, int, int, int], _Read] = {}
"""What a file (path, inode, size, time) said, or why it says nothing: YAML takes its time."""


@dataclass
class Known:
    """What the directories have: devices by their full names, and what is wrong with which file or device."""

    devices: dict[str, tuple[Specification, Device]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(spec.kind for spec, _ in self.devices.values()))


def known_devices(directories: Iterable[Path] = DIRECTORIES) -> Known:
    """All that the directories have, the later of them first in rank."""
    known = Known()
    ranks: dict[str, tuple[int, Path]] = {}
    contested: set[str] = set()
    for rank, directory in enumerate(directories):
        for path in _files(directory):
            spec = _read(path)
            if isinstance(spec, str):
                known.problems[str(path)] = spec
                continue
            for device in spec.devices:
                name = f"{spec.kind}={device.name}"
                before = ranks.get(name)
                if before is not None and before[0] == rank:
                    contested.add(name)
                    known.problems[name] = f"conflicting device, {before[1]} and {path} have it"
                    continue
                if name in contested:
                    contested.discard(name)
                    del known.problems[name]
                ranks[name] = (rank, path)
                known.devices[name] = (spec, device)
    for name in contested:
        del known.devices[name]
    return known


def _files(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.suffix in (".json", ".yaml"))
    except OSError:
        return []


def _read(path: Path) -> _Read:
    try:
        status = path.stat()
        key = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in _cache:
            if len(_cache) >= _CACHE_LIMIT:
                _cache.clear()
            _cache[key] = _parsed(path)
        return _cache[key]
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _parsed(path: Path) -> _Read:
    try:
        return cdispec.read(path)
    except ValueError as error:
        return str(error)


def names_of(requests: Sequence[DeviceRequest] | None, known: Known) -> list[str]:
    """The fully qualified names of the devices that a container asks for. Raises ``InvalidArgument`` with dockerd's text."""
    names: list[str] = []
    for request in requests or ():
        if request.driver == "cdi":
            names += request.device_ids or ()
            continue
        kind = next((kind for kind in known.kinds if kind in GPU_KINDS), "")
        wanted = any("gpu" in group for group in request.capabilities or ())
        if not wanted or not kind or request.driver not in ("", kind.partition(".")[0]):
            shown = " ".join(f"[{' '.join(group)}]" for group in request.capabilities or ())
            raise InvalidArgument(f'could not select device driver "{request.driver}" with capabilities: [{shown}]')
        names += [f"{kind}={name}" for name in _chosen(request, kind, known)]
    return list(dict.fromkeys(names))


def _chosen(request: DeviceRequest, kind: str, known: Known) -> list[str]:
    if request.device_ids:
        return request.device_ids
    if request.count < 0:
        return ["all"]
    single = sorted(device.name for spec, device in known.devices.values() if spec.kind == kind and device.name != "all")
    if request.count > len(single):
        raise InvalidArgument(f"{request.count} devices of kind {kind} were asked for, and there are {len(single)}")
    return single[: request.count]


def edits_of(names: Iterable[str], known: Known) -> list[Edits]:
    """What these devices need, in the order in which they were named: before the first of a file what all its devices share."""
    found: list[Edits] = []
    seen: list[Specification] = []
    missing: list[str] = []
    for name in names:
        if name not in known.devices:
            missing.append(name)
            continue
        spec, device = known.devices[name]
        if not any(spec is each for each in seen):
            seen.append(spec)
            found += [spec.container_edits] if spec.container_edits is not None else []
        found.append(device.container_edits)
    if missing:
        told = [f"{what}: {why}" for what, why in known.problems.items() if "=" not in what or what in missing]
        raise InvalidArgument(f"{FAILED}unresolvable CDI devices {', '.join(missing)}" + (f" ({'; '.join(told[:4])})" if told else ""))
    for edits in found:
        for what, wanted in (("Intel RDT (intelRdt)", edits.intel_rdt is not None), ("network devices (netDevices)", edits.net_devices)):
            if wanted:
                raise InvalidArgument(f"{FAILED}{', '.join(names)} wants {what}, {_NOT_OFFERED}")
    return found


def groups_of(edits: Iterable[Edits]) -> tuple[str, ...]:
    """The groups that the container's processes join."""
    return tuple(str(gid) for each in edits for gid in each.additional_gids or () if gid > 0)


def inject(document: dict[str, Any], edits: Iterable[Edits], machine: Machine) -> None:
    """Add the edits to an OCI configuration. Raises ``InvalidArgument`` for a device node that there is not."""
    process, linux = document["process"], document["linux"]
    for each in edits:
        own = {entry.partition("=")[0] for entry in each.env or ()}
        process["env"] = [entry for entry in process["env"] if entry.partition("=")[0] not in own] + list(each.env or ())
        for node in each.device_nodes or ():
            device = _node(node, machine)
            linux["devices"] = [item for item in linux.get("devices") or () if item["path"] != device["path"]] + [device]
            if device["type"] in ("b", "c") and node.permissions != cdispec.NO_PERMISSIONS:
                rule = {key: device[key] for key in ("type", "major", "minor")}
                linux["resources"]["devices"].append({"allow": True, "access": node.permissions or "rwm", **rule})
        if each.mounts:
            _mount(document, each.mounts)
        for hook in each.hooks or ():
            entry = {"path": hook.path, "args": hook.args, "env": hook.env, "timeout": hook.timeout}
            of_kind = document.setdefault("hooks", {}).setdefault(hook.hook_name, [])
            of_kind.append({key: value for key, value in entry.items() if value is not None})


def _mount(document: dict[str, Any], mounts: Iterable[cdispec.Mount]) -> None:
    """Each takes the place of another on the same path; a path comes before what is below it."""
    for mount in mounts:
        options = mount.options or ["ro", "nosuid", "nodev", "rbind"]
        if mount.type in ("", "bind") and not {"bind", "rbind"} & set(options):
            options = [*options, "rbind"]
        entry = {"destination": mount.container_path, "type": mount.type or "bind", "source": mount.host_path, "options": options}
        document["mounts"] = [item for item in document["mounts"] if item["destination"] != mount.container_path] + [entry]
    document["mounts"].sort(key=lambda item: os.path.normpath(item["destination"]).count("/"))


def _node(node: DeviceNode, machine: Machine) -> Mapping[str, Any]:
    source = node.host_path or node.path
    kind, major, minor = node.type, node.major, node.minor
    if not kind or (not major and kind != "p"):
        try:
            found = machine.device(source)
        except OSError as error:
            raise InvalidArgument(f"{FAILED}{source}: {os.strerror(error.errno or 0).lower()}") from None
        except ValueError as error:
            raise InvalidArgument(f"{FAILED}{source}: {error}") from None
        if kind and kind != found.kind:
            raise InvalidArgument(f'{FAILED}{source}: CDI device type "{kind}" does not match host device type "{found.kind}"')
        kind, major, minor = found.kind, major or found.major, minor or found.minor
    mode = 0o666 if node.file_mode is None else node.file_mode
    return {"path": node.path, "type": kind, "major": major, "minor": minor, "fileMode": mode, "uid": node.uid or 0, "gid": node.gid or 0}
