"""Which hosts serve a reference, in which order, and how far each is trusted.

Docker's rules: ``docker.io`` is served by registry-1.docker.io, after the configured mirrors; loopback hosts and those
named as insecure may be reached without TLS or with a certificate that nobody vouches for; all others need verified TLS.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from tare.distribution.registry_rules import Location, RegistryRule, rule_for
from tare.errors import Forbidden, InvalidArgument
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
    pull_from: str = "all"
    """Which requests it is for: ``all``, ``digest-only`` or ``tag-only``."""

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
    rules: tuple[RegistryRule, ...] = ()

    def __post_init__(self) -> None:
        for mirror in self.mirrors:
            _mirror_endpoint(mirror, False)

    def endpoints(self, domain: str, path: str = "") -> tuple[Endpoint, ...]:
        """Where to look for the repository ``domain/path``, best first; the last one is the registry itself.

        Raises ``Forbidden`` for a registry that the configuration blocks.
        """
        name = f"{domain}/{path}" if path else domain
        rule = rule_for(self.rules, name)
        own = HUB if domain == DEFAULT_DOMAIN else self._endpoint(domain)
        if rule is not None:
            if rule.blocked:
                raise Forbidden(f"registry {rule.prefix} is blocked by the daemon's registry configuration")
            mirrors = tuple(self._relocated(rule, mirror, name, mirror=True) for mirror in rule.mirrors)
            if rule.location.location:
                own = self._relocated(rule, rule.location, name, mirror=False)
            elif rule.location.insecure:
                own = replace(own, schemes=("https", "http"), verify=False)
            if mirrors or domain != DEFAULT_DOMAIN:
                return (*mirrors, own)
        if domain != DEFAULT_DOMAIN:
            return (own,)
        mirrors = tuple(_mirror_endpoint(mirror, self.is_insecure(_mirror_host(mirror))) for mirror in self.mirrors)
        return (*mirrors, own)

    def _relocated(self, rule: RegistryRule, place: Location, name: str, *, mirror: bool) -> Endpoint:
        """The endpoint where ``name`` is found when ``place`` stands for the rule's prefix."""
        host, _, path = f"{place.location}{name[rule.matched(name) :]}".partition("/")
        insecure = place.insecure or self.is_insecure(host)
        schemes = ("https", "http") if insecure else ("https",)
        return Endpoint(host, schemes, not insecure, mirror, path=path, pull_from=place.pull_from)

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
    """The host part of ``host[:port]``, without brackets. Raises ``InvalidArgument`` for what is no such thing."""
    try:
        parts = urlsplit(f"//{host}")
        if parts.hostname and parts.netloc == host and "@" not in host and parts.port != 0:
            return parts.hostname
    except ValueError:
        pass
    raise InvalidArgument(f"invalid registry address {host!r}: HOST or HOST:PORT is expected")


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
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise InvalidArgument(f"invalid mirror: {mirror} may have neither credentials, query nor fragment")
    return Endpoint(parts.netloc, (parts.scheme,), verify=not insecure, mirror=True, prefix=parts.path.rstrip("/"))
