"""What a build can say of its result: provenance (SLSA) and a bill of materials (SPDX), as in-toto predicates.

``--attest type=provenance,mode=min|max,version=v0.2|v1`` and ``--attest type=sbom``. In mode ``min`` the values of build arguments stay
out, as they may be secret.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tare.builder.namedcontexts import LAYOUT
from tare.builder.publication import Statement
from tare.builder.sbom import document
from tare.errors import InvalidArgument
from tare.oci.digest import Digest
from tare.oci.platform import host

if TYPE_CHECKING:
    from tare.builder.request import BuildRequest
    from tare.builder.solver import Build
    from tare.oci.image import ImageConfig

BUILD_TYPE = "https://mobyproject.org/buildkit@v1"
"""BuildKit's: the front end and its parameters mean the same."""
_SPDX = "https://spdx.dev/Document"
_ATTRIBUTES = {"sbom": {"generator"}, "provenance": {"mode", "version", "builder-id", "reproducible", "inline-only"}}


def check(wanted: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse what is not offered. ``InvalidArgument`` names it."""
    for kind, attributes in wanted.items():
        if kind not in _ATTRIBUTES:
            raise InvalidArgument(f"attestation type {kind!r} is not offered: sbom or provenance is expected")
        unknown = sorted(set(attributes) - _ATTRIBUTES[kind])
        if unknown:
            raise InvalidArgument(f"attestation {kind}: unknown attribute {unknown[0]!r}")
        if attributes.get("generator"):
            raise InvalidArgument("attestation sbom: other generators than the built-in one are not offered")
        if attributes.get("mode", "min") not in ("min", "max"):
            raise InvalidArgument(f"attestation provenance: mode {attributes['mode']!r} is not offered: min or max is expected")
        if attributes.get("version", "v0.2") not in ("v0.2", "v1"):
            raise InvalidArgument(f"attestation provenance: version {attributes['version']!r} is not offered: v0.2 or v1 is expected")


async def attest(build: Build, config: ImageConfig, text: bytes, begun: float) -> tuple[Statement, ...]:
    """The statements that the request asks for."""
    found = []
    wanted = build.request.attestations
    if "sbom" in wanted:
        created = build.now_text()

        def scan() -> dict[str, Any]:
            with build.snapshots.view(config.diff_ids) as root:
                return document(root, str(Digest.of(text)), created)

        found.append(Statement(_SPDX, await build.in_thread(scan)))
    if "provenance" in wanted:
        found.append(_provenance(build, text, begun, wanted["provenance"]))
    return tuple(found)


def _provenance(build: Build, text: bytes, begun: float, attributes: Mapping[str, str]) -> Statement:
    request, whole = build.request, attributes.get("mode", "min") == "max"
    parameters: dict[str, Any] = {"frontend": "dockerfile.v0", "locals": [{"name": "context"}, {"name": "dockerfile"}]}
    if arguments := _arguments(request, whole=whole):
        parameters["args"] = arguments
    started = begun if request.epoch is None else float(request.epoch)
    times = _time(started), build.now_text()
    invocation = Digest.of(repr((times, sorted(request.build_args.items()), text)).encode()).hex[:26]
    source = {"source": {"infos": [{"filename": request.dockerfile, "language": "Dockerfile", "data": base64.b64encode(text).decode()}]}}
    builder = {"id": attributes.get("builder-id", "")}
    if attributes.get("version", "v0.2") == "v1":
        external = {"configSource": {"path": request.dockerfile}, "request": parameters}
        internal: dict[str, Any] = {"builderPlatform": str(host())}
        definition = {
            "buildType": "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md",
            "externalParameters": external,
            "internalParameters": internal | (source if whole else {}),
            "resolvedDependencies": _materials(build),
        }
        metadata = {"invocationId": invocation, "startedOn": times[0], "finishedOn": times[1]}
        return Statement(
            "https://slsa.dev/provenance/v1", {"buildDefinition": definition, "runDetails": {"builder": builder, "metadata": metadata}}
        )
    return Statement(
        "https://slsa.dev/provenance/v0.2",
        {
            "builder": builder,
            "buildType": BUILD_TYPE,
            "materials": _materials(build),
            "invocation": {
                "configSource": {"entryPoint": request.dockerfile},
                "parameters": parameters,
                "environment": {"platform": str(host())},
            },
            "metadata": {
                "buildInvocationID": invocation,
                "buildStartedOn": times[0],
                "buildFinishedOn": times[1],
                "completeness": {"parameters": whole, "environment": True, "materials": False},
                "reproducible": attributes.get("reproducible", "") == "true",
                **({"https://mobyproject.org/buildkit@v1#metadata": source} if whole else {}),
            },
        },
    )


def _arguments(request: BuildRequest, *, whole: bool) -> dict[str, str]:
    found = {"target": request.target} if request.target else {}
    if whole:
        found |= {f"build-arg:{name}": value for name, value in request.build_args.items()}
        found |= {f"label:{name}": value for name, value in request.labels.items()}
    return found


def _materials(build: Build) -> list[dict[str, Any]]:
    """The base images as package addresses, with the digest of the manifest they came with, or else their own."""
    found = []
    for name, image in build.used_images():
        digest = Digest.parse(image.repo_digests[0].partition("@")[2]) if image.repo_digests else Digest.parse(image.id)
        repository, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "latest")
        platform = quote(str(image.platform()), safe="")
        if name.startswith(LAYOUT):
            uri = f"pkg:oci/{quote(name.removeprefix(LAYOUT), safe='')}?platform={platform}"
            found.append({"uri": uri, "digest": {digest.algorithm: digest.hex}})
            continue
        found.append({"uri": f"pkg:docker/{repository}@{tag}?platform={platform}", "digest": {digest.algorithm: digest.hex}})
    return sorted(found, key=lambda material: str(material["uri"]))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
