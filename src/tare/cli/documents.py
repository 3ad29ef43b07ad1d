"""JSON text to values and back, without the ``json`` package on the fast path.

``import json`` costs 6 ms because it pulls in ``re`` and ``enum``; a whole ``tare run`` has a few dozen. CPython's
own accelerator ``_json`` does the work of both directions and is all that is needed for documents without special
hooks. Where it is missing or differs (another interpreter, a later release), the public package takes over; a unit
test compares the two on every kind of document.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Document = dict[str, Any]


class _Scanning:
    """The settings that ``_json.make_scanner`` reads from its argument."""

    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod({"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}.__getitem__)


def _fast_reader() -> Callable[[str], Any]:
    from _json import make_scanner

    scan = make_scanner(_Scanning())  # type: ignore[arg-type]

    def read(text: str) -> Any:
        body = text.strip(" \t\r\n")
        try:
            value, end = scan(body, 0)
        except StopIteration:
            raise ValueError("not a JSON document") from None
        if end != len(body):
            raise ValueError("more than one JSON document")
        return value

    if read('{"a": [1, 2.5, "\\u00e4", null, true]}') != {"a": [1, 2.5, "ä", None, True]}:
        raise ImportError("the JSON scanner of this interpreter works differently")
    return read


def _slow_reader() -> Callable[[str], Any]:
    from json import loads

    def read(text: str) -> Any:
        return loads(text)

    return read


def decode(data: bytes | str) -> Any:
    """The value of one JSON document. Raises ValueError."""
    global _read
    if _read is None:
        try:
            _read = _fast_reader()
        except (ImportError, TypeError, AttributeError):
            _read = _slow_reader()
    return _read(data if isinstance(data, str) else data.decode("utf-8", "replace"))


_read: Callable[[str], Any] | None = None

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _quote(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    parts = []
    for char in text:
        if char in _ESCAPES:
            parts.append(_ESCAPES[char])
        elif char < " " or "\ud800" <= char <= "\udfff" or char in "\u2028\u2029\x7f":
            parts.append(f"\\u{ord(char):04x}")
        else:
            parts.append(char)
    return '"' + "".join(parts) + '"'


def encode(value: Any) -> str:
    """Compact JSON, keys in the order given. Bytes that were not UTF-8 on the command line become escapes."""
    if isinstance(value, str):
        return _quote(value)
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, (int, float)):
        return repr(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{_quote(str(key))}:{encode(item)}" for key, item in value.items()) + "}"
    return "[" + ",".join(map(encode, value)) + "]"


def pretty(value: Any, indent: str = "    ", margin: str = "") -> str:
    """Indented JSON as docker's ``inspect`` prints it (non-ASCII text as it is)."""
    inner = margin + indent
    if isinstance(value, dict) and value:
        body = ",\n".join(f"{inner}{_quote(str(key))}: {pretty(item, indent, inner)}" for key, item in value.items())
        return "{\n" + body + "\n" + margin + "}"
    if isinstance(value, (list, tuple)) and value:
        return "[\n" + ",\n".join(inner + pretty(item, indent, inner) for item in value) + "\n" + margin + "]"
    return encode(value)
