"""How much a repository or a namespace may hold.

A rule's name is a repository (``team/app``), all repositories below a namespace together (``team/*``) or all of them (``*``). A blob counts
once in each repository that has it: that somebody else has it as well must not be felt. Usage is summed up from the links when it is asked
for and remembered for a while, so that of several processes on one place each may overlook what the others have taken for so long. Uploads
under way are not counted, but none may grow beyond what has room: what a broken push leaves must not lock its owner out for a week.
"""

from __future__ import annotations

import threading
import time

from tare.oci.digest import Digest
from tare.registry.errors import RegistryError
from tare.registry.storage import Storage

REMEMBER_SECONDS = 60.0


class Quotas:
    """``DENIED`` for what would be too much."""

    def __init__(self, storage: Storage, rules: dict[str, int] | None = None) -> None:
        self._storage = storage
        self._rules = rules or {}
        self._usage: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    @property
    def any(self) -> bool:
        """Whether there are rules at all."""
        return bool(self._rules)

    def check(self, name: str, more: int, digest: Digest | None = None) -> None:
        """``DENIED`` when ``more`` bytes do not fit into repository ``name``; ``digest`` is what they are: it may be there already."""
        for rule, limit in self._rules.items():
            if not _covers(rule, name):
                continue
            if digest is not None and self._storage.has_blob(name, digest):
                continue
            used = self._used(rule, name)
            if used + more > limit:
                detail = {"rule": rule, "limit": limit, "used": used, "wanted": more}
                raise RegistryError("DENIED", f"quota of {rule} exceeded: {used} of {limit} bytes are used, {more} are to be added", detail)

    def room(self, name: str) -> int | None:
        """Bytes that still fit into repository ``name``; None: as many as may come."""
        return min((limit - self._used(rule, name) for rule, limit in self._rules.items() if _covers(rule, name)), default=None)

    def _used(self, rule: str, name: str) -> int:
        return sum(self.usage(each) for each in self._repositories(rule, name))

    def _repositories(self, rule: str, name: str) -> list[str]:
        return [each for each in self._storage.repositories() if _covers(rule, each)] if rule.endswith("*") else [name]

    def usage(self, name: str) -> int:
        """Bytes of a repository's blobs and manifests."""
        with self._lock:
            known = self._usage.get(name)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        found = {*self._storage.blobs(name), *self._storage.manifests(name)}
        used = sum(self._storage.objects.size(digest) or 0 for digest in found)
        with self._lock:
            self._usage[name] = (time.monotonic() + REMEMBER_SECONDS, used)
        return used

    def changed(self, name: str) -> None:
        """Something was added or removed."""
        with self._lock:
            self._usage.pop(name, None)


def _covers(rule: str, name: str) -> bool:
    return rule == name or rule == "*" or (rule.endswith("/*") and name.startswith(rule[:-1]))
