"""From ``-v``, ``--mount``, ``--tmpfs`` and an image's VOLUMEs to mount points (pure but for a look at bind sources).

A container path is cleaned lexically here only to find duplicates and to name it in answers; where it really leads is decided by the
runtime, which resolves it inside the root by file descriptor.
"""

from __future__ import annotations

import os.path
from collections.abc import Callable, Iterable, Mapping

import msgspec

from tare.containers.record import MountPoint
from tare.errors import InvalidArgument, StartFailed, Unsupported
from tare.linux.mountinfo import MountEntry, covering
from tare.volumes.model import check_name, new_name
from tare.wire.container import BindOptions, HostConfig, Mount, VolumeOptions

_PROPAGATIONS = frozenset(("private", "rprivate", "shared", "rshared", "slave", "rslave"))
_MODE_GROUPS = (
    frozenset(("ro", "rw")),
    frozenset(("z", "Z")),
    _PROPAGATIONS,
    frozenset(("nocopy",)),
    frozenset(("consistent", "cached", "delegated", "default")),
)
"""Words of a bind's mode: of each group at most one."""
_ROOT_REFUSED = "invalid specification: destination can't be '/'"
_TMPFS_WORDS = frozenset(
    "exec noexec suid nosuid dev nodev ro rw sync async dirsync remount mand nomand atime noatime diratime nodiratime bind rbind "
    "unbindable runbindable private rprivate shared rshared slave rslave relatime norelatime strictatime nostrictatime defaults".split()
)
_TMPFS_KEYS = frozenset(("mode", "uid", "gid", "nr_inodes", "nr_blocks", "size", "mpol", "huge"))


def resolve_mounts(host: HostConfig, volumes: Iterable[str], inherited: Iterable[MountPoint] = (), data_root: str = "") -> list[MountPoint]:
    """All mount points of a container, one per destination, in a stable order.

    Precedence as dockerd's: ``Binds`` and ``Mounts`` over ``VolumesFrom`` (``inherited``) over the image's volumes; a tmpfs of ``--tmpfs``
    must not meet a bind and yields to ``Mounts``. ``data_root``: binds that show the engine's own files get ``rslave``.
    """
    points: dict[str, MountPoint] = {point.destination: point for point in inherited}
    own: dict[str, MountPoint] = {}
    for destination, options in (host.tmpfs or {}).items():
        path = clean_destination(destination)
        own[path] = MountPoint(type="tmpfs", source="", destination=path, options=_split(options))
    for bind in host.binds or ():
        _add(own, _beside_root(_driven(parse_bind(bind), host), data_root))
    for mount in host.mounts or ():
        point = _beside_root(from_mount(mount), data_root)
        if point.destination in own and own[point.destination].type == "tmpfs" and not own[point.destination].from_mounts:
            del own[point.destination]
        _add(own, point)
    points.update(own)
    for volume in volumes:
        path = clean_destination(volume)
        if path not in points:
            points[path] = _driven(_anonymous(path), host)
    return list(points.values())


def _driven(point: MountPoint, host: HostConfig) -> MountPoint:
    """A volume is of the driver that ``--volume-driver`` names; ``Mounts`` name their own."""
    if point.type == "volume" and host.volume_driver:
        point.driver = host.volume_driver
    return point


def _add(points: dict[str, MountPoint], point: MountPoint) -> None:
    if point.destination in points:
        raise InvalidArgument(f"Duplicate mount point: {point.destination}")
    points[point.destination] = point


def _beside_root(point: MountPoint, data_root: str) -> MountPoint:
    """A bind above or below the engine's own root gets ``rslave``: else it would keep mounts of ended containers alive."""
    if point.type != "bind":
        return point
    if not data_root or not (point.source.startswith(data_root) or data_root.startswith(point.source)):
        return msgspec.structs.replace(point, propagation=point.propagation or "rprivate")
    if point.propagation == "":
        return msgspec.structs.replace(point, propagation="rslave", options=[*point.options, IMPLIED])
    if point.propagation not in ("rslave", "rshared"):
        raise InvalidArgument(
            'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within the daemon root, '
            f'daemon root: "{data_root}", bind mount source: "{point.source}", propagation: "{point.propagation}"'
        )
    return point


IMPLIED = "implied-propagation"
"""Among a bind's options: nobody asked for its propagation, so that it is dropped where the source cannot have it."""


def clean_destination(path: str, where: str = "") -> str:
    """An absolute, lexically clean container path; the root itself is refused. ``where`` begins the error texts."""
    if not path.startswith("/"):
        raise InvalidArgument(f"{where}invalid mount path: '{path}' mount path must be absolute")
    cleaned = os.path.normpath("/" + path.lstrip("/"))
    if cleaned == "/":
        raise InvalidArgument(where + _ROOT_REFUSED)
    if "\0" in cleaned:
        raise InvalidArgument(f"{where}invalid mount path: null character")
    return cleaned


