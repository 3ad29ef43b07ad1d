"""``push``: send an image to a registry.

The daemon does the work; the client adds the credentials that ``docker login`` left in ``~/.docker/config.json`` (``DOCKER_CONFIG`` names
another directory) for the registry in question. Credential helpers are programs that the configuration names: they are not run.
"""

from __future__ import annotations

import os
import sys
from binascii import Error as Malformed
from binascii import a2b_base64, b2a_base64

from tare.cli.connection import quote
from tare.cli.documents import decode, encode
from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.pull import Progress
from tare.cli.reference import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options

_HUB = "https://index.docker.io/v1/"


def registry_auth(domain: str) -> str:
    """The value of ``X-Registry-Auth`` for a registry: base64url of a JSON object, empty when there are no credentials."""
    directory = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    try:
        with open(os.path.join(directory, "config.json"), "rb") as file:
            found = decode(file.read())
    except (OSError, ValueError):
        return ""
    auths = found.get("auths") if isinstance(found, dict) else None
    address = _HUB if domain == "docker.io" else domain
    entry = (auths or {}).get(address)
    if not isinstance(entry, dict):
        return ""
    document = {"serveraddress": address}
    if entry.get("identitytoken"):
        document["identitytoken"] = str(entry["identitytoken"])
    if entry.get("auth"):
        try:
            user, _, password = a2b_base64(str(entry["auth"])).decode().partition(":")
        except (Malformed, UnicodeDecodeError):
            raise CliError(f"{directory}/config.json: malformed credentials for {address}; log in again") from None
        document |= {"username": user, "password": password.rstrip("\0")}
    if len(document) == 1:
        return ""
    return b2a_base64(encode(document).encode(), newline=False).translate(bytes.maketrans(b"+/", b"-_")).decode()


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
    auth = registry_auth(reference.domain)
    headers = {"X-Registry-Auth": auth} if auth else {}
    query = {"tag": "" if every else reference.suffix}
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
        ("disable-content-trust", "", "bool", "Skip image signing", True),
        ("quiet", "q", "bool", "Suppress verbose output"),
    ),
    least=1,
    most=1,
    aliases=("image push", "push"),
    examples=("tare push registry.example:5000/app:1.2", "tare push localhost:5000/debian:bookworm"),
)
