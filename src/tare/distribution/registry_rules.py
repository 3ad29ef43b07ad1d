"""Settings by registry: other locations, mirrors, insecure and blocked ones, as in containers-registries.conf(5), version 2.

    [[registry]]
    prefix = "registry.example/team"          # what references begin with; "*.example" stands for all hosts below
    location = "internal.example:5000/team"   # where they really are; empty: where they say
    insecure = false
    blocked = false
    [[registry.mirror]]                       # asked first, in this order
    location = "mirror.example/team"
    insecure = true
    pull-from-mirror = "all"                  # or digest-only, tag-only

The longest prefix that matches a reference counts. Settings of that format that concern short names have no meaning here (Docker's own rule
holds: they are on Docker Hub) and are left out of account.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tare.errors import InvalidArgument

DEFAULT_FILE = Path("/etc/tare/registries.toml")
PULL_FROM = ("all", "digest-only", "tag-only")


@dataclass(frozen=True)
class Location:
    """A place that serves the repositories of a rule: ``host[:port][/path]`` in the place of the rule's prefix."""

    location: str
    insecure: bool = False
    pull_from: str = "all"


@dataclass(frozen=True)
class RegistryRule:
    """What holds for references that begin with ``prefix``."""

    prefix: str
    location: Location
    """Where the registry itself is; its location is empty when that is where the reference says."""
    mirrors: tuple[Location, ...] = ()
    blocked: bool = False

    def matched(self, name: str) -> int:
        """How many characters of ``domain/path`` the prefix covers; 0 when it does not match."""
        domain = name.partition("/")[0]
        if self.prefix.startswith("*."):
            return len(domain) if domain.endswith(self.prefix[1:]) else 0
        covered = name == self.prefix or name.startswith(f"{self.prefix}/")
        return len(self.prefix) if covered else 0


def rule_for(rules: tuple[RegistryRule, ...], name: str) -> RegistryRule | None:
    """The rule with the longest prefix for ``domain/path``; an exact one beats a wildcard."""
    matching = [rule for rule in rules if rule.matched(name)]
    return max(matching, key=lambda rule: (not rule.prefix.startswith("*."), rule.matched(name), len(rule.prefix)), default=None)


def read_rules(file: Path | None) -> tuple[RegistryRule, ...]:
    """The rules of a file; of the default one, which need not exist, when none is named. Raises ``InvalidArgument``."""
    path = file or DEFAULT_FILE
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        if file is None:
            return ()
        raise InvalidArgument(f"registry configuration {path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"registry configuration {path}: {error}") from None
    entries = document.get("registry", [])
    if not isinstance(entries, list):
        raise InvalidArgument(f"registry configuration {path}: version 2 of the format is expected, with [[registry]] tables")
    try:
        return tuple(_rule(entry) for entry in entries)
    except InvalidArgument as error:
        raise InvalidArgument(f"registry configuration {path}: {error}") from None


def _rule(entry: Mapping[str, Any]) -> RegistryRule:
    _known(entry, ("prefix", "location", "insecure", "blocked", "mirror", "mirror-by-digest-only"))
    prefix, location = _text(entry, "prefix"), _text(entry, "location")
    if not prefix and not location:
        raise InvalidArgument("a registry needs a prefix or a location")
    by_digest = "digest-only" if _flag(entry, "mirror-by-digest-only") else "all"
    mirrors = entry.get("mirror", [])
    if not isinstance(mirrors, list):
        raise InvalidArgument("mirrors are given as [[registry.mirror]] tables")
    return RegistryRule(
        _place(prefix or location),
        Location(_place(location) if location else "", _flag(entry, "insecure")),
        tuple(_mirror(mirror, by_digest) for mirror in mirrors),
        _flag(entry, "blocked"),
    )


def _mirror(entry: Mapping[str, Any], default: str) -> Location:
    _known(entry, ("location", "insecure", "pull-from-mirror"))
    pull_from = _text(entry, "pull-from-mirror") or default
    if pull_from not in PULL_FROM:
        raise InvalidArgument(f'pull-from-mirror must be one of {", ".join(PULL_FROM)}, not "{pull_from}"')
    return Location(_place(_text(entry, "location")), _flag(entry, "insecure"), pull_from)


def _place(text: str) -> str:
    if not text or "://" in text or "@" in text or any(character.isspace() for character in text):
        raise InvalidArgument(f'"{text}" is no location: host[:port][/path] is expected')
    return text.rstrip("/")


def _known(entry: Mapping[str, Any], names: tuple[str, ...]) -> None:
    unknown = [name for name in entry if name not in names]
    if unknown:
        raise InvalidArgument(f'unknown setting "{unknown[0]}"')


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name, "")
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} must be a string")
    return value


def _flag(entry: Mapping[str, Any], name: str) -> bool:
    value = entry.get(name, False)
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name} must be true or false")
    return value
