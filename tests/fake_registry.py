"""A registry for tests that can be told to misbehave, on aiohttp.web: it truncates, lies, refuses, redirects."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from image_builder import BuiltImage, sha256

Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class FakeRegistry:
    """What it serves and how. ``faults`` may answer a request first; return ``None`` to let the registry answer."""

    address: str = ""
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    ranges: bool = True
    chunk: int = 64 << 10
    delay: float = 0.0
    uploads: dict[str, bytearray] = field(default_factory=dict)
    """Uploads under way, by id."""
    mounts: bool = True
    requests: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Method, path with query, Authorization, Range."""

    def add(self, image: BuiltImage, name: str = "app", tag: str = "latest") -> BuiltImage:
        self.manifests[f"{name}:{tag}"] = self.manifests[f"{name}:{image.digest}"] = (image.manifest, image.media_type)
        self.blobs.update(image.blobs)
        return image

    def add_document(self, raw: bytes, media_type: str, name: str = "app", tag: str = "latest") -> str:
        self.manifests[f"{name}:{tag}"] = self.manifests[f"{name}:{sha256(raw)}"] = (raw, media_type)
        return sha256(raw)

    def asked(self, part: str, method: str = "GET") -> list[tuple[str, str, str, str]]:
        """The requests whose path has ``part`` in it."""
        return [request for request in self.requests if request[0] == method and part in request[1]]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = request.headers
        self.requests.append((request.method, request.path_qs, headers.get("Authorization", ""), headers.get("Range", "")))
        for fault in self.faults:
            answer = await fault(request)
            if answer is not None:
                return answer
        path = request.path
        if path == "/v2/":
            return web.json_response({})
        if "/blobs/uploads/" in path:
            return await self._upload(request)
        name, _, reference = path.removeprefix("/v2/").partition("/manifests/")
        if reference and request.method == "PUT":
            raw = await request.read()
            self.manifests[f"{name}:{reference}"] = self.manifests[f"{name}:{sha256(raw)}"] = (raw, request.content_type)
            return web.Response(status=201, headers={"Docker-Content-Digest": sha256(raw)})
        if reference:
            return self._manifest(name, reference)
        name, _, _ = path.removeprefix("/v2/").partition("/tags/list")
        if path.endswith("/tags/list"):
            return self._tags(request, name)
        name, _, digest = path.removeprefix("/v2/").partition("/blobs/")
        if digest in self.blobs and request.method == "HEAD":
            return web.Response(headers={"Content-Length": str(len(self.blobs[digest]))})
        if digest in self.blobs:
            return await self.serve_blob(request, self.blobs[digest])
        return error(404, "BLOB_UNKNOWN", "blob unknown to registry")

    async def _upload(self, request: web.Request) -> web.Response:
        """The upload protocol of the distribution spec: POST, PATCH in order, PUT, and GET for how far it got."""
        name, _, identifier = request.path.removeprefix("/v2/").partition("/blobs/uploads/")
        if request.method == "POST":
            if self.mounts and request.query.get("mount", "") in self.blobs:
                return web.Response(status=201)
            identifier = f"u{len(self.requests)}"
            self.uploads[identifier] = bytearray()
            return web.Response(status=202, headers={"Location": f"/v2/{name}/blobs/uploads/{identifier}?state=1"})
        if identifier not in self.uploads:
            return error(404, "BLOB_UPLOAD_UNKNOWN", "")
        received = self.uploads[identifier]
        headers = {"Location": f"/v2/{name}/blobs/uploads/{identifier}?state=1"}
        if request.method == "PATCH" and request.headers["Content-Range"].partition("-")[0] != str(len(received)):
            return web.Response(status=416)
        if request.method in ("PATCH", "PUT"):
            async for chunk in request.content.iter_any():
                received += chunk
        headers["Range"] = f"0-{max(len(received) - 1, 0)}"
        if request.method == "DELETE":
            del self.uploads[identifier]
        elif request.method == "PUT":
            data = bytes(self.uploads.pop(identifier))
            if sha256(data) != request.query.get("digest"):
                return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
            self.blobs[sha256(data)] = data
            return web.Response(status=201)
        return web.Response(status=202 if request.method == "PATCH" else 204, headers=headers)

    def _tags(self, request: web.Request, name: str) -> web.Response:
        """Two to a page, however many are asked for: clients must follow the link."""
        tags = [key.partition(":")[2] for key in self.manifests if key.startswith(f"{name}:") and "sha256:" not in key]
        if not tags:
            return error(404, "NAME_UNKNOWN", "")
        first = tags.index(request.query["last"]) + 1 if "last" in request.query else 0
        page = tags[first : first + 2]
        more = {"Link": f'</v2/{name}/tags/list?n=2&last={page[-1]}>; rel="next"'} if first + 2 < len(tags) else {}
        return web.json_response({"name": name, "tags": page}, headers=more)

    def _manifest(self, name: str, reference: str) -> web.Response:
        found = self.manifests.get(f"{name}:{reference}")
        if found is None:
            known = any(key.startswith(f"{name}:") for key in self.manifests)
            return error(404, "MANIFEST_UNKNOWN" if known else "NAME_UNKNOWN", "manifest unknown" if known else "")
        return web.Response(body=found[0], content_type=found[1], headers={"Docker-Content-Digest": sha256(found[0])})

    async def serve_blob(self, request: web.Request, data: bytes, announce: int | None = None) -> web.StreamResponse:
        """Send ``data`` (or the asked range of it), in chunks; ``announce`` is a Content-Length that may be a lie."""
        start, total = 0, len(data)
        wanted = request.headers.get("Range", "")
        ranged = self.ranges and wanted.startswith("bytes=")
        if ranged:
            first, _, last = wanted[6:].partition("-")
            start, data = int(first), data[: int(last) + 1 if last else None]
        response = web.StreamResponse(status=206 if ranged else 200)
        response.content_length = len(data) - start if announce is None else announce
        if ranged:
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{total}"
        await response.prepare(request)
        for position in range(start, len(data), self.chunk):
            await response.write(data[position : position + self.chunk])
            if self.delay:
                await asyncio.sleep(self.delay)
        return response