def parse_bind(text: str) -> MountPoint:
    """One element of ``HostConfig.Binds``: ``[source:]destination[:mode]``."""
    parts = text.split(":")
    bad = f"invalid volume specification: '{text}'"
    if len(parts) > 3 or not parts[0] or (len(parts) > 1 and not parts[1]) or "\0" in text:
        raise InvalidArgument(bad)
    if len(parts) == 1:
        return _anonymous(clean_destination(parts[0], f'{bad}: invalid mount config for type "volume": '), mode="z")
    source, mode = parts[0], parts[2] if len(parts) == 3 else ""
    if len(parts) == 2 and _valid_mode(parts[1]):
        raise InvalidArgument(bad)  # a path and a mode: dockerd wants a source before a mode
    if not _valid_mode(mode):
        raise InvalidArgument(f"invalid mode: {mode}")
    words = set(_split(mode))
    if source.startswith("/"):
        where = f'{bad}: invalid mount config for type "bind": '
        if "nocopy" in words:
            raise InvalidArgument(f"{where}field VolumeOptions must not be specified")
        point = MountPoint(type="bind", source=os.path.normpath("/" + source.lstrip("/")), destination=clean_destination(parts[1], where))
        point.mode = mode
        point.propagation = next(iter(words & _PROPAGATIONS), "")
    else:
        where = f'{bad}: invalid mount config for type "volume": '
        if words & _PROPAGATIONS:
            raise InvalidArgument(f"{where}field BindOptions must not be specified")
        point = _volume(source, clean_destination(parts[1], where))
        point.mode = mode or "z"
        point.copy_up = "nocopy" not in words
    point.writable = "ro" not in words
    return point


def _valid_mode(mode: str) -> bool:
    words = mode.split(",") if mode else []
    known = set().union(*_MODE_GROUPS)
    return all(word in known for word in words) and all(sum(word in group for word in words) <= 1 for group in _MODE_GROUPS)


def _volume(name: str, destination: str) -> MountPoint:
    check_name(name)
    return MountPoint(type="volume", source="", destination=destination, name=name, driver="local", copy_up=True)


def _anonymous(destination: str, mode: str = "") -> MountPoint:
    return MountPoint(
        type="volume", source="", destination=destination, name=new_name(), driver="local", anonymous=True, copy_up=True, mode=mode
    )


def from_mount(mount: Mount) -> MountPoint:
    """One element of ``HostConfig.Mounts``."""
    kind = mount.type
    where = f'invalid mount config for type "{kind}": '
    if kind not in ("bind", "volume", "tmpfs"):
        if kind == "image":
            raise Unsupported(f"{where}image mounts are not offered: copy from the image with a volume, or build a stage")
        raise InvalidArgument(f"{where}mount type unknown")
    if not mount.target:
        raise InvalidArgument(f"{where}field Target must not be empty")
    target = clean_destination(mount.target, where)
    if kind != "bind" and mount.bind_options is not None:
        raise InvalidArgument(f"{where}field BindOptions must not be specified")
    if kind == "bind" and mount.volume_options is not None:
        raise InvalidArgument(f"{where}field VolumeOptions must not be specified")
    if kind == "bind":
        return _from_bind(mount, target, where)
    if kind == "volume":
        return _from_volume(mount, target, where)
    return _from_tmpfs(mount, target, where)


def _from_bind(mount: Mount, target: str, where: str) -> MountPoint:
    if not mount.source:
        raise InvalidArgument(f"{where}field Source must not be empty")
    if not mount.source.startswith("/"):
        raise InvalidArgument(f"{where}invalid mount path: '{mount.source}' mount path must be absolute")
    options = mount.bind_options or BindOptions()
    if options.propagation and options.propagation not in _PROPAGATIONS:
        raise InvalidArgument(f"{where}invalid propagation mode: {options.propagation}")
    extra = ["bind"] if options.non_recursive else []
    if options.read_only_non_recursive or options.read_only_force_recursive:
        if not mount.read_only:
            name = "ReadOnlyNonRecursive" if options.read_only_non_recursive else "ReadOnlyForceRecursive"
            raise InvalidArgument(f"{where}mount source must be read-only when {name} is specified")
        if options.read_only_non_recursive and options.read_only_force_recursive:
            raise InvalidArgument(f"{where}ReadOnlyNonRecursive and ReadOnlyForceRecursive are mutually exclusive")
        if options.read_only_force_recursive and options.propagation not in ("rprivate", ""):
            raise InvalidArgument(f"{where}ReadOnlyForceRecursive requires propagation rprivate")
        extra.append("ro-non-recursive" if options.read_only_non_recursive else "ro-force-recursive")
    source = os.path.normpath("/" + mount.source.lstrip("/"))
    if not options.create_mountpoint and not os.path.exists(source):
        raise InvalidArgument(f"{where}bind source path does not exist: {source}")
    return MountPoint(
        type="bind", source=source, destination=target, writable=not mount.read_only,
        propagation=options.propagation, options=extra, from_mounts=not options.create_mountpoint,
    )  # fmt: skip


