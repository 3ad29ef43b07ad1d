"""Ports, addresses and networks on the command line: ``-p 127.0.0.1:8080:80/udp``, ``--expose 7000-7010``, ``--network name=x,alias=y``."""

from __future__ import annotations

import _socket

from tare.cli.failures import CliError
from tare.cli.flags import parse_uint16

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Bindings = dict[str, list[dict[str, str]]]

_PROTOCOLS = ("tcp", "udp", "sctp")


def is_ip(text: str) -> bool:
    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, text)
        except OSError:
            continue
        return True
    return False


def is_mac(text: str) -> bool:
    for separator in ":-":
        parts = text.split(separator)
        if len(parts) in (6, 8) and all(len(part) == 2 and not part.strip("0123456789abcdefABCDEF") for part in parts):
            return True
    return False


def port_range(text: str) -> tuple[int, int]:
    """First and last port of ``80`` or ``80-90``. Raises ValueError."""
    first, dash, last = text.partition("-")
    low = parse_uint16(first)
    high = parse_uint16(last) if dash else low
    if high < low:
        raise ValueError(f"invalid range specified for port: {text}")
    return low, high


def publish(specs: list[str]) -> tuple[dict[str, dict[str, str]], Bindings]:
    """Exposed ports and port bindings of ``-p`` values. Raises CliError with docker's text."""
    exposed: dict[str, dict[str, str]] = {}
    bindings: Bindings = {}
    for spec in specs:
        for port, address, host_port in _ports(_long_form(spec)):
            exposed.setdefault(port, {})
            bindings.setdefault(port, []).append({"HostIp": address, "HostPort": host_port})
    return exposed, bindings


def _long_form(spec: str) -> str:
    """``published=8080,target=80,protocol=udp`` in the short form; short forms as they are."""
    if "=" not in spec:
        return spec
    fields = {"protocol": "tcp", "target": "", "published": ""}
    for field in spec.split(","):
        name, separator, value = field.partition("=")
        if not separator or not value or name not in fields:
            raise CliError(f"invalid publish opts format (should be name=value but got '{field}')", 125)
        fields[name] = value
    return f"{fields['published']}:{fields['target']}/{fields['protocol']}"


def _ports(spec: str) -> list[tuple[str, str, str]]:
    body, slash, protocol = spec.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    address, host, container = _split(body)
    if not container:
        raise CliError(f"no port specified: {spec}<empty>", 125)
    if protocol not in _PROTOCOLS:
        raise CliError(f"invalid proto: {protocol}", 125)
    if address:
        bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
        if not is_ip(bare):
            raise CliError(f"invalid IP address: {address}", 125)
        address = bare
    try:
        low, high = port_range(container)
    except ValueError:
        raise CliError(f"invalid containerPort: {container}", 125) from None
    if not host:
        return [(f"{port}/{protocol}", address, "") for port in range(low, high + 1)]
    try:
        host_low, host_high = port_range(host)
    except ValueError:
        raise CliError(f"invalid hostPort: {host}", 125) from None
    if host_high - host_low != high - low:
        if low != high:
            raise CliError(f"invalid ranges specified for container and host Ports: {container} and {host}", 125)
        return [(f"{low}/{protocol}", address, f"{host_low}-{host_high}")]
    return [(f"{low + step}/{protocol}", address, str(host_low + step)) for step in range(high - low + 1)]


def _split(body: str) -> tuple[str, str, str]:
    parts = body.rsplit(":", 2)
    if len(parts) == 1:
        return "", "", parts[0]
    if len(parts) == 2:
        return "", parts[0], parts[1]
    return parts[0], parts[1], parts[2]


def expose(specs: list[str], exposed: dict[str, dict[str, str]]) -> None:
    """Add ``--expose`` values to the exposed ports."""
    for spec in specs:
        if ":" in spec:
            raise CliError(f"invalid port format for --expose: {spec}", 125)
        body, slash, protocol = spec.partition("/")
        protocol = protocol.lower() if slash else "tcp"
        try:
            low, high = port_range(body)
        except ValueError as error:
            raise CliError(f"invalid range format for --expose: {spec}, error: {error}", 125) from None
        for port in range(low, high + 1):
            exposed.setdefault(f"{port}/{protocol}", {})


def parse_network(text: str) -> object:
    """One ``--network`` value: a name, or fields with what holds on that network only. Raises ValueError."""
    from tare.cli.mountspec import split_fields

    network: dict[str, Any] = {"name": text}
    if "=" not in text or text.startswith("container:"):
        return network
    network = {"name": ""}
    for field in split_fields(text):
        key, separator, value = field.partition("=")
        key, value = key.strip().lower(), value.strip()
        if not separator:
            raise ValueError(
                f"invalid key/value pair format in driver options: {field}" if key == "driver-opt" else f"invalid field {field}"
            )
        if key == "name":
            network["name"] = value
        elif key in ("alias", "link-local-ip"):
            network.setdefault(key, []).append(value)
        elif key in ("ip", "ip6", "mac-address"):
            network[key] = value
        elif key == "driver-opt":
            option, equals, content = value.partition("=")
            if not equals:
                raise ValueError("invalid key value pair format in driver options")
            network.setdefault(key, {})[option.strip().lower()] = content.strip()
        elif key == "gw-priority":
            try:
                network[key] = int(value)
            except ValueError:
                raise ValueError(f"invalid gw-priority ({value}): invalid syntax") from None
        else:
            raise ValueError(f"invalid field key {key}")
    if not network["name"]:
        raise ValueError("network name is required")
    return network
