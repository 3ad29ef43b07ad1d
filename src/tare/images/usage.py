"""What images take of the disk, and what they share: the figures of ``docker system df``.

A layer is shared when more than one image is made of it; its bytes count once in the total. Sizes are Docker's: bytes of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tare.images.image import Image
from tare.oci.digest import Digest


@dataclass(frozen=True)
class ImagesUsage:
    """The layers of some images: bytes of all, each once, and for each image (by id) the bytes that others have too."""

    layers: int
    shared: dict[str, int]


def images_usage(images: Iterable[Image], size: Callable[[Digest], int]) -> ImagesUsage:
    """The usage of ``images``, which should be all there are; ``size`` gives a layer's bytes."""
    every = list(images)
    users = Counter(diff_id for image in every for diff_id in set(image.diff_ids))
    sizes = {diff_id: size(diff_id) for diff_id in users}
    shared = {image.id: sum(sizes[diff_id] for diff_id in image.diff_ids if users[diff_id] > 1) for image in every}
    return ImagesUsage(sum(sizes.values()), shared)
