"""The user's terminal: raw mode that is always undone, its size, and signals handed on to a container.

Signals are handled in Python signal handlers rather than in a loop: the interpreter runs them between system calls also while a write to
stdout blocks, and every handler uses a connection of its own, so it may interrupt anything.
"""

from __future__ import annotations

# The C half of ``signal``; the other half only adds enumerations (4 ms).
import _signal  # type: ignore[import-not-found]
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

FORWARDED = (
    "SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGCONT", "SIGIO", "SIGPWR",
)  # fmt: skip
"""Not among them: what kills through a fault, what the terminal's job control needs, SIGCHLD, SIGPIPE, SIGURG and SIGWINCH."""


def is_tty(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def size() -> tuple[int, int]:
    """Rows and columns of the terminal; (0, 0) when there is none."""
    for fd in (1, 0, 2):
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            continue
        return rows, columns
    return 0, 0


class RawMode:
    """Context: the terminal passes every byte untouched. Left on any way out."""

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None

    def __enter__(self) -> RawMode:
        import termios

        try:
            attributes = termios.tcgetattr(self._fd)
        except termios.error:
            return self
        self._saved = attributes
        raw = attributes.copy()
        raw[6] = list(attributes[6])
        raw[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )
        raw[1] &= ~termios.OPOST
        raw[2] = (raw[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSANOW, raw)
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            import termios

            saved, self._saved = self._saved, None
            try:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, saved)
            except termios.error:
                pass


class Handlers:
    """Context: signal handlers that are put back afterwards."""

    def __init__(self) -> None:
        self._before: list[tuple[int, Any]] = []

    def __enter__(self) -> Handlers:
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            number, handler = self._before.pop()
            _signal.signal(number, handler if handler is not None else _signal.SIG_DFL)

    def set(self, number: int, action: Callable[[int], None]) -> None:
        """Call ``action(number)`` on a signal; its errors are nobody's business (the container may be gone)."""

        def handler(received: int, _frame: object) -> None:
            try:
                action(received)
            except Exception:
                return

        self._before.append((number, _signal.signal(number, handler)))

    def forward(self, action: Callable[[str], None]) -> None:
        """Call ``action("INT")`` and so on for every signal that belongs to the container.

        Also those that were ignored when we started (a background job of a script): as docker does, whoever
        sends them means the container.
        """
        names = dict(_numbers())
        for number in names:
            self.set(number, lambda received: action(names[received]))

    def on_resize(self, action: Callable[[], None]) -> None:
        self.set(_signal.SIGWINCH, lambda _: action())


def _numbers() -> Iterator[tuple[int, str]]:
    for name in FORWARDED:
        number = getattr(_signal, name, None)
        if number is not None:
            yield int(number), name.removeprefix("SIG")
