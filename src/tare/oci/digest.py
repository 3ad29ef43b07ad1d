"""Content digests: ``algorithm:hex``, the name of every blob (OCI image spec, descriptor.md, "Digests").

A ``Digest`` is a ``str``, so it is a key, a path part and JSON as it stands; but one exists only after validation, so
code that takes a ``Digest`` may build file names from it without looking again. Invariants: the algorithm is one of
``LENGTHS``; the encoded part is lower-case hex of exactly that algorithm's length.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Protocol

from tare.errors import InvalidArgument

LENGTHS = {"sha256": 64, "sha512": 128}
"""Registered algorithms that we verify, and the length of their hex form."""

_SHAPE = re.compile(r"[A-Za-z0-9]+(?:[.+_-][A-Za-z0-9]+)*:[A-Za-z0-9=_-]+")
_HEX = re.compile(r"[0-9a-f]+")


class Hasher(Protocol):
    """What we use of a ``hashlib`` object."""

    def update(self, data: Any, /) -> None: ...

    def hexdigest(self) -> str: ...


class Digest(str):
    """A validated digest. Build one with ``parse`` (checks), ``of`` (computes) or ``sha256`` (from a hasher's hex)."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Validate ``text``; raises ``InvalidArgument`` with the texts that Docker uses."""
        if isinstance(text, cls):
            return text
        if not _SHAPE.fullmatch(text):
            raise InvalidArgument("invalid checksum digest format")
        algorithm, _, encoded = text.partition(":")
        length = LENGTHS.get(algorithm)
        if length is None:
            raise InvalidArgument("unsupported digest algorithm")
        if len(encoded) != length:
            raise InvalidArgument("invalid checksum digest length")
        if not _HEX.fullmatch(encoded):
            raise InvalidArgument("invalid checksum digest format")
        return cls(text)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, algorithm: str = "sha256") -> Digest:
        """The digest of ``data``."""
        hasher = new_hasher(algorithm)
        hasher.update(data)
        return cls(f"{algorithm}:{hasher.hexdigest()}")

    @classmethod
    def sha256(cls, encoded: str) -> Digest:
        """The sha256 digest whose hex form is ``encoded``."""
        return cls.parse(f"sha256:{encoded}")

    @property
    def algorithm(self) -> str:
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        return self.partition(":")[2]

    @property
    def short(self) -> str:
        """The first twelve hex digits, as Docker shows ids."""
        return self.hex[:12]

    def hasher(self) -> Hasher:
        """A fresh hash object of this digest's algorithm."""
        return new_hasher(self.algorithm)

    def matches(self, hasher: Hasher) -> bool:
        """Whether ``hasher`` (of this digest's algorithm) came out as this digest."""
        return hasher.hexdigest() == self.hex


def new_hasher(algorithm: str) -> Hasher:
    """A hash object for a registered algorithm; raises ``InvalidArgument`` for any other."""
    if algorithm not in LENGTHS:
        raise InvalidArgument("unsupported digest algorithm")
    return hashlib.new(algorithm, usedforsecurity=False)
