"""``GET /containers/{id}/logs``: the past and the present of a container's output."""

from __future__ import annotations

import time
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from tare.api.docker.attach import MULTIPLEXED, RAW, frames
from tare.api.docker.params import boolean
from tare.containers.logformats import Line
from tare.containers.logs import LogQuery, padded_time
from tare.errors import InvalidArgument, Unsupported
from tare.http.message import ClientDisconnected

if TYPE_CHECKING:
    from tare.containers.container import Container
    from tare.containers.service import Containers
    from tare.http.message import Request


def parse_timestamp(text: str, name: str) -> int:
    """Seconds since the epoch with an optional fraction, in nanoseconds; empty and 0 mean no bound."""
    if not text:
        return 0
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise InvalidArgument(f'invalid value for "{name}": {text}: seconds since the epoch are expected') from None
    if not value.is_finite():
        raise InvalidArgument(f'invalid value for "{name}": {text}')
    return int(value * 1_000_000_000)


def parse_tail(text: str) -> int | None:
    """``all`` or a number of lines; anything else means all, as with dockerd."""
    return int(text) if text.isdecimal() else None


def _dressed(lines: Iterable[Line], timestamps: bool, details: bool) -> list[Line]:
    if not timestamps and not details:
        return list(lines)
    dressed: list[Line] = []
    for line in lines:
        head = f"{padded_time(line.time)} " if timestamps else ""
        if details:
            head += ",".join(f"{key}={value}" for key, value in sorted((line.attributes or {}).items())) + " "
        dressed.append(line._replace(data=head.encode() + line.data))
    return dressed


async def stream_logs(containers: Containers, container: Container, request: Request, version: tuple[int, int]) -> None:
    """Answer with the lines that the query asks for, following if asked."""
    stdout, stderr = boolean(request, "stdout"), boolean(request, "stderr")
    if not stdout and not stderr:
        raise InvalidArgument("Bad parameters: you must choose at least one stream")
    if not containers.launcher.log_settings(container.record.host_config).readable:
        raise Unsupported("configured logging driver does not support reading")
    follow = boolean(request, "follow")
    asked = request.query.get("until", "")
    until = parse_timestamp(asked, "until") or (1 if asked not in ("", "0") else 0)  # the epoch itself is a bound when it is written out
    query = LogQuery(
        stdout=stdout,
        stderr=stderr,
        since=parse_timestamp(request.query.get("since", ""), "since"),
        until=until,
        tail=parse_tail(request.query.get("tail", "all")),
        follow=follow and not (until and until < time.time_ns()),
    )
    timestamps, details = boolean(request, "timestamps"), boolean(request, "details")
    tty = container.record.config.tty
    stream = await request.stream(content_type=MULTIPLEXED if not tty and version >= (1, 42) else RAW)
    ended = _ended(container) if query.follow else None
    try:
        async with request.until_disconnected():
            async for lines in containers.log_reader(container).read(query, ended):
                chosen = _dressed(lines, timestamps, details)
                data = b"".join(line.data for line in chosen) if tty else frames(chosen)
                lines.clear()
                chosen.clear()
                await stream.write(data)
    except ClientDisconnected:
        pass


async def _ended(container: Container) -> None:
    """Returns when the container has stopped (a pending restart by its policy is not a stop)."""
    while container.running:
        await container.next_exit()