def _from_volume(mount: Mount, target: str, where: str) -> MountPoint:
    options = mount.volume_options or VolumeOptions()
    driver = options.driver_config
    if not mount.source and mount.read_only:
        raise InvalidArgument(f"{where}must not set ReadOnly mode when using anonymous volumes")
    if options.subpath and not _is_local(options.subpath):
        raise InvalidArgument(f"{where}subpath must be a relative path within the volume")
    point = _volume(mount.source, target) if mount.source else _anonymous(target)
    point.mode = "z"
    point.writable = not mount.read_only
    point.from_mounts = True
    point.driver = (driver.name if driver else "") or "local"
    point.driver_options = driver.options if driver else None
    point.labels = options.labels
    point.copy_up = not options.no_copy
    point.subpath = options.subpath
    return point


def _is_local(path: str) -> bool:
    """Whether a relative path stays, as written, where it begins. Links are the runtime's matter."""
    return not path.startswith("/") and "\0" not in path and not os.path.normpath(path).startswith("..")


def _from_tmpfs(mount: Mount, target: str, where: str) -> MountPoint:
    if mount.source:
        raise InvalidArgument(f"{where}field Source must not be specified")
    words: list[str] = ["ro"] if mount.read_only else []
    if options := mount.tmpfs_options:
        if options.size_bytes:
            words.append(f"size={options.size_bytes}")
        if options.mode:
            words.append(f"mode={options.mode:o}")
        words.extend("=".join(pair) for pair in options.options or ())
    return MountPoint(type="tmpfs", source="", destination=target, options=words, writable=not mount.read_only, from_mounts=True)


def check_tmpfs(options: Iterable[str]) -> None:
    """Refuse, in dockerd's words, what is no option of a tmpfs; values are for the kernel to judge."""
    for option in options:
        key, equals, value = option.partition("=")
        if (option not in _TMPFS_WORDS) if not equals else (key not in _TMPFS_KEYS):
            raise InvalidArgument(f'invalid tmpfs option ["{key}"{f" {chr(34)}{value}{chr(34)}" if equals else ""}]')


def parse_volumes_from(text: str) -> tuple[str, str]:
    """``container[:mode]`` to its two parts; ``ro`` in the second makes everything read-only."""
    if not text:
        raise InvalidArgument("volumes-from specification cannot be an empty string")
    name, _, mode = text.partition(":")
    words = set(_split(mode))
    if not _valid_mode(mode) or words & _PROPAGATIONS or "nocopy" in words:
        raise InvalidArgument(f"invalid mode: {mode}")
    if not name:
        raise InvalidArgument('invalid name or ID supplied: ""')
    return name, "ro" if "ro" in words else "rw"


def inherit(point: MountPoint, mode: str) -> MountPoint:
    """A mount point as ``--volumes-from`` hands it on: never filled from the image, never more writable than it was."""
    return msgspec.structs.replace(point, writable=point.writable and mode != "ro", copy_up=False, mode="")


def _split(options: str) -> list[str]:
    return [word for word in options.split(",") if word]


def oci_mount(point: MountPoint, sources: Mapping[str, str]) -> dict[str, object]:
    """The OCI ``mounts`` entry of a resolved mount point; ``sources`` gives the host path of each volume by name.

    ``subpath`` is our own addition to the entry: the runtime resolves it beneath the source, links included.
    """
    if point.type == "tmpfs":
        return {"destination": point.destination, "type": "tmpfs", "source": "tmpfs", "options": _tmpfs_options(point.options)}
    options = ["bind" if "bind" in point.options else "rbind"]
    if not point.writable:
        options.append("ro")
    options.append(point.propagation or "rprivate")
    if not point.writable and "rbind" in options and "ro-non-recursive" not in point.options and point.type == "bind":
        options.append("rro")
    source = sources[point.name] if point.type == "volume" else point.source
    entry: dict[str, object] = {"destination": point.destination, "type": "bind", "source": source, "options": options}
    if point.subpath:
        entry["subpath"] = point.subpath
    return entry


def _tmpfs_options(options: Iterable[str]) -> list[str]:
    base = ["noexec", "nosuid", "nodev", *options]
    overridden = {"exec": "noexec", "suid": "nosuid", "dev": "nodev"}
    drop = {overridden[word] for word in options if word in overridden}
    return [word for word in base if word not in drop]


def propagate(points: Iterable[MountPoint], entries: Callable[[], list[MountEntry]]) -> tuple[list[MountPoint], str]:
    """Check that shared and slave binds can be such; returns the points as they are mounted, and the root's propagation ("" for private).

    ``entries`` reads the host's mounts; it is asked only when a bind needs it.
    """
    result, root, table = [], "", None
    for point in points:
        kind = point.propagation.removeprefix("r")
        if point.type == "bind" and kind in ("shared", "slave"):
            table = entries() if table is None else table
            base = covering(point.source, table)
            if base is not None and not (base.shared or (kind == "slave" and base.slave)):
                if IMPLIED not in point.options:
                    wanted = "a shared mount" if kind == "shared" else "a shared or slave mount"
                    raise StartFailed(f"path {point.source} is mounted on {base.path} but it is not {wanted}")
                point = msgspec.structs.replace(point, propagation="rprivate")
            elif kind == "shared":
                root = "shared"
            else:
                root = root or "rslave"
        result.append(point)
    return result, root
