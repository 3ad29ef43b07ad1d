"""Which daemon a call talks to, and starting one when nobody named any.

Order: ``-H`` or ``--context``, ``TARE_HOST``, ``DOCKER_HOST``, ``TARE_CONTEXT``, ``DOCKER_CONTEXT``, the ``host`` of Tare's
configuration file, the ``currentContext`` of docker's, the default socket. Only in the last case is a daemon started on demand: an
address that somebody wrote down is taken at its word.

Two files of settings are read, docker's first. ``config.json`` in ``DOCKER_CONFIG`` (``--config``, else ``~/.docker``) is shared with
the docker command, and so are the contexts and certificates beside it. ``~/.config/tare/config.json`` (``TARE_CONFIG`` names another) is
Tare's own and wins:

    {"host": "unix:///run/tare/tare.sock", "autostart": true, "psFormat": "...", "imagesFormat": "...", "detachKeys": "ctrl-p,ctrl-q"}
"""

from __future__ import annotations

import os

from tare.cli.documents import decode
from tare.cli.failures import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from tare.cli.connection import Client
    from tare.cli.flags import Options

RUN_DIRECTORY = "/run/tare"
DEFAULT_HOST = f"unix://{RUN_DIRECTORY}/tare.sock"
UNRESOLVED = "Failed to initialize: unable to resolve docker endpoint"


class Tls:
    """Files of a connection over TLS (empty: none) and whether the daemon's certificate is verified."""

    __slots__ = ("ca", "cert", "key", "verify")

    def __init__(self, ca: str, cert: str, key: str, *, verify: bool) -> None:
        self.ca = ca
        self.cert = cert
        self.key = key
        self.verify = verify


class Choice:
    """``named`` is false for the default that nobody chose; ``autostart`` whether a daemon may be started then."""

    __slots__ = ("autostart", "context", "host", "named", "source", "tls")

    def __init__(
        self, host: str, source: str, *, named: bool = True, autostart: bool = False, context: str = "default", tls: Tls | None = None
    ) -> None:
        self.host = host
        self.source = source
        self.named = named
        self.autostart = autostart
        self.context = context
        self.tls = tls

    def client(self) -> Client:
        """A client for this daemon; nothing is sent yet."""
        from tare.cli.connection import Client, open_socket

        version = os.environ.get("DOCKER_API_VERSION", "").removeprefix("v")
        if version.replace(".", "", 1).strip("0123456789"):
            raise CliError(f"invalid DOCKER_API_VERSION: {version}")
        headers = None if self.host.startswith("unix://") and not self.named else _extra_headers()
        if self.tls is None and not self.host.startswith("ssh://"):
            return Client(self.host, open_socket, headers, version)
        from tare.cli.remote import opener

        return Client(self.host, opener(self.host, self.tls), headers, version)


def _extra_headers() -> Mapping[str, str] | None:
    """``HttpHeaders`` of the configuration. A header that frames the message is not the user's to set."""
    given = settings().get("HttpHeaders")
    if not isinstance(given, dict):
        return None
    own = ("host", "content-length", "transfer-encoding", "connection", "upgrade", "content-type")
    usable = {str(name): str(value) for name, value in given.items() if str(name).lower() not in own}
    if any(char in name + value for name, value in usable.items() for char in "\r\n"):
        raise CliError("HttpHeaders of the configuration must not contain line breaks")
    return usable


_PROXIES = (
    ("httpProxy", "HTTP_PROXY"),
    ("httpsProxy", "HTTPS_PROXY"),
    ("noProxy", "NO_PROXY"),
    ("ftpProxy", "FTP_PROXY"),
    ("allProxy", "ALL_PROXY"),
)


def proxies(host: str) -> dict[str, str]:
    """Variables that the configuration's ``proxies`` give to containers and builds of the daemon at ``host``, in both spellings."""
    configured = settings().get("proxies")
    chosen = (configured.get(host) or configured.get("default")) if isinstance(configured, dict) else None
    if not isinstance(chosen, dict):
        return {}
    found = {}
    for key, variable in _PROXIES:
        if chosen.get(key):
            found[variable] = found[variable.lower()] = str(chosen[key])
    return found


def docker_directory() -> str:
    """Where docker's client keeps its files."""
    return os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")