@dataclass
class TokenServer:
    """Guards a registry with Bearer tokens: ``install`` it. Tokens say what they are good for and when they end."""

    users: dict[str, str] = field(default_factory=lambda: {"alice": "x"})
    lifetime: int = 300
    refresh: str = ""
    """The identity token that a login gets, if any."""
    asked: list[dict[str, str]] = field(default_factory=list)
    granted: dict[str, set[str]] = field(default_factory=dict)
    realm: str = ""

    def install(self, registry: FakeRegistry) -> TokenServer:
        self.realm = self.realm or f"http://{registry.address}/token"
        registry.faults.append(self._guard)
        return self

    def revoke(self) -> None:
        """Let every token run out now."""
        self.granted.clear()

    async def _guard(self, request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            return await self.answer(request)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        wanted = _scope_of(request)
        if token in self.granted and (not wanted or wanted in self.granted[token]):
            return None
        scope = f',scope="{wanted}"' if wanted else ""
        challenge = f'Bearer realm="{self.realm}",service="test"{scope}'
        return error(401, "UNAUTHORIZED", "authentication required", WWW_Authenticate=challenge)

    async def answer(self, request: web.Request) -> web.Response:
        query = {name: " ".join(request.query.getall(name)) for name in request.query}
        form = await request.post() if request.method == "POST" else {}
        given = query | {name: str(value) for name, value in form.items()}
        self.asked.append(given | {"method": request.method, "authorization": request.headers.get("Authorization", "")})
        if request.method == "POST":
            user = "alice" if self.refresh and given.get("refresh_token") == self.refresh else None
        else:
            user = self._user(request.headers.get("Authorization", ""))
        if user is None:
            return error(401, "UNAUTHORIZED", "incorrect username or password")
        token = f"token{len(self.asked)}"
        scopes = {part for part in given.get("scope", "").split() if user or not part.endswith("push")}
        self.granted[token] = scopes | {part.removesuffix(",push") for part in scopes}
        kind = "access_token" if request.method == "POST" else "token"
        document: dict[str, object] = {kind: token, "expires_in": self.lifetime}
        if given.get("offline_token") and self.refresh:
            document["refresh_token"] = self.refresh
        return web.json_response(document)

    def _user(self, header: str) -> str | None:
        if not header:
            return ""
        name, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
        return name if self.users.get(name) == password else None


def _scope_of(request: web.Request) -> str:
    name = request.path.removeprefix("/v2/")
    for part in ("/manifests/", "/blobs/", "/tags/"):
        if part in name:
            right = "pull" if request.method in ("GET", "HEAD") else "pull,push"
            return f"repository:{name.partition(part)[0]}:{right}"
    return ""


def error(status: int, code: str, message: str, **headers: str) -> web.Response:
    document = {"errors": [{"code": code, "message": message, "detail": None}]}
    return web.json_response(document, status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})


@asynccontextmanager
async def serving(registry: FakeRegistry | None = None, ssl: object = None) -> AsyncIterator[FakeRegistry]:
    """Serve on a free loopback port; ``address`` then is ``127.0.0.1:PORT``."""
    found = registry or FakeRegistry()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", found.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl)  # type: ignore[arg-type]
        await site.start()
        found.address = f"127.0.0.1:{runner.addresses[0][1]}"
        yield found
    finally:
        await runner.cleanup()


class Background:
    """A fake registry on an event loop of its own, beside a test that is not asynchronous."""

    def __init__(self) -> None:
        self.registry = FakeRegistry()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with serving(self.registry):
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> FakeRegistry:
        self._thread.start()
        assert self._ready.wait(20)
        return self.registry

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
