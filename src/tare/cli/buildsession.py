"""The command's half of a build's session (decision 78): SSH agents that the build asks for, and what is fetched of its result."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading

from tare.cli.failures import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

    from tare.cli.buildvalues import Output
    from tare.cli.connection import Client

_CHUNK = 1 << 16
_FILES_MODE = 0o644


class Agents:
    """SSH agents that are lent to a build. A context: agents that were started for key files end with it."""

    def __init__(self, wanted: Sequence[tuple[str, list[str]]]) -> None:
        self._wanted = wanted
        self._started: list[subprocess.Popen[bytes]] = []
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self.sockets: dict[str, str] = {}

    def __enter__(self) -> Agents:
        try:
            for id, paths in self._wanted:
                self.sockets[id] = paths[0] if len(paths) == 1 and _is_socket(paths[0]) else self._start(id, paths)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, id: str, keys: list[str]) -> str:
        """An agent of our own that holds these keys."""
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="tare-ssh-")
        path = os.path.join(self._directory.name, str(len(self._started)))
        try:
            self._started.append(subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL))
            for _ in range(200):
                if os.path.exists(path):
                    break
                threading.Event().wait(0.01)
            done = subprocess.run(["ssh-add", "-q", *keys], env={**os.environ, "SSH_AUTH_SOCK": path}, check=False)
        except FileNotFoundError as error:
            raise CliError(
                f"--ssh {id}: key files need the program {error.filename}: install openssh-client, or name an agent's socket"
            ) from None
        if done.returncode:
            raise CliError(f"--ssh {id}: failed to load keys {', '.join(keys)}")
        return path

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.terminate()
            process.wait()
        if self._directory is not None:
            self._directory.cleanup()

    def join(self, client: Client, session: str, name: str, number: int) -> None:
        """Connect the agent ``name`` with connection ``number`` of the build, in the background."""
        threading.Thread(target=self._join, args=(client.another(), session, name, number), daemon=True).start()

    def _join(self, client: Client, session: str, name: str, number: int) -> None:
        import socket

        try:
            own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            own.connect(self.sockets[name])
            hijacked, rest, _ = client.hijack(f"/tare/builds/{session}/agents/{number}")
            theirs = socket.socket(fileno=hijacked.detach())
        except (OSError, CliError) as error:
            sys.stderr.write(f"ssh agent {name}: {error}\n")
            return
        own.sendall(rest)
        back = threading.Thread(target=_copy, args=(theirs, own), daemon=True)
        back.start()
        _copy(own, theirs)
        back.join()
        own.close()
        theirs.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    import socket

    try:
        while data := source.recv(_CHUNK):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def _is_socket(path: str) -> bool:
    import stat

    return stat.S_ISSOCK(os.stat(path).st_mode)


def fetch(client: Client, session: str, number: int, output: Output) -> None:
    """Bring an export here: a tar into a file or to standard output, or its content into a directory."""
    chunks = client.another().stream("GET", f"/tare/builds/{session}/exports/{number}").chunks()
    if output.unpacked:
        unpack_into(chunks, output.destination or ".")
    elif output.destination == "-":
        sys.stdout.flush()
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    else:
        _save(chunks, output.destination or "")


def unpack_into(chunks: Iterator[bytes], directory: str) -> None:
    """The files of a tar below ``directory``, which is made if it is missing. They belong to the user."""
    from tare.cli.localtar import Reader, unpack

    os.makedirs(directory, exist_ok=True)
    unpack(Reader(chunks), directory, lambda name: name)


def _save(chunks: Iterator[bytes], path: str) -> None:
    """A file that is complete or not there."""
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    number, scratch = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}-")
    try:
        with os.fdopen(number, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            os.fchmod(number, _FILES_MODE)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise
