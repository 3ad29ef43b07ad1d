"""Daemons on other machines: connections through TLS and through ssh that look like a plain socket to everybody else.

The code that carries streams polls a socket, reads into its own buffers, half-closes it. An SSL object can do none of that quite the
same way (it has unread data that poll does not see, and wants to read when it is told to write), and an ssh program has pipes. So either
is put behind one end of a socket pair:

- TLS: a thread moves bytes between the pair and the network; it alone knows the TLS state. The end of our stream becomes a
  ``close_notify``, after which the daemon's bytes still come, as with Go's ``CloseWrite``.
- ssh: the pair's other end is standard input and output of ``ssh HOST tare system dial-stdio``, which joins it with the daemon's socket
  there.
"""

from __future__ import annotations

import _socket
import os

from tare.cli.connection import open_socket
from tare.cli.failures import CliError
from tare.cli.hosts import UNRESOLVED

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from tare.cli.hosts import Tls

_PIECE = 1 << 17
_children: list[tuple[int, str]] = []
"""The ssh programs of this call, and what they were told to do."""


def opener(host: str, tls: Tls | None) -> Callable[[str], _socket.socket]:
    """The way to connect to ``host``. Raises CliError when certificates or the address are no good."""
    if host.startswith("ssh://"):
        command = ssh_command(host)
        return lambda _: _through_ssh(command)
    assert tls is not None
    context = tls_context(tls)
    name = host.removeprefix("tcp://").split("/", 1)[0]
    name = name.rpartition(":")[0].strip("[]") or "127.0.0.1"
    return lambda address: _through_tls(open_socket(address), context, name)


# TLS


