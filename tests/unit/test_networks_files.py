"""The contents of /etc/hosts, /etc/hostname and /etc/resolv.conf."""

from __future__ import annotations

import pytest

from tare.errors import InvalidArgument
from tare.networks import files

LOOPBACK = (
    "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
)


def settings(text: str) -> str:
    return "".join(line + "\n" for line in text.splitlines() if not line.startswith("#"))


def test_hosts_layout() -> None:
    assert files.hosts("c1", addresses=["172.17.0.2"]) == LOOPBACK + "172.17.0.2\tc1\n"
    text = files.hosts("c1", "example.org", ["10.0.0.2", "fd00::2"], ["db:10.1.1.1", "gw:host-gateway"], ["172.17.0.1", "fd00::1"])
    assert text == LOOPBACK + ("10.1.1.1\tdb\n172.17.0.1\tgw\nfd00::1\tgw\n10.0.0.2\tc1.example.org c1\nfd00::2\tc1.example.org c1\n")
    assert files.hosts("c1") == LOOPBACK


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("db:10.0.0.1", ("10.0.0.1", "db")),
        ("db=10.0.0.1", ("10.0.0.1", "db")),
        ("db:::1", ("::1", "db")),
        ("db:[fd00::1]", ("fd00::1", "db")),
        ("db=fd00::1", ("fd00::1", "db")),
    ],
)
def test_extra_host(entry: str, expected: tuple[str, str]) -> None:
    assert files.parse_extra_host(entry) == [expected]


@pytest.mark.parametrize("entry", ["db", "", ":1.2.3.4", "db:", "db:x", "db:host-gateway", "a b:1.2.3.4", "db:1.2.3.4\n6.6.6.6 x"])
def test_bad_extra_host(entry: str) -> None:
    with pytest.raises(InvalidArgument):
        files.parse_extra_host(entry)


def test_hosts_of_host() -> None:
    assert files.hosts_of_host("127.0.0.1 me", ["a:1.2.3.4"]) == "127.0.0.1 me\n1.2.3.4\ta\n"
    assert files.hosts_of_host("") == ""


def test_hostname() -> None:
    assert files.hostname("c1") == "c1\n"


HOST = "# x\nnameserver 127.0.0.53\nnameserver 10.0.0.1 ; y\nnameserver fd00::1\nsearch a b\noptions edns0\noptions ndots:2\n"


def test_resolv_conf_from_the_host() -> None:
    assert settings(files.resolv_conf(HOST)) == "nameserver 10.0.0.1\nsearch a b\noptions edns0 ndots:2\n"
    assert "nameserver fd00::1" in files.resolv_conf(HOST, ipv6=True)


@pytest.mark.parametrize("host", ["", "nameserver 127.0.0.1\nnameserver ::1\n", "nameserver nonsense\nnameserver\n"])
def test_resolv_conf_fallback(host: str) -> None:
    assert settings(files.resolv_conf(host)) == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"


def test_resolv_conf_overrides() -> None:
    text = files.resolv_conf(HOST, dns=["127.0.0.1", "fd00::9"], search=["."], options=["ndots:0"])
    assert settings(text) == "nameserver 127.0.0.1\nnameserver fd00::9\noptions ndots:0\n"
    with pytest.raises(InvalidArgument, match="nowhere is not an ip address"):
        files.resolv_conf(HOST, dns=["nowhere"])


def test_resolv_conf_of_host() -> None:
    assert files.resolv_conf_of_host(HOST) == HOST
    text = settings(files.resolv_conf_of_host(HOST, search=["c"]))
    assert text == "nameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver fd00::1\nsearch c\noptions edns0 ndots:2\n"


def test_stub_resolver() -> None:
    assert files.uses_stub_resolver("nameserver 127.0.0.53\n")
    assert not files.uses_stub_resolver(HOST)
    assert not files.uses_stub_resolver("")
