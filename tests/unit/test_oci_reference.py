"""References and digests, against what Docker's own parser does with the same texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import InvalidArgument
from tare.oci.digest import Digest
from tare.oci.reference import Reference, parse_any

HEX = "a3ed95caeb02ffe68cdd9fd84406680ae93d633cb16422d00e8a7c22955b46d4"
SHA = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox", "busybox"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox", "busybox"),
        ("user/app", "docker.io/user/app", "user/app"),
        ("docker.io/user/app:x", "docker.io/user/app:x", "user/app:x"),
        ("library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("localhost:5000/app:T_a.g-1", "localhost:5000/app:T_a.g-1", "localhost:5000/app:T_a.g-1"),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c"),
        ("[fd00::1]:5000/app", "[fd00::1]:5000/app", "[fd00::1]:5000/app"),
        ("Upper/app", "Upper/app", "Upper/app"),
        ("xn--n3h.com/app", "xn--n3h.com/app", "xn--n3h.com/app"),
        ("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f", "a__b/c--d.e_f"),
        ("docker", "docker.io/library/docker", "docker"),
        ("abcd1234", "docker.io/library/abcd1234", "abcd1234"),
        (f"busybox@{SHA}", f"docker.io/library/busybox@{SHA}", f"busybox@{SHA}"),
        (f"busybox:1@{SHA}", f"docker.io/library/busybox:1@{SHA}", f"busybox:1@{SHA}"),
        (f"r.example/a@{SHA}", f"r.example/a@{SHA}", f"r.example/a@{SHA}"),
    ],
)
def test_normalised(text: str, canonical: str, familiar: str) -> None:
    reference = Reference.parse(text)
    assert (reference.canonical(), reference.familiar()) == (canonical, familiar)
    assert Reference.parse(reference.canonical()) == Reference.parse(reference.familiar()) == reference


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid reference format"),
        ("Foo", "invalid reference format: repository name (library/Foo) must be lowercase"),
        ("user/Foo:tag", "invalid reference format: repository name (user/Foo) must be lowercase"),
        ("a//b", "invalid reference format"),
        ("/a", "invalid reference format"),
        ("a/", "invalid reference format"),
        ("-a", "invalid reference format"),
        ("a:", "invalid reference format"),
        ("a:-x", "invalid reference format"),
        ("a:" + "t" * 129, "invalid reference format"),
        ("a b", "invalid reference format"),
        ("a\n", "invalid reference format"),
        ("a@sha256:abc", "invalid reference format"),
        ("a___b", "invalid reference format"),
        ("a..b/c", "invalid reference format"),
        ("https://a.example/b", "invalid reference format"),
        ("../../etc/passwd", "invalid reference format"),
        (f"a@sha256:{HEX[:40]}", "invalid checksum digest length"),
        (f"a@sha256:{HEX.upper()}", "invalid checksum digest format"),
        (f"a@md5:{HEX[:32]}", "unsupported digest algorithm"),
        (HEX, f"invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings"),
        ("a/" * 150 + "a", "repository name must not be more than 255 characters"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as failure:
        Reference.parse(text)
    assert str(failure.value) == message


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        found = Reference.parse(text)
    except InvalidArgument:
        return
    assert Reference.parse(found.canonical()) == found
    assert ".." not in found.path.split("/") and not found.path.startswith("/")


def test_tags_and_digests() -> None:
    reference = Reference.parse("busybox")
    assert reference.with_default_tag().familiar() == "busybox:latest"
    assert reference.with_tag("x").with_digest(Digest.parse(SHA)).familiar() == f"busybox@{SHA}"
    assert Reference.parse(f"busybox@{SHA}").with_default_tag().tag is None
    with pytest.raises(InvalidArgument):
        reference.with_tag("a/b")


def test_ids_are_not_names() -> None:
    assert parse_any(HEX) == SHA and parse_any(SHA) == SHA
    assert isinstance(parse_any("busybox"), Reference)


@pytest.mark.parametrize("text", ["", "sha256:", f"sha256:{HEX}0", f"sha256:{HEX[:-1]}g", f"sha1:{HEX[:40]}", HEX, f"sha256:../{HEX[:61]}"])
def test_bad_digests(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Digest.parse(text)


def test_digest_computes() -> None:
    digest = Digest.of(b"")
    assert digest == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert (digest.algorithm, digest.short) == ("sha256", "e3b0c44298fc")
    assert Digest.of(b"", "sha512").algorithm == "sha512" and len(Digest.of(b"", "sha512").hex) == 128
