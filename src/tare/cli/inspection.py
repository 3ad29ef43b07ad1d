"""``inspect``: everything the daemon knows about objects, as JSON or through a template."""

from __future__ import annotations

import sys

from tare.cli.connection import quote
from tare.cli.context import warn
from tare.cli.documents import encode, pretty
from tare.cli.failures import CliError, DaemonError, Unreachable
from tare.cli.flags import Command
from tare.cli.platforms import platform_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tare.cli.connection import Client
    from tare.cli.context import Context
    from tare.cli.flags import Options

PATHS = {
    "container": "/containers/{}/json", "image": "/images/{}/json", "network": "/networks/{}", "volume": "/volumes/{}",
    "plugin": "/plugins/{}/json",
}  # fmt: skip
_SWARM_TYPES = ("config", "node", "secret", "service", "task")


def find(client: Client, name: str, kind: str, *, size: bool, platform: str = "") -> Any:
    """The document of one object; every kind is tried when none is given. Raises CliError."""
    bare = name.removeprefix("/") if kind in ("", "container") else name
    for candidate in [kind] if kind else PATHS:
        query: dict[str, object] = {"size": (size and candidate == "container") or None, "platform": platform}
        target = quote(bare, slash=candidate == "image")
        try:
            return client.call("GET", PATHS[candidate].format(target), query)
        except DaemonError as error:
            # With no kind given, only "there is none of this kind" leads on to the next.
            if kind or error.status not in (400, 404, 501):
                raise
    raise CliError(f"Error: No such object: {name}")


def inspect(context: Context, options: Options, kind: str) -> int:
    """Print all that are found, report the others, 1 when there were any."""
    size = "size" in options.given and options.on("size")
    platform = platform_json(options.text("platform")) if kind == "image" and "platform" in options.given else ""
    return show(options.operands, options.text("format"), lambda name: find(context.client, name, kind, size=size, platform=platform))


def show(names: list[str], layout: str, get: Callable[[str], Any]) -> int:
    """Print what ``get`` finds for each name in the user's layout; report the others, and give back 1 when there were any."""
    printer = _template(layout) if layout and layout != "json" else None
    documents, failures = [], []
    for name in names:
        try:
            documents.append(get(name))
        except Unreachable:
            raise
        except CliError as error:
            failures.append(str(error))
    if printer is not None:
        sys.stdout.write("".join(printer(document) + "\n" for document in documents) or "\n")
    elif layout == "json":
        sys.stdout.write(encode(documents) + "\n")
    else:
        sys.stdout.write(pretty(documents) + "\n")
    for failure in failures:
        warn(failure)
    return 1 if failures else 0


def _template(layout: str) -> Callable[[Any], str]:
    from tare.cli.gotemplate import compile_template
    from tare.cli.structs import marked, typed
    from tare.cli.templatefunctions import TemplateError

    try:
        template = compile_template(layout)
    except TemplateError as error:
        raise CliError(f"template parsing error: template: :1: {error}", 64) from None

    over_structures = typed(layout)

    def execute(document: Any) -> str:
        try:
            return template.execute(marked(document) if over_structures else document)
        except TemplateError as error:
            sys.stdout.write("\n")
            raise CliError(f"template parsing error: {error}") from None

    return execute


def _inspect(context: Context, options: Options) -> int:
    kind = options.text("type")
    if kind in _SWARM_TYPES:
        raise CliError(f"Error: No such {kind}: {options.operands[0]}: Tare is no Swarm manager")
    if "type" in options.given and kind not in PATHS:
        known = ", ".join(f'"{name}"' for name in sorted([*PATHS, *_SWARM_TYPES]))
        raise CliError(f'unknown type: "{kind}": must be one of {known}')
    return inspect(context, options, kind)


_FORMAT = ("format", "f", "string", "Format output: 'json' or a Go template, such as '{{.State.Status}}'")
_SIZE = ("size", "s", "bool", "Display total file sizes if the type is container")
INSPECT = Command(
    "inspect",
    "inspect [OPTIONS] NAME|ID [NAME|ID...]",
    "Return low-level information on containers, images, networks and volumes",
    _inspect,
    (_FORMAT, _SIZE, ("type", "", "string", "Only inspect objects of the given type")),
    least=1,
    examples=("tare inspect -f '{{.State.Status}} {{json .NetworkSettings.Ports}}' web",),
)
CONTAINER_INSPECT = Command(
    "container inspect", "container inspect [OPTIONS] CONTAINER [CONTAINER...]", "Display detailed information on one or more containers",
    lambda context, options: inspect(context, options, "container"), (_FORMAT, _SIZE), least=1,
)  # fmt: skip
IMAGE_INSPECT = Command(
    "image inspect",
    "image inspect [OPTIONS] IMAGE [IMAGE...]",
    "Display detailed information on one or more images",
    lambda context, options: inspect(context, options, "image"),
    (_FORMAT, ("platform", "", "string", 'Inspect the given platform, formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")')),
    least=1,
)
