"""Which images a prune may take: Docker's rules, and two of our own for machines that collect images.

    keep-last=N     of each repository its N newest images stay, tagged or not
    unused-for=D    only what nothing was made of, and nobody named, for D (``72h``)

Pure. Containers that use an image, and images made of it, protect it in any case; that is looked at when it is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tare.errors import InvalidArgument
from tare.images.filters import moment
from tare.images.image import Image
from tare.oci.reference import Reference

OWN = ("keep-last", "unused-for")


def prunable(
    images: Sequence[Image], every: Iterable[Image], dangling: bool, filters: Mapping[str, Sequence[str]], now: float
) -> list[Image]:
    """Of ``images`` those that may go. ``every`` are all there are; ``filters`` our own ones."""
    kept = _newest(every, filters["keep-last"]) if filters.get("keep-last") else frozenset()
    limit = min((moment(text, now) for text in filters.get("unused-for", ())), default=None)
    return [
        image
        for image in images
        if (image.dangling if dangling else not image.held)
        and image.id not in kept
        and (limit is None or max(image.used, image.tagged) < limit)
    ]


def _newest(images: Iterable[Image], values: Sequence[str]) -> frozenset[str]:
    if not all(value.isdecimal() for value in values):
        raise InvalidArgument(f"invalid filter 'keep-last=[{' '.join(values)}]': give a number")
    count = max(int(value) for value in values)
    repositories: dict[str, list[Image]] = {}
    for image in images:
        if image.held:
            continue
        for repository in {Reference.parse(name).name for name in (*image.tags, *image.repo_digests)}:
            repositories.setdefault(repository, []).append(image)
    return frozenset(
        image.id for found in repositories.values() for image in sorted(found, key=lambda image: (-image.created_at, -image.tagged))[:count]
    )
