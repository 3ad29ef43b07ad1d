"""``manifest``: put images of several platforms under one name.

A list is made and annotated here, in a file of its own below ``~/.docker/tare-manifests``, and pushed as one document. The daemon does the
looking into registries and the pushing; what of the images the list's repository lacks, it mounts or copies there.
"""

from __future__ import annotations

import os
import sys
from binascii import b2a_base64

from tare.cli import credentials
from tare.cli.connection import quote
from tare.cli.documents import decode, encode
from tare.cli.failures import CliError, DaemonError
from tare.cli.flags import Command
from tare.cli.hosts import docker_directory
from tare.cli.reference import Reference, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options, Row

_OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_PORTS = {
    "aix": "ppc64", "android": "386 amd64 arm arm64", "darwin": "386 amd64 arm arm64", "dragonfly": "amd64",
    "freebsd": "386 amd64 arm arm64 riscv64", "illumos": "amd64", "ios": "amd64 arm64", "js": "wasm",
    "linux": "386 amd64 arm arm64 loong64 mips mips64 mips64le mipsle ppc64 ppc64le riscv64 s390x", "netbsd": "386 amd64 arm arm64",
    "openbsd": "386 amd64 arm arm64 ppc64 riscv64", "plan9": "386 amd64 arm", "solaris": "amd64", "wasip1": "wasm",
    "windows": "386 amd64 arm arm64",
}  # fmt: skip
"""What Go can be built for: docker takes no other platform into a list."""
_PLATFORM_KEYS = ("architecture", "os", "os.version", "os.features", "variant")
_INSECURE: Row = ("insecure", "", "bool", "Accepted for docker's sake: the daemon's --insecure-registry decides")


class ManifestList:
    """A list under work: its name, and the images in it by the references that they were added with."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.images: dict[str, dict[str, Any]] = {}
        self._path = os.path.join(docker_directory(), "tare-manifests", full_name(reference).replace("/", "_").replace(":", "-") + ".json")

    @classmethod
    def load(cls, reference: Reference) -> ManifestList | None:
        """The list of that name; ``None`` when there is none."""
        found = cls(reference)
        try:
            with open(found._path, "rb") as file:
                found.images = decode(file.read())["images"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise CliError(f"{found._path}: malformed manifest list: remove it with 'tare manifest rm'") from None
        return found

    def save(self) -> None:
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        with open(self._path + ".part", "w", encoding="utf-8") as file:
            file.write(encode({"name": full_name(self.reference), "images": self.images}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._path + ".part", self._path)

    def delete(self) -> None:
        os.unlink(self._path)

    @property
    def media_type(self) -> str:
        oci = any(image["descriptor"]["mediaType"] == _OCI_MANIFEST for image in self.images.values())
        return _OCI_INDEX if oci else _DOCKER_LIST

    def document(self) -> str:
        """The list as it is pushed, in docker's own indentation: the same list has the same digest from both tools."""
        import json

        entries = []
        for name in sorted(self.images, key=lambda name: name.replace("/", "_").replace(":", "-")):  # as docker's files are called
            descriptor = self.images[name]["descriptor"]
            platform = descriptor.get("platform", {})
            ordered = {key: platform[key] for key in _PLATFORM_KEYS if key in platform}
            entries.append({**descriptor, "platform": {**ordered, **platform}})
        return json.dumps({"schemaVersion": 2, "mediaType": self.media_type, "manifests": entries}, indent=3, ensure_ascii=False)


def full_name(reference: Reference) -> str:
    """The whole name with its tag or digest."""
    return f"{reference.name}@{reference.digest}" if reference.digest else f"{reference.name}:{reference.tag or 'latest'}"


def _reference(text: str) -> Reference:
    try:
        found = parse(text)
    except CliError as error:
        raise CliError(str(error), 1) from None
    if found is None:
        raise CliError(f"invalid reference format: {text} is an image ID")
    return found


