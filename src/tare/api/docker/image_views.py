"""Images as Docker's API shows them, with the differences between its versions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tare.api.docker.filter_parameter import Filters
from tare.errors import InvalidArgument
from tare.wire.images import HistoryEntry, ImageInspect, ImageSummary

if TYPE_CHECKING:
    from tare.api.docker.versions import ApiVersion
    from tare.distribution.search import Hit
    from tare.images.image import HistoryItem, Image

NEVER = "0001-01-01T00:00:00Z"
_ALWAYS_SHOWN: dict[str, Any] = {"User": "", "WorkingDir": ""} | dict.fromkeys(("Env", "Cmd", "Volumes", "Entrypoint", "OnBuild", "Labels"))
_CONTAINERS_OWN: dict[str, Any] = {"Hostname": "", "Domainname": "", "Image": ""} | dict.fromkeys(
    ("AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce"), False
)
"""Settings of a container that an image's config showed before 1.50."""


def names(image: Image, version: ApiVersion) -> tuple[list[str], list[str]]:
    """Tags and digests; before 1.43 an image without names was shown as ``<none>``."""
    tags, digests = [*image.tags], [*image.repo_digests]
    if version < (1, 43):
        if not tags and not digests:
            digests = ["<none>@<none>"]
        tags = tags or ["<none>:<none>"]
    return tags, digests


def summary(image: Image, version: ApiVersion) -> ImageSummary:
    """One image as the list shows it."""
    tags, digests = names(image, version)
    found = ImageSummary(
        id=image.id,
        parent_id=image.parent,
        repo_tags=tags,
        repo_digests=digests,
        created=int(image.created_at),
        size=image.size,
        labels=image.labels or None,
    )
    if version < (1, 44):
        found.virtual_size = image.size
    return found


def inspection(image: Image, driver: str, version: ApiVersion) -> ImageInspect:
    """Everything about one image."""
    config = image.config
    answer = ImageInspect(
        id=image.id,
        repo_tags=[*image.tags],
        repo_digests=[*image.repo_digests],
        parent=image.parent,
        comment=config.comment or (config.history[-1].comment if config.history else "") or "",
        created=image.created,
        docker_version=config.docker_version or "",
        author=config.author or "",
        config=_container_config(image, version),
        architecture=image.architecture,
        os=image.os,
        size=image.size,
        graph_driver={"Data": None, "Name": driver},
        root_fs={"Type": "layers", "Layers": [str(diff_id) for diff_id in image.diff_ids]},
        metadata={"LastTagTime": _time(image.tagged)},
    )
    if image.variant:
        answer.variant = image.variant
    if config.os_version:
        answer.os_version = config.os_version
    if version < (1, 44):
        answer.virtual_size = image.size
    if version < (1, 45):
        answer.container = ""
        answer.container_config = _ALWAYS_SHOWN | _CONTAINERS_OWN
    return answer


def _container_config(image: Image, version: ApiVersion) -> dict[str, Any]:
    """The container part with the fields that clients index without asking."""
    legacy = _CONTAINERS_OWN if version < (1, 50) else {}
    return _ALWAYS_SHOWN | legacy | image.container_config()


def history_entry(item: HistoryItem) -> HistoryEntry:
    """One line of ``history``."""
    return HistoryEntry(
        id=item.id,
        created=int(item.created),
        created_by=item.created_by,
        tags=[*item.tags] or None,
        size=item.size,
        comment=item.comment,
    )


def hit_filter(filters: Filters) -> Callable[[Hit], bool]:
    """What of a search passes ``is-official``, ``is-automated`` and ``stars``."""
    least = 0
    for text in filters.values_of("stars"):
        if not text.isdecimal():
            raise InvalidArgument(f"invalid filter 'stars=[{text}]'")
        least = max(least, int(text))
    official = filters.flag("is-official") if "is-official" in filters else None
    automated = filters.flag("is-automated") if "is-automated" in filters else None

    def wanted(hit: Hit) -> bool:
        return (
            hit.star_count >= least
            and (official is None or hit.is_official == official)
            and (automated is None or hit.is_automated == automated)
        )

    return wanted


def _time(seconds: float) -> str:
    if not seconds:
        return NEVER
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
