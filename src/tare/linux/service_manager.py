"""Messages to a service manager (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> None:
    """Tell it ``READY=1``, ``RELOADING=1``, ``STOPPING=1``; nothing happens without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
        sock.send(message.encode())
