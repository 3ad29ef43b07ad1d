"""Who may do what: nobody writes without a password, unless the registry was told so.

Passwords come from an htpasswd file with bcrypt entries (``htpasswd -B``). The file is read again when it changes. A verified password is
remembered for a while under a keyed hash of it: bcrypt is slow on purpose, and a push makes hundreds of requests.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import time
from pathlib import Path

from tare.errors import InvalidArgument
from tare.registry.errors import RegistryError

REMEMBER_SECONDS = 300.0
_CHALLENGE = (("WWW-Authenticate", 'Basic realm="Tare registry"'),)


class Access:
    """The rules of one registry."""

    def __init__(self, htpasswd: Path | None, *, anonymous_pull: bool, anonymous_push: bool, read_only: bool) -> None:
        """``InvalidArgument`` when the password file cannot be used."""
        self._file = htpasswd
        self.anonymous_pull = anonymous_pull or htpasswd is None
        self.anonymous_push = anonymous_push
        self.read_only = read_only
        self._key = os.urandom(32)
        self._known: dict[tuple[str, bytes], float] = {}
        self._hashes: dict[str, bytes] = {}
        self._stamp = 0.0
        if htpasswd is not None:
            self._read()

    def _read(self) -> None:
        assert self._file is not None
        try:
            stamp = self._file.stat().st_mtime
            if stamp == self._stamp:
                return
            hashes = {}
            for number, line in enumerate(self._file.read_text().splitlines(), 1):
                name, colon, value = line.strip().partition(":")
                if not name or name.startswith("#"):
                    continue
                if not colon or not value.startswith(("$2a$", "$2b$", "$2y$")):
                    raise InvalidArgument(f"{self._file}:{number}: only bcrypt entries are taken: make them with 'htpasswd -B'")
                hashes[name] = value.encode()
        except OSError as error:
            raise InvalidArgument(f"cannot read the password file {self._file}: {error.strerror}") from None
        self._hashes, self._stamp = hashes, stamp
        self._known.clear()

    async def check(self, authorization: str, *, write: bool) -> str:
        """The user's name ("" for nobody). ``UNAUTHORIZED``, or ``DENIED`` for what nobody may."""
        if write and self.read_only:
            raise RegistryError("DENIED", "this registry is read-only")
        if authorization:
            name = await self._verify(authorization)
            if name or not write:
                return name
        if self.anonymous_push if write else self.anonymous_pull:
            return ""
        raise RegistryError("UNAUTHORIZED", "authentication required", headers=_CHALLENGE)

    async def _verify(self, authorization: str) -> str:
        if self._file is None:
            return ""
        self._read()
        scheme, _, value = authorization.partition(" ")
        try:
            if scheme.lower() != "basic":
                raise ValueError
            name, _, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
        except (ValueError, binascii.Error):
            raise RegistryError("UNAUTHORIZED", "malformed credentials", headers=_CHALLENGE) from None
        key = (name, hmac.new(self._key, password.encode(), hashlib.sha256).digest())
        if self._known.get(key, 0.0) > time.monotonic():
            return name
        stored = self._hashes.get(name)
        # An unknown name costs what a known one costs.
        matches = await asyncio.to_thread(_matches, password, stored or b"$2b$10$" + b"." * 53)
        if stored is None or not matches:
            raise RegistryError("UNAUTHORIZED", "incorrect username or password", headers=_CHALLENGE)
        self._known[key] = time.monotonic() + REMEMBER_SECONDS
        return name


def _matches(password: str, stored: bytes) -> bool:
    import bcrypt  # only registries with passwords need it

    try:
        return bcrypt.checkpw(password.encode()[:72], stored)
    except ValueError:
        return False
