"""Names and passwords from an htpasswd file with bcrypt entries (``htpasswd -B``), which is read again when it changes.

A verified password is remembered for a while under a keyed hash of it: bcrypt is slow on purpose, and a push makes hundreds of requests.
Whoever guesses is slowed down: after ``TRIES`` wrong passwords for a name from one address that pair has to wait, and no more than
``CHECKS`` passwords are computed at the same time.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import time
from collections import OrderedDict
from pathlib import Path

from tare.errors import InvalidArgument
from tare.registry.errors import RegistryError

REMEMBER_SECONDS = 300.0
TRIES, PENALTY = 10, 60.0
CHECKS = 2
_LIMIT = 4096


class Passwords:
    """The users of one registry."""

    def __init__(self, file: Path) -> None:
        """``InvalidArgument`` when the file cannot be used."""
        self._file = file
        self._key = os.urandom(32)
        self._known: OrderedDict[tuple[str, bytes], float] = OrderedDict()
        self._failed: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()
        self._hashes: dict[str, bytes] = {}
        self._stamp = (0, 0, 0)
        self._slots = asyncio.Semaphore(CHECKS)
        self.failures = 0
        self.reload()

    def reload(self) -> None:
        """Read the file if it has changed. ``InvalidArgument``."""
        try:
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp == self._stamp:
                return
            hashes = _parse(self._file, self._file.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"cannot read the password file {self._file}: {getattr(error, 'strerror', error)}") from None
        self._hashes, self._stamp = hashes, stamp
        self._known.clear()

    def fingerprint(self, name: str) -> str:
        """Changes with the password; empty when there is no such user."""
        self._reload_quietly()
        stored = self._hashes.get(name)
        return hashlib.sha256(b"tare refresh\0" + stored).hexdigest()[:32] if stored else ""

    async def verify_basic(self, value: str, address: str) -> str:
        """The name out of a Basic ``Authorization`` value without its scheme. ``UNAUTHORIZED``, ``TOOMANYREQUESTS``."""
        try:
            name, colon, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
        except (ValueError, binascii.Error):
            colon = ""
        if not colon:
            raise RegistryError("UNAUTHORIZED", "malformed credentials")
        return await self.verify(name, password, address)

    async def verify(self, name: str, password: str, address: str) -> str:
        """The name. ``UNAUTHORIZED``, ``TOOMANYREQUESTS``."""
        self._reload_quietly()
        key = (name, hmac.new(self._key, password.encode(), hashlib.sha256).digest())
        if self._known.get(key, 0.0) > time.monotonic():
            return name
        host = address.rpartition(":")[0] or address
        self._admit(host, name)
        stored = self._hashes.get(name)
        async with self._slots:
            self._admit(host, name)  # who waited in a crowd of guesses
            # An unknown name costs what a known one costs.
            matches = await asyncio.to_thread(_matches, password, stored or b"$2b$10$" + b"." * 53)
        if stored is None or not matches or "\0" in password:
            self._note_failure(host, name)
            raise RegistryError("UNAUTHORIZED", "incorrect username or password")
        self._failed.pop((host, name), None)
        self._known[key] = time.monotonic() + REMEMBER_SECONDS
        if len(self._known) > _LIMIT:
            self._known.popitem(last=False)
        return name

    def _reload_quietly(self) -> None:
        """A file that is being edited must not lock everybody out."""
        try:
            self.reload()
        except InvalidArgument:
            return

    def _admit(self, host: str, name: str) -> None:
        count, until = self._failed.get((host, name), (0, 0.0))
        left = until - time.monotonic()
        if count >= TRIES and left > 0:
            headers = (("Retry-After", str(int(left) + 1)),)
            raise RegistryError("TOOMANYREQUESTS", "too many wrong passwords: wait a moment", headers=headers)

    def _note_failure(self, host: str, name: str) -> None:
        self.failures += 1
        count, until = self._failed.get((host, name), (0, 0.0))
        now = time.monotonic()
        self._failed[host, name] = (count + 1 if now < until else 1, now + PENALTY)
        self._failed.move_to_end((host, name))
        if len(self._failed) > _LIMIT:
            self._failed.popitem(last=False)


def _parse(file: Path, text: str) -> dict[str, bytes]:
    hashes = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, colon, value = line.strip().partition(":")
        if not name or name.startswith("#"):
            continue
        if not colon or not value.startswith(("$2a$", "$2b$", "$2y$")):
            raise InvalidArgument(f"{file}:{number}: only bcrypt entries are taken: make them with 'htpasswd -B'")
        hashes[name] = value.encode()
    return hashes


def _matches(password: str, stored: bytes) -> bool:
    import bcrypt  # only registries with passwords need it

    try:
        return bcrypt.checkpw(password.encode()[:72], stored)
    except ValueError:
        return False
