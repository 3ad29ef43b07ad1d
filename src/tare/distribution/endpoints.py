"""Which hosts serve a reference, in which order, and how far each is trusted.

Docker's rules: ``docker.io`` is served by registry-1.docker.io, after the configured mirrors; loopback hosts and those
named as insecure may be reached without TLS or with a certificate that nobody vouches for; all others need verified TLS.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from tare.errors import InvalidArgument
from tare.oci.reference import DEFAULT_DOMAIN


@dataclass(frozen=True)
class Endpoint:
    """One base URL to try. ``schemes`` in order of preference; only an insecure endpoint has ``http`` among them."""

    host: str
    """Host with optional port, as in a URL."""
    schemes: tuple[str, ...] = ("https",)
    verify: bool = True
    """Whether the server's certificate must be valid."""
    mirror: bool = False
    prefix: str = ""
    """Path below which the registry's API is found, ``/mirror/hub``; usually none."""

    path: str = field(default="", compare=False)
    """What the repository is called there; empty: as everywhere."""

    @property
    def takes_credentials(self) -> bool:
        """A mirror is somebody else: the user's credentials are not for it."""
        return not self.mirror


HUB = Endpoint("registry-1.docker.io")
"""Docker Hub, which serves ``docker.io``."""


@dataclass(frozen=True)
class RegistryPolicy:
    """The daemon's settings that concern registries; validated on construction."""

    mirrors: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for mirror in self.mirrors:
            _mirror_endpoint(mirror, False)

    def endpoints(self, domain: str, path: str = "") -> tuple[Endpoint, ...]:
        """Where to look for repositories of ``domain``, best first."""
        if domain != DEFAULT_DOMAIN:
            return (self._endpoint(domain),)
        mirrors = tuple(_mirror_endpoint(mirror, self.is_insecure(_mirror_host(mirror))) for mirror in self.mirrors)
        return (*mirrors, HUB)

    def is_insecure(self, host: str) -> bool:
        """Whether ``host`` may be reached without verified TLS."""
        name = hostname(host)
        if name == "localhost":
            return True
        address = _address(name)
        if address is not None and address.is_loopback:
            return True
        for entry in self.insecure:
            if entry in (host, name):
                return True
            if address is not None and "/" in entry and address in ipaddress.ip_network(entry, strict=False):
                return True
        return False

    def _endpoint(self, domain: str) -> Endpoint:
        if self.is_insecure(domain):
            return Endpoint(domain, ("https", "http"), verify=False)
        return Endpoint(domain)


def hostname(host: str) -> str:
    """The host part of ``host[:port]``, without brackets."""
    return urlsplit(f"//{host}").hostname or ""


def proxy_for(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for a host; never one for loopback (as Go's standard library)."""
    if not any(name in os.environ for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")):
        return None
    name = hostname(host)
    address = _address(name)
    if name == "localhost" or (address is not None and address.is_loopback) or proxy_bypass(host):
        return None
    return getproxies().get(scheme)


def check_insecure(entries: Sequence[str]) -> None:
    """Refuse ``--insecure-registry`` values that are neither a host nor a network."""
    for entry in entries:
        if "://" in entry or not entry:
            raise InvalidArgument(f"insecure registry {entry} is not valid: give host[:port] or a CIDR")
        if "/" in entry:
            try:
                ipaddress.ip_network(entry, strict=False)
            except ValueError as error:
                raise InvalidArgument(f"insecure registry {entry} is not valid: {error}") from None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _mirror_host(mirror: str) -> str:
    return urlsplit(mirror).netloc


def _mirror_endpoint(mirror: str, insecure: bool) -> Endpoint:
    parts = urlsplit(mirror)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidArgument(f"invalid mirror: {mirror} needs http:// or https:// and a host")
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise InvalidArgument(f"invalid mirror: {mirror} may have neither credentials, path, query nor fragment")
    return Endpoint(parts.netloc, (parts.scheme,), verify=not insecure, mirror=True)
