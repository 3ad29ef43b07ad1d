"""Credentials for registries, where docker's command line keeps them, so that both tools know the same logins.

``config.json`` in ``DOCKER_CONFIG`` (``~/.docker``) holds them by server address, base64 and not encrypted, or names a program that does:

    {"auths": {"registry.example:5000": {"auth": "dXNlcjpwYXNz"}}, "credsStore": "secretservice", "credHelpers": {"gcr.io": "gcloud"}}

A helper ``X`` is the program ``docker-credential-X``; it is asked with ``get``, ``store`` or ``erase`` as its only argument, and the server
on standard input. It is the user's own program, found through the user's own PATH. Docker Hub is filed under ``https://index.docker.io/v1/``.
"""

from __future__ import annotations

import os
import sys
from binascii import Error as Malformed
from binascii import a2b_base64, b2a_base64

from tare.cli.documents import decode, encode
from tare.cli.failures import CliError
from tare.cli.hosts import docker_directory, read_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HUB = "https://index.docker.io/v1/"
_TOKEN_USER = "<token>"
_NOT_FOUND = "credentials not found in native keychain"
_UNENCRYPTED = (
    "\nWARNING! Your credentials are stored unencrypted in '{path}'.\nConfigure a credential helper to remove this warning. See\n"
    "https://docs.docker.com/go/credential-store/\n\n"
)


class Login:
    """What is kept for one registry. An identity token takes the password's place."""

    __slots__ = ("identity_token", "password", "server", "username")

    def __init__(self, server: str, username: str = "", password: str = "", identity_token: str = "") -> None:
        self.server = server
        self.username = username
        self.password = password
        self.identity_token = identity_token

    def __bool__(self) -> bool:
        return bool(self.username or self.password or self.identity_token)

    def document(self) -> dict[str, str]:
        """As the API wants it (``POST /auth``, ``X-Registry-Auth``)."""
        found = {"username": self.username, "password": self.password, "identitytoken": self.identity_token}
        return {name: value for name, value in found.items() if value} | {"serveraddress": self.server}

    def entry(self) -> dict[str, str]:
        """As ``config.json`` keeps it."""
        entry = {"auth": b2a_base64(f"{self.username}:{self.password}".encode(), newline=False).decode()} if self.username else {}
        return entry | ({"identitytoken": self.identity_token} if self.identity_token else {})


def hostname(server: str) -> str:
    """The host of a server address in any of its spellings."""
    return server.removeprefix("http://").removeprefix("https://").partition("/")[0]


def address_of(domain: str) -> str:
    """Under which address the logins for a reference's domain are filed."""
    return HUB if domain in ("docker.io", "index.docker.io") else domain


def config_path() -> str:
    return os.path.join(docker_directory(), "config.json")


def load(server: str) -> Login:
    """The login for ``server``, empty when there is none. Raises CliError when it cannot be read."""
    config = read_settings(config_path())
    helper = _helper(config, server)
    if helper:
        found = _ask_helper(helper, server)
        if found:
            return found
    auths = config.get("auths")
    if not isinstance(auths, dict):
        return Login(server)
    entry = auths.get(server) or next((entry for name, entry in auths.items() if hostname(name) == server), None)
    return _from_entry(server, entry) if isinstance(entry, dict) else Login(server)


