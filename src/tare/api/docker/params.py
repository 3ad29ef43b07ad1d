"""Reading a request's parameters and bodies as dockerd reads them, and writing JSON answers.

Wrong input raises ``InvalidArgument`` with dockerd's text where clients know it.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar, overload

import msgspec

from tare.api.docker.filter_parameter import Filters
from tare.errors import InvalidArgument
from tare.http.message import HeaderItems, Request, Response
from tare.wire.decode import decode

T = TypeVar("T", bound=msgspec.Struct)

_TERMINAL_LIMIT = 0xFFFF
"""The kernel's winsize has sixteen bits for each direction."""
_FALSE_WORDS = frozenset(("", "0", "no", "false", "none"))
_MEDIA_TYPE = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+/[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_TIMESTAMP = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,9})[0-9]*)?")
_BYTE = re.compile(r"\(byte (\d+)\)")
_WRONG_TYPE = re.compile(r"Expected `([^`]+)`, got `([^`]+)`(?: - at `\$\.?([^`]*)`)?")
_JSON_TYPES = {"str": "string", "int": "number", "float": "number"}
_GO_TYPES = {"str": "string", "int": "int64", "bool": "bool", "array": "[]string", "object": "map[string]string", "float": "float64"}
_GO_PLACES = {
    "object keys must be strings": "looking for beginning of object key string",
    "trailing comma in object": "looking for beginning of object key string",
    "expected ':'": "after object key",
    "expected ',' or '}'": "after object key:value pair",
    "expected ',' or ']'": "after array element",
}


def boolean(request: Request, name: str, default: bool = False) -> bool:
    """A boolean query parameter: everything but ``""``, 0, no, false, none is true."""
    value = request.query.get(name)
    return default if value is None else value.strip().lower() not in _FALSE_WORDS


@overload
def integer(request: Request, name: str, default: int) -> int: ...
@overload
def integer(request: Request, name: str, default: None) -> int | None: ...
def integer(request: Request, name: str, default: int | None) -> int | None:
    """An integer query parameter; absent or empty gives ``default``."""
    value = request.query.get(name, "")
    if not value:
        return default
    if _INTEGER.fullmatch(value) is None:
        raise InvalidArgument(f'strconv.Atoi: parsing "{value}": invalid syntax')
    return int(value)


def terminal_size(request: Request) -> tuple[int, int]:
    """``h`` and ``w`` of a resize: (rows, columns)."""
    sizes = []
    for name, meaning in (("h", "height"), ("w", "width")):
        text = request.query.get(name, "")
        if not (text.isascii() and text.isdecimal()):
            raise InvalidArgument(f'invalid resize {meaning} "{text}": invalid syntax')
        if int(text) > _TERMINAL_LIMIT:
            raise InvalidArgument(f'invalid resize {meaning} "{text}": value out of range')
        sizes.append(int(text))
    return sizes[0], sizes[1]


def timestamp(request: Request, name: str) -> int | None:
    """A ``since`` or ``until`` parameter, ``SECONDS[.FRACTION]`` since the epoch, in nanoseconds; None when absent or empty."""
    value = request.query.get(name, "")
    if not value:
        return None
    match = _TIMESTAMP.fullmatch(value)
    if match is None:
        raise InvalidArgument(f'strconv.ParseInt: parsing "{value}": invalid syntax')
    return int(match[1]) * 1_000_000_000 + int((match[2] or "").ljust(9, "0"))


def read_filters(request: Request) -> Filters:
    """The ``filters`` parameter in either spelling."""
    return Filters.parse(request.query.get("filters"))


async def json_body(request: Request, kind: type[T], optional: bool = False) -> T:
    """The body as ``kind``. Without a body: the defaults when ``optional``, else an error."""
    body = await json_bytes(request, optional)
    return parse_json(kind, body) if body else kind()


async def json_bytes(request: Request, optional: bool = False) -> bytes:
    """The body, which says that it is JSON; empty when there is none and it is ``optional``."""
    content_type = request.headers.get("content-type", "")
    if request.head.has_body or (content_type and not optional):
        _check_json_type(content_type)
    body = await request.read()
    if not body.strip():
        if body or not optional:
            raise InvalidArgument("invalid JSON: got EOF while reading request body")
        return b""
    return body


def parse_json(kind: type[T], body: bytes) -> T:
    """Decode one JSON object, with error texts in dockerd's manner. As in Go, ``null`` is an object without fields."""
    if body.strip() == b"null":
        return kind()
    try:
        return decode(kind, body)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"invalid JSON: {_type_fault(str(error), kind)}") from None
    except RecursionError:
        raise InvalidArgument("invalid JSON: exceeded max depth") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidArgument(f"invalid JSON: {_fault(str(error), body)}") from None


def _type_fault(text: str, kind: type[msgspec.Struct]) -> str:
    """A value of the wrong type in the words of Go's decoder."""
    match = _WRONG_TYPE.match(text)
    if match is None:
        return text
    wanted = next((_GO_TYPES[word] for word in match[1].split(" | ") if word in _GO_TYPES), match[1])
    got = _JSON_TYPES.get(match[2], match[2])
    if not match[3]:
        return f"json: cannot unmarshal {got} into Go value of type {kind.__name__}"
    return f"json: cannot unmarshal {got} into Go struct field {kind.__name__}.{match[3]} of type {wanted}"


def _fault(text: str, body: bytes) -> str:
    """A syntax error in the words of Go's decoder."""
    if "truncated" in text:
        return "unexpected EOF"
    if "trailing characters" in text:
        return "unexpected content after JSON"
    match = _BYTE.search(text)
    if match is None or int(match[1]) >= len(body):
        return text.removeprefix("JSON is malformed: ")
    where = next((place for word, place in _GO_PLACES.items() if word in text), "looking for beginning of value")
    return f"invalid character {chr(body[int(match[1])])!r} {where}"


def _check_json_type(value: str) -> None:
    media_type = value.partition(";")[0].strip()
    if _MEDIA_TYPE.fullmatch(media_type) is None:
        raise InvalidArgument(f"malformed Content-Type header ({value}): mime: no media type")
    if media_type.lower() != "application/json":
        raise InvalidArgument(f"unsupported Content-Type header ({media_type}): must be 'application/json'")


def json_response(document: Any, status: int = 200, headers: HeaderItems = ()) -> Response:
    """A JSON answer; ``document`` is anything msgspec encodes."""
    return Response(status, msgspec.json.encode(document) + b"\n", "application/json", headers)
