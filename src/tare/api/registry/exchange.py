"""A request that was answered, as those see it who keep books: the access log, the audit log, metrics, webhooks."""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tare.api.registry.access import NOBODY, Caller
from tare.errors import InvalidArgument
from tare.http.message import Request, Response

_CHANGES = {
    ("manifest", "PUT"): "push",
    ("manifest", "DELETE"): "delete",
    ("blob", "DELETE"): "delete",
    ("upload", "PUT"): "push",
    ("uploads", "POST"): "push",
}


class Exchange:
    """One request and its answer. Filled while it is answered."""

    __slots__ = ("caller", "error", "kind", "name", "part", "place", "request", "response", "seconds", "started", "status")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.started = time.perf_counter()
        self.kind = ""
        """The route: ``manifest``, ``blob``, ``uploads``, ``upload``, ``tags``, ``referrers``, ``catalog``, ``base``, ``token``, …"""
        self.part: Mapping[str, str] = {}
        self.caller: Caller = NOBODY
        self.response: Response | None = None
        self.status = 0
        """0 when the answer broke off before it began."""
        self.error = ""
        """The specification's code of a refusal."""
        self.seconds = 0.0

    def header(self, name: str) -> str:
        """Of the answer, when that was not a stream."""
        return next((value for key, value in self.response.headers if key == name), "") if self.response is not None else ""

    @property
    def repository(self) -> str:
        return self.part.get("name", "")

    @property
    def reference(self) -> str:
        return self.part.get("reference", "")

    @property
    def digest(self) -> str:
        reference = self.reference
        return self.header("Docker-Content-Digest") or self.part.get("digest", "") or (reference if ":" in reference else "")

    @property
    def action(self) -> str:
        """``push``, ``mount``, ``pull`` or ``delete`` of a manifest or blob; empty for anything else."""
        request = self.request
        if request.method == "GET" and self.kind in ("manifest", "blob"):
            return "pull" if self.status in (200, 206) else ""
        action = _CHANGES.get((self.kind, request.method), "")
        if action == "push" and (self.status != 201 or not self.digest):
            return ""
        if self.kind == "uploads" and action and "mount" in request.query and request.query.get("digest") is None:
            return "mount"
        return action if self.status < 300 else ""


Observer = Callable[[Exchange], None]


class Journal:
    """A file of JSON lines, or standard output (``-``). A line is written whole, or not at all."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._file = -1
        self._failed = False
        self.reopen()

    def reopen(self) -> None:
        """After the file was moved away (logrotate). ``InvalidArgument``."""
        if self._place == "-":
            self._file = sys.stdout.fileno()
            return
        try:
            file = os.open(self._place, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as error:
            raise InvalidArgument(f"cannot write to {self._place}: {error.strerror}") from None
        self.close()
        self._file = file

    def close(self) -> None:
        """Idempotent."""
        if self._place != "-" and self._file >= 0:
            os.close(self._file)
        self._file = -1

    def write(self, record: Mapping[str, object]) -> None:
        """One line. A full disk costs lines, not requests; the first loss is told on standard error."""
        try:
            os.write(self._file, json.dumps(record, separators=(",", ":")).encode() + b"\n")
            self._failed = False
        except OSError as error:
            if not self._failed:
                print(f"tare registry: cannot write to {Path(self._place)}: {error.strerror}", file=sys.stderr)
            self._failed = True


class Timestamp(NamedTuple):
    """The second that was last written out, and how."""

    second: int
    text: str


_last = Timestamp(0, "")


def now() -> str:
    """RFC 3339, with milliseconds."""
    global _last
    moment = time.time()
    if int(moment) != _last.second:
        _last = Timestamp(int(moment), time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)))
    return f"{_last.text}.{int(moment % 1 * 1000):03d}Z"


class AccessLog:
    """A line for each request."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __call__(self, exchange: Exchange) -> None:
        request = exchange.request
        record: dict[str, object] = {
            "time": now(),
            "id": request.id,
            "address": request.peer.address,
            "user": exchange.caller.name,
            "method": request.method,
            "path": request.path,
            "status": exchange.status,
            "bytes": len(exchange.response.body) if exchange.response is not None else request.length,
            "seconds": round(exchange.seconds, 6),
            "agent": request.headers.get("user-agent", "")[:300],
        }
        if request.raw_query and exchange.kind != "token":
            record["query"] = request.raw_query[:1000]
        if exchange.error:
            record["error"] = exchange.error
        self._journal.write(record)


class AuditLog:
    """A line for each change, each refusal and each token that was given: who, what, where, with what result."""

    def __init__(self, journal: Journal, *, pulls: bool) -> None:
        self._journal = journal
        self._pulls = pulls

    def __call__(self, exchange: Exchange) -> None:
        request, kind = exchange.request, exchange.kind
        action = exchange.action
        refused = exchange.status in (401, 403, 429)
        if refused and exchange.caller is NOBODY and not request.headers.get("authorization") and kind != "token":
            return  # the question of a client that was asked who it is
        if not action and refused:
            action = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}.get(request.method, "push") if exchange.repository else "enter"
        if kind == "token":
            action = "token"
        if not action or (action == "pull" and not self._pulls and not refused) or (action == "pull" and request.method == "HEAD"):
            return
        record: dict[str, object] = {
            "time": now(),
            "id": request.id,
            "address": request.peer.address,
            "user": exchange.caller.name,
            "action": action,
            "object": "manifest" if kind == "manifest" else "blob" if kind in ("blob", "upload", "uploads") else kind,
            "repository": exchange.repository,
            "result": "refused" if refused else "done" if exchange.status < 300 else "failed",
            "status": exchange.status,
        }
        claimed = _claimed(request) if refused and not exchange.caller.name else ""
        more = (("reference", exchange.reference), ("digest", exchange.digest), ("error", exchange.error), ("claimed", claimed))
        for name, value in more:
            if value:
                record[name] = value
        if action == "mount":
            record["from"] = request.query.get("from", "")
        self._journal.write(record)


def _claimed(request: Request) -> str:
    """The name of somebody who could not prove it."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[0][:200] if scheme.lower() == "basic" else ""
    except (ValueError, binascii.Error):
        return ""
