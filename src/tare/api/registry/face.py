"""The OCI distribution specification 1.1 as HTTP handlers over ``registry.storage``. Docker's registry clients speak the same.

    GET  /v2/                               is it a registry
    *    /v2/NAME/manifests/REFERENCE       GET HEAD PUT DELETE
    *    /v2/NAME/blobs/DIGEST              GET (ranges) HEAD DELETE
    *    /v2/NAME/blobs/uploads/[ID]        POST (monolithic, mount) PATCH (streamed, chunked) PUT GET DELETE
    GET  /v2/NAME/tags/list, /v2/NAME/referrers/DIGEST, /v2/_catalog

Every answer to a client's fault is one of the specification's errors. Each request is told to the observers when it has been answered.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from tare.api.registry import manifests
from tare.api.registry.access import Access, Caller
from tare.api.registry.blobs import VERSION, Blobs, created
from tare.api.registry.exchange import Exchange, Observer
from tare.api.registry.names import NAME_LIMIT, REPOSITORY, TAG
from tare.errors import InvalidArgument
from tare.http.message import Request, RequestError, Response
from tare.oci.digest import Digest
from tare.registry.errors import RegistryError
from tare.registry.objects import Busy, Unavailable
from tare.registry.quotas import Quotas
from tare.registry.storage import Storage, busy

if TYPE_CHECKING:
    from tare.api.registry.measures import Health
    from tare.api.registry.page import WebPage
    from tare.api.registry.token_service import TokenService
    from tare.registry.upstream import Place, PullThrough

log = logging.getLogger("tare.registry")

PAGE = 1000
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FAILING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EROFS, errno.ESTALE)
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
_ROUTES = (
    (re.compile(r"/v2/(?P<name>.+)/manifests/(?P<reference>[^/]+)"), "manifest"),
    (re.compile(r"/v2/(?P<name>.+)/blobs/uploads/?"), "uploads"),
    (re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<upload>[^/]+)"), "upload"),
    (re.compile(r"/v2/(?P<name>.+)/blobs/(?P<digest>[^/]+)"), "blob"),
    (re.compile(r"/v2/(?P<name>.+)/tags/list"), "tags"),
    (re.compile(r"/v2/(?P<name>.+)/referrers/(?P<digest>[^/]+)"), "referrers"),
)
_RIGHTS = {
    ("manifest", "PUT"): "push",
    ("manifest", "DELETE"): "delete",
    ("blob", "DELETE"): "delete",
    ("uploads", "POST"): "push",
    ("upload", "GET"): "push",
    ("upload", "PATCH"): "push",
    ("upload", "PUT"): "push",
    ("upload", "DELETE"): "push",
}
"""What a request needs, where it is not ``pull``."""

Handler = Callable[[Request, dict[str, str]], Awaitable[Response | None]]


class RegistryFace:
    """``handle`` is the HTTP server's handler."""

    def __init__(
        self,
        storage: Storage,
        access: Access,
        *,
        deletion: bool = True,
        quotas: dict[str, int] | None = None,
        observers: Sequence[Observer] = (),
        tokens: TokenService | None = None,
        health: Health | None = None,
        through: PullThrough | None = None,
        page: bool = False,
    ) -> None:
        self.storage = storage
        self.access = access
        self._observers = tuple(observers)
        self._tokens = tokens
        self._health = health
        self._through = through
        self._page: WebPage | None = None
        self._wants_page = page
        self._quotas = Quotas(storage, quotas)
        self._blobs = blobs = Blobs(storage, self._quotas, deletion=deletion, readable=self._readable)
        self._ask, self._run = blobs.ask, blobs.run
        self._handlers: dict[tuple[str, str], Handler] = {
            ("manifest", "GET"): self._manifest_get,
            ("manifest", "HEAD"): self._manifest_get,
            ("manifest", "PUT"): self._manifest_put,
            ("manifest", "DELETE"): self._manifest_delete,
            ("uploads", "POST"): blobs.uploads_post,
            ("upload", "GET"): blobs.upload_get,
            ("upload", "PATCH"): blobs.upload_patch,
            ("upload", "PUT"): blobs.upload_put,
            ("upload", "DELETE"): blobs.upload_delete,
            ("blob", "GET"): blobs.blob_get,
            ("blob", "HEAD"): blobs.blob_head,
            ("blob", "DELETE"): blobs.blob_delete,
            ("tags", "GET"): self._tags_get,
            ("referrers", "GET"): self._referrers_get,
        }

    def close(self) -> None:
        """End the threads."""
        self._blobs.close()

    async def handle(self, request: Request) -> Response | None:
        """Answer one request."""
        exchange = Exchange(request)
        try:
            response = exchange.response = await self._answer(exchange)
            exchange.status = request.status if response is None else response.status
            return response
        except BaseException:
            exchange.status, exchange.error = request.status or 500, "BROKEN_OFF"
            raise
        finally:
            exchange.seconds = time.perf_counter() - exchange.started
            for observer in self._observers:
                observer(exchange)

    async def _answer(self, exchange: Exchange) -> Response | None:
        request = exchange.request
        try:
            return await self._dispatch(exchange)
        except RegistryError as error:
            exchange.error = error.code
            response = Response(error.status, error.body(), headers=(*VERSION, *error.headers))
        except InvalidArgument as error:
            exchange.error = "DIGEST_INVALID"
            response = Response(400, RegistryError("DIGEST_INVALID", str(error)).body(), headers=VERSION)
        except RequestError as error:
            code = exchange.error = "SIZE_INVALID" if error.status == 413 else "BLOB_UPLOAD_INVALID"
            response = Response(error.status, RegistryError(code, str(error)).body(), headers=VERSION)
        except Busy:
            response = Response(busy().status, busy().body(), headers=VERSION)
        except (Unavailable, FileNotFoundError) as error:
            response = self._later(exchange, 503, str(error))
        except OSError as error:
            if error.errno in _FULL:
                response = self._later(exchange, 507, "the registry's disk is full")
            elif error.errno in _FAILING:
                response = self._later(exchange, 503, f"the registry's storage fails: {error.strerror}")
            else:
                raise
        log.info("%s %s: %d", request.method, request.path, response.status)
        return response

    def _later(self, exchange: Exchange, status: int, why: str) -> Response:
        """The same request may succeed another time."""
        request, exchange.error = exchange.request, "UNAVAILABLE"
        log.error("%s %s: %s", request.method, request.path, why)
        if request.response_started:
            raise ConnectionAbortedError(why)
        error = RegistryError("UNAVAILABLE", why, status=status, headers=(("Retry-After", "5"),))
        return Response(status, error.body(), headers=(*VERSION, *error.headers))

    async def _dispatch(self, exchange: Exchange) -> Response | None:
        request = exchange.request
        path = request.path
        for expression, kind in _ROUTES:
            match = expression.fullmatch(path)
            if match is not None:
                part = match.groupdict()
                exchange.kind, exchange.part = kind, part
                return await self._repository(exchange, kind, part)
        if path in ("/v2/", "/v2"):
            exchange.kind = "base"
            self._only(request, ("GET", "HEAD"))
            self.access.enter(request, await self._identify(exchange))
            return Response(200, b"{}", headers=VERSION)
        if path == "/v2/_catalog":
            exchange.kind = "catalog"
            self._only(request, ("GET",))
            caller = await self._identify(exchange)
            names = self.access.readable(request, caller, await self._run(self.storage.repositories))
            return self._listing(request, "repositories", names, {})
        if path == "/healthz" and self._health is not None:
            exchange.kind = "health"
            return await self._health.answer()
        if path in ("/token", "/token/jwks.json") and self._tokens is not None:
            exchange.kind = "token"
            return await self._tokens.handle(exchange)
        if self._wants_page and (path == "/" or path.startswith("/web/") or path == "/web"):
            return await self._web_page().handle(exchange)
        raise RegistryError("NAME_UNKNOWN", "no such page: this is a registry, its API lies under /v2/")

    def _web_page(self) -> WebPage:
        if self._page is None:
            from tare.api.registry.page import WebPage  # few clients are browsers

            self._page = WebPage(self.storage, self.access, self._blobs)
        return self._page

    async def _repository(self, exchange: Exchange, kind: str, part: dict[str, str]) -> Response | None:
        """A request below a repository's name."""
        request, name = exchange.request, part["name"]
        if not REPOSITORY.fullmatch(name):
            raise RegistryError("NAME_INVALID", "invalid repository name", {"name": name[:NAME_LIMIT]})
        caller = await self._identify(exchange)
        handler = self._handlers.get((kind, request.method))
        if handler is None:
            self._only(request, tuple(method for route, method in self._handlers if route == kind))
            raise AssertionError("unreachable")
        place = None
        if self._through is not None and (place := self._through.find(name, self._namespace(request))) is not None:
            part["name"] = place.name
        self.access.require(request, caller, _RIGHTS.get((kind, request.method), "pull"), name, part["name"])
        if place is None:
            return await handler(request, part)
        return await self._from_elsewhere(request, kind, part, place, handler)

    @staticmethod
    def _namespace(request: Request) -> str:
        """The registry that a containerd client means, when that is not this one."""
        wanted = request.query.get("ns", "") if "ns=" in request.raw_query else ""
        return "" if wanted == request.headers.get("host", "") else wanted

    async def _from_elsewhere(self, request: Request, kind: str, part: dict[str, str], place: Place, handler: Handler) -> Response | None:
        assert self._through is not None
        if kind == "tags":
            return self._listing(request, "tags", await self._through.tags(place), {"name": part["name"]})
        if kind == "referrers":
            digest = Digest.parse(part["digest"])
            return self._referrers(request, await self._through.referrers(place, digest))
        from tare.api.registry.cached import serve_cached

        return await serve_cached(self._through, request, kind, part, place, handler)

    async def _identify(self, exchange: Exchange) -> Caller:
        caller = exchange.caller = exchange.request.caller = await self.access.identify(exchange.request)
        return caller

    def _readable(self, request: Request, name: str) -> bool:
        """Whether what a repository has may be shown to whoever asks, also through another one."""
        return isinstance(request.caller, Caller) and self.access.may(request.caller, "pull", name)

    @staticmethod
    def _only(request: Request, allowed: tuple[str, ...]) -> None:
        if request.method not in allowed:
            raise RegistryError("UNSUPPORTED", f"method {request.method} is not supported here", headers=(("Allow", ", ".join(allowed)),))

    # Manifests

    async def _manifest_get(self, request: Request, part: dict[str, str]) -> Response | None:
        self._check_reference(part)
        found = await self._ask(self.storage.manifest, part["name"], part["reference"])
        headers = (*VERSION, ("Docker-Content-Digest", found.digest), ("ETag", f'"{found.digest}"'))
        if f'"{found.digest}"' in request.headers.get("if-none-match", ""):
            return Response(304, headers=headers)
        return Response(200, await self._ask(self.storage.document, found.digest), found.media_type, headers)

    async def _manifest_put(self, request: Request, part: dict[str, str]) -> Response | None:
        name, reference = part["name"], part["reference"]
        if ":" not in reference and not TAG.fullmatch(reference):
            raise RegistryError("TAG_INVALID", "invalid tag", {"tag": reference[:200]})
        data = await request.read(manifests.MANIFEST_LIMIT)
        checked = manifests.check(data, reference, request.headers.get("content-type", ""))
        await self._run(self._put, name, data, checked, "" if ":" in reference else reference)
        more = [("OCI-Subject", str(checked.subject["digest"]))] if checked.subject else []
        return created(f"/v2/{name}/manifests/{checked.digest}", checked.digest, *more)

    def _put(self, name: str, data: bytes, checked: manifests.Checked, tag: str) -> None:
        self._quotas.check(name, len(data), checked.digest)
        missing = [digest for digest in checked.blobs if not self.storage.has_blob(name, digest)]
        missing += [digest for digest in checked.manifests if not self.storage.has_blob(name, digest)]
        if missing:
            raise RegistryError("MANIFEST_BLOB_UNKNOWN", "manifest references what this repository does not have", {"digests": missing})
        self.storage.put_manifest(name, data, checked.digest, checked.media_type, checked.subject, tag, checked.blobs)
        self._quotas.changed(name)

    async def _manifest_delete(self, request: Request, part: dict[str, str]) -> Response | None:
        self._blobs.deletable()
        reference = part["reference"]
        self._check_reference(part)
        if ":" in reference:
            await self._run(self.storage.delete_manifest, part["name"], Digest.parse(reference))
        else:
            await self._run(self.storage.delete_tag, part["name"], reference)
        self._quotas.changed(part["name"])
        return Response(202, headers=VERSION)

    def _check_reference(self, part: dict[str, str]) -> None:
        """What cannot be a tag is none that the repository has."""
        reference = part["reference"]
        if ":" in reference:
            Digest.parse(reference)
        elif not TAG.fullmatch(reference):
            raise RegistryError("MANIFEST_UNKNOWN", "manifest unknown: this cannot be a tag", {"tag": reference[:200]})

    # Lists

    async def _tags_get(self, request: Request, part: dict[str, str]) -> Response | None:
        if not await self._ask(self.storage.has_repository, part["name"]):
            raise RegistryError("NAME_UNKNOWN", "repository name not known to registry", {"name": part["name"]})
        return self._listing(request, "tags", await self._ask(self.storage.tags, part["name"]), {"name": part["name"]})

    async def _referrers_get(self, request: Request, part: dict[str, str]) -> Response | None:
        return self._referrers(request, await self._ask(self.storage.referrers, part["name"], Digest.parse(part["digest"])))

    def _referrers(self, request: Request, found: list[dict[str, Any]]) -> Response:
        headers = list(VERSION)
        wanted = request.query.get("artifactType")
        if wanted:
            found = [descriptor for descriptor in found if descriptor.get("artifactType") == wanted]
            headers.append(("OCI-Filters-Applied", "artifactType"))
        last = request.query.get("last", "")
        page, more = _fitting([descriptor for descriptor in found if str(descriptor["digest"]) > last])
        if more:
            query = urlencode({"last": page[-1]["digest"]} | ({"artifactType": wanted} if wanted else {}))
            headers.append(("Link", f'<{quote(request.path)}?{query}>; rel="next"'))
        document = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": page}
        return Response(200, json.dumps(document, separators=(",", ":")).encode(), manifests.OCI_INDEX, headers)

    def _listing(self, request: Request, key: str, names: list[str], more: dict[str, Any]) -> Response:
        """One page of a sorted list: at most ``n`` names behind ``last``."""
        text = request.query.get("n", "")
        if text and not _NUMBER.fullmatch(text):
            raise RegistryError("UNSUPPORTED", f"n is no number: {text[:100]}", status=400)
        count = min(int(text), PAGE) if text else PAGE if key == "repositories" else len(names)
        last = request.query.get("last", "")
        rest = sorted((name for name in names if _lexical(name) > _lexical(last)) if last else names, key=_lexical)
        page = rest[:count]
        headers = list(VERSION)
        if len(rest) > len(page) and page:
            query = urlencode({"n": count, "last": page[-1]})
            headers.append(("Link", f'<{quote(request.path)}?{query}>; rel="next"'))
        return Response(200, json.dumps({**more, key: page}, separators=(",", ":")).encode(), headers=headers)


def _lexical(name: str) -> tuple[str, str]:
    """The specification's order: case counts only between names that are the same otherwise."""
    return name.lower(), name


def _fitting(descriptors: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """As many as one index can hold (a manifest's limit), and whether there are more."""
    size = 0
    for place, descriptor in enumerate(descriptors):
        size += len(json.dumps(descriptor)) + 1
        if place and size > manifests.MANIFEST_LIMIT - 1024:
            return descriptors[:place], True
    return descriptors, False
