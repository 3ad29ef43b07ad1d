"""Which layer driver: the first that works here, tried for real, or the one that was asked for."""

from __future__ import annotations

import os
from pathlib import Path

from tare.errors import InvalidArgument, Unsupported
from tare.store.layers.driver import LayerDriver
from tare.store.layers.erofs import ErofsDriver
from tare.store.layers.overlay import OverlayDriver
from tare.store.layers.vfs import VfsDriver

DRIVERS: dict[str, type[LayerDriver]] = {driver.name: driver for driver in (ErofsDriver, OverlayDriver, VfsDriver)}
"""Drivers by name, best first."""
_ALIASES = {"overlay2": "overlay"}


def choose(root: Path, exec_root: Path, override: str | None = None) -> LayerDriver:
    """The layer driver for this data root.

    ``root`` and ``exec_root`` are the engine's own. Raises ``InvalidArgument`` for an unknown ``override``, ``Unsupported`` with the reason
    when the override, or every driver, is impossible here.
    """
    if override:
        driver = DRIVERS.get(_ALIASES.get(override, override))
        if driver is None:
            raise InvalidArgument(f"unknown storage driver {override!r}: choose one of {', '.join(DRIVERS)}")
        driver.probe(root, exec_root)
        return driver(root, exec_root)
    reasons = []
    for driver in DRIVERS.values():
        try:
            driver.probe(root, exec_root)
        except Unsupported as error:
            reasons.append(str(error))
            continue
        return driver(root, exec_root)
    raise Unsupported("no storage driver works here: " + "; ".join(reasons))


def on_disk(root: Path) -> str:
    """The driver that holds the layers of a data root, by what lies there (the one with most layers); the first one when there are none."""

    def layers(name: str) -> int:
        try:
            return len(os.listdir(root / "layers" / name / "sha256"))
        except FileNotFoundError:
            return 0

    return max(DRIVERS, key=layers)
