"""Sources from elsewhere: files by HTTP, git repositories, and contexts of either kind.

Git is the ``git`` program with everything switched off that a hostile repository could make it do: no hooks, no configuration of the
machine, no local or external transports, no submodule recursion into them. What it checks out is read as a tree by descriptor, links not
followed; nothing of it is executed.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tare.builder.context import empty, is_archive, spool
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


def open_url(url: str) -> Any:
    """A response to read from. ``NotFound`` and ``Upstream`` say what went wrong."""
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers={"User-Agent": "tare"}), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        kind = NotFound if error.code == 404 else Upstream
        raise kind(f"invalid response status {error.code} for {url}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        text = os.strerror(reason.errno).lower() if isinstance(reason, OSError) and reason.errno else str(reason)
        raise Upstream(f'Get "{url}": {text}') from None


def fetch_file(url: str, directory: Path, checksum: str = "") -> tuple[TarTree, bytes]:
    """Download a file; a tree with it alone, and its name. ``checksum`` (``sha256:HEX``) is demanded of it."""
    name = posixpath.basename(unquote(urlsplit(url).path.rstrip("/"))).encode("utf-8", "surrogateescape")
    if name in (b"", b".", b".."):
        raise InvalidArgument(f"cannot determine filename for url: {url}")
    with open_url(url) as response, tempfile.TemporaryFile(dir=directory) as body:
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
        entry = Entry(name, Kind.FILE, 0o600, size=size, mtime_ns=_modified(response.headers.get("Last-Modified", "")))
        body.seek(0)
        return spool(_tar_of(entry, body), directory, url), name


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


def open_context(url: str, directory: Path) -> tuple[TarTree, bytes | None]:
    """A remote context: a repository, a tar, or a lone Dockerfile (then its text too, and an empty tree)."""
    if is_git(url):
        return fetch_git(url, directory), None
    if not url.startswith(("http://", "https://")):
        raise InvalidArgument(f"remote context {url!r} is neither a git repository nor an HTTP URL")
    with open_url(url) as response, tempfile.TemporaryFile(dir=directory) as body:
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


def fetch_git(source: str, directory: Path, *, keep_git_dir: bool = False) -> TarTree:
    """A repository's files, of its default branch or the ref after ``#``, of a directory after ``:``."""
    url, ref, inside = split_git(source)
    git = shutil.which("git")
    if git is None:
        raise Unsupported(f"cannot fetch {url}: the git program is not installed on the engine's machine")
    if ref.startswith("-") or url.startswith("-"):
        raise InvalidArgument(f"invalid git reference {ref or url!r}")
    with tempfile.TemporaryDirectory(prefix="git-", dir=directory) as scratch:
        _git(git, scratch, "init", "--quiet")
        _git(git, scratch, "fetch", "--quiet", "--depth", "1", "--no-recurse-submodules", "--", url, ref or "HEAD")
        _git(git, scratch, "checkout", "--quiet", "--detach", "FETCH_HEAD")
        if not keep_git_dir:
            shutil.rmtree(Path(scratch) / ".git")
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


def _git(git: str, directory: str, *arguments: str) -> None:
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
    try:
        done = subprocess.run(
            [git, *safe, *arguments], cwd=directory, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_GIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Upstream(f"git {arguments[0]} took longer than {_GIT_SECONDS} s") from None
    if done.returncode:
        raise Upstream(f"error fetching: git {arguments[0]}: {done.stderr.decode('utf-8', 'replace').strip()[-2000:]}")