def tls_context(tls: Tls) -> ssl.SSLContext:
    """The client's side of TLS 1.2 or later with these files. Raises CliError that names the file."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        if tls.verify and tls.ca:
            context.load_verify_locations(tls.ca)
        elif tls.verify:
            context.load_default_certs()
    except (OSError, ssl.SSLError) as error:
        raise CliError(f"{UNRESOLVED}: open {tls.ca}: {_reason(error)}") from None
    if bool(tls.cert) != bool(tls.key):
        raise CliError(f"{UNRESOLVED}: a client certificate needs both --tlscert and --tlskey")
    if tls.cert:
        try:
            context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
        except (OSError, ssl.SSLError) as error:
            raise CliError(f"{UNRESOLVED}: could not load X509 key pair {tls.cert}, {tls.key}: {_reason(error)}") from None
    return context


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", "") or (error.strerror or "").lower() or error)


def _through_tls(sock: _socket.socket, context: ssl.SSLContext, name: str) -> _socket.socket:
    """Shake hands and leave a thread that carries; our end of the pair. Raises OSError."""
    import ssl
    import threading

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tunnel = _Tunnel(sock, context.wrap_bio(incoming, outgoing, server_hostname=name), incoming, outgoing)
    try:
        tunnel.handshake()
    except BaseException:
        sock.close()
        raise
    ours, theirs = _socket_pair()
    threading.Thread(target=tunnel.carry, args=(theirs,), daemon=True).start()
    return ours


def _socket_pair() -> tuple[_socket.socket, _socket.socket]:
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    return ours, theirs


class _Tunnel:
    """One connection's TLS state between the network and a local socket."""

    def __init__(self, sock: _socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._sock = sock
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing

    def handshake(self) -> None:
        import ssl

        while True:
            try:
                self._tls.do_handshake()
                self._flush()
                return
            except ssl.SSLWantReadError:
                self._flush()
                data = self._sock.recv(_PIECE)
                if not data:
                    raise ConnectionResetError("the daemon ended the TLS handshake; it may want a client certificate") from None
                self._incoming.write(data)
            except ssl.SSLError as error:
                self._flush()
                raise OSError(0, f"tls: {getattr(error, 'verify_message', '') or error.reason or error}") from None

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self._sock.sendall(data)

    def carry(self, local: _socket.socket) -> None:
        """Until the daemon ends the connection, or our side has gone for good."""
        import select

        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        poll.register(local.fileno(), select.POLLIN)
        try:
            alive = True
            while alive:
                for fd, _ in poll.poll():
                    if fd == local.fileno():
                        if not self._outward(local):
                            poll.unregister(local.fileno())
                    else:
                        alive = self._inward(local)
        except OSError as error:
            if getattr(error, "reason", None):
                _failures.append(f"error during connect: tls: {_tls_alert(error)}")
        finally:
            local.close()
            self._sock.close()

    def _outward(self, local: _socket.socket) -> bool:
        import ssl

        data = local.recv(_PIECE)
        if data:
            self._tls.write(data)
            self._flush()
            return True
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # the daemon's own close_notify comes later
        self._flush()
        return False

    def _inward(self, local: _socket.socket) -> bool:
        import ssl

        data = self._sock.recv(_PIECE)
        if not data:
            return False
        self._incoming.write(data)
        while True:
            try:
                plain = self._tls.read(_PIECE)
            except ssl.SSLWantReadError:
                self._flush()
                return True
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return False
            if not plain:
                return False
            local.sendall(plain)


_failures: list[str] = []
"""What ended connections that were already open: in TLS 1.3 the daemon judges our certificate after the handshake."""


def _tls_alert(error: OSError) -> str:
    reason = str(getattr(error, "reason", "") or error)
    if "CERTIFICATE_REQUIRED" in reason:
        return "certificate required: the daemon wants a client certificate (--tlscert, --tlskey)"
    return reason.lower().replace("_", " ")


# ssh


def ssh_command(host: str) -> list[str]:
    """``ssh`` and its arguments for ``ssh://[USER@]HOST[:PORT][/PATH]``; PATH is the daemon's socket there. Raises CliError."""
    rest = host.removeprefix("ssh://")
    address, _, path = rest.partition("/")
    user, at, machine = address.rpartition("@")
    if ":" in user:
        raise CliError("Failed to initialize: ssh host connection is not valid: invalid SSH URL: plain-text password is not supported")
    machine, colon, port = _machine_and_port(machine)
    if not machine or machine.startswith("-") or user.startswith("-"):
        raise CliError(f"Failed to initialize: ssh host connection is not valid: no usable host name in {host}")
    if colon and not port.isdecimal():
        raise CliError(f"Failed to initialize: ssh host connection is not valid: the port is no number in {host}")
    arguments = [os.environ.get("TARE_SSH", "") or "ssh", "-o", "ConnectTimeout=30", "-T"]
    if at:
        arguments += ["-l", user]
    if colon:
        arguments += ["-p", port]
    socket = f"-H {_shell_quote(f'unix:///{path}')} " if path else ""
    # What logs in over ssh always goes through the user's shell there. tare first, else docker.
    remote = f"if command -v tare >/dev/null 2>&1; then exec tare {socket}system dial-stdio; else exec docker {socket}system dial-stdio; fi"
    return [*arguments, "--", machine, f"sh -c {_shell_quote(remote)}"]


def _machine_and_port(text: str) -> tuple[str, str, str]:
    if text.startswith("["):
        machine, _, rest = text[1:].partition("]")
        return machine, rest[:1], rest[1:]
    return text.partition(":")


def _shell_quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _through_ssh(command: list[str]) -> _socket.socket:
    """A connection that an ssh program carries. Raises OSError when there is no such program."""
    ours, theirs = _socket_pair()
    fd = theirs.fileno()
    try:
        pid = os.posix_spawnp(
            command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, fd, 0), (os.POSIX_SPAWN_DUP2, fd, 1)], setsid=True
        )
    except OSError as error:
        ours.close()
        raise OSError(error.errno, f"cannot run {command[0]}: {error.strerror}") from None
    finally:
        theirs.close()
    _children.append((pid, " ".join(command[:-1])))
    return ours


def last_failure() -> str:
    """Why a connection ended that should have answered; nothing when that is not known."""
    if _failures:
        return _failures[-1]
    while _children:
        pid, told = _children.pop()
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:
            continue
        code = os.waitstatus_to_exitcode(status)
        if code:
            return (
                f"error during connect: command [{told} ...] has exited with exit status {code}, make sure that tare or docker works there"
            )
    return ""
