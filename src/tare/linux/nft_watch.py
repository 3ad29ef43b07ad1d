"""Hearing that somebody changed the packet rules: nftables announces every transaction, with the process that made it.

Followed: linux/netfilter/nf_tables.h (NFNLGRP_NFTABLES, NFT_MSG_NEWGEN).
"""

from __future__ import annotations

import errno
import os
import socket

from tare.linux import netlink_message as nl

NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1
_GROUP_NFTABLES = 7
_NEW_GENERATION = 10 << 8 | 15
_GENERATION_PID = 2
_HEADER_LENGTH = 4
_BUFFER = 1 << 16


class RuleWatch:
    """An open subscription, readable when rules changed."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def changed_by_others(self) -> bool:
        """Read what is there: whether another process changed rules. What was missed, because the kernel's queue was full, counts too."""
        changed = False
        while True:
            try:
                data = self._socket.recv(_BUFFER)
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True
                continue
            for message in nl.messages(data):
                if message.type == _NEW_GENERATION:
                    pid = nl.attributes(message.payload, _HEADER_LENGTH).get(_GENERATION_PID, b"")
                    changed = changed or int.from_bytes(pid, "big") != os.getpid()
