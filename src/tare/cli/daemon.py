"""``tare daemon start|stop|status``, and the start on demand behind every other verb.

A daemon is started detached: fork, a session of its own, fork again, stdin from /dev/null, output to a log file.
Success is an answering socket, failure an exit before that; then the end of the log is shown, which is where the
reason stands. The pidfile is tared's; a lock beside the socket keeps two clients that start at once from starting two
daemons.
"""

from __future__ import annotations

import os
import sys
import time

from tare.cli.connection import Client
from tare.cli.failures import CliError, UsageError
from tare.cli.flags import Command
from tare.cli.hosts import DEFAULT_HOST, RUN_DIRECTORY, normalize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.context import Context
    from tare.cli.flags import Options

PIDFILE = f"{RUN_DIRECTORY}/tared.pid"
_START_SECONDS = 30.0
_STOP_SECONDS = 60.0


def executable() -> list[str]:
    """The ``tared`` that belongs to this ``tare``."""
    beside = os.path.join(os.path.dirname(sys.executable), "tared")
    return [beside] if os.access(beside, os.X_OK) else [sys.executable, "-m", "tare.daemon"]


def answers(host: str) -> bool:
    """Whether a daemon serves requests there."""
    return Client(host).answers()


def autostart(host: str) -> None:
    """Start a daemon that nobody asked for in words, and say so once."""
    if os.geteuid() != 0:
        raise CliError(
            f"Cannot connect to the Tare daemon at {host}, and only root can start one.\n"
            "Run 'sudo tare daemon start', or name another daemon with -H or TARE_HOST."
        )
    launch([], host, PIDFILE, note='Starting the Tare daemon in the background ("autostart": false in the configuration prevents this).')


