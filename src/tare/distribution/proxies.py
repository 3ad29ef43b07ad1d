"""Which proxy leads to a host: the environment's HTTP_PROXY, HTTPS_PROXY and NO_PROXY, read as Go's HTTP client reads them.

``tared --http-proxy`` and the ``proxies`` of daemon.json set that environment when the daemon starts, as with dockerd. NO_PROXY is a list
of hosts, domains (``example.com`` is meant with all below it, ``.example.com`` only what is below), addresses and networks, each with an
optional port, or ``*`` for everything. Loopback is never reached through a proxy.
"""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit


def proxy_for(scheme: str, netloc: str) -> str | None:
    """URL of the proxy for ``scheme://netloc``, ``None`` to connect directly. A proxy without a scheme is an HTTP one."""
    proxy = _variable(f"{scheme}_proxy")
    if not proxy:
        return None
    parts = urlsplit(f"//{netloc}")
    name = (parts.hostname or "").lower()
    if not name or bypassed(name, parts.port or (443 if scheme == "https" else 80), _variable("no_proxy")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def bypassed(name: str, port: int, exceptions: str) -> bool:
    """Whether a host is to be reached without a proxy."""
    address = _address(name)
    if name == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_matches(entry, name, address, port) for entry in exceptions.replace(",", " ").lower().split())


def _matches(entry: str, name: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    host, wanted = _split_port(entry)
    if wanted and wanted != str(port):
        return False
    if address is not None:
        return _address(host) == address
    host = host.removeprefix("*")
    return name.endswith(host) if host.startswith(".") else name == host or name.endswith(f".{host}")


def _split_port(entry: str) -> tuple[str, str]:
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        return host, rest.removeprefix(":")
    if entry.count(":") == 1:
        host, _, port = entry.partition(":")
        return host, port
    return entry, ""


def _variable(name: str) -> str:
    return os.environ.get(name.upper()) or os.environ.get(name) or ""


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