def _needed(text: str) -> ManifestList:
    found = ManifestList.load(_reference(text))
    if found is None:
        raise CliError(f"No such manifest: {text}")
    return found


def _look(context: Context, reference: Reference, what: str) -> Any:
    """``GET /distribution/NAME/what``."""
    path = f"/distribution/{quote(full_name(reference))}/{what}"
    try:
        return context.client.stream("GET", path, None, None, credentials.header(reference.domain))
    except DaemonError as error:
        if "manifest unknown" in str(error) or "name unknown" in str(error):
            raise CliError(f"no such manifest: {full_name(reference)}") from None
        raise


def _create(context: Context, options: Options) -> int:
    target = _reference(options.operands[0])
    if target.digest:
        raise CliError("a manifest list is named by a tag, not by a digest")
    found = ManifestList.load(target)
    if found is not None and not options.on("amend"):
        raise CliError("refusing to amend an existing manifest list with no --amend flag")
    found = found or ManifestList(target)
    for text in options.operands[1:]:
        reference = _reference(text)
        looked = decode(_look(context, reference, "json").read())
        platforms = looked.get("Platforms") or []
        if len(platforms) != 1 or looked["Descriptor"]["mediaType"] in (_OCI_INDEX, _DOCKER_LIST):
            raise CliError(f"{text} is a manifest list, or no image: name the images in it by digest")
        descriptor = looked["Descriptor"]
        entry = {"mediaType": descriptor["mediaType"], "size": descriptor["size"], "digest": descriptor["digest"], "platform": platforms[0]}
        found.images[full_name(reference)] = {"source": f"{reference.name}@{descriptor['digest']}", "descriptor": entry}
    found.save()
    sys.stdout.write(f"Created manifest list {full_name(target)}\n")
    return 0


def _annotate(context: Context, options: Options) -> int:
    name, image = options.operands
    found = ManifestList.load(_reference(name))
    entry = found.images.get(full_name(_reference(image))) if found is not None else None
    if found is None or entry is None:
        raise CliError(f"manifest for image {image} does not exist in {name}")
    platform = entry["descriptor"]["platform"]
    for flag, key in (("os", "os"), ("arch", "architecture"), ("variant", "variant"), ("os-version", "os.version")):
        if options.text(flag):
            platform[key] = options.text(flag)
    wanted = (platform.get("os", ""), platform.get("architecture", ""))
    if wanted[1] not in _PORTS.get(wanted[0], "").split():
        raise CliError(f"manifest entry for image has unsupported os/arch combination: {'/'.join(wanted)}")
    features = [feature for value in options.items("os-features") for feature in value.split(",") if feature]
    if features:
        platform["os.features"] = list(dict.fromkeys([*platform.get("os.features", []), *features]))
    found.save()
    return 0


def _inspect(context: Context, options: Options) -> int:
    import json

    *listed, image = options.operands
    reference = _reference(image)
    if listed:
        entry = _needed(listed[0]).images.get(full_name(reference))
        if entry is None:
            raise CliError(f"manifest for image {image} does not exist in {listed[0]}")
        reference = _reference(entry["source"])
    else:
        local = ManifestList.load(reference)
        if local is not None and not options.on("verbose"):
            sys.stdout.write(local.document() + "\n")
            return 0
    raw = _look(context, reference, "manifest").read()
    document: Any = _verbose(context, reference, raw) if options.on("verbose") else json.loads(raw)
    # docker's: lists by three spaces, all else by tabs
    indent = 3 if isinstance(document, dict) and "manifests" in document else "\t"
    sys.stdout.write(json.dumps(document, indent=indent, ensure_ascii=False) + "\n")
    return 0


def _verbose(context: Context, reference: Reference, raw: bytes) -> Any:
    """One object per image: where it is, its descriptor, the manifest as bytes and as a document."""
    import json

    document = json.loads(raw)
    if "manifests" in document:
        found = []
        for entry in document["manifests"]:
            one = Reference(reference.domain, reference.path, "", entry["digest"])
            found.append(_one_verbose(full_name(one), entry, _look(context, one, "manifest").read()))
        return found
    looked = decode(_look(context, reference, "json").read())
    platform = {"platform": looked["Platforms"][0]} if looked.get("Platforms") else {}
    return _one_verbose(full_name(reference), {**looked["Descriptor"], **platform}, raw)


