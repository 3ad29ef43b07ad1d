"""``images``, ``rmi`` and ``tag``."""

from __future__ import annotations

import sys

from tare.cli import humanize
from tare.cli.connection import quote
from tare.cli.context import warn
from tare.cli.failures import CliError, Unreachable
from tare.cli.flags import Command
from tare.cli.platforms import platform_json
from tare.cli.ps import FORMAT_HELP
from tare.cli.reference import parse
from tare.cli.tables import filters, write_rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options

RAW = "repository: {{.Repository}}\ntag: {{.Tag}}\nimage_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\nvirtual_size: {{.Size}}\n"
HEADERS = {
    "ID": "IMAGE ID", "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT",
    "Size": "SIZE", "Containers": "CONTAINERS", "VirtualSize": "SIZE", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
}  # fmt: skip
_NONE = "<none>"


def names(image: dict[str, Any], *, digests: bool) -> Iterator[tuple[str, str, str]]:
    """Repository, tag and digest of each line that an image gets in the list."""
    by_repository: dict[str, tuple[list[str], list[str]]] = {}
    for tagged in image.get("RepoTags") or ():
        repository, _, tag = tagged.rpartition(":")
        if repository and repository != _NONE:
            by_repository.setdefault(repository, ([], []))[0].append(tag)
    for digested in image.get("RepoDigests") or ():
        repository, _, digest = digested.partition("@")
        if repository and repository != _NONE:
            by_repository.setdefault(repository, ([], []))[1].append(digest)
    if not by_repository:
        yield _NONE, _NONE, _NONE
    for repository, (tags, found) in by_repository.items():
        if not digests:
            for tag in tags or [_NONE]:
                yield repository, tag, found[0] if found else _NONE
            continue
        for tag in tags or [_NONE]:
            for digest in found or [_NONE]:
                yield repository, tag, digest


def rows(images: list[dict[str, Any]], *, full: bool, digests: bool) -> Iterator[dict[Any, Any]]:
    from tare.cli.templatefunctions import MISSING

    for image in images:
        for repository, tag, digest in names(image, digests=digests):
            shared, size = image.get("SharedSize", -1), image.get("Size", 0)
            yield {
                MISSING: "*formatter.imageContext",
                "Containers": "N/A" if image.get("Containers", -1) == -1 else str(image["Containers"]),
                "CreatedAt": humanize.local_time(image.get("Created") or 0),
                "CreatedSince": humanize.ago(image.get("Created") or 0),
                "Digest": digest,
                "ID": image["Id"] if full else humanize.short_id(image["Id"]),
                "Repository": repository,
                "SharedSize": "N/A" if shared == -1 else humanize.size(shared),
                "Size": humanize.size3(size),
                "Tag": tag,
                "UniqueSize": "N/A" if shared == -1 else humanize.size(size - shared),
                "VirtualSize": humanize.size(size),
            }


def _images(context: Context, options: Options) -> int:
    if options.on("tree"):
        for flag in ("digests", "format", "no-trunc", "quiet"):
            if flag in options.given:
                raise CliError(f"--{flag} is not yet supported with --tree")
    given = list(options.items("filter"))
    if options.operands:
        given.append(f"reference={options.operands[0]}")
    query: dict[str, object] = {"all": options.on("all") or None, "filters": filters(given), "manifests": options.on("tree") or None}
    images = context.client.call("GET", "/images/json", query) or []
    images.sort(key=lambda image: -int(image.get("Created") or 0))
    full, layout = options.on("no-trunc"), options.text("format")
    if options.on("tree"):
        from tare.cli.imagetree import write

        write(context.client, images)
        return 0
    lines = list(rows(images, full=full, digests=options.on("digests")))
    if options.on("quiet") and layout in ("", "table"):
        for line in lines:
            sys.stdout.write(line["ID"] + "\n")
        return 0
    if not layout and not options.on("quiet"):
        from tare.cli.hosts import settings

        layout = str(settings().get("imagesFormat", ""))
    if layout == "raw":
        layout = "image_id: {{.ID}}" if options.on("quiet") else RAW
    columns = "Repository Tag Digest ID CreatedSince Size" if options.on("digests") else "Repository Tag ID CreatedSince Size"
    write_rows(lines, layout, HEADERS, columns)
    return 0


def _rmi(context: Context, options: Options) -> int:
    client = context.client
    query = {"force": options.on("force") or None, "noprune": options.on("no-prune") or None}
    chosen = "&".join(f"platforms={quote(platform_json(text))}" for text in options.items("platform"))
    code = 0
    for name in options.operands:
        try:
            for entry in client.call("DELETE", f"/images/{quote(name)}{f'?{chosen}' if chosen else ''}", query) or ():
                if entry.get("Deleted"):
                    sys.stdout.write(f"Deleted: {entry['Deleted']}\n")
                else:
                    sys.stdout.write(f"Untagged: {entry.get('Untagged', '')}\n")
        except Unreachable:
            raise
        except CliError as error:
            if options.on("force") and getattr(error, "status", 0) == 404:
                warn(str(error))
                continue
            code = 1
            warn(str(error))
    return code


def _tag(context: Context, options: Options) -> int:
    source, target = options.operands
    try:
        reference = parse(target)
    except CliError as error:
        raise CliError(f'Error parsing reference: "{target}" is not a valid repository/tag: {error}') from None
    if reference is None:
        raise CliError("refusing to create a tag with an image ID as its name")
    if reference.digest:
        raise CliError("refusing to create a tag with a digest reference")
    query = {"repo": reference.familiar_name, "tag": reference.suffix}
    context.client.call("POST", f"/images/{quote(source)}/tag", query)
    return 0


IMAGES = Command(
    "images",
    "images [OPTIONS] [REPOSITORY[:TAG]]",
    "List images",
    _images,
    (
        ("all", "a", "bool", "Show all images (default hides intermediate images)"),
        ("digests", "", "bool", "Show digests"),
        ("filter", "f", "filter", "Filter output based on conditions provided"),
        ("format", "", "string", FORMAT_HELP),
        ("no-trunc", "", "bool", "Don't truncate output"),
        ("quiet", "q", "bool", "Only show image IDs"),
        ("tree", "", "bool", "List images as a tree, with their sizes and whether they are in use"),
    ),
    most=1,
    aliases=("image ls", "image list", "images"),
    examples=("tare images --filter dangling=true", "tare images debian"),
)
RMI = Command(
    "rmi",
    "rmi [OPTIONS] IMAGE [IMAGE...]",
    "Remove one or more images",
    _rmi,
    (
        ("force", "f", "bool", "Force removal of the image"),
        ("no-prune", "", "bool", "Do not delete untagged parents"),
        ("platform", "", "list", 'Remove only the given platform, formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")'),
    ),
    least=1,
    aliases=("image rm", "image remove", "rmi"),
)
TAG = Command(
    "tag", "tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE", _tag,
    least=2, most=2, aliases=("image tag", "tag"), examples=("tare tag app registry.example:5000/app:1.2",),
)  # fmt: skip
