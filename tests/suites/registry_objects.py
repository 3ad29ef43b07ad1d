"""The contract of every place of a registry's content, and of the registry's storage over it, whatever the place.

Subclass ``ObjectsContract`` and ``StorageContract`` with a fixture ``place``: the text for ``open_storage``.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tare.oci.digest import Digest
from tare.registry import upkeep
from tare.registry.errors import RegistryError
from tare.registry.objects import Busy, Objects
from tare.registry.places import open_storage
from tare.registry.quotas import Quotas
from tare.registry.storage import Storage

OCI = "application/vnd.oci.image.manifest.v1+json"
BIG = 9 << 20


def upload_id(number: int = 1) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


@pytest.fixture
def storage(place: str) -> Iterator[Storage]:
    found = open_storage(place)
    yield found
    found.close()


@pytest.fixture
def objects(storage: Storage) -> Objects:
    return storage.objects


def uploaded(objects: Objects, data: bytes, number: int = 1) -> str:
    upload = upload_id(number)
    objects.begin(upload, "a/b")
    writer = objects.upload_writer(upload)
    for start in range(0, len(data), 1 << 20):
        writer.write(memoryview(data)[start : start + (1 << 20)])
    writer.close()
    return upload


class ObjectsContract:
    def test_documents(self, objects: Objects) -> None:
        with pytest.raises(FileNotFoundError):
            objects.get("repositories/a/_tags/v1")
        assert objects.modified("repositories/a/_tags/v1") is None
        assert objects.remove("repositories/a/_tags/v1") is False
        before = time.time()
        for tag, data in (("v1", b"one"), ("v2", b""), ("v10", b"ten"), ("v1", b"other")):
            objects.put(f"repositories/a/_tags/{tag}", data)
        objects.put("repositories/a/b/_tags/x", b"")
        assert objects.get("repositories/a/_tags/v1") == b"other"
        assert objects.get("repositories/a/_tags/v2") == b""
        assert objects.names("repositories/a/_tags") == ["v1", "v10", "v2"]
        assert objects.names("repositories/a") == ["_tags", "b"]
        assert objects.names("repositories/none") == []
        assert abs((objects.modified("repositories/a/_tags/v1") or 0) - before) < 30
        assert objects.remove("repositories/a/_tags/v1") is True
        assert objects.names("repositories/a/_tags") == ["v10", "v2"]

    def test_a_document_is_no_folder(self, objects: Objects) -> None:
        objects.put("repositories/a", b"x")
        assert objects.names("repositories/a") == []
        with pytest.raises(FileNotFoundError):
            objects.get("repositories/a/b")

    @pytest.mark.parametrize("size", [0, 1, 70_000, BIG])
    def test_uploads_become_blobs(self, objects: Objects, size: int) -> None:
        data = os.urandom(size)
        digest = Digest.of(data)
        upload = uploaded(objects, data)
        assert (objects.owner(upload), objects.upload_size(upload)) == ("a/b", size)
        assert b"".join(objects.read_upload(upload)) == data
        assert objects.size(digest) is None
        objects.publish(upload, digest, size)
        objects.publish(upload, digest, size)
        objects.drop(upload)
        objects.drop(upload)
        assert objects.owner(upload) is None
        assert objects.size(digest) == size
        assert b"".join(objects.read(digest, 0, size)) == data
        assert b"".join(objects.read(digest, size // 3, size // 2)) == data[size // 3 : size // 2]
        file = objects.file(digest)
        if file is not None:
            with file:
                assert file.read() == data
        assert list(objects.blobs()) == [digest]
        objects.tidy(time.time() + 60)
        assert b"".join(objects.read(digest, 0, size)) == data

    def test_uploads_go_on_where_they_were(self, objects: Objects, place: str) -> None:
        upload = uploaded(objects, b"before ")
        other = open_storage(place)
        writer = other.objects.upload_writer(upload)
        assert writer.offset == 7
        writer.write(b"after")
        writer.close()
        writer.close()
        other.close()
        assert b"".join(objects.read_upload(upload)) == b"before after"
        assert [name for name, _ in objects.uploads()] == [upload]
        objects.drop(upload)
        assert not list(objects.uploads())
        assert objects.owner(upload) is None

    def test_one_writer(self, objects: Objects) -> None:
        upload = uploaded(objects, b"x")
        writer = objects.upload_writer(upload)
        with pytest.raises(Busy):
            objects.upload_writer(upload)
        writer.close()
        objects.upload_writer(upload).close()

    def test_hidden_blobs(self, objects: Objects) -> None:
        data = os.urandom(70_000)
        digest, upload = Digest.of(data), uploaded(objects, data)
        objects.publish(upload, digest, len(data))
        objects.drop(upload)
        objects.hide(digest)
        assert (objects.size(digest), list(objects.blobs()), list(objects.hidden())) == (None, [], [digest])
        with pytest.raises(FileNotFoundError):
            b"".join(objects.read(digest, 0, 1))
        assert objects.unhide(digest)
        assert b"".join(objects.read(digest, 0, len(data))) == data
        assert objects.unhide(digest)
        assert objects.destroy(digest) == 0
        objects.hide(digest)
        assert objects.destroy(digest) == len(data)
        assert (objects.size(digest), list(objects.hidden())) == (None, [])
        assert not objects.unhide(digest)

    def test_a_blob_pushed_again_while_it_is_hidden(self, objects: Objects) -> None:
        data = os.urandom(70_000)
        digest = Digest.of(data)
        for number in (1, 2):
            upload = uploaded(objects, data, number)
            objects.publish(upload, digest, len(data))
            objects.drop(upload)
            if number == 1:
                objects.hide(digest)
        objects.destroy(digest)
        assert b"".join(objects.read(digest, 0, len(data))) == data

    def test_what_became_a_blob_does_not_change(self, objects: Objects, place: str) -> None:
        data = os.urandom(70_000)
        digest, upload = Digest.of(data), uploaded(objects, data)
        objects.publish(upload, digest, len(data))
        for here in (objects, open_storage(place).objects):
            writer = here.upload_writer(upload)
            with pytest.raises(Busy):
                writer.write(b"more")
            writer.close()
        other = uploaded(objects, b"changed meanwhile", 2)
        with pytest.raises(Busy):
            objects.publish(other, Digest.of(b"changed"), 7)
        objects.drop(upload)
        with pytest.raises(FileNotFoundError):
            objects.upload_writer(upload)
        assert b"".join(objects.read(digest, 0, len(data) + 4)) == data

    def test_an_upload_publishes_again_what_was_destroyed(self, objects: Objects) -> None:
        data = os.urandom(70_000)
        digest, upload = Digest.of(data), uploaded(objects, data)
        for _ in range(2):
            objects.publish(upload, digest, len(data))
            objects.hide(digest)
            assert objects.destroy(digest) == len(data)
        objects.publish(upload, digest, len(data))
        objects.drop(upload)
        assert b"".join(objects.read(digest, 0, len(data))) == data

    def test_two_collections_and_somebody_who_needs_the_blob(self, objects: Objects, place: str) -> None:
        """What one collection has hidden and somebody has brought back, that collection does not destroy, whatever another does."""
        if objects.local:
            with objects.collecting():
                other = threading.Thread(target=upkeep.collect, args=(open_storage(place),))
                other.start()
                other.join(0.2)
                assert other.is_alive()  # waits for its turn
            other.join(20)
            return
        data = os.urandom(70_000)
        digest, upload = Digest.of(data), uploaded(objects, data)
        objects.publish(upload, digest, len(data))
        objects.drop(upload)
        other_place = open_storage(place)
        objects.hide(digest)
        assert objects.unhide(digest)
        other_place.objects.hide(digest)
        assert objects.destroy(digest) == 0
        assert objects.unhide(digest)
        assert other_place.objects.destroy(digest) == 0
        assert b"".join(objects.read(digest, 0, len(data))) == data
        objects.hide(digest)
        other_place.objects.hide(digest)
        assert other_place.objects.destroy(digest) == len(data)
        assert objects.destroy(digest) == 0
        assert (objects.size(digest), list(objects.hidden())) == (None, [])
        other_place.close()

    def test_put_blob(self, objects: Objects) -> None:
        for data in (b"{}", os.urandom(200_000)):
            digest = Digest.of(data)
            for _ in range(2):
                objects.put_blob(digest, data)
            assert b"".join(objects.read(digest, 0, len(data))) == data
            objects.tidy(time.time() + 60)
            assert b"".join(objects.read(digest, 0, len(data))) == data


def push_blob(storage: Storage, name: str, data: bytes) -> Digest:
    upload = storage.start_upload(name)
    with storage.append(name, upload) as appender:
        appender.write(data)
    storage.finish_upload(name, upload, Digest.of(data))
    return Digest.of(data)


def push_image(storage: Storage, name: str, tag: str, *layers: bytes, **fields: Any) -> Digest:
    blobs = [push_blob(storage, name, data) for data in (b"{}", *layers)]
    document = {"schemaVersion": 2, "mediaType": OCI, "config": {"digest": blobs[0]}, "layers": [{"digest": blob} for blob in blobs[1:]]}
    return put_manifest(storage, name, tag, document | fields, blobs)


def put_manifest(storage: Storage, name: str, tag: str, document: dict[str, Any], blobs: list[Digest]) -> Digest:
    data = json.dumps(document).encode()
    digest = Digest.of(data)
    subject = document.get("subject")
    described = {"digest": subject["digest"], "descriptor": {"mediaType": OCI, "digest": digest}} if subject else None
    storage.put_manifest(name, data, digest, OCI, described, tag, blobs)
    return digest


class StorageContract:
    def test_push_and_read(self, storage: Storage) -> None:
        digest = push_image(storage, "team/app", "v1", b"layer")
        assert storage.manifest("team/app", "v1") == storage.manifest("team/app", digest)
        assert Digest.of(storage.document(digest)) == digest
        assert storage.size("team/app", Digest.of(b"layer")) == 5
        assert (storage.repositories(), storage.tags("team/app")) == (["team/app"], ["v1"])
        for reference in ("v2", str(Digest.of(b"none"))):
            with pytest.raises(RegistryError, match="manifest unknown"):
                storage.manifest("team/app", reference)
        with pytest.raises(RegistryError, match="name not known"):
            storage.manifest("team", "v1")
        with pytest.raises(RegistryError, match="blob unknown"):
            storage.size("other", Digest.of(b"layer"))
        storage.delete_manifest("team/app", digest)
        assert storage.tags("team/app") == []
        assert storage.has_repository("team/app")

    def test_wrong_digest_leaves_the_upload(self, storage: Storage, place: str) -> None:
        upload = storage.start_upload("app")
        with storage.append("app", upload) as appender:
            appender.write(b"con")
        with pytest.raises(RegistryError, match="did not match"):
            storage.finish_upload("app", upload, Digest.of(b"con", "sha512").parse(Digest.of(b"other", "sha512")))
        other = open_storage(place)
        with other.append("app", upload) as appender:
            appender.write(b"tent")
        storage.finish_upload("app", upload, Digest.of(b"content"))
        assert storage.size("app", Digest.of(b"content")) == 7
        with pytest.raises(RegistryError, match="unknown"):
            other.offset("app", upload)
        other.close()

    def test_uploads_are_their_repositorys(self, storage: Storage) -> None:
        upload = storage.start_upload("app")
        for name, wrong in (("other", upload), ("app", "nonsense"), ("app", "../" + upload), ("app", upload.upper() + "x")):
            with pytest.raises(RegistryError) as caught:
                storage.offset(name, wrong)
            assert caught.value.code == "BLOB_UPLOAD_UNKNOWN"
        storage.cancel_upload("app", upload)
        with pytest.raises(RegistryError):
            storage.offset("app", upload)

    def test_mounts(self, storage: Storage) -> None:
        digest = push_blob(storage, "a", b"shared")
        assert list(storage.holders(digest)) == ["a"]
        storage.link_blob("b", digest)
        storage.delete_blob("a", digest)
        assert (list(storage.holders(digest)), storage.size("b", digest)) == (["b"], 6)
        with pytest.raises(RegistryError):
            storage.link_blob("b", Digest.of(b"none"))
        assert not storage.has_blob("b", Digest.of(b"none"))

    def test_collection(self, storage: Storage) -> None:
        kept = push_image(storage, "app", "v1", b"kept")
        gone = push_image(storage, "app", "v2", b"gone")
        push_blob(storage, "app", b"unfinished push")
        storage.delete_manifest("app", gone)
        assert upkeep.collect(storage)[0] == 1  # the manifest: blobs are young
        assert storage.size("app", Digest.of(b"gone")) == 4
        assert upkeep.collect(storage, grace=-60)[0] == 2
        assert storage.size("app", Digest.of(b"kept")) == 4
        assert storage.manifest("app", "v1").digest == kept
        for data in (b"gone", b"unfinished push"):
            with pytest.raises(RegistryError):
                storage.size("app", Digest.of(data))
        assert upkeep.collect(storage, grace=-60) == (0, 0)

    def test_blobs_linked_while_they_are_collected_stay(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whichever step of the collection a mount or a push falls into."""
        data = os.urandom(70_000)
        digest = push_blob(storage, "source", data)

        def between(step: str, push: Callable[[], object]) -> None:
            real = getattr(storage.objects, step)

            def run(given: Digest) -> Any:
                if step == "destroy":
                    push()
                found = real(given)
                if step == "hide":
                    push()
                return found

            with monkeypatch.context() as patch:
                patch.setattr(storage.objects, step, run)
                upkeep.collect(storage, grace=-60)

        for step in ("hide", "destroy"):
            storage.delete_blob("source", digest)
            between(step, lambda: push_blob(storage, "source", data))
            assert b"".join(storage.read(digest, 0, storage.size("source", digest))) == data
        storage.delete_blob("source", digest)
        between("hide", lambda: storage.link_blob("target", digest))
        assert b"".join(storage.read(digest, 0, storage.size("target", digest))) == data

    def test_a_collection_links_only_what_it_took_away(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        """A kill between the removal of a link and the look at manifests is made good; nothing else that a manifest names gets a link."""
        secret = push_blob(storage, "secret", b"of another repository")
        elsewhere = {
            "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "digest": secret,
            "size": 21,
            "urls": ["https://x"],
        }
        document = json.dumps({"schemaVersion": 2, "layers": [elsewhere]}).encode()
        storage.put_manifest("thief", document, Digest.of(document), "application/vnd.oci.image.manifest.v1+json", None, "v1", [])
        upkeep.collect(storage)
        assert not storage.has_blob("thief", secret)

        digest = push_blob(storage, "app", b"late")

        def killed(name: str, given: Digest) -> None:
            real(name, given)
            if name == "app":
                push_image(storage, "app", "v1", b"other")  # something that names it appears, and was let in while the link was there
                late = json.dumps({"schemaVersion": 2, "layers": [{"mediaType": "x/y", "digest": digest, "size": 4}]}).encode()
                storage.put_manifest("app", late, Digest.of(late), "application/vnd.oci.image.manifest.v1+json", None, "late", [])
                raise KeyboardInterrupt

        real = storage.delete_blob
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(storage, "delete_blob", killed)
            upkeep.collect(storage, grace=-60)
        assert not storage.has_blob("app", digest)
        upkeep.collect(storage)
        assert storage.has_blob("app", digest) and not storage.has_blob("thief", secret)
        assert storage.repositories() == ["app", "secret", "thief"]

    @pytest.mark.parametrize("brought_back_by", ["us", "others"])
    def test_what_a_collection_has_in_hand_is_there(self, storage: Storage, monkeypatch: pytest.MonkeyPatch, brought_back_by: str) -> None:
        """A collection hides a blob for a moment, looks, and brings it back: whoever reads it then sees nothing of that."""
        data = os.urandom(70_000)
        manifest, blob = push_image(storage, "app", "v1", data), Digest.of(data)
        objects, real = storage.objects, type(storage.objects)
        with monkeypatch.context() as patch:
            if brought_back_by == "us":  # hidden right behind a look at its size

                def size(digest: Digest) -> int | None:
                    found = real.size(objects, digest)
                    patch.undo()
                    objects.hide(digest)
                    return found

                patch.setattr(objects, "size", size)
            else:  # hidden, and brought back by the collection before we could

                def unhide(digest: Digest) -> bool:
                    patch.undo()
                    assert real.unhide(objects, digest)
                    return objects.unhide(digest)

                objects.hide(manifest)
                patch.setattr(objects, "unhide", unhide)
            assert Digest.of(storage.document(manifest)) == manifest
        objects.hide(blob)
        assert b"".join(storage.read(blob, 10, 60_000)) == data[10:60_000]
        objects.hide(blob)
        assert storage.size("app", blob) == len(data)
        if storage.local:
            objects.hide(blob)
            file = storage.file(blob)
            assert file is not None
            file.close()

    def test_nothing_is_collected_beside_a_manifest_that_cannot_be_read(self, storage: Storage) -> None:
        image = push_image(storage, "app", "v1", b"layer")
        storage.objects.hide(image)
        storage.objects.destroy(image)
        storage.objects.put_blob(image, b"rotten")
        push_blob(storage, "app", b"named by no manifest")
        assert upkeep.collect(storage, grace=-60) == (0, 0)
        assert storage.size("app", Digest.of(b"layer")) == 5

    def test_a_killed_collection_is_made_good(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        digest = push_blob(storage, "app", b"hidden and held")
        storage.objects.hide(digest)
        assert storage.size("app", digest) == 15
        manifest = push_image(storage, "app", "v1", b"layer")
        storage.objects.hide(manifest)
        upkeep.collect(storage)
        assert storage.size("app", Digest.of(b"layer")) == 5
        assert Digest.of(storage.document(manifest)) == manifest

    def test_collections_beside_pushes(self, storage: Storage, place: str) -> None:
        """Two processes' worth of pushes of the same blobs, deletions, and collections without any grace: what was acknowledged stays."""
        stop, errors, deadline = threading.Event(), [], time.monotonic() + 20

        def collecting() -> None:
            mine = open_storage(place)
            try:
                while not stop.is_set():
                    upkeep.collect(mine, grace=-60)
            except Exception as error:
                errors.append(error)
            finally:
                mine.close()

        def pushing(name: str) -> None:
            mine = open_storage(place)
            try:
                for number in range(8):
                    if time.monotonic() > deadline:
                        break
                    try:
                        digest = push_image(mine, name, "v1", b"shared %d" % (number % 2))
                    except RegistryError as error:
                        assert error.code == "MANIFEST_BLOB_UNKNOWN"  # blobs that no manifest named went: no grace
                        continue
                    assert Digest.of(mine.document(digest)) == digest
                    blob = Digest.of(b"shared %d" % (number % 2))
                    patience = time.monotonic() + 20
                    while not mine.has_blob(name, blob):  # the collection may have its link in hand for a moment
                        assert time.monotonic() < patience
                    if number % 3 == 2:
                        mine.delete_manifest(name, digest)
            except Exception as error:
                errors.append(error)
            finally:
                mine.close()

        collector = threading.Thread(target=collecting)
        pushers = [threading.Thread(target=pushing, args=(name,)) for name in ("a", "b", "c")]
        for thread in (collector, *pushers):
            thread.start()
        for thread in pushers:
            thread.join()
        stop.set()
        collector.join()
        assert not errors, errors
        upkeep.collect(storage, grace=-60)
        for name in storage.repositories():
            for digest in storage.manifests(name):
                for blob in upkeep.named_by(json.loads(storage.document(digest))):
                    assert storage.size(name, blob)
        assert list(upkeep.scrub(storage)) == []

    def test_referrers(self, storage: Storage) -> None:
        subject = push_image(storage, "app", "v1")
        referrer = push_image(storage, "app", "", b"signature", subject={"digest": subject})
        assert [found["digest"] for found in storage.referrers("app", subject)] == [referrer]
        storage.delete_manifest("app", referrer)
        assert storage.referrers("app", subject) == []

    def test_retention(self, storage: Storage) -> None:
        digests = {}
        for tag in ("v1", "v2", "v3"):
            digests[tag] = push_image(storage, "app", tag, tag.encode())
        signature = push_image(storage, "app", "", b"signature", subject={"digest": digests["v1"]})
        tags = storage.tags("app")
        assert upkeep.retain(storage, "app", upkeep.Retention(newest=3, seconds=0)) == []
        assert upkeep.retain(storage, "app", upkeep.Retention(newest=1, seconds=3600)) == []
        assert storage.tags("app") == tags
        removed = upkeep.retain(storage, "app", upkeep.Retention(newest=1))
        assert len(removed) == 2
        (left,) = storage.tags("app")
        assert upkeep.retain(storage, "app", upkeep.Retention(untagged_seconds=3600)) == []
        untagged = upkeep.retain(storage, "app", upkeep.Retention(untagged_seconds=-60))
        kept = set(storage.manifests("app"))
        assert digests[left] in kept
        assert (signature in kept) == (left == "v1")
        assert set(untagged).isdisjoint(kept)

    def test_quotas(self, storage: Storage) -> None:
        quotas = Quotas(storage, {"team/*": 100, "team/app": 50})
        push_blob(storage, "team/app", b"x" * 40)
        push_blob(storage, "team/other", b"y" * 40)
        quotas.check("free", 10_000)
        quotas.check("team/app", 10)
        quotas.check("team/app", 40, Digest.of(b"x" * 40))
        with pytest.raises(RegistryError, match="quota of team/app exceeded: 40 of 50"):
            quotas.check("team/app", 11)
        with pytest.raises(RegistryError, match=r"quota of team/\* exceeded: 80 of 100"):
            quotas.check("team/new", 21)
        storage.delete_blob("team/app", Digest.of(b"x" * 40))
        quotas.changed("team/app")
        quotas.check("team/new", 21)

    def test_scrub_finds_rot(self, storage: Storage) -> None:
        push_image(storage, "app", "v1", b"layer")
        assert list(upkeep.scrub(storage)) == []
        wrong = Digest.sha256(hashlib.sha256(b"right").hexdigest())
        storage.objects.put_blob(wrong, b"wrong")
        assert list(upkeep.scrub(storage)) == [wrong]
