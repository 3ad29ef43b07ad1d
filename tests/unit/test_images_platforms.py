"""Families of images: what a registry or an archive may say about them, and what must not get through."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from distribution_world import World
from fake_registry import FakeRegistry, serving
from image_builder import OCI, BuiltImage, build_image, sha256
from tare.distribution.progress import Progress
from tare.errors import InvalidArgument, NotFound, TareError, Unsupported
from tare.images.archive_contents import contents
from tare.images.archive_read import Archive
from tare.images.retention import prunable
from tare.images.service import Extent
from tare.oci.platform import Platform
from tare.store.tar.entry import Entry, Kind
from tare.store.tar.writer import END, header, padding

MANIFEST, INDEX = f"{OCI}manifest.v1+json", f"{OCI}index.v1+json"
ARM = Platform.parse("linux/arm64")


def descriptor(raw: bytes, kind: str = MANIFEST, **more: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": sha256(raw), "size": len(raw)} | more


def index_of(*entries: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries, **more}).encode()


def platform(text: str) -> dict[str, str]:
    return dict(zip(("os", "architecture"), text.split("/"), strict=True))


def artifact(content: bytes, subject: dict[str, Any] | None = None) -> BuiltImage:
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2},
        "layers": [{"mediaType": "text/plain", "digest": sha256(content), "size": len(content)}],
    }
    if subject:
        document["subject"] = subject
    return BuiltImage(json.dumps(document).encode(), MANIFEST, "", [], [], {sha256(b"{}"): b"{}", sha256(content): content})


def with_world(root: Path, test: Callable[[World, FakeRegistry], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with serving() as registry:
            world = World(root)
            try:
                await test(world, registry)
            finally:
                await world.close()

    asyncio.run(run())


AMD, OTHER = build_image({"a": b"amd"}), build_image({"a": b"arm"}, architecture="arm64")


def publish(registry: FakeRegistry, *more: dict[str, Any]) -> bytes:
    registry.add(AMD, tag="amd")
    registry.add(OTHER, tag="arm")
    raw = index_of(
        descriptor(AMD.manifest, platform=platform("linux/amd64")), descriptor(OTHER.manifest, platform=platform("linux/arm64")), *more
    )
    registry.add_document(raw, INDEX)
    return raw


def test_a_missing_or_lying_attestation_does_not_fail_the_pull(tmp_path: Path) -> None:
    async def test(world: World, registry: FakeRegistry) -> None:
        about = {"vnd.docker.reference.digest": AMD.digest}
        lying = artifact(b"attested")
        registry.add(lying, tag="lying")
        registry.blobs[sha256(b"attested")] = b"something"
        for missing in (descriptor(b"nowhere", annotations=about), descriptor(lying.manifest, annotations=about)):
            publish(registry, missing)
            told: list[Progress] = []
            image = await world.images.pull(f"{registry.address}/app", progress=told.append)
            assert image.id == AMD.image_id
            assert any(line.status.startswith("WARNING: an attestation") for line in told)
            assert not world.images.record(image).attachments

    with_world(tmp_path, test)


@pytest.mark.parametrize("answer", ["html", "loop", "flood", "huge"])
def test_hostile_lists_of_referrers(tmp_path: Path, answer: str) -> None:
    """A registry that has no list, one whose list refers to itself, one that never ends, one that names more than anybody wants."""

    async def test(world: World, registry: FakeRegistry) -> None:
        registry.add(AMD)
        endless = [artifact(b"%d" % number) for number in range(80)]
        looping = artifact(b"loop", descriptor(AMD.manifest))
        big = json.loads(artifact(b"x").manifest)
        big["layers"][0]["size"] = 1 << 40
        huge = json.dumps(big).encode()
        for each in (*endless, looping):
            registry.add(each, tag=each.digest[7:19])
        registry.add_document(huge, MANIFEST, tag="huge")
        listed = {
            "loop": [descriptor(looping.manifest), descriptor(AMD.manifest)],
            "flood": [descriptor(each.manifest) for each in endless],
            "huge": [descriptor(huge)],
        }

        async def referrers(request: web.Request) -> web.StreamResponse | None:
            if "/referrers/" not in request.path:
                return None
            if answer == "html":
                return web.Response(text="<html>", content_type="text/html")
            return web.Response(body=index_of(*listed[answer]), content_type=INDEX, headers={"Link": f'<{request.path}?n=1>; rel="next"'})

        registry.faults.append(referrers)
        pull = world.images.pull(f"{registry.address}/app", extent=Extent(referrers=True))
        if answer in ("flood", "huge"):
            with pytest.raises(TareError, match="belong to the image"):
                await pull
            with pytest.raises(NotFound):
                world.images.get(f"{registry.address}/app")
        else:
            image = await pull
            assert world.images.record(image).artifacts == ([looping.digest] if answer == "loop" else [])
        assert len(registry.requests) < 400

    with_world(tmp_path, test)


def test_crash_leaves_families_that_fsck_accepts_and_a_mend_can_shrink(tmp_path: Path) -> None:
    async def test(world: World, registry: FakeRegistry) -> None:
        publish(registry)
        name = f"{registry.address}/app"
        image = await world.images.pull(name, extent=Extent(every_platform=True))
        assert (await world.images.check(tmp_path / "data")).problems == []
        assert world.images.get(name, ARM).id == OTHER.image_id
        assert [each.held for each in world.images.list() if each.id == OTHER.image_id] == [True]
        everything = world.images.list()
        assert prunable(everything, everything, True, {}, 0.0) == []
        assert [each.id for each in prunable(everything, everything, False, {}, 0.0)] == [image.id]
        other = world.images.get(OTHER.image_id)
        world.content.delete(world.images.blobs_of(other)[0])
        assert (await world.images.check(tmp_path / "data", repair=True)).unrepaired == 0
        family = world.images.siblings.family(world.images.record(image))
        assert family is not None and not family.whole
        removals, _ = await world.images.prune(dangling=False)
        assert {removal.name for removal in removals if removal.kind == "Deleted"} == {AMD.image_id, OTHER.image_id}
        assert world.leftovers() == []

    with_world(tmp_path, test)


def test_an_index_gets_only_what_came_with_it(tmp_path: Path) -> None:
    """It may name what is here for other reasons, somebody's private image: that is not sent along with it."""

    async def test(world: World, registry: FakeRegistry) -> None:
        private = registry.add(build_image({"secret": b"x"}, architecture="arm64"), name="private")
        registry.add(AMD)
        greedy = index_of(
            descriptor(AMD.manifest, platform=platform("linux/amd64")), descriptor(private.manifest, platform=platform("linux/arm64"))
        )
        registry.add_document(greedy, INDEX)
        await world.images.pull(f"{registry.address}/private")
        image = await world.images.pull(f"{registry.address}/app")
        family = world.images.siblings.family(world.images.record(image))
        assert family is not None and not family.whole
        assert [part.image_id for part in family.parts] == [AMD.image_id]
        world.images.tag(image.id, f"{registry.address}/elsewhere", "1")
        await world.images.publisher.push(f"{registry.address}/elsewhere", "1", None, lambda progress: None)
        assert f"elsewhere:{AMD.digest}" in registry.manifests
        assert f"elsewhere:{private.digest}" not in registry.manifests

    with_world(tmp_path, test)


