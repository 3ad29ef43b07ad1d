"""Go prints a structure without its fields' names: ``{{.HostConfig.RestartPolicy}}`` is ``{no 0}``, not a map.

What comes from the daemon are JSON objects, and nothing in them says whether Go has a map or a structure there. This table does, for the
places that people print. Everything else about such a value stays as it was: fields, ``json``, ``range``.

Docker has the structures only while a format names fields as Go does. ``.Id`` or ``.NanoCpus``, the spelling of JSON, makes it start
over with maps.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_ULIMIT = ("Name", "Soft", "Hard")
_PORT = ("HostIp", "HostPort")
_ENDPOINT = ("Name", "EndpointID", "MacAddress", "IPv4Address", "IPv6Address")
PLACES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("HostConfig", "PortBindings", "*", "*"): _PORT,
    ("NetworkSettings", "Ports", "*", "*"): _PORT,
    ("HostConfig", "RestartPolicy"): ("Name", "MaximumRetryCount"),
    ("HostConfig", "Ulimits", "*"): _ULIMIT,
    ("HostConfig", "LogConfig"): ("Type", "Config"),
    ("Mounts", "*"): ("Type", "Name", "Source", "Destination", "Driver", "Mode", "RW", "Propagation"),
    ("GraphDriver",): ("Data", "Name"),
    ("IPAM", "Config", "*"): ("Subnet", "IPRange", "Gateway", "AuxiliaryAddresses"),
    ("Containers", "*"): _ENDPOINT,
}
_ZERO: dict[str, Any] = {"RW": False, "MaximumRetryCount": 0, "Config": {}, "Data": {}, "AuxiliaryAddresses": {}}


_JSON_SPELLING = (".Id", ".NanoCpus", ".Cpu", ".Dns", ".HostIp", ".KernelMemoryTCP", ".BlkioDeviceReadIOps", ".IOMaximumIOps")


def typed(layout: str) -> bool:
    """Whether docker renders this format over structures."""
    return not any(name in layout for name in _JSON_SPELLING)


class Struct(dict[str, "Any"]):
    """A JSON object that Go holds in a structure. ``values_in_order`` are all its fields, also those that JSON leaves out."""

    fields: tuple[str, ...] = ()

    def text(self, shown: Callable[[Any], str]) -> str:
        """What ``{{value}}`` prints, with ``shown`` for the fields' values."""
        if self.fields == _ULIMIT:
            return f"{self.get('Name')}={self.get('Soft')}:{self.get('Hard')}"  # this one has a String method
        return "{" + " ".join(map(shown, self.values_in_order())) + "}"

    def values_in_order(self) -> list[Any]:
        """The fields' values as Go has them."""
        return [self.get(name, _ZERO.get(name, "")) for name in self.fields]


def marked(document: Any) -> Any:
    """``document`` with its structures marked, in place."""
    if isinstance(document, dict):
        for place, fields in PLACES.items():
            _mark(document, place, fields)
    return document


def _mark(parent: Any, place: tuple[str, ...], fields: tuple[str, ...]) -> None:
    name, rest = place[0], place[1:]
    if isinstance(parent, dict):
        keys: list[Any] = list(parent) if name == "*" else [name] if name in parent else []
    else:
        keys = list(range(len(parent))) if name == "*" and isinstance(parent, list) else []
    for key in keys:
        if rest:
            _mark(parent[key], rest, fields)
        elif isinstance(parent[key], dict):
            struct = Struct(parent[key])
            struct.fields = fields
            parent[key] = struct
