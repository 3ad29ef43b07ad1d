"""``save`` and ``load``: images as tar archives, on disk or through a pipe."""

from __future__ import annotations

import os

from tare.cli.connection import query_string
from tare.cli.context import warn
from tare.cli.copying import save_to, to_stdout
from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.pull import Progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tare.cli.context import Context
    from tare.cli.flags import Options

_PIECE = 1 << 18


def _save(context: Context, options: Options) -> int:
    target = options.text("output")
    if not target and os.isatty(1):
        raise CliError("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    query = "&".join(query_string({"names": name}) for name in options.operands)
    platform = options.text("platform")
    response = context.client.stream("GET", f"/images/get?{query}", {"platform": platform or None})
    if target:
        save_to(target, response)
    else:
        to_stdout(response)
    return 0


def _load(context: Context, options: Options) -> int:
    source = options.text("input")
    if not source and os.isatty(0):
        raise CliError("requested load from stdin, but stdin is empty")
    file = os.open(source, os.O_RDONLY | os.O_CLOEXEC) if source else 0
    quiet = options.on("quiet") or not os.isatty(1)
    query = query_string({"quiet": "1" if quiet else "0", "platform": options.text("platform") or None})
    try:
        response = context.client.upload(f"/images/load?{query}", {}, _pieces(file))
    finally:
        if source:
            os.close(file)
    loaded = 0

    def counted() -> Iterator[object]:
        nonlocal loaded
        for document in response.lines():
            loaded += str(document.get("stream", "")).startswith("Loaded image")
            yield document

    Progress(1).show(counted())
    if not loaded:
        warn("the archive holds no images")
    return 0


def _pieces(file: int) -> Iterator[bytes]:
    while piece := os.read(file, _PIECE):
        yield piece


SAVE = Command(
    "save",
    "save [OPTIONS] IMAGE [IMAGE...]",
    "Save one or more images to a tar archive (streamed to STDOUT by default)",
    _save,
    (
        ("output", "o", "string", "Write to a file, instead of STDOUT"),
        ("platform", "", "string", "Save only the given platform (os/architecture)"),
    ),
    least=1,
    aliases=("image save", "save"),
    examples=("tare save -o debian.tar debian:bookworm", "tare save app:1.2 | gzip > app.tar.gz"),
)
LOAD = Command(
    "load",
    "load [OPTIONS]",
    "Load images from a tar archive or STDIN",
    _load,
    (
        ("input", "i", "string", "Read from a tar archive file, instead of STDIN"),
        ("platform", "", "string", "Load only the given platform (os/architecture)"),
        ("quiet", "q", "bool", "Suppress the load output"),
    ),
    most=0,
    aliases=("image load", "load"),
    examples=("tare load -i debian.tar", "zcat app.tar.gz | tare load"),
)
