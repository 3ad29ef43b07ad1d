"""Contexts: named daemons, kept where the docker command keeps them, so that both see the same ones.

Below ``~/.docker/contexts`` (``DOCKER_CONFIG`` moves it), with ID the SHA-256 of the context's name:

    meta/ID/meta.json            {"Name": ..., "Metadata": {"Description": ...}, "Endpoints": {"docker": {"Host": ..., "SkipTLSVerify":
    ...}}} tls/ID/docker/ca.pem ...     certificates of that endpoint, mode 0600 in 0700 directories

``default`` is no file: it stands for whatever flags and environment say. Names come from users and archives; one that does not match
`NAME_RULE` never becomes a path, and the path is made of its hash anyway.
"""

from __future__ import annotations

import os

from tare.cli.documents import decode, encode
from tare.cli.failures import CliError
from tare.cli.hosts import UNRESOLVED, Choice, Tls, docker_directory, normalize, read_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Document = dict[str, Any]

NAME_RULE = "^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$"
TLS_FILES = ("ca.pem", "cert.pem", "key.pem")


def identifier(name: str) -> str:
    """The directory name that belongs to a context."""
    from hashlib import sha256

    return sha256(name.encode()).hexdigest()


def _root() -> str:
    return os.path.join(docker_directory(), "contexts")


def meta_directory(name: str) -> str:
    return os.path.join(_root(), "meta", identifier(name))


def tls_directory(name: str) -> str:
    return os.path.join(_root(), "tls", identifier(name))


def check_name(name: str) -> None:
    """Raises CliError unless a context may be called so."""
    if not name:
        raise CliError("context name cannot be empty")
    if name == "default":
        raise CliError('"default" is a reserved context name')
    allowed = name.isascii() and len(name) > 1 and name[0].isalnum() and all(char.isalnum() or char in "_.+-" for char in name)
    if not allowed:
        raise CliError(f'context name "{name}" is invalid, names are validated against regexp "{NAME_RULE}"')


def exists(name: str) -> bool:
    return os.path.exists(os.path.join(meta_directory(name), "meta.json"))


def load(name: str) -> Document:
    """A context's document. Raises CliError when there is none."""
    path = os.path.join(meta_directory(name), "meta.json")
    if not os.path.exists(path):
        raise CliError(f'context "{name}": context not found: open {path}: no such file or directory')
    return read_settings(path)


def all_contexts() -> Iterator[Document]:
    """Every stored context by name; what cannot be read is left out."""
    directory = os.path.join(_root(), "meta")
    try:
        entries = os.listdir(directory)
    except OSError:
        return
    found = []
    for entry in entries:
        try:
            document = read_settings(os.path.join(directory, entry, "meta.json"))
        except CliError:
            continue
        if document.get("Name"):
            found.append(document)
    yield from sorted(found, key=lambda document: str(document["Name"]))


def endpoint(document: Document) -> Document:
    found = (document.get("Endpoints") or {}).get("docker")
    return found if isinstance(found, dict) else {}


def certificates(name: str) -> dict[str, bytes]:
    """The endpoint's certificates and key, by file name."""
    found = {}
    for file in TLS_FILES:
        path = os.path.join(tls_directory(name), "docker", file)
        if os.path.exists(path):
            with open(path, "rb") as opened:
                found[file] = opened.read()
    return found


def choice(name: str) -> Choice:
    """The daemon that a context stands for."""
    try:
        document = load(name)
    except CliError as error:
        raise CliError(f"{UNRESOLVED}: {error}") from None
    target = endpoint(document)
    directory = os.path.join(tls_directory(name), "docker")
    files = {file: os.path.join(directory, file) for file in TLS_FILES if os.path.exists(os.path.join(directory, file))}
    skip = bool(target.get("SkipTLSVerify"))
    secured = skip or bool(files)
    host = str(target.get("Host") or "")
    if not host:
        raise CliError(f"context \"{name}\" has no Docker endpoint: set one with 'tare context update {name} --docker host=...'")
    tls = Tls(files.get("ca.pem", ""), files.get("cert.pem", ""), files.get("key.pem", ""), verify=not skip) if secured else None
    normal = normalize(host, tls=secured)
    return Choice(normal, f"context {name}", context=name, tls=tls if normal.startswith("tcp://") else None)