def archive_of(root: Path, files: dict[str, bytes]) -> Archive:
    tar = b"".join(header(Entry(n.encode(), Kind.FILE, 0o644, size=len(d))) + d + padding(len(d)) for n, d in files.items()) + END
    return Archive.receive([tar], root / "scratch")


def layout(root: Path, top: bytes, *documents: bytes, images: tuple[BuiltImage, ...] = (), **more: bytes) -> Archive:
    blobs = {sha256(raw): raw for raw in documents}
    for image in images:
        blobs |= {**image.blobs, image.digest: image.manifest}
    files = {f"blobs/sha256/{digest[7:]}": data for digest, data in blobs.items()}
    return archive_of(root, {**files, "index.json": top, **more})


def test_a_layout_is_read_once_however_it_is_drawn(tmp_path: Path) -> None:
    """Indexes that all name all of the next level: without care the third level is read a million times."""
    leaf = descriptor(AMD.manifest)
    inner = [index_of(leaf, leaf, annotations={"n": str(number)}) for number in range(60)]
    outer = [index_of(*(descriptor(raw, INDEX) for raw in inner), annotations={"n": str(number)}) for number in range(60)]
    top = index_of(*(descriptor(raw, INDEX) for raw in outer))
    archive = layout(tmp_path, top, *inner, *outer, images=(AMD,))
    found = contents(archive)
    archive.close()
    assert [image.id for family in found for image in family] == [AMD.image_id]
    deeper = index_of(descriptor(outer[0], INDEX))
    archive = layout(tmp_path, index_of(descriptor(deeper, INDEX)), deeper, *inner, *outer, images=(AMD,))
    with pytest.raises(Unsupported, match="nested too deep"):
        contents(archive)
    archive.close()


def test_what_a_layout_leads_to(tmp_path: Path) -> None:
    note = artifact(b"note", descriptor(AMD.manifest))
    half = artifact(b"half", descriptor(AMD.manifest))
    inner = index_of(
        descriptor(AMD.manifest, platform=platform("linux/amd64")),
        descriptor(OTHER.manifest, platform=platform("linux/arm64")),
        descriptor(b"missing", platform=platform("linux/s390x")),
    )
    named = {"org.opencontainers.image.ref.name": "app.example/app:1"}
    top = index_of(descriptor(inner, INDEX, annotations=named), descriptor(note.manifest), descriptor(half.manifest))
    archive = layout(tmp_path, top, inner, half.manifest, images=(AMD, OTHER, note))
    ((other, lead),) = contents(archive)
    assert (other.id, lead.id, other.names) == (OTHER.image_id, AMD.image_id, ())
    assert [name.familiar() for name in lead.names] == ["app.example/app:1"]
    assert [each.digest for each in lead.artifacts] == [note.digest]  # not the one whose blob is missing
    ((arm,),) = contents(archive, ARM)
    assert arm.id == OTHER.image_id and arm.names == lead.names
    with pytest.raises(NotFound):
        contents(archive, Platform.parse("linux/s390x"))
    archive.close()
    only = layout(tmp_path, index_of(descriptor(note.manifest)), images=(note,))
    with pytest.raises((NotFound, Unsupported)):
        contents(only)
    only.close()
    lying = layout(tmp_path, index_of(descriptor(AMD.manifest)), images=(AMD,))
    lying._files[f"blobs/sha256/{AMD.digest[7:]}"] = lying._files[f"blobs/sha256/{AMD.image_id[7:]}"]
    with pytest.raises((InvalidArgument, TareError), match="does not match its digest"):
        contents(lying)
    lying.close()
