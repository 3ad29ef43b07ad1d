"""Which events a watcher wants: the ``filters`` of ``GET /events``. Filters of one name are alternatives, different names must all hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tare.api.docker.filter_parameter import Filters

if TYPE_CHECKING:
    from tare.events import Event

_OBJECTS = ("container", "network", "volume", "plugin", "daemon", "service", "node", "secret", "config")
ALLOWED = frozenset((*_OBJECTS, "event", "image", "label", "scope", "type"))
_PREFIXES = ("health_status", "exec_create", "exec_start")
"""Actions that carry an argument behind a colon; a filter without one means them all."""


class EventFilter:
    """A predicate over events, made once per watcher."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters

    def __call__(self, event: Event) -> bool:
        filters = self._filters
        if not filters:
            return True
        return (
            self._action(event)
            and filters.matches("type", event.type)
            and filters.matches("scope", event.scope)
            and filters.matches_labels(event.attributes)
            and all(self._object(kind, event) for kind in _OBJECTS)
            and self._image(event)
        )

    def _action(self, event: Event) -> bool:
        wanted = self._filters.values_of("event")
        if not wanted or event.action in wanted:
            return True
        name = event.action.partition(":")[0]
        return name in _PREFIXES and name in wanted

    def _object(self, kind: str, event: Event) -> bool:
        wanted = self._filters.values_of(kind)
        if not wanted:
            return True
        if event.type != kind:
            # A network's and a volume's events name the container concerned; dockerd nevertheless filters by type.
            return False
        name = event.attributes.get("name", "")
        return any(event.actor_id.startswith(value) or name == value.removeprefix("/") for value in wanted if value)

    def _image(self, event: Event) -> bool:
        wanted = self._filters.values_of("image")
        if not wanted:
            return True
        if event.type == "image":
            names = {event.actor_id, event.attributes.get("name", "")}
        elif event.type == "container":
            names = {event.attributes.get("image", "")}
        else:
            return False
        names |= {_without_tag(name) for name in names}
        return bool(names.intersection(wanted))


def _without_tag(name: str) -> str:
    head, separator, last = name.partition("@")[0].rpartition("/")
    return head + separator + last.partition(":")[0]
