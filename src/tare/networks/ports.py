"""Published ports: what a container asked for, what it got, and the host ports held for it.

A host port is held by a *bound* socket that the daemon keeps: bound, so that no other program can take the port while it is
published; not listening, because packets to it are redirected by nftables before they reach a socket. Binding is also the only
honest test whether the port is free, and costs microseconds.

Invariants of ``HostPorts``: two held ports never overlap (same protocol and number, and equal or unspecified addresses); ``hold`` of
several bindings holds all or none.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from tare.errors import Conflict, InvalidArgument, ResourceExhausted, Unsupported

EPHEMERAL = (32768, 60999)
ANY = "0.0.0.0"
ANY6 = "::"
LOOPBACK6 = "::1"
PROTOCOLS = ("tcp", "udp", "sctp")

_PORT_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_KINDS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}


@dataclass(frozen=True)
class PortBinding:
    """A request: publish ``container_port`` on one free host port of start..end (0: any free ephemeral port)."""

    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""
    host_port_start: int = 0
    host_port_end: int = 0


@dataclass(frozen=True)
class PublishedPort:
    """An answer: packets to ``host_ip``:``host_port`` reach ``container_port``. ``host_ip``: 0.0.0.0 and :: are any of their family."""

    container_port: int
    protocol: str
    host_ip: str
    host_port: int

    @property
    def key(self) -> str:
        """Docker's name of the container's port: ``80/tcp``."""
        return f"{self.container_port}/{self.protocol}"


def parse_range(text: str) -> tuple[int, int]:
    """``80`` or ``8000-8010`` as first and last port."""
    match = _PORT_RANGE.fullmatch(text)
    start = int(match[1]) if match else -1
    end = int(match[2]) if match and match[2] else start
    if not 0 <= start <= end <= 65535:
        raise InvalidArgument(f"invalid port specification: {text!r}")
    return start, end


def parse_port(text: str) -> tuple[range, str]:
    """``80``, ``80/tcp`` or ``8000-8010/udp`` as container ports and protocol."""
    number, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    start, end = parse_range(number)
    if start == 0:
        raise InvalidArgument(f"invalid port specification: {text!r}")
    if protocol not in PROTOCOLS:
        raise InvalidArgument(f"invalid proto: {protocol!r} in port {text!r} (tcp, udp or sctp)")
    return range(start, end + 1), protocol


def parse_bindings(bindings: Mapping[str, Sequence[Mapping[str, str]] | None]) -> tuple[PortBinding, ...]:
    """Docker's ``HostConfig.PortBindings`` (``{"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}``) as requests, ordered by port."""
    found: list[PortBinding] = []
    for spec, targets in bindings.items():
        ports, protocol = parse_port(spec)
        for target in targets or ({},):
            host_ip = (target.get("HostIp") or "").strip("[]")
            start, end = parse_range(target.get("HostPort") or "0")
            if len(ports) > 1 and start and end - start != len(ports) - 1:
                raise InvalidArgument(f"invalid ranges specified for container and host ports: {spec} and {start}-{end}")
            for offset, port in enumerate(ports):
                one = (start + offset,) * 2 if len(ports) > 1 and start else (start, end)
                found.append(PortBinding(port, protocol, _host_address(host_ip), *one))
    return tuple(sorted(found, key=lambda binding: (binding.container_port, binding.protocol)))


def publish_all(exposed: Iterable[str], bindings: Sequence[PortBinding] = ()) -> tuple[PortBinding, ...]:
    """``-P``: the given bindings, and a free host port for every exposed port that they do not publish."""
    known = {(binding.container_port, binding.protocol) for binding in bindings}
    wanted = {(port, protocol) for ports, protocol in map(parse_port, exposed) for port in ports}
    return (*bindings, *(PortBinding(port, protocol) for port, protocol in sorted(wanted - known)))


def _host_address(text: str) -> str:
    """A host IP as given by a client: empty, or a canonical address."""
    try:
        return str(ip_address(text)) if text else ""
    except ValueError:
        raise InvalidArgument(f"invalid IP address: {text!r}") from None


