"""Image documents: descriptor, manifest, index and config, of the OCI image spec and of Docker's schema 2.

Theory. A document is known by the digest of its bytes, so a fetched one is *read* here and never written again: whoever
fetched it keeps the bytes. Unknown fields are tolerated (the specs demand it), wrong types are not. What decides how a
document is understood must not be ambiguous (CVE-2021-41190): the transport's media type and the document's own must
agree, and a document that has both ``manifests`` and ``layers`` is refused.

Everything here comes from hostile registries: sizes are capped before parsing, digests are validated while decoding, and
every failure is an ``InvalidArgument`` or ``Corrupt`` that names the document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from tare.errors import Corrupt, InvalidArgument, Unsupported
from tare.oci import media_types
from tare.oci.digest import Digest
from tare.oci.platform import Platform

MANIFEST_LIMIT = 4 << 20
"""Bytes of a manifest or index that we are willing to read (registries refuse larger ones too)."""
CONFIG_LIMIT = 8 << 20
LAYER_COUNT_LIMIT = 512
INDEX_COUNT_LIMIT = 4096

ATTESTED = "vnd.docker.reference.digest"
"""The annotation by which an index's entry says which manifest it is about (BuildKit's attestation storage)."""

NO_TIME = "0001-01-01T00:00:00Z"

_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_T = TypeVar("_T")


class PlatformEntry(msgspec.Struct, frozen=True):
    """The ``platform`` of a descriptor in an index."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")

    def platform(self) -> Platform:
        return Platform.of(self.os, self.architecture, self.variant or "")


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A typed, sized, verifiable pointer to a blob."""

    media_type: str
    digest: Digest
    size: _Size
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None
    platform: PlatformEntry | None = None


class Manifest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One image: its config and its layers, bottom first."""

    schema_version: int
    config: Descriptor
    layers: list[Descriptor]
    media_type: str = ""
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None
    subject: Descriptor | None = None


