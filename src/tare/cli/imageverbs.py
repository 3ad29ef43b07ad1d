"""``commit``, ``import``, ``history`` and ``search``."""

from __future__ import annotations

import os
import sys

from tare.cli import humanize
from tare.cli.connection import query_string, quote
from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.ps import FORMAT_HELP
from tare.cli.reference import parse
from tare.cli.tables import filters, write_rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options

_PIECE = 1 << 18
_HISTORY = {
    "ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "Size": "SIZE", "Comment": "COMMENT",
}  # fmt: skip
_SEARCH = {"Name": "NAME", "Description": "DESCRIPTION", "StarCount": "STARS", "IsOfficial": "OFFICIAL", "IsAutomated": "AUTOMATED"}


def _repository(name: str) -> dict[str, object]:
    """``repo`` and ``tag`` of a new image's name."""
    if not name:
        return {}
    try:
        reference = parse(name)
    except CliError as error:
        raise CliError(str(error)) from None
    if reference is None or reference.digest:
        raise CliError("refusing to create a tag with a digest reference" if reference else "invalid reference format")
    return {"repo": reference.familiar_name, "tag": reference.suffix or None}


def _with_changes(query: dict[str, object], changes: list[str]) -> str:
    pairs = [query_string(query), *(query_string({"changes": change}) for change in changes)]
    return "&".join(pair for pair in pairs if pair)


def _commit(context: Context, options: Options) -> int:
    container, name = (*options.operands, "")[:2]
    query: dict[str, object] = {
        "container": container,
        **_repository(name),
        "comment": options.text("message") or None,
        "author": options.text("author") or None,
        "pause": None if options.on("pause") else "0",
    }
    answer = context.client.call("POST", f"/commit?{_with_changes(query, list(options.items('change')))}")
    sys.stdout.write(f"{answer['Id']}\n")
    return 0


def _import(context: Context, options: Options) -> int:
    source, name = (*options.operands, "")[:2]
    file = -1
    location = "-"
    if source == "-":
        file = 0
    elif source.startswith(("http://", "https://")):
        location = source
    else:
        file = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    query: dict[str, object] = {
        "fromSrc": location,
        **_repository(name),
        "message": options.text("message") or None,
        "platform": options.text("platform") or None,
    }
    pieces = _pieces(file) if file >= 0 else iter(())
    response = context.client.upload(f"/images/create?{_with_changes(query, list(options.items('change')))}", {}, pieces)
    from tare.cli.pull import Progress

    Progress(1).show(response.lines())
    return 0


def _pieces(file: int) -> Iterator[bytes]:
    try:
        while piece := os.read(file, _PIECE):
            yield piece
    finally:
        if file:
            os.close(file)


def _history(context: Context, options: Options) -> int:
    query = {"platform": options.text("platform") or None}
    steps = context.client.call("GET", f"/images/{quote(options.operands[0])}/history", query) or []
    full, human = options.on("no-trunc"), options.on("human")
    lines: list[dict[Any, Any]] = [
        {
            "ID": step["Id"] if full or step["Id"] == "<missing>" else humanize.short_id(step["Id"]),
            "CreatedSince": humanize.ago(step["Created"]) if human else _rfc3339(step["Created"]),
            "CreatedAt": _rfc3339(step["Created"]),
            "CreatedBy": _one_line(step["CreatedBy"], full),
            "Size": humanize.size3(step["Size"]) if human else str(step["Size"]),
            "Comment": step["Comment"],
        }
        for step in steps
    ]
    layout = options.text("format")
    if options.on("quiet") and layout in ("", "table"):
        sys.stdout.write("".join(f"{line['ID']}\n" for line in lines))
        return 0
    write_rows(lines, layout, _HISTORY, "ID CreatedSince CreatedBy Size Comment" if human else "ID CreatedAt CreatedBy Size Comment")
    return 0


def _one_line(text: str, full: bool) -> str:
    for character in "\t\n\r":
        text = text.replace(character, " ")
    return text if full else humanize.shorten(text, 45)


def _rfc3339(seconds: int) -> str:
    import time

    text = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
    return text[:-5] + "Z" if text.endswith("+0000") else f"{text[:-2]}:{text[-2:]}"


def _search(context: Context, options: Options) -> int:
    from tare.cli import credentials
    from tare.cli.documents import decode

    term = options.operands[0]
    query: dict[str, object] = {"term": term, "filters": filters(options.items("filter"))}
    if options.number("limit"):
        query["limit"] = str(options.number("limit"))
    domain = term.partition("/")[0]
    named = "/" in term and (domain == "localhost" or "." in domain or ":" in domain)
    response = context.client.stream("GET", "/images/search", query, headers=credentials.header(domain if named else "docker.io"))
    found: list[dict[str, Any]] = decode(response.read()) or []
    full = options.on("no-trunc")
    lines: list[dict[Any, Any]] = [
        {
            "Name": entry["name"],
            "Description": _one_line(entry["description"], full),
            "StarCount": str(entry["star_count"]),
            "IsOfficial": "[OK]" if entry["is_official"] else "",
            "IsAutomated": "[OK]" if entry.get("is_automated") else "",
        }
        for entry in found
    ]
    write_rows(lines, options.text("format"), _SEARCH, "Name Description StarCount IsOfficial")
    return 0


COMMIT = Command(
    "commit",
    "commit [OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
    "Create a new image from a container's changes",
    _commit,
    (
        ("author", "a", "string", 'Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")'),
        ("change", "c", "list", "Apply Dockerfile instruction to the created image"),
        ("message", "m", "string", "Commit message"),
        ("pause", "p", "bool", "Pause container during commit", True),
    ),
    least=1,
    most=2,
    aliases=("container commit", "commit"),
    examples=('tare commit -m "configured" -c \'CMD ["app"]\' web app:2',),
)
IMPORT = Command(
    "import",
    "import [OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
    "Import the contents from a tarball to create a filesystem image",
    _import,
    (
        ("change", "c", "list", "Apply Dockerfile instruction to the created image"),
        ("message", "m", "string", "Set commit message for imported image"),
        ("platform", "", "string", "Set platform if server is multi-platform capable"),
    ),
    least=1,
    most=2,
    aliases=("image import", "import"),
    examples=("tare import rootfs.tar.zst debian:mine", "tare export web | tare import - web:flat"),
)
HISTORY = Command(
    "history",
    "history [OPTIONS] IMAGE",
    "Show the history of an image",
    _history,
    (
        ("format", "", "string", FORMAT_HELP),
        ("human", "H", "bool", "Print sizes and dates in human readable format", True),
        ("no-trunc", "", "bool", "Don't truncate output"),
        ("platform", "", "string", 'Show history for the given platform. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")'),
        ("quiet", "q", "bool", "Only show image IDs"),
    ),
    least=1,
    most=1,
    aliases=("image history", "history"),
)
SEARCH = Command(
    "search",
    "search [OPTIONS] TERM",
    "Search a registry for images",
    _search,
    (
        ("filter", "f", "filter", "Filter output based on conditions provided"),
        ("format", "", "string", FORMAT_HELP),
        ("limit", "", "int", "Max number of search results"),
        ("no-trunc", "", "bool", "Don't truncate output"),
    ),
    least=1,
    most=1,
    examples=("tare search registry.example:5000/web",),
)
