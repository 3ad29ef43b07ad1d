"""``cp``: between a container and this machine, and ``export``.

What lands where is docker's table (the same for both directions; ``source`` and ``destination`` as they stand when links are resolved):

    destination exists      source          then
    directory               anything        into it, under the source's name (``SRC/.``: its content)
    another file            file            replaces it
    another file            directory       refused
    no                      directory       is made, with the source's content
    no, ends in /           file            refused
    no                      file            is made; its parent directory must exist
"""

from __future__ import annotations

import base64
import os
import posixpath
import stat
import sys

from tare.cli.connection import quote
from tare.cli.documents import decode
from tare.cli.failures import CliError, DaemonError
from tare.cli.flags import Command
from tare.cli.humanize import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NamedTuple

    from tare.cli.connection import Client, Response
    from tare.cli.context import Context
    from tare.cli.flags import Options

    class Side(NamedTuple):
        """One end of a copy."""

        path: str
        exists: bool
        directory: bool
        rebase: str
else:
    from collections import namedtuple

    Side = namedtuple("Side", "path exists directory rebase")

_GO_DIRECTORY, _GO_LINK, _GO_ODD = 1 << 31, 1 << 27, 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19
_PIECE = 1 << 18
_STAT = "x-docker-container-path-stat"


def _split(argument: str) -> tuple[str, str]:
    """Container and path; no container for a local path."""
    if argument.startswith("/"):
        return "", argument
    container, colon, path = argument.partition(":")
    return ("", argument) if not colon or container.startswith(".") else (container, path)


def _asserts_directory(path: str) -> bool:
    return path.endswith("/") or _is_current(path)


def _is_current(path: str) -> bool:
    return _base(path) == "."


def _base(path: str) -> str:
    """Go's ``filepath.Base``."""
    return "." if not path else posixpath.basename(path.rstrip("/")) or "/"


def _clean(path: str) -> str:
    cleaned = posixpath.normpath(path) if path else "."
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def _entry(path: str) -> tuple[str, str]:
    """The directory and the name that a path means; ``dir/.`` keeps its dot."""
    cleaned = _clean(path)
    if _is_current(path):
        return cleaned, "."
    return posixpath.dirname(cleaned) or ".", _base(cleaned)


def _keep_end(cleaned: str, original: str) -> str:
    """Give a cleaned path the trailing ``/.`` or ``/`` that it had."""
    if _is_current(original) and not _is_current(cleaned):
        cleaned = cleaned.rstrip("/") + "/."
    elif original.endswith("/") and not cleaned.endswith("/"):
        cleaned += "/"
    return cleaned


def _rebase(path: str, resolved: str) -> tuple[str, str]:
    """A resolved path with the end of the given one, and the name that the archive must have if that differs."""
    resolved = _keep_end(resolved, path)
    return resolved, _base(path) if _base(path) != _base(resolved) else ""


def _local(path: str) -> str:
    return _keep_end(os.path.abspath(path), path)


def _replace(name: str, old: str, new: str) -> str:
    return name.replace("" if old == "/" else old, new, 1)


def arrange(source: Side, destination: Side) -> tuple[str, Callable[[str], str]]:
    """The directory to unpack in, and how names change on the way."""

    def same(name: str) -> str:
        return name

    if destination.exists and destination.directory:
        return destination.path, same
    if destination.exists and source.directory:
        raise CliError("cannot copy directory")
    if not destination.exists and not source.directory and _asserts_directory(destination.path):
        raise CliError("no such directory")
    directory, base = _entry(destination.path)
    old = source.rebase or _entry(source.path)[1]
    return directory, lambda name: _replace(name, old, base)


# -- from a container -----------------------------------------------------------------------------------------------------------------


def _path_stat(response: Response) -> dict[str, Any]:
    found: dict[str, Any] = decode(base64.b64decode(response.headers.get(_STAT, "")))
    return found


