"""A new layer on an image: what ``docker commit`` makes of a container, and the builder of a step.

    an upper directory ──► tar of a layer (``store.tartree``) ──► layer store, in one pass ──► config = parent's + layer + history

``store_layer`` and ``child_config`` are the two halves; ``Images.commit`` joins them with the records and the name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from tare.errors import ResourceExhausted
from tare.oci.digest import Digest
from tare.oci.image import ContainerConfig, History, ImageConfig, RootFS
from tare.store.layers.driver import Layer, LayerDriver


@dataclass(frozen=True)
class Step:
    """How the child came to be: its line in the history, and what becomes its own author and comment."""

    created: str
    created_by: str = ""
    author: str = ""
    comment: str = ""


def store_layer(layers: LayerDriver, chunks: Iterable[bytes], claim: Callable[[Digest], None]) -> Layer:
    """Store the tar of a layer, whose diff_id ``claim`` hears before it is visible. Blocks; leaves nothing behind on failure."""
    try:
        with layers.writer(claim) as writer:
            for chunk in chunks:
                writer.write(chunk)
            return writer.commit()
    except OSError as error:
        raise ResourceExhausted(f"cannot store the new layer: {error}") from error


def child_config(parent: ImageConfig, layer: Layer | None, container: ContainerConfig, step: Step) -> ImageConfig:
    """The config of an image that adds ``layer`` (None, or one without entries: nothing) to ``parent``."""
    grown = layer is not None and layer.entries > 0
    diff_ids = list(parent.diff_ids)
    if grown and layer is not None:
        diff_ids.append(layer.diff_id)
    line = History(
        created=step.created,
        created_by=step.created_by or None,
        author=step.author or None,
        comment=step.comment or None,
        empty_layer=not grown,
    )
    return msgspec.structs.replace(
        parent,
        rootfs=RootFS(diff_ids),
        created=step.created,
        author=step.author or None,
        comment=step.comment or None,
        docker_version=None,
        inline_cache=None,
        config=container,
        history=[*(parent.history or ()), line],
    )
