"""``stats``: what containers use, once or live.

Every container has a stream of its own, read by a thread; the main thread redraws. A container's figures are computed from two successive
samples in one document, the way docker does it.
"""

from __future__ import annotations

import sys
import threading
import time

from tare.cli import humanize
from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.lifecycle import path
from tare.cli.ps import FORMAT_HELP
from tare.cli.tables import rows_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.connection import Client
    from tare.cli.context import Context
    from tare.cli.flags import Options

HEADERS = {
    "Container": "CONTAINER", "ID": "CONTAINER ID", "Name": "NAME", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %",
    "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS",
}  # fmt: skip
COLUMNS = "ID Name CPUPerc MemUsage MemPerc NetIO BlockIO PIDs"
_REDRAW_SECONDS = 0.5
_MISSING_ROW = {"CPUPerc": "--", "MemUsage": "-- / --", "MemPerc": "--", "NetIO": "--", "BlockIO": "--", "PIDs": "--"}


def cpu_percent(sample: dict[str, Any]) -> float:
    """Share of one processor since the previous sample, in percent."""
    now, before = sample.get("cpu_stats") or {}, sample.get("precpu_stats") or {}
    used = _at(now, "cpu_usage", "total_usage") - _at(before, "cpu_usage", "total_usage")
    system = _at(now, "system_cpu_usage") - _at(before, "system_cpu_usage")
    cpus = now.get("online_cpus") or len((now.get("cpu_usage") or {}).get("percpu_usage") or ())
    return used / system * cpus * 100.0 if used > 0 and system > 0 else 0.0


def _at(document: dict[str, Any], *keys: str) -> float:
    value: Any = document
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value or 0)


def memory_used(memory: dict[str, Any]) -> float:
    """Usage without the page cache that the kernel could drop at once."""
    usage, details = float(memory.get("usage") or 0), memory.get("stats") or {}
    for name in ("total_inactive_file", "inactive_file"):
        inactive = details.get(name)
        if inactive is not None and inactive < usage:
            return usage - float(inactive)
    return usage


def row(sample: dict[str, Any], container: str, *, full: bool) -> dict[Any, Any]:
    """The fields that a format can name."""
    from tare.cli.templatefunctions import MISSING

    memory = sample.get("memory_stats") or {}
    used, limit = memory_used(memory), float(memory.get("limit") or 0)
    received = sum(_at(network, "rx_bytes") for network in (sample.get("networks") or {}).values())
    sent = sum(_at(network, "tx_bytes") for network in (sample.get("networks") or {}).values())
    read = written = 0.0
    for entry in (sample.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ():
        operation = str(entry.get("op", "")).lower()
        read += entry["value"] if operation == "read" else 0
        written += entry["value"] if operation == "write" else 0
    identifier = str(sample.get("id") or "")
    return {
        MISSING: "*container.statsContext",
        "BlockIO": f"{humanize.size3(read)} / {humanize.size3(written)}",
        "CPUPerc": f"{cpu_percent(sample):.2f}%",
        "Container": container,
        "ID": identifier if full else humanize.short_id(identifier),
        "MemPerc": f"{used / limit * 100 if limit else 0:.2f}%",
        "MemUsage": f"{humanize.binary_size(used)} / {humanize.binary_size(limit)}",
        "Name": str(sample.get("name") or "").removeprefix("/"),
        "NetIO": f"{humanize.size3(received)} / {humanize.size3(sent)}",
        "PIDs": str(int(_at(sample.get("pids_stats") or {}, "current"))),
    }


class Watched:
    """One container's stream; ``latest`` is None until the first sample, ``ended`` once the stream is over."""

    def __init__(self, client: Client, container: str) -> None:
        self.container = container
        self.latest: dict[str, Any] | None = None
        self.failure: CliError | None = None
        self.ended = False
        self._client = client.another()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self) -> None:
        try:
            for sample in self._client.stream("GET", path(self.container, "stats"), {"stream": True}).lines():
                self.latest = sample
        except CliError as error:
            self.failure = error
        except OSError as error:
            self.failure = CliError(str(error))
        self.ended = True


def _once(context: Context, names: list[str], options: Options) -> int:
    """All at the same time: every request is sent before the first answer is awaited."""
    client = context.client
    samples: dict[str, Any] = {}
    failures: dict[str, CliError] = {}

    def fetch(name: str) -> None:
        try:
            samples[name] = client.another().call("GET", path(name, "stats"), {"stream": False})
        except CliError as error:
            failures[name] = error

    threads = [threading.Thread(target=fetch, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        if name in failures:
            raise failures[name]
    full = options.on("no-trunc")
    rows = [row(samples[name], name, full=full) for name in names]
    sys.stdout.write(rows_text(rows, options.text("format"), HEADERS, COLUMNS))
    return 0


def _running(client: Client, *, everything: bool) -> list[str]:
    return [str(container["Id"]) for container in client.call("GET", "/containers/json", {"all": everything or None}) or ()]


def _stats(context: Context, options: Options) -> int:
    named = list(options.operands)
    names = named or _running(context.client, everything=options.on("all"))
    if options.on("no-stream"):
        return _once(context, names, options)
    watched = {name: Watched(context.client, name) for name in names}
    for one in watched.values():
        one.thread.start()
    moving = sys.stdout.isatty()
    while True:
        if not named:
            _adjust(context.client, watched, everything=options.on("all"))
        if named and any(one.failure and one.latest is None for one in watched.values()):
            raise next(one.failure for one in watched.values() if one.failure)
        if named and all(one.ended for one in watched.values()):
            return 0
        _draw(list(watched.values()), options, moving=moving)
        time.sleep(_REDRAW_SECONDS)


def _adjust(client: Client, watched: dict[str, Watched], *, everything: bool) -> None:
    """Follow containers that came and drop those that went."""
    present = _running(client, everything=everything)
    for name in list(watched):
        if name not in present:
            del watched[name]
    for name in present:
        if name not in watched:
            watched[name] = Watched(client, name)
            watched[name].thread.start()


def _draw(watched: list[Watched], options: Options, *, moving: bool) -> None:
    full = options.on("no-trunc")
    rows = []
    for one in watched:
        if one.latest is None:
            rows.append(
                {
                    "Container": one.container,
                    "ID": one.container if full else humanize.short_id(one.container),
                    "Name": "--",
                    **_MISSING_ROW,
                }
            )
        else:
            rows.append(row(one.latest, one.container, full=full))
    text = rows_text(rows, options.text("format"), HEADERS, COLUMNS)
    if moving:
        text = "\x1b[H" + text.replace("\n", "\x1b[K\n") + "\x1b[J"
    sys.stdout.write(text)
    sys.stdout.flush()


STATS = Command(
    "stats",
    "stats [OPTIONS] [CONTAINER...]",
    "Display a live stream of container(s) resource usage statistics",
    _stats,
    (
        ("all", "a", "bool", "Show all containers (default shows just running)"),
        ("format", "", "string", FORMAT_HELP),
        ("no-stream", "", "bool", "Disable streaming stats and only pull the first result"),
        ("no-trunc", "", "bool", "Do not truncate output"),
    ),
    aliases=("container stats", "stats"),
)
