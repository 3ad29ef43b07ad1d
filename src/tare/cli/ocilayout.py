"""An OCI image layout on this machine, for ``build --build-context NAME=oci-layout://PATH[:TAG][@DIGEST]``: which of its files an image
needs."""

from __future__ import annotations

import json
import os
import re

from tare.cli.failures import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PREFIX = "oci-layout://"
_NAME = "org.opencontainers.image.ref.name"
_DIGEST = re.compile(r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")
_LIMIT, _DEPTH = 8 << 20, 4


def resolve(address: str) -> tuple[str, str, frozenset[str]]:
    """(directory, digest of the image or index, names of the files that it needs) of an address."""
    path, _, digest = address.removeprefix(PREFIX).partition("@")
    tag = ""
    if not os.path.isdir(path) and ":" in os.path.basename(path):
        path, _, tag = path.rpartition(":")
    index = _read(path, "index.json")
    if not digest:
        digest = _tagged(index, tag, path)
    if not _DIGEST.fullmatch(digest):
        raise CliError(f"invalid value {address}: {digest!r} is no digest", 125)
    files = {"index.json"}
    _collect(path, digest, files, 0)
    return path, digest, frozenset(files)


def _tagged(index: dict[str, Any], tag: str, path: str) -> str:
    entries = [entry for entry in index.get("manifests") or () if isinstance(entry, dict)]
    for entry in entries:
        name = str((entry.get("annotations") or {}).get(_NAME, ""))
        if (tag or "latest") in (name, name.rpartition(":")[2]):
            return str(entry.get("digest"))
    if not tag and len(entries) == 1:
        return str(entries[0].get("digest"))
    known = sorted(name for entry in entries if (name := str((entry.get("annotations") or {}).get(_NAME, ""))))
    hint = f" (it has {', '.join(known)})" if known else ""
    raise CliError(f"OCI layout {path} has no image {tag or 'latest'}{hint}")


def _collect(path: str, digest: str, files: set[str], depth: int) -> None:
    """A document and all that it leads to, as far as it is there: not all platforms of an index need be."""
    name = "blobs/" + digest.replace(":", "/")
    if name in files or depth > _DEPTH:
        return
    document = _read(path, name)
    files.add(name)
    for entry in document.get("manifests") or ():
        inner = str(entry.get("digest"))
        if _DIGEST.fullmatch(inner) and os.path.isfile(os.path.join(path, "blobs", *inner.split(":"))):
            _collect(path, inner, files, depth + 1)
    for blob in (document.get("config") or {}, *(document.get("layers") or ())):
        inner = str(blob.get("digest"))
        if _DIGEST.fullmatch(inner):
            files.add("blobs/" + inner.replace(":", "/"))


def _read(path: str, name: str) -> dict[str, Any]:
    try:
        with open(os.path.join(path, name), "rb") as file:
            document = json.loads(file.read(_LIMIT))
    except OSError as error:
        raise CliError(f"{path} is no OCI layout: cannot read {name}: {(error.strerror or '').lower()}") from None
    except ValueError:
        raise CliError(f"{path} is no OCI layout: {name} is no JSON") from None
    if not isinstance(document, dict):
        raise CliError(f"{path} is no OCI layout: {name} is no JSON object")
    return document
