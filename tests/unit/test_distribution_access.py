"""Who we are to a registry, and which place it is: tokens, logins, certificates, mirrors by registry, proxies."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from distribution_world import World
from fake_registry import FakeRegistry, TokenServer, serving
from image_builder import build_image, build_index
from tare.distribution import retry
from tare.distribution.auth import Credentials
from tare.distribution.endpoints import HUB, RegistryPolicy
from tare.distribution.proxies import bypassed, proxy_for
from tare.distribution.registry_rules import read_rules
from tare.distribution.transport import Transport
from tare.errors import Forbidden, InvalidArgument, MissingCredentials, Unauthorized, Unavailable, Upstream
from tare.oci.reference import Reference

FILES = {"etc/": b"", "etc/hostname": b"tare\n"}
ALICE = Credentials("alice", "x")


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BACKOFF", 0.001)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with serving() as found:
        yield found


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    found = World(tmp_path)
    yield found
    await found.close()


# --- tokens


async def test_token_is_remembered_by_user_and_scope(registry: FakeRegistry, world: World) -> None:
    registry.add(build_image(FILES))
    tokens = TokenServer().install(registry)
    name = f"{registry.address}/app"
    await world.images.pull(name, credentials=ALICE)
    await world.images.pull(name, credentials=ALICE)
    assert [asked["scope"] for asked in tokens.asked] == ["repository:app:pull"]
    assert tokens.asked[0]["account"] == "alice" and tokens.asked[0]["authorization"] == ALICE.basic()
    await world.images.pull(name)
    assert len(tokens.asked) == 2 and tokens.asked[1]["authorization"] == ""


async def test_token_that_ran_out_is_renewed(registry: FakeRegistry, world: World) -> None:
    registry.add(build_image(FILES))
    tokens = TokenServer().install(registry)
    await world.images.pull(f"{registry.address}/app", credentials=ALICE)
    tokens.revoke()
    await world.images.pull(f"{registry.address}/app", credentials=ALICE)
    assert len(tokens.asked) == 2


async def test_identity_token_is_exchanged_by_post(registry: FakeRegistry, world: World) -> None:
    registry.add(build_image(FILES))
    tokens = TokenServer(refresh="kept").install(registry)
    await world.images.pull(f"{registry.address}/app", credentials=Credentials(identity_token="kept"))
    (asked,) = tokens.asked
    assert (asked["method"], asked["grant_type"], asked["scope"]) == ("POST", "refresh_token", "repository:app:pull")


async def test_login_with_tokens(registry: FakeRegistry, world: World) -> None:
    tokens = TokenServer().install(registry)
    assert await world.images.registry.login(Credentials("alice", "x", server_address=registry.address)) == ""
    assert "scope" not in tokens.asked[0] and tokens.asked[0]["offline_token"] == "true"
    tokens.refresh = "kept"
    assert await world.images.registry.login(Credentials("alice", "x", server_address=f"https://{registry.address}/v1/")) == "kept"
    with pytest.raises(Unauthorized, match=r"/v2/\": unauthorized: incorrect username or password$"):
        await world.images.registry.login(Credentials("alice", "no", server_address=registry.address))


async def test_login_with_basic(registry: FakeRegistry, world: World) -> None:
    async def basic(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") == ALICE.basic():
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="test"'})

    registry.faults.append(basic)
    login = world.images.registry.login
    assert await login(Credentials("alice", "x", server_address=registry.address)) == ""
    url = f"http://{registry.address}/v2/"
    with pytest.raises(Upstream, match=f"^login attempt to {url} failed with status: 401 Unauthorized$"):
        await login(Credentials("alice", "y", server_address=registry.address))
    with pytest.raises(MissingCredentials, match=f'^Get "{url}": no basic auth credentials$'):
        await login(Credentials(server_address=registry.address))


async def test_realm_elsewhere_gets_credentials_only_when_the_registry_names_it(registry: FakeRegistry, world: World) -> None:
    """The registry's own realm may be another host; a mirror's realm gets no credentials."""
    registry.add(build_image(FILES))
    async with serving() as mirror:
        mirror.add(build_image(FILES))
        theirs = TokenServer().install(mirror)
        rules = world.root / "rules.toml"
        rules.write_text(
            f'[[registry]]\nprefix = "{registry.address}"\n[[registry.mirror]]\nlocation = "{mirror.address}"\ninsecure = true\n'
        )
        other = World(world.root / "other", registry_config=rules)
        try:
            await other.images.pull(f"{registry.address}/app", credentials=ALICE)
        finally:
            await other.close()
        assert [asked["authorization"] for asked in theirs.asked] == [""]
        assert not registry.requests and all(request[2] in ("", "Bearer token1") for request in mirror.requests)


# --- looking


async def test_all_tags_over_several_pages(registry: FakeRegistry, world: World) -> None:
    images = [registry.add(build_image({"n": str(number).encode()}), tag=f"t{number}") for number in range(5)]
    told: list[str] = []
    reference = Reference.parse(f"{registry.address}/app")
    pulled = await world.images.pull_all(reference, progress=lambda progress: told.append(progress.status))
    assert [image.id for image in pulled] == [image.image_id for image in images]
    assert told.count("Pulling from app") == 5
    assert [text for text in told if text.startswith("Status:")] == [f"Status: Downloaded newer image for {registry.address}/app"]


async def test_inspect_in_the_registry(registry: FakeRegistry, world: World) -> None:
    amd64 = registry.add(build_image(FILES), tag="one")
    s390x = registry.add(build_image(FILES, architecture="s390x"), tag="two")
    digest = registry.add_document(*build_index({"linux/amd64": amd64, "linux/s390x": s390x}))
    found = await world.images.registry.inspect(Reference.parse(f"{registry.address}/app"))
    assert str(found.digest) == digest and [str(entry.platform()) for entry in found.platforms] == ["linux/amd64", "linux/s390x"]
    one = await world.images.registry.inspect(Reference.parse(f"{registry.address}/app:two"))
    assert (str(one.digest), one.size, one.platforms[0].architecture) == (s390x.digest, len(s390x.manifest), "s390x")
    assert not world.leftovers()


async def test_a_lone_image_for_another_platform_is_pulled_with_a_warning(registry: FakeRegistry, world: World) -> None:
    """As with dockerd: an index has to offer the platform, a lone image is taken and creating a container refuses it."""
    built = registry.add(build_image(FILES, architecture="s390x"))
    told: list[str] = []
    image = await world.images.pull(f"{registry.address}/app", "linux/arm64", progress=lambda progress: told.append(progress.status))
    assert image.id == built.image_id
    assert told[-1] == (
        f"WARNING: image with reference {registry.address}/app:latest was found but does not match the specified platform: "
        "wanted linux/arm64, actual: linux/s390x"
    )


# --- certificates


def certificate(directory: Path, name: str, *extra: str) -> tuple[Path, Path]:
    key, found = directory / f"{name}.key", directory / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", *extra]
    subprocess.run([*command, *names, "-keyout", key, "-out", found], check=True, capture_output=True)
    return key, found


async def test_own_authority_and_client_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tare.distribution.endpoints.RegistryPolicy.is_insecure", lambda self, host: False)
    server_key, server = certificate(tmp_path, "server")
    client_key, client = certificate(tmp_path, "client", "-addext", "extendedKeyUsage=clientAuth")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server, server_key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(client)
    world = World(tmp_path, registry_certs=(tmp_path / "certs.d",))
    try:
        async with serving(FakeRegistry(), context) as fake:
            fake.add(build_image(FILES))
            directory = tmp_path / "certs.d" / fake.address
            with pytest.raises(Unavailable, match=r"x509: .*self.signed certificate"):
                await world.images.pull(f"{fake.address}/app")
            directory.mkdir(parents=True)
            (directory / "ca.crt").write_bytes(server.read_bytes())
            with pytest.raises(Unavailable):
                await world.images.pull(f"{fake.address}/app")
            (directory / "client.cert").write_bytes(client.read_bytes())
            with pytest.raises(InvalidArgument, match=r"missing key client.key for client certificate client.cert"):
                await world.images.pull(f"{fake.address}/app")
            (directory / "client.key").write_bytes(client_key.read_bytes())
            assert (await world.images.pull(f"{fake.address}/app")).tags
    finally:
        await world.close()


# --- mirrors by registry


async def test_mirrors_prefixes_and_blocked_registries(registry: FakeRegistry, tmp_path: Path) -> None:
    built = registry.add(build_image(FILES), name="cache/team/app")
    other = registry.add(build_image({"moved": b"1"}), name="there/app")
    (tmp_path / "r.toml").write_text(f"""
