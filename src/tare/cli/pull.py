"""``pull``, and the display of progress that it shares with ``run``.

Progress is a stream of JSON objects: ``status``, an ``id`` for a line of its own, ``progressDetail`` with current and
total. On a terminal each id has its line, which is rewritten in place; elsewhere every change of status is a line and
the moving numbers are left out.
"""

from __future__ import annotations

import os
import sys

from tare.cli import credentials
from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.humanize import size3
from tare.cli.platforms import chosen
from tare.cli.reference import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from tare.cli.connection import Client
    from tare.cli.context import Context
    from tare.cli.flags import Options


class Progress:
    """Shows a progress stream on a file descriptor."""

    def __init__(self, stream: int) -> None:
        self._out = sys.stdout if stream == 1 else sys.stderr
        self._tty = os.isatty(stream)
        self._width = os.get_terminal_size(stream).columns if self._tty else 0
        self._lines: dict[str, int] = {}

    def show(self, documents: Iterable[Any]) -> None:
        """Show all. Raises CliError at the object that carries an error."""
        for document in documents:
            failure = document.get("errorDetail") or {}
            if failure or document.get("error"):
                raise CliError(str(failure.get("message") or document.get("error")))
            if self._tty:
                self._terminal_line(document)
            elif not bar(document.get("progressDetail"), 0):
                self._out.write(_text(document) + "\n")
        self._out.flush()

    def _terminal_line(self, document: dict[str, Any]) -> None:
        text = _text(document)
        detail = bar(document.get("progressDetail"), self._width)
        if detail:
            text += f" {detail}"
        identifier = document.get("id")
        if not identifier or document.get("status", "").startswith("Pulling from"):
            self._out.write(text + "\n")
            self._lines.clear()
            self._out.flush()
            return
        total = len(self._lines)
        if identifier not in self._lines:
            self._lines[identifier] = total
            self._out.write(f"\x1b[2K\r{text}\n")
        else:
            up = total - self._lines[identifier]
            self._out.write(f"\x1b[{up}A\x1b[2K\r{text}\r\x1b[{up}B")
        self._out.flush()


def _text(document: dict[str, Any]) -> str:
    if "stream" in document:
        return str(document["stream"]).rstrip("\n")
    status = str(document.get("status", ""))
    return f"{document['id']}: {status}" if document.get("id") else status


def bar(detail: dict[str, Any] | None, width: int) -> str:
    """``[====>      ]  1.2MB/3.4MB``; without the bar on narrow terminals; nothing when nothing is counted."""
    current = int((detail or {}).get("current") or 0)
    total = int((detail or {}).get("total") or 0)
    if current <= 0 and total <= 0:
        return ""
    if total <= 0 or current > total:
        return f"{size3(current):>8}"
    drawn = ""
    if width > 110:
        filled = min(current * 50 // total, 50)
        drawn = f"[{'=' * filled}>{' ' * (50 - filled)}] "
    return f"{drawn}{size3(current):>8}/{size3(total)}"


def pull(
    client: Client,
    image: str,
    *,
    platform: str = "",
    quiet: bool = False,
    stream: int = 1,
    all_tags: bool = False,
    extent: dict[str, object] | None = None,
) -> None:
    """Pull ``image`` and show how it goes; ``extent`` are the parameters for more than one image. Raises CliError."""
    reference = parse(image)
    if reference is None:
        raise CliError(f"cannot pull by image ID ({image}): name the image by repository and tag or digest")
    query = {
        "fromImage": reference.familiar_name,
        "tag": "" if all_tags else reference.suffix,
        "platform": platform,
        **(extent or {}),
    }
    response = client.stream("POST", "/images/create", query, None, credentials.header(reference.domain))
    if quiet:
        for document in response.lines():
            failure = document.get("errorDetail") or {}
            if failure or document.get("error"):
                raise CliError(str(failure.get("message") or document.get("error")))
        return
    Progress(stream).show(response.lines())


def _pull(context: Context, options: Options) -> int:
    name, quiet = options.operands[0], options.on("quiet")
    reference = _checked(name)
    every = options.on("all-tags")
    if every and (reference.tag or reference.digest):
        raise CliError("tag can't be used with --all-tags/-a")
    if not reference.tag and not reference.digest and not every and not quiet:
        sys.stdout.write("Using default tag: latest\n")
        sys.stdout.flush()
    extent: dict[str, object] = {"all-platforms": options.on("all-platforms") or None, "referrers": options.on("referrers") or None}
    platform = options.text("platform")
    if options.on("all-platforms"):
        if platform:
            raise CliError("conflicting options: --platform and --all-platforms cannot both be set")
    else:
        platform = chosen(platform)
    pull(context.client, name, platform=platform, quiet=quiet, all_tags=every, extent=extent)
    suffix = "" if every else ("@" if reference.digest else ":") + reference.suffix
    sys.stdout.write(f"{reference.name}{suffix}\n")
    return 0


def _checked(name: str) -> Any:
    try:
        reference = parse(name)
    except CliError as error:
        raise CliError(str(error), 1) from None
    if reference is None:
        raise CliError(f"cannot pull by image ID ({name}): name the image by repository and tag or digest")
    return reference


PULL = Command(
    "pull",
    "pull [OPTIONS] NAME[:TAG|@DIGEST]",
    "Download an image from a registry",
    _pull,
    (
        ("all-platforms", "", "bool", "Download the images of all platforms"),
        ("all-tags", "a", "bool", "Download all tagged images in the repository"),
        ("disable-content-trust", "", "bool", "Skip image verification", True),
        ("platform", "", "string", "Set platform if server is multi-platform capable"),
        ("quiet", "q", "bool", "Suppress verbose output"),
        ("referrers", "", "bool", "Download what refers to the image too: signatures, bills of materials"),
    ),
    least=1,
    most=1,
    aliases=("image pull", "pull"),
    examples=(
        "tare pull debian:bookworm                  from Docker Hub",
        "tare pull registry.example:5000/app:1.2    from another registry",
    ),
)
