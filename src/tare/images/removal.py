"""Which names and images a ``docker rmi`` takes away, and when it must refuse: dockerd's rules, as pure decisions.

- By name: the name goes. If that was the image's last tag in its repository, the digests of that repository go with it. When nothing names
  the image any more, the image itself goes, unless a container or another image still needs it.
- By id: all names go with the image, but only if they are all of one repository, or with force.
- A running container and a dependent child image can never be forced; a stopped container and several repositories can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tare.errors import Conflict
from tare.oci.digest import Digest
from tare.oci.reference import Reference


@dataclass(frozen=True)
class Situation:
    """All that matters about one image when it is to be removed."""

    image_id: str
    references: tuple[Reference, ...]
    users: Sequence[tuple[str, bool]]
    """Containers made of it: id, and whether it runs."""
    has_children: bool

    @property
    def short(self) -> str:
        return Digest.parse(self.image_id).short


def check_untag(situation: Situation, asked: str, force: bool) -> None:
    """May this name go? Refuses to leave a used image without a name."""
    if not force and is_single(situation.references) and situation.users:
        container = situation.users[0][0][:12]
        raise Conflict(
            f'conflict: unable to remove repository reference "{asked}" (must force) - '
            f"container {container} is using its referenced image {situation.short}"
        )


def untagged_with(removed: Reference, remaining: Sequence[Reference]) -> list[Reference]:
    """The digests that go together with the name ``removed``: those of a repository that has no tag left."""
    if removed.digest or any(other.tag and other.name == removed.name for other in remaining):
        return []
    return [other for other in remaining if other.name == removed.name]


def is_single(references: Sequence[Reference]) -> bool:
    """Whether all references amount to one name: at most one tag, and digests of the same repository only."""
    tags = [reference for reference in references if reference.tag]
    return len(tags) <= 1 and len({reference.name for reference in references}) <= 1


def check_delete(situation: Situation, force: bool, references_count: bool = True) -> None:
    """May the image go? ``references_count``: whether its remaining names stand against it."""
    conflict = _hard(situation)
    if conflict:
        raise Conflict(f"conflict: unable to delete {situation.short} (cannot be forced) - {conflict}")
    conflict = "" if force else _soft(situation, references_count)
    if conflict:
        raise Conflict(f"conflict: unable to delete {situation.short} (must be forced) - {conflict}")


def _hard(situation: Situation) -> str:
    if situation.has_children:
        return "image has dependent child images"
    for container, running in situation.users:
        if running:
            return f"image is being used by running container {container[:12]}"
    return ""


def _soft(situation: Situation, references_count: bool) -> str:
    if references_count and situation.references:
        return "image is referenced in multiple repositories"
    for container, running in situation.users:
        if not running:
            return f"image is being used by stopped container {container[:12]}"
    return ""
