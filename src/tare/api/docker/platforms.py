"""Platforms in requests: text as everywhere, or a JSON object (API 1.46 and later)."""

from __future__ import annotations

import msgspec

from tare.errors import InvalidArgument
from tare.http.message import Request
from tare.oci.image import PlatformEntry
from tare.oci.platform import Platform


def platform_parameter(request: Request) -> Platform | None:
    """The ``platform`` parameter; ``None`` when it is absent or empty."""
    text = request.query.get("platform", "")
    return read_platform(text) if text else None


def read_platform(text: str) -> Platform:
    """A platform in either spelling. Raises ``InvalidArgument``."""
    if not text.startswith("{"):
        return Platform.parse(text)
    try:
        return msgspec.json.decode(text, type=PlatformEntry).platform()
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidArgument(f"invalid platform: {error}") from None
