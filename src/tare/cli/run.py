"""``run`` and ``create``.

The order of calls is docker's: create (pulling on 404), attach and wait for 101, wait for the exit, start, then carry
bytes; the exit status is the container's. What goes wrong before the container runs is 125, or 126 and 127 for a
command that cannot be executed or found.
"""

from __future__ import annotations

import os
import sys

from tare.cli import createbody
from tare.cli.attachment import ExitStatus, attach, check_terminal, default_detach_keys, follow_size, forward_signals
from tare.cli.createflags import CREATE_FLAGS, CREATE_KINDS, RUN_ONLY_FLAGS
from tare.cli.failures import CliError, DaemonError
from tare.cli.flags import Command
from tare.cli.platforms import check as check_platform
from tare.cli.platforms import chosen
from tare.cli.terminal import Handlers, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.connection import Client
    from tare.cli.context import Context
    from tare.cli.flags import Options

    Document = dict[str, Any]

_PULL = ("always", "missing", "never")


def _with_proxies(body: Document, host: str) -> None:
    """Add the configured proxies, except those that the command line sets."""
    from tare.cli.hosts import proxies

    given = {entry.partition("=")[0] for entry in body["Env"] or ()}
    extra = [f"{name}={value}" for name, value in proxies(host).items() if name not in given]
    if extra:
        body["Env"] = [*(body["Env"] or ()), *extra]


def create(client: Client, options: Options, body: Document) -> str:
    """Create the container, pulling its image when that is missing; its ID. Raises CliError with the exit code that ``run`` has then."""
    _check(options)
    with CidFile(options.text("cidfile")) as cidfile:
        try:
            answer = _create_or_pull(client, options, body)
        except DaemonError as error:
            raise start_failure(error) from None
        for warning in answer.get("Warnings") or ():
            sys.stderr.write(f"WARNING: {warning}\n")
        identifier = str(answer["Id"])
        cidfile.write(identifier)
    return identifier


def _check(options: Options) -> None:
    """What is refused before the daemon hears of it."""
    policy = options.text("pull")
    if policy not in _PULL and policy:
        raise CliError(f'invalid pull option: \'{policy}\': must be one of "always", "missing" or "never"', 125)
    try:
        check_platform(chosen(options.text("platform")))
    except CliError as error:
        raise CliError(f"error parsing specified platform: {error}", 125) from None
    if options.on("use-api-socket"):
        raise CliError("--use-api-socket is not supported: mount the daemon's socket with -v, and credentials with --mount", 125)
    for flag in ("cpu-count", "cpu-percent", "io-maxbandwidth", "io-maxiops"):
        if flag in options.given:
            raise CliError(f'"--{flag}" is only supported on a Tare daemon running on windows, but the Tare daemon is running on linux', 1)


def _create_or_pull(client: Client, options: Options, body: Document) -> Document:
    """The daemon's answer to create. Raises DaemonError."""
    from tare.cli.reference import familiar, parse

    policy, image = options.text("pull"), options.operands[0]
    reference = parse(image)
    query = {"name": options.text("name"), "platform": chosen(options.text("platform"))}
    if policy == "always":
        _pull(client, image, options)
    try:
        answer: Document = client.call("POST", "/containers/create", query, body)
    except DaemonError as error:
        if error.status != 404 or policy != "missing" or reference is None or not _lacks_image(error.message):
            raise
        sys.stderr.write(f"Unable to find image '{familiar(reference)}' locally\n")
        _pull(client, image, options)
        answer = client.call("POST", "/containers/create", query, body)
    return answer


