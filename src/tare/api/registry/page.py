"""The web page: what the registry holds, for people.

    GET /                           repositories
    GET /web/NAME                   tags and untagged manifests
    GET /web/NAME?reference=REF     a manifest: layers, platforms, configuration, referrers

Nothing but HTML with one style sheet inside: no script, no picture, nothing from elsewhere, and a content security policy that allows just
that. It shows what the caller may pull; who has a password gives it the browser's way (Basic). It changes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from urllib.parse import quote, urlencode

from tare.api.registry import inventory
from tare.api.registry.access import NOBODY, Access, Caller
from tare.api.registry.blobs import Blobs
from tare.api.registry.exchange import Exchange
from tare.api.registry.inventory import ManifestDetails, ManifestEntry, Part, RepositoryEntry
from tare.api.registry.markup import Content, Markup, element, together
from tare.api.registry.names import REPOSITORY, TAG
from tare.errors import InvalidArgument
from tare.http.message import Request, Response
from tare.registry.errors import RegistryError
from tare.registry.storage import Storage

PER_PAGE = 100
_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--link:#0b62c4}
@media(prefers-color-scheme:dark){:root{--link:#7ab8ff}}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:72rem;padding:0 1.5rem 3rem}
header{display:flex;gap:1rem;align-items:baseline;border-bottom:1px solid var(--line);padding:1.2rem 0 .8rem;margin-bottom:1.2rem}
header a.home{font-weight:700;font-size:1.15rem;color:inherit}
header span.who{margin-left:auto}
h1{font-size:1.35rem;margin:.4rem 0 .8rem;overflow-wrap:anywhere}
h2{font-size:1.05rem;margin:1.6rem 0 .4rem}
a{color:var(--link);text-decoration:none}
a:hover{text-decoration:underline}
table{border-collapse:collapse;width:100%}
th{text-align:left;font-weight:600;font-size:.85rem;opacity:.75}
th,td{padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.number,th.number{text-align:right;white-space:nowrap}
code{font:13px/1.5 ui-monospace,monospace;overflow-wrap:anywhere}
.number+th,.number+td{padding-left:1.2rem}
p.command{background:var(--soft);border:1px solid var(--line);border-radius:6px;padding:.5rem .8rem}
.faint{opacity:.7}
"""
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
_SIGN_IN = (("WWW-Authenticate", 'Basic realm="Tare registry", charset="UTF-8"'),)


class WebPage:
    """Answers ``/`` and below ``/web/``."""

    def __init__(self, storage: Storage, access: Access, blobs: Blobs) -> None:
        self._storage = storage
        self._access = access
        self._run = blobs.run

    async def handle(self, exchange: Exchange) -> Response:
        """One page; what is refused is a page, too."""
        request = exchange.request
        if request.method not in ("GET", "HEAD"):
            raise RegistryError("UNSUPPORTED", f"method {request.method} is not supported here", headers=(("Allow", "GET, HEAD"),))
        exchange.kind = "page"
        try:
            caller = exchange.caller = await self._access.identify(request)
            if caller is NOBODY and ("login" in request.query or not self._access.rights.for_nobody) and not self._access.is_open:
                raise RegistryError("UNAUTHORIZED", "this registry wants to know who you are")
            title, body = await self._page(request, caller)
        except RegistryError as error:
            exchange.error = error.code
            headers = _SIGN_IN if error.status == 401 and self._access.passwords else ()
            more = tuple(header for header in error.headers if header[0] != "WWW-Authenticate")
            text = _whole(request, NOBODY, "Not possible", element("p", f"{error}."), sign_in=False)
            return Response(error.status, text, "text/html; charset=utf-8", (*_HEADERS, *headers, *more))
        return Response(200, _whole(request, caller, title, body, sign_in=self._can_sign_in), "text/html; charset=utf-8", _HEADERS)

    @property
    def _can_sign_in(self) -> bool:
        return self._access.passwords is not None

    async def _page(self, request: Request, caller: Caller) -> tuple[str, Markup]:
        name = request.path.removeprefix("/web").strip("/")
        if not name:
            return "Repositories", await self._repositories(request, caller)
        if not REPOSITORY.fullmatch(name) or not self._access.may(caller, "pull", name):
            raise _unknown(name)  # who may not see it is not to learn whether it exists
        reference = request.query.get("reference", "")
        if not reference:
            entries = await self._run(inventory.manifests, self._storage, name)
            if not entries and not await self._run(self._storage.has_repository, name):
                raise _unknown(name)
            return name, _repository(request, name, entries)
        if not TAG.fullmatch(reference) and ":" not in reference:
            raise RegistryError("MANIFEST_UNKNOWN", "there is no such manifest")
        try:
            found = await self._run(inventory.details, self._storage, name, reference)
        except InvalidArgument:
            raise RegistryError("MANIFEST_UNKNOWN", "there is no such manifest") from None
        return f"{name}{'@' if ':' in reference else ':'}{reference}", _manifest(request, name, reference, found)

    async def _repositories(self, request: Request, caller: Caller) -> Markup:
        names = await self._run(self._storage.repositories)
        visible = [name for name in names if self._access.may(caller, "pull", name)]
        after = request.query.get("after", "")
        rest = [name for name in visible if name > after] if after else visible
        shown = rest[:PER_PAGE]
        entries = await self._run(lambda: [inventory.repository(self._storage, name) for name in shown])
        more = element("p", _link("further repositories", f"/?{urlencode({'after': shown[-1]})}")) if len(rest) > len(shown) else None
        if not entries:
            return element("p", "There is no repository that you may see.", class_="faint")
        heads = ("Repository", "Tags", "Size", "Last push")
        count = element("p", f"{len(visible)} repositories", class_="faint")
        return together(count, _table(heads, [_repository_row(entry) for entry in entries], numbers=(1, 2)), more)


