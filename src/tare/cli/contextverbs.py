"""``context create``, ``ls``, ``use``, ``show``, ``inspect``, ``update``, ``rm``, ``export`` and ``import``."""

from __future__ import annotations

import os
import sys

from tare.cli import contexts
from tare.cli.context import warn
from tare.cli.failures import CliError
from tare.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Kind, Options
    from tare.cli.hosts import Choice

    Document = dict[str, Any]

_KEYS = ("from", "host", "ca", "cert", "key", "skip-tls-verify")
_DEFAULT_DESCRIPTION = "Current DOCKER_HOST based configuration"


def _pairs(text: str) -> str:
    for part in text.split(","):
        if "=" not in part:
            raise ValueError(f"{part} must be formatted as key=value")
    return text


_KINDS: dict[str, Kind] = {"string-map": ("stringToString", True, _pairs)}


def _docker_endpoint(options: Options) -> dict[str, str]:
    """``--docker host=...,ca=...`` as a dict."""
    given: dict[str, str] = {}
    for text in options.items("docker"):
        given.update(part.partition("=")[::2] for part in text.split(","))
    return given


def _endpoint(given: dict[str, str]) -> tuple[Document, dict[str, bytes]]:
    """An endpoint's document and its certificates. Raises CliError, OSError."""
    for key in given:
        if key not in _KEYS:
            raise CliError(f"unrecognized config key: {key}")
    if "from" in given:
        if len(given) > 1:
            raise CliError("cannot use --docker from=... together with other keys")
        source = given["from"]
        return dict(contexts.endpoint(contexts.load(source))), contexts.certificates(source)
    skip = given.get("skip-tls-verify", "false")
    if skip.lower() not in ("true", "false", "1", "0", "t", "f"):
        raise CliError(f'strconv.ParseBool: parsing "{skip}": invalid syntax')
    files = {}
    for key, name in (("ca", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem")):
        if given.get(key):
            with open(os.path.expanduser(given[key]), "rb") as file:
                files[name] = file.read()
            if b"-----BEGIN " not in files[name]:
                raise CliError(f"invalid docker endpoint options: failed to retrieve context tls info: {name} seems invalid")
    document: Document = {"Host": given["host"]} if given.get("host") else {}
    document["SkipTLSVerify"] = skip.lower() in ("true", "1", "t")
    if document.get("Host"):
        from tare.cli.hosts import normalize

        normalize(document["Host"])
    return document, files


def _metadata(description: str) -> Document:
    return {"Description": description} if description else {}


def _create(context: Context, options: Options) -> int:
    name = options.operands[0]
    contexts.check_name(name)
    if contexts.exists(name):
        raise CliError(f'context "{name}" already exists')
    given = _docker_endpoint(options)
    source = options.text("from")
    if source and given:
        raise CliError("cannot use --docker flag when --from is set")
    if source and source != "default":
        document = {**contexts.load(source), "Name": name}
        files = contexts.certificates(source)
        description = options.text("description")
        if description:
            document["Metadata"] = _metadata(description)
    else:
        description = options.text("description")
        if not given:
            given = _as_endpoint(context.choice())
            description = description or _DEFAULT_DESCRIPTION
        target, files = _named_endpoint(given, "create")
        document = {"Name": name, "Metadata": _metadata(description), "Endpoints": {"docker": target}}
    contexts.save(document, files)
    _done("created", name)
    return 0


def _named_endpoint(given: dict[str, str], doing: str) -> tuple[Document, dict[str, bytes]]:
    """`_endpoint` with docker's words for what is wrong with it."""
    try:
        return _endpoint(given)
    except CliError as error:
        raise CliError(f"unable to {doing} docker endpoint config: {error}") from None
    except OSError as error:
        raise CliError(f"unable to {doing} docker endpoint config: open {error.filename}: {(error.strerror or '').lower()}") from None


def _as_endpoint(choice: Choice) -> dict[str, str]:
    given = {"host": choice.host}
    if choice.tls is not None:
        given.update({"ca": choice.tls.ca, "cert": choice.tls.cert, "key": choice.tls.key})
        given["skip-tls-verify"] = str(not choice.tls.verify).lower()
    return given


def _done(what: str, name: str) -> None:
    sys.stdout.write(f"{name}\n")
    sys.stdout.flush()
    sys.stderr.write(f'Successfully {what} context "{name}"\n')


def _update(context: Context, options: Options) -> int:
    name = options.operands[0]
    if name != "default":
        contexts.check_name(name)
    document = contexts.load(name)
    if options.text("description"):
        document["Metadata"] = {**(document.get("Metadata") or {}), "Description": options.text("description")}
    files: dict[str, bytes] | None = None
    if "docker" in options.given:
        target, files = _named_endpoint(_docker_endpoint(options), "update")
        document["Endpoints"] = {**(document.get("Endpoints") or {}), "docker": target}
    contexts.save(document, files)
    _done("updated", name)
    return 0


def _current(context: Context) -> str:
    """The active context's name: ``default`` also where a host was named directly."""
    return context.choice().context


def _row(document: Document, current: str) -> dict[Any, Any]:
    from tare.cli.templatefunctions import MISSING

    return {
        MISSING: "*formatter.clientContextContext",
        "Current": document["Name"] == current,
        "Description": str((document.get("Metadata") or {}).get("Description", "")),
        "DockerEndpoint": str(contexts.endpoint(document).get("Host", "")),
        "Error": "",
        "Name": document["Name"],
    }


def _default(context: Context) -> Document:
    """What ``default`` stands for now."""
    from tare.cli.hosts import DEFAULT_HOST

    host, skip = DEFAULT_HOST, False
    try:
        choice = context.choice()
    except CliError:
        pass  # another context is the current one, and it is broken
    else:
        if choice.context == "default":
            host, skip = choice.host, choice.tls is not None and not choice.tls.verify
    return {
        "Name": "default",
        "Metadata": {},
        "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": skip}},
    }


