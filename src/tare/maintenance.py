"""Work on a data root that no daemon uses: ``python -m tare.maintenance fsck --data-root DIR [--repair]``, and the like.

``tare system fsck --data-root`` starts this (the command line never imports the engine). Results are JSON on stdout, one document; an error
is one too, ``{"message": ...}``, with exit code 125.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from tare.errors import NotFound, TareError
from tare.images.check import Checker
from tare.store.content import ContentStore
from tare.store.layers.choice import DRIVERS, known, on_disk
from tare.store.layers.driver import LayerDriver
from tare.store.lock import DataRootLock
from tare.store.metadata import Metadata
from tare.store.migration import Migration


@contextmanager
def _owned(root: Path) -> Iterator[None]:
    """The data root locked for us. Raises ``NotFound`` when there is none, ``Conflict`` when a daemon has it."""
    if not (root / "metadata.db").is_file():
        raise NotFound(f"{root} is no data root of Tare: it has no metadata.db")
    lock = DataRootLock(root)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _driver(root: Path, name: str) -> Iterator[LayerDriver]:
    """A driver over the root's layers that mounts nothing of its own accord."""
    with tempfile.TemporaryDirectory(prefix="tare-maintenance-") as scratch:
        driver = DRIVERS[name](root, Path(scratch))
        try:
            yield driver
        finally:
            driver.close()


def fsck(root: Path, repair: bool) -> dict[str, Any]:
    """Check, and perhaps repair, an idle data root."""
    with _owned(root), _driver(root, on_disk(root) or next(iter(DRIVERS))) as layers:
        metadata = Metadata(root / "metadata.db")
        try:
            return asdict(Checker(root, metadata, ContentStore(root), layers, repair=repair).run())
        finally:
            metadata.close()


def migrate(root: Path, target: str) -> dict[str, Any]:
    """Convert an idle data root to another layer driver."""
    name = known(target)
    with _owned(root), ExitStack() as opened, tempfile.TemporaryDirectory(prefix="tare-maintenance-") as scratch:
        DRIVERS[name].probe(root, Path(scratch))
        metadata = Metadata(root / "metadata.db")
        try:
            return asdict(Migration(root, metadata, lambda each: opened.enter_context(_driver(root, each))).run(name))
        finally:
            metadata.close()


def main(arguments: list[str] | None = None) -> int:
    """Run one task."""
    parser = argparse.ArgumentParser(prog="tare.maintenance")
    tasks = parser.add_subparsers(dest="task", required=True)
    check = tasks.add_parser("fsck")
    check.add_argument("--data-root", type=Path, required=True)
    check.add_argument("--repair", action="store_true")
    conversion = tasks.add_parser("migrate")
    conversion.add_argument("--data-root", type=Path, required=True)
    conversion.add_argument("--to", required=True)
    options = parser.parse_args(arguments)
    try:
        document = migrate(options.data_root, options.to) if options.task == "migrate" else fsck(options.data_root, options.repair)
    except (TareError, OSError) as error:
        sys.stdout.buffer.write(msgspec.json.encode({"message": str(error)}) + b"\n")
        return 125
    sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