def launch(arguments: list[str], host: str, pidfile: str, note: str = "") -> None:
    """Start tared with ``arguments`` and wait until it answers at ``host``. Raises CliError with the end of its log."""
    import fcntl

    directory = os.path.dirname(pidfile) or "."
    os.makedirs(directory, mode=0o711, exist_ok=True)
    lock = os.open(os.path.join(directory, "tared.start.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if answers(host):
            return
        if note:
            sys.stderr.write(note + "\n")
            sys.stderr.flush()
        log = os.path.join(directory, "tared.log")
        offset = os.path.getsize(log) if os.path.exists(log) else 0
        pid = _spawn([*executable(), *arguments], log)
        _await(host, pid, log, offset)
    finally:
        os.close(lock)


def _spawn(command: list[str], log: str) -> int:
    """Start ``command`` as a daemon; its process ID."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            grandchild = os.fork()
            if grandchild:
                os.write(write, str(grandchild).encode())
                os._exit(0)
            os.close(read)
            os.close(write)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.closerange(3, 256)
            os.chdir("/")
            os.umask(0o022)
            os.execv(command[0], command)
        except BaseException as error:
            os.write(2, f"cannot execute {command[0]}: {error}\n".encode())
        finally:
            os._exit(127)
    os.close(write)
    with open(read, "rb") as pipe:
        pid = pipe.read()
    os.waitpid(child, 0)
    return int(pid or b"0")


def _await(host: str, pid: int, log: str, offset: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    pause = 0.005
    while time.monotonic() < deadline:
        if answers(host):
            return
        if not _alive(pid):
            raise CliError(f"the Tare daemon did not start:\n{_tail(log, offset)}\nIts log is {log}.")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    raise CliError(f"the Tare daemon (process {pid}) does not answer at {host} after {_START_SECONDS:.0f} seconds; its log is {log}")


def _tail(log: str, offset: int) -> str:
    with open(log, "rb") as file:
        file.seek(offset)
        lines = file.read().decode("utf-8", "replace").rstrip().split("\n")
    return "\n".join(f"  {line}" for line in lines[-12:])


def _alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def running(pidfile: str) -> int:
    """The process ID in the pidfile, 0 when that process is gone or is no tared."""
    try:
        with open(pidfile, encoding="ascii") as file:
            pid = int(file.read().strip() or "0")
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read()
    except (OSError, ValueError):
        return 0
    return pid if (b"tared" in words or b"tare.daemon" in words) and _alive(pid) else 0


def _split(arguments: list[str]) -> tuple[list[str], str, str]:
    """tared's arguments with, for our own use, the first host and the pidfile among them."""
    host, pidfile = "", ""
    for index, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name in ("-H", "--host", "-p", "--pidfile"):
            value = value if equals else arguments[index + 1] if index + 1 < len(arguments) else ""
            if not value:
                raise UsageError(f"flag needs an argument: {name}")
            if "p" in name:
                pidfile = pidfile or value
            else:
                host = host or value
        elif word.startswith("-H") and len(word) > 2:
            host = host or word[2:]
    return arguments, host, pidfile


def _start(context: Context, options: Options) -> int:
    arguments, host, pidfile = _split(options.operands)
    host = normalize(host) if host else DEFAULT_HOST
    if host.startswith("unix://") and not pidfile and host != DEFAULT_HOST:
        pidfile = os.path.join(os.path.dirname(host.removeprefix("unix://")), "tared.pid")
        arguments = [*arguments, "--pidfile", pidfile]
    pidfile = pidfile or PIDFILE
    if answers(host):
        sys.stdout.write(f"the Tare daemon already runs at {host}\n")
        return 0
    if os.geteuid() != 0:
        raise CliError("starting the Tare daemon needs root: run 'sudo tare daemon start'")
    launch(arguments, host, pidfile)
    sys.stdout.write(
        f"the Tare daemon runs at {host} (process {running(pidfile) or 'unknown'}, log {os.path.dirname(pidfile)}/tared.log)\n"
    )
    return 0


def _stop(context: Context, options: Options) -> int:
    pidfile = options.text("pidfile")
    pid = running(pidfile)
    if not pid:
        sys.stdout.write("the Tare daemon does not run\n")
        return 0
    try:
        os.kill(pid, 15)
    except PermissionError:
        raise CliError(f"no permission to stop the Tare daemon (process {pid}): run 'sudo tare daemon stop'") from None
    except ProcessLookupError:
        pass
    deadline = time.monotonic() + _STOP_SECONDS
    while _alive(pid):
        if time.monotonic() > deadline:
            raise CliError(f"the Tare daemon (process {pid}) still runs after {_STOP_SECONDS:.0f} seconds; its log may tell why")
        time.sleep(0.02)
    sys.stdout.write(f"stopped the Tare daemon (process {pid})\n")
    return 0


def _status(context: Context, options: Options) -> int:
    choice = context.choice()
    pid = running(options.text("pidfile"))
    client = choice.client()
    if not client.answers():
        process = f"process {pid} exists but does not answer" if pid else "it does not run"
        sys.stdout.write(f"no Tare daemon answers at {choice.host} ({process})\n")
        return 3
    version = client.call("GET", "/version")
    sys.stdout.write(f"the Tare daemon runs at {choice.host} (version {version.get('Version', '?')}{f', process {pid}' if pid else ''})\n")
    return 0


class _Passing(Command):
    """A command whose flags belong to another program; only --help is ours."""

    def parse(self, words: list[str]) -> Options | None:  # type: ignore[override]
        from tare.cli.flags import Options as Parsed

        if words and words[0] in ("--help", "-h"):
            return None
        parsed = Parsed({})
        parsed.operands = list(words)
        return parsed


_PIDFILE = (("pidfile", "", "string", "The daemon's pidfile", PIDFILE),)
START = _Passing(
    "daemon start",
    "daemon start [TARED-OPTIONS]",
    "Start the daemon in the background. Options are tared's own: see 'tared --help'",
    _start,
    examples=(
        "tare daemon start",
        "tare daemon start -H unix:///tmp/t/tare.sock --data-root /tmp/t/data --exec-root /tmp/t/run",
    ),
)
STOP = Command("daemon stop", "daemon stop [OPTIONS]", "Stop the daemon; containers go on", _stop, _PIDFILE, most=0)
STATUS = Command(
    "daemon status",
    "daemon status [OPTIONS]",
    "Tell whether the daemon runs, and where (exit status 3 when it does not)",
    _status,
    _PIDFILE,
    most=0,
)