def _ls(context: Context, options: Options) -> int:
    try:
        current = _current(context)
    except CliError:
        current = ""
    documents = [{**_default(context), "Metadata": {"Description": _DEFAULT_DESCRIPTION}}, *contexts.all_contexts()]
    documents.sort(key=lambda document: str(document["Name"]))
    if options.on("quiet"):
        sys.stdout.write("".join(f"{document['Name']}\n" for document in documents))
        return 0
    from tare.cli.tables import write_rows

    rows = [_row(document, current) for document in documents]
    layout = options.text("format")
    if layout in ("", "table"):
        for row in rows:
            row["Name"] += " *" if row["Current"] else ""
    headers = {"Name": "NAME", "Description": "DESCRIPTION", "DockerEndpoint": "DOCKER ENDPOINT", "Error": "ERROR", "Current": "CURRENT"}
    write_rows(rows, layout, headers, "Name Description DockerEndpoint Error")
    _warn_overridden("a context")
    return 0


def _warn_overridden(what: str) -> None:
    for variable in ("TARE_HOST", "DOCKER_HOST"):
        if os.environ.get(variable):
            warn(
                f"Warning: {variable} environment variable overrides the active context. To use {what}, either set the global --context "
                f"flag, or unset {variable} environment variable."
            )
            return


def _use(context: Context, options: Options) -> int:
    name = options.operands[0]
    if name != "default":
        contexts.load(name)
    contexts.set_current(name)
    sys.stdout.write(f"{name}\n")
    warn(f'Current context is now "{name}"')
    if name != "default":
        _warn_overridden(f'"{name}"')
    return 0


def _show(context: Context, options: Options) -> int:
    sys.stdout.write(_current(context) + "\n")
    return 0


def _inspect(context: Context, options: Options) -> int:
    documents = []
    failure: CliError | None = None
    for name in options.operands or [_current(context)]:
        try:
            documents.append(_described(context, name))
        except CliError as error:
            failure = error
            break
    layout = options.text("format")
    if layout and layout != "json":
        from tare.cli.tables import templated

        sys.stdout.write("".join(line + "\n" for line in templated(layout, documents, None)))
    else:
        from tare.cli.documents import encode, pretty
        from tare.cli.templatefunctions import escape_html

        sys.stdout.write(escape_html(encode(documents) if layout else pretty(documents)) + "\n")
    if failure is not None:
        raise failure
    return 0


def _described(context: Context, name: str) -> Document:
    in_memory = "<IN MEMORY>"
    if name == "default":
        return {**_default(context), "TLSMaterial": {}, "Storage": {"MetadataPath": in_memory, "TLSPath": in_memory}}
    document = contexts.load(name)
    files = list(contexts.certificates(name))
    return {
        "Name": document.get("Name", name),
        "Metadata": document.get("Metadata") or {},
        "Endpoints": document.get("Endpoints") or {},
        "TLSMaterial": {"docker": files} if files else {},
        "Storage": {"MetadataPath": contexts.meta_directory(name), "TLSPath": contexts.tls_directory(name)},
    }


