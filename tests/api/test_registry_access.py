"""Who may do what at the registry server: passwords, its own tokens, somebody else's, rights by repository, the audit log."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import bcrypt
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from registry_world import Registry, code, content, digest_of

USERS = {"ann": "secret", "ben": "other", "eve": "third"}
RULES = """
[access]
htpasswd = "{users}"
[access.groups]
team = ["ann", "ben"]
[[access.rule]]
repositories = ["public/**"]
rights = ["pull"]
anonymous = true
[[access.rule]]
repositories = ["team/**"]
rights = ["pull", "push"]
groups = ["team"]
[[access.rule]]
repositories = ["home/{{user}}/**"]
rights = ["pull", "push", "delete"]
users = ["*"]
[[access.rule]]
repositories = ["**"]
rights = ["pull", "push", "delete"]
users = ["ann"]
[log]
audit = "{folder}/audit"
access = "{folder}/access"
"""


def write_users(path: Path, users: dict[str, str]) -> Path:
    lines = [f"{name}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n" for name, password in users.items()]
    path.write_text("".join(lines))
    return path


def basic(name: str, password: str | None = None) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password or USERS[name]}".encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def registry(folder: Path) -> Iterator[Registry]:
    """With users, rules, its own tokens, and both logs."""
    users = write_users(folder / "users", USERS)
    config = folder / "registry.toml"
    config.write_text(RULES.format(users=users, folder=folder))
    registry = Registry(folder / "root", "--config", str(config))
    yield registry
    registry.stop()
    assert registry.process.returncode == 0


def token(registry: Registry, user: str, *scopes: str, **more: str) -> dict[str, object]:
    query = urlencode([("service", "tare-registry"), *(("scope", scope) for scope in scopes), *more.items()])
    response = registry.call("GET", f"/token?{query}", headers=basic(user) if user else {})
    assert response.status == 200, content(response)
    found: dict[str, object] = json.loads(content(response))
    return found


def push(registry: Registry, name: str, headers: dict[str, str], data: bytes = b"data") -> http.client.HTTPResponse:
    return registry.call("POST", f"/v2/{name}/blobs/uploads/?digest={digest_of(data)}", data, headers)


def records(folder: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_rules_with_passwords(registry: Registry) -> None:
    """The same user may and may not, as the rules say; a name is asked for where it could help, else the answer is no."""
    for user, name, status in (
        ("ann", "anything/at/all", 201),
        ("ben", "team/app", 201),
        ("ben", "other/app", 403),
        ("eve", "team/app", 403),
        ("eve", "home/eve/app", 201),
        ("eve", "home/ann/app", 403),
        ("", "public/app", 401),
    ):
        response = push(registry, name, basic(user) if user else {})
        assert response.status == status, (user, name)
    blob = f"/v2/team/app/blobs/{digest_of(b'data')}"
    assert [registry.call("GET", blob, headers=basic(user)).status for user in ("ben", "eve")] == [200, 403]
    assert [registry.call("DELETE", blob, headers=basic(user)).status for user in ("ben", "ann")] == [403, 202]
    push(registry, "public/app", basic("ann"))
    assert registry.call("GET", f"/v2/public/app/blobs/{digest_of(b'data')}").status == 200


def test_challenges(registry: Registry) -> None:
    refused = registry.call("GET", "/v2/")
    realm = f'Bearer realm="http://{registry.address}/token",service="tare-registry"'
    assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, realm)
    refused = push(registry, "team/app", {})
    assert refused.headers["WWW-Authenticate"] == f'{realm},scope="repository:team/app:pull,push"'
    limited = str(token(registry, "ben", "repository:team/app:pull")["token"])
    refused = push(registry, "team/app", bearer(limited))
    assert refused.status == 401 and refused.headers["WWW-Authenticate"].endswith('error="insufficient_scope"')
    refused = push(registry, "team/app", bearer("x.y.z"))
    assert refused.status == 401 and refused.headers["WWW-Authenticate"] == f'{realm},error="invalid_token"'
    assert registry.call("GET", "/v2/", headers=basic("ann")).status == 200


def test_a_token_says_no_more_than_the_rules(registry: Registry) -> None:
    found = token(registry, "ben", "repository:team/app:pull,push,delete repository:other:pull", "repository:home/ben/x:*")
    assert found["scope"] == "repository:team/app:pull,push repository:home/ben/x:delete,pull,push"
    assert found["token"] == found["access_token"] and found["expires_in"] == 300 and "refresh_token" not in found
    headers = bearer(str(found["token"]))
    assert push(registry, "team/app", headers).status == 201
    assert push(registry, "home/ben/x", headers).status == 201
    assert push(registry, "home/ben/y", headers).status == 401
    nobody = token(registry, "", "repository:public/app:pull,push", "repository:team/app:pull")
    assert nobody["scope"] == "repository:public/app:pull"
    assert registry.call("GET", "/v2/", headers=bearer(str(nobody["token"]))).status == 200


def test_refresh_tokens_end_with_the_password(registry: Registry, folder: Path) -> None:
    refresh = str(token(registry, "eve", offline_token="true", client_id="x")["refresh_token"])
    assert push(registry, "home/eve/app", bearer(refresh)).status == 401  # it says who, not what
    form = {"grant_type": "refresh_token", "refresh_token": refresh, "service": "tare-registry", "scope": "repository:home/eve/a:push"}

    def post(fields: dict[str, str]) -> http.client.HTTPResponse:
        return registry.call("POST", "/token", urlencode(fields).encode(), {"Content-Type": "application/x-www-form-urlencoded"})

    answer = json.loads(content(post(form)))
    assert (answer["scope"], answer["refresh_token"]) == ("repository:home/eve/a:push", refresh)
    assert push(registry, "home/eve/a", bearer(answer["access_token"])).status == 201
    assert post({**form, "refresh_token": answer["access_token"]}).status == 401
    assert post({**form, "service": "another"}).status == 400
    assert post({**form, "grant_type": "magic"}).status == 400
    by_password = {"grant_type": "password", "username": "eve", "password": "third", "access_type": "offline"}
    assert json.loads(content(post(by_password)))["refresh_token"]
    assert post({**by_password, "password": "wrong"}).status == 401
    write_users(folder / "users", {**USERS, "eve": "changed"})
    assert post(form).status == 401
    write_users(folder / "users", USERS)


def test_keys_rotate_and_can_be_revoked(registry: Registry, folder: Path) -> None:
    keys = folder / "root/state/keys"
    old = str(token(registry, "ann", "repository:a:push")["token"])
    (first,) = keys.iterdir()
    assert first.stat().st_mode & 0o777 == 0o600 and keys.stat().st_mode & 0o777 == 0o700
    aged = time.time() - 40 * 86400
    os.utime(first, (aged, aged))
    os.utime(keys)
    time.sleep(1.1)  # the directory is looked at once a second
    new = str(token(registry, "ann", "repository:a:push")["token"])
    kids = {entry["kid"]: entry for entry in json.loads(content(registry.call("GET", "/token/jwks.json")))["keys"]}
    assert jwt.get_unverified_header(new)["kid"] != jwt.get_unverified_header(old)["kid"] == first.stem and len(kids) == 2
    assert all("d" not in entry and entry["kty"] == "EC" for entry in kids.values())
    assert [push(registry, "a", bearer(each)).status for each in (old, new)] == [201, 201]
    first.unlink()
    time.sleep(1.1)
    assert [push(registry, "a", bearer(each)).status for each in (old, new)] == [401, 201]


def test_nothing_leaks_into_another_repository(registry: Registry) -> None:
    """A mount gives only what the caller may read anyway."""
    push(registry, "secret/app", basic("ann"), b"secret bytes")
    digest = digest_of(b"secret bytes")
    for more in ("&from=secret/app", ""):
        response = registry.call("POST", f"/v2/home/eve/stolen/blobs/uploads/?mount={digest}{more}", headers=basic("eve"))
        assert response.status == 202
        assert registry.call("HEAD", f"/v2/home/eve/stolen/blobs/{digest}", headers=basic("eve")).status == 404
    mounted = registry.call("POST", f"/v2/home/ann/mine/blobs/uploads/?mount={digest}&from=secret/app", headers=basic("ann"))
    assert mounted.status == 201


def test_the_catalog_shows_what_may_be_read(registry: Registry) -> None:
    for name in ("public/listed", "team/listed", "secret/listed"):
        push(registry, name, basic("ann"))

    def catalog(headers: dict[str, str]) -> list[str]:
        response = registry.call("GET", "/v2/_catalog", headers=headers)
        assert response.status == 200, content(response)
        return [name for name in json.loads(content(response))["repositories"] if name.endswith("/listed")]

    assert catalog(basic("ann")) == ["public/listed", "secret/listed", "team/listed"]
    assert catalog(basic("eve")) == catalog({}) == ["public/listed"]
    listing = str(token(registry, "ben", "registry:catalog:*")["token"])
    assert catalog(bearer(listing)) == ["public/listed", "team/listed"]
    refused = registry.call("GET", "/v2/_catalog", headers=bearer(str(token(registry, "ben")["token"])))
    assert refused.status == 401 and 'scope="registry:catalog:*"' in refused.headers["WWW-Authenticate"]


def test_both_logs(registry: Registry, folder: Path) -> None:
    push(registry, "team/logged", basic("ben"), b"logged")
    push(registry, "other/logged", basic("ben"), b"logged")
    push(registry, "team/logged", basic("ben", "wrong"), b"logged")
    registry.call("GET", f"/v2/team/logged/blobs/{digest_of(b'logged')}?x=%0a", headers={**basic("ben"), "User-Agent": 'a"b'})
    done, denied, wrong = [record for record in records(folder, "audit") if record["repository"] in ("team/logged", "other/logged")]
    assert (done["user"], done["action"], done["object"], done["result"]) == ("ben", "push", "blob", "done")
    assert (done["digest"], done["status"]) == (digest_of(b"logged"), 201) and str(done["address"]).startswith("127.0.0.1:")
    assert (denied["result"], denied["error"], denied["status"]) == ("refused", "DENIED", 403)
    assert (wrong["user"], wrong["claimed"], wrong["result"]) == ("", "ben", "refused")
    assert any(record["action"] == "token" and record["user"] == "eve" for record in records(folder, "audit"))
    for _ in range(100):  # a streamed answer is written down when its last byte has gone
        last = records(folder, "access")[-1]
        if last["method"] == "GET":
            break
        time.sleep(0.02)
    assert (last["method"], last["status"], last["bytes"], last["agent"], last["user"]) == ("GET", 200, 6, 'a"b', "ben")
    os.rename(folder / "audit", folder / "audit.1")
    registry.process.send_signal(1)
    for _ in range(100):
        if (folder / "audit").exists():
            break
        time.sleep(0.02)
    push(registry, "team/rotated", basic("ben"), b"logged")
    assert [record["repository"] for record in records(folder, "audit")] == ["team/rotated"]


def test_guessing_is_slowed_down(registry: Registry) -> None:
    assert push(registry, "home/eve/app", basic("eve")).status == 201
    answers = [push(registry, "home/eve/app", basic("eve", f"guess{number}")).status for number in range(12)]
    assert answers == [401] * 10 + [429] * 2
    assert push(registry, "home/eve/app", basic("eve")).status == 201  # known already
    assert push(registry, "team/app", basic("ann")).status == 201
    late = registry.call("GET", f"/token?{urlencode({'account': 'eve'})}", headers=basic("eve", "again"))
    assert (late.status, code(late)) == (429, "TOOMANYREQUESTS") and int(late.headers["Retry-After"]) > 0


def test_random_credentials_are_a_clients_fault(registry: Registry) -> None:
    """Mutations of good headers, and noise: refused, never a fault of the server, and never let in."""
    draw = random.Random(3)
    good = str(token(registry, "ann", "repository:a:push")["token"])
    parts = good.split(".")
    connection = http.client.HTTPConnection(registry.address, timeout=20)
    alphabet = "abcXYZ019-_=.~+/ \t,\"'%\x7f\xe4:"
    for _ in range(500):
        kind = draw.randrange(5)
        if kind == 0:
            value = "".join(draw.choice(alphabet) for _ in range(draw.randrange(200)))
        elif kind == 1:
            value = "Bearer " + ".".join(
                "".join(draw.choice(alphabet[:13]) for _ in range(draw.randrange(40))) for _ in range(draw.randrange(6))
            )
        elif kind == 2:
            place = draw.randrange(len(good) - 2)
            value = "Bearer " + good[:place] + draw.choice("ABCxyz019.") + good[place + 1 + draw.randrange(2) :]
        elif kind == 3:
            header = draw.choice(
                ['{"alg":"none"}', '{"alg":"HS256"}', "[]", '{"kid":[]}', '{"alg":"ES256","kid":{}}', "{" * 900, "1e999", '{"alg":1}']
            )
            value = f"Bearer {base64.urlsafe_b64encode(header.encode()).decode().rstrip('=')}.{parts[1]}.{draw.choice([parts[2], ''])}"
        else:
            value = "Basic " + base64.b64encode(bytes(draw.randrange(256) for _ in range(draw.randrange(30)))).decode()
        if value.removeprefix("Bearer ") == good:
            continue
        connection.request("GET", "/v2/", headers={"Authorization": value.encode("latin-1")})
        response = connection.getresponse()
        response.read()
        assert response.status in (400, 401, 429), value
    for query in (
        "scope=" + "x" * 5000,
        "scope=repository:%00:pull",
        "service=%ff",
        "scope=::&scope=a:b:c",
        "offline_token=maybe&account=%0d%0a",
    ):
        connection.request("GET", f"/token?{query}", headers=basic("ann"))
        response = connection.getresponse()
        response.read()
        assert response.status in (200, 400, 401), query
    for form in (b"", b"\xff\xfe", b"&" * 5000, b"grant_type=refresh_token", b"grant_type=refresh_token&refresh_token=" + b"a." * 9000):
        connection.request("POST", "/token", form, {"Content-Type": "application/x-www-form-urlencoded"})
        response = connection.getresponse()
        response.read()
        assert response.status in (400, 401), form
    connection.close()


# Somebody else's tokens


@pytest.fixture(scope="module")
def foreign(folder: Path) -> Iterator[tuple[Registry, ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey]]:
    """A registry that believes two keys of an issuer."""
    elliptic, old = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)
    keys = folder / "issuer.json"
    entries = [
        {**jwt.algorithms.ECAlgorithm.to_jwk(elliptic.public_key(), as_dict=True), "kid": "new"},
        {**jwt.algorithms.RSAAlgorithm.to_jwk(old.public_key(), as_dict=True), "kid": "old"},
    ]
    keys.write_text(json.dumps({"keys": entries}))
    config = folder / "foreign.toml"
    config.write_text(
        '[token.foreign]\nrealm = "https://auth.example/token"\nissuer = "auth.example"\n'
        f'service = "registry.example"\nkeys = "{keys}"\nalgorithms = ["ES256"]\n'
    )
    registry = Registry(folder / "foreign", "--config", str(config))
    yield registry, elliptic, old
    registry.stop()


def test_foreign_tokens(foreign: tuple[Registry, ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey]) -> None:
    registry, elliptic, old = foreign
    refused = push(registry, "a/b", {})
    wanted = 'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push"'
    assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, wanted)
    assert registry.call("GET", "/token").status == 404
    now = int(time.time())
    claims = {"iss": "auth.example", "aud": "registry.example", "sub": "zoe", "exp": now + 300}
    claims["access"] = [
        {"type": "repository", "name": "a/b", "actions": ["pull", "push"]},
        {"type": "registry", "name": "catalog", "actions": ["*"]},
    ]

    def status(headers: dict[str, str] | None = None, key: object = elliptic, algorithm: str = "ES256", **changes: object) -> int:
        changed = {name: value for name, value in {**claims, **changes}.items() if value is not None}
        signed = jwt.encode(changed, key, algorithm=algorithm, headers=headers or {"kid": "new"})  # type: ignore[arg-type]
        return push(registry, "a/b", bearer(signed)).status

    assert status() == 201
    assert status(aud=["other", "registry.example"]) == 201
    for changes in (
        {"iss": "auth.evil"}, {"aud": "other"}, {"aud": None}, {"exp": now - 60}, {"exp": None}, {"nbf": now + 90}, {"access": []},
        {"access": "all"}, {"access": [{"type": "repository", "name": "a/b", "actions": ["pull"]}]},
        {"access": [{"type": "repository", "name": "a/*", "actions": ["*"]}]}, {"iss": None}, {"exp": "soon"},
    ):  # fmt: skip
        assert status(**changes) == 401, changes
    assert status({"kid": "unknown"}) == 401
    assert status({"kid": "old"}, old, "RS256") == 401  # a key that is known, an algorithm that is not allowed
    assert status(key=ec.generate_private_key(ec.SECP256R1())) == 401
    public = elliptic.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    header, body = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "HS256", "kid": "new"}, claims))

    forged = b".".join(
        (header, body, base64.urlsafe_b64encode(hmac.new(public, header + b"." + body, hashlib.sha256).digest()).rstrip(b"="))
    )
    assert push(registry, "a/b", bearer(forged.decode())).status == 401
    assert status({"kid": "new", "jwk": {}, "x5c": [], "jku": "http://127.0.0.1:1/"}) == 201  # what a token brings along is not looked at
    catalog = registry.call("GET", "/v2/_catalog", headers=bearer(jwt.encode(claims, elliptic, algorithm="ES256", headers={"kid": "new"})))
    assert json.loads(content(catalog))["repositories"] == ["a/b"]


def test_one_registry_believes_anothers_tokens(registry: Registry, tmp_path: Path) -> None:
    """The own service of the first is the foreign one of the second, for a real client."""
    (tmp_path / "keys.json").write_bytes(content(registry.call("GET", "/token/jwks.json")))
    config = tmp_path / "second.toml"
    config.write_text(
        f'[token.foreign]\nrealm = "http://{registry.address}/token"\nissuer = "tare-registry"\n'
        f'service = "tare-registry"\nkeys = "{tmp_path}/keys.json"\n'
    )
    second = Registry(tmp_path / "second", "--config", str(config))
    try:
        _skopeo_login(second, tmp_path, "ann")
        _skopeo(tmp_path, "copy", f"dir:{_layout(tmp_path)}", f"docker://{second.address}/team/app:v1", "--dest-tls-verify=false")
        out = _skopeo(tmp_path, "list-tags", f"docker://{second.address}/team/app", "--tls-verify=false")
        assert json.loads(out)["Tags"] == ["v1"]
    finally:
        second.stop()


# Real clients (docker, with dockerd's and with our daemon: test_registry_dockerd)


def _skopeo(folder: Path, *arguments: str, check: bool = True, user: str = "") -> str:
    done = subprocess.run(
        ["skopeo", "--insecure-policy", *arguments, *(("--authfile", str(folder / "auth.json")) if arguments[0] != "copy" else ())],
        capture_output=True,
        text=True,
        check=False,
        input=user,
        env={**os.environ, "REGISTRY_AUTH_FILE": str(folder / "auth.json")},
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout if check else done.stderr


def _skopeo_login(registry: Registry, folder: Path, user: str) -> None:
    _skopeo(folder, "login", "--tls-verify=false", "-u", user, "-p", USERS[user], registry.address)


def _layout(folder: Path) -> Path:
    """An image of one empty layer in skopeo's dir format."""
    target = folder / "image"
    target.mkdir()
    layer = bytes(10240)
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]}}).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(config), "size": len(config)},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest_of(layer), "size": len(layer)}],
    }
    (target / "version").write_text("Directory Transport Version: 1.1\n")
    (target / "manifest.json").write_text(json.dumps(manifest))
    for data in (layer, config):
        (target / digest_of(data).partition(":")[2]).write_bytes(data)
    return target


