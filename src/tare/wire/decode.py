"""Reading JSON as Go's ``encoding/json`` does, because that is what Docker's clients were written against.

Three habits of Go matter: ``null`` leaves a field at its zero value, field names match without regard to case, and unknown fields are
ignored. msgspec is strict on the first two, so a document is decoded to plain objects once, brought into the struct's own spelling, and
then converted with full type checks.
"""

from __future__ import annotations

import types
import typing
from functools import cache
from typing import Any, TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


def decode(kind: type[T], document: bytes | str) -> T:
    """Decode one JSON object as ``kind``. Raises ``msgspec.DecodeError`` or ``msgspec.ValidationError`` (a subclass)."""
    return convert(kind, msgspec.json.decode(document))


def convert(kind: type[T], value: Any) -> T:
    """Convert a plain object (from JSON) to ``kind`` with Go's leniency."""
    return msgspec.convert(_normalised(kind, value), kind)


def _normalised(kind: type[msgspec.Struct], value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    exact, folded = _fields(kind)
    result: dict[str, Any] = {}
    for key, item in value.items():
        name = key if key in exact else folded.get(key.lower())
        if name is None or item is None:
            continue
        shape, inner = exact[name]
        if inner is None:
            result[name] = item
        elif shape == "struct":
            result[name] = _normalised(inner, item)
        elif shape == "list" and isinstance(item, list):
            result[name] = [_normalised(inner, each) for each in item]
        elif shape == "map" and isinstance(item, dict):
            result[name] = {each: _normalised(inner, one) for each, one in item.items()}
        elif shape == "map-list" and isinstance(item, dict):
            result[name] = {
                each: [_normalised(inner, one) for one in many] if isinstance(many, list) else many for each, many in item.items()
            }
        else:
            result[name] = item
    return result


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[dict[str, tuple[str, type[msgspec.Struct] | None]], dict[str, str]]:
    hints = typing.get_type_hints(kind)
    exact = {field.encode_name: _shape(hints[field.name]) for field in msgspec.structs.fields(kind)}
    return exact, {name.lower(): name for name in exact}


def _shape(hint: Any) -> tuple[str, type[msgspec.Struct] | None]:
    """How structs are nested in a field's type: directly, in a list, as a map's values, or in a map's lists."""
    for arm in _arms(hint):
        if isinstance(arm, type) and issubclass(arm, msgspec.Struct):
            return "struct", arm
        origin, arguments = typing.get_origin(arm), typing.get_args(arm)
        if origin is list:
            shape, inner = _shape(arguments[0])
            if shape == "struct":
                return "list", inner
        if origin is dict:
            shape, inner = _shape(arguments[1])
            if shape in ("struct", "list"):
                return ("map" if shape == "struct" else "map-list"), inner
    return "plain", None


def _arms(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(arm for arm in typing.get_args(hint) if arm is not type(None))
    return (hint,)
