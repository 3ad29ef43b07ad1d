"""Hearing that network links went away: deleted, or taken out of their bridge (which the kernel announces as the end of the bridge's port).

A filter in the kernel keeps everything else from waking the listener: links come and change all the time, with every container's start.

Followed: rtnetlink(7), socket(7) (SO_ATTACH_FILTER), linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys

from tare.linux import netlink_message as nl
from tare.linux.netlink import IFLA_IFNAME, RTM_DELLINK

_NETLINK_ROUTE = 0
_GROUP_LINK = 1
_SO_ATTACH_FILTER = 26
_TYPE_OFFSET = 4
_IFINFO_LENGTH = 16
_RECEIVE_BUFFER = 1 << 20
_BUFFER = 1 << 16
_LOAD_HALF, _JUMP_EQUAL, _RETURN = 0x28, 0x15, 0x06
_WHOLE = 0xFFFFFFFF


class LinkWatch:
    """An open subscription, readable when a link of the network namespace went away."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _NETLINK_ROUTE)
        try:
            _let_through(self._socket, RTM_DELLINK)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self._socket.bind((0, _GROUP_LINK))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def gone(self) -> set[str] | None:
        """Read what is there: the names of links that went away; None when more happened than the kernel's queue holds."""
        names: set[str] = set()
        missed = False
        while True:
            try:
                data = self._socket.recv(_BUFFER)
            except BlockingIOError:
                return None if missed else names
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                missed = True
                continue
            for message in nl.messages(data):
                if message.type == RTM_DELLINK:
                    name = nl.attributes(message.payload, _IFINFO_LENGTH).get(IFLA_IFNAME, b"")
                    names.add(name.rstrip(b"\0").decode(errors="replace"))


def _let_through(sock: socket.socket, kind: int) -> None:
    """Have the kernel drop all messages but those of one type. (The filter reads network order, netlink writes the machine's.)"""
    seen = int.from_bytes(kind.to_bytes(2, sys.byteorder), "big")
    steps = [(_LOAD_HALF, 0, 0, _TYPE_OFFSET), (_JUMP_EQUAL, 0, 1, seen), (_RETURN, 0, 0, _WHOLE), (_RETURN, 0, 0, 0)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(steps), ctypes.addressof(code)))
