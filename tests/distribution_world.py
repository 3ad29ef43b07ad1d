"""The images service over fresh stores, without a daemon: what the tests of the registry client work with."""

from __future__ import annotations

from pathlib import Path

from tare.config import EngineConfig
from tare.events import EventBus
from tare.images.service import Images
from tare.store.content import ContentStore
from tare.store.layers.erofs import ErofsDriver
from tare.store.metadata import Metadata


class World:
    """One set of stores with the images service over them."""

    def __init__(self, root: Path, **settings: object) -> None:
        config = EngineConfig(data_root=root / "data", exec_root=root / "exec", **settings)  # type: ignore[arg-type]
        self.root = root
        self.events = EventBus()
        self.metadata = Metadata(config.database)
        self.content = ContentStore(config.data_root)
        self.layers = ErofsDriver(config.data_root, config.exec_root)
        self.images = Images(config, self.content, self.layers, self.metadata, self.events)

    async def close(self) -> None:
        await self.images.close()
        self.metadata.close()

    def leftovers(self) -> list[str]:
        """Layers, blobs, partial layers and partial blobs on disk."""
        found = [f"layer {digest}" for digest in self.layers.walk()] + [f"blob {digest}" for digest in self.content.walk()]
        for directory in ("layers/erofs/tmp", "ingest"):
            found += [entry.name for entry in (self.root / "data" / directory).iterdir()]
        return found
