"""From ``-v``, ``--mount``, ``--tmpfs`` and an image's VOLUMEs to mount points (pure but for a look at bind sources).

A container path is cleaned lexically here only to find duplicates and to name it in answers; where it really leads is decided by the
runtime, which resolves it inside the root by file descriptor.
"""

from __future__ import annotations

import os.path
import re
import secrets
from collections.abc import Iterable, Mapping

from tare.containers.record import MountPoint
from tare.errors import InvalidArgument
from tare.wire.container import HostConfig, Mount

_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
_PROPAGATIONS = {"private", "rprivate", "shared", "rshared", "slave", "rslave"}
_LABELS = {"z", "Z"}
_CONSISTENCIES = {"consistent", "cached", "delegated", "default"}


def resolve_mounts(host: HostConfig, volumes: Iterable[str], inherited: Iterable[MountPoint] = ()) -> list[MountPoint]:
    """All mount points of a container, one per destination, in a stable order.

    Precedence as dockerd's: ``Binds`` and ``Mounts`` over ``VolumesFrom`` (``inherited``) over the image's volumes.
    """
    points: dict[str, MountPoint] = {point.destination: point for point in inherited}
    own: dict[str, MountPoint] = {}
    for bind in host.binds or ():
        _add(own, parse_bind(bind))
    for mount in host.mounts or ():
        _add(own, from_mount(mount))
    for destination, options in (host.tmpfs or {}).items():
        path = clean_destination(destination, f"invalid mount path: '{destination}' mount path must be absolute")
        _add(own, MountPoint(type="tmpfs", source="", destination=path, options=_split(options)))
    points.update(own)
    for volume in volumes:
        path = clean_destination(volume, f"invalid mount path: '{volume}' mount path must be absolute")
        if path not in points:
            points[path] = _anonymous(path)
    return list(points.values())


def _add(points: dict[str, MountPoint], point: MountPoint) -> None:
    if point.destination in points:
        raise InvalidArgument(f"Duplicate mount point: {point.destination}")
    points[point.destination] = point


def clean_destination(path: str, message: str) -> str:
    """An absolute, lexically clean container path; the root itself is refused."""
    if not path.startswith("/"):
        raise InvalidArgument(message)
    cleaned = os.path.normpath("/" + path.lstrip("/"))
    if cleaned == "/":
        raise InvalidArgument(f"invalid specification: destination can't be '/': {path}")
    return cleaned


def parse_bind(text: str) -> MountPoint:
    """One element of ``HostConfig.Binds``: ``[source:]destination[:options]``."""
    parts = text.split(":")
    bad = f"invalid volume specification: '{text}'"
    if len(parts) > 3 or not all(parts):
        raise InvalidArgument(bad)
    if len(parts) == 1:
        return _anonymous(clean_destination(parts[0], bad))
    mode = parts[2] if len(parts) == 3 else ""
    if len(parts) == 2 and not parts[1].startswith("/") and parts[0].startswith("/") and _known_mode(parts[1]):
        point = _anonymous(clean_destination(parts[0], bad))
        source, mode = "", parts[1]
    else:
        source = parts[0]
        destination = clean_destination(
            parts[1],
            f"{bad}: invalid mount config for type \"{_kind(source)}\": invalid mount path: '{parts[1]}' mount path must be absolute",
        )
        if source.startswith("/"):
            point = MountPoint(type="bind", source=os.path.normpath(source), destination=destination, propagation="rprivate")
        else:
            point = _volume(source, destination)
    _apply_mode(point, mode, text)
    return point


def _kind(source: str) -> str:
    return "bind" if source.startswith("/") else "volume"


def _known_mode(mode: str) -> bool:
    return all(word in {"ro", "rw", "nocopy", "copy"} | _PROPAGATIONS | _LABELS | _CONSISTENCIES for word in mode.split(","))


def _apply_mode(point: MountPoint, mode: str, text: str) -> None:
    point.mode = mode
    seen: set[str] = set()
    for word in filter(None, mode.split(",")):
        group = "access" if word in ("ro", "rw") else "propagation" if word in _PROPAGATIONS else word
        if group in seen or not _known_mode(word) or (word in _PROPAGATIONS and point.type == "volume"):
            raise InvalidArgument(f"invalid mode: {mode}" if not _known_mode(mode) else f"invalid volume specification: '{text}'")
        seen.add(group)
        if word == "ro":
            point.writable = False
        elif word in _PROPAGATIONS:
            point.propagation = word
        elif word == "nocopy":
            if point.type != "volume":
                raise InvalidArgument(f"invalid mode: {mode}")
            point.copy_up = False


def _volume(name: str, destination: str) -> MountPoint:
    if not _VOLUME_NAME.match(name):
        raise InvalidArgument(
            f'"{name}" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. '
            "If you intended to pass a host directory, use absolute path"
        )
    return MountPoint(type="volume", source="", destination=destination, name=name, driver="local", copy_up=True)


def _anonymous(destination: str) -> MountPoint:
    return MountPoint(
        type="volume", source="", destination=destination, name=secrets.token_hex(32), driver="local", anonymous=True, copy_up=True
    )


