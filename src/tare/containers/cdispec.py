"""Documents of the Container Device Interface (https://github.com/cncf-tags/container-device-interface), in JSON or YAML, as they are
checked before anything of them reaches a container.

Strict, as the reference is: a field that nobody knows, a name out of the ordinary or a version that is older than what the file
uses makes the whole file invalid, for half of a device is worse than none. Files are the administrator's, so YAML's
anchors may be used; what is read is bounded in size all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import field

SIZE_LIMIT = 4 << 20
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
NO_PERMISSIONS = "none"
_HOOKS = frozenset(("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"))
_VENDOR = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?")


class _Strict(msgspec.Struct, rename="camel", kw_only=True, forbid_unknown_fields=True):
    pass


class DeviceNode(_Strict):
    path: str
    host_path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


class NetDevice(_Strict):
    host_interface_name: str
    name: str


class Mount(_Strict):
    host_path: str
    container_path: str
    type: str = ""
    options: list[str] | None = None


class Hook(_Strict):
    hook_name: str
    path: str
    args: list[str] | None = None
    env: list[str] | None = None
    timeout: int | None = None


class Edits(_Strict):
    """What a container gets."""

    env: list[str] | None = None
    device_nodes: list[DeviceNode] | None = None
    net_devices: list[NetDevice] | None = None
    mounts: list[Mount] | None = None
    hooks: list[Hook] | None = None
    additional_gids: list[int] | None = field(name="additionalGids", default=None)
    intel_rdt: dict[str, Any] | None = None

    @property
    def empty(self) -> bool:
        return not (
            self.env
            or self.device_nodes
            or self.net_devices
            or self.mounts
            or self.hooks
            or self.additional_gids
            or self.intel_rdt is not None
        )


class Device(_Strict, kw_only=True):
    name: str
    annotations: dict[str, str] | None = None
    container_edits: Edits


class Specification(_Strict, kw_only=True):
    cdi_version: str
    kind: str
    annotations: dict[str, str] | None = None
    devices: list[Device]
    container_edits: Edits | None = None

    def edits(self) -> Iterator[Edits]:
        """All that the file has."""
        if self.container_edits is not None:
            yield self.container_edits
        yield from (device.container_edits for device in self.devices)


def read(path: Path) -> Specification:
    """The specification in a file. OSError or ValueError (whose text says what is wrong with it)."""
    with open(path, "rb") as file:
        data = file.read(SIZE_LIMIT + 1)
    if len(data) > SIZE_LIMIT:
        raise ValueError(f"larger than {SIZE_LIMIT} bytes")
    try:
        found = msgspec.json.decode(data, type=Specification) if path.suffix == ".json" else _from_yaml(data)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    check(found)
    return found


def _from_yaml(data: bytes) -> Specification:
    import yaml  # type: ignore[import-untyped]  # only where a vendor has laid such a file

    try:
        return msgspec.convert(yaml.load(data, Loader=_loader()), Specification, strict=False)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


@cache
def _loader() -> Any:
    """A loader that makes nothing but texts, lists and dictionaries: what a text means is said by the field that it is for, so that
    ``name: 0`` and ``name: no`` are names. Numbers may be written in octal and in hexadecimal, nothing may be empty, no key may
    come twice."""
    import yaml

    class Loader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]
        def construct_scalar(self, node: Any) -> str | None:
            text: str = super().construct_scalar(node)
            if not node.style:
                if text in ("", "~", "null", "Null", "NULL"):
                    return None
                if match := re.fullmatch(r"0(?:o?([0-7]+)|x([0-9A-Fa-f]+))", text):
                    return str(int(match[1], 8) if match[1] else int(match[2], 16))
            return text

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            if twice := next((key for key in keys if keys.count(key) > 1), None):
                raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} is there twice", node.start_mark)
            # A key without a value is a field that is not there.
            return {key: value for key, value in super().construct_mapping(node, deep).items() if value is not None}

    return Loader


def check(spec: Specification) -> None:
    """ValueError with the reason for which the file does not count."""
    version = spec.cdi_version.removeprefix("v")
    if version not in VERSIONS:
        raise ValueError(f'invalid version "{spec.cdi_version}"')
    needed = _needed(spec)
    if VERSIONS.index(needed) > VERSIONS.index(version):
        raise ValueError(f"the spec version must be at least v{needed}")
    vendor, _, name = spec.kind.partition("/")
    if not _VENDOR.fullmatch(vendor) or not _VENDOR.fullmatch(name):
        raise ValueError(f'invalid kind "{spec.kind}": it is written as VENDOR/CLASS')
    if not spec.devices:
        raise ValueError("invalid spec, no devices")
    seen = set()
    for device in spec.devices:
        if not _DEVICE.fullmatch(device.name):
            raise ValueError(f'invalid device name "{device.name}"')
        if device.name in seen:
            raise ValueError(f'invalid spec, multiple device "{device.name}"')
        if device.container_edits.empty:
            raise ValueError(f'invalid device "{device.name}": empty device edits')
        seen.add(device.name)
    for edits in spec.edits():
        _check_edits(edits)


def _needed(spec: Specification) -> str:
    """The oldest version that has everything that the file uses."""
    edits = list(spec.edits())
    if any(each.net_devices for each in edits):
        return "1.1.0"
    if any(each.intel_rdt is not None or each.additional_gids for each in edits):
        return "0.7.0"
    if spec.annotations or any(device.annotations for device in spec.devices) or "." in spec.kind.partition("/")[2]:
        return "0.6.0"
    if any(not device.name[:1].isalpha() for device in spec.devices) or any(n.host_path for each in edits for n in each.device_nodes or ()):
        return "0.5.0"
    return "0.4.0" if any(mount.type for each in edits for mount in each.mounts or ()) else "0.3.0"


def _check_edits(edits: Edits) -> None:
    _check_environment("container edits", edits.env)
    for node in edits.device_nodes or ():
        if not node.path:
            raise ValueError("invalid (empty) device path")
        if node.type not in ("", "b", "c", "u", "p"):
            raise ValueError(f'device "{node.path}": invalid type "{node.type}"')
        if node.major < 0 or node.minor < 0:
            raise ValueError(f'device "{node.path}": invalid (negative) device number {node.major}:{node.minor}')
        if node.permissions != NO_PERMISSIONS and node.permissions.strip("rwm"):
            raise ValueError(f'device "{node.path}": invalid permissions "{node.permissions}"')
    for hook in edits.hooks or ():
        if hook.hook_name not in _HOOKS:
            raise ValueError(f'invalid hook name "{hook.hook_name}"')
        if not hook.path.startswith("/"):
            raise ValueError(f'invalid hook "{hook.hook_name}": its path is not absolute: "{hook.path}"')
        if hook.timeout is not None and hook.timeout <= 0:
            raise ValueError(f'invalid hook "{hook.hook_name}": its timeout is not positive')
        _check_environment(f'hook "{hook.hook_name}"', hook.env)
    for mount in edits.mounts or ():
        if not mount.host_path:
            raise ValueError("invalid mount, empty host path")
        if not mount.container_path.startswith("/"):
            raise ValueError(f'invalid mount, its container path is not absolute: "{mount.container_path}"')
    if any(gid < 0 for gid in edits.additional_gids or ()):
        raise ValueError("invalid (negative) group")


def _check_environment(where: str, entries: list[str] | None) -> None:
    for entry in entries or ():
        if entry.find("=") <= 0:
            raise ValueError(f'invalid {where}: invalid environment variable "{entry}"')
