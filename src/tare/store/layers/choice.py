"""Which layer driver: the first that works here, tried for real, or the one that was asked for."""

from __future__ import annotations

import os
from pathlib import Path

from tare.errors import Conflict, InvalidArgument, Unsupported
from tare.store.durability import replace_file
from tare.store.layers.driver import LayerDriver
from tare.store.layers.erofs import ErofsDriver
from tare.store.layers.overlay import OverlayDriver
from tare.store.layers.vfs import VfsDriver

DRIVERS: dict[str, type[LayerDriver]] = {driver.name: driver for driver in (ErofsDriver, OverlayDriver, VfsDriver)}
"""Drivers by name, best first."""
_ALIASES = {"overlay2": "overlay"}


_RECORD = "driver"
"""``layers/driver`` in the data root names the driver that a migration went to."""


def choose(root: Path, exec_root: Path, override: str | None = None) -> LayerDriver:
    """The layer driver for this data root: the one that holds its layers already, else the first that works, or ``override``.

    ``root`` and ``exec_root`` are the engine's own. Raises ``InvalidArgument`` for an unknown ``override`` and ``Unsupported`` with the
    reason when the driver, or every one, is impossible here; ``Conflict`` when the layers are another driver's than ``override``.
    """
    held = on_disk(root)
    if override:
        name = known(override)
        if held not in (None, name):
            raise Conflict(
                f"the layers under {root} are stored by driver {held}, not {name}: start with --storage-driver {held}, "
                f"or convert them with 'tare system migrate --data-root {root} --to {name}'"
            )
        return _made(name, root, exec_root)
    if held is not None:
        return _made(held, root, exec_root)
    reasons = []
    for name in DRIVERS:
        try:
            return _made(name, root, exec_root)
        except Unsupported as error:
            reasons.append(str(error))
    raise Unsupported("no storage driver works here: " + "; ".join(reasons))


def known(name: str) -> str:
    """The driver called ``name``; ``InvalidArgument`` when there is none."""
    name = _ALIASES.get(name, name)
    if name not in DRIVERS:
        raise InvalidArgument(f"unknown storage driver {name!r}: choose one of {', '.join(DRIVERS)}")
    return name


def _made(name: str, root: Path, exec_root: Path) -> LayerDriver:
    DRIVERS[name].probe(root, exec_root)
    return DRIVERS[name](root, exec_root)


def on_disk(root: Path) -> str | None:
    """The driver that holds the layers of a data root: where the last migration went, or whose layers lie there; None without layers."""
    try:
        recorded = (root / "layers" / _RECORD).read_text().strip()
    except FileNotFoundError:
        recorded = ""
    if recorded in DRIVERS:
        return recorded
    counts = {name: count for name in DRIVERS if (count := _count(root / "layers" / name / "sha256"))}
    return max(counts, key=lambda name: counts[name]) if counts else None


def _count(directory: Path) -> int:
    try:
        return len(os.listdir(directory))
    except FileNotFoundError:
        return 0


def record(root: Path, name: str) -> None:
    """From here on the layers of this data root are driver ``name``'s."""
    replace_file(root / "layers" / _RECORD, name.encode() + b"\n")