def _from_entry(server: str, entry: dict[str, Any]) -> Login:
    login = Login(server, str(entry.get("username") or ""), str(entry.get("password") or ""), str(entry.get("identitytoken") or ""))
    if entry.get("auth"):
        try:
            user, colon, password = a2b_base64(str(entry["auth"])).decode().partition(":")
        except (Malformed, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise CliError(f"{config_path()}: malformed credentials for {server}; log in again")
        login.username, login.password = user, password.rstrip("\0")
    return login


def save(login: Login) -> None:
    """Keep a login; warns when it lies there for everybody who can read the file."""
    config = read_settings(config_path())
    auths = _auths(config)
    helper = _helper(config, login.server)
    if helper:
        secret = login.identity_token or login.password
        user = _TOKEN_USER if login.identity_token else login.username
        _run_helper(helper, "store", encode({"ServerURL": login.server, "Username": user, "Secret": secret}))
        auths[login.server] = {}
    else:
        if auths.get(login.server) != login.entry() and login.password:
            sys.stderr.write(_UNENCRYPTED.format(path=config_path()))
        auths[login.server] = login.entry()
    _write(config)


def erase(server: str) -> None:
    """Forget the logins of a server, also under the addresses that old versions filed them under."""
    config = read_settings(config_path())
    names = [server] if server == HUB else [hostname(server), f"http://{hostname(server)}", f"https://{hostname(server)}"]
    auths = _auths(config)
    failure = ""
    for name in names:
        helper = _helper(config, name)
        if helper:
            try:
                _run_helper(helper, "erase", name)
            except CliError as error:
                failure = failure or str(error)
        auths.pop(name, None)
    _write(config)
    if failure:
        raise CliError(f"WARNING: could not erase credentials:\n{server}: {failure}")


def header(domain: str) -> dict[str, str]:
    """``X-Registry-Auth`` for a reference's domain: base64url of a JSON object. Empty when there is no login."""
    login = load(address_of(domain))
    if not login:
        return {}
    packed = b2a_base64(encode(login.document()).encode(), newline=False).translate(bytes.maketrans(b"+/", b"-_")).decode()
    return {"X-Registry-Auth": packed}


def every() -> dict[str, str]:
    """``X-Registry-Config``: all logins that the configuration names, for a build that may need any of them."""
    config = read_settings(config_path())
    helpers = config.get("credHelpers")
    servers = [*_auths(config), *(helpers if isinstance(helpers, dict) else {})]
    found = {}
    for server in dict.fromkeys(servers):
        try:
            login = load(server)
        except CliError:
            continue  # a helper that fails matters only if its registry does
        if login:
            found[login.server] = login.document()
    packed = b2a_base64(encode(found).encode(), newline=False).translate(bytes.maketrans(b"+/", b"-_")).decode()
    return {"X-Registry-Config": packed} if found else {}


def _auths(config: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(config.get("auths"), dict):
        config["auths"] = {}
    auths: dict[str, Any] = config["auths"]
    return auths


def _helper(config: dict[str, Any], server: str) -> str:
    helpers = config.get("credHelpers")
    name = str((helpers.get(server) if isinstance(helpers, dict) else None) or config.get("credsStore") or "")
    if "/" in name:
        raise CliError(f"{config_path()}: invalid credential helper {name!r}: a name is expected, not a path")
    return name


def _ask_helper(helper: str, server: str) -> Login | None:
    answer = _run_helper(helper, "get", server)
    if not answer:
        return None
    try:
        document = decode(answer)
        user, secret = str(document.get("Username") or ""), str(document.get("Secret") or "")
    except (ValueError, AttributeError):
        raise CliError(f"docker-credential-{helper}: malformed answer") from None
    return Login(server, identity_token=secret) if user == _TOKEN_USER else Login(server, user, secret)


def _run_helper(helper: str, verb: str, text: str) -> bytes:
    """One call of a helper: what it prints; nothing when it does not know the server."""
    import subprocess

    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, verb], input=text.encode(), capture_output=True, check=False)
    except OSError as error:
        raise CliError(f'error getting credentials - err: exec: "{program}": {error.strerror or error}') from None
    said = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode == 0:
        return done.stdout
    if verb in ("get", "erase") and said == _NOT_FOUND:
        return b""
    complaint = done.stderr.decode("utf-8", "replace").strip()
    raise CliError(f"error {_DOING[verb]} credentials - err: exit status {done.returncode}, out: `{said or complaint}`")


_DOING = {"get": "getting", "store": "storing", "erase": "erasing"}


def _write(config: dict[str, Any]) -> None:
    """Replace the file in one step; one that is a link to another place stays a link."""
    import json
    import tempfile

    path = os.path.realpath(config_path())
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix="config.json", dir=os.path.dirname(path))  # mode 0600
    try:
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(config, file, indent="\t", ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