def _rm(context: Context, options: Options) -> int:
    force = options.on("force")
    try:
        current = _current(context)
    except CliError:
        current = ""
    code = 0
    for name in options.operands:
        try:
            if name == "default":
                raise CliError('context "default" cannot be removed')
            if not contexts.exists(name) and not force:
                raise CliError(f'context "{name}" does not exist')
            if name == current:
                if not force:
                    raise CliError(f'context "{name}" is in use, set -f flag to force remove')
                contexts.set_current("default")
            contexts.remove(name)
            sys.stdout.write(name + "\n")
        except CliError as error:
            warn(str(error))
            code = 1
    return code


def _export(context: Context, options: Options) -> int:
    name, target = (*options.operands, "")[:2]
    data = contexts.to_archive(name)
    if target == "-":
        if sys.stdout.isatty():
            raise CliError("cowardly refusing to export to a terminal, specify a file path")
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        return 0
    target = target or f"{name}.dockercontext"
    try:
        # Certificates and keys are in it, and an older export is not overwritten.
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CliError(f"open {target}: {(error.strerror or '').lower()}") from None
    with open(fd, "wb") as file:
        file.write(data)
    warn(f'Written file "{target}"')
    return 0


def _import(context: Context, options: Options) -> int:
    name, source = options.operands
    contexts.check_name(name)
    if contexts.exists(name):
        raise CliError(f'context "{name}" already exists')
    if source == "-":
        data = sys.stdin.buffer.read(contexts.LIMIT + 1)
    else:
        try:
            with open(source, "rb") as file:
                data = file.read(contexts.LIMIT + 1)
        except OSError as error:
            raise CliError(f"open {source}: {(error.strerror or '').lower()}") from None
    if len(data) > contexts.LIMIT:
        raise CliError("invalid context: the archive is too large")
    document, files = contexts.from_archive(data)
    contexts.save({**document, "Name": name}, files)
    _done("imported", name)
    return 0


_DESCRIPTION = ("description", "", "string", "Description of the context")
_DOCKER = ("docker", "", "string-map", "Set the docker endpoint: host, ca, cert, key (files), skip-tls-verify, or from (another context)")
_FORMAT = ("format", "", "string", "Format output: 'table', 'table TEMPLATE' (with headers), 'json' or a Go template: '{{.Name}}'")
CREATE = Command(
    "context create", "context create [OPTIONS] CONTEXT", "Create a context", _create,
    (_DESCRIPTION, _DOCKER, ("from", "", "string", "Create context from a named context")), least=1, most=1, kinds=_KINDS,
    examples=(
        "tare context create build --docker host=ssh://me@build.example",
        "tare context create farm --docker host=tcp://farm:2376,ca=ca.pem,cert=cert.pem,key=key.pem",
    ),
)  # fmt: skip
UPDATE = Command(
    "context update", "context update [OPTIONS] CONTEXT", "Update a context", _update, (_DESCRIPTION, _DOCKER),
    least=1, most=1, kinds=_KINDS,
    examples=("tare context update build --description 'the big machine'",),
)  # fmt: skip
LS = Command(
    "context ls", "context ls [OPTIONS]", "List contexts", _ls, (_FORMAT, ("quiet", "q", "bool", "Only show context names")), most=0,
    aliases=("context ls", "context list"),
)  # fmt: skip
USE = Command(
    "context use", "context use CONTEXT", "Set the current context", _use, least=1, most=1,
    examples=("tare context use build        every later call goes there", "tare context use default      back to this machine"),
)  # fmt: skip
SHOW = Command("context show", "context show", "Print the name of the current context", _show, most=0)
INSPECT = Command(
    "context inspect", "context inspect [OPTIONS] [CONTEXT] [CONTEXT...]", "Display detailed information on one or more contexts", _inspect,
    (("format", "f", "string", "Format output: 'json' or a Go template"),),
)  # fmt: skip
RM = Command(
    "context rm", "context rm CONTEXT [CONTEXT...]", "Remove one or more contexts", _rm,
    (("force", "f", "bool", "Force the removal of a context in use"),), least=1, aliases=("context rm", "context remove"),
)  # fmt: skip
EXPORT = Command(
    "context export", "context export CONTEXT [FILE|-]", "Export a context to a tar archive FILE or a tar stream on STDOUT.", _export,
    least=1, most=2,
)  # fmt: skip
IMPORT = Command("context import", "context import CONTEXT FILE|-", "Import a context from a tar or zip file", _import, least=2, most=2)
