"""Addresses that are none: from clients, and from servers that redirect."""

from __future__ import annotations

import pytest

from tare.distribution.download import address
from tare.distribution.endpoints import hostname
from tare.distribution.transport import Unreachable, _redirect, explain
from tare.errors import InvalidArgument, Upstream


@pytest.mark.parametrize(
    "host", ["", "host:port", "host:99999", '{"x":1}', '["a"]', "[::::]:5", "user@host", "host/path", "host?x", "[::1"]
)
def test_no_registry(host: str) -> None:
    with pytest.raises(InvalidArgument, match="HOST:PORT"):
        hostname(host)


@pytest.mark.parametrize(("host", "name"), [("host", "host"), ("host:5000", "host"), ("[::1]:5", "::1"), ("127.0.0.1:5", "127.0.0.1")])
def test_a_registry(host: str, name: str) -> None:
    assert hostname(host) == name


@pytest.mark.parametrize("url", ["[]", "http://[x]/", "http://host:port/x", "http://h:99999/", "ftp://x/y", "http:///x"])
def test_no_source_of_an_import(url: str) -> None:
    with pytest.raises(InvalidArgument, match="Get"):
        address(url)


@pytest.mark.parametrize("location", ["https://host:port/x", "https://[x]/", "//h:99999/", "file:///etc/passwd", "http://plain/"])
def test_no_redirect(location: str) -> None:
    with pytest.raises(Upstream, match="refused redirect"):
        _redirect("GET", "https://registry/v2/", location)


def test_a_failure_at_no_address_is_explained() -> None:
    assert isinstance(explain(ValueError("x"), "GET", "https://host:port/"), Unreachable)
