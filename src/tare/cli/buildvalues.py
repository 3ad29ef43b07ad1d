"""The values of ``build``'s flags that have a grammar of their own: ``type=local,dest=out``, ``id=token,env=TOKEN``."""

from __future__ import annotations

import os

from tare.cli.failures import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_SECRET_LIMIT = 500 << 10
_BARE_OUTPUT = "-"


def fields(text: str, flag: str) -> dict[str, str]:
    """``a=b,c`` with CSV's quotes; a name alone is the name with the value ``true``."""
    import csv

    try:
        (words,) = list(csv.reader([text], strict=True)) or [[]]
    except csv.Error as error:
        raise CliError(f'invalid argument "{text}" for "--{flag}" flag: {error}', 125) from None
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        found[name.strip().lower() if equals else name.strip()] = value if equals else "true"
    return found


class Output:
    """One ``--output``: what the daemon is told, and where on this machine the result goes (None: nowhere)."""

    def __init__(self, type: str, attributes: dict[str, str]) -> None:
        self.type = type
        self.attributes = attributes
        self.destination = attributes.get("dest")
        if self.destination is not None:
            self.attributes = {**attributes, "dest": "client"}
        self.unpacked = type == "local" or (type in ("oci", "docker") and attributes.get("tar", "") in ("false", "0"))
        self._check()

    @property
    def fetched(self) -> bool:
        return self.type in ("local", "tar", "oci") or (self.type == "docker" and self.destination is not None)

    def _check(self) -> None:
        if self.type in ("image", "registry", "cacheonly") and self.destination is not None:
            raise CliError(f"dest is not supported for the {self.type} exporter")
        if not self.fetched:
            return
        if self.unpacked:
            if self.destination in (None, "", "-"):
                raise CliError(f"dest is required for {self.type} exporter" if self.type == "local" else "dest directory is required")
        elif self.destination in (None, "", "-"):
            self.destination = "-"
            if os.isatty(1):
                raise CliError(f"dest file is required for {self.type} exporter. refusing to write to console")
        elif os.path.isdir(self.destination or ""):
            raise CliError(f"destination directory {self.destination} is a directory: {self.type} exporter needs a file")

    def document(self) -> dict[str, Any]:
        return {"Type": self.type, "Attributes": self.attributes}


def output(text: str) -> Output:
    """``--output``: fields, a directory, or ``-``."""
    if text == _BARE_OUTPUT:
        return Output("tar", {"dest": "-"})
    if "=" not in text:
        return Output("local", {"dest": text})
    attributes = fields(text, "output")
    type = attributes.pop("type", "")
    if not type:
        raise CliError("type is required for output")
    return Output(type, attributes)


def outputs(texts: Iterable[str], *, push: bool, load: bool) -> list[Output]:
    """All outputs, with what ``--push`` and ``--load`` add to them."""
    found = [output(text) for text in texts]
    if push:
        images = [each for each in found if each.type in ("image", "registry")]
        for each in images:
            each.attributes["push"] = "true"
        if not images:
            found.append(Output("registry", {}))
    if load and not any(each.type in ("docker", "image") and not each.fetched for each in found):
        found.append(Output("docker", {}))
    return found


def caches(texts: Iterable[str], flag: str) -> list[tuple[str, dict[str, str]]]:
    """``--cache-from`` and ``--cache-to``: a type and its attributes; a bare reference is a registry's."""
    found = []
    for text in texts:
        attributes = fields(text, flag) if "=" in text else {"type": "registry", "ref": text}
        type = attributes.pop("type", "")
        if not type:
            raise CliError(f"type required for cache entry {text!r}")
        offered = ("registry", "local") if flag == "cache-from" else ("registry", "local", "inline")
        if type not in offered:
            hint = ": an inline cache is read from its image, type=registry" if type == "inline" else ""
            raise CliError(f"cache type {type!r} is not offered for --{flag}: {' or '.join(offered)} is expected{hint}")
        if type == "registry" and not attributes.get("ref"):
            raise CliError("ref is required for the registry cache")
        if type == "local" and not attributes.get("src" if flag == "cache-from" else "dest"):
            raise CliError(f"{'src' if flag == 'cache-from' else 'dest'} is required for the local cache")
        found.append((type, attributes))
    return found


def secret(text: str) -> tuple[str, bytes]:
    """``--secret``: its id and its content, read now."""
    given = fields(text, "secret")
    kind = given.pop("type", "")
    if kind not in ("", "file", "env"):
        raise CliError(f"unsupported secret type {kind!r}")
    id = given.pop("id", "")
    path = given.pop("src", "") or given.pop("source", "")
    variable = given.pop("env", "")
    if given:
        raise CliError(f"unexpected key '{next(iter(given))}' in '{text}'")
    if not id:
        raise CliError("secret missing ID")
    if kind == "env" and not variable:
        variable, path = path, ""
    if not variable and not path:
        variable, path = (id, "") if id in os.environ and kind != "file" else ("", id)
    if variable:
        return id, os.environb.get(os.fsencode(variable), b"")
    try:
        with open(os.path.expanduser(path), "rb") as file:
            data = file.read(_SECRET_LIMIT + 1)
    except OSError as error:
        raise CliError(f"failed to stat {path}: {(error.strerror or str(error)).lower()}") from None
    if len(data) > _SECRET_LIMIT:
        raise CliError(f"invalid secret size of {path}: it is larger than 500KB")
    return id, data


def agent(text: str) -> tuple[str, list[str]]:
    """``--ssh``: its id, and the agent's socket or key files; none: the agent of the environment."""
    id, _, paths = text.partition("=")
    found = [os.path.expanduser(path) for path in paths.split(",") if path]
    if not found:
        socket = os.environ.get("SSH_AUTH_SOCK", "")
        if not socket:
            raise CliError(f"invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set (--ssh {text})")
        found = [socket]
    for path in found:
        if not os.path.exists(path):
            raise CliError(f"failed to stat {path}: no such file or directory")
    return id or "default", found


def attestations(attest: Iterable[str], sbom: str, provenance: str) -> dict[str, dict[str, str]]:
    """``--attest``, ``--sbom`` and ``--provenance``: the kinds that are wanted, with their attributes."""
    wanted: dict[str, dict[str, str]] = {}
    texts = [
        *attest,
        *([f"type=sbom,{_shorthand(sbom)}"] if sbom else []),
        *([f"type=provenance,{_shorthand(provenance)}"] if provenance else []),
    ]
    for text in texts:
        given = fields(text, "attest")
        kind = given.pop("type", "")
        if kind not in ("sbom", "provenance"):
            raise CliError(f"attestation type {kind!r} is not offered: sbom or provenance is expected")
        wanted[kind] = given
    return {kind: given for kind, given in wanted.items() if given.pop("disabled", "false") != "true"}


def _shorthand(text: str) -> str:
    """``--sbom=true`` and the like as fields."""
    if text in ("true", "1"):
        return "disabled=false"
    return "disabled=true" if text in ("false", "0") else text