def from_mount(mount: Mount) -> MountPoint:
    """One element of ``HostConfig.Mounts``."""
    kind = mount.type
    bad = f'invalid mount config for type "{kind}"'
    if not mount.target:
        raise InvalidArgument(f"{bad}: field Target must not be empty")
    target = clean_destination(mount.target, f"{bad}: invalid mount path: '{mount.target}' mount path must be absolute")
    if kind == "bind":
        return _from_bind(mount, target, bad)
    if kind == "volume":
        return _from_volume(mount, target, bad)
    if kind == "tmpfs":
        return _from_tmpfs(mount, target, bad)
    raise InvalidArgument(f'mount type unknown: "{kind}"' if kind else 'invalid mount config for type "": mount type unknown')


def _from_bind(mount: Mount, target: str, bad: str) -> MountPoint:
    if not mount.source:
        raise InvalidArgument(f"{bad}: field Source must not be empty")
    if not mount.source.startswith("/"):
        raise InvalidArgument(f"{bad}: invalid mount path: '{mount.source}' mount path must be absolute")
    if mount.volume_options is not None or mount.tmpfs_options is not None:
        raise InvalidArgument(f"{bad}: field {'VolumeOptions' if mount.volume_options else 'TmpfsOptions'} must not be specified")
    options = mount.bind_options
    propagation = options.propagation if options else ""
    if propagation and propagation not in _PROPAGATIONS:
        raise InvalidArgument(f"{bad}: invalid propagation mode: {propagation}")
    source = os.path.normpath(mount.source)
    create = bool(options and options.create_mountpoint)
    if not create and not os.path.lexists(source):
        raise InvalidArgument(f"{bad}: bind source path does not exist: {source}")
    extra = ["bind"] if options and options.non_recursive else []
    if options and options.read_only_non_recursive:
        extra.append("ro-non-recursive")
    if options and options.read_only_force_recursive:
        extra.append("ro-force-recursive")
    return MountPoint(
        type="bind", source=source, destination=target, writable=not mount.read_only,
        propagation=propagation or "rprivate", options=extra, from_mounts=not create,
    )  # fmt: skip


def _from_volume(mount: Mount, target: str, bad: str) -> MountPoint:
    if mount.bind_options is not None or mount.tmpfs_options is not None:
        raise InvalidArgument(f"{bad}: field {'BindOptions' if mount.bind_options else 'TmpfsOptions'} must not be specified")
    options = mount.volume_options
    point = _volume(mount.source, target) if mount.source else _anonymous(target)
    point.mode = "z"
    point.writable = not mount.read_only
    point.from_mounts = True
    if options:
        if options.driver_config and options.driver_config.name not in ("", "local"):
            raise InvalidArgument(
                f'error looking up volume plugin {options.driver_config.name}: plugin "{options.driver_config.name}" not found'
            )
        if options.driver_config and options.driver_config.options:
            point.options = [f"{key}={value}" for key, value in options.driver_config.options.items()]
        point.copy_up = not options.no_copy
        point.subpath = options.subpath
    return point


def _from_tmpfs(mount: Mount, target: str, bad: str) -> MountPoint:
    if mount.source:
        raise InvalidArgument(f"{bad}: field Source must not be specified")
    if mount.bind_options is not None or mount.volume_options is not None:
        raise InvalidArgument(f"{bad}: field {'BindOptions' if mount.bind_options else 'VolumeOptions'} must not be specified")
    words: list[str] = ["ro"] if mount.read_only else []
    if options := mount.tmpfs_options:
        if options.size_bytes:
            words.append(f"size={options.size_bytes}")
        if options.mode:
            words.append(f"mode={options.mode:o}")
        words.extend("=".join(pair) for pair in options.options or ())
    return MountPoint(type="tmpfs", source="", destination=target, options=words, writable=not mount.read_only, from_mounts=True)


def parse_volumes_from(text: str) -> tuple[str, str]:
    """``container[:mode]`` to its two parts."""
    name, _, mode = text.partition(":")
    if not name or mode not in ("", "ro", "rw", "z", "Z"):
        raise InvalidArgument(f"invalid mode: {mode}" if name else f"malformed volumes-from specification: {text}")
    return name, mode or "rw"


def _split(options: str) -> list[str]:
    return [word for word in options.split(",") if word]


def oci_mount(point: MountPoint, sources: Mapping[str, str]) -> dict[str, object]:
    """The OCI ``mounts`` entry of a resolved mount point; ``sources`` gives the host path of each volume by name."""
    if point.type == "tmpfs":
        base = ["noexec", "nosuid", "nodev", *point.options]
        overridden = {"exec": "noexec", "suid": "nosuid", "dev": "nodev"}
        drop = {overridden[word] for word in point.options if word in overridden}
        return {
            "destination": point.destination, "type": "tmpfs", "source": "tmpfs",
            "options": [word for word in base if word not in drop],
        }  # fmt: skip
    options = ["bind" if "bind" in point.options else "rbind"]
    if not point.writable:
        options.append("ro")
    options.append(point.propagation or "rprivate")
    if not point.writable and "rbind" in options and "ro-non-recursive" not in point.options and point.type == "bind":
        options.append("rro")
    source = sources[point.name] if point.type == "volume" else point.source
    return {"destination": point.destination, "type": "bind", "source": source, "options": options}