def _unknown(name: str) -> RegistryError:
    return RegistryError("NAME_UNKNOWN", f"there is no repository {name[:200]}, or it is not for you")


def _whole(request: Request, caller: Caller, title: str, body: Markup, *, sign_in: bool) -> bytes:
    host = request.headers.get("host", "") or "registry"
    who: Content = None
    if caller.name:
        who = element("span", f"signed in as {caller.name}", class_="who faint")
    elif sign_in:
        who = element("span", _link("sign in", "/?login="), class_="who")
    page = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("title", f"{title} · {host}"),
            Markup(f"<style>{_STYLE}</style>"),
        ),
        element(
            "body",
            element("header", element("a", host, href="/", class_="home"), element("span", "Tare registry", class_="faint"), who),
            element("main", element("h1", title), body),
        ),
        lang="en",
    )
    return b"<!doctype html>\n" + page.encode()


def _repository_row(entry: RepositoryEntry) -> tuple[Content, ...]:
    return _link(entry.name, f"/web/{quote(entry.name)}"), str(entry.tags), _size(entry.size), _moment(entry.pushed)


def _repository(request: Request, name: str, entries: Sequence[ManifestEntry]) -> Markup:
    rows = []
    for entry in entries:
        label: Content = _link(entry.tag, _place(name, entry.tag)) if entry.tag else element("span", "without a tag", class_="faint")
        rows.append((label, _digest(name, entry.digest), _kind(entry.media_type), _size(entry.size), _moment(entry.pushed)))
    if not rows:
        return element("p", "There is no manifest in it (any more).", class_="faint")
    cut = len(rows) >= inventory.LONGEST
    more = element("p", f"The list ends after {inventory.LONGEST} lines.", class_="faint") if cut else None
    return together(_table(("Tag", "Digest", "Kind", "Size", "Pushed"), rows, numbers=(3,)), more)


def _manifest(request: Request, name: str, reference: str, found: ManifestDetails) -> Markup:
    separator = "@" if ":" in reference else ":"
    command = f"docker pull {request.headers.get('host', '')}/{name}{separator}{reference}"
    facts: list[tuple[Content, ...]] = [
        ("Digest", element("code", found.digest)),
        ("Media type", element("code", found.media_type)),
        ("Size of the manifest", _size(found.size)),
    ]
    if found.config is not None:
        facts.append(("Configuration", together(element("code", found.config.digest), f" ({_size(found.config.size)})")))
    if found.subject:
        facts.append(("Refers to", _digest(name, found.subject)))
    facts += [(key, element("code", value)) for key, value in found.facts.items()]
    pieces: list[Content] = [
        element("p", _link(f"← {name}", f"/web/{quote(name)}")),
        element("p", element("code", command), class_="command") if not found.subject else None,
        _table(("", ""), facts),
    ]
    total = sum(part.size for part in found.parts)
    if found.is_index:
        rows = [(part.note, _digest(name, part.digest), _kind(part.media_type), _size(part.size)) for part in found.parts]
        pieces += [element("h2", "Manifests"), _table(("Platform", "Digest", "Kind", "Size"), rows, numbers=(3,))]
    else:
        layers = [_layer_row(position, part) for position, part in enumerate(found.parts, 1)]
        pieces += [element("h2", f"Layers ({_size(total)})"), _table(("", "Digest", "Media type", "Size"), layers, numbers=(3,))]
    if found.annotations:
        pieces += [
            element("h2", "Annotations"),
            _table(("", ""), [(key, element("code", value)) for key, value in found.annotations.items()]),
        ]
    if found.referrers:
        others = [(part.note or _kind(part.media_type), _digest(name, part.digest), _size(part.size)) for part in found.referrers]
        pieces += [element("h2", "Referrers"), _table(("Kind", "Digest", "Size"), others, numbers=(2,))]
    return together(*pieces)


def _layer_row(position: int, part: Part) -> tuple[Content, ...]:
    step = element("div", element("code", part.note[:300]), class_="faint") if part.note else None
    return str(position), together(element("code", part.digest), step), element("code", part.media_type), _size(part.size)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Content]], numbers: Sequence[int] = ()) -> Markup:
    def cell(kind: str, position: int, content: Content) -> Markup:
        return element(kind, content, class_="number") if position in numbers else element(kind, content)

    top = element("tr", *(cell("th", position, text) for position, text in enumerate(heads))) if any(heads) else None
    lines = (element("tr", *(cell("td", position, content) for position, content in enumerate(row))) for row in rows)
    return element("table", top, *lines)


def _place(name: str, reference: str) -> str:
    return f"/web/{quote(name)}?{urlencode({'reference': reference})}"


def _digest(name: str, digest: str) -> Markup:
    return element("a", element("code", digest), href=_place(name, digest))


def _link(text: str, target: str) -> Markup:
    return element("a", text, href=target)


def _kind(media_type: str) -> str:
    if "index" in media_type or "manifest.list" in media_type:
        return "index"
    return "manifest" if "manifest" in media_type else media_type


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds)) if seconds else ""
