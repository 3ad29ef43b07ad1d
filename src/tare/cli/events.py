"""``events``: what happens in the daemon, as it happens."""

from __future__ import annotations

import sys
import time

from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.humanize import moment_argument
from tare.cli.tables import filters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options


def line(event: dict[str, Any]) -> str:
    """``2026-11-23T20:10:29.738981631Z container start ID (image=busybox, name=web)``."""
    parts = []
    nanos = int(event.get("timeNano") or 0)
    seconds = nanos // 10**9 or int(event.get("time") or 0)
    if seconds:
        moment = time.localtime(seconds)
        zone = time.strftime("%z", moment)
        zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
        parts.append(time.strftime("%Y-%m-%dT%H:%M:%S", moment) + f".{nanos % 10**9:09d}{zone}")
    actor = event.get("Actor") or {}
    parts += [str(event.get("Type", "")), str(event.get("Action", "")), str(actor.get("ID", ""))]
    attributes = actor.get("Attributes") or {}
    text = " ".join(parts)
    if attributes:
        text += " (" + ", ".join(f"{name}={value}" for name, value in sorted(attributes.items())) + ")"
    return text


def _printer(layout: str) -> Callable[[Any], str]:
    if not layout:
        return line
    if layout == "json":
        from tare.cli.documents import encode

        return encode
    from tare.cli.gotemplate import compile_template
    from tare.cli.templatefunctions import TemplateError

    try:
        template = compile_template(layout)
    except TemplateError as error:
        raise CliError(f"Error parsing format: template: :1: {error}", 64) from None

    from tare.cli.templatefunctions import MISSING

    nothing = dict.fromkeys(("Action", "From", "ID", "Scope", "Status", "Type"), "")
    try:
        template.execute({MISSING: "*events.Message", **nothing, "Time": 0, "TimeNano": 0, "Actor": {"ID": "", "Attributes": {}}})
    except TemplateError as error:
        raise CliError(f"Error parsing format: {error}", 64) from None

    def execute(event: Any) -> str:
        # The names of Go's fields beside the JSON ones.
        actor = event.get("Actor") or {}
        known = {
            **event,
            "ID": actor.get("ID", ""),
            "TimeNano": event.get("timeNano"),
            "Time": event.get("time"),
            "Scope": event.get("scope"),
        }
        try:
            return template.execute(known)
        except TemplateError as error:
            raise CliError(str(error)) from None

    return execute


def _events(context: Context, options: Options) -> int:
    query: dict[str, object] = {"filters": filters(options.items("filter"))}
    for flag in ("since", "until"):
        try:
            query[flag] = moment_argument(options.text(flag))
        except ValueError as error:
            raise CliError(str(error)) from None
    show = _printer(options.text("format"))
    for event in context.client.stream("GET", "/events", query).lines():
        sys.stdout.write(show(event) + "\n")
        sys.stdout.flush()
    return 0


EVENTS = Command(
    "events",
    "events [OPTIONS]",
    "Get real time events from the server",
    _events,
    (
        ("filter", "f", "filter", "Filter output based on conditions provided"),
        ("format", "", "string", "Format output: 'json' or a Go template, such as '{{.Action}} {{.ID}}'"),
        ("since", "", "string", "Show all events created since timestamp"),
        ("until", "", "string", "Stream events until this timestamp"),
    ),
    most=0,
    aliases=("system events", "events"),
    examples=("tare events --since 10m --until 0s --filter event=die",),
)
