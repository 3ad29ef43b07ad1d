"""A web server of files and git repositories, for builds that fetch."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_MODIFIED = "Wed, 01 Jan 2020 00:00:00 GMT"


@dataclass
class Site:
    """What a web server has, by path: content and entity tag; and what was asked of it."""

    port: int = 0
    files: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    """Paths with the status of the answer."""
    directory: str = ""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"


@contextmanager
def serving(directory: Path) -> Iterator[Site]:
    """A web server of a site's files, and of a directory (a repository in its dumb form)."""
    site = Site(directory=str(directory))

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, directory=site.directory, **options)  # type: ignore[arg-type]

        def do_GET(self) -> None:
            if self.path.startswith("/smart/"):
                return self._repository()
            path = self.path.lstrip("/").partition("?")[0]
            if path not in site.files:
                return super().do_GET()
            data, tag = site.files[path]
            same = bool(tag) and self.headers.get("If-None-Match") == tag
            status = 304 if same else 200
            site.asked.append((path, status))
            self.send_response(status)
            self.send_header("Last-Modified", _MODIFIED)
            if tag:
                self.send_header("ETag", tag)
            self.send_header("Content-Length", "0" if same else str(len(data)))
            self.end_headers()
            if not same:
                self.wfile.write(data)

        do_POST = do_GET

        def _repository(self) -> None:
            """Whatever git's own server program answers."""
            path, _, query = self.path.removeprefix("/smart").partition("?")
            length = int(self.headers.get("Content-Length", 0))
            variables = {
                "GIT_PROJECT_ROOT": site.directory, "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path, "QUERY_STRING": query,
                "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(length),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""), "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            }  # fmt: skip
            body = self.rfile.read(length)
            done = subprocess.run(["git", "http-backend"], input=body, capture_output=True, env=os.environ | variables, check=True)
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            lines = [line.partition(": ") for line in head.decode().split("\r\n")]
            status = next((int(value.split()[0]) for name, _, value in lines if name == "Status"), 200)
            self.send_response(status)
            for name, _, value in lines:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def git(directory: Path, *arguments: str) -> str:
    names = ["-c", "user.name=T", "-c", "user.email=t@example", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *names, *arguments], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def repository(directory: Path, files: dict[str, str]) -> Path:
    directory.mkdir()
    git(directory, "init", "-q")
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "-m", "one")
    return directory


def publish(site: Site, work: Path, name: str) -> str:
    """A repository for anybody who asks by plain HTTP; its address."""
    bare = Path(site.directory) / name
    git(work, "clone", "-q", "--bare", str(work), str(bare))
    git(bare, "update-server-info")
    return site.url(name)