@pytest.mark.peer
@pytest.mark.parametrize("mode", ["tokens", "passwords"])
def test_skopeo(folder: Path, registry: Registry, tmp_path: Path, mode: str) -> None:
    own = None
    if mode == "passwords":
        own = registry = Registry(tmp_path / "root", "--htpasswd", str(write_users(tmp_path / "users", USERS)))
    try:
        image = _layout(tmp_path)
        place = f"docker://{registry.address}/team/{mode}:v1"
        denied = _skopeo(tmp_path, "copy", f"dir:{image}", place, "--dest-tls-verify=false", check=False)
        assert "unauthorized" in denied or "authentication required" in denied or "access to the resource is denied" in denied
        wrong = _skopeo(tmp_path, "login", "--tls-verify=false", "-u", "ann", "-p", "no", registry.address, check=False)
        assert "invalid username/password" in wrong
        _skopeo_login(registry, tmp_path, "ann")
        _skopeo(tmp_path, "copy", f"dir:{image}", place, "--dest-tls-verify=false")
        _skopeo(
            tmp_path, "copy", place, f"docker://{registry.address}/public/{mode}:v1", "--src-tls-verify=false", "--dest-tls-verify=false"
        )
        _skopeo(tmp_path, "copy", place, f"dir:{tmp_path / 'back'}", "--src-tls-verify=false")
        assert json.loads((tmp_path / "back/manifest.json").read_bytes())["config"]["digest"]
        (tmp_path / "auth.json").unlink()
        if mode == "tokens":
            anonymous = f"docker://{registry.address}/public/{mode}:v1"
            _skopeo(tmp_path, "copy", anonymous, f"dir:{tmp_path / 'anonymous'}", "--src-tls-verify=false")
        assert _skopeo(tmp_path, "inspect", place, "--tls-verify=false", check=False)
    finally:
        if own is not None:
            own.stop()


# An open registry


def test_an_open_registry_writes_on_loopback_only(tmp_path: Path) -> None:
    """Neither a web page under another name (DNS rebinding) nor another machine writes without a password."""
    registry = Registry(tmp_path / "open")
    try:
        allowed = ("localhost:5000", "LOCALHOST", "127.0.0.1", "127.1.2.3:5000", "[::1]:5000")
        refused = (
            "evil.example",
            "192.0.2.1:5000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.evil.example:5000",
            "[::2]",
            "",
            "[",
        )
        for host, status in (*((host, 201) for host in allowed), *((host, 403) for host in refused)):
            assert push(registry, "a", {"Host": host}).status == status, host
        assert registry.call("GET", "/v2/", headers={"Host": "evil.example"}).status == 200
    finally:
        registry.stop()
    said_so = Registry(tmp_path / "told", "--anonymous-push")
    try:
        assert push(said_so, "a", {"Host": "registry.lan"}).status == 201
    finally:
        said_so.stop()


def test_read_only(tmp_path: Path) -> None:
    registry = Registry(tmp_path, "--read-only")
    try:
        refused = push(registry, "a", {})
        assert (refused.status, code(refused)) == (403, "DENIED") and "read-only" in quote(content(refused), safe=" -")
        assert registry.call("DELETE", "/v2/a/manifests/x").status == 403
    finally:
        registry.stop()
