"""How a keeper asks the engine's name server to answer in a container's network namespace, before the container's program runs.

The name server is a process of its own (``tare.networks.dns.server``); only this one message of its protocol concerns the runtime.
"""

from __future__ import annotations

import errno
import os
import socket

from tare.runtime import messages

SECONDS = 5.0


def serve(path: str, container_id: str, namespace: int, pid: int) -> None:
    """Have the name server at ``path`` answer in the network namespace (a descriptor, which stays the caller's) for as long as the process
    ``pid`` lives. Returns when it does; raises OSError when it cannot."""
    pidfd = os.pidfd_open(pid)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(SECONDS)
            sock.connect(path)
            messages.send(sock, {"op": "serve", "id": container_id}, [namespace, pidfd])
            reply, _ = messages.receive(sock)
    finally:
        os.close(pidfd)
    if reply is None or "error" in reply:
        raise OSError(errno.EIO, (reply or {}).get("error", "the name server ended"), "name server")