def settings_file() -> str:
    """Tare's own configuration file."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.environ.get("TARE_CONFIG") or os.path.join(base, "tare", "config.json")


def settings() -> dict[str, Any]:
    """Both configuration files, Tare's own over docker's; empty when there are none. Raises CliError when one cannot be used."""
    global _settings
    if _settings is None:
        _settings = {**read_settings(os.path.join(docker_directory(), "config.json")), **read_settings(settings_file())}
    return _settings


_settings: dict[str, Any] | None = None


def read_settings(name: str) -> dict[str, Any]:
    """One configuration file's content; empty when there is none."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CliError(f"cannot read the configuration {name}: {error.strerror}") from None
    with open(fd, "rb") as file:
        data = file.read()
    try:
        document = decode(data) if data.strip() else {}
    except ValueError as error:
        raise CliError(f"the configuration {name} is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise CliError(f"the configuration {name} must hold a JSON object")
    return document


def choose(flags: Options | None = None) -> Choice:
    """The daemon's address. Raises CliError when it is malformed or its context does not exist."""
    hosts = flags.items("host") if flags is not None else []
    context = flags.text("context") if flags is not None else ""
    if len(hosts) > 1:
        raise CliError(f"{UNRESOLVED}: Specify only one -H")
    if hosts and context:
        raise CliError("conflicting options: cannot specify both --host and --context", 1)
    if context in ("", "default"):
        named = (
            (hosts[0] if hosts else "", "-H"),
            (os.environ.get("TARE_HOST", ""), "TARE_HOST"),
            (os.environ.get("DOCKER_HOST", ""), "DOCKER_HOST"),
        )
        for host, source in named:
            if host:
                return _direct(host, source, flags)
        context = context or os.environ.get("TARE_CONTEXT", "") or os.environ.get("DOCKER_CONTEXT", "")
    config = settings()
    if context in ("", "default") and config.get("host"):
        return _direct(str(config["host"]), settings_file(), flags)
    context = context or str(config.get("currentContext") or "")
    if context and context != "default":
        from tare.cli.contexts import choice

        return choice(context)
    autostart = config.get("autostart", True) is not False and os.environ.get("TARE_AUTOSTART", "1").lower() not in ("0", "false", "no")
    return Choice(DEFAULT_HOST, "default", named=False, autostart=autostart)


def _direct(host: str, source: str, flags: Options | None) -> Choice:
    """An address that was written out, with the certificates of the flags and of the environment."""
    normal = normalize(host, tls=_wants_tls(flags))
    return Choice(normal, source, tls=_tls(flags) if normal.startswith("tcp://") and _wants_tls(flags) else None)


def _wants_tls(flags: Options | None) -> bool:
    if flags is not None and (flags.on("tls") or flags.on("tlsverify")):
        return True
    if flags is not None and ("tlsverify" in flags.given or "tls" in flags.given):
        return False
    return bool(os.environ.get("DOCKER_TLS_VERIFY") or os.environ.get("DOCKER_TLS"))


def _tls(flags: Options | None) -> Tls:
    directory = os.environ.get("DOCKER_CERT_PATH") or docker_directory()

    def file(flag: str, name: str, *, needed: bool = False) -> str:
        if flags is not None and flag in flags.given:
            return os.path.expanduser(flags.text(flag))
        path = os.path.join(directory, name)
        return path if needed or os.path.exists(path) else ""

    chosen = flags is not None and "tlsverify" in flags.given and flags.on("tlsverify")
    verify = chosen or bool(os.environ.get("DOCKER_TLS_VERIFY"))
    return Tls(file("tlscacert", "ca.pem", needed=verify), file("tlscert", "cert.pem"), file("tlskey", "key.pem"), verify=verify)


def normalize(host: str, *, tls: bool = False) -> str:
    """``unix://PATH``, ``tcp://HOST:PORT`` or ``ssh://…``, also from a bare path or ``host:port``."""
    if host.startswith("/"):
        return f"unix://{host}"
    scheme, separator, rest = host.partition("://")
    if not separator:
        scheme, rest = "tcp", host
    if scheme in ("http", "https"):
        scheme = "tcp"
    if scheme not in ("unix", "tcp", "ssh"):
        raise CliError(f"{UNRESOLVED}: invalid bind address format: {host}: the scheme must be unix://, tcp:// or ssh://")
    if scheme == "ssh":
        if not rest.strip("/"):
            raise CliError(f"{UNRESOLVED}: invalid bind address format: {host}: no host specified")
        return host
    port = "2376" if tls else "2375"
    if not rest:
        return DEFAULT_HOST if scheme == "unix" else f"tcp://127.0.0.1:{port}"
    if scheme == "tcp" and ":" not in rest.split("/")[0].rpartition("]")[2]:
        rest = f"{rest.split('/')[0]}:{port}"
    return f"{scheme}://{rest}"


def ensure_running(client: Client, choice: Choice) -> None:
    """Start a daemon behind ``choice`` unless one answers there."""
    from tare.cli.connection import Wire

    try:
        client.idle.append(Wire(client.connect()))
        return
    except (FileNotFoundError, ConnectionRefusedError) as error:
        if not choice.autostart:
            raise client.unreachable(error) from None
    except OSError as error:
        raise client.unreachable(error) from None
    from tare.cli.daemon import autostart

    autostart(choice.host)
