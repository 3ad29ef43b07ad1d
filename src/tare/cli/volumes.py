"""``tare volume``: docker's verbs, and Tare's own export, import, clone and snapshot."""

from __future__ import annotations

import os
import sys

from tare.cli.connection import query_string, quote
from tare.cli.context import warn
from tare.cli.failures import CliError, Unreachable
from tare.cli.flags import Command
from tare.cli.inspection import inspect
from tare.cli.prune import configured_filters, confirm, reclaimed
from tare.cli.tables import filters, write_rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tare.cli.context import Context
    from tare.cli.flags import Options

_PIECE = 1 << 18
_HEADERS = {
    "Availability": "AVAILABILITY", "Driver": "DRIVER", "Group": "GROUP", "Labels": "LABELS", "Links": "LINKS",
    "Mountpoint": "MOUNTPOINT", "Name": "VOLUME NAME", "Scope": "SCOPE", "Size": "SIZE", "Status": "STATUS",
}  # fmt: skip


def _pairs(entries: Sequence[str]) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in entries)


def _create(context: Context, options: Options) -> int:
    name = options.operands[0] if options.operands else ""
    if options.text("name"):
        if name:
            raise CliError("conflicting options: cannot specify a volume-name through both --name and as a positional arg")
        name = options.text("name")
    driver_options = _pairs(options.items("opt"))
    driver_options.update((key, options.text(key)) for key in ("uid", "gid", "mode") if key in options.given)
    body = {"Name": name, "Driver": options.text("driver"), "DriverOpts": driver_options, "Labels": _pairs(options.items("label"))}
    sys.stdout.write(context.client.call("POST", "/volumes/create", None, body)["Name"] + "\n")
    return 0


def _list(context: Context, options: Options) -> int:
    volumes = context.client.call("GET", "/volumes", {"filters": filters(options.items("filter"))}).get("Volumes") or []
    volumes.sort(key=lambda volume: str(volume["Name"]))
    layout = options.text("format")
    if options.on("quiet") and layout in ("", "table"):
        sys.stdout.write("".join(f"{volume['Name']}\n" for volume in volumes))
        return 0
    if not layout:
        from tare.cli.hosts import settings

        layout = str(settings().get("volumesFormat", ""))
    rows = [
        {
            **dict.fromkeys(("Availability", "Group", "Links", "Size", "Status"), "N/A"),
            "Driver": volume["Driver"], "Name": volume["Name"], "Scope": volume["Scope"], "Mountpoint": volume["Mountpoint"],
            "Labels": ",".join(f"{key}={value}" for key, value in (volume.get("Labels") or {}).items()),
        }
        for volume in volumes
    ]  # fmt: skip
    write_rows(rows, layout, _HEADERS, "Driver Name")
    return 0


def _remove(context: Context, options: Options) -> int:
    code = 0
    for name in options.operands:
        try:
            context.client.call("DELETE", f"/volumes/{quote(name, slash=False)}", {"force": options.on("force") or None})
            sys.stdout.write(name + "\n")
        except Unreachable:
            raise
        except CliError as error:
            warn(str(error))
            code = 1
    return code


def _prune(context: Context, options: Options) -> int:
    what = "all" if options.on("all") else "anonymous"
    confirm(f"WARNING! This will remove {what} local volumes not used by at least one container.", options)
    given = [*options.items("filter"), *configured_filters(), *(["all=true"] if options.on("all") else [])]
    answer = context.client.call("POST", "/volumes/prune", {"filters": filters(given)}) or {}
    if names := answer.get("VolumesDeleted"):
        sys.stdout.write("Deleted Volumes:\n" + "".join(f"{name}\n" for name in names) + "\n")
    sys.stdout.write(reclaimed(answer.get("SpaceReclaimed") or 0))
    return 0


def _update(context: Context, options: Options) -> int:
    name = options.operands[0]
    path = f"/volumes/{quote(name, slash=False)}"
    if "availability" in options.given:
        context.client.call("GET", path)
        raise CliError("can only update cluster volumes")
    if not {"label-add", "label-rm"} & set(options.given):
        raise CliError("tell what to change: --label-add KEY=VALUE or --label-rm KEY")
    labels = dict(context.client.call("GET", path).get("Labels") or {})
    labels.update(_pairs(options.items("label-add")))
    for key in options.items("label-rm"):
        labels.pop(key, None)
    context.client.call("PUT", path, None, {"Labels": labels})
    sys.stdout.write(name + "\n")
    return 0


