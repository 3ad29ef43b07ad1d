"""Sources from elsewhere: files by HTTP, git repositories, and contexts of either kind.

Git is the ``git`` program with everything switched off that a hostile repository could make it do: no hooks, no configuration of the
machine, no local or external transports, for submodules neither. What it checks out is read as a tree by descriptor, links not
followed; nothing of it is executed.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tare.builder.context import empty, is_archive, spool
from tare.builder.lines import Line
from tare.builder.stopping import Stop
from tare.builder.trees import TarTree
from tare.errors import InvalidArgument, NotFound, ResourceExhausted, Unsupported, Upstream
from tare.linux.mount import open_in_root
from tare.store.tar import writer
from tare.store.tar.entry import Entry, Kind
from tare.store.tartree import DIRECTORY, tar_tree

_TIMEOUT = 60
_CHUNK = 1 << 20
_GIT_SECONDS = 900
_DOCKERFILE_LIMIT = 16 << 20
_CHECKSUM = re.compile("sha256:[0-9a-f]{64}")
_COMMIT = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_NOT_SHALLOW = "does not support shallow"
_SCP_LIKE = re.compile(r"[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+:.+")


def is_remote(source: str) -> bool:
    """Whether ADD fetches it rather than taking it from the context."""
    return source.startswith(("http://", "https://")) or is_git(source)


def is_git(source: str) -> bool:
    """Whether it names a git repository, by Docker's rules."""
    if source.startswith(("git://", "ssh://", "git@")) or _SCP_LIKE.fullmatch(source):
        return True
    if source.startswith("github.com/"):
        return True
    return source.startswith(("http://", "https://")) and urlsplit(source).path.endswith(".git")


# -- HTTP -----------------------------------------------------------------------------------------------------------------------------


