"""What a verb is given besides its options: the settings of this call and a client that connects when first used."""

from __future__ import annotations

import sys

from tare.cli.connection import Client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.hosts import Choice


class Context:
    """One call of ``tare``."""

    __slots__ = ("_client", "_host", "settings_path")

    def __init__(self, host: str = "", settings_path: str = "") -> None:
        self._host = host
        self.settings_path = settings_path
        self._client: Client | None = None

    def choice(self) -> Choice:
        """The daemon's address and who named it."""
        from tare.cli.hosts import choose

        return choose(self._host, self.settings_path)

    @property
    def client(self) -> Client:
        """The client of this call. The first use may start a daemon on demand."""
        if self._client is None:
            choice = self.choice()
            client = Client(choice.host)
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