class CidFile:
    """The file of ``--cidfile``: made before the container, so that none is left whose ID could not be written; gone again without one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._written = False

    def __enter__(self) -> CidFile:
        if self._path:
            if os.path.exists(self._path):
                raise CliError(f"container ID file found, make sure the other container isn't running or delete {self._path}", 125)
            try:
                os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            except OSError as error:
                text = f"failed to create the container ID file: open {self._path}: {(error.strerror or '').lower()}"
                raise CliError(text, failure_code(text)) from None
        return self

    def write(self, identifier: str) -> None:
        if self._path:
            with open(self._path, "w", encoding="ascii") as file:
                file.write(identifier)
            self._written = True

    def __exit__(self, *_: object) -> None:
        if self._path and not self._written and os.path.exists(self._path) and not os.path.getsize(self._path):
            os.unlink(self._path)


def _lacks_image(message: str) -> bool:
    return "such image" in message.lower() or "does not match the specified platform" in message


def _pull(client: Client, image: str, options: Options) -> None:
    from tare.cli.pull import pull

    try:
        pull(client, image, platform=chosen(options.text("platform")), quiet=options.on("quiet"), stream=2)
    except CliError as error:
        raise CliError(str(error), 125) from None


def _warn(body: Document) -> None:
    host = body["HostConfig"]
    for server in host["Dns"]:
        if server.startswith("127.") or server == "::1":
            sys.stderr.write(f"WARNING: Localhost DNS ({server}) may fail in containers.\n")
            break


def _create(context: Context, options: Options) -> int:
    body = createbody.body(options)
    _warn(body)
    _with_proxies(body, context.choice().host)
    try:
        identifier = create(context.client, options, body)
    except CliError as error:
        raise CliError(str(error), 1) from None  # what does not run has no exit code of its own to keep apart
    sys.stdout.write(identifier + "\n")
    return 0


def _run(context: Context, options: Options) -> int:
    body = createbody.body(options)
    detach = options.on("detach")
    if detach:
        if options.items("attach"):
            raise CliError("conflicting options: cannot specify both --attach and --detach")
        body |= {"AttachStdin": False, "AttachStdout": False, "AttachStderr": False, "StdinOnce": False}
    else:
        check_terminal(stdin=body["AttachStdin"], tty=body["Tty"])
    _warn(body)
    if body["Tty"]:
        body["HostConfig"]["ConsoleSize"] = list(size())
    try:
        _with_proxies(body, context.choice().host)
        client = context.client
    except CliError as error:
        raise CliError(str(error), 125) from None
    identifier = create(client, options, body)
    if detach:
        _start(client, identifier, None)
        sys.stdout.write(identifier + "\n")
        return 0
    return _attached(client, options, body, identifier)


def _attached(client: Client, options: Options, body: Document, identifier: str) -> int:
    """Attach, start, carry, and give back the container's exit code."""
    tty = body["Tty"]
    keys = default_detach_keys(options.text("detach-keys")) if tty else options.text("detach-keys")
    query = {
        "stream": True,
        "stdin": body["AttachStdin"] or None,
        "stdout": body["AttachStdout"] or None,
        "stderr": body["AttachStderr"] or None,
    }
    with Handlers() as handlers:
        if options.on("sig-proxy"):
            forward_signals(handlers, client, identifier)
        attachment = attach(client, identifier, query, tty=tty, detach_keys=keys)
        status = ExitStatus(client, identifier, removed=options.on("rm"))

        def begin() -> None:
            _start(client, identifier, status if options.on("rm") else None)
            if tty:
                follow_size(handlers, client, f"/containers/{identifier}/resize")

        if not attachment.serve(begin):
            status.cancel()
            return 0
        return status.get()


def _start(client: Client, identifier: str, removal: ExitStatus | None) -> None:
    """Start; when that fails, see a container with ``--rm`` gone before saying so."""
    try:
        client.call("POST", f"/containers/{identifier}/start")
    except DaemonError as error:
        if removal is not None:
            try:
                removal.get()
            except CliError:
                pass
        raise start_failure(error) from None


def start_failure(error: DaemonError) -> CliError:
    """The exit code that belongs to why a container did not start."""
    return CliError(str(error), failure_code(error.message))


def failure_code(text: str) -> int:
    """Docker derives it from the text of the error, whoever said it."""
    if "executable file not found" in text or "no such file or directory" in text:
        return 127
    return 126 if "permission denied" in text or "is a directory" in text else 125


_EXAMPLES = (
    "tare run --rm busybox echo hello           run a command, then remove the container",
    "tare run -it --rm debian:bookworm bash     a shell in a fresh Debian",
    "tare run -d --name web -p 8080:80 IMAGE    a service in the background, port 8080 of this host",
    'tare run --rm -v "$PWD":/src -w /src IMAGE make',
    "tare run --rm -m 256m --cpus 1.5 IMAGE     with limits",
)
RUN = Command(
    "run",
    "run [OPTIONS] IMAGE [COMMAND] [ARG...]",
    "Create and run a new container from an image",
    _run,
    sorted(CREATE_FLAGS + RUN_ONLY_FLAGS),
    least=1,
    interspersed=False,
    aliases=("container run", "run"),
    examples=_EXAMPLES,
    kinds=CREATE_KINDS,
    error_prefix="tare",
)
CREATE = Command(
    "create",
    "create [OPTIONS] IMAGE [COMMAND] [ARG...]",
    "Create a new container",
    _create,
    CREATE_FLAGS,
    least=1,
    interspersed=False,
    aliases=("container create", "create"),
    kinds=CREATE_KINDS,
    error_prefix="tare",
)
