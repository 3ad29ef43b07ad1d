"""What the driver options of a bridge network say; names and texts are dockerd's. Pure.

Options that dockerd knows and Tare does not offer are refused by name. Others are kept and shown, as by dockerd: they may mean something
to whoever made the network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from tare.errors import InvalidArgument, Unsupported

BRIDGE_NAME = "com.docker.network.bridge.name"
MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
ICC = "com.docker.network.bridge.enable_icc"
HOST_IP = "com.docker.network.bridge.host_binding_ipv4"
INHIBIT = "com.docker.network.bridge.inhibit_ipv4"
DEFAULT_BRIDGE = "com.docker.network.bridge.default_bridge"
MTU = "com.docker.network.driver.mtu"
INTERFACE_PREFIX = "com.docker.network.container_iface_prefix"
SOURCES = ("com.docker.network.host_ipv4", "com.docker.network.host_ipv6")
FAMILIES = ("com.docker.network.enable_ipv4", "com.docker.network.enable_ipv6")
BANDWIDTH = "tare.bandwidth"
_GATEWAY_MODES = ("com.docker.network.bridge.gateway_mode_ipv4", "com.docker.network.bridge.gateway_mode_ipv6")
_TRUSTED = "com.docker.network.bridge.trusted_host_interfaces"

_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))
_PREFIX = re.compile(r"[a-zA-Z][a-zA-Z_.-]{0,11}")


@dataclass(frozen=True)
class BridgeOptions:
    """The switches of one bridge network."""

    masquerade: bool = True
    icc: bool = True
    """Whether its containers may talk to each other."""
    host_ip: str = ""
    """The host address on which ports are published that name none; empty for all."""
    addressed: bool = True
    """Whether the bridge itself gets the IPv4 gateway's address."""
    interface_prefix: str = "eth"
    source: str = ""
    """The host's address that containers appear with outside; empty for that of the way out."""
    source6: str = ""


def bridge_options(options: Mapping[str, str]) -> BridgeOptions:
    """The options of a bridge network. Raises InvalidArgument for a value that cannot be, Unsupported for what is not offered."""
    for name in _GATEWAY_MODES:
        if options.get(name, "nat") not in ("", "nat"):
            raise Unsupported(f"{name}={options[name]} is not offered: containers are behind NAT (gateway mode nat)")
    if options.get(_TRUSTED):
        raise Unsupported(f"{_TRUSTED} is not offered: containers are reached from elsewhere through published ports")
    prefix = options.get(INTERFACE_PREFIX) or "eth"
    if not _PREFIX.fullmatch(prefix):
        raise InvalidArgument(f"invalid value {prefix!r} for the network option {INTERFACE_PREFIX}: 1 to 12 letters")
    sources = [_address(options, name, version) for name, version in zip(SOURCES, (4, 6), strict=True)]
    return BridgeOptions(
        masquerade=switch(options, MASQUERADE, True),
        icc=switch(options, ICC, True),
        host_ip=_address(options, HOST_IP, 4),
        addressed=not switch(options, INHIBIT, False),
        interface_prefix=prefix,
        source=sources[0],
        source6=sources[1],
    )


def switch(options: Mapping[str, str], name: str, default: bool) -> bool:
    """A truth value as Go writes it."""
    text = options.get(name, "")
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if text:
        raise InvalidArgument(f'failed to parse {name} value: {text} (strconv.ParseBool: parsing "{text}": invalid syntax)')
    return default


def mtu(options: Mapping[str, str], default: int) -> int:
    """The MTU that the options ask for."""
    text = options.get(MTU, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgument(f'failed to parse {MTU} value: {text} (strconv.Atoi: parsing "{text}": invalid syntax)')
    if not 68 <= int(text) <= 65535:
        raise InvalidArgument(f"failed to parse {MTU} value: {text} (out of range: 68 to 65535)")
    return int(text)


def _address(options: Mapping[str, str], name: str, version: int) -> str:
    text = options.get(name, "")
    if not text:
        return ""
    try:
        address = ip_address(text)
    except ValueError:
        address = None
    if address is None or address.version != version:
        raise InvalidArgument(f"failed to parse {name} value: {text} (not an IPv{version} address)")
    return "" if address.is_unspecified else str(address)
