"""The registry server's web page, as a browser sees it, with content that tries to be more than text."""

from __future__ import annotations

import base64
import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import bcrypt
import pytest

from registry_world import INDEX, OCI, Registry, content, digest_of
from tare.api.registry.markup import Markup, element, together

EVIL = "<script>document.title='pwned'</script>"
LAYER = random.Random(1).randbytes(300_000)
CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()


def login(name: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{name}:secret'.encode()).decode()}"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """``public/app`` for everybody, ``private/app`` for ann."""
    folder = tmp_path_factory.mktemp("page")
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    (folder / "users").write_text(f"ann:{hashed}\neve:{hashed}\n")
    (folder / "registry.toml").write_text(
        f'[access]\nhtpasswd = "{folder}/users"\n'
        '[[access.rule]]\nrepositories = ["public/**"]\nrights = ["pull"]\nanonymous = true\n'
        '[[access.rule]]\nrepositories = ["**"]\nrights = ["pull", "push", "delete"]\nusers = ["ann"]\n'
    )
    registry = Registry(folder / "root", "--config", str(folder / "registry.toml"))
    for name in ("public/app", "private/app"):
        fill(registry, name)
    yield registry
    registry.stop()


def fill(registry: Registry, name: str) -> None:
    """An image with hostile words in every free place, an index of it, and a referrer."""
    history = [{"created_by": f"RUN {EVIL}"}, {"created_by": "ENV x", "empty_layer": True}]
    settings = {"Cmd": ["sh", EVIL], "Labels": {EVIL: EVIL}}
    config = json.dumps({"architecture": EVIL, "os": "linux", "created": EVIL, "config": settings, "history": history}).encode()

    def blob(data: bytes) -> str:
        assert registry.call("POST", f"/v2/{name}/blobs/uploads/?digest={digest_of(data)}", data, login("ann")).status == 201
        return digest_of(data)

    def manifest(reference: str, document: dict[str, object]) -> str:
        data = json.dumps(document).encode()
        headers = {"Content-Type": str(document["mediaType"]), **login("ann")}
        assert registry.call("PUT", f"/v2/{name}/manifests/{reference or digest_of(data)}", data, headers).status == 201
        return digest_of(data)

    image: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI,
        "config": {"mediaType": f"application/{EVIL}", "digest": blob(config), "size": len(config)},
        "layers": [{"mediaType": f"application/{EVIL}", "digest": blob(LAYER), "size": len(LAYER)}],
        "annotations": {EVIL: '"><img src=x onerror=document.title="pwned">'},
    }
    digest = manifest("v1", image)
    subject = {"mediaType": OCI, "digest": digest, "size": 1}
    manifest("", image | {"subject": subject, "artifactType": EVIL})
    platform = {"os": "linux", "architecture": EVIL}
    manifest(
        "all",
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"mediaType": OCI, "digest": digest, "size": 1, "platform": platform}]},
    )


class Checker(HTMLParser):
    """Elements and attributes that a page uses, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        for name, value in attrs:
            assert name in ("href", "class", "lang", "charset", "name", "content"), name
            if name == "href":
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words += data


def look(registry: Registry, path: str, user: str = "") -> Checker:
    response = registry.call("GET", path, headers=login(user) if user else {})
    assert response.status == 200, content(response)
    policy = response.headers["Content-Security-Policy"]
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[A-Za-z0-9+/=]{44}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'", policy
    )
    assert response.headers["X-Content-Type-Options"] == "nosniff" and response.headers["Cache-Control"] == "no-store"
    found = Checker(content(response).decode())
    assert found.names <= set("html head meta title style body header main h1 h2 p a span table tr th td code div".split())
    assert all(link.startswith("/") and not link.startswith("//") for link in found.links)
    return found


def test_pages_and_rights(registry: Registry) -> None:
    """Every link leads to a page; everything is listed; nobody sees what he may not pull, nor whether it is there."""
    front = look(registry, "/")
    assert "public/app" in front.words and "private/app" not in front.words and "/?login=" in front.links
    assert "private/app" in look(registry, "/", "ann").words and "private/app" not in look(registry, "/", "eve").words
    seen, waiting = set(), ["/"]
    while waiting:
        path = waiting.pop()
        page = look(registry, path, "ann")
        seen.add(path)
        waiting += [link for link in page.links if link not in seen and "login" not in link]
    assert {"/", "/web/public/app", "/web/public/app?reference=v1", "/web/public/app?reference=all"} <= seen and len(seen) >= 13
    tags = look(registry, "/web/public/app").words
    assert "v1" in tags and "all" in tags and "without a tag" in tags and "301 kB" in tags
    details = look(registry, "/web/public/app?reference=v1").words
    assert digest_of(LAYER) in details and "300 kB" in details and f"RUN {EVIL}" in details and "docker pull 127.0.0.1" in details
    assert EVIL in look(registry, "/web/public/app?reference=all").words
    for path, user, status in (
        ("/web/private/app", "", 404), ("/web/private/none", "", 404), ("/web/private/app", "eve", 404), ("/web/private/app", "ann", 200),
        ("/web/public/app?reference=none", "", 404), ("/web/public/app?reference=sha256:x", "", 404),
        ("/web/public/none", "", 404),
        (f"/web/public/app?reference={EVIL.replace(' ', '')}", "", 404), ("/web/../etc", "", 404),
        ("/web/%00", "", 404), ("/web/%c3%84", "", 404),
        ("/?login=", "", 401), ("/?after=zzz", "", 200),
    ):  # fmt: skip
        response = registry.call("GET", path, headers=login(user) if user else {})
        assert response.status == status, path
        assert "Content-Security-Policy" in response.headers and EVIL.encode() not in content(response)
        assert (response.headers.get("WWW-Authenticate", "").partition(" ")[0] == "Basic") is (status == 401)
    assert registry.call("POST", "/").status == 405 and registry.call("HEAD", "/").status == 200
    assert registry.call("GET", "/", headers={"Authorization": "Basic ZXZlOndyb25n"}).status == 401


@pytest.mark.peer
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_in_a_browser(registry: Registry, tmp_path: Path) -> None:
    """Chromium's own tree of the page: the text is there, as text, and no word of the content became a program."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr", "--dump-dom"]
    url = f"http://{registry.address}/web/public/app?reference=v1"
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=120, check=False)
    page = Checker(done.stdout)
    assert re.search(rf"<title>public/app:v1 · {registry.address}</title>", done.stdout)
    assert digest_of(LAYER) in page.words and EVIL in page.words and "script" not in page.names and "img" not in page.names
    assert "Refused to" not in done.stderr  # the policy allows the style sheet, and nothing wanted more
    assert "<style>" in done.stdout


def test_a_registry_may_have_no_page(tmp_path: Path) -> None:
    registry = Registry(tmp_path, "--no-page")
    try:
        assert registry.call("GET", "/").status == 404 and registry.call("GET", "/web/").status == 404
    finally:
        registry.stop()


def test_text_is_never_markup() -> None:
    assert element("a", "Tom & <b>", href='/?q="<x>') == '<a href="/?q=&quot;&lt;x&gt;">Tom &amp; &lt;b&gt;</a>'
    assert together("<", Markup("<br>"), None) == "&lt;<br>" and element("meta", charset="utf-8") == '<meta charset="utf-8">'
