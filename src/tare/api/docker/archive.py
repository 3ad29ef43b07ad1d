"""``/containers/{id}/archive``, ``/containers/{id}/export`` and ``/commit``: what is taken out of containers, and put into them."""

from __future__ import annotations

import base64
import stat
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from tare.api.docker.params import boolean, json_response, parse_json
from tare.containers.commit import CommitRequest
from tare.errors import Corrupt, InvalidArgument
from tare.http.message import Request, Response
from tare.images.intake import outflow
from tare.oci.reference import Reference
from tare.wire.container import Config

if TYPE_CHECKING:
    from tare.containers.archive import PathStat
    from tare.engine import Engine

_TAR = "application/x-tar"
_GO_MODES = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
}
_GO_BITS = {stat.S_ISUID: 1 << 23, stat.S_ISGID: 1 << 22, stat.S_ISVTX: 1 << 20}


class ArchiveHandlers:
    """Handlers of copy, export and commit over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._containers = engine.containers
        self._archives = engine.containers.archives

    async def head(self, request: Request) -> Response:
        container = self._containers.get(request.params["id"])
        found = await self._archives.stat(container, _path(request))
        return Response(200, headers=_stat_header(found))

    async def get(self, request: Request) -> None:
        container = self._containers.get(request.params["id"])
        async with self._archives.read(container, _path(request)) as (found, chunks):
            stream = await request.stream(200, _TAR, _stat_header(found))
            async with aclosing(outflow(chunks)) as pieces:
                async for chunk in pieces:
                    await stream.write(chunk)

    async def put(self, request: Request) -> Response:
        container = self._containers.get(request.params["id"])
        keep_kinds, own = boolean(request, "noOverwriteDirNonDir"), boolean(request, "copyUIDGID")
        try:
            await self._archives.write(container, _path(request), request.chunks(), keep_kinds=keep_kinds, own=own)
        except Corrupt as error:  # the client's archive is, not ours
            raise InvalidArgument(str(error)) from None
        return Response(200)

    async def export(self, request: Request) -> None:
        container = self._containers.get(request.params["id"])
        async with aclosing(outflow(self._archives.export(container))) as chunks:
            head = await anext(chunks)
            stream = await request.stream(200, "application/octet-stream")
            await stream.write(head)
            async for chunk in chunks:
                await stream.write(chunk)
        self._archives.exported(container)

    async def commit(self, request: Request) -> Response:
        query = request.query
        container = self._containers.get(query.get("container", ""))
        body = await request.read()
        asked = CommitRequest(
            name=_name(query.get("repo", ""), query.get("tag", "")),
            author=query.get("author", ""),
            comment=query.get("comment", ""),
            pause=boolean(request, "pause", True),
            changes=query.all("changes"),
            config=parse_json(Config, body) if body.strip() not in (b"", b"null") else None,
        )
        image = await self._containers.committer.commit(container, asked)
        return json_response({"Id": image.id}, 201)


def _path(request: Request) -> str:
    path = request.query.get("path", "")
    if not path:
        raise InvalidArgument("bad parameter: pathcannot be empty")
    return path


def _name(repository: str, tag: str) -> Reference | None:
    if not repository:
        return None
    reference = Reference.parse(repository)
    if reference.digest:
        raise InvalidArgument("cannot import digest reference")
    return reference.with_tag(tag) if tag else reference.with_default_tag()


def _stat_header(found: PathStat) -> list[tuple[str, str]]:
    """Docker's JSON in base64; the mode as Go numbers it."""
    status = found.status
    mode = status.st_mode & 0o777 | _GO_MODES.get(stat.S_IFMT(status.st_mode), 0)
    mode |= sum(value for bit, value in _GO_BITS.items() if status.st_mode & bit)
    document = {
        "name": found.name,
        "size": status.st_size,
        "mode": mode,
        "mtime": _time(status.st_mtime_ns),
        "linkTarget": found.link_target,
    }
    return [("X-Docker-Container-Path-Stat", base64.b64encode(msgspec.json.encode(document)).decode())]


def _time(ns: int) -> str:
    seconds, fraction = divmod(ns, 1_000_000_000)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return whole + (f".{fraction:09d}".rstrip("0") if fraction else "") + "Z"
