"""``build``: the context goes to the daemon as a tar that is made while it is sent; what the daemon says is shown as it comes."""

from __future__ import annotations

import os
import sys

from tare.cli.failures import CliError
from tare.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options

_REMOTE = ("http://", "https://", "git://", "git@", "github.com/")
_PIECE = 1 << 18


def _build(context: Context, options: Options) -> int:
    import json

    source = options.operands[0]
    query: dict[str, Any] = {
        "t": options.items("tag") or None,
        "dockerfile": options.text("file") or "Dockerfile",
        "target": options.text("target") or None,
        "nocache": "1" if options.on("no-cache") else None,
        "pull": "1" if options.on("pull") else None,
        "rm": "1",
        "networkmode": options.text("network") or None,
        "extrahosts": ",".join(options.items("add-host")) or None,
        "platform": options.text("platform") or None,
        "cachefrom": json.dumps(options.items("cache-from")) if options.items("cache-from") else None,
        "buildargs": json.dumps(_arguments(options.items("build-arg"))) if options.items("build-arg") else None,
        "labels": json.dumps(_labels(options.items("label"))) if options.items("label") else None,
    }
    if source.startswith(_REMOTE) or source.endswith(".git"):
        query["remote"] = source
        pieces: Iterator[bytes] = iter(())
    elif source == "-":
        pieces = _standard_input()
    else:
        pieces = _directory(source, str(query["dockerfile"]))
    response = context.client.upload("/build", query, pieces)
    image = _show(response.lines(), quiet=options.on("quiet"))
    if options.text("iidfile"):
        with open(options.text("iidfile"), "w", encoding="utf-8") as file:
            file.write(image)
    if options.on("quiet"):
        sys.stdout.write(f"{image}\n")
    return 0


def _show(documents: Iterator[Any], *, quiet: bool) -> str:
    """Show the build's messages; returns the image's id. Raises CliError with the build's error."""
    image = ""
    for document in documents:
        if document.get("errorDetail") or document.get("error"):
            raise CliError(str((document.get("errorDetail") or {}).get("message") or document["error"]))
        image = str((document.get("aux") or {}).get("ID") or image)
        if quiet:
            image = image or str(document.get("stream", "")).strip()
        elif "stream" in document:
            sys.stdout.write(str(document["stream"]))
            sys.stdout.flush()
        elif document.get("status") and not document.get("progressDetail"):
            identifier = document.get("id")
            sys.stdout.write(f"{identifier}: {document['status']}\n" if identifier else f"{document['status']}\n")
    return image


def _arguments(items: list[str]) -> dict[str, str | None]:
    """A name without a value takes it from the environment, and none when it is not set there."""
    pairs: dict[str, str | None] = {}
    for item in items:
        name, equals, value = item.partition("=")
        pairs[name] = value if equals else os.environ.get(name)
    return pairs


def _labels(items: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (item.partition("=") for item in items)}


def _standard_input() -> Iterator[bytes]:
    if os.isatty(0):
        raise CliError("a build from standard input needs an archive or a Dockerfile there: tare build - < Dockerfile")
    first = os.read(0, _PIECE)
    if _is_archive(first):
        yield first
        while piece := os.read(0, _PIECE):
            yield piece
        return
    text = first
    while piece := os.read(0, _PIECE):
        text += piece
    yield from _one_file("Dockerfile", text)


def _is_archive(data: bytes) -> bool:
    return data[257:262] == b"ustar" or data.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _one_file(name: str, text: bytes) -> Iterator[bytes]:
    import tarfile

    entry = tarfile.TarInfo(name)
    entry.size = len(text)
    yield entry.tobuf(tarfile.PAX_FORMAT) + text + bytes(-len(text) % 512) + bytes(1024)


def _directory(path: str, dockerfile: str) -> Iterator[bytes]:
    """The tar of a context without what ``.dockerignore`` leaves out; the Dockerfile and that file always go along."""
    from tare.builder.ignore import Patterns
    from tare.cli.localtar import KEEP, LEAVE, LOOK, pack
    from tare.errors import InvalidArgument

    if not os.path.isdir(path):
        raise CliError(f"unable to prepare context: path {path!r} not found")
    inside = os.path.normpath(os.path.relpath(dockerfile, path) if os.path.isabs(dockerfile) else dockerfile)
    if inside.startswith("..") or not os.path.lexists(os.path.join(path, inside)):
        raise CliError(f"unable to prepare context: the Dockerfile {dockerfile!r} is not in the context {path!r}")
    ignore = next((name for name in (f"{inside}.dockerignore", ".dockerignore") if os.path.isfile(os.path.join(path, name))), "")
    text = ""
    if ignore:
        with open(os.path.join(path, ignore), encoding="utf-8", errors="replace") as file:
            text = file.read()
    try:
        patterns = Patterns(text)
    except InvalidArgument as error:
        raise CliError(f"{ignore}: {error}") from None
    always = {inside, ignore}

    def verdict(name: str) -> str:
        name = name.removeprefix("./")
        if name == "." or name in always or not patterns.excluded(name):
            return KEEP
        if patterns.can_skip(name) and not any(one.startswith(name + "/") for one in always):
            return LEAVE
        return LOOK

    return pack(path, ".", ".", verdict)


BUILD = Command(
    "build",
    "build [OPTIONS] PATH | URL | -",
    "Build an image from a Dockerfile",
    _build,
    (
        ("add-host", "", "list", 'Add a custom host-to-IP mapping ("host:ip")'),
        ("build-arg", "", "list", "Set build-time variables"),
        ("cache-from", "", "list", "Images to consider as cache sources"),
        ("file", "f", "string", 'Name of the Dockerfile in the context (default: "Dockerfile")'),
        ("iidfile", "", "string", "Write the image ID to a file"),
        ("label", "", "list", "Set metadata for an image"),
        ("network", "", "string", "Set the networking mode for the RUN instructions during build"),
        ("no-cache", "", "bool", "Do not use cache when building the image"),
        ("platform", "", "string", "Set platform if server is multi-platform capable"),
        ("pull", "", "bool", "Always attempt to pull a newer version of the image"),
        ("quiet", "q", "bool", "Suppress the build output and print image ID on success"),
        ("tag", "t", "list", 'Name and optionally a tag (format: "name:tag")'),
        ("target", "", "string", "Set the target build stage to build"),
    ),
    least=1,
    most=1,
    aliases=("image build", "builder build", "build"),
    examples=("tare build -t app .", "tare build -t app --build-arg VERSION=2 --target test .", "tare build -t app - < context.tar.gz"),
)
