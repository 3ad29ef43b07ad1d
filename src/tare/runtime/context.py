"""What the steps of one init share while they run: descriptors, findings, and the line to the keeper.

The init never logs. It tells its keeper how far it is and, in the end, which step failed and why; the keeper knows whom to tell.

    init → keeper   {"at": "user" | "namespaces" | "console" (+ terminal fd) | "ready", "warnings": [...]}
                    {"failed": text, "code": exit code, "plain": bool}
    keeper → init   {"go": "user" | "cgroup" | "network" | "exec"}, in any order
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from tare.runtime import messages
from tare.runtime.users import Identity

if TYPE_CHECKING:
    from tare.runtime.prepared import Prepared

_T = TypeVar("_T")


class SetupFailed(Exception):
    """A step failed. ``text`` in runc's words, ``code`` as Docker reports it; ``plain`` texts are given to the user without prefix."""

    def __init__(self, text: str, code: int = 128, plain: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.code = code
        self.plain = plain


class KeeperGone(Exception):
    """The keeper closed the line: it gave up or died, and so must we."""


class Context:
    """State of one init (or exec) between its steps."""

    __slots__ = (
        "argv",
        "console",
        "dev_filled",
        "devpts_fd",
        "environment",
        "executable",
        "heard",
        "identity",
        "late_readonly",
        "line",
        "namespaces",
        "pidfd",
        "prepared",
        "root_fd",
        "sources",
        "streams",
        "warnings",
    )

    def __init__(self, line: socket.socket, streams: list[int], pidfd: int = -1, prepared: Prepared | None = None) -> None:
        self.line = line
        self.streams = streams
        """Descriptors for standard input, output and error (empty with a terminal)."""
        self.pidfd = pidfd
        """The container's init, for an exec."""
        self.prepared = prepared
        """What a spare made ahead."""
        self.dev_filled = False
        """The /dev that was mounted has its devices and links already."""
        self.namespaces: dict[str, int] = {}
        self.sources: dict[str, int] = {}
        self.root_fd = -1
        self.devpts_fd = -1
        self.console = -1
        self.late_readonly: list[int] = []
        self.identity = Identity(0, 0, (), "/")
        self.warnings: list[str] = []
        self.environment: dict[str, str] = {}
        self.argv: list[str] = []
        self.executable = ""
        self.heard: set[str] = set()

    def tell(self, at: str, fds: list[int] | None = None) -> None:
        """Say how far we are."""
        message: dict[str, Any] = {"at": at}
        if at == "ready":
            message["warnings"] = self.warnings
        if fds:
            messages.send(self.line, message, fds)
        else:
            self.write(message)

    def write(self, message: dict[str, Any]) -> None:
        """Send without descriptors, by write(2): a seccomp filter of the user's may be in force and deny the socket calls."""
        os.write(self.line.fileno(), messages.encode(message))

    def wait(self, go: str) -> None:
        """Block until the keeper has done its part."""
        while go not in self.heard:
            data = os.read(self.line.fileno(), messages.PACKET_LIMIT)  # not recvmsg(2): see ``write``
            if not data:
                raise KeeperGone
            self.heard.add(str(json.loads(data).get("go")))

    def use_device(self, use: Callable[[], _T]) -> _T:
        """Make or open device nodes. Meanwhile the keeper writes our cgroup's rules for devices (v1: one after the other, first of all that
        nothing is allowed): what these forbid is tried again when the last of them is there."""
        try:
            return use()
        except PermissionError:
            if "cgroup" in self.heard:
                raise
            self.wait("cgroup")
            return use()

    def warn(self, what: str, error: OSError) -> None:
        """Note something that could not be applied and was left out."""
        self.warnings.append(f"{what}: {reason(error)}")


def reason(error: OSError) -> str:
    """An error's text in lower case with its object, as Go's os package words it."""
    text = error.strerror or (os.strerror(error.errno) if error.errno else str(error))
    if text[:1].isupper() and not text[1:2].isupper():
        text = text[0].lower() + text[1:]
    name = error.filename
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    return f"{name}: {text}" if name else text


def why(error: OSError) -> str:
    """An error's bare text in lower case."""
    return (error.strerror or str(error)).lower()
