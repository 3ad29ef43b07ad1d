"""``--mount type=bind,source=/a,target=/b,readonly``: one line of comma separated fields to a Mount of the API."""

from __future__ import annotations

import os

from tare.cli.flags import parse_bool, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_KEYS = {
    "type": "type", "source": "source", "src": "source", "target": "target", "dst": "target", "destination": "target",
    "readonly": "readonly", "ro": "readonly", "consistency": "consistency",
}  # fmt: skip
_FLAGS = frozenset(("readonly", "ro", "volume-nocopy", "bind-nonrecursive"))
_PROPAGATION = frozenset(("private", "rprivate", "shared", "rshared", "slave", "rslave"))


def split_fields(text: str) -> list[str]:
    """Fields of one CSV line: quotes keep commas, doubled quotes stand for one."""
    fields, field, quoted, index = [], "", False, 0
    while index < len(text):
        char = text[index]
        if quoted and char == '"' and text[index + 1 : index + 2] == '"':
            field += '"'
            index += 1
        elif char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            fields.append(field)
            field = ""
        else:
            field += char
        index += 1
    fields.append(field)
    return fields


def _boolean(key: str, value: str) -> bool:
    try:
        return parse_bool(value)
    except ValueError:
        raise ValueError(f"invalid value for {key}: {value}") from None


def parse_mount(text: str) -> object:
    """The Mount that ``text`` describes. Raises ValueError."""
    if not text.strip():
        raise ValueError("value is empty")
    mount: dict[str, Any] = {"Type": "volume"}
    options: dict[str, dict[str, Any]] = {"bind": {}, "volume": {}, "image": {}, "tmpfs": {}}
    for field in split_fields(text):
        key, separator, value = field.partition("=")
        key = key.strip().lower()
        if not separator:
            if key not in _FLAGS:
                raise ValueError(f"invalid field '{field}' must be a key=value pair")
            value = "true"
        family, dash, name = key.partition("-")
        if key in _KEYS:
            _plain_field(mount, _KEYS[key], key, value)
        elif dash and family in options and _option(options[family], family, name, key, value):
            continue
        else:
            raise ValueError(f"unexpected key '{key}' in '{field}'")
    return _checked(mount, options)


def _plain_field(mount: dict[str, Any], name: str, key: str, value: str) -> None:
    if name == "type":
        mount["Type"] = value.lower()
    elif name == "source":
        mount["Source"] = os.path.abspath(value) if value in (".", "..") or value.startswith(("./", "../")) else value
    elif name == "target":
        mount["Target"] = value
    elif name == "consistency":
        mount["Consistency"] = value
    elif _boolean(key, value):
        mount["ReadOnly"] = True


def _option(options: dict[str, Any], family: str, name: str, key: str, value: str) -> bool:
    """Enter one ``bind-…``, ``volume-…``, ``image-…`` or ``tmpfs-…`` field; False when there is none of this name."""
    if family == "bind" and name == "propagation":
        options["Propagation"] = value.lower()
    elif family == "bind" and name == "nonrecursive":
        options["NonRecursive"] = _boolean(key, value)
    elif family == "bind" and name == "recursive":
        _recursive(options, value)
    elif family == "bind" and name == "create-src":
        options["CreateMountpoint"] = _boolean(key, value)
    elif family in ("volume", "image") and name == "subpath":
        options["Subpath"] = value
    elif family == "volume" and name == "nocopy":
        options["NoCopy"] = _boolean(key, value)
    elif family == "volume" and name == "label":
        label, _, content = value.partition("=")
        options.setdefault("Labels", {})[label] = content
    elif family == "volume" and name == "driver":
        options.setdefault("DriverConfig", {})["Name"] = value
    elif family == "volume" and name == "opt":
        option, _, content = value.partition("=")
        options.setdefault("DriverConfig", {}).setdefault("Options", {})[option] = content
    elif family == "tmpfs" and name == "size":
        try:
            options["SizeBytes"] = parse_size(value)
        except ValueError:
            raise ValueError(f"invalid value for {key}: {value}") from None
    elif family == "tmpfs" and name == "mode":
        try:
            options["Mode"] = int(value, 8)
        except ValueError:
            raise ValueError(f"invalid value for {key}: {value}") from None
    else:
        return False
    return True


def _recursive(options: dict[str, Any], value: str) -> None:
    if value == "disabled":
        options["NonRecursive"] = True
    elif value == "writable":
        options["ReadOnlyNonRecursive"] = True
    elif value == "readonly":
        options["ReadOnlyForceRecursive"] = True
    elif value != "enabled":
        raise ValueError(f'invalid value for bind-recursive: {value} (must be "enabled", "disabled", "writable", or "readonly")')


def _checked(mount: dict[str, Any], options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Put the options of the mount's own type in place and refuse those of other types."""
    kind = mount["Type"]
    if not kind:
        raise ValueError("type is required")
    if not mount.get("Target"):
        raise ValueError("target is required")
    for family, given in options.items():
        if given and family != kind:
            raise ValueError(f"cannot mix '{family}-*' options with mount type '{kind}'")
    bind = options["bind"]
    if not mount.get("ReadOnly"):
        for name, mode in (("ReadOnlyNonRecursive", "writable"), ("ReadOnlyForceRecursive", "readonly")):
            if bind.get(name):
                raise ValueError(f"option 'bind-recursive={mode}' requires 'readonly' to be specified in conjunction")
    if bind.get("ReadOnlyForceRecursive") and bind.get("Propagation") != "rprivate":
        raise ValueError("option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction")
    given = {key: value for key, value in options.get(kind, {}).items() if value is not False}
    if given:
        mount[{"bind": "BindOptions", "volume": "VolumeOptions", "image": "ImageOptions", "tmpfs": "TmpfsOptions"}[kind]] = given
    return mount
