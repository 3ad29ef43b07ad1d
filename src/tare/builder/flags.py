"""The flags of instructions: ``--name=value`` between the keyword and its arguments, and the fields of ``RUN --mount``."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Callable
from typing import Any

from tare.builder.instructions import RunDevice, RunMount
from tare.errors import InvalidArgument

BOOLEAN = "boolean"
STRING = "string"
LIST = "list"

FLAGS: dict[str, dict[str, str]] = {
    "FROM": {"platform": STRING},
    "RUN": {"mount": LIST, "network": STRING, "security": STRING, "device": LIST},
    "COPY": {"from": STRING, "chown": STRING, "chmod": STRING, "link": BOOLEAN, "parents": BOOLEAN, "exclude": LIST},
    "ADD": {
        "chown": STRING, "chmod": STRING, "link": BOOLEAN, "exclude": LIST, "checksum": STRING, "keep-git-dir": BOOLEAN, "unpack": BOOLEAN,
    },
    "HEALTHCHECK": {"interval": STRING, "timeout": STRING, "start-period": STRING, "start-interval": STRING, "retries": STRING},
}  # fmt: skip
MOUNT_TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARING = ("shared", "private", "locked")
_VARIABLE = re.compile(r"\$.")
_CHECKED = frozenset({"type", "sharing", "mode", "size", "readonly", "ro", "rw", "readwrite", "required"})
"""Keys whose values are not any text."""
_SUFFIXES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DEVICE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_.-]*(=.*)?")
_TRUTH = {"true": True, "1": True, "t": True, "": True, "false": False, "0": False, "f": False}


def split_flags(rest: str, escape: str) -> tuple[list[str], str]:
    """(flags, arguments) of an instruction without its keyword."""
    flags: list[str] = []
    while True:
        rest = rest.lstrip()
        if not rest.startswith("--"):
            return flags, rest
        end = _word_end(rest, escape)
        word, rest = rest[:end], rest[end:]
        if word == "--":
            return flags, rest.lstrip()
        flags.append(_unquoted(word, escape))


def _word_end(text: str, escape: str) -> int:
    quote, at = "", 0
    while at < len(text):
        char = text[at]
        if char == escape and quote != "'":
            at += 1
        elif quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char.isspace():
            break
        at += 1
    return min(at, len(text))


def _unquoted(word: str, escape: str) -> str:
    result, quote, at = [], "", 0
    while at < len(word):
        char = word[at]
        if char == escape and quote != "'" and at + 1 < len(word):
            at += 1
            result.append(word[at])
        elif quote and char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        else:
            result.append(char)
        at += 1
    return "".join(result)


def parse_flags(keyword: str, words: list[str]) -> dict[str, Any]:
    """Values by name: str, bool or a list of str. ``InvalidArgument`` names what is wrong."""
    allowed = FLAGS.get(keyword, {})
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word[2:].partition("=")
        kind = allowed.get(name)
        if kind is None:
            near = difflib.get_close_matches(name, allowed, 1)
            raise InvalidArgument(f"unknown flag: --{name}" + (f" (did you mean --{near[0]}?)" if near else ""))
        if name in values and kind != LIST:
            raise InvalidArgument(f"duplicate flag specified: --{name}")
        if kind == BOOLEAN:
            if value.lower() not in _TRUTH:
                raise InvalidArgument(f"expecting boolean value for flag --{name}, not: {value}")
            values[name] = _TRUTH[value.lower()]
            continue
        if not equals:
            raise InvalidArgument(f"missing a value on flag: --{name}")
        if kind == LIST:
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    return values


def parse_mount(text: str, expand: Callable[[str], str] | None = None) -> RunMount:
    """One ``--mount``: comma-separated ``key=value`` as in a CSV line. Without ``expand`` variables stay as they are written."""
    fields: dict[str, Any] = {}
    try:
        words = next(csv.reader(io.StringIO(text)))
    except (csv.Error, StopIteration):
        raise InvalidArgument(f"invalid mount {text!r}: it is no comma-separated list") from None
    later = False
    for word in words:
        key, equals, value = word.partition("=")
        key = key.strip().lower()
        if expand is not None and key != "from":
            value = expand(value)
        elif _VARIABLE.search(value) and key in _CHECKED:
            later = True
            continue
        _field(fields, key, value, bool(equals), word)
    mount = RunMount(**fields, text=text if expand is None and _VARIABLE.search(text) else "")
    if not later:
        _check(mount, text)
    return mount


def parse_device(text: str) -> RunDevice:
    """One ``--device``: ``NAME[,required]``, NAME as ``vendor.com/class=name``; or ``name=NAME,required=BOOL``."""
    name, required = "", False
    for word in next(csv.reader(io.StringIO(text)), []):
        key, equals, value = word.partition("=")
        key = key.lower()
        if key == "required":
            if value.lower() not in _TRUTH:
                raise InvalidArgument(f"invalid value for {key}: {value}")
            required = _TRUTH[value.lower()]
        elif key == "name" and equals:
            if name:
                raise InvalidArgument(f"device name already set to {name}")
            name = value
        elif not name:
            name = word
        elif not equals:
            raise InvalidArgument(f"invalid field '{word}' must be a key=value pair")
        else:
            near = difflib.get_close_matches(key, ["name", "required"], 1)
            raise InvalidArgument(f"unexpected key '{key}' in '{word}'" + (f" (did you mean {near[0]}?)" if near else ""))
    if not _DEVICE.fullmatch(name):
        raise InvalidArgument(f'invalid device "{name}": it is named as vendor.com/class=name (Container Device Interface)')
    return RunDevice(name, required)


def _field(fields: dict[str, Any], key: str, value: str, given: bool, word: str) -> None:
    if key in ("readonly", "ro", "rw", "readwrite", "required"):
        if value.lower() not in _TRUTH:
            raise InvalidArgument(f"invalid value for {key}: {value}")
        truth = _TRUTH[value.lower()]
        if key == "required":
            fields["required"] = truth
        else:
            fields["readonly"] = truth if key in ("readonly", "ro") else not truth
        return
    if not given:
        raise InvalidArgument(f"invalid field '{word}' must be a key=value pair")
    names = {"type": "type", "from": "from_", "id": "id", "sharing": "sharing", "env": "env", "uid": "uid", "gid": "gid",
             "source": "source", "src": "source", "target": "target", "dst": "target", "destination": "target"}  # fmt: skip
    if key == "from" and _VARIABLE.search(value):
        raise InvalidArgument("'from' doesn't support variable expansion, define alias stage instead")
    if key in names:
        fields[names[key]] = value
    elif key == "mode":
        if not re.fullmatch("[0-7]{1,5}", value):
            raise InvalidArgument(f"invalid value {value} for mode")
        fields["mode"] = int(value, 8)
    elif key == "size":
        fields["size"] = _size(value)
    else:
        near = difflib.get_close_matches(key, [*names, "readonly", "required", "mode", "size"], 1)
        raise InvalidArgument(f"unexpected key '{key}' in '{word}'" + (f" (did you mean {near[0]}?)" if near else ""))


def _check(mount: RunMount, text: str) -> None:
    if mount.type not in MOUNT_TYPES:
        raise InvalidArgument(f"unsupported mount type {mount.type!r} (one of {', '.join(MOUNT_TYPES)})")
    if mount.sharing not in SHARING:
        raise InvalidArgument(f"unsupported sharing value {mount.sharing!r} (one of {', '.join(SHARING)})")
    if not mount.target and mount.type in ("bind", "cache", "tmpfs"):
        raise InvalidArgument(f"target is required for mount {text!r}")
    if mount.type in ("secret", "ssh", "tmpfs") and mount.from_:
        raise InvalidArgument(f"from is not allowed for a mount of type {mount.type}")
    if mount.size and mount.type != "tmpfs":
        raise InvalidArgument(f"size is not allowed for a mount of type {mount.type}")


def _size(value: str) -> int:
    match = re.fullmatch(r"(\d{1,18})\s*([bkmgt]?)(?:i?b)?", value.lower())
    if match is None:
        raise InvalidArgument(f"invalid value for size: {value}")
    return int(match[1]) * _SUFFIXES[match[2]]
