"""Messages between daemon, launcher, keeper and init: one JSON object per packet, with file descriptors beside it.

All of these sockets are SOCK_SEQPACKET: a packet is a message, an empty read is the end. An object too long for a packet (a plan with huge
arguments) travels in a memfd that goes along as the last descriptor, marked by a packet that begins with ``*``.

The functions exist for blocking sockets (``send``, ``receive``) and can be used on non-blocking ones: then BlockingIOError says "not now".
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
from typing import Any

PACKET_LIMIT = 96 * 1024
"""Longest object sent inline; well below the default socket buffer."""
OBJECT_LIMIT = 16 * 1024 * 1024
MAX_FDS = 250

Message = dict[str, Any]

_encoder = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True)
_ANCILLARY_SPACE = socket.CMSG_SPACE(4 * (MAX_FDS + 1))
_F_SEAL_ALL = 0x0001 | 0x0002 | 0x0004 | 0x0008


def encode(message: Message) -> bytes:
    """The JSON text of a message."""
    return _encoder.encode(message).encode()


def encode_value(value: Any) -> str:
    """Any JSON value as text, to be put into a message as a string and decoded only by whom it concerns."""
    return _encoder.encode(value)


def send_bytes(sock: socket.socket, data: bytes, fds: list[int] | None = None) -> None:
    """Send one encoded message with descriptors."""
    passed = list(fds or ())
    memfd = -1
    try:
        if len(data) > PACKET_LIMIT:
            memfd = os.memfd_create("plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            view = memoryview(data)
            while view:
                view = view[os.write(memfd, view) :]
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _F_SEAL_ALL)
            passed.append(memfd)
            data = b"*"
        if passed:
            sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", passed))], socket.MSG_NOSIGNAL)
        else:
            sock.send(data, socket.MSG_NOSIGNAL)
    finally:
        if memfd >= 0:
            os.close(memfd)


def send(sock: socket.socket, message: Message, fds: list[int] | None = None) -> None:
    """Send one message with descriptors."""
    send_bytes(sock, encode(message), fds)


def receive_bytes(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One encoded message and its descriptors (close-on-exec, owned by the caller). Empty bytes mean the end."""
    try:
        data, ancillary, flags, _ = sock.recvmsg(PACKET_LIMIT, _ANCILLARY_SPACE, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # The peer closed without reading all that we sent. Its own last words may still be queued: the error is reported before them, once.
        data, ancillary, flags, _ = sock.recvmsg(PACKET_LIMIT, _ANCILLARY_SPACE, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            fds.extend(numbers)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(fds)
        raise OSError(90, "message too long")
    if data == b"*" and fds:
        memfd = fds.pop()
        try:
            size = os.fstat(memfd).st_size
            if size > OBJECT_LIMIT:
                raise OSError(90, "message too long")
            data = os.pread(memfd, size, 0)
        except OSError:
            close_all(fds)
            raise
        finally:
            os.close(memfd)
    return data, fds


def receive(sock: socket.socket) -> tuple[Message | None, list[int]]:
    """One message and its descriptors; None at the end. Raises ValueError for a packet that is no JSON object."""
    data, fds = receive_bytes(sock)
    if not data:
        close_all(fds)
        return None, []
    try:
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError("not an object")
    except ValueError:
        close_all(fds)
        raise
    return message, fds


def close_all(fds: list[int]) -> None:
    """Close descriptors, ignoring those already gone."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass
