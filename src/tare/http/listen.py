"""Listening sockets from dockerd's address notation: ``unix://PATH``, ``tcp://HOST:PORT``, ``fd://[NAME or NUMBER]``.

A unix socket's file is made with mode 0600 and opened to its group (0660) only after it has its owner, so there is no moment in which
others could connect. A socket file left behind by a dead server is replaced; one behind which somebody answers is an error.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_PORT = 2375
DEFAULT_TLS_PORT = 2376
BACKLOG = 1024
FIRST_PASSED_FD = 3


class ListenError(Exception):
    """An address cannot be listened on; the message names it and says why."""


@dataclass
class Listening:
    """One bound, listening socket."""

    sock: socket.socket
    address: str
    """As to be shown and connected to, with the real port."""
    path: Path | None = None
    inode: int = 0

    @property
    def is_tcp(self) -> bool:
        return self.sock.family != socket.AF_UNIX

    def remove_file(self) -> None:
        """Remove the socket's file unless somebody else has put another there."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                if os.stat(self.path, follow_symlinks=False).st_ino == self.inode:
                    self.path.unlink()


def listen(address: str, group: str | None = None, tls: bool = False) -> list[Listening]:
    """Bind ``address``. Several sockets come back where a host name has several addresses, or for ``fd://``."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        if not address.startswith("/"):
            raise ListenError(f"invalid address {address!r}: expected unix://PATH, tcp://HOST:PORT or fd://")
        scheme, rest = "unix", address
    try:
        if scheme == "unix":
            return [_unix(rest, group)]
        if scheme == "tcp":
            return _tcp(address, tls)
        if scheme == "fd":
            return _passed(rest)
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror or error}") from error
    raise ListenError(f"invalid address {address!r}: unknown protocol {scheme!r}; expected unix, tcp or fd")


def _group_id(group: str) -> int:
    if group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ListenError(f"group {group} not found") from None


def _unix(text: str, group: str | None) -> Listening:
    if not text.startswith("/"):
        raise ListenError(f"invalid address unix://{text}: the path must be absolute")
    path = Path(text)
    gid = _group_id(group) if group else None
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o711)
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        previous = os.umask(0o177)
        try:
            sock.bind(text)
        finally:
            os.umask(previous)
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, 0o660)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        return Listening(sock, f"unix://{text}", path, os.stat(path).st_ino)
    except BaseException:
        sock.close()
        raise


def _remove_stale(path: Path) -> None:
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"cannot listen on unix://{path}: the path exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
        except BlockingIOError:
            pass  # a full backlog: somebody listens
    raise ListenError(f"cannot listen on unix://{path}: another process is listening there")


def _tcp(address: str, tls: bool) -> list[Listening]:
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise ListenError(f"invalid address {address}: {error}") from None
    if parts.path not in ("", "/") or parts.query or parts.username is not None:
        raise ListenError(f"invalid address {address}: expected tcp://HOST:PORT")
    host = parts.hostname or "127.0.0.1"
    if port is None:
        port = DEFAULT_TLS_PORT if tls else DEFAULT_PORT
    result: list[Listening] = []
    try:
        seen: set[tuple[object, ...]] = set()
        for family, kind, _, _, target in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            if target in seen:
                continue
            seen.add(target)
            sock = socket.socket(family, kind | socket.SOCK_CLOEXEC)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind(target)
                sock.listen(BACKLOG)
            except OSError as error:
                sock.close()
                if error.errno == errno.EADDRNOTAVAIL and result:
                    continue
                raise
            sock.setblocking(False)
            bound = sock.getsockname()
            shown = f"[{bound[0]}]" if family == socket.AF_INET6 else bound[0]
            result.append(Listening(sock, f"tcp://{shown}:{bound[1]}"))
    except BaseException:
        for listening in result:
            listening.sock.close()
        raise
    return result


def _passed(which: str) -> list[Listening]:
    """Sockets passed by systemd (sd_listen_fds(3)): all, one by number, or those of a name."""
    count = int(os.environ.get("LISTEN_FDS", "0") or 0)
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or count <= 0:
        raise ListenError("no sockets found via socket activation: make sure the service was started by systemd")
    numbers = list(range(FIRST_PASSED_FD, FIRST_PASSED_FD + count))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    if which not in ("", "*"):
        if which.isdigit():
            numbers = [number for number in numbers if number == int(which)]
        else:
            numbers = [number for number, name in zip(numbers, names, strict=False) if name == which]
        if not numbers:
            raise ListenError(f"no socket named {which} was passed by socket activation")
    result = []
    for number in numbers:
        os.set_inheritable(number, False)
        sock = socket.socket(fileno=number)
        sock.setblocking(False)
        result.append(Listening(sock, f"fd://{number}"))
    return result
