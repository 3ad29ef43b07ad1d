"""``--platform os[/arch[/variant]]`` as the API takes it where it names one of an image's platforms."""

from __future__ import annotations

import os

from tare.cli.documents import encode
from tare.cli.failures import CliError

_ALLOWED = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"


def chosen(given: str) -> str:
    """The platform of the flag, else of ``DOCKER_DEFAULT_PLATFORM``."""
    return given or os.environ.get("DOCKER_DEFAULT_PLATFORM", "")


def check(text: str) -> None:
    """Raises CliError for what is no platform."""
    parts = text.split("/")
    if text and (len(parts) > 3 or any(not part or part.strip(_ALLOWED) for part in parts)):
        raise CliError(f'"{text}": cannot parse platform specifier: invalid argument')


def platform_json(text: str) -> str:
    """The JSON object of a platform; nothing for none. Raises CliError."""
    if not text:
        return ""
    check(text)
    return encode(dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False)))
