"""Which daemon a call talks to, and starting one when nobody named any.

Order: ``-H``, ``TARE_HOST``, ``DOCKER_HOST``, the ``host`` of the configuration file, the default socket. Only in the last case is a daemon
started on demand: an address that somebody wrote down is taken at its word.

The configuration is ``~/.config/tare/config.json`` (``TARE_CONFIG`` names another):

    {"host": "unix:///run/tare/tare.sock", "autostart": true, "psFormat": "...", "imagesFormat": "...", "detachKeys": "ctrl-p,ctrl-q"}
"""

from __future__ import annotations

import os

from tare.cli.documents import decode
from tare.cli.failures import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.connection import Client

RUN_DIRECTORY = "/run/tare"
DEFAULT_HOST = f"unix://{RUN_DIRECTORY}/tare.sock"


class Choice:
    """``named`` is false for the default that nobody chose; ``autostart`` whether a daemon may be started then."""

    __slots__ = ("autostart", "host", "named", "source")

    def __init__(self, host: str, source: str, *, named: bool, autostart: bool) -> None:
        self.host = host
        self.source = source
        self.named = named
        self.autostart = autostart


def settings_file(path: str = "") -> str:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return path or os.environ.get("TARE_CONFIG") or os.path.join(base, "tare", "config.json")


def settings(path: str = "") -> dict[str, Any]:
    """The configuration file's content; empty when there is none. Raises CliError when it cannot be used."""
    name = settings_file(path)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CliError(f"cannot read the configuration {name}: {error.strerror}") from None
    with open(fd, "rb") as file:
        try:
            document = decode(file.read())
        except ValueError as error:
            raise CliError(f"the configuration {name} is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise CliError(f"the configuration {name} must hold a JSON object")
    return document


def choose(flag: str = "", path: str = "") -> Choice:
    """The daemon's address. Raises CliError when it is malformed."""
    for host, source in ((flag, "-H"), (os.environ.get("TARE_HOST", ""), "TARE_HOST"), (os.environ.get("DOCKER_HOST", ""), "DOCKER_HOST")):
        if host:
            return Choice(normalize(host), source, named=True, autostart=False)
    config = settings(path)
    if config.get("host"):
        return Choice(normalize(str(config["host"])), settings_file(path), named=True, autostart=False)
    autostart = config.get("autostart", True) is not False and os.environ.get("TARE_AUTOSTART", "1").lower() not in ("0", "false", "no")
    return Choice(DEFAULT_HOST, "default", named=False, autostart=autostart)


def normalize(host: str) -> str:
    """``unix://PATH`` or ``tcp://HOST:PORT``, also from a bare path or ``host:port``."""
    if host.startswith("/"):
        return f"unix://{host}"
    scheme, separator, rest = host.partition("://")
    if not separator:
        return f"tcp://{host}"
    if scheme == "http":
        scheme = "tcp"
    if scheme not in ("unix", "tcp"):
        raise CliError(f"unable to parse docker host `{host}`: the scheme must be unix:// or tcp://")
    if not rest:
        return DEFAULT_HOST if scheme == "unix" else "tcp://127.0.0.1:2375"
    return f"{scheme}://{rest}"


def ensure_running(client: Client, choice: Choice) -> None:
    """Start a daemon behind ``choice`` unless one answers there."""
    from tare.cli.connection import Wire, open_socket

    try:
        client.idle.append(Wire(open_socket(choice.host)))
        return
    except (FileNotFoundError, ConnectionRefusedError) as error:
        if not choice.autostart:
            raise client.unreachable(error) from None
    except OSError as error:
        raise client.unreachable(error) from None
    from tare.cli.daemon import autostart

    autostart(choice.host)
