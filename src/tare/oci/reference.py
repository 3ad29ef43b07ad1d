"""Image references, with the meaning that Docker users know.

    reference  := name [":" tag] ["@" digest]
    name       := [domain "/"] component ("/" component)*
    domain     := host [":" port]          host := DNS labels | IPv4 | "[" IPv6 "]"
    component  := [a-z0-9]+ (("." | "_" | "__" | "-"+) [a-z0-9]+)*
    tag        := [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}

A *familiar* name leaves out ``docker.io`` and ``library/``; a ``Reference`` always holds the full form. The first
component is a domain only if it has a dot, a colon or a capital in it, or is ``localhost``. Sixty-four hex digits are
an image id, never a name: ``Reference.parse`` refuses them and ``parse_any`` returns them as a ``Digest``. Error
texts are those that Docker clients match on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tare.errors import InvalidArgument
from tare.oci.digest import Digest

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
NAME_LIMIT = 255

_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__|_|-+)[a-z0-9]+)*"
_LABEL = r"(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(rf"({_DOMAIN})/({_COMPONENT}(?:/{_COMPONENT})*)(?::({_TAG}))?(?:@({_DIGEST}))?")
_TAG_ONLY = re.compile(_TAG)
_ID = re.compile(r"[a-f0-9]{64}")
_INVALID = "invalid reference format"


@dataclass(frozen=True)
class Reference:
    """A normalised reference: ``domain`` and ``path`` are always set, ``tag`` and ``digest`` may each be missing."""

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a familiar or full reference; adds no tag. Raises ``InvalidArgument`` with Docker's texts."""
        if _ID.fullmatch(text):
            raise InvalidArgument(
                f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings",
            )
        domain, remainder = _split_domain(text)
        name = remainder.partition(":")[0]
        if name.lower() != name:
            raise InvalidArgument(f"{_INVALID}: repository name ({name}) must be lowercase")
        match = _REFERENCE.fullmatch(f"{domain}/{remainder}")
        if match is None:
            raise InvalidArgument(_INVALID)
        path = match[2]
        if len(path) > NAME_LIMIT:
            raise InvalidArgument(f"repository name must not be more than {NAME_LIMIT} characters")
        return cls(match[1], path, match[3], Digest.parse(match[4]) if match[4] else None)

    @property
    def repository(self) -> Reference:
        """The same name without tag and digest."""
        return Reference(self.domain, self.path)

    @property
    def name(self) -> str:
        """``domain/path``."""
        return f"{self.domain}/{self.path}"

    @property
    def is_name_only(self) -> bool:
        return self.tag is None and self.digest is None

    @property
    def familiar_name(self) -> str:
        """The repository as Docker prints it: ``busybox``, ``user/app``, ``localhost:5000/app``."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        rest = self.path.removeprefix(_OFFICIAL)
        return rest if "/" not in rest else self.path

    def familiar(self) -> str:
        """The whole reference as Docker prints it."""
        return self.familiar_name + self._suffix()

    def canonical(self) -> str:
        """The whole reference with its domain."""
        return self.name + self._suffix()

    def with_default_tag(self) -> Reference:
        """The same reference, with ``:latest`` if it has neither tag nor digest."""
        return replace(self, tag=DEFAULT_TAG) if self.is_name_only else self

    def with_tag(self, tag: str) -> Reference:
        """This repository with another tag and no digest; raises ``InvalidArgument`` for a malformed tag."""
        if not _TAG_ONLY.fullmatch(tag):
            raise InvalidArgument("invalid tag format")
        return Reference(self.domain, self.path, tag)

    def with_digest(self, digest: Digest) -> Reference:
        """This repository by digest, without a tag."""
        return Reference(self.domain, self.path, None, digest)

    def __str__(self) -> str:
        return self.canonical()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_any(text: str) -> Reference | Digest:
    """A bare id (64 hex digits) or digest as ``Digest``, everything else as ``Reference``."""
    if _ID.fullmatch(text):
        return Digest.sha256(text)
    try:
        return Digest.parse(text)
    except InvalidArgument:
        return Reference.parse(text)


def _split_domain(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    is_domain = bool(slash) and (first == "localhost" or "." in first or ":" in first or first.lower() != first)
    domain, remainder = (first, rest) if is_domain else (DEFAULT_DOMAIN, text)
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in remainder:
        remainder = _OFFICIAL + remainder
    return domain, remainder
