"""``login`` and ``logout``: credentials of registries, proved by the daemon and kept where docker keeps them (``credentials``)."""

from __future__ import annotations

import sys

from tare.cli import credentials
from tare.cli.credentials import HUB, Login
from tare.cli.failures import CliError
from tare.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.context import Context
    from tare.cli.flags import Options

_EXISTING = (
    "Authenticating with existing credentials... [Username: {user}]\n\n"
    " Info -> To login with a different account, run 'docker logout' followed by 'docker login'\n\n\n"
)


def _login(context: Context, options: Options) -> int:
    server = _server(options)
    user, password = options.text("username"), _password(options)
    if not user and not password:
        kept = credentials.load(server)
        if kept.username and (kept.password or kept.identity_token):
            sys.stderr.write(_EXISTING.format(user=kept.username))
            try:
                return _prove(context, kept)
            except CliError as error:
                sys.stderr.write(f"Login did not succeed, error: {error}\n")
    if not user or not password:
        user, password = _ask(user, password)
    return _prove(context, Login(server, user, password))


def _server(options: Options) -> str:
    given = options.operands[0] if options.operands else ""
    if given in ("", "docker.io", "index.docker.io", HUB):
        return HUB
    return credentials.hostname(given)


def _password(options: Options) -> str:
    password = options.text("password")
    if "password" in options.given:
        sys.stderr.write("WARNING! Using --password via the CLI is insecure. Use --password-stdin.\n")
        if options.on("password-stdin"):
            raise CliError("conflicting options: cannot specify both --password and --password-stdin")
        if not password:
            raise CliError("password is empty")
    if "username" in options.given and not options.text("username"):
        raise CliError("username is empty")
    if options.on("password-stdin"):
        if not options.text("username"):
            raise CliError("the --password-stdin option requires --username to be set")
        password = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
        if not password:
            raise CliError("password is empty")
    return password


def _ask(user: str, password: str) -> tuple[str, str]:
    if not sys.stdin.isatty():
        raise CliError("Error: Cannot perform an interactive login from a non TTY device")
    if not user:
        user = input("Username: ").strip()
        if not user:
            raise CliError("Error: Non-null Username Required")
    if not password:
        from getpass import getpass

        password = getpass("Password: ")
        if not password:
            raise CliError("Error: Password Required")
    return user, password


def _prove(context: Context, login: Login) -> int:
    answer = context.client.call("POST", "/auth", None, login.document())
    token = str((answer or {}).get("IdentityToken") or "")
    if token:
        login.identity_token, login.password = token, ""
    credentials.save(login)
    sys.stdout.write(f"{(answer or {}).get('Status') or 'Login Succeeded'}\n")
    return 0


def _logout(context: Context, options: Options) -> int:
    server = _server(options)
    sys.stdout.write(f"Removing login credentials for {server}\n")
    sys.stdout.flush()
    credentials.erase(server)
    return 0


LOGIN = Command(
    "login",
    "login [OPTIONS] [SERVER]",
    "Authenticate to a registry.\nDefaults to Docker Hub if no server is specified.",
    _login,
    (
        ("password", "p", "string", "Password or Personal Access Token (PAT)"),
        ("password-stdin", "", "bool", "Take the Password or Personal Access Token (PAT) from stdin"),
        ("username", "u", "string", "Username"),
    ),
    most=1,
    examples=("tare login registry.example:5000", "echo $TOKEN | tare login -u alice --password-stdin registry.example:5000"),
)
LOGOUT = Command(
    "logout",
    "logout [SERVER]",
    "Log out from a registry.\nIf no server is specified, the default is Docker Hub.",
    _logout,
    most=1,
    examples=("tare logout registry.example:5000",),
)
