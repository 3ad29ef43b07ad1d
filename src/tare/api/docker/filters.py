"""``filters`` of the container list and of prune."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tare.containers.record import CREATED, DEAD, EXITED, PAUSED, REMOVING, RESTARTING, RUNNING
from tare.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from tare.containers.container import Container
    from tare.containers.service import Containers
    from tare.images.service import Images

    Filter = Callable[[Container], bool]

_STATUSES = (CREATED, DEAD, EXITED, PAUSED, REMOVING, RESTARTING, RUNNING)
_HEALTHS = ("starting", "healthy", "unhealthy", "none")
_ACCEPTED = frozenset(
    "ancestor before since exited expose health id is-task isolation label label! name network publish status volume".split()
)
_PRUNE_ACCEPTED = frozenset(("label", "label!", "until"))


def container_filter(filters: dict[str, list[str]], containers: Containers, images: Images, *, prune: bool = False) -> Filter:
    """One predicate for all filters: every key must match, any value of a key suffices (every value for labels)."""
    for key in filters:
        if key not in (_PRUNE_ACCEPTED if prune else _ACCEPTED):
            raise InvalidArgument(f"invalid filter '{key}'")
    tests = [_filter(key, values, containers, images) for key, values in filters.items() if values]
    return lambda container: all(test(container) for test in tests)


def _filter(key: str, values: list[str], containers: Containers, images: Images) -> Filter:
    simple: dict[str, Callable[[list[str]], Filter]] = {
        "exited": _exited, "status": _status, "health": _health, "label": _label, "label!": _not_label, "name": _name,
        "expose": _ports(lambda c: list(c.record.config.exposed_ports or {})),
        "publish": _ports(lambda c: list(c.record.host_config.port_bindings)),
        "volume": _volume, "network": _network, "until": _until,
    }  # fmt: skip
    if key in simple:
        return simple[key](values)
    if key == "id":
        return lambda c: any(c.id.startswith(value) for value in values)
    if key in ("before", "since"):
        created = containers.get(values[0]).record.created
        return (lambda c: c.record.created < created) if key == "before" else (lambda c: c.record.created > created)
    if key == "ancestor":
        return _ancestor(values, images)
    if key == "is-task":
        if values[0].lower() not in ("true", "1", "false", "0"):
            raise InvalidArgument(f"invalid filter 'is-task=[{values[0]}]'")
        return lambda c: values[0].lower() in ("false", "0")
    return lambda c: True  # isolation: there is but one on Linux


def _exited(values: list[str]) -> Filter:
    try:
        codes = {int(value) for value in values}
    except ValueError:
        raise InvalidArgument(f'strconv.Atoi: parsing "{values[0]}": invalid syntax') from None
    return lambda c: c.record.state.exit_code in codes and not c.running and c.record.state.started_at > 0


def _status(values: list[str]) -> Filter:
    for value in values:
        if value not in _STATUSES:
            raise InvalidArgument(f"invalid filter 'status={value}'")
    return lambda c: c.record.state.status in values


def _health(values: list[str]) -> Filter:
    for value in values:
        if value not in _HEALTHS:
            raise InvalidArgument(f"unrecognised filter value for health: {value}")
    return lambda c: (c.health.status if c.health else "none") in values


def _has_label(container: Container, text: str) -> bool:
    key, equals, value = text.partition("=")
    labels = container.record.config.labels or {}
    return key in labels and (not equals or labels[key] == value)


def _label(values: list[str]) -> Filter:
    return lambda c: all(_has_label(c, value) for value in values)


def _not_label(values: list[str]) -> Filter:
    return lambda c: not any(_has_label(c, value) for value in values)


def _name(values: list[str]) -> Filter:
    try:
        patterns = [re.compile(value) for value in values]
    except re.error as error:
        raise InvalidArgument(f"invalid filter 'name={values[0]}': {error}") from None
    return lambda c: any(p.search(c.name) or p.search("/" + c.name) for p in patterns)


def _ports(declared: Callable[[Container], list[str]]) -> Callable[[list[str]], Filter]:
    def build(values: list[str]) -> Filter:
        wanted = {port for value in values for port in _port_range(value)}
        return lambda c: any(port in wanted for port in declared(c))

    return build


def _port_range(text: str) -> list[str]:
    numbers, _, protocol = text.partition("/")
    first, _, last = numbers.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()) or int(last or first) > 65535:
        raise InvalidArgument(f"invalid port '{text}': a number or a range FIRST-LAST is expected, with /tcp, /udp or /sctp behind it")
    return [f"{number}/{protocol or 'tcp'}" for number in range(int(first), int(last or first) + 1)]


def _volume(values: list[str]) -> Filter:
    return lambda c: any(value in (point.name, point.destination, point.source) for point in c.record.mounts for value in values if value)


def _network(values: list[str]) -> Filter:
    def matches(container: Container) -> bool:
        names = set(container.record.networks) | {container.record.host_config.network_mode}
        ids = [settings.network_id for settings in container.record.networks.values() if settings.network_id]
        return any(value in names or any(i.startswith(value) for i in ids) for value in values)

    return matches


def _ancestor(values: list[str], images: Images) -> Filter:
    wanted: set[str] = set()
    for value in values:
        try:
            wanted.add(images.get(value).id)
        except (NotFound, InvalidArgument):
            continue
    return lambda c: c.record.image in wanted or any(c.record.config.image == value for value in values)


def _until(values: list[str]) -> Filter:
    if len(values) > 1:
        raise InvalidArgument("more than one until filter specified")
    limit = parse_until(values[0])
    return lambda c: c.record.created < limit


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}


def parse_until(text: str) -> int:
    """A point in time, in nanoseconds since the epoch: a Go duration before now, seconds since the epoch, or an RFC 3339 time."""
    if re.fullmatch(rf"(?:{_DURATION.pattern})+", text):
        age = sum(float(match[1]) * _SECONDS[match[2]] for match in _DURATION.finditer(text))
        return time.time_ns() - int(age * 1e9)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return int(float(text) * 1e9)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(f"invalid filter 'until={text}': a duration (10m), a Unix time or an RFC 3339 time is expected") from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1e9)
