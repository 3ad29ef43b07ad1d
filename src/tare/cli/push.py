"""``push``: send an image to a registry.

The daemon does the work; the client adds the credentials that ``login`` left for the registry in question.
"""

from __future__ import annotations

import sys

from tare.cli import credentials
from tare.cli.connection import quote
from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.platforms import platform_json
from tare.cli.pull import Progress
from tare.cli.reference import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options


def _without_aux(documents: Iterable[Any]) -> Iterator[Any]:
    """The messages for people: ``aux`` is for programs."""
    return (document for document in documents if "aux" not in document)


def _push(context: Context, options: Options) -> int:
    name, every, quiet = options.operands[0], options.on("all-tags"), options.on("quiet")
    try:
        reference = parse(name)
    except CliError as error:
        raise CliError(str(error), 1) from None
    if reference is None:
        raise CliError(f"cannot push by image ID ({name}): give the image a name with 'tare tag' first")
    if reference.digest:
        raise CliError("cannot push a digest reference")
    if every and reference.tag:
        raise CliError("tag can't be used with --all-tags/-a")
    if not reference.tag and not every and not quiet:
        sys.stdout.write("Using default tag: latest\n")
        sys.stdout.flush()
    target = f"/images/{quote(reference.familiar_name)}/push"
    headers = credentials.header(reference.domain)
    query = {
        "tag": "" if every else reference.suffix,
        "platform": platform_json(options.text("platform")),
        "compression": options.text("compression"),
    }
    response = context.client.stream("POST", target, query, None, headers)
    if not quiet:
        Progress(1).show(_without_aux(response.lines()))
        return 0
    for document in response.lines():
        failure = document.get("errorDetail") or {}
        if failure or document.get("error"):
            raise CliError(str(failure.get("message") or document.get("error")))
    sys.stdout.write(reference.name + ("" if every else f":{reference.suffix}") + "\n")
    return 0


PUSH = Command(
    "push",
    "push [OPTIONS] NAME[:TAG]",
    "Upload an image to a registry",
    _push,
    (
        ("all-tags", "a", "bool", "Push all tags of an image to the repository"),
        ("compression", "", "string", "Pack layers with gzip or zstd, with a level if need be (zstd:19)"),
        ("disable-content-trust", "", "bool", "Skip image signing", True),
        ("platform", "", "string", 'Push only the given platform, formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")'),
        ("quiet", "q", "bool", "Suppress verbose output"),
    ),
    least=1,
    most=1,
    aliases=("image push", "push"),
    examples=("tare push registry.example:5000/app:1.2", "tare push localhost:5000/debian:bookworm"),
)
