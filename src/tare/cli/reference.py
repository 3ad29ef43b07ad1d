"""Image names as a user types them: enough of the reference grammar to split, complete and shorten them.

The daemon has the full parser; the client needs the parts for ``pull`` (``fromImage`` and ``tag``), for "Unable to
find image", and to refuse a malformed name with the same words before anything is sent.
"""

from __future__ import annotations

from tare.cli.failures import CliError

_DOMAIN = "docker.io"
_LIBRARY = "library/"
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_HEX = frozenset("0123456789abcdef")
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


class Reference:
    """``domain/path`` with an optional tag and digest."""

    __slots__ = ("digest", "domain", "path", "tag")

    def __init__(self, domain: str, path: str, tag: str, digest: str) -> None:
        self.domain = domain
        self.path = path
        self.tag = tag
        self.digest = digest

    @property
    def name(self) -> str:
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        if self.domain != _DOMAIN:
            return self.name
        rest = self.path.removeprefix(_LIBRARY)
        return self.path if "/" in rest else rest

    @property
    def suffix(self) -> str:
        """The tag or digest, ``latest`` when neither is given."""
        return self.digest or self.tag or "latest"


def _invalid(detail: str = "") -> CliError:
    return CliError(f"invalid reference format{detail}", 125)


def parse(text: str) -> Reference | None:
    """The reference in ``text``; None for a bare image ID. Raises CliError."""
    bare = text.removeprefix("sha256:")
    if len(bare) == 64 and not set(bare) - _HEX:
        return None
    rest, at, digest = text.partition("@")
    if at:
        algorithm, colon, value = digest.partition(":")
        if not colon or not algorithm or len(value) < 32 or set(value.lower()) - _HEX:
            raise _invalid()
    tag = ""
    slash, colon_at = rest.rfind("/"), rest.rfind(":")
    if colon_at > slash:
        rest, tag = rest[:colon_at], rest[colon_at + 1 :]
        if not tag or len(tag) > 128 or tag[0] not in _WORD or set(tag) - _WORD - {".", "-"}:
            raise _invalid()
    domain, separator, path = rest.partition("/")
    if not separator or not ("." in domain or ":" in domain or domain == "localhost" or domain.lower() != domain):
        domain, path = _DOMAIN, rest
    if domain in ("index.docker.io", _DOMAIN):
        domain = _DOMAIN
        if "/" not in path:
            path = _LIBRARY + path
    if path.lower() != path:
        raise _invalid(f": repository name ({path}) must be lowercase")
    if not all(_component(part) for part in path.split("/")):
        raise _invalid()
    return Reference(domain, path, tag, digest)


def _component(part: str) -> bool:
    """Lower-case words joined by one dot, one or two underscores, or any number of dashes."""
    if not part or part[0] not in _LOWER or part[-1] not in _LOWER:
        return False
    joint = ""
    for char in part:
        if char in _LOWER:
            if joint and joint not in (".", "_", "__") and joint.strip("-"):
                return False
            joint = ""
        elif char in "._-":
            joint += char
        else:
            return False
    return True


def familiar(reference: Reference) -> str:
    """The short form with its tag or digest."""
    separator = "@" if reference.digest else ":"
    return f"{reference.familiar_name}{separator}{reference.suffix}"
