"""The PORTS column: ``0.0.0.0:8080->80/tcp, 9000-9001/udp``, neighbours joined to ranges."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


def display(ports: Iterable[dict[str, Any]]) -> str:
    """Docker's text for the ports of a container in a list."""
    entries = sorted(
        (str(port.get("IP") or ""), int(port.get("PrivatePort") or 0), int(port.get("PublicPort") or 0), str(port.get("Type") or "tcp"))
        for port in ports
    )
    entries.sort(key=lambda entry: (entry[1], entry[0], entry[2], entry[3]))
    single: list[str] = []
    groups: dict[str, tuple[int, int]] = {}
    for address, private, public, protocol in entries:
        key = protocol
        if address:
            if public != private:
                single.append(f"{_host(address)}:{public}->{private}/{protocol}")
                continue
            key = f"{address}/{protocol}"
        first, last = groups.get(key, (0, 0))
        if first == 0:
            groups[key] = (private, private)
        elif private == last + 1:
            groups[key] = (first, private)
        elif private != last:
            single.append(_group(key, first, last))
            groups[key] = (private, private)
    ordered = [_group(key, *span) for key, span in groups.items()]
    return ", ".join([*ordered, *single])


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _group(key: str, first: int, last: int) -> str:
    address, _, protocol = key.rpartition("/")
    span = str(first) if first == last else f"{first}-{last}"
    return f"{_host(address)}:{span}->{span}/{protocol}" if address else f"{span}/{protocol}"
