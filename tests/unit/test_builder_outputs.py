"""The pure parts behind a build's outputs: values of flags, annotations, cache documents, room in the cache, foreign programs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tare.builder import cachedocument, emulation
from tare.builder.cache import CacheRecord
from tare.builder.cacheexport import check
from tare.builder.publication import Annotations, Style
from tare.builder.service import Room
from tare.cli import buildvalues
from tare.cli.failures import CliError
from tare.errors import Corrupt, InvalidArgument
from tare.oci.platform import Platform
from tare.wire.build import Export


def test_outputs() -> None:
    found = buildvalues.outputs(["out", "-", "type=oci,dest=x.tar", "type=image,name=a"], push=True, load=False)
    assert [(each.type, each.destination, each.fetched) for each in found] == [
        ("local", "out", True),
        ("tar", "-", True),
        ("oci", "x.tar", True),
        ("image", None, False),
    ]
    assert found[3].attributes == {"name": "a", "push": "true"}
    assert [each.type for each in buildvalues.outputs([], push=True, load=True)] == ["registry", "docker"]
    assert buildvalues.fields('type=local,"dest=a,b",flag', "output") == {"type": "local", "dest": "a,b", "flag": "true"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=local", "dest is required"),
        ("dest=x", "type is required"),
        ("type=image,dest=x", "dest is not supported"),
        ('type=local,"dest=x', "invalid argument"),
        ("type=oci,tar=false", "dest directory is required"),
    ],
)
def test_outputs_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(CliError, match=message):
        buildvalues.output(text)


def test_caches() -> None:
    assert buildvalues.caches(["user/app:cache"], "cache-from") == [("registry", {"ref": "user/app:cache"})]
    assert buildvalues.caches(["type=inline"], "cache-to") == [("inline", {})]
    for text, flag, message in (
        ("type=inline", "cache-from", "read from its image"),
        ("type=gha", "cache-to", "not offered"),
        ("type=local", "cache-to", "dest is required"),
        ("type=registry", "cache-from", "ref is required"),
        ("mode=max", "cache-to", "type required"),
    ):
        with pytest.raises(CliError, match=message):
            buildvalues.caches([text], flag)
    for kind, attributes, message in (
        ("registry", {"ref": "x", "mode": "all"}, "cache mode"),
        ("registry", {"ref": "x", "image-manifest": "false"}, "not offered"),
        ("local", {"colour": "red"}, "unknown attribute"),
        ("s3", {}, "not offered"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            check([Export(kind, attributes)])


def test_attestations() -> None:
    assert buildvalues.attestations([], "true", "mode=max") == {"sbom": {}, "provenance": {"mode": "max"}}
    assert buildvalues.attestations(["type=sbom", "type=provenance,mode=min"], "", "false") == {"sbom": {}}
    with pytest.raises(CliError, match="not offered"):
        buildvalues.attestations(["type=else"], "", "")


def test_annotations() -> None:
    found = Annotations.parse(
        ["a=b", "index:c=d", "manifest,index:e=f:g", "manifest[linux/arm64]:only=arm", "x:y=z"],
        {"annotation.k": "v", "annotation-index-descriptor.m": "n", "name": "no"},
    )
    assert found.of("manifest") == {"a": "b", "e": "f:g", "x:y": "z", "k": "v"}
    assert found.of("manifest", "linux/arm64") == {"a": "b", "e": "f:g", "only": "arm", "x:y": "z", "k": "v"}
    assert found.of("index") == {"c": "d", "e": "f:g"} and found.of("index-descriptor") == {"m": "n"}
    with pytest.raises(InvalidArgument):
        Annotations.parse(["none"])
    assert Style.of({"compression": "zstd"}, (), oci=False).oci  # Docker's own manifests know no zstd
    assert not Style.of({}, (), oci=False).oci and Style.of({}, ["a=b"], oci=False).oci


def used(*steps: tuple[str, str]) -> list[cachedocument.Used]:
    return [((key,), CacheRecord("then", diff_id)) for key, diff_id in steps]


def test_cache_documents() -> None:
    found = cachedocument.document(used(("a", "sha256:1"), ("b", ""), ("c", "sha256:2"), ("a", "sha256:1"), ("d", "sha256:1")))
    assert found.layers == ["sha256:1", "sha256:2"]
    assert [(step.keys, step.layer) for step in found.steps] == [(["a"], 0), (["b"], -1), (["c"], 1), (["d"], 0)]
    assert cachedocument.parse(msgspec.json.encode(found)) == found
    own = cachedocument.document(used(("a", "sha256:1"), ("b", ""), ("c", "sha256:9")), ["sha256:0", "sha256:1"])
    assert [(step.keys, step.layer) for step in own.steps] == [(["a"], 1), (["b"], -1)]
    wrong = [
        b"",
        b"[]",
        b'{"steps":[{"keys":["a"],"created":"","layer":0}]}',
        b'{"mounts":[{"key":"k","layer":-2}],"layers":["x"]}',
    ]
    for raw in wrong:
        with pytest.raises(Corrupt):
            cachedocument.parse(raw)


def test_room(tmp_path: Path) -> None:
    assert Room().keep(100, tmp_path) == 0
    assert Room(reserved=30).keep(100, tmp_path) == 30
    assert Room(most=40).keep(100, tmp_path) == 40
    assert Room(reserved=50, most=40).keep(100, tmp_path) == 50
    assert Room(free=1).keep(100, tmp_path) == 100
    assert Room(free=1 << 60).keep(100, tmp_path) == 1
    assert Room(free=1 << 60, reserved=20).keep(100, tmp_path) == 20


def test_programs_of_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulation, "_HANDLERS", tmp_path)
    monkeypatch.setattr(emulation, "host", lambda: Platform.parse("linux/amd64"))
    arm, big = Platform.parse("linux/arm64"), Platform.parse("linux/s390x")
    assert emulation.missing(Platform.parse("linux/amd64")) == ""
    assert "register an emulator" in emulation.missing(arm)
    magic = "7f454c460201010000000000000000000200b700"
    mask = "ffffffffffffff00fffffffffffffffffeffffff"
    text = f"enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: {{}}\noffset 0\nmagic {magic}\nmask {mask}\n"
    (tmp_path / "status").write_text("enabled")
    (tmp_path / "qemu-aarch64").write_text(text.format("OC"))
    assert emulation.missing(arm)  # without F its program is not found from inside a container
    (tmp_path / "qemu-aarch64").write_text(text.format("OCF"))
    assert emulation.missing(arm) == "" and emulation.missing(big)
    (tmp_path / "qemu-aarch64").write_text(text.format("OCF").replace("enabled", "disabled"))
    assert emulation.missing(arm)
