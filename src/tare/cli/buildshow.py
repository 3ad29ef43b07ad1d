"""How a build is shown: live on a terminal, as lines elsewhere, as documents for programs, or not at all.

The daemon sends BuildKit's status documents (``vertexes``, ``statuses``, ``logs``, ``warnings``). A `Board` keeps what is known of every
vertex; `Plain` and `Live` draw it. All goes to standard error: standard output belongs to results.
"""

from __future__ import annotations

import os
import sys
import time
from binascii import a2b_base64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_LOG_LINES = 6
_KEPT_LINES = 200
_TAIL = 20


def moment(text: str) -> float:
    """Seconds since the epoch of a document's time."""
    from tare.cli.humanize import parse_time

    return parse_time(text) if text else 0.0


class Vertex:
    """One step."""

    __slots__ = ("cached", "completed", "digest", "error", "lines", "name", "number", "partial", "started", "statuses")

    def __init__(self, digest: str, number: int) -> None:
        self.digest = digest
        self.number = number
        self.name = ""
        self.started = self.completed = 0.0
        self.cached = False
        self.error = ""
        self.lines: list[str] = []
        """The last lines of its output, with their times."""
        self.partial = ""
        self.statuses: dict[str, dict[str, Any]] = {}

    def seconds(self, now: float) -> float:
        return max(0.0, (self.completed or now) - self.started)


class Board:
    """What is known of a build. ``news`` is told each change: the vertex, what kind, and a text."""

    def __init__(self, news: Callable[[Vertex, str, str], None] = lambda vertex, kind, text: None) -> None:
        self.vertexes: dict[str, Vertex] = {}
        self.warnings: list[dict[str, Any]] = []
        self.failed: Vertex | None = None
        self._news = news

    def update(self, document: dict[str, Any]) -> None:
        """Take in one status document."""
        for found in document.get("vertexes") or ():
            self._vertex(found)
        for found in document.get("statuses") or ():
            vertex = self._known(found["vertex"])
            fresh = vertex.statuses.get(found["id"]) is None
            vertex.statuses[found["id"]] = found
            if found.get("completed"):
                self._news(vertex, "status", f"{found['id']} {_counted(found)}done")
            elif fresh:
                self._news(vertex, "status", found["id"])
        for found in document.get("logs") or ():
            self._log(
                self._known(found["vertex"]), a2b_base64(found["data"]).decode("utf-8", "replace"), moment(found.get("timestamp", ""))
            )
        self.warnings += document.get("warnings") or []

    def _known(self, digest: str) -> Vertex:
        if digest not in self.vertexes:
            self.vertexes[digest] = Vertex(digest, len(self.vertexes) + 1)
        return self.vertexes[digest]

    def _vertex(self, found: dict[str, Any]) -> None:
        vertex = self._known(found["digest"])
        vertex.name = found.get("name") or vertex.name
        if not vertex.started and found.get("started"):
            vertex.started = moment(found["started"])
            self._news(vertex, "started", vertex.name)
        vertex.cached = bool(found.get("cached")) or vertex.cached
        vertex.error = found.get("error") or vertex.error
        if found.get("completed") and not vertex.completed:
            if vertex.partial:
                self._line(vertex, "", moment(found["completed"]))
            vertex.completed = moment(found["completed"])
            if vertex.error and (self.failed is None or self.failed.error == "context canceled"):
                self.failed = vertex
            self._news(vertex, "completed", _outcome(vertex))

    def _log(self, vertex: Vertex, text: str, when: float) -> None:
        *lines, rest = text.split("\n")
        for line in lines:
            self._line(vertex, line, when)
        vertex.partial += rest

    def _line(self, vertex: Vertex, line: str, when: float) -> None:
        whole = (vertex.partial + line).rstrip("\r").rpartition("\r")[2]
        vertex.partial = ""
        text = f"{max(0.0, when - vertex.started):.3f} {whole}"
        vertex.lines = [*vertex.lines[-_KEPT_LINES:], text]
        self._news(vertex, "log", text)


def _counted(found: dict[str, Any]) -> str:
    from tare.cli.humanize import size

    total = found.get("total") or found.get("current")
    return f"{size(total)} " if total else ""


def _outcome(vertex: Vertex) -> str:
    if vertex.error:
        return "CANCELED" if vertex.error == "context canceled" else f"ERROR: {vertex.error}"
    return "CACHED" if vertex.cached else f"DONE {vertex.seconds(vertex.completed):.1f}s"


class Quiet:
    """Shows nothing, but knows what failed."""

    lives = False
    """Whether ``tick`` changes what is shown."""

    def __init__(self) -> None:
        self.board = Board()

    def show(self, document: dict[str, Any]) -> None:
        self.board.update(document)

    def tick(self) -> None:
        """Time has passed."""

    def close(self) -> None:
        """Nothing more will come."""


class Raw(Quiet):
    """The documents themselves, one per line."""

    def show(self, document: dict[str, Any]) -> None:
        from tare.cli.documents import encode

        self.board.update(document)
        sys.stderr.write(encode(document) + "\n")
        sys.stderr.flush()


