"""Devices by name: the Container Device Interface (https://github.com/cncf-tags/container-device-interface, specification 1.0).

The vendor of a device lays a specification into ``/etc/cdi`` or ``/var/run/cdi``. It says for each device, and for all of one kind, what a
container that gets it needs: nodes, mounts, variables. ``--device vendor.com/class=name`` names one; ``--gpus`` means those of
kind ``nvidia.com/gpu`` or ``amd.com/gpu``. Of two files that know the same device the one in the later directory counts.

Read are specifications in JSON; a device that is not found is told together with the files in YAML that lie there. Hooks (programs of
the host, run in the middle of a start) are not run: a device that wants some is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import field

from tare.containers.machine import Machine
from tare.errors import InvalidArgument
from tare.wire.container import DeviceRequest

DIRECTORIES = (Path("/etc/cdi"), Path("/var/run/cdi"))
"""Where vendors lay them; ``--cdi-spec-dir`` names others."""
GPU_KINDS = ("nvidia.com/gpu", "amd.com/gpu")
_SIZE_LIMIT = 4 << 20


class DeviceNode(msgspec.Struct, rename="camel", kw_only=True):
    path: str
    host_path: str = ""
    type: str = ""
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


class Mount(msgspec.Struct, rename="camel", kw_only=True):
    host_path: str
    container_path: str
    type: str = ""
    options: list[str] = field(default_factory=list)


class Edits(msgspec.Struct, rename="camel", kw_only=True):
    """What a container gets."""

    env: list[str] | None = None
    device_nodes: list[DeviceNode] | None = None
    mounts: list[Mount] | None = None
    hooks: list[Any] | None = None
    additional_gids: list[int] | None = field(name="additionalGids", default=None)


class Device(msgspec.Struct, rename="camel", kw_only=True):
    name: str
    container_edits: Edits = field(default_factory=Edits)


class Specification(msgspec.Struct, rename="camel", kw_only=True):
    cdi_version: str
    kind: str
    devices: list[Device] = field(default_factory=list)
    container_edits: Edits = field(default_factory=Edits)


_decoder = msgspec.json.Decoder(Specification)


def specifications(directories: Iterable[Path] = DIRECTORIES) -> list[Specification]:
    """All that can be read; a broken file does not spoil the others."""
    found = []
    for directory in directories:
        for path in sorted(directory.glob("*.json")) if directory.is_dir() else ():
            try:
                if path.stat().st_size <= _SIZE_LIMIT:
                    found.append(_decoder.decode(path.read_bytes()))
            except (OSError, msgspec.MsgspecError):
                continue
    return found


def names_of(requests: Sequence[DeviceRequest] | None, known: Sequence[Specification]) -> list[str]:
    """The fully qualified names of the devices that a container asks for. Raises ``InvalidArgument`` with dockerd's text."""
    names: list[str] = []
    for request in requests or ():
        if request.driver == "cdi":
            names += request.device_ids or ()
            continue
        kind = next((spec.kind for spec in known if spec.kind in GPU_KINDS), "")
        wanted = any("gpu" in group for group in request.capabilities or ())
        if not wanted or not kind or request.driver not in ("", kind.partition(".")[0]):
            shown = " ".join(f"[{' '.join(group)}]" for group in request.capabilities or ())
            raise InvalidArgument(f'could not select device driver "{request.driver}" with capabilities: [{shown}]')
        names += [f"{kind}={name}" for name in _chosen(request, kind, known)]
    return list(dict.fromkeys(names))


def _chosen(request: DeviceRequest, kind: str, known: Sequence[Specification]) -> list[str]:
    if request.device_ids:
        return request.device_ids
    if request.count < 0:
        return ["all"]
    single = sorted({device.name for spec in known if spec.kind == kind for device in spec.devices if device.name != "all"})
    if request.count > len(single):
        raise InvalidArgument(f"{request.count} devices of kind {kind} were asked for, and there are {len(single)}")
    return single[: request.count]


def edits_of(names: Iterable[str], known: Sequence[Specification], directories: Iterable[Path] = DIRECTORIES) -> list[Edits]:
    """What these devices need: their own edits, and once for each file those that all its devices share."""
    found: list[Edits] = []
    shared: list[Specification] = []
    missing: list[str] = []
    for name in names:
        kind, _, short = name.partition("=")
        match = next(
            ((spec, device) for spec in reversed(known) if spec.kind == kind for device in spec.devices if device.name == short), None
        )
        if match is None:
            missing.append(name)
            continue
        if not any(spec is match[0] for spec in shared):
            shared.append(match[0])
        found.append(match[1].container_edits)
    if missing:
        unread = [str(path) for directory in directories for path in sorted(directory.glob("*.y*ml"))]
        hint = f" (not read, as only JSON is: {', '.join(unread)})" if unread else ""
        raise InvalidArgument(f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}{hint}")
    found = [*(spec.container_edits for spec in shared), *found]
    if any(edits.hooks for edits in found):
        raise InvalidArgument(f"CDI device injection failed: {', '.join(names)} want hooks, which are not offered by Tare")
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
            rule = {key: device[key] for key in ("type", "major", "minor")}
            linux["resources"]["devices"].append({"allow": True, "access": node.permissions or "rwm", **rule})
        for mount in each.mounts or ():
            options = mount.options or ["ro", "nosuid", "nodev", "rbind"]
            if mount.type in ("", "bind") and not {"bind", "rbind"} & set(options):
                options = [*options, "rbind"]
            entry = {"destination": mount.container_path, "type": mount.type or "bind", "source": mount.host_path, "options": options}
            document["mounts"].append(entry)


def _node(node: DeviceNode, machine: Machine) -> Mapping[str, Any]:
    source = node.host_path or node.path
    if node.type and node.major is not None and node.minor is not None:
        kind, major, minor, mode, uid, gid = node.type, node.major, node.minor, 0o666, 0, 0
    else:
        try:
            found = machine.device(source)
        except OSError as error:
            raise InvalidArgument(f"CDI device injection failed: {source}: {os.strerror(error.errno or 0).lower()}") from None
        except ValueError as error:
            raise InvalidArgument(f"CDI device injection failed: {source}: {error}") from None
        kind, major, minor, mode, uid, gid = found.kind, found.major, found.minor, found.mode, found.uid, found.gid
    return {
        "path": node.path,
        "type": kind,
        "major": major,
        "minor": minor,
        "fileMode": mode if node.file_mode is None else node.file_mode,
        "uid": uid if node.uid is None else node.uid,
        "gid": gid if node.gid is None else node.gid,
    }