def _one_verbose(name: str, descriptor: Any, raw: bytes) -> dict[str, Any]:
    import json

    kind = "OCIManifest" if descriptor["mediaType"] == _OCI_MANIFEST else "SchemaV2Manifest"
    return {"Ref": name, "Descriptor": descriptor, "Raw": b2a_base64(raw, newline=False).decode(), kind: json.loads(raw)}


def _push(context: Context, options: Options) -> int:
    found = _needed(options.operands[0])
    sources = [str(image["source"]) for image in found.images.values()]
    body = {"index": found.document(), "mediaType": found.media_type, "sources": sources}
    references = [found.reference, *(_reference(source) for source in sources)]
    path = f"/distribution/{quote(full_name(found.reference))}/manifest"
    response = context.client.stream("PUT", path, None, body, _all_credentials(reference.domain for reference in references))
    answer = decode(response.read())
    for source in references[1:]:
        if source.name != found.reference.name:
            sys.stdout.write(f"Pushed ref {found.reference.name}@{source.digest} with digest: {source.digest}\n")
    sys.stdout.write(f"{answer['Digest']}\n")
    if options.on("purge"):
        found.delete()
    return 0


def _all_credentials(domains: Iterable[str]) -> dict[str, str]:
    """``X-Registry-Config``: the logins of all these registries."""
    found = {}
    for domain in dict.fromkeys(domains):
        login = credentials.load(credentials.address_of(domain))
        if login:
            found[login.server] = login.document()
    packed = b2a_base64(encode(found).encode(), newline=False).translate(bytes.maketrans(b"+/", b"-_")).decode()
    return {"X-Registry-Config": packed} if found else {}


def _rm(context: Context, options: Options) -> int:
    failures = []
    for name in options.operands:
        try:
            _needed(name).delete()
        except CliError as error:
            failures.append(str(error))
    if failures:
        raise CliError("\n".join(failures))
    return 0


CREATE = Command(
    "manifest create",
    "manifest create MANIFEST_LIST MANIFEST [MANIFEST...]",
    "Create a local manifest list for annotating and pushing to a registry",
    _create,
    (("amend", "a", "bool", "Amend an existing manifest list"), _INSECURE),
    least=2,
    examples=("tare manifest create registry.example/app:1 registry.example/app:1-amd64 registry.example/app:1-arm64",),
)
ANNOTATE = Command(
    "manifest annotate",
    "manifest annotate [OPTIONS] MANIFEST_LIST MANIFEST",
    "Add additional information to a local image manifest",
    _annotate,
    (
        ("arch", "", "string", "Set architecture"),
        ("os", "", "string", "Set operating system"),
        ("os-features", "", "list", "Set operating system feature"),
        ("os-version", "", "string", "Set operating system version"),
        ("variant", "", "string", "Set architecture variant"),
    ),
    least=2,
    most=2,
)
INSPECT = Command(
    "manifest inspect",
    "manifest inspect [OPTIONS] [MANIFEST_LIST] MANIFEST",
    "Display an image manifest, or manifest list",
    _inspect,
    (_INSECURE, ("verbose", "v", "bool", "Output additional info including layers and platform")),
    least=1,
    most=2,
)
PUSH = Command(
    "manifest push",
    "manifest push [OPTIONS] MANIFEST_LIST",
    "Push a manifest list to a repository",
    _push,
    (_INSECURE, ("purge", "p", "bool", "Remove the local manifest list after push")),
    least=1,
    most=1,
)
RM = Command(
    "manifest rm",
    "manifest rm MANIFEST_LIST [MANIFEST_LIST...]",
    "Delete one or more manifest lists from local storage",
    _rm,
    least=1,
)