def save(document: Document, files: dict[str, bytes] | None = None) -> None:
    """Write a context; ``files`` replaces its certificates (None leaves them)."""
    name = str(document["Name"])
    if files is not None:
        directory = os.path.join(tls_directory(name), "docker")
        _clear(tls_directory(name))
        for file, content in files.items():
            os.makedirs(directory, 0o700, exist_ok=True)
            _write(os.path.join(directory, file), content, 0o600)
    os.makedirs(meta_directory(name), 0o755, exist_ok=True)
    _write(os.path.join(meta_directory(name), "meta.json"), encode(document).encode(), 0o644)


def remove(name: str) -> None:
    """Take a context away; nothing happens when there is none."""
    _clear(meta_directory(name))
    _clear(tls_directory(name))


def _clear(directory: str) -> None:
    if os.path.isdir(directory):
        from shutil import rmtree

        rmtree(directory)


def _write(path: str, content: bytes, mode: int) -> None:
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def set_current(name: str) -> None:
    """Make a context the default of docker's and our calls. Everything else in ``config.json`` stays as it is."""
    path = os.path.join(docker_directory(), "config.json")
    document = read_settings(path)
    document.pop("currentContext", None)
    if name != "default":
        document["currentContext"] = name
    from tare.cli.documents import pretty

    os.makedirs(docker_directory(), 0o700, exist_ok=True)
    # A symbolic link, as dot-file managers lay them, stays one.
    _write(os.path.realpath(path), pretty(document, "\t").encode(), 0o600)


def from_archive(data: bytes) -> tuple[Document, dict[str, bytes]]:
    """Document and certificates of an exported context (tar or zip). Raises CliError."""
    members = dict(_zip(data) if data.startswith(b"PK\x03\x04") else _tar(data))
    if "meta.json" not in members:
        raise CliError("invalid context: no metadata found")
    try:
        document = decode(members["meta.json"])
    except ValueError as error:
        raise CliError(f"invalid context: {error}") from None
    if not isinstance(document, dict):
        raise CliError("invalid context: the metadata must be a JSON object")
    files = {name.removeprefix("tls/docker/"): content for name, content in members.items() if name.startswith("tls/docker/")}
    unknown = sorted(set(files) - set(TLS_FILES))
    if unknown:
        raise CliError(f"invalid context: unexpected TLS file {unknown[0]}")
    return document, files


LIMIT = 10 << 20
"""Bytes of an archive and of everything in it."""


def _expected(name: str) -> bool:
    return name == "meta.json" or name.startswith("tls/docker/")


def _tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    import io
    import tarfile

    left = LIMIT
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                opened = archive.extractfile(member) if member.isreg() and _expected(member.name) else None
                if opened is None:
                    continue
                content = opened.read(left + 1)
                left -= len(content)
                if left < 0:
                    raise CliError("invalid context: the archive is too large")
                yield member.name, content
    except tarfile.TarError as error:
        raise CliError(f"invalid context: {error}") from None


def _zip(data: bytes) -> Iterator[tuple[str, bytes]]:
    import io
    import zipfile

    left = LIMIT
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                if not _expected(entry.filename) or entry.is_dir():
                    continue
                with archive.open(entry) as opened:
                    content = opened.read(left + 1)
                left -= len(content)
                if left < 0:
                    raise CliError("invalid context: the archive is too large")
                yield entry.filename, content
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise CliError(f"invalid context: {error}") from None


def to_archive(name: str) -> bytes:
    """The tar that ``context export`` writes: no dates, no owners."""
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(path: str, content: bytes | None, mode: int) -> None:
            member = tarfile.TarInfo(path)
            member.mode = mode
            if content is None:
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

        add("meta.json", encode(load(name)).encode(), 0o644)
        add("tls", None, 0o700)
        files = certificates(name)
        if files:
            add("tls/docker", None, 0o700)
        for file, content in files.items():
            add(f"tls/docker/{file}", content, 0o600)
    return buffer.getvalue()
