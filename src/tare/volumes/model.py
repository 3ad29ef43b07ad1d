"""What a volume is, and which names and driver options make one (pure).

Options of the ``local`` driver are those of mount(8): ``type``, ``device``, ``o``. A volume that has them is *mounted*: its ``_data`` is a
mount point that is filled while a container uses the volume. ``size`` sets a quota. ``uid``, ``gid`` and ``mode`` are Tare's own: owner and
mode of the volume's directory from its creation on, which the image's content then no longer decides.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

import msgspec

from tare.errors import Conflict, InvalidArgument

ANONYMOUS_LABEL = "com.docker.volume.anonymous"
MOUNT_OPTIONS = ("type", "device", "o")
OWNER_OPTIONS = ("uid", "gid", "mode")
SIZE_OPTION = "size"
MAX_NAME = 255
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?\Z", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_MAX_ID = (1 << 31) - 1


class Volume(msgspec.Struct, kw_only=True, frozen=True):
    """One volume; ``created`` in nanoseconds since the epoch. ``options`` None: none were given."""

    name: str
    created: int
    driver: str = "local"
    labels: dict[str, str] | None = None
    options: dict[str, str] | None = None
    anonymous: bool = False
    project: int = 0
    """The project id that the file system counts the content under; 0 without a quota."""

    @property
    def mounted(self) -> bool:
        """Whether its content is a file system that is mounted on use."""
        return any((self.options or {}).get(name) for name in MOUNT_OPTIONS)

    @property
    def configured(self) -> bool:
        """Whether it was made with an option of the driver's (prune leaves such volumes alone)."""
        return any(name not in OWNER_OPTIONS for name in self.options or {})

    @property
    def keeps_owner(self) -> bool:
        """Whether owner and mode were decided at its creation."""
        return any(name in (self.options or {}) for name in OWNER_OPTIONS)


def new_name() -> str:
    """A name for an anonymous volume."""
    return secrets.token_hex(32)


def check_name(name: str) -> None:
    """Refuse, in dockerd's words, what cannot be a volume's name."""
    if len(name) == 1:
        raise InvalidArgument(f"create {name}: volume name is too short, names should be at least two alphanumeric characters")
    if not _NAME.match(name):
        raise InvalidArgument(
            f'create {name}: "{name}" includes invalid characters for a local volume name, '
            'only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )
    if len(name) > MAX_NAME:
        raise InvalidArgument(f"create {name}: volume name is too long, names should be at most {MAX_NAME} characters")


def check_options(name: str, options: Mapping[str, str]) -> None:
    """Refuse unknown, incomplete and malformed driver options. What ``device`` and ``o`` say is for the kernel to judge."""
    for key in options:
        if key not in (*MOUNT_OPTIONS, SIZE_OPTION, *OWNER_OPTIONS):
            raise InvalidArgument(f'create {name}: invalid option: "{key}"')
    if any(options.get(key) for key in MOUNT_OPTIONS):
        for key in ("device", "type"):
            if not options.get(key):
                raise InvalidArgument(f'create {name}: missing required option: "{key}"')
        for key in (SIZE_OPTION, *OWNER_OPTIONS):
            if key in options:
                raise InvalidArgument(f'create {name}: option "{key}" cannot be combined with "device": put it into option "o"')
    if any("\0" in value for value in options.values()):
        raise InvalidArgument(f"create {name}: invalid option: null character")
    quota_bytes(name, options)
    owner(name, options)


def quota_bytes(name: str, options: Mapping[str, str]) -> int:
    """The ``size`` option in bytes; 0 for none."""
    text = options.get(SIZE_OPTION, "")
    if not text:
        return 0
    match = _SIZE.match(text)
    if match is None:
        raise InvalidArgument(f"create {name}: invalid size: '{text}'")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def owner(name: str, options: Mapping[str, str]) -> tuple[int, int, int]:
    """Uid, gid and mode of the volume's directory."""
    numbers = []
    for key, default, base, most in (("uid", "0", 10, _MAX_ID), ("gid", "0", 10, _MAX_ID), ("mode", "755", 8, 0o7777)):
        text = options.get(key, default)
        if not text.isascii() or not text.isdigit() or (base == 8 and not set(text) <= set("01234567")) or int(text, base) > most:
            raise InvalidArgument(f'create {name}: invalid value for option "{key}": {text!r}')
        numbers.append(int(text, base))
    return numbers[0], numbers[1], numbers[2]


def agree(volume: Volume, options: Mapping[str, str]) -> None:
    """An existing volume answers a request for it only when the quota and owner asked are its own."""
    present = volume.options or {}
    for key in (SIZE_OPTION, *OWNER_OPTIONS):
        if key in options and options[key] != present.get(key):
            raise Conflict(f'create {volume.name}: volume already exists with another value of option "{key}"')
