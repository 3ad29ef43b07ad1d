"""Being attached to a container or an exec: the connection, the terminal and the signals that go with it.

Used by ``run``, ``start -a``, ``attach`` and ``exec``, which differ only in what they ask of the daemon before and after.
"""

from __future__ import annotations

import os
import time

from tare.cli.failures import CliError, DaemonError
from tare.cli.streams import Carrier, OutputClosed, parse_detach_keys
from tare.cli.terminal import Handlers, RawMode, is_tty, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Mapping

    from tare.cli.connection import Client, Response

MULTIPLEXED = "application/vnd.docker.multiplexed-stream"


class Attachment:
    """An open stream to a container's process. ``serve`` carries bytes until it ends."""

    def __init__(self, sock: socket, left: bytes, *, tty: bool, stdin: bool, detach_keys: str) -> None:
        escape = parse_detach_keys(detach_keys) if tty and stdin else b""
        self._sock = sock
        self._raw = tty and stdin
        self._carrier = Carrier(sock, left, multiplexed=not tty, stdin=0 if stdin else None, escape=escape)

    def serve(self, prepare: Callable[[], None] | None = None) -> bool:
        """Call ``prepare`` with the terminal set up, then carry. False when the user detached.

        When our own output is closed, the connection is ended, which is all that a reader who went away can mean.
        """
        try:
            if not self._raw:
                return self._carry(prepare)
            with RawMode():
                return self._carry(prepare)
        except OutputClosed:
            return True
        finally:
            self._sock.close()

    def _carry(self, prepare: Callable[[], None] | None) -> bool:
        if prepare is not None:
            prepare()
        self._carrier.run()
        return not self._carrier.detached


def attach(client: Client, container: str, query: Mapping[str, object], *, tty: bool, detach_keys: str) -> Attachment:
    """Attach to a container; returns once the daemon has said 101."""
    if detach_keys:
        parse_detach_keys(detach_keys)
    sock, left, _ = client.hijack(f"/containers/{container}/attach", {**query, "detachKeys": detach_keys})
    return Attachment(sock, left, tty=tty, stdin=bool(query.get("stdin")), detach_keys=detach_keys)


def check_terminal(*, stdin: bool, tty: bool) -> None:
    """A pseudo terminal whose input is no terminal cannot work as its user expects."""
    if stdin and tty and not is_tty(0):
        raise CliError("the input device is not a TTY")


class ExitStatus:
    """A wait that the daemon has accepted, so that no exit after it is missed."""

    def __init__(self, client: Client, container: str, *, removed: bool) -> None:
        condition = "removed" if removed else "next-exit"
        self._response: Response = client.stream("POST", f"/containers/{container}/wait", {"condition": condition})

    def get(self) -> int:
        """Block until the exit code is known."""
        for document in self._response.lines():
            failure = document.get("Error") or {}
            if failure.get("Message"):
                raise CliError(f"Error waiting for container: {failure['Message']}", 125)
            return int(document.get("StatusCode", 0))
        raise CliError("the daemon ended the wait without an exit code", 125)

    def cancel(self) -> None:
        self._response.close()


def resizer(client: Client, path: str) -> Callable[[], None]:
    """A function that tells the daemon our terminal's size, over a connection of its own."""

    def resize() -> None:
        rows, columns = size()
        if rows and columns:
            client.another().call("POST", path, {"h": rows, "w": columns})

    return resize


def forward_signals(handlers: Handlers, client: Client, container: str) -> None:
    """From now on, our signals are the container's."""

    def kill(name: str) -> None:
        # What the container prints reaches us before the daemon has noted that it runs: such a signal must not get lost.
        for delay in (0.02, 0.05, 0.1, 0.2, 0.0):
            try:
                client.another().call("POST", f"/containers/{container}/kill", {"signal": name})
                return
            except DaemonError as error:
                if error.status != 409:
                    raise
            time.sleep(delay)

    handlers.forward(kill)


def follow_size(handlers: Handlers, client: Client, path: str) -> None:
    """Pass on the terminal's size now and whenever it changes."""
    if not (is_tty(1) or is_tty(0)):
        return
    resize = resizer(client, path)
    handlers.on_resize(resize)
    try:
        resize()
    except CliError:
        pass  # the process may already be gone


def default_detach_keys(given: str) -> str:
    """The keys of the flag, else of the configuration file (read only where a terminal is in play)."""
    if given or not is_tty(0):
        return given
    from tare.cli.hosts import settings

    return str(settings().get("detachKeys", "") or os.environ.get("TARE_DETACH_KEYS", ""))