def open_url(url: str, line: Line, known: Version | None = None) -> Any:
    """A response to read from; None when the server still has the ``known`` version. ``NotFound`` and ``Upstream`` say what went wrong."""
    headers = {"User-Agent": "tare"}
    if known:
        headers |= {"If-None-Match": known.etag} if known.etag else {"If-Modified-Since": known.modified}
    try:
        return line.opener().open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 304 and known:
            return None
        kind = NotFound if error.code == 404 else Upstream
        raise kind(f"invalid response status {error.code} for {url}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        text = os.strerror(reason.errno).lower() if isinstance(reason, OSError) and reason.errno else str(reason)
        raise Upstream(f'Get "{url}": {text}') from None


@dataclass(frozen=True, slots=True)
class Version:
    """How a server tells versions of a file apart."""

    etag: str = ""
    modified: str = ""

    def __bool__(self) -> bool:
        return bool(self.etag or self.modified)

    @classmethod
    def of(cls, headers: Any) -> Version:
        return cls(headers.get("ETag", ""), headers.get("Last-Modified", ""))


def file_name(url: str) -> bytes:
    """What a download is called: the last part of its path."""
    name = posixpath.basename(unquote(urlsplit(url).path.rstrip("/"))).encode("utf-8", "surrogateescape")
    return b"__unnamed__" if name in (b"", b".", b"..") or b"\0" in name else name


def fetch_file(url: str, directory: Path, checksum: str, known: Version | None, stop: Stop) -> tuple[TarTree, Version, str] | None:
    """Download a file: a tree with it alone (``file_name``), its version and its digest.

    ``checksum`` (``sha256:HEX``): demanded of it when given. ``known``: a version that need not be sent again; None when the server still
    has that one.
    """
    if checksum and not _CHECKSUM.fullmatch(checksum):
        raise InvalidArgument(f"invalid checksum {checksum!r}: sha256: and 64 hexadecimal digits are expected")
    with _line(stop) as line:
        response = open_url(url, line, known)
        return None if response is None else _received(response, url, directory, checksum)


@contextmanager
def _line(stop: Stop) -> Iterator[Line]:
    """Connections that end when the build is stopped."""
    line = Line()
    try:
        with stop.ending(line.hang_up):
            yield line
    finally:
        line.close()


def _received(response: Any, url: str, directory: Path, checksum: str) -> tuple[TarTree, Version, str]:
    with response, tempfile.TemporaryFile(dir=directory) as body:
        hasher, size = hashlib.sha256(usedforsecurity=False), 0
        try:
            while chunk := response.read(_CHUNK):
                body.write(chunk)
                hasher.update(chunk)
                size += len(chunk)
        except OSError as error:
            raise ResourceExhausted(f"cannot download {url}: {error}") from None
        found = f"sha256:{hasher.hexdigest()}"
        if checksum and checksum != found:
            raise InvalidArgument(f"digest mismatch {found}: {checksum}")
        version = Version.of(response.headers)
        entry = Entry(file_name(url), Kind.FILE, 0o600, size=size, mtime_ns=_modified(version.modified))
        body.seek(0)
        return spool(_tar_of(entry, body), directory, url), version, found


def _tar_of(entry: Entry, body: io.BufferedIOBase | Any) -> Iterator[bytes]:
    yield writer.header(entry)
    while chunk := body.read(_CHUNK):
        yield chunk
    yield writer.padding(entry.size) + writer.END


def _modified(text: str) -> int:
    try:
        return int(parsedate_to_datetime(text).timestamp()) * 1_000_000_000
    except (ValueError, TypeError, OverflowError):
        return 0


def open_context(url: str, directory: Path, stop: Stop) -> tuple[TarTree, bytes | None]:
    """A remote context: a repository, a tar, or a lone Dockerfile (then its text too, and an empty tree)."""
    if is_git(url):
        return fetch_git(url, directory, stop=stop), None
    if not url.startswith(("http://", "https://")):
        raise InvalidArgument(f"remote context {url!r} is neither a git repository nor an HTTP URL")
    with _line(stop) as line, open_url(url, line) as response, tempfile.TemporaryFile(dir=directory) as body:
        try:
            shutil.copyfileobj(response, body, _CHUNK)
        except OSError as error:
            raise ResourceExhausted(f"cannot download {url}: {error}") from None

        def chunks() -> Iterator[bytes]:
            body.seek(0)
            return iter(lambda: body.read(_CHUNK), b"")

        if is_archive(chunks()):
            return spool(chunks(), directory, url), None
        body.seek(0, os.SEEK_END)
        if body.tell() > _DOCKERFILE_LIMIT:
            raise InvalidArgument(f"{url} is neither an archive nor a Dockerfile")
        return empty(directory), b"".join(chunks())


# -- git ------------------------------------------------------------------------------------------------------------------------------


def split_git(source: str) -> tuple[str, str, str]:
    """``URL#REF:DIRECTORY`` as its three parts."""
    url, _, fragment = source.partition("#")
    ref, _, directory = fragment.partition(":")
    if url.startswith("github.com/"):
        url = f"https://{url}"
    return url, ref, directory


def fetch_git(source: str, directory: Path, *, keep_git_dir: bool = False, checksum: str = "", stop: Stop | None = None) -> TarTree:
    """A repository's files with its submodules', of its default branch or the ref after ``#``, of a directory after ``:``.

    ``checksum``: the commit, or the beginning of its id, that it has to be.
    """
    url, ref, inside = split_git(source)
    program = shutil.which("git")
    if program is None:
        raise Unsupported(f"cannot fetch {url}: the git program is not installed on the engine's machine")
    if ref.startswith("-") or url.startswith("-"):
        raise InvalidArgument(f"invalid git reference {ref or url!r}")
    with tempfile.TemporaryDirectory(prefix="git-", dir=directory) as scratch:
        git = _Git(program, scratch, stop or Stop())
        git("init", "--quiet")
        _fetch(git, url, ref or "HEAD")
        commit = git("rev-parse", "HEAD").strip()
        if checksum and not (re.fullmatch("[0-9a-f]{7,64}", checksum) and commit.startswith(checksum)):
            raise InvalidArgument(f"expected checksum to match {checksum}, got {commit}")
        if os.path.lexists(Path(scratch) / ".gitmodules"):
            _fetch_submodules(git)
        if not keep_git_dir:
            _drop_git_directories(scratch)
        root = os.open(scratch, DIRECTORY)
        try:
            try:
                top = open_in_root(root, inside or ".", DIRECTORY & ~os.O_NOFOLLOW)
            except OSError as error:
                raise NotFound(f"{source}: {inside}: {os.strerror(error.errno or 0).lower()}") from None
            try:
                return spool(tar_tree(top), directory, source)
            finally:
                os.close(top)
        finally:
            os.close(root)


def _drop_git_directories(top: str) -> None:
    for directory, names, files in os.walk(top):
        if ".git" in names:
            names.remove(".git")
            path = os.path.join(directory, ".git")
            os.unlink(path) if os.path.islink(path) else shutil.rmtree(path)
        elif ".git" in files:
            os.unlink(os.path.join(directory, ".git"))


def _fetch(git: _Git, url: str, ref: str) -> None:
    """Check out one commit of a repository. Of a server that gives out no commits by their id, or not one alone, more is fetched."""
    wanted = "FETCH_HEAD"
    try:
        git("fetch", "--quiet", "--depth", "1", "--no-recurse-submodules", "--", url, ref)
    except Upstream as error:
        if _COMMIT.fullmatch(ref):
            git("fetch", "--quiet", "--no-recurse-submodules", "--", url, "+refs/*:refs/remotes/*")
            wanted = ref
        elif _NOT_SHALLOW in str(error):
            git("fetch", "--quiet", "--no-recurse-submodules", "--", url, ref)
        else:
            raise
    git("checkout", "--quiet", "--detach", wanted, "--")


def _fetch_submodules(git: _Git) -> None:
    command = ("submodule", "--quiet", "update", "--init", "--recursive")
    try:
        git(*command, "--depth", "1")
    except Upstream as error:
        if _NOT_SHALLOW not in str(error):
            raise
        git(*command)


@dataclass(frozen=True, slots=True)
class _Git:
    """The git program in one directory."""

    program: str
    directory: str
    stop: Stop

    def __call__(self, *arguments: str) -> str:
        """Run it; what it writes. ``Upstream`` says why it failed."""
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": "/nonexistent",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": "http:https:git:ssh",
            "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
            "LC_ALL": "C.UTF-8",
        }
        safe = ["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "core.symlinks=true"]
        process = subprocess.Popen(
            [self.program, *safe, *arguments], cwd=self.directory, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0,
        )  # fmt: skip
        try:
            with self.stop.ending(lambda: _kill_group(process)):
                output, errors = process.communicate(timeout=_GIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise Upstream(f"git {arguments[0]} took longer than {_GIT_SECONDS} s") from None
        finally:
            _kill_group(process)
            with process:
                pass
        if process.returncode:
            raise Upstream(f"error fetching: git {arguments[0]}: {errors.decode('utf-8', 'replace').strip()[-2000:]}")
        return output.decode("utf-8", "replace")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """A program that goes on, and those that it has started (its transports)."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
