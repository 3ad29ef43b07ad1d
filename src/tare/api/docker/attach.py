"""Attach and exec start: the connection leaves HTTP and is handed to the task.

The task's keeper reads and writes the client's socket itself, so output is not copied through the daemon and an attachment outlives a
restart of the daemon. What the daemon still does first: answer the upgrade, and on ``logs=1`` send the backlog. For that the attachment is
*corked*: the keeper holds live output back while the daemon sends the log up to the position where the live output begins.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tare.api.docker.params import boolean
from tare.containers.logformats import Line
from tare.containers.logs import LogQuery
from tare.containers.task import Attachment
from tare.errors import InvalidArgument
from tare.http.websocket import accept

if TYPE_CHECKING:
    from tare.containers.container import Container
    from tare.containers.service import Containers
    from tare.http.message import Request

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"

HEAD_START = 0.01
"""Seconds between the head of an attach and its backlog. docker-py reads the head through a buffer that it then drops: what comes in the
same packet is lost to it. dockerd is saved by being slower."""

_CONTROL = {chr(code + 96): code for code in range(1, 27)} | {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse_detach_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` or plain characters, separated by commas. Raises ``InvalidArgument``."""
    keys = bytearray()
    for word in text.split(","):
        if word.startswith("ctrl-") and word[5:] in _CONTROL:
            keys.append(_CONTROL[word[5:]])
        elif len(word) == 1 and word.isascii():
            keys.append(ord(word))
        else:
            raise InvalidArgument(f"Invalid detach keys ({text}) provided: Unknown character: '{word}'")
    return bytes(keys)


def detach_keys(request: Request) -> bytes:
    """The request's detach keys; Docker's default without any."""
    text = request.query.get("detachKeys", "")
    return parse_detach_keys(text) if text else b"\x10\x11"


def upgrade_head(request: Request, content_type: str) -> bytes:
    """The head of the answer after which the connection is a plain byte stream."""
    if request.upgrade:
        status = f"HTTP/1.1 101 UPGRADED\r\nContent-Type: {content_type}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    else:
        status = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n\r\n"
    return status.encode()


def stream_type(request: Request, tty: bool, version: tuple[int, int]) -> str:
    return MULTIPLEXED if not tty and request.upgrade and version >= (1, 42) else RAW


def frames(lines: Iterable[Line]) -> bytes:
    """Log lines in Docker's frames: stream, three zero bytes, length, payload."""
    pieces: list[bytes] = []
    for line in lines:
        pieces.append(bytes((line.stream, 0, 0, 0)) + len(line.data).to_bytes(4, "big"))
        pieces.append(line.data)
    return b"".join(pieces)


async def attach_request(
    containers: Containers, container: Container, request: Request, keys: bytes, version: tuple[int, int], websocket: bool = False
) -> None:
    """Serve ``POST /containers/{id}/attach`` and its WebSocket form."""
    tty = container.record.config.tty
    stream, backlog = boolean(request, "stream"), boolean(request, "logs")
    streams = [boolean(request, name) for name in ("stdin", "stdout", "stderr")]
    if stream:
        containers.lifecycle.check_attachable(container)
    await request.read()
    if websocket:
        hijacked = await accept(request)
    else:
        hijacked = await request.hijack(upgrade_head(request, stream_type(request, tty, version)))
    multiplexed = not tty and not websocket
    attachment = Attachment(
        sock=hijacked.sock,
        stdin=streams[0] and container.record.config.open_stdin,
        stdout=streams[1],
        stderr=streams[2],
        multiplexed=multiplexed,
        prefix=hijacked.rest,
        detach_keys=keys if tty else b"",  # as dockerd: without a terminal the keys are but bytes
        corked=backlog,
    )
    await _connect(containers, container, attachment, stream, backlog)


async def _connect(containers: Containers, container: Container, attachment: Attachment, stream: bool, backlog: bool) -> None:
    copy = attachment.sock.dup() if backlog else None
    if backlog:
        await asyncio.sleep(HEAD_START)
    try:
        live = await containers.lifecycle.attach(container, attachment) if stream else None
        if copy is not None:
            end = live[1] if live else None
            query = LogQuery(stdout=attachment.stdout, stderr=attachment.stderr, end=end)
            await _send_backlog(containers, container, copy, query, attachment.multiplexed)
            if live is not None and container.task is not None:
                await container.task.uncork(live[0])
    finally:
        if copy is not None:
            copy.close()
        if not stream:
            attachment.sock.close()


async def _send_backlog(containers: Containers, container: Container, sock: socket.socket, query: LogQuery, multiplexed: bool) -> None:
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    try:
        async for lines in containers.log_reader(container).read(query):
            await loop.sock_sendall(sock, frames(lines) if multiplexed else b"".join(line.data for line in lines))
    except OSError:
        pass  # the client has gone; the keeper will find out by itself
