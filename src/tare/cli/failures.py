"""What ends a command early: one exception per way of failing, each with its exit code.

The codes are docker's: 1 for a daemon's refusal, 125 for wrong flags and for everything that keeps ``run`` from creating a container,
126 and 127 for a command that cannot be executed or found, 128+n for a signal. Only ``main`` turns an exception into text on stderr.
"""

from __future__ import annotations


class CliError(Exception):
    """Ends the command: ``str(error)`` goes to stderr (nothing when empty), ``code`` becomes the exit status."""

    def __init__(self, message: str, code: int = 1, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class UsageError(CliError):
    """The command line itself is wrong. ``usage`` asks for the usage line below the message."""

    def __init__(self, message: str, code: int = 125, *, usage: bool = True, see: bool = False) -> None:
        super().__init__(message, code)
        self.usage = usage
        self.see = see


class DaemonError(CliError):
    """The daemon answered with an error status; the text is the daemon's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"Error response from daemon: {message}", 1)
        self.status = status
        self.message = message


class Unreachable(CliError):
    """No daemon answers at the chosen address."""
