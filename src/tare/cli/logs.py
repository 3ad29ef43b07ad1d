"""``logs``: what a container wrote."""

from __future__ import annotations

from tare.cli.attachment import MULTIPLEXED
from tare.cli.connection import version_tuple
from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.humanize import moment_argument
from tare.cli.lifecycle import path
from tare.cli.streams import OutputClosed, sink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.context import Context
    from tare.cli.flags import Options


def _logs(context: Context, options: Options) -> int:
    name = options.operands[0]
    query: dict[str, object] = {
        "stdout": True,
        "stderr": True,
        "follow": options.on("follow") or None,
        "timestamps": options.on("timestamps") or None,
        "details": options.on("details") or None,
        "tail": options.text("tail"),
    }
    for flag in ("since", "until"):
        try:
            query[flag] = moment_argument(options.text(flag))
        except ValueError as error:
            raise CliError(f'invalid value for "{flag}": {error}') from None
    client = context.client
    response = client.stream("GET", path(name, "logs"), query)
    kind = response.headers.get("content-type", "")
    if kind == MULTIPLEXED or version_tuple(client.version) >= (1, 42):
        multiplexed = kind == MULTIPLEXED
    else:  # older daemons do not say which it is
        multiplexed = not client.call("GET", path(name, "json"))["Config"].get("Tty")
    feed = sink(multiplexed=multiplexed)
    try:
        for piece in response.chunks():
            feed(memoryview(piece))
    except OutputClosed:
        response.close()
    return 0


LOGS = Command(
    "logs",
    "logs [OPTIONS] CONTAINER",
    "Fetch the logs of a container",
    _logs,
    (
        ("details", "", "bool", "Show extra details provided to logs"),
        ("follow", "f", "bool", "Follow log output"),
        ("since", "", "string", 'Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)'),
        ("tail", "n", "string", "Number of lines to show from the end of the logs", "all"),
        ("timestamps", "t", "bool", "Show timestamps"),
        ("until", "", "string", 'Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)'),
    ),
    least=1,
    most=1,
    aliases=("container logs", "logs"),
    examples=("tare logs -f --tail 20 web",),
)
