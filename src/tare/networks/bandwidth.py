"""Limits of a container's bandwidth: a token bucket (tc-tbf(8)) at either end of its veth, each for what that end sends.

``10mbit`` limits both directions, ``10mbit/2mbit`` what the container receives and what it sends. The first is out of the container's
reach; the second is in its network namespace, where only a container with CAP_NET_ADMIN, which none has by default, could lift it.
"""

from __future__ import annotations

import re

from tare.errors import InvalidArgument
from tare.linux.traffic import Traffic
from tare.networks.live import Namespace, inside
from tare.networks.model import Connection

_RATE = re.compile(r"([0-9]{1,12})(bit|kbit|mbit|gbit|bps|kbps|mbps|gbps)?", re.IGNORECASE)
_UNITS = {"bit": 1, "kbit": 1000, "mbit": 1000**2, "gbit": 1000**3, "bps": 8, "kbps": 8000, "mbps": 8 * 1000**2, "gbps": 8 * 1000**3}


def parse_bandwidth(text: str) -> tuple[int, int]:
    """Bytes per second that a container may receive and send; 0 is without limit. Units are those of tc(8)."""
    if not text:
        return 0, 0
    down, slash, up = text.partition("/")
    return _rate(down, text), _rate(up, text) if slash else _rate(down, text)


def _rate(word: str, text: str) -> int:
    match = _RATE.fullmatch(word.strip())
    if match is None or not 8000 <= int(match[1]) * _UNITS[(match[2] or "bit").lower()] <= 8 * (1 << 32) - 8:
        raise InvalidArgument(f"invalid bandwidth {text!r}: want RATE or RECEIVE/SEND such as 10mbit or 10mbit/2mbit, 8kbit to 34gbit")
    return int(match[1]) * _UNITS[(match[2] or "bit").lower()] // 8


def apply(connection: Connection, pid: int) -> None:
    """Put a connection's limits in place; ``pid`` is a process in the container. Blocking; raises OSError where the kernel cannot."""
    receive, send = parse_bandwidth(connection.bandwidth)
    _shape(connection.host_link, receive)
    with Namespace(pid) as namespace:
        inside(namespace.fd, lambda: _shape(connection.interface, send))


def _shape(name: str, rate: int) -> None:
    with Traffic() as traffic:
        link = traffic.link(name)
        if link is not None:
            traffic.shape(link.index, rate)