class Plain(Quiet):
    """Lines, each with its step's number, in the order in which they come."""

    def __init__(self) -> None:
        self.board = Board(self._news)
        self._current: Vertex | None = None

    def _news(self, vertex: Vertex, kind: str, text: str) -> None:
        if self._current is not vertex:
            if self._current is not None:
                sys.stderr.write(f"#{self._current.number} ...\n\n" if not self._current.completed else "\n")
            sys.stderr.write(f"#{vertex.number} {vertex.name}\n")
            self._current = vertex
        if kind != "started":
            sys.stderr.write(f"#{vertex.number} {text}\n")
        sys.stderr.flush()

    def close(self) -> None:
        if self._current is not None:
            sys.stderr.write("\n")
            sys.stderr.flush()


class Live(Quiet):
    """One line for each step, rewritten in place, below it the last lines of what runs."""

    lives = True

    def __init__(self) -> None:
        self.board = Board()
        self._begun = time.time()
        self._drawn = 0
        self._last = 0.0

    def show(self, document: dict[str, Any]) -> None:
        self.board.update(document)
        self.tick()

    def tick(self) -> None:
        now = time.time()
        if now - self._last >= 0.1:
            self._draw(now, over=False)

    def close(self) -> None:
        self._draw(time.time(), over=True)

    def _draw(self, now: float, *, over: bool) -> None:
        self._last = now
        try:
            columns, rows = os.get_terminal_size(2)
        except OSError:
            columns, rows = 80, 24
        vertexes = [vertex for vertex in self.board.vertexes.values() if vertex.started]
        done = sum(bool(vertex.completed) for vertex in vertexes)
        state = "FINISHED" if over else ""
        head = f"[+] Building {now - self._begun:.1f}s ({done}/{len(vertexes)}) {state}".rstrip()
        body: list[str] = []
        for vertex in vertexes:
            body += self._rows(vertex, now, columns, over=over)
        room = max(1, rows - 2)
        lines = [head[:columns], *(body if over else body[-room:])]
        sys.stderr.write(
            (f"\x1b[{self._drawn}A" if self._drawn else "") + "".join(f"\r\x1b[2K{line}\x1b[0m\n" for line in lines) + "\x1b[J"
        )
        sys.stderr.flush()
        self._drawn = len(lines)

    def _rows(self, vertex: Vertex, now: float, columns: int, *, over: bool) -> list[str]:
        clock = f"{vertex.seconds(now):.1f}s"
        mark = (
            "ERROR "
            if vertex.error and vertex.error != "context canceled"
            else "CANCELED "
            if vertex.error
            else "CACHED "
            if vertex.cached
            else ""
        )
        color = "\x1b[31m" if mark == "ERROR " else "\x1b[33m" if vertex.error else "\x1b[34m" if vertex.completed else ""
        rows = [color + _row(f" => {mark}{vertex.name}", clock, columns)]
        for id, status in vertex.statuses.items():
            begun, ended = moment(status.get("started", "")), moment(status.get("completed", ""))
            if not vertex.completed or vertex.name.startswith("exporting"):
                rows.append(color + _row(f" => => {id} {_transferred(status)}", f"{max(0.0, (ended or now) - begun):.1f}s", columns))
        if not vertex.completed and not over:
            rows += [f"\x1b[2m => => # {line.partition(' ')[2]}"[: columns + 4] for line in vertex.lines[-_LOG_LINES:]]
        return rows


def _transferred(status: dict[str, Any]) -> str:
    from tare.cli.humanize import size

    current, total = status.get("current") or 0, status.get("total") or 0
    return f"{size(current)} / {size(total)}" if total else ""


def _row(text: str, clock: str, columns: int) -> str:
    room = max(10, columns - len(clock) - 1)
    return text[:room].ljust(room) + " " + clock


def chosen(progress: str, *, quiet: bool) -> Quiet:
    """The display for ``--progress``."""
    if quiet or progress in ("quiet", "none"):
        return Quiet()
    if progress == "rawjson":
        return Raw()
    if progress == "tty" or (progress == "auto" and os.isatty(2) and os.environ.get("TERM") != "dumb"):
        return Live()
    return Plain()


def failure(board: Board, place: dict[str, Any] | None) -> str:
    """What is shown of a failed build: the last lines of the step, and where it is in the Dockerfile."""
    lines = []
    if board.failed is not None and board.failed.lines:
        lines += ["------", f" > {board.failed.name}:", *board.failed.lines[-_TAIL:], "------"]
    if place and place.get("Lines"):
        lines += [f"{place['Dockerfile']}:{place['Line']}", "-" * 20]
        for number, text in enumerate(place["Lines"], place["First"]):
            mark = ">>>" if place["Line"] <= number <= place["End"] else "   "
            lines.append(f"{number:4} | {mark} {text}".rstrip())
        lines.append("-" * 20)
        if place.get("Hint"):
            lines.append(f"hint: {place['Hint']}")
    return "".join(f"{line}\n" for line in lines)
