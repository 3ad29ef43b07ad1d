"""Functions of formats, and how Go prints and judges values."""

from __future__ import annotations

from tare.cli.documents import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


class TemplateError(Exception):
    """A format that cannot be parsed or does not fit the data. ``str`` has Go's words, with the place once that is known."""


class _Missing:
    """The key under which a dict names the Go type that it stands for, whose unknown fields are errors."""


MISSING = _Missing()


def render(value: Any) -> str:
    """What ``{{value}}`` prints."""
    if isinstance(value, str):
        return value
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _float(value)
    if hasattr(value, "values_in_order"):
        return str(value.text(_inner))
    if isinstance(value, dict):
        pairs = sorted((str(key), item) for key, item in value.items() if key is not MISSING)
        return "map[" + " ".join(f"{key}:{_inner(item)}" for key, item in pairs) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(map(_inner, value)) + "]"
    return str(value)


def _inner(value: Any) -> str:
    return "<nil>" if value is None else render(value)


def _float(value: float) -> str:
    if value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    text = repr(value)
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{exponent[0]}{exponent[1:].rjust(2, '0')}" if e else text


def truth(value: Any) -> bool:
    if isinstance(value, dict):
        return any(key is not MISSING for key in value)
    return bool(value) and value is not MISSING


def _public(value: Any) -> Any:
    """The value without methods and marks."""
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items() if key is not MISSING and not callable(item)}
    return [_public(item) for item in value] if isinstance(value, (list, tuple)) else value


def to_json(value: Any) -> str:
    """``json``: as Go encodes it, with ``<``, ``>`` and ``&`` left alone, except in whole rows, which encode themselves."""
    return row_json(value) if isinstance(value, dict) and MISSING in value else encode(_public(value))


def row_json(row: Mapping[Any, Any]) -> str:
    """A row of a list as docker encodes it: the fields by name."""
    return escape_html(encode(dict(sorted(_public(dict(row)).items()))))


def escape_html(text: str) -> str:
    """JSON text with the characters escaped that mean something in HTML, which is what Go's encoder does unasked."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TemplateError(f"incompatible types for comparison: {render(value)}")
    return value


def _comparable(left: Any, right: Any) -> None:
    kinds = [
        str if isinstance(v, str) else bool if isinstance(v, bool) else float if isinstance(v, (int, float)) else None
        for v in (left, right)
    ]
    if kinds[0] is not kinds[1] and left is not None and right is not None:
        raise TemplateError("error calling eq: incompatible types for comparison")


def _eq(first: Any, *others: Any) -> bool:
    if not others:
        raise TemplateError("error calling eq: missing argument for comparison")
    for other in others:
        _comparable(first, other)
    return any(first == other for other in others)


def _less(left: Any, right: Any) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return left < right
    return _number(left) < _number(right)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key, "" if value and all(isinstance(item, str) for item in value.values()) else None)
        elif isinstance(value, (list, tuple, str)):
            if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < len(value):
                raise TemplateError(f"error calling index: index out of range: {render(key)}")
            value = ord(value[key]) if isinstance(value, str) else value[key]
        elif value is None:
            raise TemplateError("error calling index: index of untyped nil")
        else:
            raise TemplateError(f"error calling index: can't index item of type {type(value).__name__}")
    return value


def _slice(value: Any, *bounds: int) -> Any:
    low = bounds[0] if bounds else 0
    high = bounds[1] if len(bounds) > 1 else len(value)
    if not 0 <= low <= high <= len(value):
        raise TemplateError(f"error calling slice: index out of range: {high}")
    return value[low:high]


def _quote(value: Any) -> str:
    from tare.cli.documents import encode as quoted

    return quoted(str(value))


def _printf(layout: str, *values: Any) -> str:
    """Go's verbs on top of Python's ``%``."""
    out, position, used = [], 0, 0
    while position < len(layout):
        char = layout[position]
        if char != "%":
            out.append(char)
            position += 1
            continue
        end = position + 1
        while end < len(layout) and layout[end] in "+-# 0123456789.":
            end += 1
        verb, flags = layout[end : end + 1], layout[position + 1 : end]
        position = end + 1
        if verb == "%":
            out.append("%")
            continue
        if used >= len(values):
            out.append(f"%!{verb}(MISSING)")
            continue
        out.append(_formatted(flags, verb, values[used]))
        used += 1
    if used < len(values):
        out.append("%!(EXTRA " + ", ".join(render(value) for value in values[used:]) + ")")
    return "".join(out)


def _formatted(flags: str, verb: str, value: Any) -> str:
    if verb == "q":
        return f"%{flags}s" % _quote(value)
    if verb == "v":
        return f"%{flags.replace('#', '').replace('+', '')}s" % render(value)
    if verb == "s":
        return f"%{flags}s" % (render(value) if isinstance(value, (str, list, dict)) else f"%!s({type(value).__name__}={render(value)})")
    if verb == "t":
        return f"%{flags}s" % render(value)
    if verb in "dxXoc" and isinstance(value, int):
        return f"%{flags}{verb}" % value
    if verb in "xX" and isinstance(value, str):
        text = value.encode().hex()
        return text.upper() if verb == "X" else text
    if verb in "eEfFgG" and isinstance(value, (int, float)):
        return f"%{flags}{verb}" % value
    if verb == "b" and isinstance(value, int):
        return f"{value:b}"
    if verb == "T":
        return {"str": "string", "dict": "map[string]interface {}", "list": "[]interface {}", "float": "float64"}.get(
            type(value).__name__, type(value).__name__
        )
    return f"%!{verb}({type(value).__name__}={render(value)})"


def _print(*values: Any) -> str:
    """Go's Sprint: a space only between operands that are both no strings."""
    out = ""
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            out += " "
        out += _inner(value)
    return out


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, (list, dict, tuple)):
        return len(value)
    raise TemplateError(f"error calling len: len of {'nil pointer' if value is None else 'type ' + type(value).__name__}")


def _join(values: Any, separator: str) -> str:
    return separator.join(render(value) for value in values or ())


def _truncate(text: str, length: int) -> str:
    return text[:length]


def _pad(text: str, prefix: int, suffix: int) -> str:
    return " " * prefix + text + " " * suffix if text else text


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&#34;").replace("'", "&#39;")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": _eq,
    "ne": lambda left, right: not _eq(left, right),
    "lt": _less,
    "le": lambda left, right: not _less(right, left),
    "gt": lambda left, right: _less(right, left),
    "ge": lambda left, right: not _less(left, right),
    "not": lambda value: not truth(value),
    "len": _length,
    "index": _index,
    "slice": _slice,
    "printf": _printf,
    "print": _print,
    "println": lambda *values: " ".join(map(_inner, values)) + "\n",
    "html": lambda *values: _escape(_print(*values)),
    "js": lambda *values: encode(_print(*values))[1:-1].replace("'", "\\'").replace("<", "\\u003C").replace(">", "\\u003E"),
    "urlquery": lambda *values: _print(*values).replace(" ", "+"),
    "json": to_json,
    "upper": lambda text: str(text).upper(),
    "lower": lambda text: str(text).lower(),
    "title": lambda text: str(text).title(),
    "split": lambda text, separator: str(text).split(separator) if separator else list(str(text)),
    "join": _join,
    "pad": _pad,
    "truncate": _truncate,
}