class HostPorts:
    """The host ports this engine holds. Not thread-safe: used on the event loop."""

    def __init__(self, ephemeral: tuple[int, int] = EPHEMERAL) -> None:
        self._first, self._last = ephemeral
        self._cursor = self._first
        self._held: dict[tuple[str, int], dict[str, socket.socket | None]] = {}

    def __len__(self) -> int:
        """How many ports are held."""
        return sum(map(len, self._held.values()))

    def hold(self, bindings: Sequence[PortBinding], address: str, address6: str = "", default_ip: str = "") -> tuple[PublishedPort, ...]:
        """Choose and hold host ports for each request of the container with these addresses: one, or one per family that the container has
        where no host address was given (nor ``default_ip``). All or none; raises ``Conflict``."""
        held: list[PublishedPort] = []
        try:
            for binding in bindings:
                host_ip = _host_address(binding.host_ip) or default_ip or (ANY if address else ANY6)
                if ":" in host_ip and not address6:
                    raise Unsupported(f"cannot publish a port on the IPv6 address {host_ip}: the container has no IPv6 address")
                if ":" not in host_ip and not address:
                    raise Unsupported(f"cannot publish a port on the IPv4 address {host_ip}: the container has no IPv4 address")
                held.append(self._hold_one(binding, host_ip, address6 if ":" in host_ip else address))
                if address and address6 and not binding.host_ip and not default_ip:
                    port = held[-1].host_port
                    same = replace(binding, host_port_start=port, host_port_end=port)
                    held.append(self._hold_one(same, ANY6, address6))
        except BaseException:
            self.release(held)
            raise
        return tuple(held)

    def hold_again(self, ports: Iterable[PublishedPort]) -> list[PublishedPort]:
        """Hold ports that are published already (after a restart of the daemon). Returns those that another program has taken in the
        meantime: they stay published, since redirection comes before that program's socket."""
        lost = []
        for port in ports:
            try:
                held = self._bind(port.protocol, port.host_ip, port.host_port)
            except OSError:
                held = None
                lost.append(port)
            self._held.setdefault((port.protocol, port.host_port), {})[port.host_ip] = held
        return lost

    def release(self, ports: Iterable[PublishedPort]) -> None:
        """Let ports go. Those not held are skipped."""
        for port in ports:
            owners = self._held.get((port.protocol, port.host_port), {})
            held = owners.pop(port.host_ip, None)
            if held is not None:
                held.close()
            if not owners:
                self._held.pop((port.protocol, port.host_port), None)

    def close(self) -> None:
        """Close every socket; what is published stays published."""
        for owners in self._held.values():
            for held in owners.values():
                if held is not None:
                    held.close()
        self._held.clear()

    def _hold_one(self, binding: PortBinding, host_ip: str, address: str) -> PublishedPort:
        chosen = 0
        if not binding.host_port_start:
            chosen = self._hold_ephemeral(binding, host_ip)
        for port in range(binding.host_port_start, binding.host_port_end + 1) if not chosen else ():
            last = port == binding.host_port_end
            if self._overlaps(binding.protocol, host_ip, port):
                if last:
                    raise Conflict(f"Bind for {host_ip}:{port} failed: port is already allocated")
                continue
            try:
                self._take(binding.protocol, host_ip, port)
            except OSError as error:
                if last:
                    raise _bind_failure(error, binding, host_ip, port, address) from None
                continue
            chosen = port
            break
        return PublishedPort(binding.container_port, binding.protocol, host_ip, chosen)

    def _hold_ephemeral(self, binding: PortBinding, host_ip: str) -> int:
        span = self._last - self._first + 1
        for step in range(span):
            port = self._first + (self._cursor - self._first + step) % span
            if self._overlaps(binding.protocol, host_ip, port):
                continue
            try:
                self._take(binding.protocol, host_ip, port)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise _bind_failure(error, binding, host_ip, port, "") from None
            self._cursor = self._first + (port + 1 - self._first) % span
            return port
        raise ResourceExhausted(f"all ports {self._first}-{self._last} of {host_ip}/{binding.protocol} are allocated")

    def _overlaps(self, protocol: str, host_ip: str, port: int) -> bool:
        owners = self._held.get((protocol, port), {})
        same_family = [owner for owner in owners if (":" in owner) == (":" in host_ip)]
        return bool(same_family) and (host_ip in (ANY, ANY6) or host_ip in owners or bool({ANY, ANY6} & set(same_family)))

    def _take(self, protocol: str, host_ip: str, port: int) -> None:
        held = self._bind(protocol, host_ip, port)
        self._held.setdefault((protocol, port), {})[host_ip] = held

    @staticmethod
    def _bind(protocol: str, host_ip: str, port: int) -> socket.socket | None:
        """A socket bound to the port, or None where the kernel lacks the protocol (then nobody else can have the port either)."""
        try:
            family = socket.AF_INET6 if ":" in host_ip else socket.AF_INET
            held = socket.socket(family, _KINDS[protocol][0] | socket.SOCK_CLOEXEC, _KINDS[protocol][1])
        except OSError as error:
            if error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
                return None
            raise
        try:
            if family == socket.AF_INET6:
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                held.bind((host_ip, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE or protocol != "tcp":
                    raise
                # Perhaps only old connections in TIME_WAIT. SO_REUSEADDR passes over these, but not over a listener. It is
                # switched off again, or another program could share the port by setting it too.
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held.bind((host_ip, port))
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError:
            held.close()
            raise
        return held


def _bind_failure(error: OSError, binding: PortBinding, host_ip: str, port: int, address: str) -> Conflict:
    words = os.strerror(error.errno or errno.EIO).lower()
    target = f":{address}:{binding.container_port}/{binding.protocol}" if address else f"/{binding.protocol}"
    where = f"[{host_ip}]" if ":" in host_ip else host_ip
    return Conflict(f"failed to bind host port for {where}:{port}{target}: {words}")
