"""Platforms: what an image runs on, and which entry of an index suits a machine.

Written ``os/architecture[/variant]``. Names are normalised to Go's (``x86_64`` → ``amd64``, ``aarch64`` → ``arm64``),
and a variant that is the architecture's default (``arm64/v8``, ``amd64/v1``) is dropped, while 32-bit Arm always has one.
A machine also runs images of the platforms in its ``fallbacks``, best first: older Arm variants, lower x86-64 levels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tare.errors import InvalidArgument

_ARCHITECTURES = {
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "loongarch64": "loong64",
}
_KNOWN_OS = frozenset({"linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "solaris", "wasip1"})
_KNOWN_ARCHITECTURES = frozenset(
    {"386", "amd64", "arm", "arm64", "loong64", "mips", "mipsle", "mips64", "mips64le"} | {"ppc64", "ppc64le", "riscv64", "s390x", "wasm"}
)
_PART_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


@dataclass(frozen=True)
class Platform:
    """One normalised platform; build it with ``parse`` or ``of``."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def of(cls, os_name: str, architecture: str, variant: str = "") -> Platform:
        """Normalise the three parts as they stand in a document."""
        os_name = os_name.lower()
        if os_name == "macos":
            os_name = "darwin"
        return cls(os_name, *_normalise(architecture.lower(), variant.lower()))

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse ``linux/arm64/v8``, ``linux/amd64``, or one part alone, completed from this machine."""
        parts = text.split("/")
        for part in parts:
            if not part or not _PART_CHARACTERS.issuperset(part):
                rule = 'platform specifier component must match "^[A-Za-z0-9_.-]+$": invalid argument'
                raise InvalidArgument(f'"{part}" is an invalid component of "{text}": {rule}')
        if len(parts) > 3:
            raise InvalidArgument(f'"{text}": cannot parse platform specifier: invalid argument')
        if len(parts) > 1:
            return cls.of(*parts)
        word = parts[0].lower()
        if word in _KNOWN_OS or word == "macos":
            return cls.of(word, host().architecture, host().variant)
        architecture, variant = _normalise(word, "")
        if architecture in _KNOWN_ARCHITECTURES:
            return cls.of("linux", architecture, variant)
        raise InvalidArgument(f'"{text}": unknown operating system or architecture: invalid argument')

    def fallbacks(self) -> tuple[Platform, ...]:
        """This platform and all that it runs too, best first."""
        found = [self]
        if self.architecture == "amd64" and self.variant[1:].isdigit():
            levels = range(int(self.variant[1:]) - 1, 1, -1) if len(self.variant) == 2 else range(0)
            found += [Platform(self.os, "amd64", f"v{level}") for level in levels]
            found.append(Platform(self.os, "amd64"))
        elif self.architecture in ("arm", "arm64"):
            top = 8 if self.architecture == "arm64" else int(self.variant[1:2] or 7) - 1
            if self.architecture == "arm64" and self.variant:
                found.append(Platform(self.os, "arm64"))
            found += [Platform(self.os, "arm", f"v{version}") for version in range(top, 4, -1)]
        if self.architecture == "amd64":
            found.append(Platform(self.os, "386"))
        return tuple(found)

    def runs(self, other: Platform) -> bool:
        """Whether an image for ``other`` runs on this platform."""
        return other in self.fallbacks()

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def host() -> Platform:
    """The platform of this machine."""
    machine = os.uname().machine.lower()
    variant = {"armv5l": "v5", "armv6l": "v6", "armv7l": "v7", "armv8l": "v8"}.get(machine, "")
    return Platform.of("linux", "arm" if variant else machine, variant)


def choose(wanted: Platform, offered: Iterable[Platform | None]) -> int | None:
    """The position of the best entry for ``wanted`` in ``offered`` (``None`` stands for an entry without platform)."""
    entries: Sequence[Platform | None] = tuple(offered)
    for candidate in wanted.fallbacks():
        if candidate in entries:
            return entries.index(candidate)
    return None


def _normalise(architecture: str, variant: str) -> tuple[str, str]:
    if architecture == "armhf":
        return "arm", "v7"
    if architecture == "armel":
        return "arm", "v6"
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if variant[:1].isdigit():
        variant = "v" + variant
    if architecture == "arm":
        return architecture, variant or "v7"
    if (architecture, variant) in (("arm64", "v8"), ("arm64", "v8.0"), ("amd64", "v1")):
        variant = ""
    return architecture, variant
