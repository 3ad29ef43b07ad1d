"""A bill of materials of a file tree: the packages that its package managers have on record, as an SPDX 2.3 document.

Read are the databases of dpkg and apk, the metadata of Python distributions and the manifests of Node packages. The tree is hostile: it is
walked by descriptor without following links, and what is read is bounded.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

from tare.linux.constants import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from tare.linux.mount import openat2
from tare.store.tartree import FILE

_SIZE = 64 << 20
_METADATA_SIZE = 1 << 20
_PACKAGES = 100_000
_TOOL = "tare"
_PSEUDO = frozenset((b"proc", b"sys", b"dev"))


@dataclass(frozen=True, order=True)
class Package:
    """One package of a tree."""

    kind: str
    """The type in its package address: deb, apk, pypi, npm."""
    name: str
    version: str
    namespace: str = ""
    architecture: str = ""
    license: str = ""
    supplier: str = ""

    @property
    def address(self) -> str:
        """The package URL."""
        path = "/".join(quote(part, safe="@") for part in (self.namespace, self.name) if part)
        arch = f"?arch={quote(self.architecture)}" if self.architecture else ""
        return f"pkg:{self.kind}/{path}@{quote(self.version, safe='')}{arch}"


def document(root: int, key: str, created: str) -> dict[str, Any]:
    """The SPDX document of the tree below the open directory ``root``. ``key`` makes its namespace unique. Blocks."""
    packages = packages_of(root)
    identified = [(package, f"SPDXRef-Package-{package.kind}-{_plain(package.name)}-{_key(package)}") for package in packages]
    digest = hashlib.sha256(repr((key, packages)).encode()).hexdigest()
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "sbom",
        "documentNamespace": f"urn:tare:sbom:{digest}",
        "creationInfo": {"created": re.sub(r"\.\d+", "", created), "creators": [f"Tool: {_TOOL}"]},
        "packages": [_described(package, id) for package, id in identified],
        "relationships": [
            {"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": id} for _, id in identified
        ],
    }


def _described(package: Package, id: str) -> dict[str, Any]:
    return {
        "SPDXID": id,
        "name": package.name,
        "versionInfo": package.version,
        "supplier": f"Person: {package.supplier}" if package.supplier else "NOASSERTION",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": package.license or "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": package.address}],
    }


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", name)


def _key(package: Package) -> str:
    return hashlib.sha256(repr(package).encode()).hexdigest()[:16]


def packages_of(root: int) -> list[Package]:
    """All packages of a tree, sorted. Blocks."""
    found = {*_dpkg(root), *_apk(root)}
    for package in _walked(root):
        found.add(package)
        if len(found) >= _PACKAGES:
            break
    return sorted(found)


def _read(root: int, path: str, limit: int = _SIZE) -> str:
    """A file of the tree, "" when there is none or it is too big."""
    try:
        file = openat2(root, path, FILE & ~os.O_NOFOLLOW, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except OSError:
        return ""
    with os.fdopen(file, "rb") as stream, suppress(OSError):
        data = stream.read(limit + 1)
        return data.decode("utf-8", "replace") if len(data) <= limit else ""
    return ""


def _distribution(root: int) -> str:
    """``ID`` of os-release: the namespace of its packages."""
    for path in ("etc/os-release", "usr/lib/os-release"):
        match = re.search(r'(?m)^ID="?([a-z0-9._-]+)"?\s*$', _read(root, path, _METADATA_SIZE))
        if match:
            return match[1]
    return ""


def _paragraphs(text: str, separator: str) -> Iterator[dict[str, str]]:
    """Control paragraphs: ``Name: value`` lines, continuation lines left out."""
    for paragraph in text.split("\n\n"):
        lines = [line.partition(separator) for line in paragraph.splitlines() if line[:1] not in (" ", "\t")]
        yield {name: value.strip() for name, _, value in lines}


def _dpkg(root: int) -> Iterator[Package]:
    texts = [_read(root, "var/lib/dpkg/status")]
    with suppress(OSError):  # how images without a package manager tell of their packages
        directory = openat2(root, "var/lib/dpkg/status.d", os.O_RDONLY | os.O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        try:
            texts += [_read(directory, name, _METADATA_SIZE) for name in sorted(os.listdir(directory)) if not name.endswith(".md5sums")]
        finally:
            os.close(directory)
    namespace = _distribution(root) or "debian"
    for fields in (fields for text in texts for fields in _paragraphs(text, ":")):
        installed = fields.get("Status", "installed").rpartition(" ")[2] == "installed"
        if installed and fields.get("Package") and fields.get("Version"):
            yield Package(
                "deb", fields["Package"], fields["Version"], namespace, fields.get("Architecture", ""), "", fields.get("Maintainer", "")
            )


def _apk(root: int) -> Iterator[Package]:
    namespace = _distribution(root) or "alpine"
    for path in ("lib/apk/db/installed", "usr/lib/apk/db/installed"):
        for fields in _paragraphs(_read(root, path), ":"):
            if fields.get("P") and fields.get("V"):
                yield Package("apk", fields["P"], fields["V"], namespace, fields.get("A", ""), fields.get("L", ""), fields.get("m", ""))


def _walked(root: int) -> Iterator[Package]:
    """Packages whose metadata lies among the files: Python's and Node's."""
    for path, directories, files, directory in os.fwalk(b".", dir_fd=root):
        if path == b".":
            directories[:] = [name for name in directories if name not in _PSEUDO]
        if path.endswith((b".dist-info", b".egg-info")):
            yield from _python(directory)
        elif b"package.json" in files and re.search(rb"/node_modules/(@[^/]+/)?[^/]+$", path):
            yield from _node(directory)


def _python(directory: int) -> Iterator[Package]:
    text = _read(directory, "METADATA", _METADATA_SIZE) or _read(directory, "PKG-INFO", _METADATA_SIZE)
    fields = next(_paragraphs(text, ":"), {})
    if fields.get("Name") and fields.get("Version"):
        name = re.sub(r"[-_.]+", "-", fields["Name"]).lower()
        yield Package("pypi", name, fields["Version"], license=fields.get("License-Expression", ""))


def _node(directory: int) -> Iterator[Package]:
    try:
        found = msgspec.json.decode(_read(directory, "package.json", _METADATA_SIZE))
        name, version, license = found["name"], found["version"], found.get("license")
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        return
    if isinstance(name, str) and isinstance(version, str):
        namespace, slash, rest = name.partition("/")
        yield Package("npm", rest if slash else name, version, namespace if slash else "", "", license if isinstance(license, str) else "")
