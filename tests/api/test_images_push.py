"""push, save and load with the real docker command, a real registry, skopeo."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from debian_registry import docker_registry
from engine_world import Daemon
from image_builder import build_image, tar_of, write_layout

pytestmark = [pytest.mark.root, pytest.mark.peer]


@pytest.fixture(params=["open"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A registry on loopback; with the parameter ``closed`` it wants alice's password."""
    with docker_registry(tmp_path, closed=request.param == "closed") as address:
        yield address


def image_id(engine: Daemon, name: str) -> str:
    return engine.docker("image", "inspect", "-f", "{{.Id}}", name).stdout.strip()


def forget(engine: Daemon, *names: str) -> None:
    engine.docker("rmi", "-f", *names, check=False)


def lines(text: str) -> list[str]:
    return [line.split(": ", 1)[-1] for line in text.splitlines()]


def test_push_of_an_imported_image_keeps_its_digest(engine: Daemon, registry: str, tmp_path: Path) -> None:
    name, other = f"{registry}/one", f"{registry}/two:x"
    tar = tmp_path / "root.tar"
    tar.write_bytes(tar_of({"etc/": b"", "etc/name": os.urandom(3000)}))
    engine.docker("import", str(tar), name)
    try:
        original = image_id(engine, name)
        first = engine.docker("push", name).stdout
        assert first.splitlines()[1] == f"The push refers to repository [{name}]"
        assert lines(first)[2:4] == ["Preparing", "Pushed"]
        second = engine.docker("push", name).stdout
        assert lines(second)[3] == "Layer already exists"
        assert first.splitlines()[-1] == second.splitlines()[-1]
        engine.docker("tag", name, other)
        assert lines(engine.docker("push", other).stdout)[2] == "Mounted from one"
        forget(engine, original)
        engine.docker("pull", "-q", name)
        assert image_id(engine, name) == original
        digest = first.splitlines()[-1].split()[2]
        assert f"{name}@{digest}" in engine.docker("image", "inspect", name).stdout
        shown = engine.tare("push", name).stdout
        assert shown == second
        inspected = subprocess.run(
            ["skopeo", "inspect", "--tls-verify=false", f"docker://{name}"], capture_output=True, text=True, check=True
        ).stdout
        assert json.loads(inspected)["Digest"] == digest
    finally:
        forget(engine, name, other)


def test_push_of_a_pulled_image_sends_the_very_manifest(engine: Daemon, registry: str, tmp_path: Path) -> None:
    built = build_image({"a": b"1" * 5000}, {"b": b"2" * 5000}, compression="zstd")
    layout = write_layout(built, tmp_path / "layout")
    copy = ["skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false", "--preserve-digests"]
    subprocess.run([*copy, f"oci:{layout}:latest", f"docker://{registry}/zs:1"], check=True, capture_output=True)
    name = f"{registry}/elsewhere/zs:2"
    try:
        engine.docker("pull", "-q", f"{registry}/zs:1")
        engine.docker("tag", f"{registry}/zs:1", name)
        assert f"digest: {built.digest} size: {len(built.manifest)}" in engine.docker("push", name).stdout
    finally:
        forget(engine, f"{registry}/zs:1", name)


def test_push_refusals(engine: Daemon, registry: str) -> None:
    missing = engine.docker("push", "nosuch-image", check=False)
    assert missing.returncode == 1
    assert missing.stderr.strip() == "An image does not exist locally with the tag: nosuch-image"
    assert "The push refers to repository [docker.io/library/nosuch-image]" in missing.stdout
    name = f"{registry}/refused"
    engine.docker("tag", "busybox", name)
    try:
        assert engine.docker("push", f"{name}:other", check=False).stderr.strip() == f"tag does not exist: {name}:other"
    finally:
        forget(engine, name)