def _stat(client: Client, container: str, path: str) -> dict[str, Any] | None:
    try:
        return _path_stat(client.stream("HEAD", f"/containers/{quote(container)}/archive", {"path": path}))
    except DaemonError:
        return None


def _check_output(path: str) -> None:
    directory = os.path.dirname(_clean(path))
    if directory and not os.path.exists(directory):
        raise CliError(f'invalid output path: directory "{directory}" does not exist')
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        what = "got a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "got an irregular file"
        raise CliError(f'invalid output path: "{path}" must be a directory or a regular file: {what}')


def _destination(path: str) -> Side:
    """A local destination, links followed; its directory must exist."""
    for _ in range(11):
        if not os.path.islink(path.rstrip("/") if path != "/" else path):
            break
        target = os.readlink(path.rstrip("/"))
        path = target if target.startswith("/") else posixpath.join(_entry(path)[0], target)
    else:
        raise CliError(f"too many symlinks in {path}")
    if os.path.exists(path):
        return Side(path, True, os.path.isdir(path), "")
    parent = _entry(path)[0]
    if not os.path.isdir(parent):
        raise CliError("not a directory" if os.path.exists(parent) else f"stat {parent}: no such file or directory")
    return Side(path, False, False, "")


def _from_container(client: Client, container: str, path: str, target: str, options: Options) -> int:
    from tare.cli.localtar import Reader, unpack

    if target != "-":
        _check_output(target)
        target = _local(target)
    rebase = ""
    if options.on("follow-link"):
        found = _stat(client, container, path)
        if found is not None and found["mode"] & _GO_LINK:
            link = found["linkTarget"]
            path, rebase = _rebase(path, link if link.startswith("/") else posixpath.join(_entry(path)[0], link))
    response = client.stream("GET", f"/containers/{quote(container)}/archive", {"path": path})
    if target == "-":
        to_stdout(response)
        return 0
    source = Side(path, True, bool(_path_stat(response)["mode"] & _GO_DIRECTORY), rebase)
    reader = Reader(response.chunks())
    directory, rename = arrange(source, _destination(target))
    if rebase:
        moved, old = rename, _entry(path)[1]

        def rename(name: str) -> str:
            return moved(_replace(name, old, rebase))

    unpack(reader, directory, rename)
    _report(options, reader.taken, target)
    return 0


def to_stdout(response: Response) -> None:
    """A stream to standard output, as it comes."""
    sys.stdout.flush()
    for piece in response.chunks():
        write_all(1, piece)


def write_all(file: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(file, view) :]


# -- to a container -------------------------------------------------------------------------------------------------------------------


def _source(path: str, follow: bool) -> Side:
    """A local source: its links are followed on the way, at its end only when asked."""
    path = _local(path)
    if follow:
        resolved, rebase = _rebase(path, os.path.realpath(path))
    else:
        head, base = path.rpartition("/")[::2]
        resolved = f"{os.path.realpath(head or '/').rstrip('/')}/{base}"
        rebase = _base(path) if path.endswith("/") and _base(path) != _base(resolved) else ""
    try:
        status = os.lstat(resolved)
    except OSError as error:
        raise CliError(f"lstat {resolved}: {(error.strerror or '').lower()}") from None
    return Side(resolved, True, stat.S_ISDIR(status.st_mode), rebase)


def _container_destination(client: Client, container: str, path: str) -> Side:
    found, resolved = _stat(client, container, path), path
    if found is not None and found["mode"] & _GO_LINK:
        link = found["linkTarget"]
        resolved = link if link.startswith("/") else posixpath.join(_entry(path)[0], link)
        found = _stat(client, container, resolved)
    if found is not None and found["mode"] & _GO_ODD:
        what = "got a device" if found["mode"] & (1 << 26 | 1 << 21) else "got an irregular file"
        raise CliError(f'destination "{container}:{path}" must be a directory or a regular file: {what}')
    return Side(resolved, found is not None, bool(found and found["mode"] & _GO_DIRECTORY), "")