[[registry]]
prefix = "registry.invalid/team"
[[registry.mirror]]
location = "127.0.0.1:1"
[[registry.mirror]]
location = "{registry.address}/cache/team"
[[registry]]
prefix = "*.moved.invalid"
location = "{registry.address}/there"
[[registry]]
prefix = "bad.invalid"
blocked = true
""")
    world = World(tmp_path, registry_config=tmp_path / "r.toml")
    try:
        image = await world.images.pull("registry.invalid/team/app")
        assert image.id == built.image_id and image.tags == ("registry.invalid/team/app:latest",)
        assert (await world.images.pull("eu.moved.invalid/app")).id == other.image_id
        with pytest.raises(Forbidden, match=r"registry bad.invalid is blocked"):
            await world.images.pull("bad.invalid/app")
    finally:
        await world.close()


async def test_a_dead_mirror_is_tried_once_for_a_pull(registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.add(build_image({"a": b"1"}, {"b": b"2"}, {"c": b"3"}))
    (tmp_path / "r.toml").write_text(f'[[registry]]\nprefix = "{registry.address}"\n[[registry.mirror]]\nlocation = "127.0.0.1:1"\n')
    tries: list[str] = []
    real = Transport.open

    async def watched(self: Transport, method: str, url: str, *rest: object, **more: object) -> object:
        tries.append(url)
        return await real(self, method, url, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Transport, "open", watched)
    world = World(tmp_path, registry_config=tmp_path / "r.toml")
    try:
        assert (await world.images.pull(f"{registry.address}/app")).tags
    finally:
        await world.close()
    assert [url for url in tries if "127.0.0.1:1/" in url] == ["https://127.0.0.1:1/v2/", "http://127.0.0.1:1/v2/"]


def test_rules_by_prefix() -> None:
    policy = RegistryPolicy(mirrors=("https://m.example/hub",))
    mirror, own = policy.endpoints("docker.io", "library/busybox")
    assert (mirror.host, mirror.prefix, own) == ("m.example", "/hub", HUB)
    assert policy.endpoints("quay.example", "a")[0].host == "quay.example"
    with pytest.raises(InvalidArgument, match="no such file"):
        read_rules(Path("/nonexistent.toml"))


@pytest.mark.parametrize(
    "text",
    [
        '[[registry]]\nlocation = "https://x"',
        "[[registry]]\nblocked = true",
        '[[registry]]\nprefix = "x"\nblokked = true',
        "registry = 1",
        "[",
    ],
)
def test_malformed_rules(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InvalidArgument, match=r"^registry configuration .*r\.toml: "):
        read_rules(tmp_path / "r.toml")


# --- proxies


async def test_proxies_for_plain_and_tls(registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request goes through the proxy: absolute requests for http, CONNECT for https."""
    seen: list[str] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head.split(b"\r\n")[0].decode() + (" +auth" if b"Proxy-Authorization: Basic dTpw" in head else ""))
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{port}")
    monkeypatch.setenv("HTTPS_PROXY", f"http://u:p@127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "direct.invalid")
    world = World(tmp_path, insecure_registries=("plain.invalid",))
    try:
        with pytest.raises(Unavailable, match="Forbidden"):
            await world.images.pull("secure.invalid/app")
        assert seen == ["CONNECT secure.invalid:443 HTTP/1.1 +auth"]
        seen.clear()
        with pytest.raises(Exception, match=r"pull access denied|Forbidden"):
            await world.images.pull("plain.invalid/app")
        assert seen[:2] == ["CONNECT plain.invalid:443 HTTP/1.1 +auth", "GET http://plain.invalid/v2/ HTTP/1.1"]
        seen.clear()
        with pytest.raises(Unavailable, match=r"no such host|name resolution"):
            await world.images.pull("direct.invalid/app")
        assert not seen
    finally:
        await world.close()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("name", "port", "exceptions", "expected"),
    [
        ("a.example.com", 443, "example.com", True),
        ("example.com", 443, ".example.com", False),
        ("notexample.com", 443, "example.com", False),
        ("example.com", 5000, "example.com:5000", True),
        ("example.com", 443, "example.com:5000", False),
        ("10.1.2.3", 443, "10.0.0.0/8", True),
        ("10.1.2.3", 443, "10.1.2.3", True),
        ("x", 1, "*", True),
        ("127.0.0.1", 1, "", True),
        ("localhost", 1, "", True),
        ("::1", 1, "", True),
    ],
)
def test_proxy_exceptions(name: str, port: int, exceptions: str, expected: bool) -> None:
    assert bypassed(name, port, exceptions) is expected


def test_proxy_without_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)
    assert proxy_for("https", "registry.example") == "http://proxy.example:3128"
    assert proxy_for("http", "registry.example") is None
