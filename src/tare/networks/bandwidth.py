"""Limits of a container's bandwidth: a token bucket on each direction of its veth, at the host's end where the container cannot take it
off.

``10mbit`` limits both directions, ``10mbit/2mbit`` what the container receives and what it sends. Receiving is shaped (tc-tbf(8)):
packets wait. Sending is policed: packets above the rate are dropped, since there is nowhere to wait at the entrance of a link.
"""

from __future__ import annotations

import re

from tare.errors import InvalidArgument
from tare.linux.netlink import Route
from tare.linux.traffic import Traffic
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


def apply(connection: Connection) -> None:
    """Put a connection's limits in place. Blocking; raises OSError where the kernel cannot."""
    receive, send = parse_bandwidth(connection.bandwidth)
    with Route() as route:
        link = route.link(connection.host_link)
    if link is None or not connection.bandwidth:
        return
    with Traffic() as traffic:
        traffic.shape(link.index, receive)
        traffic.police(link.index, send)