def _export(context: Context, options: Options) -> int:
    target = options.text("output")
    if not target and os.isatty(1):
        raise CliError("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    response = context.client.stream("GET", f"/volumes/{quote(options.operands[0], slash=False)}/export")
    if not target:
        sys.stdout.flush()
        for piece in response.chunks():
            _write(1, piece)
        return 0
    # Written beside its place and renamed: an archive that is there is whole.
    partial = f"{target}.tmp-{os.getpid()}"
    file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for piece in response.chunks():
            _write(file, piece)
        os.rename(partial, target)
    except BaseException:
        os.unlink(partial)
        raise
    finally:
        os.close(file)
    return 0


def _write(file: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(file, view) :]


def _import(context: Context, options: Options) -> int:
    name, source = options.operands[0], options.operands[1] if len(options.operands) > 1 else "-"
    if source == "-" and os.isatty(0):
        raise CliError("requested import from stdin, but stdin is empty")
    file = 0 if source == "-" else os.open(source, os.O_RDONLY | os.O_CLOEXEC)

    def pieces() -> Iterator[bytes]:
        while piece := os.read(file, _PIECE):
            yield piece

    query = "&".join(query_string({"label": label}) for label in options.items("label"))
    try:
        context.client.upload(f"/volumes/{quote(name, slash=False)}/import{'?' if query else ''}{query}", {}, pieces()).read()
    finally:
        if file:
            os.close(file)
    sys.stdout.write(name + "\n")
    return 0


def _copy(context: Context, options: Options) -> int:
    source, name = options.operands[0], options.operands[1] if len(options.operands) > 1 else ""
    labels = _pairs(options.items("label")) if "label" in options.given else None
    body = {"Name": name, "Labels": labels}
    sys.stdout.write(context.client.call("POST", f"/volumes/{quote(source, slash=False)}/clone", None, body)["Name"] + "\n")
    return 0


_LABEL = ("label", "", "list", "Set metadata for a volume")
CREATE = Command(
    "volume create", "volume create [OPTIONS] [VOLUME]", "Create a volume", _create,
    (
        ("driver", "d", "string", "Specify volume driver name", "local"), _LABEL,
        ("name", "", "string", "Specify volume name (the operand does as well)"),
        ("opt", "o", "list", "Set driver specific options"),
        ("uid", "", "string", "Owner of the volume's directory"), ("gid", "", "string", "Group of the volume's directory"),
        ("mode", "", "string", "Mode of the volume's directory, in octal"),
    ),
    most=1, examples=("tare volume create --uid 999 --mode 700 db", "tare volume create -o type=tmpfs -o device=tmpfs -o o=size=64m ram"),
)  # fmt: skip
LS = Command(
    "volume ls", "volume ls [OPTIONS]", "List volumes", _list,
    (
        ("filter", "f", "filter", 'Provide filter values (e.g. "dangling=true")'),
        ("format", "", "string", "Format output: 'table', 'table TEMPLATE', 'json' or a Go template"),
        ("quiet", "q", "bool", "Only display volume names"),
    ),
    most=0, aliases=("volume ls", "volume list"),
)  # fmt: skip
INSPECT = Command(
    "volume inspect", "volume inspect [OPTIONS] VOLUME [VOLUME...]", "Display detailed information on one or more volumes",
    lambda context, options: inspect(context, options, "volume"),
    (("format", "f", "string", "Format output: 'json' or a Go template, such as '{{.Mountpoint}}'"),), least=1,
)  # fmt: skip
RM = Command(
    "volume rm", "volume rm [OPTIONS] VOLUME [VOLUME...]", "Remove one or more volumes", _remove,
    (("force", "f", "bool", "Force the removal of one or more volumes"),), least=1, aliases=("volume rm", "volume remove"),
)  # fmt: skip
PRUNE = Command(
    "volume prune", "volume prune [OPTIONS]", "Remove unused local volumes", _prune,
    (
        ("all", "a", "bool", "Remove all unused volumes, not just anonymous ones"),
        ("filter", "", "filter", 'Provide filter values (e.g. "label=<label>")'),
        ("force", "f", "bool", "Do not prompt for confirmation"),
    ),
    most=0,
)  # fmt: skip
UPDATE = Command(
    "volume update", "volume update [OPTIONS] VOLUME", "Update a volume's labels", _update,
    (
        ("availability", "", "string", "Cluster volume availability (needs Swarm)"),
        ("label-add", "", "list", "Add or change a label"), ("label-rm", "", "list", "Remove a label"),
    ), least=1, most=1,
)  # fmt: skip
EXPORT = Command(
    "volume export", "volume export [OPTIONS] VOLUME", "Export a volume's content as a tar archive", _export,
    (("output", "o", "string", "Write to a file, instead of STDOUT"),), least=1, most=1,
)  # fmt: skip
IMPORT = Command(
    "volume import", "volume import [OPTIONS] VOLUME [FILE|-]", "Make a new volume of a tar archive", _import, (_LABEL,), least=1, most=2,
)  # fmt: skip
CLONE = Command(
    "volume clone", "volume clone [OPTIONS] VOLUME NEW_VOLUME", "Make a new volume with the content of another", _copy, (_LABEL,),
    least=2, most=2,
)  # fmt: skip
SNAPSHOT = Command(
    "volume snapshot", "volume snapshot [OPTIONS] VOLUME", "Make a copy of a volume, named after it and the time", _copy, (_LABEL,),
    least=1, most=1,
)  # fmt: skip
