"""API versions: which are spoken, and how a path's prefix selects one. Archives of images are given to older clients too."""

from __future__ import annotations

import re
from importlib import metadata

from tare.errors import InvalidArgument

ApiVersion = tuple[int, int]

MINIMUM: ApiVersion = (1, 24)
MAXIMUM: ApiVersion = (1, 51)

_ARCHIVES = re.compile(r"/images/(load|get|.+/get)$")
"""Never changed, and all that the ``docker-daemon`` transport of skopeo and podman asks for: as version 1.22, for many years."""
_PREFIX = re.compile(r"/v([0-9]{1,3})\.([0-9]{1,3})(?=/)")


def engine_version() -> str:
    """Version of the installed distribution."""
    try:
        return metadata.version("tare-engine")
    except metadata.PackageNotFoundError:
        return "0.0.0"


def text(version: ApiVersion) -> str:
    return f"{version[0]}.{version[1]}"


def split(path: str) -> tuple[ApiVersion, str]:
    """(version, path without its prefix). No prefix means the newest version. Raises ``InvalidArgument`` with dockerd's texts."""
    match = _PREFIX.match(path)
    if match is None:
        return MAXIMUM, path
    version = (int(match[1]), int(match[2]))
    if version > MAXIMUM:
        raise InvalidArgument(f"client version {text(version)} is too new. Maximum supported API version is {text(MAXIMUM)}")
    if version < MINIMUM and _ARCHIVES.match(path, match.end()):
        return MINIMUM, path[match.end() :]
    if version < MINIMUM:
        raise InvalidArgument(
            f"client version {text(version)} is too old. Minimum supported API version is {text(MINIMUM)}, "
            "please upgrade your client to a newer version"
        )
    return version, path[match.end() :]
