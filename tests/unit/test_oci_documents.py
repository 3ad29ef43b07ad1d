"""Manifests, indexes, configs and platforms: what is read, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image_builder import build_image, build_index
from tare.errors import Corrupt, InvalidArgument, TareError, Unsupported
from tare.oci.digest import Digest
from tare.oci.image import (
    Index,
    Manifest,
    chain_ids,
    check_config,
    check_supported,
    encode,
    parse_config,
    parse_manifest,
)
from tare.oci.platform import Platform, choose

IMAGE = build_image({"a": b"1"}, {"b": b"2"})


@pytest.mark.parametrize("docker", [False, True])
def test_manifest_and_index(docker: bool) -> None:
    built = build_image({"a": b"1"}, docker=docker)
    manifest = parse_manifest(built.manifest, built.media_type + "; charset=utf-8")
    assert isinstance(manifest, Manifest) and manifest.media_type == built.media_type
    assert [layer.digest for layer in manifest.layers] == built.layers
    check_supported(manifest)
    check_config(manifest, parse_config(built.blobs[built.image_id]))
    raw, kind = build_index({"linux/arm64/v8": built}, docker)
    index = parse_manifest(raw, kind)
    assert isinstance(index, Index) and index.manifests[0].platform
    assert index.manifests[0].platform.platform() == Platform("linux", "arm64")


def test_what_we_encode_we_read() -> None:
    manifest = parse_manifest(IMAGE.manifest)
    assert parse_manifest(encode(manifest)) == manifest
    config = parse_config(IMAGE.blobs[IMAGE.image_id])
    assert parse_config(encode(config)) == config


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(IMAGE.manifest), **fields}).encode()


@pytest.mark.parametrize(
    ("raw", "media_type", "kind"),
    [
        (changed(manifests=[]), None, InvalidArgument),
        (changed(mediaType="application/vnd.oci.image.index.v1+json"), None, InvalidArgument),
        (changed(), "application/vnd.docker.distribution.manifest.v2+json", InvalidArgument),
        (changed(), "application/vnd.docker.distribution.manifest.v1+prettyjws", Unsupported),
        (changed(schemaVersion=1), None, Unsupported),
        (changed(schemaVersion=True), None, InvalidArgument),
        (changed(schemaVersion=3), None, InvalidArgument),
        (changed(mediaType="application/x-thing"), None, Unsupported),
        (changed(layers=None), None, InvalidArgument),
        (changed(layers=[{"mediaType": "x", "digest": 4, "size": 1}]), None, InvalidArgument),
        (changed(layers=[{"mediaType": "x", "digest": "sha256:../../x", "size": 1}]), None, InvalidArgument),
        (changed(layers=[{"mediaType": "x", "digest": IMAGE.digest, "size": -1}]), None, InvalidArgument),
        (changed(layers=[json.loads(IMAGE.manifest)["layers"][0]] * 600), None, InvalidArgument),
        (b"", None, InvalidArgument),
        (b"<html>", None, InvalidArgument),
        (b"[]", None, InvalidArgument),
        (b'{"schemaVersion": 2, "x": ' + b"[" * 200_000, None, InvalidArgument),
        (b" " * (5 << 20), None, InvalidArgument),
    ],
)
def test_manifests_refused(raw: bytes, media_type: str | None, kind: type[TareError]) -> None:
    with pytest.raises(kind):
        parse_manifest(raw, media_type)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)))
def test_configs_are_read_or_refused(value: Any) -> None:
    document = json.loads(IMAGE.blobs[IMAGE.image_id])
    for name in ("config", "rootfs", "history", "architecture"):
        try:
            parse_config(json.dumps({**document, name: value}).encode())
        except InvalidArgument:
            pass


STRANGE = (
    None,
    True,
    -1,
    1 << 63,
    1 << 70,
    1e308,
    "",
    "x" * 5000,
    "\x00",
    "sha256:",
    "../../etc/passwd",
    [],
    {},
    [[]],
    {"": {}},
    [None] * 600,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*path, key))


def _changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = json.loads(json.dumps(document))
    target = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return changed


def test_no_document_crashes_the_reader() -> None:
    """CVE-2021-21285: every value of a manifest, an index and a config replaced by strange ones; cut and garbled bytes; deep nesting."""
    index, kind = build_index({"linux/arm64/v8": IMAGE})
    for raw, read in (
        (IMAGE.manifest, lambda raw: parse_manifest(raw, IMAGE.media_type)),
        (index, lambda raw: parse_manifest(raw, kind)),
        (IMAGE.blobs[IMAGE.image_id], lambda raw: (parse_config(raw).platform(), parse_config(raw).diff_ids, parse_config(raw).container)),
    ):
        document = json.loads(raw)
        changes = [json.dumps(_changed(document, path, value)).encode() for path in _places(document) for value in STRANGE]
        changes += [raw[:length] for length in range(0, len(raw), 7)]
        changes += [raw[:place] + bytes([byte]) + raw[place + 1 :] for place in range(0, len(raw), 5) for byte in (0, 0x22, 0x7B, 0xFF)]
        changes += [b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"[" * 200_000, b"\xff\xfe", b'{"schemaVersion":2,"schemaVersion":1}']
        for changed in changes:
            try:
                read(changed)
            except TareError as error:
                assert len(str(error)) < 12_000


def test_unknown_fields_and_nulls_are_tolerated() -> None:
    document = json.loads(IMAGE.blobs[IMAGE.image_id])
    document.update({"novel": {"x": [1]}, "history": None, "container_config": {"Cmd": None}})
    document["config"].update({"Volumes": None, "Labels": None, "ExposedPorts": {"80/tcp": {}}, "Future": 1})
    config = parse_config(json.dumps(document).encode())
    assert config.container.exposed_ports == {"80/tcp": {}} and config.container.volumes is None


def test_layer_count_must_agree() -> None:
    manifest = parse_manifest(IMAGE.manifest)
    assert isinstance(manifest, Manifest)
    with pytest.raises(Corrupt):
        check_config(manifest, parse_config(build_image({"a": b""}).blobs.popitem()[1]))


def test_chain_ids() -> None:
    first, second = Digest.of(b"1"), Digest.of(b"2")
    assert chain_ids([first]) == [first]
    assert chain_ids([first, second])[1] == Digest.of(f"{first} {second}".encode())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AArch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/i686", "linux/386"),
        ("s390x", "linux/s390x"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_platform_names(text: str, expected: str) -> None:
    assert str(Platform.parse(text)) == expected


@pytest.mark.parametrize("text", ["", "a/b/c/d", "linux/", "li nux/amd64", "nonsense"])
def test_bad_platforms(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("wanted", "offered", "position"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/386"], 0),
        ("linux/amd64", ["linux/arm64", None], None),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
    ],
)
def test_choice(wanted: str, offered: list[str | None], position: int | None) -> None:
    assert choose(Platform.parse(wanted), [Platform.parse(text) if text else None for text in offered]) == position