def _to_container(client: Client, path: str, container: str, target: str, options: Options) -> int:
    from tare.cli.localtar import pack

    destination = _container_destination(client, container, target)
    if path == "-":
        if not destination.directory:
            raise CliError(f'destination "{container}:{target}" must be a directory')
        directory, pieces = destination.path, iter(lambda: os.read(0, _PIECE), b"")
    else:
        source = _source(path, options.on("follow-link"))
        directory, rename = arrange(source, destination)
        folder, base = _entry(source.path)
        pieces = _renamed(pack(folder, base, rename(source.rebase or base)))
    sent = 0

    def counted() -> Iterator[bytes]:
        nonlocal sent
        for piece in pieces:
            sent += len(piece)
            yield piece

    query = {"path": directory, "noOverwriteDirNonDir": "true", "copyUIDGID": "true" if options.on("archive") else None}
    client.upload(f"/containers/{quote(container)}/archive", query, counted(), "PUT").read()
    _report(options, sent, f"{container}:{destination.path}")
    return 0


def _renamed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Headers are small: sent together with what follows them."""
    waiting, held = [], 0
    for piece in pieces:
        waiting.append(piece)
        held += len(piece)
        if held >= _PIECE:
            yield b"".join(waiting)
            waiting, held = [], 0
    yield b"".join(waiting)


def _report(options: Options, amount: int, target: str) -> None:
    quiet = options.on("quiet") if "quiet" in options.given else not os.isatty(1)
    if not quiet:
        sys.stderr.write(f"Successfully copied {size(amount)} to {target}\n")


def _cp(context: Context, options: Options) -> int:
    source, target = options.operands
    if not source or not target:
        raise CliError(f"{'destination' if source else 'source'} can not be empty")
    (from_container, path), (to_container, place) = _split(source), _split(target)
    if from_container and to_container:
        raise CliError("copying between containers is not supported")
    if from_container:
        return _from_container(context.client, from_container, path, place, options)
    if to_container:
        return _to_container(context.client, path, to_container, place, options)
    raise CliError("must specify at least one container source")


def _export(context: Context, options: Options) -> int:
    target = options.text("output")
    if not target and os.isatty(1):
        raise CliError("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    if target:
        _check_output(target)
    response = context.client.stream("GET", f"/containers/{quote(options.operands[0])}/export")
    if not target:
        to_stdout(response)
        return 0
    save_to(target, response)
    return 0


def save_to(target: str, response: Response) -> None:
    """A stream into a file, written beside its place and renamed: what is there is whole."""
    partial = f"{target}.tmp-{os.getpid()}"
    file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for piece in response.chunks():
            write_all(file, piece)
        os.rename(partial, target)
    except BaseException:
        os.unlink(partial)
        raise
    finally:
        os.close(file)


CP = Command(
    "cp",
    "cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n\ttare cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
    "Copy files/folders between a container and the local filesystem",
    _cp,
    (
        ("archive", "a", "bool", "Archive mode (copy all uid/gid information)"),
        ("follow-link", "L", "bool", "Always follow symbol link in SRC_PATH"),
        (
            "quiet",
            "q",
            "bool",
            "Suppress progress output during copy. Progress output is automatically suppressed if no terminal is attached",
        ),
    ),
    least=2,
    most=2,
    aliases=("container cp", "cp"),
    examples=("tare cp web:/etc/nginx/nginx.conf .", "tare cp ./site/. web:/usr/share/nginx/html", "tare cp web:/var/log - | tar tv"),
)
EXPORT = Command(
    "export",
    "export [OPTIONS] CONTAINER",
    "Export a container's filesystem as a tar archive",
    _export,
    (("output", "o", "string", "Write to a file, instead of STDOUT"),),
    least=1,
    most=1,
    aliases=("container export", "export"),
    examples=("tare export web -o web.tar",),
)