@pytest.mark.parametrize("registry", ["closed"], indirect=True)
def test_push_without_and_with_credentials(engine: Daemon, registry: str, tmp_path: Path) -> None:
    name = f"{registry}/secret"
    engine.docker("tag", "busybox", name)
    try:
        refused = engine.docker("push", name, check=False)
        assert refused.returncode == 1
        assert "no basic auth credentials" in refused.stderr
        settings = {"auths": {registry: {"auth": "YWxpY2U6eA=="}}}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        wrong = tmp_path / "wrong"
        wrong.mkdir()
        (wrong / "config.json").write_text(json.dumps({"auths": {registry: {"auth": "YWxpY2U6eQ=="}}}))
        denied = engine.tare("push", name, check=False, env={**os.environ, "DOCKER_CONFIG": str(wrong)})
        assert denied.returncode == 1
        assert "unauthorized: authentication required" in denied.stderr
        assert "digest: sha256:" in engine.tare("push", name, env={**os.environ, "DOCKER_CONFIG": str(tmp_path)}).stdout
        assert "digest: sha256:" in engine.docker("push", name, env={**os.environ, "DOCKER_CONFIG": str(tmp_path)}).stdout
    finally:
        forget(engine, name)


def test_save_and_load_give_the_same_image(engine: Daemon, tmp_path: Path) -> None:
    tar, archive = tmp_path / "root.tar", tmp_path / "saved.tar"
    tar.write_bytes(tar_of({"etc/": b"", "etc/name": os.urandom(3000)}))
    engine.docker("import", str(tar), "saved:1")
    engine.docker("tag", "saved:1", "saved:2")
    try:
        original = image_id(engine, "saved:1")
        engine.docker("save", "-o", str(archive), "saved")
        with tarfile.open(archive) as opened:
            manifest = json.load(opened.extractfile("manifest.json"))  # type: ignore[arg-type]
            assert {"index.json", "oci-layout", manifest[0]["Config"], *manifest[0]["Layers"]} <= set(opened.getnames())
        assert manifest[0]["RepoTags"] == ["saved:1", "saved:2"]
        for kind in ("docker-archive", "oci-archive"):
            engine.tare("save", "-o", str(tmp_path / "one.tar"), "saved:1")
            (tmp_path / "one.tar").chmod(0o600)
            target = tmp_path / kind
            source = f"{kind}:{tmp_path}/one.tar"
            subprocess.run(["skopeo", "copy", "--insecure-policy", source, f"dir:{target}"], check=True, capture_output=True)
            assert (target / original.removeprefix("sha256:")).exists()
            (tmp_path / "one.tar").unlink()
        forget(engine, original)
        assert engine.docker("load", "-i", str(archive)).stdout.splitlines() == ["Loaded image: saved:1", "Loaded image: saved:2"]
        assert image_id(engine, "saved:2") == original
        assert engine.docker("save", original, text=False).stdout == engine.docker("save", original, text=False).stdout
    finally:
        forget(engine, "saved:1", "saved:2")


def test_load_of_a_layout_keeps_manifest_and_blobs(engine: Daemon, registry: str, tmp_path: Path) -> None:
    built = build_image({"kept": os.urandom(2000)})
    layout = write_layout(built, tmp_path / "layout", f"{registry}/kept:1")
    try:
        shown = engine.docker("load", input=_packed(layout), text=False).stdout.decode()
        assert shown == f"Loaded image: {registry}/kept:1\n"
        assert image_id(engine, f"{registry}/kept:1") == built.image_id
        assert f"digest: {built.digest} " in engine.docker("push", f"{registry}/kept:1").stdout
    finally:
        forget(engine, f"{registry}/kept:1")


def test_load_refuses_what_does_not_match_its_digest(engine: Daemon, tmp_path: Path) -> None:
    built = build_image({"bad": os.urandom(2000)})
    layout = write_layout(built, tmp_path / "layout", "bad:1")
    (layout / "blobs" / "sha256" / built.layers[0].removeprefix("sha256:")).write_bytes(b"x" * 5)
    refused = engine.docker("load", input=_packed(layout), text=False, check=False)
    assert refused.returncode == 1
    assert engine.docker("image", "inspect", "bad:1", check=False).returncode == 1
    for junk in (b"", b"junk", bytes(2048), tar_of({"manifest.json": b"[{}]"}), tar_of({"manifest.json": b"[" * 100000})):
        refused = engine.docker("load", input=junk, text=False, check=False)
        assert refused.returncode == 1, junk[:20]
        assert b"internal error" not in refused.stderr


def _packed(directory: Path) -> bytes:
    return subprocess.run(["tar", "-czf", "-", "-C", directory, "."], capture_output=True, check=True).stdout