class Index(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Several manifests under one name, usually one per platform."""

    schema_version: int
    manifests: list[Descriptor]
    media_type: str = ""
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None
    subject: Descriptor | None = None


class Healthcheck(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """How to probe a container; durations in nanoseconds."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class ContainerConfig(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """The ``config`` of an image: what its containers get where the user says nothing."""

    user: str = ""
    exposed_ports: dict[str, Any] | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    volumes: dict[str, Any] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    stop_timeout: int | None = None
    healthcheck: Healthcheck | None = None
    on_build: list[str] | None = None
    shell: list[str] | None = None
    args_escaped: bool | None = None


class RootFS(msgspec.Struct, frozen=True):
    """The layers of an image by the digests of their uncompressed tars, bottom first."""

    diff_ids: list[Digest] | None = None
    type: str = "layers"


class History(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one layer came to be; an ``empty_layer`` changed only the config."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False


class ImageConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image's config document. Its digest is the image's id."""

    architecture: str
    os: str
    rootfs: RootFS
    variant: str | None = None
    os_version: str | None = msgspec.field(default=None, name="os.version")
    created: str | None = None
    author: str | None = None
    comment: str | None = None
    docker_version: str | None = None
    config: ContainerConfig | None = None
    history: list[History] | None = None
    inline_cache: Any = msgspec.field(default=None, name="tare.cache.v1")
    """What a builder may take from this image (``tare.builder.cachedocument``)."""

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        return tuple(self.rootfs.diff_ids or ())

    @property
    def container(self) -> ContainerConfig:
        """The container part, empty where the document has none."""
        return self.config or ContainerConfig()

    def platform(self) -> Platform:
        return Platform.of(self.os or "linux", self.architecture, self.variant or "")


class _Probe(msgspec.Struct, rename="camel"):
    """Only what decides how a manifest is to be read."""

    schema_version: Any = None
    media_type: str | None = None
    manifests: msgspec.Raw = msgspec.Raw()
    layers: msgspec.Raw = msgspec.Raw()
    config: msgspec.Raw = msgspec.Raw()
    fs_layers: msgspec.Raw = msgspec.Raw()

    def has(self, *names: str) -> bool:
        """Whether any of the fields is there and not null."""
        return any(bytes(getattr(self, name)) not in (b"", b"null") for name in names)


def parse_manifest(data: bytes, media_type: str | None = None) -> Manifest | Index:
    """Read a manifest or index that was delivered with ``media_type`` (``None`` or a generic type: unknown).

    Raises ``InvalidArgument`` for anything ambiguous, malformed or too big, ``Unsupported`` for schema 1.
    """
    if len(data) > MANIFEST_LIMIT:
        raise InvalidArgument(f"manifest is larger than {MANIFEST_LIMIT} bytes")
    probe = _decode(data, _Probe, "manifest")
    kind = _manifest_kind(probe, media_types.bare(media_type or ""))
    if kind in media_types.INDEXES:
        index = _decode(data, Index, "image index")
        if len(index.manifests) > INDEX_COUNT_LIMIT:
            raise InvalidArgument(f"image index has more than {INDEX_COUNT_LIMIT} entries")
        return msgspec.structs.replace(index, media_type=kind)
    manifest = _decode(data, Manifest, "manifest")
    if len(manifest.layers) > LAYER_COUNT_LIMIT:
        raise InvalidArgument(f"manifest has more than {LAYER_COUNT_LIMIT} layers")
    return msgspec.structs.replace(manifest, media_type=kind)


def parse_config(data: bytes) -> ImageConfig:
    """Read an image config; raises ``InvalidArgument`` if it is none."""
    if len(data) > CONFIG_LIMIT:
        raise InvalidArgument(f"image config is larger than {CONFIG_LIMIT} bytes")
    config = _decode(data, ImageConfig, "image config")
    if config.rootfs.type != "layers":
        raise InvalidArgument(f'image config: unknown rootfs type "{config.rootfs.type}"')
    return config


def check_config(manifest: Manifest, config: ImageConfig) -> None:
    """Refuse a config that does not describe the manifest's layers one by one."""
    if len(manifest.layers) != len(config.diff_ids):
        raise Corrupt(f"image config names {len(config.diff_ids)} layers (rootfs.diff_ids) but its manifest has {len(manifest.layers)}")


def check_supported(manifest: Manifest) -> None:
    """Refuse manifests that are artifacts (charts, signatures, ...) rather than images."""
    if manifest.config.media_type not in media_types.CONFIGS:
        raise Unsupported(f"unsupported media type {manifest.config.media_type}")
    for layer in manifest.layers:
        if layer.media_type not in media_types.LAYERS:
            raise Unsupported(f"unsupported layer media type {layer.media_type} ({layer.digest})")


def chain_id(diff_ids: Sequence[Digest]) -> Digest:
    """The identity of a stack of layers (OCI image spec, config.md, "Layer ChainID")."""
    if not diff_ids:
        raise InvalidArgument("a chain id needs at least one layer")
    return chain_ids(diff_ids)[-1]


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """The chain id of every prefix of ``diff_ids``, shortest first."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        joined = f"{chain[-1]} {diff_id}".encode() if chain else b""
        chain.append(Digest.sha256(hashlib.sha256(joined).hexdigest()) if chain else diff_id)
    return chain


def encode(document: msgspec.Struct) -> bytes:
    """The bytes of a document that *we* make (import, commit, build); never used on a fetched one."""
    return msgspec.json.encode(document, enc_hook=_plain)


def _manifest_kind(probe: _Probe, delivered: str) -> str:
    if isinstance(probe.schema_version, bool):
        raise InvalidArgument("manifest schema version is not a number")
    if probe.has("fs_layers") or probe.schema_version == 1 or delivered in media_types.SCHEMA1:
        raise Unsupported("manifest schema 1 is not supported: push the image again with a current client")
    if probe.schema_version != 2:
        raise InvalidArgument(f"unsupported manifest schema version {probe.schema_version!r}")
    if probe.has("manifests") and probe.has("layers", "config"):
        raise InvalidArgument('ambiguous manifest: it has both "manifests" and "layers" or "config"')
    known = media_types.INDEXES | media_types.MANIFESTS
    if delivered in known and probe.media_type and probe.media_type != delivered:
        raise InvalidArgument(f"manifest was delivered as {delivered} but calls itself {probe.media_type}")
    kind = delivered if delivered in known else probe.media_type
    if not kind:
        kind = media_types.OCI_INDEX if probe.has("manifests") else media_types.OCI_MANIFEST
    if kind not in known:
        raise Unsupported(f"unsupported manifest media type {kind}")
    if (kind in media_types.INDEXES) != (probe.has("manifests")):
        raise InvalidArgument(f"document does not have the shape of its media type {kind}")
    return kind


def _decode(data: bytes, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_hook)
    except InvalidArgument as error:
        raise InvalidArgument(f"{what}: {error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"malformed {what}: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Digest):
        return str(value)
    raise NotImplementedError


def _hook(kind: type[Any], value: Any) -> Any:
    if kind is Digest and isinstance(value, str):
        return Digest.parse(value)
    raise InvalidArgument(f"expected a digest, got {type(value).__name__}")
