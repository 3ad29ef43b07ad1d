"""What a verb is given besides its options: the settings of this call and a client that connects when first used."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.connection import Client
    from tare.cli.flags import Options
    from tare.cli.hosts import Choice


class Context:
    """One call of ``tare``. ``flags`` are those before the verb."""

    __slots__ = ("_choice", "_client", "_flags")

    def __init__(self, flags: Options | None = None) -> None:
        self._flags = flags
        self._choice: Choice | None = None
        self._client: Client | None = None

    def choice(self) -> Choice:
        """The daemon's address and who named it."""
        if self._choice is None:
            from tare.cli.hosts import choose

            self._choice = choose(self._flags)
        return self._choice

    @property
    def client(self) -> Client:
        """The client of this call. The first use may start a daemon on demand."""
        if self._client is None:
            choice = self.choice()
            client = choice.client()
            if not choice.named:
                from tare.cli.hosts import ensure_running

                ensure_running(client, choice)
            self._client = client
        return self._client


def warn(text: str) -> None:
    """One line on stderr, after what stdout already holds."""
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
