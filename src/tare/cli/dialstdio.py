"""``system dial-stdio``: join standard input and output with the daemon's socket. ``ssh HOST tare system dial-stdio`` is how a remote
client reaches a daemon that listens on a unix socket only.

Each direction ends by itself, as the protocol needs it: the end of input half-closes the socket, the end of the daemon's output closes
standard output and with that the process.
"""

from __future__ import annotations

import _socket
import os
import select
import socket

from tare.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.context import Context
    from tare.cli.flags import Options

_PIECE = 256 * 1024


def join(source: int, target: int, sock: _socket.socket) -> None:
    """Carry ``source`` to the socket and the socket to ``target`` until the socket's peer has ended its direction."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    poll.register(sock, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == source:
                data = os.read(source, _PIECE)
                if data:
                    sock.sendall(data)
                else:
                    poll.unregister(source)
                    sock.shutdown(socket.SHUT_WR)
            else:
                data = sock.recv(_PIECE)
                if not data:
                    return
                while data:
                    data = data[os.write(target, data) :]


def _dial(context: Context, options: Options) -> int:
    sock = context.client.connect()
    try:
        join(0, 1, sock)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the other end has gone: nobody is left to tell
    finally:
        sock.close()
    return 0


DIAL_STDIO = Command("system dial-stdio", "system dial-stdio", "Proxy the stdio stream to the daemon connection", _dial, most=0)
