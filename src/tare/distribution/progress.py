"""What a transfer tells its watchers, in the words that Docker's clients show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_BAR = 50


@dataclass(frozen=True)
class Progress:
    """One message. ``id`` is what it is about (a short layer digest, a tag); counts are bytes."""

    status: str
    id: str = ""
    current: int | None = None
    total: int | None = None

    def document(self) -> dict[str, Any]:
        """The message as Docker streams it (``JSONMessage``)."""
        message: dict[str, Any] = {"status": self.status}
        if self.current is not None:
            counts = {"current": self.current, "total": self.total or 0}
            message |= {"progressDetail": {name: count for name, count in counts.items() if count}}
            if text := _bar(self.current, self.total or 0):
                message["progress"] = text
        elif self.id and not self.status.startswith("Pulling from"):
            message["progressDetail"] = {}
        if self.id:
            message["id"] = self.id
        return message


Report = Callable[[Progress], None]
"""Receives messages on the event loop; must neither block nor fail."""


def silent(progress: Progress) -> None:
    """A ``Report`` for those who do not care."""


def human_size(count: float) -> str:
    """Decimal units with four significant digits at most, as Docker prints them: ``1.234MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.4g}{unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _bar(current: int, total: int) -> str:
    """Docker's bar for a wide terminal, which its API sends along: ``[====>    ]  1.2MB/3.4MB``."""
    if current <= 0 and total <= 0:
        return ""
    if total <= 0 or current > total:
        return f"{human_size(current):>8}"
    filled = current * _BAR // total
    return f"[{'=' * filled}>{' ' * (_BAR - filled)}] {human_size(current):>8}/{human_size(total)}"
