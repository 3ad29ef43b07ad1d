"""Which daemon a call talks to, what ssh is told, and archives of contexts that are not what they seem."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.cli import contexts, hosts, remote
from tare.cli.failures import CliError
from tare.cli.flags import KINDS, Options, parse
from tare.cli.main import GLOBAL_FLAGS

VARIABLES = (
    "TARE_HOST",
    "DOCKER_HOST",
    "TARE_CONTEXT",
    "DOCKER_CONTEXT",
    "DOCKER_TLS_VERIFY",
    "DOCKER_TLS",
    "DOCKER_CERT_PATH",
    "TARE_AUTOSTART",
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No daemon, no files but the test's own, nothing remembered."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("TARE_CONFIG", str(tmp_path / "tare.json"))
    monkeypatch.setattr(hosts, "_settings", None)
    yield


def flags(*words: str) -> Options:
    options = parse(GLOBAL_FLAGS, [*words, "ps"], kind=KINDS.__getitem__, interspersed=False)
    assert options is not None
    return options


def test_the_nearer_word_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not hosts.choose().named and hosts.choose().autostart
    contexts.save({"Name": "far", "Endpoints": {"docker": {"Host": "tcp://far:1"}}}, {})
    contexts.set_current("far")
    monkeypatch.setattr(hosts, "_settings", None)
    assert (hosts.choose().host, hosts.choose().context) == ("tcp://far:1", "far")
    (tmp_path / "tare.json").write_text('{"host": "/own.sock"}')
    monkeypatch.setattr(hosts, "_settings", None)
    assert hosts.choose().host == "unix:///own.sock"
    monkeypatch.setenv("DOCKER_CONTEXT", "far")
    assert hosts.choose().host == "tcp://far:1"
    monkeypatch.setenv("DOCKER_HOST", "tcp://docker:1")
    assert hosts.choose().host == "tcp://docker:1"
    monkeypatch.setenv("TARE_HOST", "tare:2")
    assert hosts.choose().host == "tcp://tare:2"
    assert hosts.choose(flags("-c", "far")).host == "tcp://far:1"
    assert hosts.choose(flags("-c", "default")).host == "tcp://tare:2"
    assert hosts.choose(flags("-H", "/x")).host == "unix:///x"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-H", "a", "-H", "b"), "Specify only one -H"),
        (("-H", "a", "-c", "b"), "cannot specify both --host and --context"),
        (("-H", "gopher://x"), "invalid bind address format: gopher://x"),
        (("-H", "ssh://"), "no host specified"),
        (("-c", "nowhere"), 'context "nowhere": context not found'),
    ],
)
def test_what_names_no_daemon(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(CliError, match=message):
        hosts.choose(flags(*words))


def test_tls_follows_flags_and_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert hosts.choose(flags("-H", "tcp://h")).tls is None
    choice = hosts.choose(flags("-H", "tcp://h", "--tlsverify"))
    assert choice.host == "tcp://h:2376" and choice.tls is not None
    assert choice.tls.verify and choice.tls.ca == str(tmp_path / "docker" / "ca.pem") and not choice.tls.cert
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", "/certs")
    choice = hosts.choose(flags("-H", "tcp://h:1"))
    assert choice.tls is not None and choice.tls.ca == "/certs/ca.pem"
    assert hosts.choose(flags("-H", "/local.sock")).tls is None
    assert hosts.choose(flags("-H", "tcp://h:1", "--tlsverify=false")).tls is None


def test_what_ssh_is_told() -> None:
    assert remote.ssh_command("ssh://u@h:22")[1:-1] == ["-o", "ConnectTimeout=30", "-T", "-l", "u", "-p", "22", "--", "h"]
    assert remote.ssh_command("ssh://[fe80::1]:22")[-2] == "fe80::1"
    assert "'\\''unix:///run/a b.sock'\\''" in remote.ssh_command("ssh://h/run/a b.sock")[-1]
    hostile = remote.ssh_command("ssh://h/$(touch x)';id;'")[-1]
    assert hostile.startswith("sh -c '") and "';id;'\n" not in hostile


@pytest.mark.parametrize("host", ["ssh://-oProxyCommand=x", "ssh://-l@h", "ssh://u:p@h", "ssh://h:x"])
def test_hosts_that_ssh_must_not_see(host: str) -> None:
    with pytest.raises(CliError, match="ssh host connection is not valid"):
        remote.ssh_command(host)


@pytest.mark.parametrize("name", ["", "default", "x", "../up", "a/b", "-a", "ä1", "a\nb"])
def test_names_that_no_context_has(name: str) -> None:
    with pytest.raises(CliError):
        contexts.check_name(name)


def tar_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name.replace("__", "/").replace("_dot_", "."))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


META = json.dumps({"Name": "n", "Endpoints": {"docker": {"Host": "tcp://x:1"}}}).encode()


def test_archives_of_contexts() -> None:
    document, files = contexts.from_archive(tar_of(meta_dot_json=META, tls__docker__ca_dot_pem=b"ca"))
    assert document["Name"] == "n" and files == {"ca.pem": b"ca"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("meta.json", META)
        archive.writestr("tls/docker/key.pem", b"key")
    assert contexts.from_archive(buffer.getvalue())[1] == {"key.pem": b"key"}


def test_hostile_archives_of_contexts() -> None:
    for data, message in (
        (b"", "invalid context"),
        (b"no archive", "invalid context"),
        (b"PK\x03\x04broken", "invalid context"),
        (tar_of(other=b"x"), "no metadata found"),
        (tar_of(meta_dot_json=b"[]"), "must be a JSON object"),
        (tar_of(meta_dot_json=b"{"), "invalid context"),
        (tar_of(meta_dot_json=META, tls__docker__etc=b"x"), "unexpected TLS file"),
        (tar_of(meta_dot_json=META, tls__docker___dot__dot___dot__dot__passwd=b"x"), "unexpected TLS file"),
    ):
        with pytest.raises(CliError, match=message):
            contexts.from_archive(data)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", b" " * (contexts.LIMIT + 10))
    with pytest.raises(CliError, match="too large"):
        contexts.from_archive(bomb.getvalue())
