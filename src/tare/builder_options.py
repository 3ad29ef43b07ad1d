"""The object ``builder`` of dockerd's ``daemon.json``: the build cache's collector, entitlements, history.

As Go reads JSON, the case of keys does not matter. ``keepStorage`` is the older name of ``reservedSpace``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tare.builder.collection import FILTERS
from tare.config import BuilderConfig, CacheRule
from tare.errors import InvalidArgument

_ENTITLEMENTS = {"network-host": "network.host", "security-insecure": "security.insecure", "device": "device"}
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
Readers = Mapping[str, Callable[[Any, str], Any]]


def parse(value: Any) -> BuilderConfig:
    """``InvalidArgument`` names the key that is wrong."""
    found = _object(value, "builder", {"gc": _collector, "entitlements": _entitlements, "history": _history})
    return BuilderConfig(**found.get("gc", {}), **found.get("entitlements", {}), **found.get("history", {}))


def _object(value: Any, where: str, readers: Readers) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{where}: an object is expected")
    names = {name.lower(): name for name in readers}
    found = {}
    for key, item in value.items():
        name = names.get(str(key).lower())
        if name is None:
            raise InvalidArgument(f"{where}: unknown key {key!r}: {', '.join(readers)} are offered")
        found[name] = readers[name](item, f"{where}.{key}")
    return found


def _collector(value: Any, where: str) -> dict[str, Any]:
    sizes = ("defaultReservedSpace", "defaultKeepStorage", "defaultMaxUsedSpace", "defaultMinFreeSpace")
    found = _object(value, where, {"enabled": _boolean, "policy": _policy, **dict.fromkeys(sizes, _size)})
    reserved = found.get("defaultReservedSpace") or found.get("defaultKeepStorage", 0)
    return {
        "collect": found.get("enabled", True),
        "rules": found.get("policy", ()),
        "reserved": reserved,
        "most": found.get("defaultMaxUsedSpace", 0),
        "free": found.get("defaultMinFreeSpace", 0),
    }


def _policy(value: Any, where: str) -> tuple[CacheRule, ...]:
    if not isinstance(value, list):
        raise InvalidArgument(f"{where}: a list of rules is expected")
    return tuple(_rule(item, f"{where}[{number}]") for number, item in enumerate(value))


def _rule(value: Any, where: str) -> CacheRule:
    sizes = ("reservedSpace", "keepStorage", "maxUsedSpace", "minFreeSpace")
    found = _object(value, where, {"all": _boolean, "filter": _filter, "keepDuration": _duration, **dict.fromkeys(sizes, _size)})
    filters = found.get("filter", [])
    ages = [_duration(text, f"{where}.filter") for name, text in filters if name in ("unused-for", "until")]
    return CacheRule(
        filters=tuple((name, text) for name, text in filters if name not in ("unused-for", "until")),
        unused_for=max([*ages, found.get("keepDuration", 0.0)]),
        reserved=found.get("reservedSpace") or found.get("keepStorage", 0),
        most=found.get("maxUsedSpace", 0),
        free=found.get("minFreeSpace", 0),
    )


def _filter(value: Any, where: str) -> list[tuple[str, str]]:
    """A list of ``name=value``; dockerd also takes what its own API takes: names with objects of values."""
    if isinstance(value, dict):
        value = [f"{name}={text}" for name, texts in value.items() for text in (texts if isinstance(texts, dict | list) else [texts])]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidArgument(f"{where}: a list of strings NAME=VALUE is expected")
    found = []
    for item in value:
        name, _, text = item.partition("=")
        if name.strip().lower() not in FILTERS or name.startswith("label"):
            raise InvalidArgument(f"{where}: unknown filter {name!r}")
        found.append((name.strip().lower(), text.lstrip("=").strip()))
    return found


def _entitlements(value: Any, where: str) -> dict[str, Any]:
    found = _object(value, where, dict.fromkeys(_ENTITLEMENTS, _boolean))
    return {"refused": frozenset(_ENTITLEMENTS[name] for name, granted in found.items() if not granted)}


def _history(value: Any, where: str) -> dict[str, Any]:
    found = _object(value, where, {"maxAge": _duration, "maxEntries": _count})
    return {"history_age": found.get("maxAge", 0.0), "history_entries": found.get("maxEntries", 0)}


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"{where}: true or false is expected")
    return value


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidArgument(f"{where}: a positive number is expected")
    return value


def _size(value: Any, where: str) -> int:
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?", str(value).strip().lower())
    if isinstance(value, bool) or match is None:
        raise InvalidArgument(f'{where}: a size such as "20GB" is expected')
    return int(float(match[1]) * (1 << _UNITS[match[2]]))


def _duration(value: Any, where: str) -> float:
    """Seconds, of ``48h`` or a number of seconds."""
    texts: Sequence[Any] = value if isinstance(value, list) and len(value) == 1 else [value]
    text = str(texts[0]).strip().lower()
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))
    if re.fullmatch(r"\d{1,15}", text):
        return float(text)
    raise InvalidArgument(f'{where}: a duration such as "48h" is expected')
